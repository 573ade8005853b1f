//! The only integration binary: everything with Postgres, sockets or processes.

mod support;

mod queue;
mod tidy;
mod worker;
