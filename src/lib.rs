//! webhook-dispatcher: delivers webhooks from one binary beside one Postgres, and loses none.
//!
//! The code map, in the order in which an event passes:
//!
//! - [`http`] reads a request, and turns it into a submission of [`domain`];
//! - [`ingest`] routes it and stores it with others in one transaction, in [`store`];
//! - [`worker`] sends what was stored: at once from memory, or after a claim from the queue;
//! - [`delivery`] is the one HTTP exchange; [`domain`] decides what follows from it;
//! - [`store`] records it. All SQL is there.
//!
//! [`cms`] tells a content management system of results, and asks it for subscriptions. [`app`] joins
//! these, [`commands`] are the command line beside it, [`bridge`] carries MCP between
//! stdio and an instance, [`config`] reads the settings, [`sealing`] has the keys of stored secrets, and [`embedded_postgres`] is the database of the local
//! default. `docs/architecture.md` says more, and which part may use which.

pub mod domain;

pub mod store;

pub mod ingest;

pub mod delivery;

pub mod worker;

pub mod http;

pub mod app;
pub mod bridge;
pub mod clock;
pub mod cms;
pub mod commands;
pub mod config;
pub mod embedded_postgres;
pub mod peer;
pub mod probe;
pub mod sealing;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
