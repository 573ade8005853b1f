// Who wants which events, and where. webhook-dispatcher reads it and sends accordingly.
import type { Access, CollectionConfig, FieldAccess } from 'payload'

import { tellOfChange, tellOfDeletion } from './webhookDispatcher'

const whoIsLoggedIn: Access = ({ req }) => Boolean(req.user)

/** The dispatcher comes with an API key. Others see the field while they make a document only. */
const theDispatcher: FieldAccess = ({ id, req }) => {
  return id === undefined || req.user?._strategy === 'api-key'
}

export const webhookSubscriptions: CollectionConfig = {
  slug: 'webhookSubscriptions',
  admin: {
    defaultColumns: ['name', 'url', 'events', 'isActive', 'updatedAt'],
    group: 'Webhooks',
    useAsTitle: 'name',
  },
  access: {
    create: whoIsLoggedIn,
    delete: whoIsLoggedIn,
    read: whoIsLoggedIn,
    update: whoIsLoggedIn,
  },
  hooks: {
    afterChange: [tellOfChange],
    afterDelete: [tellOfDeletion],
  },
  fields: [
    { name: 'name', type: 'text', required: true, maxLength: 200 },
    {
      name: 'url',
      type: 'text',
      required: true,
      admin: { description: 'Where events are sent, such as https://example.com/webhooks' },
    },
    {
      name: 'events',
      type: 'text',
      hasMany: true,
      required: true,
      admin: { description: 'Names of events: order.created, order.* or *' },
    },
    { name: 'isActive', type: 'checkbox', defaultValue: true, admin: { position: 'sidebar' } },
    {
      name: 'secret',
      type: 'text',
      access: { read: theDispatcher },
      admin: {
        description: 'Signs what is sent: whsec_… (recommended), or 8 to 256 characters. Made by the dispatcher if empty.',
      },
    },
    {
      type: 'collapsible',
      label: 'More',
      admin: { initCollapsed: true },
      fields: [
        {
          name: 'filter',
          type: 'json',
          admin: { description: 'Which payloads: {"data.amount": {"gte": 100}}' },
        },
        {
          name: 'headers',
          type: 'json',
          admin: { description: 'Sent with each request: {"X-Team": "billing"}' },
        },
        { name: 'method', type: 'select', options: ['POST', 'PUT', 'PATCH'], defaultValue: 'POST' },
        {
          name: 'payloadFormat',
          type: 'select',
          options: ['envelope', 'raw'],
          defaultValue: 'envelope',
        },
        {
          name: 'signatureHeaders',
          type: 'select',
          options: ['standard', 'x_signature', 'both'],
          defaultValue: 'standard',
        },
        { name: 'timeoutSeconds', type: 'number', min: 1, max: 300 },
        {
          name: 'retry',
          type: 'json',
          admin: { description: 'Delays in seconds, such as [60, 300, 900, 3600]' },
        },
        { name: 'disableAfterSeconds', type: 'number', min: 0 },
        {
          name: 'rateLimit',
          type: 'json',
          admin: { description: 'Requests in a time: {"count": 10, "per_seconds": 1}' },
        },
        {
          name: 'maxInFlight',
          type: 'number',
          min: 1,
          admin: { description: 'Requests at a time' },
        },
      ],
    },
  ],
}
