-- What was done, by minutes: one row per lane and minute, and one per application and minute, whose
-- lane_id is the application's id. Statistics are read from here and never from the history.
create table lane_minute (
    lane_id           uuid        not null,
    minute            timestamptz not null,
    attempts          int         not null,
    failed            int         not null,
    -- Deliveries that ended, by how.
    delivered         int         not null,
    dead              int         not null,
    cancelled         int         not null,
    -- How long attempts took: how many were in each range (see the domain's `statistics`).
    durations         int[]       not null,
    first_failed_at   timestamptz,
    last_failed_at    timestamptz,
    last_delivered_at timestamptz,
    -- Of the latest attempt that failed: an error class, and the same for people.
    last_error        text,
    last_message      text,
    last_status       smallint,
    constraint lane_minute_pkey primary key (lane_id, minute),
    constraint lane_minute_counts
        check (attempts >= failed and failed >= 0 and delivered >= 0 and dead >= 0 and cancelled >= 0)
) with (fillfactor = 80);
create index lane_minute_age_idx on lane_minute (minute);

-- After how many seconds of nothing but failures a subscription is disabled; 0: never; null: as the
-- settings say.
alter table subscription_revision
    add column disable_after_s int
        constraint subscription_revision_disable_after_not_negative check (disable_after_s >= 0);
