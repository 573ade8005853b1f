#!/usr/bin/env bash
# npm cloudevents 10.0.0
#
# Behaviour: the receiver compares Content-Type as a whole string. Without
# parameters and with "; charset=utf-8" the event is read. With no space after
# the semicolon, or with UTF-8 in capitals, a structured event is refused as
# "invalid content type", and a binary event is accepted but its JSON data
# arrives as a string instead of an object.
#
# Why one would guess otherwise: the charset parameter clearly is allowed for,
# and RFC 9110 section 8.3.1 calls all these spellings the same media type; the
# one without the space is even its preferred form. One would expect all or
# none to work, and the same effect in both modes.
#
# For senders: "application/json;charset=UTF-8" is what many Java stacks write;
# send such events with no parameter at all. For receivers with this package:
# normalise the header before HTTP.toEvent, and check the type of the data, for
# in binary mode no error tells.
#
# Seen:
#   (none)           structured object  binary object
#   ; charset=utf-8  structured object  binary object
#   ;charset=utf-8   structured error   binary string
#   ; charset=UTF-8  structured error   binary string
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
timeout 300 npm install --silent --prefer-offline --no-audit --no-fund --ignore-scripts --prefix . cloudevents@10.0.0 >/dev/null

cat > receive.cjs <<'JS'
const { HTTP } = require("cloudevents");
const event = { specversion: "1.0", id: "1", source: "/shop", type: "invoice.paid", datacontenttype: "application/json", data: { id: 1 } };
const kind = (headers, body) => {
  try {
    return typeof HTTP.toEvent({ headers, body }).data;
  } catch (error) {
    return "error";
  }
};
let same = true;
for (const [parameter, structured, binary] of [
  ["", "object", "object"],
  ["; charset=utf-8", "object", "object"],
  [";charset=utf-8", "error", "string"],
  ["; charset=UTF-8", "error", "string"],
]) {
  const s = kind({ "content-type": "application/cloudevents+json" + parameter }, JSON.stringify(event));
  const b = kind(
    { "content-type": "application/json" + parameter, "ce-specversion": "1.0", "ce-id": "1", "ce-source": "/shop", "ce-type": "invoice.paid" },
    JSON.stringify(event.data),
  );
  console.log(`${(parameter || "(none)").padEnd(16)} structured ${s.padEnd(7)} binary ${b}`);
  same &&= s === structured && b === binary;
}
if (!same) console.error("CHANGED");
process.exit(same ? 0 : 1);
JS
node receive.cjs
