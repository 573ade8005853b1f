#!/usr/bin/env bash
# PyPI standardwebhooks 1.1.0 (receiver check: npm standardwebhooks 1.1.1)
#
# Behaviour: Webhook.sign() keeps the clock reading of the datetime it is given
# and calls it UTC. The same instant written in another zone is signed as
# another instant, and a naive local time is signed as if it were UTC.
#
# Why one would guess otherwise: the argument is a datetime, two aware datetimes
# for one instant compare equal in Python, and the JavaScript library signs the
# instant. The signature looks right and no error is raised; the code also works
# on any machine whose clock is set to UTC.
#
# For senders: the header made from int(when.timestamp()) and the signature then
# speak of two times, and every receiver refuses the message. Pass
# when.astimezone(timezone.utc). For receivers: a "no matching signature" that
# comes from one sender region only may be this, not a wrong secret.
#
# Seen:
#   aware UTC        signed second is off by 0      accepted by python: True   by node: True
#   aware +02:00     signed second is off by 7200   accepted by python: False  by node: False
#   naive, UTC+9     signed second is off by 32400  accepted by python: False  by node: False
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
timeout 300 npm install --silent --prefer-offline --no-audit --no-fund --ignore-scripts --prefix . standardwebhooks@1.1.1 >/dev/null
python3 -m venv venv
timeout 300 venv/bin/pip install -q --disable-pip-version-check standardwebhooks==1.1.0

cat > receive.cjs <<'JS'
const { Webhook } = require("standardwebhooks");
const { secret, body, headers } = JSON.parse(process.argv[2]);
try {
  new Webhook(secret).verify(body, headers);
  console.log("True");
} catch (error) {
  console.log("False");
}
JS

cat > send.py <<'PY'
import base64, hashlib, hmac, json, subprocess, sys
from datetime import datetime, timedelta, timezone
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

key = b"0123456789abcdef01234567"
secret = "whsec_" + base64.b64encode(key).decode()
hook = Webhook(secret)
body = '{"type":"invoice.paid"}'
now = datetime.now(timezone.utc).replace(microsecond=0)


def off_by(second, signature):
    for shift in range(-14 * 3600, 14 * 3600 + 1, 900):
        text = f"msg_1.{second + shift}.{body}".encode()
        mac = base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()
        if signature == "v1," + mac:
            return shift
    return None


seen = []
for name, when in (
    ("aware UTC", now),
    ("aware +02:00", now.astimezone(timezone(timedelta(hours=2)))),
    ("naive, UTC+9", datetime.fromtimestamp(now.timestamp())),
):
    second = int(when.timestamp())
    assert second == int(now.timestamp()), "the three must name one instant"
    signature = hook.sign("msg_1", when, body)
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(second),
        "webhook-signature": signature,
    }
    try:
        hook.verify(body, headers)
        python = True
    except WebhookVerificationError:
        python = False
    message = json.dumps({"secret": secret, "body": body, "headers": headers})
    node = subprocess.check_output(["node", "receive.cjs", message], text=True).strip() == "True"
    shift = off_by(second, signature)
    seen.append((shift, python, node))
    print(f"{name:<16} signed second is off by {shift!s:<6} accepted by python: {python!s:<6} by node: {node}")

expected = [(0, True, True), (7200, False, False), (32400, False, False)]
sys.exit(0 if seen == expected else "CHANGED: expected " + repr(expected))
PY
TZ=Asia/Tokyo venv/bin/python send.py
