//! What the tests share: a private cluster, a database of its own for each test, the service in
//! process, and receivers.

mod app;
mod cluster;
pub mod process;
pub mod raw;
mod receiver;

/// What encrypts for the clients of the tests. The service installs it for itself, in a test that
/// runs alone perhaps too late.
pub fn install_crypto() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

pub use app::{TestApp, eventually};
pub use cluster::TestDatabase;
pub use receiver::{Answer, Receiver};
