-- What is stored for good is not for ever: payloads that an application keeps for less time than the
-- instance, and erasures by request.

-- The key that an event was published with, so that it can be erased with the event. Events from
-- before have none here; their keys are gone after a day.
alter table event add column idempotency_key text;

-- The events about somebody, in the order of time.
create index event_subject_idx on event (application_id, subject, event_id)
    where subject is not null;

-- Applications whose payloads go earlier than the settings say.
create table payload_retention (
    application_id uuid        not null constraint payload_retention_pkey primary key
                               constraint payload_retention_application_fkey references application,
    days           int         not null,
    -- The last event that was looked at. A longer time brings nothing back; a shorter one goes on here.
    event_cursor   uuid        not null default '00000000-0000-0000-0000-000000000000',
    constraint payload_retention_days_positive check (days > 0)
);

-- Erasures: durable jobs. What they did is their receipt.
create table erasure (
    erasure_id            uuid        not null constraint erasure_pkey primary key,
    application_id        uuid        not null
                                      constraint erasure_application_fkey references application,
    scope                 text        not null,
    event_id              uuid,
    -- Whom it is about, until it is done; from then on the hash says whether it was this one.
    subject               text,
    subject_sha256        bytea,
    state                 text        not null default 'running',
    -- Below it lie the events that are meant: those that were there.
    until_id              uuid        not null,
    event_cursor          uuid        not null default '00000000-0000-0000-0000-000000000000',
    next_step_at          timestamptz not null default now(),
    event_count           bigint      not null default 0,
    payload_count         bigint      not null default 0,
    attempt_count         bigint      not null default 0,
    cancelled_count       bigint      not null default 0,
    idempotency_key_count bigint      not null default 0,
    created_at            timestamptz not null default now(),
    updated_at            timestamptz not null default now(),
    ended_at              timestamptz,
    constraint erasure_state_known check (state in ('running', 'completed')),
    constraint erasure_ended_iff_completed check ((ended_at is not null) = (state = 'completed')),
    constraint erasure_scope_is_told check (
        case scope
            when 'event' then event_id is not null and subject_sha256 is null
            when 'subject' then event_id is null and subject_sha256 is not null
            when 'application' then event_id is null and subject_sha256 is null
            else false
        end),
    constraint erasure_subject_until_done
        check ((subject is not null) = (scope = 'subject' and state = 'running')),
    constraint erasure_counts
        check (event_count >= 0 and payload_count >= 0 and attempt_count >= 0
               and cancelled_count >= 0 and idempotency_key_count >= 0)
);

create index erasure_application_idx on erasure (application_id, erasure_id);
-- Those that go on; as good as empty at any time.
create index erasure_due_idx on erasure (next_step_at) where state = 'running';
