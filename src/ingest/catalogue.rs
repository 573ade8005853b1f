//! What publishing asks of an event type: that it is known where it must be, and that the payload
//! keeps to its schema.

use std::{sync::Arc, time::Duration};

use moka::sync::Cache;

use super::checks::{CheckError, Checks};
use crate::{
    domain::{
        ApplicationId, Definition, EventType, Payload, Schema,
        catalogue::DefinitionError,
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
    /// Too many checks wait, or this one took too long.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// The schema, or the check itself, does not work; it was logged.
    #[error("payloads of this type cannot be checked")]
    Broken,
}

/// What is thought of events of a type.
#[derive(Clone)]
enum Verdict {
    /// They are taken as they come.
    Free,
    /// Their payloads must keep to this schema.
    Checked(Arc<StoredSchema>),
    /// They are not taken.
    Unknown,
}

/// Schema as it is stored.
struct StoredSchema {
    /// The type's id and revision.
    key: (i64, i32),
    text: String,
}

/// What the database said about event types in the last second. Cheap to clone.
#[derive(Clone)]
pub struct Catalogue {
    verdicts: Cache<(ApplicationId, EventType), Verdict>,
    /// By the type's id and revision.
    compiled: Cache<(i64, i32), Arc<Schema>>,
    checks: Checks,
}

impl Default for Catalogue {
    fn default() -> Self {
        let weight = |schema: &Schema| u32::try_from(schema.weight_bytes()).unwrap_or(u32::MAX);
        let verdicts = Cache::builder()
            .max_capacity(KNOWN_BYTES_MAX)
            .weigher(move |_, verdict: &Verdict| match verdict {
                Verdict::Free | Verdict::Unknown => KNOWN_BYTES_EACH,
                Verdict::Checked(schema) => u32::try_from(schema.text.len())
                    .unwrap_or(u32::MAX)
                    .saturating_add(KNOWN_BYTES_EACH),
            })
            .time_to_live(KNOWN_FOR)
            .build();
        let compiled = Cache::builder()
            .max_capacity(KNOWN_BYTES_MAX)
            .weigher(move |_, schema: &Arc<Schema>| weight(schema))
            .time_to_idle(COMPILED_IDLE)
            .build();
        Self { verdicts, compiled, checks: Checks::default() }
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
                let faults = self.faults(application, schema, payload).await?;
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
            (Some(key), Some(text)) => Verdict::Checked(Arc::new(StoredSchema { key, text })),
            (Some(_), None) => Verdict::Free,
            (None, _) if found.accepts_unknown_types => Verdict::Free,
            (None, _) => Verdict::Unknown,
        };
        self.verdicts.insert(key, verdict.clone());
        Ok(verdict)
    }

    /// What is wrong with a payload, if anything.
    async fn faults(
        &self,
        application: ApplicationId,
        schema: Arc<StoredSchema>,
        payload: &Payload,
    ) -> Result<Vec<Fault>, CatalogueError> {
        let (bytes, compiled) = (payload.bytes().clone(), self.compiled.clone());
        let check = move || {
            let schema = schema.compiled(&compiled)?;
            Ok(schema.check(&bytes).err().unwrap_or_default())
        };
        self.checks.run(application, check).await?
    }

    /// Checks the definition of a type, as work of this application.
    pub async fn check(
        &self,
        application: ApplicationId,
        definition: Definition,
    ) -> Result<Result<(), DefinitionError>, CheckError> {
        self.checks.run(application, move || definition.check()).await
    }

    /// Forgets what a change has made wrong. Other processes find out within [`KNOWN_FOR`].
    pub fn forget(&self) {
        self.verdicts.invalidate_all();
    }
}

impl StoredSchema {
    /// The schema, compiled unless it is in this cache.
    fn compiled(
        &self,
        compiled: &Cache<(i64, i32), Arc<Schema>>,
    ) -> Result<Arc<Schema>, CatalogueError> {
        if let Some(schema) = compiled.get(&self.key) {
            return Ok(schema);
        }
        let schema = Schema::compile_stored(&self.text).map_err(|error| {
            // It could be compiled when it was made. To take what it may forbid would be worse.
            tracing::error!(
                event_type_id = self.key.0,
                pointer = error.pointer,
                reason = %error.reason,
                "a stored schema cannot be compiled"
            );
            CatalogueError::Broken
        })?;
        let schema = Arc::new(schema);
        compiled.insert(self.key, schema.clone());
        Ok(schema)
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
