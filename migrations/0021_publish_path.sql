-- `publish()` runs with the rights of its owner, for roles that may execute nothing else. Any role
-- that may create objects in the schema (every role, by default before Postgres 15, or after `grant
-- create on schema public to public`) could add an overload such as `int8send(integer)`, which fits
-- an argument better than the function of Postgres and was called instead.
--
-- Names in the body are now found in `pg_catalog` only; our own tables and functions are qualified
-- by the schema that they are in. Each call is qualified and typed as well. Nothing else changes.
do $do$
begin
    execute replace($create$
create or replace function @schema@.publish(
    type            text,
    payload         json,
    application     text default null,
    idempotency_key text default null,
    subject         text default null,
    metadata        json default null
) returns text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $body$
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
    if pg_catalog.octet_length(publish.type) > 128
        or publish.type !~ '^[A-Za-z0-9_-]+([.][A-Za-z0-9_-]+)*$' then
        raise exception using errcode = 'invalid_parameter_value', column = 'type',
            message = 'publish: `type` must be a dotted name such as `invoice.paid`: segments of '
                      'letters, digits, `_` and `-`, at most 128 bytes';
    end if;
    if pg_catalog.starts_with(publish.type, 'webhook.') then
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
    said := pg_catalog.btrim(publish.payload::text, E' \t\n\r');
    if pg_catalog.octet_length(said) > 1048576 then
        raise exception using errcode = 'program_limit_exceeded', column = 'payload',
            message = pg_catalog.format(
                'publish: `payload` is of %s bytes, and at most 1048576 are taken',
                pg_catalog.octet_length(said)),
            hint = 'Publish a reference to what is large.';
    end if;
    fault := @schema@.outbox_json_fault(said, false);
    if fault is not null then
        raise exception using errcode = 'invalid_parameter_value', column = 'payload',
            message = 'publish: `payload` ' || fault;
    end if;
    text_bytes := pg_catalog.convert_to(said, 'UTF8');

    if publish.idempotency_key is not null
        and (pg_catalog.octet_length(publish.idempotency_key) not between 1 and 255
             or publish.idempotency_key !~ '^[ -~]+$') then
        raise exception using errcode = 'invalid_parameter_value', column = 'idempotency_key',
            message = 'publish: `idempotency_key` must be 1 to 255 printable ASCII characters',
            hint = 'Leave it out, or pass null, for an event that is new whenever it is published.';
    end if;

    if publish.subject is not null
        and (pg_catalog.octet_length(publish.subject) not between 1 and 255
             or publish.subject ~ '[\u0001-\u001f\u007f-\u009f]') then
        raise exception using errcode = 'invalid_parameter_value', column = 'subject',
            message = 'publish: `subject` must be 1 to 255 bytes without control characters';
    end if;

    -- The null of JSON is none, as everywhere where a field may be left out.
    said_beside := nullif(pg_catalog.btrim(publish.metadata::text, E' \t\n\r'), 'null');
    if pg_catalog.octet_length(said_beside) > 16384 then
        raise exception using errcode = 'program_limit_exceeded', column = 'metadata',
            message = 'publish: `metadata` must be at most 16384 bytes of JSON';
    end if;
    fault := @schema@.outbox_json_fault(said_beside, true);
    if fault is not null then
        raise exception using errcode = 'invalid_parameter_value', column = 'metadata',
            message = 'publish: `metadata` ' || fault;
    end if;

    if publish.application is null then
        select a.application_id, a.accepts_unknown_types into own from @schema@.application a
        where a.application_id = '00000000-0000-7000-8000-000000000000' and a.deleted_at is null;
    elsif publish.application ~ '^app_[0-9A-Fa-f]{32}$' then
        select a.application_id, a.accepts_unknown_types into own from @schema@.application a
        where a.application_id = pg_catalog.substr(publish.application, 5)::uuid
          and a.deleted_at is null;
    else
        select a.application_id, a.accepts_unknown_types into own from @schema@.application a
        where a.uid = publish.application and a.deleted_at is null;
    end if;
    if not found then
        raise exception using errcode = 'undefined_object', column = 'application',
            message = pg_catalog.format(
                'publish: there is no application `%s`',
                pg_catalog.left(coalesce(publish.application, 'default'), 255)),
            hint = 'Name it by its id (`app_…`) or by its uid.';
    end if;
    if not own.accepts_unknown_types and not exists (
        select from @schema@.event_type e
        where e.name = publish.type
          and (e.application_id = own.application_id or e.application_id is null)
    ) then
        raise exception using errcode = 'undefined_object', column = 'type',
            message = pg_catalog.format(
                'publish: there is no event type `%s`, and this application takes only those of '
                'its catalogue', publish.type),
            hint = 'POST /event-types adds one.';
    end if;

    -- Version 7 of RFC 9562: milliseconds, then 12 bits of what is below them, so that those of one
    -- transaction sort as they were published; the other half is random.
    now_us := extract(epoch from pg_catalog.clock_timestamp()) * 1000000;
    event_id := pg_catalog.encode(
        pg_catalog.int8send(
            ((now_us / 1000 << 16) | 28672 | (now_us % 1000 * 4096 / 1000))::bigint)
            || pg_catalog.substring(pg_catalog.uuid_send(pg_catalog.gen_random_uuid()), 9),
        'hex')::uuid;

    if publish.idempotency_key is not null then
        -- What `Submission::fingerprint` hashes: tags, lengths, values.
        fingerprint := pg_catalog.sha256(
            pg_catalog.convert_to('type', 'UTF8')
                || pg_catalog.int8send(pg_catalog.octet_length(publish.type)::bigint)
                || pg_catalog.convert_to(publish.type, 'UTF8')
            || pg_catalog.convert_to('payload', 'UTF8')
                || pg_catalog.int8send(pg_catalog.octet_length(text_bytes)::bigint) || text_bytes
            || coalesce(
                pg_catalog.convert_to('subject', 'UTF8')
                    || pg_catalog.int8send(pg_catalog.octet_length(publish.subject)::bigint)
                    || pg_catalog.convert_to(publish.subject, 'UTF8'), '')
            || coalesce(
                pg_catalog.convert_to('metadata', 'UTF8')
                    || pg_catalog.int8send(pg_catalog.octet_length(said_beside)::bigint)
                    || pg_catalog.convert_to(said_beside, 'UTF8'), '')
            || pg_catalog.convert_to('subscriptions', 'UTF8') || pg_catalog.int8send(0::bigint));
        -- A look first: what is there need not be locked until the caller commits.
        select k.fingerprint, k.event_id into known from @schema@.idempotency_key k
        where k.application_id = own.application_id and k.key = publish.idempotency_key
          and k.created_at >= pg_catalog.now() - pg_catalog.make_interval(hours => 24);
        if not found then
            insert into @schema@.idempotency_key as k (application_id, key, fingerprint, event_id)
            values (own.application_id, publish.idempotency_key, fingerprint, event_id)
            on conflict (application_id, key) do update
            set fingerprint = excluded.fingerprint, event_id = excluded.event_id,
                created_at = pg_catalog.now()
            where k.created_at < pg_catalog.now() - pg_catalog.make_interval(hours => 24)
            returning k.fingerprint, k.event_id into known;
        end if;
        if not found then
            -- Another transaction has just committed it.
            select k.fingerprint, k.event_id into known from @schema@.idempotency_key k
            where k.application_id = own.application_id and k.key = publish.idempotency_key;
        end if;
        if known.fingerprint <> fingerprint then
            raise exception using errcode = 'unique_violation', column = 'idempotency_key',
                constraint = 'idempotency_key_pkey',
                message = 'publish: the idempotency key was used for another event',
                detail = pg_catalog.format(
                    'It stands for `evt_%s`.',
                    pg_catalog.replace(known.event_id::text, '-', '')),
                hint = 'A key may be used again only with the same type, payload, subject and '
                       'metadata, or after 24 hours.';
        end if;
        if known.event_id <> event_id then
            return 'evt_' || pg_catalog.replace(known.event_id::text, '-', '');
        end if;
    end if;

    insert into @schema@.outbox (transaction_id, event_id, application_id, type, payload, subject,
                                 metadata, idempotency_key)
    values (pg_catalog.pg_current_xact_id()::text::bigint, event_id, own.application_id,
            publish.type, text_bytes, publish.subject, said_beside, publish.idempotency_key);
    return 'evt_' || pg_catalog.replace(event_id::text, '-', '');
end
$body$;
$create$, '@schema@', quote_ident(current_schema()));
end
$do$;
