-- The main job: events, their deliveries, and every attempt.
--
-- Two kinds of tables. The history (event, event_payload, delivery, attempt) is append-only and
-- partitioned by day; days are dropped, rows never are. The queue (delivery_queue) holds only what
-- has not ended, so that it stays small whatever the history.
--
-- Ids are UUIDv7 made by the service: they begin with the time, so a range of ids is a range of
-- time, and a look-up by id touches one partition. A delivery's id shares all but its last 20 bits
-- with its event's id: the deliveries of an event are one range of the key, in the same partition,
-- and no index on event_id is needed anywhere.

create table application (
    application_id  uuid        not null constraint application_pkey primary key,
    -- The caller's own name for it, accepted wherever an id is.
    uid             text        not null constraint application_uid_key unique,
    name            text        not null,
    -- Raised by every change that may send an event elsewhere. The accepting transaction compares
    -- it with the version that it routed at, so that no stale cache decides.
    routing_version bigint      not null default 1,
    created_at      timestamptz not null default now(),
    constraint application_uid_length check (length(uid) between 1 and 255),
    constraint application_name_length check (length(name) between 1 and 255),
    constraint application_routing_version_positive check (routing_version > 0)
);

-- Owns what no other application is named for.
insert into application (application_id, uid, name)
values ('00000000-0000-7000-8000-000000000000', 'default', 'Default');

-- One row per running process. A process takes a new one at each start, so its id is a fencing
-- token: what a dead process owned, its successor does not.
create table dispatcher (
    dispatcher_id int         not null generated always as identity
                              constraint dispatcher_pkey primary key,
    started_at    timestamptz not null default now(),
    -- Compared with now() only: no host's clock decides who is dead.
    heartbeat_at  timestamptz not null default now()
);

create table event (
    event_id        uuid        not null,
    application_id  uuid        not null,
    -- Null where the caller told none.
    type            text,
    subject         text,
    -- JSON text as it came; nothing queries inside it.
    metadata        text,
    created_at      timestamptz not null default now(),
    -- What the event was routed at: with the revisions of that version one can say why.
    routing_version bigint      not null,
    delivery_count  int         not null,
    -- Every look-up names the application, and its list is a range of this key: one index serves
    -- both.
    constraint event_pkey primary key (application_id, event_id),
    constraint event_delivery_count_not_negative check (delivery_count >= 0)
) partition by range (event_id);

-- Apart from the event, since payloads may be dropped earlier.
create table event_payload (
    event_id uuid  not null,
    -- Exactly the bytes that came, and that are signed and sent. Not jsonb, which reorders keys.
    payload  bytea not null,
    constraint event_payload_pkey primary key (event_id)
) partition by range (event_id);

-- What has not ended. Deleted from when a delivery ends, so it stays small.
create table delivery_queue (
    delivery_id        uuid        not null constraint delivery_queue_pkey primary key,
    event_id           uuid        not null,
    application_id     uuid        not null,
    lane_id            uuid        not null,
    target_url         text        not null,
    -- Claims read payloads in portions of bounded size.
    payload_bytes      int         not null,
    created_at         timestamptz not null default now(),
    due_at             timestamptz not null default now(),
    -- The process that holds it; null: claimable. There is no lease column: who is dead is told by
    -- dispatcher.heartbeat_at, so nothing here is renewed.
    owner              int,
    -- Raised by every claim. A result must carry the owner and this number to count.
    claim_number       int         not null default 0,
    -- Attempts recorded so far. A lost lease is none.
    attempt_count      int         not null default 0,
    -- Leases lost in a row.
    interruption_count smallint    not null default 0,
    constraint delivery_queue_owned_iff_claimed check (owner is null or claim_number > 0),
    constraint delivery_queue_attempts_are_claims check (attempt_count between 0 and claim_number),
    constraint delivery_queue_interruptions check (interruption_count between 0 and 20),
    constraint delivery_queue_payload_bytes check (payload_bytes >= 0)
) with (
    -- Rows live for milliseconds; the default of a fifth of the table would come far too late.
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 0,
    -- Truncation takes an exclusive lock, and the pages are wanted again at once.
    vacuum_truncate = off
);

-- The ONLY index by due time. With another one on due_at alone the planner walks that and filters:
-- 1,769 ms instead of 1.4 for a claim beside a backlog of 200,000. Rows that are born claimed are
-- not in it, so the hot path maintains the primary key only.
create index delivery_ready on delivery_queue (lane_id, due_at) where owner is null;

-- One row when a delivery ends.
create table delivery (
    delivery_id    uuid        not null,
    event_id       uuid        not null,
    application_id uuid        not null,
    lane_id        uuid        not null,
    event_type     text,
    target_url     text        not null,
    state          text        not null,
    -- Why it is not delivered: an error class.
    reason         text,
    attempt_count  int         not null,
    last_status    smallint,
    created_at     timestamptz not null,
    ended_at       timestamptz not null default now(),
    constraint delivery_pkey primary key (delivery_id),
    constraint delivery_state_is_final check (state in ('delivered', 'dead', 'cancelled')),
    constraint delivery_reason_iff_not_delivered check ((state = 'delivered') = (reason is null)),
    constraint delivery_reason_known check (reason in (
        'dns', 'connect', 'tls', 'timeout', 'blocked_address', 'http_status', 'redirect',
        'response_too_large', 'protocol', 'signing', 'internal', 'interrupted', 'expired',
        'cancelled')),
    constraint delivery_attempt_count_not_negative check (attempt_count >= 0)
) partition by range (delivery_id);

-- Every exchange, in the partition of its delivery's day.
create table attempt (
    delivery_id        uuid        not null,
    -- The claim that it was made under: a result that is recorded twice is the same row.
    claim_number       int         not null,
    attempt_id         uuid        not null,
    scheduled_at       timestamptz not null,
    started_at         timestamptz not null,
    duration_ms        int         not null,
    request_url        text        not null,
    -- Header lines as they went out, secrets redacted: `name: value`, separated by newlines.
    request_headers    text        not null,
    response_status    smallint,
    response_headers   text,
    -- The first bytes, as many as RESPONSE_BODY_MAX says.
    response_body      bytea,
    response_truncated boolean     not null,
    -- Null where the receiver answered 2xx.
    error_class        text,
    error_message      text,
    -- The lease was lost before the result came: kept, but nothing followed from it.
    is_late            boolean     not null,
    constraint attempt_pkey primary key (delivery_id, claim_number),
    constraint attempt_error_class_known check (error_class in (
        'dns', 'connect', 'tls', 'timeout', 'blocked_address', 'http_status', 'redirect',
        'response_too_large', 'protocol', 'signing', 'internal')),
    constraint attempt_error_complete check ((error_class is null) = (error_message is null)),
    constraint attempt_success_has_status check (error_class is not null or response_status is not null),
    constraint attempt_response_complete check ((response_status is null) = (response_headers is null)),
    constraint attempt_duration_not_negative check (duration_ms >= 0)
) partition by range (delivery_id);

-- The answers to submissions that carried a key, for 24 hours. Not partitioned: it must be unique
-- over all days. Cleaned in bounded batches.
create table idempotency_key (
    application_id uuid        not null,
    key            text        not null,
    -- SHA-256 of the normalised submission.
    fingerprint    bytea       not null,
    event_id       uuid        not null,
    created_at     timestamptz not null default now(),
    constraint idempotency_key_pkey primary key (application_id, key),
    constraint idempotency_key_fingerprint_length check (length(fingerprint) = 32)
);
create index idempotency_key_created_at_idx on idempotency_key (created_at);
