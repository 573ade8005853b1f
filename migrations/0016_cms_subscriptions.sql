-- Subscriptions that are documents of a CMS: there they are made, changed and removed.

-- Which document it is; null: it is our API's.
alter table subscription add column cms_document_id text;

-- The documents of the CMS, each as it was last read.
create table cms_document (
    application_id      uuid        not null
                                    constraint cms_document_application_fkey references application,
    document_id         text        not null,
    -- Null: it never was good.
    subscription_id     uuid        constraint cms_document_subscription_fkey references subscription,
    -- What the CMS said of its last change when it was read, as it said it. A document that says the
    -- same is not read again.
    document_updated_at text        not null,
    -- Counts what was read. Who has read the document applies it only if this is what it was before:
    -- what was read earlier never overwrites what was read later.
    read_count          bigint      not null default 1,
    -- What people call it there.
    name                text,
    -- Since when it is refused, and why. Its subscription, if it has one, is as it was.
    refused_at          timestamptz,
    refused_because     text,
    constraint cms_document_pkey primary key (application_id, document_id),
    constraint cms_document_id_length check (length(document_id) between 1 and 255),
    constraint cms_document_refused_is_whole
        check ((refused_at is null) = (refused_because is null)),
    constraint cms_document_is_something
        check (subscription_id is not null or refused_at is not null)
);

create unique index cms_document_subscription_key on cms_document (subscription_id)
    where subscription_id is not null;
create index cms_document_refused_idx on cms_document (application_id, refused_at)
    where refused_at is not null;

-- Whose turn it is to look at all documents: one process at a time.
create table cms_look (
    application_id uuid        not null constraint cms_look_pkey primary key
                               constraint cms_look_application_fkey references application,
    -- The process; an id that it takes at its start.
    owner          uuid        not null,
    -- Until then nobody else looks.
    held_until     timestamptz not null,
    -- When the last look ended that saw all there is.
    ended_at       timestamptz
);
