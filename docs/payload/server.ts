// Payload with the two collections and its REST API, and without pages: to try it, or for who needs no
// admin panel. In a project of yours you need none of this: add the collections to its config.
//
// DATABASE_URL    a Postgres database of its own; its tables are made at the start
// PAYLOAD_SECRET  what Payload seals its tokens and keys with
// PORT            3000, unless it says otherwise
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { Readable } from 'node:stream'

import { postgresAdapter } from '@payloadcms/db-postgres'
import { buildConfig, getPayload, handleEndpoints } from 'payload'

import { webhookDeliveries } from './webhookDeliveries'
import { webhookSubscriptions } from './webhookSubscriptions'

export const config = buildConfig({
  collections: [
    { slug: 'users', auth: { useAPIKey: true }, fields: [] },
    webhookSubscriptions,
    webhookDeliveries,
  ],
  db: postgresAdapter({ pool: { connectionString: process.env.DATABASE_URL } }),
  graphQL: { disable: true },
  secret: process.env.PAYLOAD_SECRET ?? '',
  telemetry: false,
  typescript: { autoGenerate: false },
})

await getPayload({ config })

async function answer(incoming: IncomingMessage, outgoing: ServerResponse): Promise<void> {
  const { headers, method, url } = incoming
  const hasBody = method !== 'GET' && method !== 'HEAD'
  const request = new Request(`http://${headers.host}${url}`, {
    method,
    headers: Object.entries(headers).flatMap(([name, value]) =>
      [value ?? []].flat().map((one): [string, string] => [name, one]),
    ),
    ...(hasBody ? { body: Readable.toWeb(incoming), duplex: 'half' } : {}),
  } as RequestInit)
  const response = await handleEndpoints({ config, request })
  outgoing.writeHead(response.status, Object.fromEntries(response.headers))
  outgoing.end(Buffer.from(await response.arrayBuffer()))
}

export const server = createServer((incoming, outgoing) => {
  answer(incoming, outgoing).catch((error) => {
    console.error(error)
    outgoing.destroy()
  })
})

const port = Number(process.env.PORT ?? 3000)
server.listen(port, '127.0.0.1', () => console.log(`Payload's API is at http://localhost:${port}/api`))
