// As verify.mjs, for the `read` of the guide: an exception refuses. The headers are given as an object
// and as the `Headers` of fetch, with the same result.
import { text } from "node:stream/consumers";
import { read } from "./guide.mjs";

for (const line of (await text(process.stdin)).split("\n").filter(Boolean)) {
  const fields = line.split(" ").map((hex) => (hex === "-" ? undefined : Buffer.from(hex, "hex")));
  const [secret, id, timestamp, signatures] = fields.slice(0, 4).map((field) => field?.toString());
  const headers = { "Webhook-Id": id, "webhook-timestamp": timestamp, "webhook-signature": signatures };
  const present = Object.entries(headers).filter(([, value]) => value !== undefined);
  const results = [() => headers, () => new Headers(present)].map((form) => {
    try {
      read(secret, form(), fields[4]);
      return "accepted";
    } catch {
      return "refused";
    }
  });
  console.log(results[0] === results[1] ? results[0] : `${results} as object and Headers`);
}
