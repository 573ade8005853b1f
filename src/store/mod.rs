//! All SQL, and nothing but SQL and row types.
//!
//! Read [`queue`] first: it holds the protocol that keeps the promise. No statement here stays open
//! across an HTTP exchange, and none depends on the state of a session, so a pooler in transaction
//! mode may stand between.

pub mod applications;
mod claim;
pub mod dispatchers;
pub mod events;
pub mod history;
pub mod notify;
pub mod partitions;
mod pool;
pub mod queue;
mod record;

use std::time::Duration;

use sqlx::{PgPool, postgres::PgConnectOptions};

use self::pool::Pool;

/// Longer than any statement of ours takes on a healthy server; a connection that exceeds it is
/// given up, since the network may have swallowed it.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);

/// The database.
#[derive(Debug, Clone)]
pub struct Store {
    pool: Pool,
}

/// Why a statement did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Postgres is away, restarting or out of connections: worth another try. Whether the
    /// statement took effect is unknown.
    #[error("the database cannot be reached: {0}")]
    Unavailable(#[source] sqlx::Error),
    /// No answer in [`STATEMENT_TIMEOUT`]. Whether the statement took effect is unknown.
    #[error("the database did not answer in {} s", STATEMENT_TIMEOUT.as_secs())]
    TimedOut,
    /// A named constraint was violated.
    #[error("the constraint {name} was violated")]
    Constraint {
        /// The constraint's name, as in the migrations.
        name: String,
    },
    /// There is no partition for an id: it lies outside the days that were made.
    #[error("there is no partition for this id")]
    NoPartition,
    /// Anything else that Postgres refused.
    #[error("the database refused: {0}")]
    Refused(#[source] sqlx::Error),
}

impl StoreError {
    /// Whether a row with the same id is there already.
    pub fn is_repeat(&self) -> bool {
        // Constraints of partitions carry the names of their tables.
        matches!(self, Self::Constraint { name } if name.ends_with("_pkey"))
    }

    /// Whether the statement may have taken effect all the same, and should be tried again.
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::TimedOut)
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let sqlx::Error::Database(refusal) = &error else {
            return match error {
                sqlx::Error::ColumnDecode { .. }
                | sqlx::Error::ColumnNotFound(_)
                | sqlx::Error::Decode(_)
                | sqlx::Error::Encode(_)
                | sqlx::Error::RowNotFound
                | sqlx::Error::TypeNotFound { .. } => Self::Refused(error),
                // Input and output, TLS, protocol, a closed or exhausted pool.
                _ => Self::Unavailable(error),
            };
        };
        let code = refusal.code().unwrap_or_default();
        match (code.as_ref(), refusal.constraint()) {
            (_, Some(name)) => Self::Constraint { name: name.to_owned() },
            // Partition routing failed; no constraint is named.
            ("23514", None) => Self::NoPartition,
            // 08 connection, 53 resources, 57P0x shutdown and crash, 58 system, 40 rolled back,
            // 55P03 a lock was not to be had, 25006 a standby.
            (code, None)
                if ["08", "53", "57P", "58", "40"].iter().any(|class| code.starts_with(class))
                    || ["55P03", "25006"].contains(&code) =>
            {
                Self::Unavailable(error)
            }
            _ => Self::Refused(error),
        }
    }
}

impl Store {
    /// A store over its own pool. Connects when first used.
    pub fn connect_lazy(options: PgConnectOptions, connections_max: u32) -> Self {
        let options = options.application_name("webhook-dispatcher");
        Self { pool: Pool::connect_lazy(options, connections_max) }
    }

    /// The pool, for the tests.
    pub fn pool(&self) -> &PgPool {
        self.pool.unbounded()
    }

    /// Brings the schema up to date. Safe from several processes at once.
    pub async fn migrate(&self) -> Result<(), MigrateError> {
        sqlx::migrate!().run(self.pool.unbounded()).await.map_err(MigrateError)
    }

    /// Whether Postgres answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        bounded(async { Ok(sqlx::query("select 1").execute(&self.pool).await.map(|_| ())?) }).await
    }

    /// Closes every connection, after the statements under way. Waits for some seconds at most.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// The schema could not be brought up to date.
#[derive(Debug, thiserror::Error)]
#[error("the schema could not be brought up to date: {0}")]
pub struct MigrateError(#[source] sqlx::migrate::MigrateError);

/// Runs a statement with [`STATEMENT_TIMEOUT`] over it.
async fn bounded<T>(
    statement: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(STATEMENT_TIMEOUT, statement).await.map_err(|_| StoreError::TimedOut)?
}
