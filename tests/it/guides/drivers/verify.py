# Gives cases to the `verify` of the guide, which stands before this. A line is one case: secret,
# headers and body in hexadecimal, `-` where there is none.
import sys

for line in sys.stdin:
    *texts, body = (None if field == "-" else bytes.fromhex(field) for field in line.split())
    texts = [text and text.decode() for text in texts]
    print("accepted" if verify(*texts, body) else "refused")  # noqa: F821
