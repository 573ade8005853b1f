-- Tenants: applications that are made, changed and deleted, and the keys of those who call.

alter table application
    add column updated_at timestamptz not null default now(),
    -- A deleted application accepts nothing and is shown to nobody. Its row stays, since the history
    -- names it; what it had waiting is cancelled when it is due.
    add column deleted_at timestamptz,
    drop constraint application_uid_key;

-- The uid of a deleted application may be taken again.
create unique index application_uid_key on application (uid) where deleted_at is null;

create table api_key (
    key_id         uuid        not null constraint api_key_pkey primary key,
    -- Null for a key of the instance: exactly the admins'.
    application_id uuid        constraint api_key_application_fkey references application,
    name           text        not null,
    role           text        not null,
    -- The first characters, by which people tell their keys apart.
    hint           text        not null,
    -- SHA-256 of the key, which is 256 random bits. The key itself is kept nowhere.
    hash           bytea       not null constraint api_key_hash_key unique,
    created_at     timestamptz not null default now(),
    expires_at     timestamptz,
    -- To the minute: it is written once a minute at most.
    last_used_at   timestamptz,
    revoked_at     timestamptz,
    constraint api_key_role_known check (role in (
        'admin', 'manager', 'dispatcher', 'producer', 'viewer')),
    constraint api_key_admin_iff_instance check ((role = 'admin') = (application_id is null)),
    constraint api_key_name_length check (length(name) between 1 and 255),
    constraint api_key_hash_length check (length(hash) = 32)
);

-- The keys of an application, newest first.
create index api_key_application_idx on api_key (application_id, key_id);
