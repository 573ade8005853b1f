#!/usr/bin/env bash
# The proof that what was accepted is delivered, whatever happens in between:
#
#   20 events go to mock-receiver, which fails seven times of ten, answers after up to 5 s, and of
#   100 requests leaves 8 hanging. In the middle the dispatcher is stopped, and later killed. In the
#   end each event must be delivered, and each signature must have been good.
#
# Needs docker with compose (`docker compose` or `docker-compose`), curl, and the ports 8000 and 8080
# of this machine. Takes some minutes. Everything is in a compose project of its own, which is gone
# afterwards, with its volume; a demonstration that you have running is to be stopped before.
#
# Usage: docs/prove.sh [where to keep the dispatcher's log; docs/delivery-proof.log by itself]
set -euo pipefail
cd "$(dirname "$0")/.."

log=${1:-docs/delivery-proof.log}
dispatcher=http://127.0.0.1:8000
receiver=http://127.0.0.1:8080
events=20
# How many are delivered when the dispatcher is stopped, and when it is killed: in the middle.
stop_after=4
kill_after=10
# Bounds, in seconds. An event needs 3 or 4 attempts here on average, but the unluckiest of 20 may
# need 30, 16 s apart.
ready_within=120
delivered_within=1800

if docker compose version >/dev/null 2>&1; then
    compose=(docker compose)
else
    compose=(docker-compose)
fi
compose+=(--project-name webhook-dispatcher-proof)

step() { printf '\n== %s\n' "$*"; }
fail() {
    [ -z "${is_up:-}" ] || "${compose[@]}" logs --tail 40 dispatcher >&2
    printf '\nFAILED: %s\n' "$*" >&2
    exit 1
}

# wait_until SECONDS WHAT COMMAND…: until the command succeeds.
wait_until() {
    local seconds=$1 what=$2
    local give_up_at=$((SECONDS + seconds))
    shift 2
    until "$@"; do
        [ "$SECONDS" -lt "$give_up_at" ] || fail "waited $seconds s for $what"
        sleep 0.5
    done
}

answers() { curl --silent --fail --max-time 5 --output /dev/null "$1"; }

# Prints how many events have this status (any status, if none is given).
count() {
    local list
    list=$(curl --silent --fail --max-time 5 "$dispatcher/events?limit=250") || return 1
    { grep --only-matching "\"status\":\"${1:-[a-z]*}\"" <<<"$list" || true; } | wc -l
}

have_delivered() {
    local delivered
    delivered=$(count delivered) || return 1
    if [ "$delivered" != "${told:-}" ]; then
        printf '%4d s  %2d of %d delivered\n' "$SECONDS" "$delivered" "$events"
        told=$delivered
    fi
    [ "$delivered" -ge "$1" ]
}

# The middle: enough are delivered, some are not, and one is under way at this moment.
is_middle() {
    have_delivered "$1" && [ "$(in_flight)" -gt 0 ]
}

in_flight() {
    curl --silent --fail --max-time 5 "$dispatcher/metrics" |
        sed -n 's/^dispatcher_requests_in_flight //p'
}

check_unfinished() {
    [ "$(count pending)" -gt 0 ] || fail "nothing was left to interrupt; once more, please"
}

keep_log() { docker logs "$("${compose[@]}" ps --all --quiet dispatcher)" >"$log" 2>&1; }

clean_up() { "${compose[@]}" down --volumes --timeout 20 >/dev/null 2>&1; }

for url in "$dispatcher/health" "$receiver/health"; do
    if answers "$url"; then fail "$url answers already: stop what is there first"; fi
done

step "start: ${compose[*]} up --build"
clean_up || true
trap clean_up EXIT
"${compose[@]}" up --build --detach
is_up=yes
wait_until "$ready_within" "the dispatcher" answers "$dispatcher/readyz"
wait_until "$ready_within" "the receiver" answers "$receiver/health"

step "send $events events"
SECONDS=0
for number in $(seq "$events"); do
    curl --silent --show-error --fail -X POST "$dispatcher/events" \
        -H "Content-Type: application/json" -d "{\"payload\": {\"number\": $number}}"
    echo
done

step "wait until $stop_after are delivered, then stop the dispatcher"
wait_until "$delivered_within" "$stop_after deliveries" is_middle "$stop_after"
check_unfinished
"${compose[@]}" stop dispatcher

step "start it again, wait until $kill_after are delivered, then kill it"
"${compose[@]}" start dispatcher
wait_until "$ready_within" "the dispatcher" answers "$dispatcher/readyz"
wait_until "$delivered_within" "$kill_after deliveries" is_middle "$kill_after"
check_unfinished
"${compose[@]}" kill dispatcher

step "start it again, and wait until all are delivered"
"${compose[@]}" start dispatcher
wait_until "$ready_within" "the dispatcher" answers "$dispatcher/readyz"
wait_until "$delivered_within" "all deliveries" have_delivered "$events"

step "check"
keep_log
stats=$(curl --silent --show-error --fail "$receiver/stats")
echo "GET /stats: $stats"
[ "$(count)" -eq "$events" ] || fail "GET /events shows $(count) events"
[ "$(count delivered)" -eq "$events" ] || fail "GET /events shows that not all are delivered"
[[ $stats == *"\"unique\":$events,"* ]] || fail "the receiver took other events than $events"
[[ $stats == *'"badly_signed":0,'* ]] || fail "the receiver refused signatures"

step "the walk of the event with the most attempts, from $log"
unluckiest=$(grep --only-matching 'event=evt_[0-9a-f]*' "$log" | sort | uniq --count | sort --numeric-sort |
    sed -n '$s/.*event=//p')
grep --extended-regexp "$unluckiest|stopp|registered|a process died" "$log"

step "proved in $SECONDS s: $events events accepted, $events delivered, all well signed"
