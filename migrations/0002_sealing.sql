-- Secrets are sealed at rest. The keys (ENCRYPTION_KEY) are in no table, and so in no backup of one.

create table sealing_check (
    -- There is one row, and never a second.
    is_only   boolean     not null default true constraint sealing_check_pkey primary key,
    -- A value that every process opens before it does anything else. Whoever cannot has other keys
    -- than those who sealed what is here, and does not start. src/domain/sealing.rs has the format.
    sealed    bytea       not null,
    sealed_at timestamptz not null default now(),
    constraint sealing_check_is_only check (is_only),
    -- 45 bytes are version, key id, nonce and tag.
    constraint sealing_check_sealed_length check (length(sealed) between 45 and 255)
);
