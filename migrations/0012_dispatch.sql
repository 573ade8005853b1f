-- Dispatch: explicit targets of which the request says more than their URL.

-- How such a target is called. Of the delivery's day and dropped with the payload, without which
-- nothing is sent again. A delivery of any other event has no row, and is not looked up here.
create table delivery_target (
    delivery_id    uuid not null,
    method         text not null,
    -- A JSON object of names and values, sealed: they may be credentials.
    sealed_headers bytea,
    -- The name of the key of the settings that signs; null: the application's own.
    signing_key    text,
    -- JSON text, as a subscription's; null: one attempt.
    retry          text,
    constraint delivery_target_pkey primary key (delivery_id),
    constraint delivery_target_method_known check (method in ('POST', 'PUT', 'PATCH')),
    constraint delivery_target_signing_key_length check (length(signing_key) between 1 and 64)
) partition by range (delivery_id);

-- What an older sealing key has sealed is found by the key's id, which stands behind the version of
-- the format.
create index delivery_target_sealing_key_idx on delivery_target ((substring(sealed_headers from 2 for 4)))
    where sealed_headers is not null;

-- The rows that are there keep to the narrower list, so they need not be read again.
alter table event
    drop constraint event_route_known,
    add constraint event_route_known
        check (route in ('target', 'default', 'one', 'targets')) not valid;
