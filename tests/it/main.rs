//! The only integration binary: everything with Postgres, sockets or processes.

#![expect(clippy::similar_names, reason = "what a receiver received is called so")]
#![expect(clippy::type_complexity, reason = "tables of cases are tuples")]

mod support;

mod api;
mod applications;
mod attention;
mod bad_input;
mod batch;
mod budgets;
mod by_hand;
mod callers;
mod clock;
mod commands;
mod database_access;
mod database_failures;
mod delivery;
mod dispatch;
mod documents;
mod embedded_postgres;
mod erasure;
mod event_types;
mod explaining;
mod guides;
mod handshakes;
mod hostile;
mod hostile_clients;
mod idle;
mod isolation;
mod limits;
mod log;
mod mcp;
mod openapi;
mod operator_events;
mod own_faults;
mod parking;
mod partitions;
mod payload;
mod pool;
mod process;
mod queue;
mod receivers_on_request;
mod replays;
mod resolving;
mod roles;
mod routing;
mod sealing;
mod shared_hosts;
mod signing;
mod slow_database;
mod sql_publish;
mod ssrf;
mod statistics;
mod subscribed;
mod subscription_test;
mod subscriptions;
mod tidy;
mod verifiers;
mod wire;
mod worker;
