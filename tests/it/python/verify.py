"""Gives requests, as a receiver got them, to the official library; ends with 1 where it verifies
what it should not, or does not verify what it should. Standard input is
{"secret": ..., "requests": [{"headers": {...}, "body": base64}, ...]}."""

import base64
import datetime
import json
import sys

from standardwebhooks import Webhook, WebhookVerificationError

given = json.load(sys.stdin)
webhook = Webhook(given["secret"])


def refuses(what, body, headers, webhook=webhook):
    try:
        webhook.verify(body, headers)
    except WebhookVerificationError:
        return
    sys.exit(f"{what} was verified")


for request in given["requests"]:
    headers, body = request["headers"], base64.b64decode(request["body"])
    webhook.verify(body, headers)
    refuses("a changed body", body + b" ", headers)
    changed = []
    for one in headers["webhook-signature"].split(" "):
        version, signature = one.split(",")
        changed.append(f"{version},{'B' if signature[0] == 'A' else 'A'}{signature[1:]}")
    refuses("a changed signature", body, headers | {"webhook-signature": " ".join(changed)})
    sent = int(headers["webhook-timestamp"])
    # Signed as it should be, and sent again six minutes later.
    old = datetime.datetime.fromtimestamp(sent - 360, datetime.timezone.utc)
    again = webhook.sign(headers["webhook-id"], old, body.decode())
    old_headers = {"webhook-timestamp": str(sent - 360), "webhook-signature": again}
    refuses("an old request", body, headers | old_headers)
    refuses("another secret", body, headers, Webhook("whsec_" + "A" * 32))

print(f"verified {len(given['requests'])}")
