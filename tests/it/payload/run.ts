// Payload as docs/payload has it. With API_KEY there are two users from the start: one with that key, and
// one who logs in. Prints `ready` when it listens. A line of its input sets a variable of its environment
// (the hooks read theirs when they are called); at the end of the input it ends.
import { once } from 'node:events'
import { createInterface } from 'node:readline'

import { getPayload } from 'payload'

import { config, server } from './server'

if (process.env.API_KEY) {
  const payload = await getPayload({ config })
  const dispatcher = { enableAPIKey: true, apiKey: process.env.API_KEY }
  for (const [name, more] of [['dispatcher', dispatcher], ['editor', {}]]) {
    const data = { email: `${name}@example.com`, password: 'for tests only', ...more }
    await payload.create({ collection: 'users', data })
  }
}
if (!server.listening) await once(server, 'listening')
console.log('ready')

createInterface(process.stdin)
  .on('line', (line) => {
    const [name, value] = line.split('=', 2)
    process.env[name] = value
    console.log(`set ${line}`)
  })
  .on('close', () => process.exit())
