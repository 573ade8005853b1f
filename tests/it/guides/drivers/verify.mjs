// Gives cases to the `verify` of the guide. A line is one case: secret, headers and body in
// hexadecimal, `-` where there is none.
import { text } from "node:stream/consumers";
import { verify } from "./guide.mjs";

for (const line of (await text(process.stdin)).split("\n").filter(Boolean)) {
  const fields = line.split(" ").map((hex) => (hex === "-" ? undefined : Buffer.from(hex, "hex")));
  const body = fields.pop();
  console.log(verify(...fields.map((field) => field?.toString()), body) ? "accepted" : "refused");
}
