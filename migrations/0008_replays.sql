-- Replays: durable jobs that send again what has ended, and events that reached nobody.

create table replay (
    replay_id        uuid        not null constraint replay_pkey primary key,
    application_id   uuid        not null
                                 constraint replay_application_fkey references application,
    state            text        not null default 'running',
    -- What is meant; null restricts nothing.
    states           text[],
    subscription_id  uuid,
    event_id         uuid,
    event_type       text,
    response_status  smallint,
    error_class      text,
    created_from     timestamptz,
    created_until    timestamptz,
    include_unrouted boolean     not null,
    -- Deliveries queued in a second, at most.
    per_second       int         not null,
    -- Below it lies all that is looked at, deliveries and events.
    until_id         uuid        not null,
    -- The last delivery, and the last event, that was looked at. What is queued and how far it got
    -- are of one transaction, so whatever crashes, nothing is queued twice and nothing left out.
    delivery_cursor  uuid        not null,
    event_cursor     uuid        not null,
    has_all_ended    boolean     not null default false,
    -- The rate is kept here, and not in a process: whoever makes the next step, no sooner than this.
    next_step_at     timestamptz not null default now(),
    -- A queue is as long as it may be, and so the replay waits.
    is_held_up       boolean     not null default false,
    matched_count               bigint not null default 0,
    queued_count                bigint not null default 0,
    in_progress_count           bigint not null default 0,
    payload_gone_count          bigint not null default 0,
    subscription_deleted_count  bigint not null default 0,
    subscription_disabled_count bigint not null default 0,
    unrouted_count              bigint not null default 0,
    unrouted_payload_gone_count bigint not null default 0,
    routed_count                bigint not null default 0,
    routed_delivery_count       bigint not null default 0,
    created_at       timestamptz not null default now(),
    updated_at       timestamptz not null default now(),
    ended_at         timestamptz,
    constraint replay_state_known check (state in ('running', 'paused', 'completed', 'cancelled')),
    constraint replay_ended_iff_over
        check ((ended_at is not null) = (state in ('completed', 'cancelled'))),
    constraint replay_states_are_final
        check (states <@ array['delivered', 'dead', 'cancelled'] and cardinality(states) > 0),
    constraint replay_is_restricted
        check (num_nonnulls(states, subscription_id, event_id, event_type, response_status,
                            error_class, created_from, created_until) > 0),
    constraint replay_per_second_range check (per_second between 1 and 1000),
    constraint replay_matched_are_told_apart
        check (matched_count = queued_count + in_progress_count + payload_gone_count
                               + subscription_deleted_count + subscription_disabled_count),
    constraint replay_unrouted_counts
        check (routed_count + unrouted_payload_gone_count <= unrouted_count
               and routed_delivery_count >= routed_count)
);

-- An application's replays, newest first.
create index replay_application_idx on replay (application_id, replay_id);
-- Those that go on; as good as empty at any time.
create index replay_due_idx on replay (next_step_at) where state = 'running';
-- Those that are over, to be forgotten.
create index replay_ended_idx on replay (ended_at) where ended_at is not null;
