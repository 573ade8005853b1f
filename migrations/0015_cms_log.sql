-- The log in the CMS: what it is still to be told of. Written by the statements that record results,
-- where they are told of an application whose log a CMS keeps.

-- An event at whose targets something has ended, once for each time.
create table cms_log_queue (
    place          bigint      generated always as identity
                               constraint cms_log_queue_pkey primary key,
    application_id uuid        not null,
    event_id       uuid        not null,
    queued_at      timestamptz not null default now()
) with (
    -- Rows live for a second while all goes well.
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 0,
    autovacuum_vacuum_insert_threshold = -1
);

-- Events that are told once more later: their document was refused, or it is unclear what became of a
-- request, which may still come through and overtake a newer one.
create table cms_log_again (
    event_id       uuid        not null constraint cms_log_again_pkey primary key,
    application_id uuid        not null,
    try_count      int         not null,
    due_at         timestamptz not null,
    queued_at      timestamptz not null default now(),
    constraint cms_log_again_tries_positive check (try_count > 0)
);
create index cms_log_again_due_idx on cms_log_again (due_at);

-- Who tells the CMS: one process at a time, until its lease ends by this database's clock.
create table cms_log_teller (
    is_only      boolean     not null default true constraint cms_log_teller_pkey primary key,
    owner        uuid,
    leased_until timestamptz not null default '-infinity',
    constraint cms_log_teller_is_only check (is_only)
);
insert into cms_log_teller default values;

-- The application that goes by this name, an id or a uid, as the settings have it. None of a null.
create function cms_application(id_or_uid text) returns uuid
language sql stable strict
as $$
    select case when starts_with(id_or_uid, 'app_') then substr(id_or_uid, 5)::uuid else (
        select application_id from application where uid = id_or_uid and deleted_at is null
    ) end
$$;

revoke execute on function cms_application from public;
