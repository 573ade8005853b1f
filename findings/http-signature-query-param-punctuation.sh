#!/usr/bin/env bash
# npm http-message-signatures 1.0.6 and PyPI http-message-signatures 3.0.0
#
# Behaviour: both implement RFC 9421. A request signed by the JavaScript package
# verifies in the Python one while a covered query parameter has only letters,
# digits, spaces and the like. With an apostrophe, a round bracket, an
# exclamation mark or a tilde in its value the two sign different lines and the
# valid signature is refused. The RFC asks for the percent-encode set of HTML
# forms, which encodes these five; the Python package does so. The JavaScript
# one uses the language's encodeURIComponent, which leaves them.
#
# Why one would guess otherwise: the characters one would suspect (space, plus,
# percent, letters beyond ASCII) do agree, so the pair looks tested. How the
# sender wrote the URL does not matter either: %27 and ' give the same line
# within each package.
#
# For senders and receivers of callbacks signed after RFC 9421: cover "@query"
# or "@target-uri", which are taken as sent, instead of "@query-param", or keep
# free text out of callback URLs. A failure that depends on a customer's
# punctuation is this.
#
# Seen:
#   note=a+b%25%C3%BC     js line a%20b%25%C3%BC     py line a%20b%25%C3%BC         verified: True
#   note=it's             js line it's               py line it%27s                 verified: False
#   note=it%27s           js line it's               py line it%27s                 verified: False
#   note=late%20(5~6)!    js line late%20(5~6)!      py line late%20%285%7E6%29%21  verified: False
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
timeout 300 npm install --silent --prefer-offline --no-audit --no-fund --ignore-scripts --prefix . http-message-signatures@1.0.6 >/dev/null
python3 -m venv venv
timeout 300 venv/bin/pip install -q --disable-pip-version-check http-message-signatures==3.0.0

cat > sign.cjs <<'JS'
const { createHmac } = require("node:crypto");
const { httpbis } = require("http-message-signatures");
const request = { method: "POST", url: process.argv[2], headers: {} };
const field = '@query-param;name="note"';
(async () => {
  const key = { id: "k1", alg: "hmac-sha256", sign: async (data) => createHmac("sha256", "not a real key").update(data).digest() };
  const signed = await httpbis.signMessage({ key, fields: ["@method", field], params: ["created", "keyid", "alg"] }, request);
  const line = httpbis.createSignatureBase({ fields: [field] }, request)[0][1][0];
  console.log(JSON.stringify({ line, headers: signed.headers }));
})();
JS

cat > verify.py <<'PY'
import json, subprocess, sys
from types import SimpleNamespace
from http_message_signatures import HTTPMessageVerifier, HTTPSignatureKeyResolver, InvalidSignature, algorithms
from http_message_signatures.resolvers import HTTPSignatureComponentResolver


class Key(HTTPSignatureKeyResolver):
    def resolve_public_key(self, key_id):
        return b"not a real key"


verifier = HTTPMessageVerifier(signature_algorithm=algorithms.HMAC_SHA256, key_resolver=Key())
same = True
for query, want_js, want_py, want in (
    ("a+b%25%C3%BC", "a%20b%25%C3%BC", "a%20b%25%C3%BC", True),
    ("it's", "it's", "it%27s", False),
    ("it%27s", "it's", "it%27s", False),
    ("late%20(5~6)!", "late%20(5~6)!", "late%20%285%7E6%29%21", False),
):
    url = "https://receiver.example/hook?note=" + query
    signed = json.loads(subprocess.check_output(["node", "sign.cjs", url], text=True))
    message = SimpleNamespace(method="POST", url=url, headers=signed["headers"])
    line = HTTPSignatureComponentResolver(message).get_query_params(name="note")
    try:
        verifier.verify(message)
        verified = True
    except InvalidSignature:
        verified = False
    print(f"note={query:<16} js line {signed['line']:<18} py line {line:<22} verified: {verified}")
    same &= (signed["line"], line, verified) == (want_js, want_py, want)
sys.exit(0 if same else "CHANGED")
PY
venv/bin/python verify.py
