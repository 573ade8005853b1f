-- What lane_minute has, by hours as well: a week of a lane is 10,080 rows of minutes, each on a page of
-- its own, and those of a lane that never failed were read through to say so. Both are written by one
-- transaction, so the minutes of an hour come to what its row says.
create table lane_hour (
    lane_id           uuid        not null,
    hour              timestamptz not null,
    attempts          int         not null,
    failed            int         not null,
    delivered         int         not null,
    dead              int         not null,
    cancelled         int         not null,
    durations         int[]       not null,
    first_failed_at   timestamptz,
    last_failed_at    timestamptz,
    last_delivered_at timestamptz,
    last_error        text,
    last_message      text,
    last_status       smallint,
    constraint lane_hour_pkey primary key (lane_id, hour),
    constraint lane_hour_counts
        check (attempts >= failed and failed >= 0 and delivered >= 0 and dead >= 0 and cancelled >= 0)
) with (fillfactor = 80);
create index lane_hour_age_idx on lane_hour (hour);

-- Nobody may add to a minute that was summed up already.
lock table lane_minute in share row exclusive mode;
do $$
begin
    execute format(
        'insert into lane_hour (lane_id, hour, attempts, failed, delivered, dead, cancelled, durations,
                                first_failed_at, last_failed_at, last_delivered_at, last_error,
                                last_message, last_status)
         select lane_id, date_trunc(''hour'', minute, ''UTC''), sum(attempts), sum(failed),
                sum(delivered), sum(dead), sum(cancelled), array[%s], min(first_failed_at),
                max(last_failed_at), max(last_delivered_at),
                (array_agg(last_error order by last_failed_at desc)
                     filter (where last_failed_at is not null))[1],
                (array_agg(last_message order by last_failed_at desc)
                     filter (where last_failed_at is not null))[1],
                (array_agg(last_status order by last_failed_at desc)
                     filter (where last_failed_at is not null))[1]
         from lane_minute group by 1, 2',
        (select string_agg(format('coalesce(sum(durations[%s]), 0)::int', range), ', ' order by range)
         from generate_series(1, 40) as range));
end
$$;
