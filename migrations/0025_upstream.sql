-- The way that an event came: dispatchers that it passed before (null: none), and its caller's trace.
-- Deliveries carry both on, over retries and replays.
alter table event
    add column hops smallint,
    add column traceparent text,
    add constraint event_hops_known check (hops between 1 and 5) not valid,
    add constraint event_traceparent_length check (length(traceparent) = 55) not valid;

-- A new error class: `loop`. What is there already has none of it, and is not read again.
alter table delivery
    drop constraint delivery_reason_known,
    add constraint delivery_reason_known check (reason in (
        'dns', 'connect', 'tls', 'timeout', 'blocked_address', 'http_status', 'redirect', 'loop',
        'response_too_large', 'protocol', 'signing', 'internal', 'interrupted', 'expired',
        'cancelled')) not valid;
alter table attempt
    drop constraint attempt_error_class_known,
    add constraint attempt_error_class_known check (error_class in (
        'dns', 'connect', 'tls', 'timeout', 'blocked_address', 'http_status', 'redirect', 'loop',
        'response_too_large', 'protocol', 'signing', 'internal')) not valid;
