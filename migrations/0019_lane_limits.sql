-- What a subscription bounds: requests at a time, and requests in a time.

alter table subscription_revision
    add column max_in_flight int
        constraint subscription_revision_max_in_flight_positive check (max_in_flight > 0),
    -- JSON text; null: no limit.
    add column rate_limit text;

-- The lanes that are limited, or have been, and the next free time of those with a rate: the state of
-- a generic cell rate algorithm (GCRA; ITU-T I.371). Who claims takes times for what it claims in the
-- same statement; so a time is given once, whoever claims, and what is lost with a process is spent.
create table lane_limit (
    -- The subscription's: its lane has the same id.
    lane_id       uuid        not null constraint lane_limit_pkey primary key
                              constraint lane_limit_subscription_fkey
                              references subscription on delete cascade,
    -- The revision that says so.
    revision      int         not null,
    max_in_flight int,
    -- From one request to the next, in microseconds; null: no rate.
    step_us       bigint,
    -- How much earlier than that a request may begin: bursts.
    tolerance_us  bigint      not null default 0,
    -- How late after its time a request may begin; later the time is lost.
    slack_us      bigint      not null default 0,
    -- When the next one is due, were there no tolerance.
    next_at       timestamptz not null default 'epoch',
    -- The process that took the last time: another one keeps the slack's distance.
    taken_by      int,
    constraint lane_limit_range check (
        max_in_flight > 0 and step_us > 0 and tolerance_us >= 0 and slack_us >= 0
    )
);
