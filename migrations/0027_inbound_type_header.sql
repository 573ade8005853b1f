-- The header that names the event type of what comes in for a subscription, such as x-github-event.

alter table subscription_revision
    -- In lower case; null: x-event-type.
    add column inbound_type_header text
        constraint subscription_revision_inbound_type_header_length
        check (length(inbound_type_header) between 1 and 64);
