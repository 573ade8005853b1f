// What became of each event. webhook-dispatcher writes it; nobody else does.
import type { Access, CollectionConfig } from 'payload'

const whoIsLoggedIn: Access = ({ req }) => Boolean(req.user)

/** It comes with an API key. */
const theDispatcher: Access = ({ req }) => req.user?._strategy === 'api-key'

export const webhookDeliveries: CollectionConfig = {
  slug: 'webhookDeliveries',
  admin: {
    defaultColumns: ['dispatchId', 'event', 'createdAt'],
    group: 'Webhooks',
    useAsTitle: 'dispatchId',
  },
  access: {
    create: theDispatcher,
    delete: theDispatcher,
    read: whoIsLoggedIn,
    update: theDispatcher,
  },
  fields: [
    { name: 'dispatchId', type: 'text', required: true, unique: true, index: true },
    { name: 'event', type: 'text', index: true },
    {
      name: 'targets',
      type: 'array',
      fields: [
        { name: 'url', type: 'text', required: true },
        { name: 'status', type: 'text', required: true },
        { name: 'code', type: 'number' },
        { name: 'durationMs', type: 'number' },
        { name: 'error', type: 'text' },
      ],
    },
  ],
}
