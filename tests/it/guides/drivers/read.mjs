// As verify.mjs, for the `read` of the guide: whatever it throws refuses.
import { text } from "node:stream/consumers";
import { read } from "./guide.mjs";

for (const line of (await text(process.stdin)).split("\n").filter(Boolean)) {
  const fields = line.split(" ").map((hex) => (hex === "-" ? undefined : Buffer.from(hex, "hex")));
  const [secret, id, timestamp, signatures] = fields.slice(0, 4).map((field) => field?.toString());
  const headers = { "Webhook-Id": id, "webhook-timestamp": timestamp, "webhook-signature": signatures };
  try {
    read(secret, headers, fields[4]);
    console.log("accepted");
  } catch {
    console.log("refused");
  }
}
