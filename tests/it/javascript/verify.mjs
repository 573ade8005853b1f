// Gives requests, as a receiver got them, to the official library; ends with 1 where it verifies
// what it should not, or does not verify what it should. Standard input is
// {"secret": …, "requests": [{"headers": {…}, "body": base64}, …]}.

import assert from "node:assert/strict";
import { text } from "node:stream/consumers";
import { Webhook, WebhookVerificationError } from "standardwebhooks";

const { secret, requests } = JSON.parse(await text(process.stdin));
const webhook = new Webhook(secret);

for (const { headers, body: base64 } of requests) {
  const body = Buffer.from(base64, "base64");
  assert.deepEqual(webhook.verify(body, headers), JSON.parse(body.toString()));

  const refused = (what, changed, over) =>
    assert.throws(
      () => webhook.verify(over ?? body, { ...headers, ...changed }),
      WebhookVerificationError,
      `${what} was verified`,
    );
  refused("a changed body", {}, Buffer.concat([body, Buffer.from(" ")]));
  const [version, signature] = headers["webhook-signature"].split(",");
  const other = signature[0] === "A" ? "B" : "A";
  refused("a changed signature", {
    "webhook-signature": `${version},${other}${signature.slice(1)}`,
  });
  refused("another id", { "webhook-id": `${headers["webhook-id"]}0` });
  const sent = Number(headers["webhook-timestamp"]);
  refused("another time", { "webhook-timestamp": String(sent - 1) });
  // Signed as it should be, and sent again six minutes later.
  const old = new Date((sent - 6 * 60) * 1000);
  refused("an old request", {
    "webhook-timestamp": String(sent - 6 * 60),
    "webhook-signature": webhook.sign(headers["webhook-id"], old, body.toString()),
  });
  assert.throws(
    () => new Webhook("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").verify(body, headers),
    WebhookVerificationError,
    "another secret verified",
  );
}
console.log(`verified ${requests.length}`);
