// An agent that is the official JavaScript client: as client.py, over HTTP.
import { text } from "node:stream/consumers";

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const given = JSON.parse(await text(process.stdin));
const headers = { authorization: `Bearer ${given.key}` };
const transport = new StreamableHTTPClientTransport(new URL(given.url), { requestInit: { headers } });
const client = new Client({ name: "test", version: "1" });
await client.connect(transport);
// From here on the client holds answers to the schemas that it was told.
const { tools } = await client.listTools();
const results = [];
for (const [name, args] of given.calls) {
  const result = await client.callTool({ name, arguments: args });
  const answer = JSON.parse(result.content[0].text);
  if (!result.isError && JSON.stringify(answer) !== JSON.stringify(result.structuredContent)) {
    throw new Error(`${name}: the text is not the structured content`);
  }
  results.push({ is_error: result.isError === true, answer });
}
await client.close();
console.log(
  JSON.stringify({
    version: transport.protocolVersion,
    server: client.getServerVersion().name,
    tools: tools.map((tool) => tool.name),
    results,
  }),
);
