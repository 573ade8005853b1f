//! What this process knows of applications: their subscriptions, and the keys that sign for them.
//!
//! Accepting and sending share it. The transaction that stores an event checks the version that it
//! was routed at, so a stale entry costs a round trip there and never a wrong delivery. Sending asks
//! for what is at most a second old; what such a transaction has confirmed is as old as its statement.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::snapshot;
use crate::{
    domain::{ApplicationId, routing::Snapshot, sealing::SealingKeys},
    store::{Store, StoreError, routing_changes::Found},
};

/// How many applications are kept in memory, and subscriptions in all; beyond it everything is
/// forgotten and read again.
const APPLICATIONS_MAX: usize = 10_000;
const SUBSCRIPTIONS_MAX: usize = 1_000_000;
/// How long a snapshot counts as fresh for sending.
const FRESH_FOR: Duration = Duration::from_secs(1);
/// How many applications are read at a time.
const APPLICATIONS_PER_READ: usize = 1_000;
/// An application of which more subscriptions have changed is read apart: it must not hold up the
/// others.
const SUBSCRIPTIONS_PER_READ: i64 = 200;

/// The applications that had something to do with this process lately.
#[derive(Debug)]
pub struct Routes {
    sealing: SealingKeys,
    known: Mutex<Entries>,
    /// Those that somebody waits for. Who gets to read reads them all: of a thousand requests that
    /// need the same application, or as many applications, one asks the database.
    wanted: Mutex<HashSet<ApplicationId>>,
    /// When one of them last found the database away.
    reading: tokio::sync::Mutex<Option<Instant>>,
    /// The same for those that are read apart.
    reading_apart: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Entries {
    by_id: HashMap<ApplicationId, Known>,
    /// How many subscriptions they have together.
    subscriptions: usize,
}

impl Entries {
    fn insert(&mut self, application: ApplicationId, known: Known) {
        let more = known.subscriptions();
        let fewer = self.by_id.get(&application).map_or(0, Known::subscriptions);
        let is_full =
            self.by_id.len() >= APPLICATIONS_MAX && !self.by_id.contains_key(&application);
        if is_full || self.subscriptions - fewer + more > SUBSCRIPTIONS_MAX {
            (self.by_id, self.subscriptions) = (HashMap::new(), 0);
        }
        self.remove(application);
        self.subscriptions += more;
        self.by_id.insert(application, known);
    }

    fn remove(&mut self, application: ApplicationId) {
        if let Some(known) = self.by_id.remove(&application) {
            self.subscriptions -= known.subscriptions();
        }
    }
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
    fn subscriptions(&self) -> usize {
        self.snapshot.subscriptions().len()
    }

    fn is_fresh(&self) -> bool {
        self.read_at.is_some_and(|at| at.elapsed() < FRESH_FOR)
    }

    /// Whether it will do for sending: also while the database is away, which is not asked by every
    /// delivery that there is.
    fn will_do(&self) -> bool {
        self.is_fresh() || self.failed_at.is_some_and(|at| at.elapsed() < FRESH_FOR)
    }
}

/// What came of reading an application with others.
enum Together {
    /// What is known of it; `None` if there is no such application.
    Read(Option<Arc<Snapshot>>),
    /// So much of it has changed that it is to be read apart.
    Apart,
}

impl Routes {
    /// Nothing known yet. Secrets are opened with these keys.
    pub fn new(sealing: SealingKeys) -> Self {
        Self {
            sealing,
            known: Mutex::default(),
            wanted: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
            reading_apart: tokio::sync::Mutex::default(),
        }
    }

    /// The keys that open secrets.
    pub fn sealing(&self) -> &SealingKeys {
        &self.sealing
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, application: ApplicationId) -> Option<Known> {
        self.entries().by_id.get(&application).cloned()
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
        let is_known = |known: &Known| known.read_at.is_some();
        self.want(applications.iter().copied(), is_known);
        for &application in applications {
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

    /// Says that these applications had these versions when the database was asked, or later: what is
    /// known of them is that young, unless they are known to have changed.
    pub fn confirm(
        &self,
        versions: impl IntoIterator<Item = (ApplicationId, i64)>,
        asked_at: Instant,
    ) {
        let mut entries = self.entries();
        for (application, version) in versions {
            let known = entries.by_id.get_mut(&application);
            let Some(known) = known.filter(|known| known.snapshot.version == version) else {
                continue;
            };
            known.read_at = known.read_at.map(|at| at.max(asked_at));
        }
    }

    /// Says that these applications have changed.
    pub fn forget(&self, applications: impl IntoIterator<Item = ApplicationId>) {
        let mut entries = self.entries();
        for application in applications {
            if let Some(known) = entries.by_id.get_mut(&application) {
                known.read_at = None;
            }
        }
    }

    /// Brings applications up to date that are about to be sent for, with one statement for all that
    /// it is needed of. What is left out, or not read since the database is away, is read when it is
    /// asked for.
    pub async fn prepare(
        &self,
        store: &Store,
        applications: impl IntoIterator<Item = ApplicationId>,
    ) {
        let Some(first) = self.want(applications, Known::will_do) else { return };
        if let Err(error) = self.read_together(store, first, Known::will_do).await {
            tracing::debug!(%error, "applications are read when they are asked for");
        }
    }

    /// Notes those of the applications that are to be read, and names the first.
    fn want(
        &self,
        applications: impl IntoIterator<Item = ApplicationId>,
        will_do: impl Fn(&Known) -> bool,
    ) -> Option<ApplicationId> {
        let is_stale = |id: &ApplicationId| !self.entry(*id).is_some_and(|it| will_do(&it));
        let stale: Vec<ApplicationId> = applications.into_iter().filter(is_stale).collect();
        let first = stale.first().copied();
        self.wanted().extend(stale);
        first
    }

    /// Brings an application up to date, unless what is known will do.
    async fn read_unless(
        &self,
        store: &Store,
        application: ApplicationId,
        will_do: impl Fn(&Known) -> bool,
    ) -> Result<Option<Arc<Snapshot>>, StoreError> {
        match self.read_together(store, application, &will_do).await? {
            Together::Read(snapshot) => return Ok(snapshot),
            Together::Apart => {}
        }
        let _one_at_a_time = self.reading_apart.lock().await;
        if let Some(known) = self.entry(application).filter(will_do) {
            return Ok(Some(known.snapshot));
        }
        let (mut read, _) = self.read(store, &[application], i64::MAX - 1).await?;
        Ok(read.remove(&application))
    }

    /// The same, with all others that somebody waits for, unless it is to be read apart.
    async fn read_together(
        &self,
        store: &Store,
        application: ApplicationId,
        will_do: impl Fn(&Known) -> bool,
    ) -> Result<Together, StoreError> {
        if let Some(known) = self.entry(application).filter(&will_do) {
            return Ok(Together::Read(Some(known.snapshot)));
        }
        self.wanted().insert(application);
        let waits_since = Instant::now();
        let mut away_at = self.reading.lock().await;
        if let Some(known) = self.entry(application).filter(&will_do) {
            return Ok(Together::Read(Some(known.snapshot)));
        }
        // Whoever waited while another one found the database away does not try in its turn: a
        // thousand would do so one after the other.
        if away_at.is_some_and(|at| at > waits_since) {
            return Err(StoreError::TimedOut);
        }
        let mut applications: Vec<ApplicationId> = vec![application];
        let others = |one: &&ApplicationId| **one != application;
        applications.extend(self.wanted().iter().filter(others).take(APPLICATIONS_PER_READ - 1));
        let read = self.read(store, &applications, SUBSCRIPTIONS_PER_READ).await;
        if read.as_ref().is_err_and(StoreError::is_outage) {
            *away_at = Some(Instant::now());
        }
        let (mut read, apart) = read?;
        if apart.contains(&application) {
            return Ok(Together::Apart);
        }
        Ok(Together::Read(read.remove(&application)))
    }

    /// Brings applications up to date, and tells those that are to be read apart. Those that are
    /// missing from both do not exist.
    async fn read(
        &self,
        store: &Store,
        applications: &[ApplicationId],
        subscriptions_max: i64,
    ) -> Result<(HashMap<ApplicationId, Arc<Snapshot>>, HashSet<ApplicationId>), StoreError> {
        // Before the statement, so that an entry is never younger than it says.
        let read_at = Instant::now();
        let mut before: HashMap<ApplicationId, Arc<Snapshot>> = applications
            .iter()
            .filter_map(|&application| Some((application, self.entry(application)?.snapshot)))
            .collect();
        let versions: Vec<(ApplicationId, i64)> = applications
            .iter()
            .map(|id| (*id, before.get(id).map_or(0, |snapshot| snapshot.version)))
            .collect();
        let found = store.changes_since(&versions, subscriptions_max).await;
        if found.is_err() {
            let mut entries = self.entries();
            for application in applications {
                if let Some(known) = entries.by_id.get_mut(application) {
                    known.failed_at = Some(Instant::now());
                }
            }
        }
        let mut found = found?;
        let (mut read, mut apart) = (HashMap::new(), HashSet::new());
        for &application in applications {
            let changes = match found.remove(&application) {
                Some(Found::Changes(changes)) => changes,
                Some(Found::TooMany) => {
                    apart.insert(application);
                    continue;
                }
                None => {
                    self.entries().remove(application);
                    continue;
                }
            };
            let snapshot = match before.remove(&application) {
                Some(before) if before.version == changes.version => before,
                before => Arc::new(snapshot::changed(
                    application,
                    before.as_deref(),
                    &changes,
                    &self.sealing,
                )),
            };
            let known =
                Known { snapshot: snapshot.clone(), read_at: Some(read_at), failed_at: None };
            self.entries().insert(application, known);
            read.insert(application, snapshot);
        }
        let mut wanted = self.wanted();
        for application in applications {
            wanted.remove(application);
        }
        Ok((read, apart))
    }

    fn wanted(&self) -> MutexGuard<'_, HashSet<ApplicationId>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
