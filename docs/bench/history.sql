-- What a busy service would have before the first day of its history: tenants, subscriptions, types,
-- keys, past replays. `fill-history` runs it once, in a database that the service has migrated.
\set ON_ERROR_STOP on
set timezone = 'UTC';

begin;

-- Twenty applications, `default` the first and by far the busiest.
insert into application (application_id, uid, name)
select ('0192d4e0-1234-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'bench-' || n, 'Bench ' || n
from generate_series(1, 19) as n;

-- Half of the subscriptions are of `default`. The last one of each application is disabled, and so
-- what comes for it is parked; the five before that never got anything.
create temp table wanted as
select application_id, n, uid = 'default' as is_default,
       (substr(uuid, 1, 14) || '7' || substr(uuid, 16))::uuid as subscription_id,
       n = count as is_disabled, n between count - 5 and count - 1 as is_idle
from (
    select application_id, uid, n, count, md5(uid || '/' || n)::uuid::text as uuid
    from application
    cross join lateral (select case when uid = 'default' then 500 else 27 end as count) as size
    cross join lateral generate_series(1, count) as n
    where uid = 'default' or uid like 'bench-%'
) as one;

-- Each was changed once, so that there are revisions to choose from.
insert into subscription (subscription_id, application_id, uid, revision, routing_version)
select subscription_id, application_id,
       case when is_disabled then 'disabled' when is_idle then 'idle-' || n else 'busy-' || n end,
       2, 1000 + n
from wanted;
insert into subscription_revision (subscription_id, revision, routing_version, target_url, method,
                                   event_types, filter, is_active, payload_format, schema_version,
                                   signing, signature_headers, disabled_at, disabled_because)
select subscription_id, revision, (revision - 1) * 1000 + n,
       'https://receiver-' || n || '.example.com/hooks', 'POST', array['area' || n % 40 || '.*'],
       case when n % 3 = 0 then '{"data.n": {"gte": 1000}}' end, not is_off, 'envelope', '1', 'none',
       'standard', case when is_off then now() end, case when is_off then 'owner' end
from wanted
cross join generate_series(1, 2) as revision
cross join lateral (select is_disabled and revision = 2 as is_off) as off;
update application set routing_version = 2000 where uid = 'default' or uid like 'bench-%';

insert into event_type (name, description)
select 'area' || n / 5 || '.thing' || n % 5, 'Number ' || n from generate_series(0, 199) as n;

insert into api_key (key_id, application_id, name, role, hint, hash)
select gen_random_uuid(), application_id, 'Key ' || n, 'viewer', 'hint', sha256(uuid_send(gen_random_uuid()))
from application cross join generate_series(1, 100) as n where uid = 'default';

-- One a quarter of an hour, as long as the history reaches.
insert into replay (replay_id, application_id, state, states, include_unrouted, per_second, until_id,
                    delivery_cursor, event_cursor, has_all_ended, created_at, updated_at, ended_at)
select (lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0') || '7'
            || right(gen_random_uuid()::text, 21))::uuid,
       application_id, 'completed', array['dead'], false, 100, gen_random_uuid(), gen_random_uuid(),
       gen_random_uuid(), true, at, at, at
from application
cross join generate_series(now() - interval '28 days', now(), interval '15 minutes') as at
where uid = 'default';

commit;
