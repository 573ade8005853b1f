-- How lanes fare that do not answer well: so that a process that starts, and every other one, leaves
-- them in peace as well. A row is written when that changes and by whom; of lanes that answer there is
-- none, or one that says so.
create table lane_health (
    lane_id        uuid        not null,
    application_id uuid        not null,
    failures       int         not null,
    open_until     timestamptz,
    paused_until   timestamptz,
    told_by        int         not null,
    updated_at     timestamptz not null default now(),
    constraint lane_health_pkey primary key (lane_id),
    constraint lane_health_failures check (failures >= 0)
);
create index lane_health_updated_at_idx on lane_health (updated_at);
