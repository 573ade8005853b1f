#!/usr/bin/env bash
# PyPI mcp 2.3.0; for comparison npm @modelcontextprotocol/sdk 1.32.2
#
# Behaviour: when an MCP server refuses a request with an HTTP error and a
# problem document (RFC 9457, application/problem+json), the Python client
# raises one and the same error for 401, 429 and 503: JSON-RPC -32603, "Server
# returned an error response", with no status, no text of the document and no
# cause. A 404 with the same document becomes -32601, which in JSON-RPC is
# "method not found". The JavaScript client reports status and document.
#
# Why one would guess otherwise: both are official clients of one protocol, and
# an HTTP client error commonly carries at least its status. A 404 for a
# resource would not be taken for a missing JSON-RPC method.
#
# For a webhook service with an MCP endpoint: a Python agent cannot tell a
# revoked key from a rate limit or an outage, so it cannot know whether a retry
# helps. The client does show a JSON-RPC error body sent as application/json
# with the same status; answer so to requests, also where HTTP refuses them.
#
# Seen:
#   python 401 problem+json   -32603 Server returned an error response
#   python 404 problem+json   -32601 Not Found
#   python 429 problem+json   -32603 Server returned an error response
#   python 503 problem+json   -32603 Server returned an error response
#   python 401 JSON-RPC error -32001 key revoked
#   node   401 problem+json   401 with the detail: true
#   node   404 problem+json   404 with the detail: true
#   node   429 problem+json   429 with the detail: true
#   node   503 problem+json   503 with the detail: true
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
timeout 300 npm install --silent --prefer-offline --no-audit --no-fund --ignore-scripts --prefix . @modelcontextprotocol/sdk@1.32.2 >/dev/null
python3 -m venv venv
timeout 300 venv/bin/pip install -q --disable-pip-version-check mcp==2.3.0

# The server: /problem/STATUS and /jsonrpc/STATUS answer every POST with STATUS.
cat > serve.py <<'PY'
import asyncio, json, logging, subprocess, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client

logging.disable(logging.CRITICAL)
DETAIL = "key revoked"


class Refuse(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        _, kind, status = self.path.split("/")
        if kind == "problem":
            answer = {"type": "about:blank", "title": "Refused", "status": int(status), "detail": DETAIL}
            media = "application/problem+json"
        else:
            answer = {"jsonrpc": "2.0", "id": request.get("id"), "error": {"code": -32001, "message": DETAIL}}
            media = "application/json"
        body = json.dumps(answer).encode()
        self.send_response(int(status))
        self.send_header("content-type", media)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


server = ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
threading.Thread(target=server.serve_forever, daemon=True).start()
base = f"http://127.0.0.1:{server.server_port}"


async def connect(url):
    async with streamable_http_client(url) as streams:
        async with ClientSession(streams[0], streams[1]) as session:
            await session.initialize()


def python(kind, status):
    try:
        asyncio.run(asyncio.wait_for(connect(f"{base}/{kind}/{status}"), 30))
    except BaseException as error:
        while isinstance(error, BaseExceptionGroup):
            (error,) = error.exceptions
        text = repr(vars(error)) + repr(error.__cause__) + repr(error.__context__)
        if kind == "problem" and (DETAIL in text or str(status) in text):
            sys.exit("CHANGED: the error now tells " + text)
        return error.error.code, error.error.message
    sys.exit("CHANGED: no error")


same = True
general = (-32603, "Server returned an error response")
for status, want in ((401, general), (404, (-32601, "Not Found")), (429, general), (503, general)):
    got = python("problem", status)
    print(f"python {status} problem+json   {got[0]} {got[1]}")
    same &= got == want
got = python("jsonrpc", 401)
print(f"python 401 JSON-RPC error {got[0]} {got[1]}", flush=True)
same &= got == (-32001, DETAIL)
same &= subprocess.run(["node", "connect.mjs", base]).returncode == 0
sys.exit(0 if same else "CHANGED")
PY

cat > connect.mjs <<'JS'
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

let same = true;
for (const status of [401, 404, 429, 503]) {
  const client = new Client({ name: "probe", version: "1" });
  const url = new URL(`${process.argv[2]}/problem/${status}`);
  const error = await client.connect(new StreamableHTTPClientTransport(url)).then(() => ({}), (e) => e);
  const detail = String(error.message).includes("key revoked");
  console.log(`node   ${status} problem+json   ${error.code} with the detail: ${detail}`);
  same &&= error.code === status && detail;
}
process.exit(same ? 0 : 1);
JS
venv/bin/python serve.py
