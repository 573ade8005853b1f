#!/usr/bin/env bash
# PyPI rfc8785 0.1.4; for comparison PyPI jcs 0.2.1 and npm canonicalize 4.0.0
#
# Behaviour: rfc8785 writes the canonical text of a large double as RFC 8785
# says, for example 295147905179352830000 (a sample value of the RFC's own
# appendix B). Parse that text with Python's json and canonicalise it again, and
# it raises IntegerDomainError. So canonical JSON is not always accepted as
# input. Every double from 2**53 to below 1e21 is concerned; the other two
# packages return the text unchanged, and 1e21 itself passes in all three.
#
# Why one would guess otherwise: to be stable under parsing and writing again is
# the whole point of a canonical form, and the limit of the package is meant for
# integers that a double cannot hold. This text came out of a double, but
# canonical form drops the fraction and the exponent, so Python reads an int.
#
# For senders: a digest or a signature over canonical JSON, made from floats
# (amounts in small units, sensor counters), cannot be checked by a Python
# receiver with this package. For receivers: parse with parse_int=float where
# the sender's numbers are doubles, or check the bytes as they came.
#
# Seen:
#   295147905179352830000  rfc8785 again: IntegerDomainError  as floats: same  jcs again: same  canonicalize again: same
#   9007199254740992       rfc8785 again: IntegerDomainError  as floats: same  jcs again: same  canonicalize again: same
#   9007199254740991       rfc8785 again: same                as floats: same  jcs again: same  canonicalize again: same
#   1e+21                  rfc8785 again: same                as floats: same  jcs again: same  canonicalize again: same
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
timeout 300 npm install --silent --prefer-offline --no-audit --no-fund --ignore-scripts --prefix . canonicalize@4.0.0 >/dev/null
python3 -m venv venv
timeout 300 venv/bin/pip install -q --disable-pip-version-check rfc8785==0.1.4 jcs==0.2.1

cat > again.mjs <<'JS'
import canonicalize from "canonicalize";
process.stdout.write(canonicalize(JSON.parse(process.argv[2])));
JS

cat > again.py <<'PY'
import json, subprocess, sys
import jcs, rfc8785


def again(write, text, **parse):
    try:
        out = write(json.loads(text, **parse))
    except rfc8785.CanonicalizationError as error:
        return type(error).__name__
    return "same" if out.decode() == text else out.decode()


same = True
for value, text, want in (
    (295147905179352830000.0, "295147905179352830000", "IntegerDomainError"),
    (2.0**53, "9007199254740992", "IntegerDomainError"),
    (2.0**53 - 1, "9007199254740991", "same"),
    (1e21, "1e+21", "same"),
):
    first = rfc8785.dumps(value).decode()
    got = [
        again(rfc8785.dumps, first),
        again(rfc8785.dumps, first, parse_int=float),
        again(jcs.canonicalize, first),
        again(lambda v: subprocess.check_output(["node", "again.mjs", first]), first),
    ]
    print(f"{first:<22} rfc8785 again: {got[0]:<19} as floats: {got[1]}  jcs again: {got[2]}  canonicalize again: {got[3]}")
    same &= first == text and got == [want, "same", "same", "same"]
sys.exit(0 if same else "CHANGED")
PY
venv/bin/python again.py
