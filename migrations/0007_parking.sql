-- Deliveries that wait for a disabled subscription, and those that are sent by hand.

-- What may not be sent now: its subscription is disabled. Back in the queue when that ends.
create table delivery_parked (
    delivery_id     uuid        not null constraint delivery_parked_pkey primary key,
    event_id        uuid        not null,
    application_id  uuid        not null,
    -- Its lane as well.
    subscription_id uuid        not null,
    target_url      text        not null,
    payload_bytes   int         not null,
    created_at      timestamptz not null default now(),
    due_at          timestamptz not null default now(),
    -- As in delivery_queue: they go on where they were.
    claim_number    int         not null default 0,
    attempt_count   int         not null default 0,
    prior_count     int         not null default 0,
    parked_at       timestamptz not null default now(),
    constraint delivery_parked_counts
        check (attempt_count >= 0 and prior_count >= 0 and claim_number >= 0)
) with (
    autovacuum_vacuum_scale_factor = 0.05,
    vacuum_truncate = off
);

-- A subscription's, oldest first; those that have some are found by skipping through it.
create index delivery_parked_subscription_idx on delivery_parked (subscription_id, delivery_id);

-- Why a delivery is in the queue other than by its schedule: `retry` sends a pending one by hand, and
-- if that fails it is due at `resume_at` as if nothing had been; `once` and `replay` send one that
-- has ended, whose row of the history stays what it is until it is delivered.
alter table delivery_queue
    add column run text,
    add column resume_at timestamptz,
    -- Recorded attempts that the retry policy does not count.
    add column prior_count int not null default 0,
    add constraint delivery_queue_run_known check (run in ('retry', 'once', 'replay')),
    add constraint delivery_queue_resumes_iff_retried
        check ((coalesce(run, '') = 'retry') = (resume_at is not null)),
    add constraint delivery_queue_prior_count_not_negative check (prior_count >= 0);

-- Every look-up names the application, and its list is a range of this key.
alter table delivery
    drop constraint delivery_pkey,
    add constraint delivery_pkey primary key (application_id, delivery_id);
-- A subscription's log; explicit targets pay nothing for it.
create index delivery_subscription_idx on delivery (subscription_id, delivery_id)
    where subscription_id is not null;
-- What went wrong is rare, and is what people look for.
create index delivery_undelivered_idx on delivery (application_id, delivery_id)
    where state <> 'delivered';

-- What made an exchange: the schedule, or somebody's word.
alter table attempt
    add column run text constraint attempt_run_known check (run in ('retry', 'once', 'replay'));

-- Since when, and why, a subscription is disabled: by its owner, because its receiver answered that
-- it is gone (410), or because everything has failed for long.
alter table subscription_revision
    add column disabled_at timestamptz,
    add column disabled_because text
        constraint subscription_revision_disabled_because_known
        check (disabled_because in ('owner', 'gone', 'failing'));
update subscription_revision set disabled_at = created_at, disabled_because = 'owner'
    where not is_active;
alter table subscription_revision
    add constraint subscription_revision_disabled_complete
        check (is_active = (disabled_because is null)
               and (disabled_at is null) = (disabled_because is null));

-- Also those that are disabled: what waits for them in the queue is parked.
drop index subscription_drain_idx;
alter table subscription add column drains_since timestamptz;
update subscription set drains_since = deleted_at where deleted_at is not null and drained_at is null;
update subscription s set drains_since = now()
    from subscription_revision r
    where r.subscription_id = s.subscription_id and r.revision = s.revision
      and s.deleted_at is null and not r.is_active;
alter table subscription drop column drained_at;
create index subscription_drain_idx on subscription (drains_since) where drains_since is not null;
