//! What this process knows of applications: their subscriptions, and the keys that sign for them.
//!
//! Accepting and sending share it. The transaction that stores an event checks the version that it
//! was routed at, so a stale entry costs a round trip there and never a wrong delivery. Sending asks
//! for what is at most a second old.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::snapshot;
use crate::{
    domain::{ApplicationId, routing::Snapshot, sealing::SealingKeys},
    store::{Store, StoreError},
};

/// How many applications are kept in memory, and subscriptions in all; beyond it everything is
/// forgotten and read again.
const APPLICATIONS_MAX: usize = 10_000;
const SUBSCRIPTIONS_MAX: usize = 1_000_000;
/// How long a snapshot counts as fresh for sending.
const FRESH_FOR: Duration = Duration::from_secs(1);

/// The applications that had something to do with this process lately.
#[derive(Debug)]
pub struct Routes {
    sealing: SealingKeys,
    known: Mutex<HashMap<ApplicationId, Known>>,
    /// One reads at a time: of a thousand requests that need the same, one asks the database.
    reading: tokio::sync::Mutex<()>,
}

#[derive(Debug, Clone)]
struct Known {
    snapshot: Arc<Snapshot>,
    /// `None`: it was found stale.
    read_at: Option<Instant>,
    /// When it could last not be brought up to date.
    failed_at: Option<Instant>,
}

impl Known {
    fn is_fresh(&self) -> bool {
        self.read_at.is_some_and(|at| at.elapsed() < FRESH_FOR)
    }

    /// Whether it will do for sending: also while the database is away, which is not asked by every
    /// delivery that there is.
    fn will_do(&self) -> bool {
        self.is_fresh() || self.failed_at.is_some_and(|at| at.elapsed() < FRESH_FOR)
    }
}

impl Routes {
    /// Nothing known yet. Secrets are opened with these keys.
    pub fn new(sealing: SealingKeys) -> Self {
        Self { sealing, known: Mutex::default(), reading: tokio::sync::Mutex::default() }
    }

    /// The keys that open secrets.
    pub fn sealing(&self) -> &SealingKeys {
        &self.sealing
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<ApplicationId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, application: ApplicationId) -> Option<Known> {
        self.entries().get(&application).cloned()
    }

    /// The snapshot of an application, of whatever age, if it is in memory.
    pub fn known(&self, application: ApplicationId) -> Option<Arc<Snapshot>> {
        self.entry(application).map(|known| known.snapshot)
    }

    /// Reads the applications that are not in memory, and those that were found stale. Those that do
    /// not exist are unknown afterwards.
    pub async fn learn(
        &self,
        store: &Store,
        applications: &[ApplicationId],
    ) -> Result<(), StoreError> {
        for &application in applications {
            let is_known = |known: &Known| known.read_at.is_some();
            self.read_unless(store, application, is_known).await?;
        }
        Ok(())
    }

    /// The snapshot of an application, at most [`FRESH_FOR`] old unless the database could not be
    /// asked meanwhile; `None` if there is no such application.
    pub async fn fresh(
        &self,
        store: &Store,
        application: ApplicationId,
    ) -> Result<Option<Arc<Snapshot>>, StoreError> {
        self.read_unless(store, application, Known::will_do).await
    }

    /// The snapshot of an application as it is now.
    pub async fn latest(
        &self,
        store: &Store,
        application: ApplicationId,
    ) -> Result<Option<Arc<Snapshot>>, StoreError> {
        let asked_at = Instant::now();
        let is_later = |known: &Known| known.read_at.is_some_and(|at| at > asked_at);
        self.read_unless(store, application, is_later).await
    }

    /// Says that these applications have changed.
    pub fn forget(&self, applications: impl IntoIterator<Item = ApplicationId>) {
        let mut entries = self.entries();
        for application in applications {
            if let Some(known) = entries.get_mut(&application) {
                known.read_at = None;
            }
        }
    }

    /// Brings an application up to date, unless what is known will do.
    async fn read_unless(
        &self,
        store: &Store,
        application: ApplicationId,
        will_do: impl Fn(&Known) -> bool,
    ) -> Result<Option<Arc<Snapshot>>, StoreError> {
        if let Some(known) = self.entry(application).filter(&will_do) {
            return Ok(Some(known.snapshot));
        }
        let _one_at_a_time = self.reading.lock().await;
        let before = self.entry(application);
        if let Some(known) = before.clone().filter(&will_do) {
            return Ok(Some(known.snapshot));
        }
        // Before the statement, so that an entry is never younger than it says.
        let read_at = Instant::now();
        let before = before.map(|known| known.snapshot);
        let version = before.as_ref().map_or(0, |snapshot| snapshot.version);
        let changes = store.changes_since(application, version).await;
        if changes.is_err()
            && let Some(known) = self.entries().get_mut(&application)
        {
            known.failed_at = Some(Instant::now());
        }
        let Some(changes) = changes? else {
            self.entries().remove(&application);
            return Ok(None);
        };
        let snapshot = match before {
            Some(before) if before.version == changes.version => before,
            before => {
                Arc::new(snapshot::changed(application, before.as_deref(), &changes, &self.sealing))
            }
        };
        self.keep(
            application,
            Known { snapshot: snapshot.clone(), read_at: Some(read_at), failed_at: None },
        );
        Ok(Some(snapshot))
    }

    fn keep(&self, application: ApplicationId, known: Known) {
        let mut entries = self.entries();
        let subscriptions = |known: &Known| known.snapshot.subscriptions().len();
        let is_full = !entries.contains_key(&application)
            && (entries.len() >= APPLICATIONS_MAX
                || subscriptions(&known) + entries.values().map(subscriptions).sum::<usize>()
                    > SUBSCRIPTIONS_MAX);
        if is_full {
            entries.clear();
        }
        entries.insert(application, known);
    }
}
