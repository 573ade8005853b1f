-- Publishing from SQL: a function that keeps an event in the caller's own transaction, and the table
-- from which the dispatcher moves it to where all events are.

-- Committed, and not moved yet. As good as empty at any time.
create table outbox (
    -- The publishing transaction. Whoever moves remembers a snapshot before which nothing is left,
    -- and finds by this what came after it, without a look at what was moved long ago.
    transaction_id  bigint      not null,
    event_id        uuid        not null,
    application_id  uuid        not null,
    type            text        not null,
    -- The bytes of the JSON text, as they came.
    payload         bytea       not null,
    subject         text,
    metadata        text,
    -- It stands in idempotency_key since the caller's commit.
    idempotency_key text,
    created_at      timestamptz not null default clock_timestamp(),
    -- The order in which they are moved: of one transaction as they were published.
    constraint outbox_pkey primary key (transaction_id, event_id)
) with (
    -- As the queue, and for the same reasons.
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 0,
    vacuum_truncate = off
);

-- What could not be moved, and why. Kept as long as payloads are.
create table outbox_refused (
    event_id        uuid        not null constraint outbox_refused_pkey primary key,
    application_id  uuid        not null,
    type            text        not null,
    payload         bytea       not null,
    subject         text,
    metadata        text,
    idempotency_key text,
    created_at      timestamptz not null,
    refused_at      timestamptz not null default now(),
    reason          text        not null
);
create index outbox_refused_refused_at_idx on outbox_refused (refused_at);

-- What is wrong with a JSON text beyond its grammar, or null: what src/domain/json.rs says, by the
-- same rules. Each part first looks whether there can be anything, which for nearly all texts there
-- cannot.
create function outbox_json_fault(json_text text, is_nul_refused boolean) returns text
language plpgsql immutable
set standard_conforming_strings = on
as $$
declare
    bare text;
begin
    if json_text ~ '\\u[dD][89a-fA-F]' then
        -- Escaped backslashes are no escapes of what follows them.
        bare := regexp_replace(
            replace(json_text, '\\', 'x'),
            '\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}', 'x', 'g');
        if bare ~ '\\u[dD][89a-fA-F]' then
            return 'must not hold half of a surrogate pair (`\ud800` to `\udfff` alone)';
        end if;
    end if;
    if is_nul_refused and strpos(json_text, '\u0000') > 0
        and strpos(replace(json_text, '\\', 'x'), '\u0000') > 0 then
        return 'must not hold the character U+0000';
    end if;
    -- Two brackets a level.
    if octet_length(json_text) > 2 * 128
        and length(json_text) - length(translate(json_text, '[{', '')) > 128 then
        bare := regexp_replace(json_text, '"(?:[^"\\]|\\.)*"', '', 'g');
        bare := translate(regexp_replace(bare, '[^][{}]+', '', 'g'), '{}', '[]');
        for level in 1 .. 128 loop
            exit when bare = '';
            bare := replace(bare, '[]', '');
        end loop;
        if bare <> '' then
            return 'must not nest deeper than 128 levels';
        end if;
    end if;
    -- Beyond 1e309 is what has a long exponent, or is long itself.
    if json_text ~ '[0-9][eE][+]?[0-9]{3}'
        or octet_length(json_text) > 200 and json_text ~ '[0-9]{200}' then
        bare := regexp_replace(json_text, '"(?:[^"\\]|\\.)*"', '""', 'g');
        begin
            if exists (
                select
                from regexp_matches(
                         bare, '(([0-9]+)(?:[.]([0-9]+))?(?:[eE]([+-]?)([0-9]+))?)', 'g') as part
                cross join lateral (
                    -- So many digits stand before the point, when there is no exponent any more.
                    select case when part[2] <> '0' then length(part[2])
                                else length(ltrim(part[3], '0')) - length(part[3]) end
                         + case when length(ltrim(part[5], '0')) > 9 then 1000000000
                                else coalesce(nullif(ltrim(part[5], '0'), ''), '0')::bigint end
                         * case when part[4] = '-' then -1 else 1 end as digits
                ) as size
                where (part[2] <> '0' or ltrim(part[3], '0') <> '')
                  -- A cast fails of what is just too large.
                  and (digits > 309 or digits = 309 and part[1]::float8 is null)
            ) then
                raise numeric_value_out_of_range;
            end if;
        exception when numeric_value_out_of_range then
            return 'must not hold a number beyond ±1.8e308, the range of a double';
        end;
    end if;
    return null;
end
$$;

-- Keeps an event of the caller's transaction and tells its id. docs/sql.md is the guide.
create function publish(
    type            text,
    payload         json,
    application     text default null,
    idempotency_key text default null,
    subject         text default null,
    metadata        json default null
) returns text
language plpgsql volatile security definer
as $$
declare
    own         record;
    text_bytes  bytea;
    said        text;
    said_beside text;
    fault       text;
    fingerprint bytea;
    known       record;
    now_us      bigint;
    event_id    uuid;
begin
    if publish.type is null then
        raise exception using errcode = 'null_value_not_allowed', column = 'type',
            message = 'publish: `type` must not be null',
            hint = 'Events find their subscriptions by their type.';
    end if;
    if octet_length(publish.type) > 128
        or publish.type !~ '^[A-Za-z0-9_-]+([.][A-Za-z0-9_-]+)*$' then
        raise exception using errcode = 'invalid_parameter_value', column = 'type',
            message = 'publish: `type` must be a dotted name such as `invoice.paid`: segments of '
                      'letters, digits, `_` and `-`, at most 128 bytes';
    end if;
    if starts_with(publish.type, 'webhook.') then
        raise exception using errcode = 'invalid_parameter_value', column = 'type',
            message = 'publish: `type` must not begin with `webhook.`: such events are the '
                      'service''s own';
    end if;

    if publish.payload is null then
        raise exception using errcode = 'null_value_not_allowed', column = 'payload',
            message = 'publish: `payload` must not be null',
            hint = 'For an event without data use ''null''::json or ''{}''::json.';
    end if;
    -- As a value in a body is: without what stands around it.
    said := btrim(publish.payload::text, E' \t\n\r');
    if octet_length(said) > 1048576 then
        raise exception using errcode = 'program_limit_exceeded', column = 'payload',
            message = format('publish: `payload` is of %s bytes, and at most 1048576 are taken',
                             octet_length(said)),
            hint = 'Publish a reference to what is large.';
    end if;
    fault := outbox_json_fault(said, false);
    if fault is not null then
        raise exception using errcode = 'invalid_parameter_value', column = 'payload',
            message = 'publish: `payload` ' || fault;
    end if;
    text_bytes := convert_to(said, 'UTF8');

    if publish.idempotency_key is not null
        and (octet_length(publish.idempotency_key) not between 1 and 255
             or publish.idempotency_key !~ '^[ -~]+$') then
        raise exception using errcode = 'invalid_parameter_value', column = 'idempotency_key',
            message = 'publish: `idempotency_key` must be 1 to 255 printable ASCII characters',
            hint = 'Leave it out, or pass null, for an event that is new whenever it is published.';
    end if;

    if publish.subject is not null
        and (octet_length(publish.subject) not between 1 and 255
             or publish.subject ~ '[\u0001-\u001f\u007f-\u009f]') then
        raise exception using errcode = 'invalid_parameter_value', column = 'subject',
            message = 'publish: `subject` must be 1 to 255 bytes without control characters';
    end if;

    -- The null of JSON is none, as everywhere where a field may be left out.
    said_beside := nullif(btrim(publish.metadata::text, E' \t\n\r'), 'null');
    if octet_length(said_beside) > 16384 then
        raise exception using errcode = 'program_limit_exceeded', column = 'metadata',
            message = 'publish: `metadata` must be at most 16384 bytes of JSON';
    end if;
    fault := outbox_json_fault(said_beside, true);
    if fault is not null then
        raise exception using errcode = 'invalid_parameter_value', column = 'metadata',
            message = 'publish: `metadata` ' || fault;
    end if;

    if publish.application is null then
        select a.application_id, a.accepts_unknown_types into own from application a
        where a.application_id = '00000000-0000-7000-8000-000000000000' and a.deleted_at is null;
    elsif publish.application ~ '^app_[0-9A-Fa-f]{32}$' then
        select a.application_id, a.accepts_unknown_types into own from application a
        where a.application_id = substr(publish.application, 5)::uuid and a.deleted_at is null;
    else
        select a.application_id, a.accepts_unknown_types into own from application a
        where a.uid = publish.application and a.deleted_at is null;
    end if;
    if not found then
        raise exception using errcode = 'undefined_object', column = 'application',
            message = format('publish: there is no application `%s`',
                             left(coalesce(publish.application, 'default'), 255)),
            hint = 'Name it by its id (`app_…`) or by its uid.';
    end if;
    if not own.accepts_unknown_types and not exists (
        select from event_type e
        where e.name = publish.type
          and (e.application_id = own.application_id or e.application_id is null)
    ) then
        raise exception using errcode = 'undefined_object', column = 'type',
            message = format('publish: there is no event type `%s`, and this application takes '
                             'only those of its catalogue', publish.type),
            hint = 'POST /event-types adds one.';
    end if;

    -- Version 7 of RFC 9562: milliseconds, then 12 bits of what is below them, so that those of one
    -- transaction sort as they were published; the other half is random.
    now_us := extract(epoch from clock_timestamp()) * 1000000;
    event_id := encode(
        int8send((now_us / 1000 << 16) | 28672 | (now_us % 1000 * 4096 / 1000))
            || substring(uuid_send(gen_random_uuid()) from 9), 'hex')::uuid;

    if publish.idempotency_key is not null then
        -- What `Submission::fingerprint` hashes: tags, lengths, values.
        fingerprint := sha256(
            convert_to('type', 'UTF8') || int8send(octet_length(publish.type))
                || convert_to(publish.type, 'UTF8')
            || convert_to('payload', 'UTF8') || int8send(octet_length(text_bytes)) || text_bytes
            || coalesce(
                convert_to('subject', 'UTF8') || int8send(octet_length(publish.subject))
                    || convert_to(publish.subject, 'UTF8'), '')
            || coalesce(
                convert_to('metadata', 'UTF8') || int8send(octet_length(said_beside))
                    || convert_to(said_beside, 'UTF8'), '')
            || convert_to('subscriptions', 'UTF8') || int8send(0));
        -- A look first: what is there need not be locked until the caller commits.
        select k.fingerprint, k.event_id into known from idempotency_key k
        where k.application_id = own.application_id and k.key = publish.idempotency_key
          and k.created_at >= now() - make_interval(hours => 24);
        if not found then
            insert into idempotency_key as k (application_id, key, fingerprint, event_id)
            values (own.application_id, publish.idempotency_key, fingerprint, event_id)
            on conflict (application_id, key) do update
            set fingerprint = excluded.fingerprint, event_id = excluded.event_id, created_at = now()
            where k.created_at < now() - make_interval(hours => 24)
            returning k.fingerprint, k.event_id into known;
        end if;
        if not found then
            -- Another transaction has just committed it.
            select k.fingerprint, k.event_id into known from idempotency_key k
            where k.application_id = own.application_id and k.key = publish.idempotency_key;
        end if;
        if known.fingerprint <> fingerprint then
            raise exception using errcode = 'unique_violation', column = 'idempotency_key',
                constraint = 'idempotency_key_pkey',
                message = 'publish: the idempotency key was used for another event',
                detail = format('It stands for `evt_%s`.', replace(known.event_id::text, '-', '')),
                hint = 'A key may be used again only with the same type, payload, subject and '
                       'metadata, or after 24 hours.';
        end if;
        if known.event_id <> event_id then
            return 'evt_' || replace(known.event_id::text, '-', '');
        end if;
    end if;

    insert into outbox (transaction_id, event_id, application_id, type, payload, subject, metadata,
                        idempotency_key)
    values (pg_current_xact_id()::text::bigint, event_id, own.application_id, publish.type,
            text_bytes, publish.subject, said_beside, publish.idempotency_key);
    return 'evt_' || replace(event_id::text, '-', '');
end
$$;

-- The caller's path to names must not count: that of the schema which all this is in does.
do $$
begin
    execute format('alter function publish set search_path = %I, pg_temp', current_schema());
    execute format('alter function outbox_json_fault set search_path = pg_catalog, pg_temp');
end
$$;

-- Who may publish, the operator says: grant execute on function publish to …
revoke execute on function publish, outbox_json_fault from public;
