//! What publishing asks of an event type: that it is known where it must be, and that the payload
//! keeps to its schema.

use std::{sync::Arc, time::Duration};

use moka::sync::Cache;
use tokio::sync::Semaphore;

use crate::{
    domain::{
        ApplicationId, EventType, Payload, Schema,
        schema::{FAULTS_MAX, Fault},
    },
    store::{Store, StoreError},
};

/// How long an answer of the database about a type is relied on: a change counts everywhere within
/// this time.
const KNOWN_FOR: Duration = Duration::from_secs(1);
/// What the types that were looked up lately may take in memory, and the compiled schemas, each.
const KNOWN_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// What a type without a schema takes of it, about.
const KNOWN_BYTES_EACH: u32 = 512;
/// How long a compiled schema that nobody asks for is kept.
const COMPILED_IDLE: Duration = Duration::from_mins(10);
/// From how much work on (objects of the schema times bytes of the payload) a check leaves the thread
/// that it is on to others: some milliseconds.
const WORK_INLINE_MAX: usize = 1_000_000;
/// How many such checks run at a time; others wait.
const LONG_CHECKS_MAX: usize = 2;

/// How an event stands to its type.
#[derive(Debug)]
pub enum Fit {
    /// It may be taken.
    Good,
    /// The application takes only types of its catalogue, and this is none.
    Unknown,
    /// Its payload is not what the schema of its type says: this is wrong, and there is something.
    Faults(Vec<Fault>),
}

/// Why it cannot be told how an event stands to its type.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// There is no such application.
    #[error("there is no such application")]
    NoApplication,
    /// The database could not be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The schema, or the check itself, does not work; it was logged.
    #[error("payloads of this type cannot be checked")]
    Broken,
}

/// What is thought of events of a type.
#[derive(Clone)]
enum Verdict {
    /// They are taken as they come.
    Free,
    /// Their payloads must keep to this.
    Checked(Arc<Schema>),
    /// They are not taken.
    Unknown,
}

/// What the database said about event types in the last second. Cheap to clone.
#[derive(Clone)]
pub struct Catalogue {
    verdicts: Cache<(ApplicationId, EventType), Verdict>,
    /// By the type's id and revision.
    compiled: Cache<(i64, i32), Arc<Schema>>,
    long_checks: Arc<Semaphore>,
}

impl Default for Catalogue {
    fn default() -> Self {
        let weight = |schema: &Schema| u32::try_from(schema.weight_bytes()).unwrap_or(u32::MAX);
        let verdicts = Cache::builder()
            .max_capacity(KNOWN_BYTES_MAX)
            .weigher(move |_, verdict: &Verdict| match verdict {
                Verdict::Free | Verdict::Unknown => KNOWN_BYTES_EACH,
                Verdict::Checked(schema) => weight(schema).saturating_add(KNOWN_BYTES_EACH),
            })
            .time_to_live(KNOWN_FOR)
            .build();
        let compiled = Cache::builder()
            .max_capacity(KNOWN_BYTES_MAX)
            .weigher(move |_, schema: &Arc<Schema>| weight(schema))
            .time_to_idle(COMPILED_IDLE)
            .build();
        Self { verdicts, compiled, long_checks: Arc::new(Semaphore::new(LONG_CHECKS_MAX)) }
    }
}

impl Catalogue {
    /// Tells how an event stands to its type.
    pub async fn fit(
        &self,
        store: &Store,
        application: ApplicationId,
        event_type: &EventType,
        payload: &Payload,
    ) -> Result<Fit, CatalogueError> {
        match self.verdict(store, application, event_type).await? {
            Verdict::Free => Ok(Fit::Good),
            Verdict::Unknown => Ok(Fit::Unknown),
            Verdict::Checked(schema) => {
                let faults = self.faults(schema, payload).await?;
                Ok(if faults.is_empty() { Fit::Good } else { Fit::Faults(faults) })
            }
        }
    }

    async fn verdict(
        &self,
        store: &Store,
        application: ApplicationId,
        event_type: &EventType,
    ) -> Result<Verdict, CatalogueError> {
        let key = (application, event_type.clone());
        if let Some(verdict) = self.verdicts.get(&key) {
            return Ok(verdict);
        }
        let found = store.published_type(application, event_type).await?;
        let found = found.ok_or(CatalogueError::NoApplication)?;
        let verdict = match (found.event_type_id.zip(found.revision), found.schema) {
            (Some(key), Some(schema)) => Verdict::Checked(self.compiled(key, &schema)?),
            (Some(_), None) => Verdict::Free,
            (None, _) if found.accepts_unknown_types => Verdict::Free,
            (None, _) => Verdict::Unknown,
        };
        self.verdicts.insert(key, verdict.clone());
        Ok(verdict)
    }

    fn compiled(&self, key: (i64, i32), text: &str) -> Result<Arc<Schema>, CatalogueError> {
        if let Some(schema) = self.compiled.get(&key) {
            return Ok(schema);
        }
        let schema = Schema::compile(text).map_err(|error| {
            // It could be compiled when it was made. To take what it may forbid would be worse.
            tracing::error!(event_type_id = key.0, ?error, "a stored schema cannot be compiled");
            CatalogueError::Broken
        })?;
        let schema = Arc::new(schema);
        self.compiled.insert(key, schema.clone());
        Ok(schema)
    }

    /// What is wrong with a payload, if anything.
    async fn faults(
        &self,
        schema: Arc<Schema>,
        payload: &Payload,
    ) -> Result<Vec<Fault>, CatalogueError> {
        let bytes = payload.bytes().clone();
        if schema.work(bytes.len()) <= WORK_INLINE_MAX {
            return Ok(schema.check(&bytes).err().unwrap_or_default());
        }
        let _permit = self.long_checks.acquire().await.map_err(|_| CatalogueError::Broken)?;
        let check = move || schema.check(&bytes).err().unwrap_or_default();
        tokio::task::spawn_blocking(check).await.map_err(|error| {
            tracing::error!(%error, "a payload could not be checked");
            CatalogueError::Broken
        })
    }

    /// Forgets what a change has made wrong. Other processes find out within [`KNOWN_FOR`].
    pub fn forget(&self) {
        self.verdicts.invalidate_all();
    }
}

/// Says what is wrong with a payload, and where: some of it, if it is much.
pub fn told(faults: &[Fault]) -> String {
    let told = faults.iter().take(FAULTS_MAX).map(|fault| match fault.pointer.as_str() {
        "" => fault.message.clone(),
        pointer => format!("at {pointer}: {}", fault.message),
    });
    told.collect::<Vec<_>>().join("; ")
}
