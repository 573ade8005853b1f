//! The only integration binary: everything with Postgres, sockets or processes.

mod support;

mod api;
mod delivery;
mod embedded_postgres;
mod process;
mod queue;
mod tidy;
mod worker;
