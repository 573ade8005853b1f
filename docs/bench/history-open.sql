-- What is open beside the history: deliveries that wait for their next attempt, in two days' time so
-- that nothing of it is sent meanwhile, others that are parked, and the idempotency keys of a day.
-- `fill-history` runs it once, at the end.
\set ON_ERROR_STOP on
set timezone = 'UTC';

begin;

create temp table open_event as
select (lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0') || '7'
            || right(gen_random_uuid()::text, 21))::uuid as event_id,
       at, s.application_id, s.subscription_id, target_url, uid = 'disabled' as is_parked
from generate_series(0, 4999) as n
cross join lateral (select now() - interval '8 minutes' + interval '0.08 s' * n as at) as time
join (
    select row_number() over (partition by s.uid = 'disabled' order by subscription_id) - 1 as place,
           count(*) over (partition by s.uid = 'disabled') as count, s.*, target_url
    from subscription s join subscription_revision r using (subscription_id, revision)
    where s.uid = 'disabled' or s.uid like 'busy-%'
) as s on (uid = 'disabled') = (n % 5 < 3) and place = n / 5 % count;

insert into event (event_id, application_id, type, created_at, routing_version, delivery_count)
select event_id, application_id, 'area0.thing0', at, 2000, 1 from open_event order by event_id;
insert into event_payload select event_id, '{"n":1}' from open_event order by event_id;
insert into delivery_queue (delivery_id, event_id, application_id, lane_id, subscription_id, target_url,
                            payload_bytes, created_at, due_at, claim_number, attempt_count)
select (left(event_id::text, 31) || '00000')::uuid, event_id, application_id, subscription_id,
       subscription_id, target_url, 7, at, now() + interval '2 days', 1, 1
from open_event where not is_parked order by event_id;
insert into delivery_parked (delivery_id, event_id, application_id, subscription_id, target_url,
                             payload_bytes, created_at, due_at)
select (left(event_id::text, 31) || '00000')::uuid, event_id, application_id, subscription_id,
       target_url, 7, at, at
from open_event where is_parked order by event_id;
insert into attempt (delivery_id, claim_number, attempt_id, scheduled_at, started_at, duration_ms,
                     request_url, request_headers, response_status, response_headers, response_body,
                     response_truncated, error_class, error_message, is_late)
select (left(event_id::text, 31) || '00000')::uuid, 1, gen_random_uuid(), at, at, 12, target_url,
       'host: receiver.example.com', 503, 'content-length: 0', '', false, 'http_status',
       'answered 503', false
from open_event where not is_parked order by event_id;

insert into idempotency_key (application_id, key, fingerprint, event_id, created_at)
select application_id, 'key of ' || event_id, sha256(uuid_send(event_id)), event_id, created_at
from event where event_id >= (lpad(to_hex((extract(epoch from now() - interval '22 hours')
                                           * 1000)::bigint), 12, '0')
                              || '-0000-0000-000000000000')::uuid;

-- The hours, of the minutes that the days have made.
select format(
    'insert into lane_hour (lane_id, hour, attempts, failed, delivered, dead, cancelled, durations,
                            first_failed_at, last_failed_at, last_delivered_at, last_error,
                            last_message, last_status)
     select lane_id, date_trunc(''hour'', minute), sum(attempts), sum(failed), sum(delivered),
            sum(dead), sum(cancelled), array[%s], min(first_failed_at), max(last_failed_at),
            max(last_delivered_at), max(last_error), max(last_message), max(last_status)
     from lane_minute group by 1, 2',
    string_agg(format('sum(durations[%s])::int', range), ', ' order by range))
from generate_series(1, 40) as range
\gexec

commit;

vacuum analyze application, subscription, subscription_revision, event_type, api_key, replay,
               lane_minute, lane_hour, delivery_queue, delivery_parked, idempotency_key;
