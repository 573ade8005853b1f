//! What all requests of one receiver share.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::body::{BODY_BYTES_MAX, BODY_READ_MAX};
use crate::chaos::Chaos;
use crate::ledger::{IDS_MAX, Ledger};
use crate::on_request::FOREVER;
use crate::record::{RECORD_BYTES_MAX, RECORD_ENTRIES_MAX, Record};
use crate::routes::HANG_MAX;
use crate::settings::Settings;
use crate::signature::Verifier;

/// One receiver, as its requests see it.
pub(crate) struct Shared {
    /// As given, but with the seed that is used.
    pub(crate) settings: Settings,
    pub(crate) limits: Limits,
    pub(crate) chaos: Chaos,
    pub(crate) verifier: Verifier,
    /// A std mutex: held for some map operations and never across an await.
    ledger: Mutex<Ledger>,
    /// Notified after each change of the ledger.
    changed: Notify,
}

/// The bounds of a receiver, which only its own tests change.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) body_bytes: usize,
    pub(crate) body_read: Duration,
    pub(crate) hang: Duration,
    pub(crate) forever: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: BODY_BYTES_MAX,
            body_read: BODY_READ_MAX,
            hang: HANG_MAX,
            forever: FOREVER,
        }
    }
}

impl Shared {
    pub(crate) fn new(settings: Settings, limits: Limits) -> Self {
        let seed = settings.seed.unwrap_or_else(rand::random);
        let record = Record::new(RECORD_ENTRIES_MAX, RECORD_BYTES_MAX);
        Self {
            chaos: Chaos::new(&settings, seed),
            verifier: Verifier::new(&settings.secret),
            settings: Settings { seed: Some(seed), ..settings },
            limits,
            ledger: Mutex::new(Ledger::new(record, IDS_MAX)),
            changed: Notify::new(),
        }
    }

    /// Looks at the ledger.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&Ledger) -> T) -> T {
        // A panic under the lock leaves counts that are off by one at worst; going on is better
        // than failing all further requests, also those that are just being dropped.
        look(&self.ledger.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the ledger, and tells those who wait in [`Self::wait_until`].
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Ledger) -> T) -> T {
        let result = change(&mut self.ledger.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_waiters();
        result
    }

    /// Waits until `condition` returns something.
    pub(crate) async fn wait_until<T>(&self, mut condition: impl FnMut() -> Option<T>) -> T {
        let mut changed = std::pin::pin!(self.changed.notified());
        loop {
            // Register first, then look: a change between the two is not missed.
            changed.as_mut().enable();
            if let Some(result) = condition() {
                return result;
            }
            changed.as_mut().await;
            changed.set(self.changed.notified());
        }
    }
}
