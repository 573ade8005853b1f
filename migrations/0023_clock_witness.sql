-- The newest time that running processes agree on, noted every few seconds. A start compares the
-- database's clock with it: a clock that is far from it has jumped, or the service was off.
create table clock_witness (
    is_one       boolean     not null default true constraint clock_witness_pkey primary key,
    witnessed_at timestamptz not null,
    constraint clock_witness_is_one check (is_one)
);
