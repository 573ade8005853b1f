-- The catalogue of event types: of the instance, and of each application. A new type is a row.

alter table application
    -- Whether events of a type that is in no catalogue are taken.
    add column accepts_unknown_types boolean not null default true;

create table event_type (
    event_type_id  bigint           not null generated always as identity
                                    constraint event_type_pkey primary key,
    -- Null for a type of the instance, which every application sees.
    application_id uuid             constraint event_type_application_fkey references application,
    -- Sorted and compared by its bytes, whatever the database's language: lists have cursors.
    name           text collate "C" not null,
    description    text,
    -- JSON text as it came.
    schema         text,
    -- Whether what is published must keep to the schema.
    checks_payload boolean          not null default false,
    -- Its owner's name for this state of it; told, never compared.
    version        text,
    -- JSON text as it came.
    example        text,
    -- Raised by every change: no change overwrites one that it has not seen.
    revision       int              not null default 1,
    deprecated_at  timestamptz,
    created_at     timestamptz      not null default now(),
    updated_at     timestamptz      not null default now(),
    constraint event_type_name_length check (length(name) between 1 and 128),
    constraint event_type_description_length check (octet_length(description) <= 2000),
    constraint event_type_schema_length check (octet_length(schema) <= 65536),
    constraint event_type_version_length check (octet_length(version) between 1 and 64),
    constraint event_type_example_length check (octet_length(example) <= 65536),
    constraint event_type_checks_by_schema check (not checks_payload or schema is not null),
    constraint event_type_revision_positive check (revision > 0)
);

-- One of a name in each catalogue. Two indexes, since nulls are distinct.
create unique index event_type_application_key on event_type (application_id, name)
    where application_id is not null;
create unique index event_type_instance_key on event_type (name) where application_id is null;
