-- The hosts that an application may call, where its operator says so; null: all that may be called at
-- all. In their normal form: `hooks.example.com`, `*.example.com`, an address. A change raises the
-- application's routing version, so that every process hears of it.
alter table application
    add column allowed_hosts text[]
        constraint application_allowed_hosts_count check (cardinality(allowed_hosts) between 1 and 100);
