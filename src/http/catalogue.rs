//! What publishing asks of an event type: that it is known where it must be, and that the payload
//! keeps to its schema.

use std::{sync::Arc, time::Duration};

use moka::sync::Cache;
use tokio::sync::Semaphore;

use super::{
    ApiError,
    json::pointer_to,
    names,
    problem::{Place, Problem},
};
use crate::{
    domain::{
        ApplicationId, EventType, Payload, Schema,
        schema::{FAULTS_MAX, Fault},
    },
    store::Store,
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
/// Among how many names the one is looked for that an unknown type may have been meant to be.
const NEAR_NAMES_MAX: i64 = 1_000;

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
    /// Refuses an event of a type that is unknown where it must not be, and a payload that is not
    /// what its type says.
    pub async fn check(
        &self,
        store: &Store,
        application: ApplicationId,
        event_type: &EventType,
        payload: &Payload,
    ) -> Result<(), Problem> {
        match self.verdict(store, application, event_type).await? {
            Verdict::Free => Ok(()),
            Verdict::Unknown => Err(unknown(store, application, event_type).await?),
            Verdict::Checked(schema) => {
                let faults = self.faults(schema, payload).await?;
                if faults.is_empty() { Ok(()) } else { Err(refused(event_type, &faults)) }
            }
        }
    }

    async fn verdict(
        &self,
        store: &Store,
        application: ApplicationId,
        event_type: &EventType,
    ) -> Result<Verdict, ApiError> {
        let key = (application, event_type.clone());
        if let Some(verdict) = self.verdicts.get(&key) {
            return Ok(verdict);
        }
        let found = store.published_type(application, event_type).await?;
        let found = found.ok_or(ApiError::ApplicationNotFound(None))?;
        let verdict = match (found.event_type_id.zip(found.revision), found.schema) {
            (Some(key), Some(schema)) => Verdict::Checked(self.compiled(key, &schema)?),
            (Some(_), None) => Verdict::Free,
            (None, _) if found.accepts_unknown_types => Verdict::Free,
            (None, _) => Verdict::Unknown,
        };
        self.verdicts.insert(key, verdict.clone());
        Ok(verdict)
    }

    fn compiled(&self, key: (i64, i32), text: &str) -> Result<Arc<Schema>, ApiError> {
        if let Some(schema) = self.compiled.get(&key) {
            return Ok(schema);
        }
        let schema = Schema::compile(text).map_err(|error| {
            // It could be compiled when it was made. To take what it may forbid would be worse.
            tracing::error!(event_type_id = key.0, ?error, "a stored schema cannot be compiled");
            ApiError::Internal
        })?;
        let schema = Arc::new(schema);
        self.compiled.insert(key, schema.clone());
        Ok(schema)
    }

    /// What is wrong with a payload, if anything.
    async fn faults(&self, schema: Arc<Schema>, payload: &Payload) -> Result<Vec<Fault>, ApiError> {
        let bytes = payload.bytes().clone();
        if schema.work(bytes.len()) <= WORK_INLINE_MAX {
            return Ok(schema.check(&bytes).err().unwrap_or_default());
        }
        let _permit = self.long_checks.acquire().await.map_err(|_| ApiError::Internal)?;
        let check = move || schema.check(&bytes).err().unwrap_or_default();
        tokio::task::spawn_blocking(check).await.map_err(|error| {
            tracing::error!(%error, "a payload could not be checked");
            ApiError::Internal
        })
    }

    /// Forgets what a change has made wrong. Other processes find out within [`KNOWN_FOR`].
    pub fn forget(&self) {
        self.verdicts.invalidate_all();
    }
}

fn refused(event_type: &EventType, faults: &[Fault]) -> Problem {
    let told = faults.iter().take(FAULTS_MAX).map(|fault| match fault.pointer.as_str() {
        "" => fault.message.clone(),
        pointer => format!("at {pointer}: {}", fault.message),
    });
    let told = told.collect::<Vec<_>>().join("; ");
    let event_type = event_type.as_str().to_owned();
    let first = faults.first().map_or("", |fault| fault.pointer.as_str());
    let place = Place::Pointer(format!("{}{first}", pointer_to("payload")));
    ApiError::PayloadRefused { event_type, faults: told }.at(place)
}

/// Says which type may have been meant.
async fn unknown(
    store: &Store,
    application: ApplicationId,
    event_type: &EventType,
) -> Result<Problem, ApiError> {
    let known = store.event_type_names(application, NEAR_NAMES_MAX).await?;
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let meant = names::near_miss(event_type.as_str(), &known).map(str::to_owned);
    let event_type = event_type.as_str().to_owned();
    let place = Place::Pointer(pointer_to("type"));
    Ok(ApiError::UnknownEventType { event_type, meant }.at(place))
}
