//! A webhook receiver that behaves badly on purpose, and remembers everything that it got.
//!
//! People and tests use it to see webhook-dispatcher keep its promises. It checks signatures with
//! code of its own and never depends on the `webhook-dispatcher` package: otherwise a test would
//! only prove that the sender agrees with itself.
//!
//! ```no_run
//! # async fn example() -> std::io::Result<()> {
//! use mock_receiver::{MockReceiver, Settings};
//!
//! let receiver = MockReceiver::bind(Settings { hang_rate: 0.5, ..Settings::calm() }).await?;
//! // … something POSTs to receiver.url() …
//! receiver.wait_until(|stats| stats.unique == 10).await;
//! assert!(receiver.record().iter().all(|received| received.verdict.is_good()));
//! # Ok(())
//! # }
//! ```
//!
//! # Code map
//!
//! In the order in which a request meets them:
//!
//! - `settings`: [`Settings`], from environment variables and flags, or literal in tests.
//! - `receiver`: [`MockReceiver`], the accept loop and its connections, all stopped together.
//! - `routes`: `/webhook`, `/stats` and the rest of what is always there.
//! - `on_request`: routes that always do the same. One with a new misbehaviour goes here.
//! - `wire`: what these do when HTTP is not enough: scripts, played on the bare socket.
//! - `bomb`: a gzip file that unpacks to a gibibyte.
//! - `body`: reading a request's body within bounds.
//! - `signature`: [`Secret`] and the check of both signatures. Pure; no clock.
//! - `chaos`: what will go wrong with which attempt. Pure; neither clock nor randomness.
//! - `shared`: what all requests share, behind one lock that is only ever held briefly; all limits.
//! - `exchange`: one request from its arrival to its end, whatever that end is; the log line.
//! - `ledger`: [`Stats`] and which webhook-ids were seen. Pure.
//! - `record`: [`Received`], the bounded record of what came and what was answered. Pure.
//! - [`probe`]: asks a running receiver whether it answers; for the health check of its container.
//! - `main.rs`: the command line.

mod body;
mod bomb;
mod chaos;
mod exchange;
mod ledger;
mod on_request;
pub mod probe;
mod receiver;
mod record;
mod routes;
mod settings;
mod shared;
mod signature;
mod wire;

pub use body::BODY_BYTES_MAX;
pub use chaos::{Chaos, Plan};
pub use ledger::{FAIL_FIRST_IDS_MAX, IDS_MAX, Stats};
pub use on_request::FOREVER;
pub use receiver::MockReceiver;
pub use record::{Answer, Headers, RECORD_BYTES_MAX, RECORD_ENTRIES_MAX, Received, Verdict};
pub use routes::HANG_MAX;
pub use settings::{DELAY_MAX_LIMIT, Settings, SettingsError};
pub use signature::{EmptySecret, Secret, SignatureError, TIMESTAMP_TOLERANCE, Verifier};

#[cfg(test)]
mod tests;
