//! The private Postgres of the local default: found among the installed binaries, made under
//! `DATA_DIR`, started, adopted and stopped by this process.
//!
//! ```text
//! DATA_DIR/lock            held while a service uses DATA_DIR; names its pid
//! DATA_DIR/postgres/       the cluster
//! DATA_DIR/postgres.new-*  an initdb that did not finish; removed at the next start
//! DATA_DIR/postgres.log    what Postgres says (postgres.log.1: before the last rotation)
//! DATA_DIR/run/            its socket (in /tmp where this path would be too long)
//! DATA_DIR/encryption-key  not of this module: see `crate::sealing`
//! ```
//!
//! How it lives:
//!
//! - The cluster is durable, listens on no network address, and trusts whoever may enter the
//!   socket's folder, which is the account that runs it (and root).
//! - Postgres runs in a process group of its own: Ctrl-C must reach the service alone, which drains
//!   and then calls [`EmbeddedPostgres::stop`].
//! - Dropping [`EmbeddedPostgres`] without `stop`, a crash and `kill -9` of the service all leave
//!   Postgres running. The next start finds it, proves by a connection that it serves this very
//!   folder, and goes on with it. Settings that changed in between apply at its next real start.
//! - After a crash of both, Postgres recovers by itself; the start waits for it.
//! - Postgres refuses to run as root, so root runs it as `postgres` or `nobody`.
//! - A process supervisor should signal the service alone at first (systemd: `KillMode=mixed`). A
//!   SIGTERM to all processes makes Postgres refuse new connections while the service still drains.
//!
//! - [`EmbeddedPostgres::supervise`] starts a Postgres again that has ended while the service runs,
//!   and restarts one whose programs a package upgrade has replaced.
//!
//! It never deletes a cluster, removes a lock file of Postgres only if it names no process, and never
//! signals a process that it has not proven to be the postmaster of this cluster.

mod account;
mod binaries;
mod cluster;
mod data_dir;
mod error;
mod log;
mod postmaster;
mod server;
mod settings;
mod supervisor;
mod wait;

pub use data_dir::default_data_dir;
pub use error::EmbeddedPostgresError;
pub use server::{EmbeddedPostgres, Options};
