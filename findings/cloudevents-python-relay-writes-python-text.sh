#!/usr/bin/env bash
# PyPI cloudevents 2.2.0
#
# Behaviour: an event whose JSON data is an array, true, false or a number is
# written right in structured mode, but in binary mode the body is Python's own
# text form of the value: single quotes, None, True. The header still says
# application/json. Objects are written right in both modes, and so is a list
# by the older interface that the same package keeps (cloudevents.v1). Reading
# the bad body back raises nothing: the data just arrives as one string.
#
# Why one would guess otherwise: the content mode is a choice of envelope, and
# the event was read from a valid message by the same library. A test with an
# object, or with an array of numbers (whose two text forms are the same),
# passes.
#
# For senders: a relay that takes structured events and sends binary ones spoils
# every event with an array or a bare value. Hand the library bytes that you
# have encoded yourself. For receivers: data that is a string where an array is
# due is a sender's fault of this kind; do not parse it leniently.
#
# Seen:
#   data {"id":1,"paid":null}    binary body is JSON: True   {"id": 1, "paid": null}
#   data [1,2]                   binary body is JSON: True   [1, 2]
#   data [{"id":1,"paid":null}]  binary body is JSON: False  [{'id': 1, 'paid': None}]
#   data true                    binary body is JSON: False  True
#   read back from binary: str; older interface writes: [{"id": 1, "paid": null}]
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
timeout 300 venv/bin/pip install -q --disable-pip-version-check cloudevents==2.2.0

cat > relay.py <<'PY'
import json, sys
from cloudevents.core.bindings.http import HTTPMessage, from_http_event, to_binary_event, to_structured_event
from cloudevents.v1.http import CloudEvent as OlderEvent, to_binary as older_to_binary

same = True
for data, want in (
    ('{"id":1,"paid":null}', True),
    ("[1,2]", True),
    ('[{"id":1,"paid":null}]', False),
    ("true", False),
):
    text = '{"specversion":"1.0","id":"1","source":"/shop","type":"invoice.paid","datacontenttype":"application/json","data":%s}' % data
    event = from_http_event(HTTPMessage({"content-type": "application/cloudevents+json"}, text.encode()))
    assert json.loads(to_structured_event(event).body)["data"] == json.loads(data)
    message = to_binary_event(event)
    assert message.headers["content-type"] == "application/json"
    try:
        valid = json.loads(message.body) == json.loads(data)
    except ValueError:
        valid = False
    print(f"data {data:<23} binary body is JSON: {valid!s:<6} {message.body.decode()}")
    same &= valid == want
    if data.startswith("[{"):
        back = type(from_http_event(message).get_data()).__name__

value = json.loads('[{"id":1,"paid":null}]')
older = older_to_binary(OlderEvent({"source": "/shop", "type": "invoice.paid", "datacontenttype": "application/json"}, value))[1]
print(f"read back from binary: {back}; older interface writes: {older.decode()}")
same &= back == "str" and json.loads(older) == value
sys.exit(0 if same else "CHANGED")
PY
venv/bin/python -W ignore relay.py
