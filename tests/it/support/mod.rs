//! What the tests share: a private cluster, a database of its own for each test, the service in
//! process, and receivers.

mod app;
mod cluster;
pub mod dns;
pub mod payload;
pub mod process;
pub mod raw;
mod receiver;
mod stepped;
pub mod stored;
pub mod tls;
pub mod tools;

pub use app::{TestApp, config, eventually};
pub use cluster::{TestDatabase, TestServer};
pub use receiver::{Answer, Received, Receiver};
pub use stepped::SteppedClock;
