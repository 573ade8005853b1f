-- Subscriptions: which events of an application go where, and how.

create table subscription (
    subscription_id uuid        not null constraint subscription_pkey primary key,
    application_id  uuid        not null
                                constraint subscription_application_fkey references application,
    -- Its owner's name for it, if any.
    uid             text,
    -- The current one of its revisions.
    revision        int         not null,
    -- The application's routing version since the current revision: what is in memory is brought up
    -- to date by what lies above the version that it was read at.
    routing_version bigint      not null,
    created_at      timestamptz not null default now(),
    updated_at      timestamptz not null default now(),
    deleted_at      timestamptz,
    -- Of a deleted one: nothing waits for it any more.
    drained_at      timestamptz,
    constraint subscription_uid_length check (length(uid) between 1 and 255),
    constraint subscription_revision_positive check (revision > 0)
);

create unique index subscription_uid_key on subscription (application_id, uid)
    where deleted_at is null;
-- An application's subscriptions, newest first.
create index subscription_application_idx on subscription (application_id, subscription_id)
    where deleted_at is null;
create index subscription_changes_idx on subscription (application_id, routing_version);
-- Deleted ones for which something may still wait; as good as empty at any time.
create index subscription_drain_idx on subscription (deleted_at)
    where deleted_at is not null and drained_at is null;

-- All that may change of a subscription; a row a change, never updated but to seal a secret anew. With the routing version of
-- an event one can say what each subscription was when the event was routed.
create table subscription_revision (
    subscription_id       uuid        not null
                                      constraint subscription_revision_subscription_fkey
                                      references subscription,
    revision              int         not null,
    routing_version       bigint      not null,
    created_at            timestamptz not null default now(),
    target_url            text        not null,
    method                text        not null,
    event_types           text[]      not null,
    -- JSON text as it came.
    filter                text,
    is_active             boolean     not null,
    -- Null: HTTP_TIMEOUT.
    timeout_ms            int,
    -- JSON text; null: the policy of the settings.
    retry                 text,
    payload_format        text        not null,
    schema_version        text        not null,
    signing               text        not null,
    signature_headers     text        not null,
    -- A JSON object of names and values, which may be credentials.
    sealed_headers        bytea,
    sealed_inbound_secret bytea,
    description           text,
    -- JSON text as it came.
    metadata              text,
    constraint subscription_revision_pkey primary key (subscription_id, revision),
    constraint subscription_revision_method_known check (method in ('POST', 'PUT', 'PATCH')),
    constraint subscription_revision_event_types_count
        check (cardinality(event_types) between 1 and 100),
    constraint subscription_revision_timeout_range check (timeout_ms between 1000 and 300000),
    constraint subscription_revision_payload_format_known
        check (payload_format in ('envelope', 'raw')),
    constraint subscription_revision_signing_known check (signing in ('standard', 'none')),
    constraint subscription_revision_signature_headers_known
        check (signature_headers in ('standard', 'x_signature', 'both'))
);

-- What signs: the keys of a subscription, or of an application's explicit targets.
create table signing_key (
    signing_key_id  uuid        not null constraint signing_key_pkey primary key,
    application_id  uuid        not null
                                constraint signing_key_application_fkey references application,
    -- Null: signs the application's explicit targets.
    subscription_id uuid        constraint signing_key_subscription_fkey references subscription,
    sealed          bytea       not null,
    created_at      timestamptz not null default now(),
    -- A key that was rotated away signs beside its successor until then. Null: the current one.
    retires_at      timestamptz
);

create unique index signing_key_current_key on signing_key (
    application_id, coalesce(subscription_id, '00000000-0000-0000-0000-000000000000')
) where retires_at is null;
create index signing_key_owner_idx on signing_key (application_id, subscription_id);

-- Null for explicit targets.
alter table delivery_queue add column subscription_id uuid;
alter table delivery add column subscription_id uuid;

-- Until now all were posted.
alter table attempt add column request_method text not null default 'POST'
    constraint attempt_request_method_known check (request_method in ('POST', 'PUT', 'PATCH'));
