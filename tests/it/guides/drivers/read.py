# As verify.py, for the `read` of the guide: whatever it raises refuses.
import sys

for line in sys.stdin:
    secret, id, timestamp, signatures, body = (
        None if field == "-" else bytes.fromhex(field) for field in line.split()
    )
    given = {"Webhook-Id": id, "webhook-timestamp": timestamp, "webhook-signature": signatures}
    headers = {name: field.decode() for name, field in given.items() if field is not None}
    try:
        read(secret.decode(), headers, body)  # noqa: F821
        print("accepted")
    except Exception:
        print("refused")
