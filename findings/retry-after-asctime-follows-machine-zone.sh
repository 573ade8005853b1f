#!/usr/bin/env bash
# npm axios-retry 4.5.0 (with axios 1.21.1), npm ky 1.14.3; for comparison PyPI
# urllib3 2.8.0
#
# Behaviour: of the three date forms that RFC 9110 lets Retry-After have, the
# oldest (asctime, "Sun Nov  6 08:49:37 1994") has no zone name and means UTC.
# axios-retry and ky read it as local time: "in three seconds" becomes four or
# five hours on a machine set to New York time, and "now" on one set to Berlin
# time. The other two forms are read right, and urllib3 reads all three right.
#
# Why one would guess otherwise: an old form would be expected to be either
# understood or ignored. Here the wait depends on the zone of the machine that
# sends, so the same answer is right on a UTC server and in every test there.
#
# For senders: pin TZ=UTC for a worker with these clients, or read the header
# yourself. For receivers that throttle: send seconds, not a date.
#
# Seen (seconds; "none" = no second request within 7 s):
#   America/New_York imf      axios-retry waits 3      ky waits 3     urllib3 waits 3
#   America/New_York rfc850   axios-retry waits 3      ky waits 3     urllib3 waits 3
#   America/New_York asctime  axios-retry waits 18003  ky waits none  urllib3 waits 3
#   Europe/Berlin    imf      axios-retry waits 3      ky waits 3     urllib3 waits 3
#   Europe/Berlin    rfc850   axios-retry waits 3      ky waits 3     urllib3 waits 3
#   Europe/Berlin    asctime  axios-retry waits 0      ky waits 0     urllib3 waits 3
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
timeout 300 npm install --silent --prefer-offline --no-audit --no-fund --ignore-scripts --prefix . \
  axios@1.21.1 axios-retry@4.5.0 ky@1.14.3 >/dev/null
python3 -m venv venv
timeout 300 venv/bin/pip install -q --disable-pip-version-check urllib3==2.8.0

cat > wait.py <<'PY'
import sys
from urllib3.util.retry import Retry
print(Retry().parse_retry_after(sys.argv[1]))
PY

cat > run.mjs <<'JS'
import http from "node:http";
import { execFileSync } from "node:child_process";
import axios from "axios";
import axiosRetry, { retryAfter } from "axios-retry";
import ky from "ky";

const two = (n) => String(n).padStart(2, "0");
const forms = {
  imf: (d) => d.toUTCString(),
  rfc850: (d) => {
    const [day, date, month, year, clock] = d.toUTCString().replace(",", "").split(" ");
    const full = { Sun: "Sunday", Mon: "Monday", Tue: "Tuesday", Wed: "Wednesday", Thu: "Thursday", Fri: "Friday", Sat: "Saturday" };
    return `${full[day]}, ${date}-${month}-${year.slice(2)} ${clock} GMT`;
  },
  asctime: (d) => {
    const [day, , month, year, clock] = d.toUTCString().replace(",", "").split(" ");
    return `${day} ${month} ${String(d.getUTCDate()).padStart(2)} ${clock} ${year}`;
  },
};

// The date is three whole seconds after a second that has just begun.
const startOfSecond = () => new Promise((done) => setTimeout(done, 1005 - (Date.now() % 1000)));
const inThree = () => new Date((Math.floor(Date.now() / 1000) + 3) * 1000);

let header, hits;
const server = http.createServer((request, response) => {
  hits.push(Date.now());
  request.resume();
  if (hits.length > 1) return response.writeHead(204).end();
  response.writeHead(503, { "retry-after": header }).end();
});
await new Promise((done) => server.listen(0, "127.0.0.1", done));
const url = `http://127.0.0.1:${server.address().port}/hook`;

const zone = process.env.TZ;
let same = true;
for (const [name, form] of Object.entries(forms)) {
  await startOfSecond();
  header = form(inThree());
  const urllib3 = Math.round(Number(execFileSync("venv/bin/python", ["wait.py", header])));

  await startOfSecond();
  header = form(inThree());
  hits = [];
  let computed;
  const client = axios.create({ proxy: false });
  axiosRetry(client, {
    retries: 1,
    retryCondition: () => true,
    retryDelay: (count, error) => ((computed = Math.round(retryAfter(error) / 1000)), 1),
  });
  await client.post(url, "{}");

  await startOfSecond();
  header = form(inThree());
  hits = [];
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), 7000);
  await ky.put(url, { body: "{}", timeout: false, retry: { limit: 1 }, signal: stop.signal }).catch(() => {});
  clearTimeout(timer);
  const waited = hits.length > 1 ? Math.round((hits[1] - hits[0]) / 1000) : "none";

  console.log(`${zone.padEnd(16)} ${name.padEnd(8)} axios-retry waits ${String(computed).padEnd(6)} ky waits ${String(waited).padEnd(5)} urllib3 waits ${urllib3}`);
  const about = (value, want) => typeof value === "number" && Math.abs(value - want) <= 1;
  same &&= about(urllib3, 3);
  if (name !== "asctime") same &&= about(computed, 3) && about(waited, 3);
  // New York is four or five hours behind UTC, by season.
  else if (zone === "America/New_York") same &&= (about(computed, 18003) || about(computed, 14403)) && waited === "none";
  else same &&= computed === 0 && waited === 0;
}
server.close();
server.closeAllConnections();
if (!same) console.error("CHANGED");
process.exit(same ? 0 : 1);
JS
TZ=America/New_York node run.mjs
TZ=Europe/Berlin node run.mjs
