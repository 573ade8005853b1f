-- Operator events: what the service itself has to say of subscriptions and deliveries. They are
-- published like all others, through the outbox, in the transaction that they tell of, and only where
-- some subscription of the application names them.

-- Whether it names a type that begins with `webhook.`: those that are asked are few.
alter table subscription add column names_operator_types boolean not null default false;
create index subscription_operators_idx on subscription (application_id)
    where names_operator_types and deleted_at is null;
update subscription s set names_operator_types = true
from subscription_revision r
where r.subscription_id = s.subscription_id and r.revision = s.revision
  and exists (select from unnest(r.event_types) as pattern where starts_with(pattern, 'webhook.'));

-- An id as it is shown.
create function shown_id(prefix text, id uuid) returns text
language sql immutable
as $$ select prefix || '_' || replace(id::text, '-', '') $$;

-- A time as it is shown: RFC 3339, in UTC.
create function shown_time(at timestamptz) returns text
language sql immutable
as $$ select to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') $$;

-- The row of the outbox that tells this, if some subscription names the type other than the one that
-- it is about, which is its subject: none is told of itself.
create function operator_event(event_type text, application uuid, about uuid, payload json)
returns setof outbox
language plpgsql volatile
as $$
declare
    segments text[] := string_to_array(event_type, '.');
    now_us   bigint := extract(epoch from clock_timestamp()) * 1000000;
begin
    if exists (
        select from subscription s
        join subscription_revision r using (subscription_id, revision)
        where s.application_id = operator_event.application and s.names_operator_types
          and s.deleted_at is null and s.subscription_id is distinct from about
          and r.event_types && (
              array[event_type] || array(
                  select array_to_string(segments[:depth], '.') || '.*'
                  from generate_series(1, cardinality(segments) - 1) as depth
              )
          )
    ) then
        return query select
            pg_current_xact_id()::text::bigint,
            -- As `publish` makes them.
            encode(int8send((now_us / 1000 << 16) | 28672 | (now_us % 1000 * 4096 / 1000))
                       || substring(uuid_send(gen_random_uuid()) from 9), 'hex')::uuid,
            operator_event.application, event_type,
            convert_to(operator_event.payload::text, 'UTF8'), shown_id('sub', about),
            null::text, null::text, clock_timestamp();
    end if;
end
$$;

-- What is told of a delivery that has ended. Nothing of one that told something itself: whoever is told
-- of failures must not fail over that.
create function event_of_delivery(
    event_type text, application uuid, delivery uuid, event uuid, type_of_event text,
    subscription uuid, target_url text, reason text, attempt_count int, last_status int,
    created_at timestamptz
)
returns setof outbox
language plpgsql volatile
as $$
begin
    if not starts_with(coalesce(type_of_event, ''), 'webhook.') then
        return query select told.* from operator_event(
            event_type, application, subscription,
            json_build_object(
                'delivery_id', shown_id('dlv', delivery),
                'event_id', shown_id('evt', event),
                'event_type', type_of_event,
                'subscription_id', shown_id('sub', subscription),
                'target_url', target_url,
                'reason', reason,
                'attempt_count', attempt_count,
                'last_status', last_status,
                'created_at', shown_time(created_at),
                'ended_at', shown_time(now())
            )
        ) as told;
    end if;
end
$$;

-- What is told of a subscription that was disabled or enabled: what its current revision says.
create function event_of_subscription(event_type text, subscription uuid)
returns setof outbox
language sql volatile
as $$
    select told.*
    from subscription s
    join subscription_revision r using (subscription_id, revision)
    cross join lateral operator_event(
        event_type, s.application_id, s.subscription_id,
        json_build_object(
            'subscription_id', shown_id('sub', s.subscription_id),
            'uid', s.uid,
            'target_url', r.target_url,
            'because', r.disabled_because,
            'at', shown_time(s.updated_at)
        )
    ) as told
    where s.subscription_id = event_of_subscription.subscription
$$;

revoke execute on function shown_id, shown_time, operator_event, event_of_delivery,
    event_of_subscription from public;
