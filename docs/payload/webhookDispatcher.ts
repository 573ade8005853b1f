// Tells webhook-dispatcher at once what has changed in `webhookSubscriptions`. It also looks by itself
// every PAYLOAD_POLL_INTERVAL, so what is lost here comes a little later.
//
// WEBHOOK_DISPATCHER_URL      where it listens, such as https://webhooks.example.com
// WEBHOOK_DISPATCHER_API_KEY  a key of it with the role `manager`
import type { CollectionAfterChangeHook, CollectionAfterDeleteHook } from 'payload'

/** How long it may take to answer, in milliseconds. */
const TIMEOUT_MS = 5_000

type Change = { id: number | string; updatedAt?: string; deleted?: true }

/** Nobody waits for it and nothing fails by it: a save goes on when the dispatcher is away. */
function tell(change: Change, log: { error: (message: string) => void }): void {
  const url = process.env.WEBHOOK_DISPATCHER_URL
  if (!url) return
  fetch(`${url.replace(/\/$/, '')}/payload/changes`, {
    method: 'POST',
    headers: {
      Authorization: `Bearer ${process.env.WEBHOOK_DISPATCHER_API_KEY ?? ''}`,
      'Content-Type': 'application/json',
    },
    body: JSON.stringify(change),
    signal: AbortSignal.timeout(TIMEOUT_MS),
  })
    .then(async (response) => {
      if (!response.ok) throw new Error(`${response.status} ${await response.text()}`)
    })
    .catch((error) => log.error(`webhook-dispatcher was not told of a change: ${error}`))
}

export const tellOfChange: CollectionAfterChangeHook = ({ doc, req }) => {
  tell({ id: doc.id, updatedAt: doc.updatedAt }, req.payload.logger)
}

export const tellOfDeletion: CollectionAfterDeleteHook = ({ id, req }) => {
  tell({ id, deleted: true }, req.payload.logger)
}
