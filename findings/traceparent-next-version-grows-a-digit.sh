#!/usr/bin/env bash
# npm @opentelemetry/core 2.12.1 (with @opentelemetry/api 1.9.1); for comparison
# PyPI opentelemetry-api 1.45.2
#
# Behaviour: the JavaScript W3C propagator reads a traceparent of a later
# version, as Trace Context asks, keeps its whole flags byte, and then writes
# the flags as a literal "0" and the number in hex. A flags byte of 10 or more
# comes out as three digits under version 00. The same propagator then refuses
# what it wrote, so the trace ends one hop later.
#
# Why one would guess otherwise: the reader is made for later versions (it takes
# extra fields), so a later version would be expected to pass through or to be
# dropped at the entrance. It is accepted and spoiled at the exit. Only flags
# that need the high four bits show it; version 00 has none of those yet.
#
# For senders and receivers: a JavaScript hop that only relays the context (no
# recording SDK) breaks the trace of its neighbours when one of them moves to a
# later version. Mask the flags with 1 before passing a context on, and treat a
# traceparent as opaque where no span is added.
#
# Seen:
#   in 01-...-01-more  js out 00-...-01   js reads own output: True   python out 00-...-01
#   in 01-...-11       js out 00-...-011  js reads own output: False  python out 00-...-11
#   in 01-...-81-more  js out 00-...-081  js reads own output: False  python out 00-...-81
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
timeout 300 npm install --silent --prefer-offline --no-audit --no-fund --ignore-scripts --prefix . \
  @opentelemetry/core@2.12.1 @opentelemetry/api@1.9.1 >/dev/null
python3 -m venv venv
timeout 300 venv/bin/pip install -q --disable-pip-version-check opentelemetry-api==1.45.2

cat > relay.py <<'PY'
import sys
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

propagator = TraceContextTextMapPropagator()
out = {}
propagator.inject(out, context=propagator.extract({"traceparent": sys.argv[1]}))
print(out.get("traceparent", "nothing"))
PY

cat > relay.cjs <<'JS'
const { execFileSync } = require("node:child_process");
const { W3CTraceContextPropagator } = require("@opentelemetry/core");
const { ROOT_CONTEXT, defaultTextMapGetter, defaultTextMapSetter, trace } = require("@opentelemetry/api");

const propagator = new W3CTraceContextPropagator();
const read = (traceparent) => propagator.extract(ROOT_CONTEXT, { traceparent }, defaultTextMapGetter);
const ids = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7";
const short = (text) => text.replace(ids, "...");
let same = true;
for (const [tail, js, again, py] of [
  ["01-more", "01", "True", "01"],
  ["11", "011", "False", "11"],
  ["81-more", "081", "False", "81"],
]) {
  const incoming = `01-${ids}-${tail}`;
  const out = {};
  propagator.inject(read(incoming), out, defaultTextMapSetter);
  const own = trace.getSpanContext(read(out.traceparent ?? "")) ? "True" : "False";
  const python = execFileSync("venv/bin/python", ["relay.py", incoming], { encoding: "utf8" }).trim();
  console.log(`in ${short(incoming).padEnd(14)}  js out ${short(String(out.traceparent)).padEnd(10)}  js reads own output: ${own.padEnd(5)}  python out ${short(python)}`);
  same &&= out.traceparent === `00-${ids}-${js}` && own === again && python === `00-${ids}-${py}`;
}
if (!same) console.error("CHANGED");
process.exit(same ? 0 : 1);
JS
node relay.cjs
