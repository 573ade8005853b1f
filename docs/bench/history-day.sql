-- One day of history: events, payloads, deliveries, attempts, statistics. `fill-history` runs it for
-- each day, with the day (`day`), how many events it gets (`events`) and whether it is today.
--
-- Of the events, some 8 % reach nobody, 20 % go to a URL of their own, and the others to one to four
-- subscriptions, the popular ones far more often; five a day go to 400 at once. That is 1.4
-- deliveries an event. Of these 97 % are delivered, one in fourteen not at the first attempt.
\set ON_ERROR_STOP on
set timezone = 'UTC';
set synchronous_commit = off;
set work_mem = '256MB';
set client_min_messages = warning;
select setseed(extract(day from :'day'::date)::float8 / 32);

begin;
select set_config('bench.day', :'day', false);

-- The day's partitions, as src/store/partitions.rs makes them, with the storage parameters of those
-- that the service has made itself.
do $$
declare
    parent text;
    name   text;
    day    date := current_setting('bench.day');
    bound  text[];
begin
    foreach parent in array array['event', 'event_payload', 'delivery', 'attempt'] loop
        name := parent || '_' || to_char(day, 'YYYYMMDD');
        continue when to_regclass(name) is not null;
        select array_agg(lpad(to_hex(extract(epoch from at)::bigint * 1000), 12, '0')
                         || '-0000-0000-000000000000' order by at)
        into bound from unnest(array[day::timestamptz, day + interval '1 day']) as at;
        execute format(
            'create table %I (like %I including defaults including constraints) with (%s)',
            name, parent,
            (select array_to_string(reloptions, ', ') from pg_class c
             join pg_inherits on inhrelid = c.oid
             where inhparent = parent::regclass and reloptions is not null limit 1));
        execute format('alter table %I attach partition %I for values from (%L) to (%L)',
                       parent, name, bound[1], bound[2]);
    end loop;
end
$$;

create temp table tenant as
select row_number() over (order by uid <> 'default', application_id) - 1 as place, application_id,
       (select count(*) from subscription s
        where s.application_id = a.application_id and s.uid like 'busy-%')::int as subscriptions
from application a where uid = 'default' or uid like 'bench-%';
create temp table receiver as
select application_id, subscription_id, target_url,
       row_number() over (partition by application_id order by subscription_id)::int - 1 as place
from subscription s join subscription_revision r using (subscription_id, revision)
where s.uid like 'busy-%';
create index on receiver (application_id, place);
analyze receiver;

create temp table made_event as
select (lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0') || '7'
            || right(gen_random_uuid()::text, 21))::uuid as event_id,
       at as created_at, application_id, subscriptions, n,
       case when kind < 0.08 then 'unrouted' when kind < 0.28 then 'target' else 'routed' end as kind,
       case when chance < 0.00001 then 'rare.signal'
            when kind >= 0.08 and kind < 0.10 then null
            else 'area' || floor(40 * type ^ 3) || '.thing' || n % 5 end as type,
       case when chance > 0.3 then 'user ' || floor(20000 * subject ^ 3) end as subject,
       case when kind < 0.08 then 0
            when kind < 0.28 then 1
            when kind > 0.99992 and place = 0 then 400
            else 1 + floor(4 * width ^ 3)::int end as width,
       floor(subscriptions * popular ^ 3)::int as popular
from (
    select n, random() as popular, random() as kind, random() as chance, random() as type, random() as subject,
           random() as width, floor(20 * random() ^ 4)::int as tenant,
           began + (ended - began) * (n::float8 / :events) as at
    from generate_series(0, :events - 1) as n
    cross join (select :'day'::timestamptz as began,
                       least(:'day'::timestamptz + interval '1 day',
                             now() - interval '10 minutes') as ended) as span
    offset 0
) as diced
join tenant on place = tenant;

insert into event (event_id, application_id, type, subject, metadata, created_at, routing_version,
                   delivery_count, route)
select event_id, application_id, type, subject, case when n % 5 = 0 then '{"source":"billing"}' end,
       created_at, 2000, width, case when kind = 'target' then kind end
from made_event order by event_id;

insert into event_payload (event_id, payload)
select event_id, convert_to(format('{"n":%s,"text":"%s"}', n % 2000,
                                   repeat(md5(n::text), 5 + n % 20)), 'UTF8')
from made_event order by event_id;

create temp table made_delivery as
select made.*, at as first_at,
       case when state = 'delivered' then
                case when tries < 0.93 then 1 else 2 + floor(again * 5)::int end
            when reason in ('interrupted', 'expired') then floor(again * 3)::int
            when state = 'cancelled' then floor(again * 2)::int
            else 1 + floor(again * 8)::int end as attempt_count
from (
    select (left(event_id::text, 31) || lpad(to_hex(k), 5, '0'))::uuid as delivery_id, event_id,
           e.application_id, r.subscription_id, e.type as event_type, created_at, tries, again, at,
           coalesce(r.subscription_id, md5(e.application_id::text || origin)::uuid) as lane_id,
           coalesce(r.target_url, 'https://origin-' || origin || '.example.com/in') as target_url,
           case when fate < 0.97 then 'delivered' when fate < 0.998 then 'dead'
                else 'cancelled' end as state,
           case when fate < 0.97 then null
                when fate >= 0.998 then 'cancelled'
                when fate >= 0.9975 then 'interrupted'
                when fate >= 0.9970 then 'expired'
                else class end as reason,
           class,
           case when class in ('http_status', 'response_too_large') then status
                when class = 'redirect' then 302 end::smallint as bad_status,
           case when again < 0.9 then 200 when again < 0.99 then 202 else 204 end::smallint as good_status,
           5 + floor(300 * again ^ 4)::int as duration_ms
    from (
        select e.*, k, random() as fate, random() as tries, random() as again,
               floor(50 * random() ^ 2)::int as origin, created_at + interval '5 ms' as at,
               (array['http_status', 'http_status', 'http_status', 'http_status', 'http_status',
                      'timeout', 'timeout', 'connect', 'connect', 'dns', 'tls', 'redirect',
                      'protocol', 'response_too_large'])[1 + floor(14 * random())::int] as class,
               (array[500, 500, 500, 503, 503, 404, 400, 429, 410])[1 + floor(9 * random())::int] as status
        from made_event e cross join lateral generate_series(0, width - 1) as k
        offset 0
    ) as e
    left join receiver r on e.kind = 'routed' and r.application_id = e.application_id
        and r.place = (popular + k * 11) % subscriptions
) as made;

-- What lies between two attempts doubles, as the default policy has it.
create temp table made_attempt as
select delivery_id, application_id, lane_id, claim_number, target_url, good_status, bad_status, class,
       is_good, duration_ms,
       least(first_at + interval '2 s' * (2 ^ (claim_number - 1) - 1), now()) as started_at
from made_delivery
cross join lateral generate_series(1, attempt_count) as claim_number
cross join lateral (select state = 'delivered' and claim_number = attempt_count as is_good) as good;

insert into delivery (delivery_id, event_id, application_id, lane_id, subscription_id, event_type,
                      target_url, state, reason, attempt_count, last_status, created_at, ended_at)
select delivery_id, event_id, application_id, lane_id, subscription_id, event_type, target_url, state,
       reason, attempt_count,
       case when state = 'delivered' then good_status when attempt_count > 0 then bad_status end,
       created_at, least(first_at + interval '2 s' * (2 ^ greatest(attempt_count - 1, 0) - 1)
                         + interval '1 ms' * duration_ms, now())
from made_delivery order by delivery_id;

insert into attempt (delivery_id, claim_number, attempt_id, scheduled_at, started_at, duration_ms,
                     request_url, request_headers, response_status, response_headers, response_body,
                     response_truncated, error_class, error_message, is_late)
select delivery_id, claim_number, gen_random_uuid(), started_at - interval '1 ms', started_at,
       duration_ms, target_url,
       format(E'host: receiver.example.com\ncontent-type: application/json\nuser-agent: webhook-dispatcher/0.1.0\n'
              'webhook-id: evt_%s\nwebhook-timestamp: %s\nwebhook-signature: v1,%s\n'
              'x-webhook-delivery-id: dlv_%s\nx-webhook-attempt: %s\nx-webhook-signature: %s',
              left(delivery_id::text, 31), extract(epoch from started_at)::bigint,
              md5(delivery_id::text), delivery_id, claim_number, md5(target_url)),
       status, case when status is not null then E'content-length: 2\ndate: today' end,
       case when status is not null then '\x6f6b'::bytea end, false,
       case when not is_good then class end, case when not is_good then 'it failed: ' || class end, false
from made_attempt
cross join lateral (select case when is_good then good_status else bad_status end as status) as answer
order by delivery_id, claim_number;

-- One row a lane and minute, and one an application and minute. Of how long attempts took only the
-- longest is told apart.
insert into lane_minute (lane_id, minute, attempts, failed, delivered, dead, cancelled, durations,
                         first_failed_at, last_failed_at, last_delivered_at, last_error, last_message,
                         last_status)
select lane, minute, attempts, failed, delivered, dead, cancelled,
       array_fill(0, array[longest]) || attempts || array_fill(0, array[39 - longest]),
       first_failed_at, last_failed_at, last_delivered_at, last_error, 'it failed: ' || last_error,
       last_status
from (
    select lane, date_trunc('minute', at) as minute, sum(attempts)::int as attempts,
           sum(failed)::int as failed, sum(delivered)::int as delivered, sum(dead)::int as dead,
           sum(cancelled)::int as cancelled, min(failed_at) as first_failed_at,
           max(failed_at) as last_failed_at, max(delivered_at) as last_delivered_at,
           max(class) as last_error, max(status) as last_status,
           least(ceil(2 * log(2, max(duration_ms))), 39)::int as longest
    from (
        select lane_id, application_id, started_at as at, 1 as attempts,
               (not is_good)::int as failed, 0 as delivered, 0 as dead, 0 as cancelled, duration_ms,
               case when not is_good then started_at end as failed_at,
               case when is_good then started_at end as delivered_at,
               case when not is_good then class end as class,
               case when not is_good then bad_status end as status
        from made_attempt
        union all
        select lane_id, application_id, first_at, 0, 0, (state = 'delivered')::int,
               (state = 'dead')::int, (state = 'cancelled')::int, 1, null, null, null, null
        from made_delivery
    ) as done
    cross join lateral unnest(array[lane_id, application_id]) as lane
    group by lane, date_trunc('minute', at)
) as summed
order by minute, lane
-- The last minutes of the day before, where something was tried again after midnight.
on conflict (lane_id, minute) do nothing;

commit;

-- As autovacuum does with a day that grows: analysed, never vacuumed, and its parent neither.
select format('analyze %I', c.relname) from pg_class c
where c.relname ~ ('_' || to_char(:'day'::date, 'YYYYMMDD') || '$') and c.relkind = 'r'
\gexec
select count(*) as deliveries from made_delivery;
