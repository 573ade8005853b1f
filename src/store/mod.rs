//! All SQL, and nothing but SQL and row types.
//!
//! Read [`queue`] first: it holds the protocol that keeps the promise. No statement here stays open
//! across an HTTP exchange, and none depends on the state of a session, so a pooler in transaction
//! mode may stand between (see [`connector`]). Exceptions: migrations, [`notify`], [`partitions`].

pub mod address;
mod alone;
pub mod api_keys;
pub mod applications;
pub mod attention;
mod changing;
mod claim;
pub mod cms_log;
pub mod cms_looks;
pub mod cms_subscriptions;
pub mod connector;
pub mod deliveries;
pub mod delivery_pages;
pub mod diagnosing;
pub mod dispatchers;
pub mod dispatches;
mod draining;
mod ending;
mod erasing;
pub mod erasures;
pub mod event_types;
pub mod events;
pub mod explaining;
mod freezing;
pub mod history;
pub mod idempotency;
mod jobs;
pub mod lane_health;
pub mod notify;
pub mod outbox;
pub mod owned;
pub mod parking;
pub mod partitions;
pub mod payload_retention;
mod pool;
pub mod queue;
pub mod readiness;
mod record;
pub mod replay_steps;
pub mod replays;
pub mod rerouting;
mod resealing;
pub mod routing_changes;
pub mod runs;
pub mod schema;
mod sealing;
mod session;
mod statement;
pub mod statistics;
pub mod subscription_changes;
pub mod subscriptions;
pub mod targets;
mod time;

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use sqlx::PgPool;

use self::{
    applications::ApplicationName,
    connector::{Connector, PoolerBetween},
    pool::Pool,
};
use crate::clock::Clock;

/// Longer than any statement of ours takes on a healthy server; a connection that exceeds it is
/// given up, since the network may have swallowed it.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);

/// So often a statement runs before Postgres has the plan that it keeps: it makes one of its own for
/// each of the first five.
const PLANS: usize = 6;

/// How long it may take to find out whether the database serves: who asks is about to decide.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Deadline of the statements that accept, claim and record. Doubles with each one that exceeds it, up
/// to [`STATEMENT_TIMEOUT`], so that a slow server is not asked in vain.
const PROMPT_TIMEOUT: Duration = Duration::from_secs(4);

/// The database.
#[derive(Debug, Clone)]
pub struct Store {
    pool: Pool,
    pace: Pace,
    /// The pool of the tests, if they have asked for it.
    test_pool: Arc<OnceLock<PgPool>>,
    /// The id or the uid of the application whose results the CMS is told of.
    cms: Option<Arc<str>>,
    /// What the database's clock is compared with.
    clock: Option<Clock>,
}

/// Why a statement did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Postgres is away, restarting, out of connections, or does not let us in: worth another try.
    /// Whether the statement took effect is unknown.
    #[error("the database does not serve: {0}")]
    Unavailable(#[source] sqlx::Error),
    /// A pooler in transaction mode is in between, and the settings do not say so.
    #[error(
        "it is the address of a pooler in transaction mode; set DATABASE_DIRECT_URL to the address of \
         Postgres itself: {0}"
    )]
    Pooled(#[source] sqlx::Error),
    /// No answer in time. Whether the statement took effect is unknown.
    #[error("the database did not answer in time")]
    TimedOut,
    /// Another transaction, one that publishes from SQL, holds an idempotency key and has not ended
    /// within the moment that is waited for it. Nothing took effect.
    #[error("an idempotency key is held by a transaction that has not ended")]
    KeyHeld,
    /// A named constraint was violated.
    #[error("the constraint {name} was violated")]
    Constraint {
        /// The constraint's name, as in the migrations.
        name: String,
    },
    /// There are as many as there may be.
    #[error("there are {count_max} {what} already")]
    Full {
        /// Of what, in the plural.
        what: &'static str,
        /// The bound.
        count_max: i64,
    },
    /// There is no partition for an id: it lies outside the days that were made.
    #[error("there is no partition for this id")]
    NoPartition,
    /// The values were refused, or what was answered could not be read: no better the next time.
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
        matches!(self, Self::Unavailable(_) | Self::Pooled(_) | Self::TimedOut | Self::KeyHeld)
    }

    /// Whether another setting is needed, because of a pooler.
    pub fn is_of_pooler(&self) -> bool {
        matches!(self, Self::Pooled(_))
    }

    /// Whether some of a batch are to blame, and the others may go without them.
    pub fn is_of_some(&self) -> bool {
        matches!(self, Self::KeyHeld) || !self.is_outage()
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
                sqlx::Error::Configuration(cause) if cause.is::<PoolerBetween>() => {
                    Self::Pooled(sqlx::Error::Configuration(cause))
                }
                // Input and output, TLS, protocol, a closed or exhausted pool.
                _ => Self::Unavailable(error),
            };
        };
        let code = refusal.code().unwrap_or_default();
        match refusal.constraint() {
            Some(name) => Self::Constraint { name: name.to_owned() },
            // Partition routing failed; no constraint is named.
            None if code == "23514" => Self::NoPartition,
            None if POOLED_CODES.contains(&code.as_ref()) => Self::Pooled(error),
            None if DATA_CLASSES.iter().any(|class| code.starts_with(class)) => {
                Self::Refused(error)
            }
            None => Self::Unavailable(error),
        }
    }
}

/// SQLSTATEs of a prepared statement that is unknown, or known already: the session is another one
/// than the one that prepared it.
const POOLED_CODES: [&str; 2] = ["26000", "42P05"];

/// The classes of SQLSTATE that blame the values of a statement, which somebody then gives up: 21
/// rows of one statement that collide, 22 data, 23 integrity, 54 a limit that they exceed.
///
/// All else is waited out, since it is not for a result to be lost, and so sent once more, because
/// a password was rotated (28P01), a grant is missing (42501) or somebody cancelled (57014). That
/// goes for undefined names and wrong syntax (42) too. No value can cause them, every statement here
/// being constant in what they concern: it is a schema that another version has changed, which heals,
/// or a mistake of ours, and then to stand still and say so harms no receiver, while giving results
/// up would send the same deliveries again and again.
const DATA_CLASSES: [&str; 4] = ["21", "22", "23", "54"];

impl Store {
    /// A store over its own pool. Connects when first used.
    pub fn connect_lazy(connector: impl Into<Connector>, connections_max: u32) -> Self {
        let pool = Pool::new(connector.into(), connections_max);
        Self { pool, pace: Pace::default(), test_pool: Arc::default(), cms: None, clock: None }
    }

    /// The same store, which has the CMS told of what ends for this application.
    #[must_use]
    pub fn telling_cms_of(self, application: &ApplicationName) -> Self {
        let name = match application {
            ApplicationName::Id(id) => id.to_string(),
            ApplicationName::Uid(uid) => uid.as_str().to_owned(),
        };
        Self { cms: Some(name.into()), ..self }
    }

    /// The same store, whose statements go by the database's clock only where this one confirms it.
    #[must_use]
    pub fn with_clock(self, clock: &Clock) -> Self {
        Self { clock: Some(clock.clone()), ..self }
    }

    /// What the statements that end deliveries are told of the CMS.
    fn cms(&self) -> Option<&str> {
        self.cms.as_deref()
    }

    /// A pool of sqlx beside the store's own, for the tests.
    pub fn pool(&self) -> &PgPool {
        let connector = self.pool.connector();
        self.test_pool.get_or_init(|| connector.test_pool(self.pool.sessions_max()))
    }

    /// Statements that a session of the store's own pool has prepared, for the tests of plans: the
    /// text, and how often it ran with a custom and with a generic plan.
    pub async fn prepared_statements(&self) -> Result<Vec<(String, i64, i64)>, StoreError> {
        let read = "select statement, custom_plans, generic_plans from pg_prepared_statements";
        Ok(sqlx::query_as(read).fetch_all(&self.pool).await?)
    }

    /// Whether Postgres answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let ping = async { Ok(sqlx::query("select 1").execute(&self.pool).await.map(|_| ())?) };
        bounded_by(PING_TIMEOUT, ping).await
    }

    /// Closes every connection, after the statements under way. Waits for some seconds at most.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// The deadline of the statements that accept, claim and record.
///
/// Each of them may run again after it: events are looked up by their ids before they are stored
/// again, and claims and results are fenced by the number of the claim.
#[derive(Debug, Clone, Default)]
struct Pace {
    /// Deadlines exceeded in a row.
    exceeded: Arc<AtomicU32>,
}

/// Runs a statement with the present deadline over it.
async fn prompt<T>(
    pace: &Pace,
    statement: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let doublings = pace.exceeded.load(Ordering::Relaxed).min(3);
    let timeout = (PROMPT_TIMEOUT * (1 << doublings)).min(STATEMENT_TIMEOUT);
    let answered = bounded_by(timeout, statement).await;
    match &answered {
        Err(StoreError::TimedOut) => {
            pace.exceeded.fetch_add(1, Ordering::Relaxed);
        }
        Ok(_) => pace.exceeded.store(0, Ordering::Relaxed),
        Err(_) => {}
    }
    answered
}

/// Runs a statement with [`STATEMENT_TIMEOUT`] over it.
async fn bounded<T>(
    statement: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    bounded_by(STATEMENT_TIMEOUT, statement).await
}

/// Runs a statement with a time-out of its own over it.
async fn bounded_by<T>(
    timeout: Duration,
    statement: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(timeout, statement).await.map_err(|_| StoreError::TimedOut)?
}

#[cfg(test)]
mod tests {
    use std::{borrow::Cow, error::Error, fmt};

    use sqlx::error::{DatabaseError, ErrorKind};

    use super::*;

    #[derive(Debug)]
    struct Refusal {
        code: &'static str,
        constraint: Option<&'static str>,
    }

    impl fmt::Display for Refusal {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.code)
        }
    }

    impl Error for Refusal {}

    impl DatabaseError for Refusal {
        fn message(&self) -> &str {
            self.code
        }

        fn code(&self) -> Option<Cow<'_, str>> {
            Some(self.code.into())
        }

        fn constraint(&self) -> Option<&str> {
            self.constraint
        }

        fn as_error(&self) -> &(dyn Error + Send + Sync + 'static) {
            self
        }

        fn as_error_mut(&mut self) -> &mut (dyn Error + Send + Sync + 'static) {
            self
        }

        fn into_error(self: Box<Self>) -> Box<dyn Error + Send + Sync + 'static> {
            self
        }

        fn kind(&self) -> ErrorKind {
            ErrorKind::Other
        }
    }

    fn error(code: &'static str, constraint: Option<&'static str>) -> StoreError {
        sqlx::Error::Database(Box::new(Refusal { code, constraint })).into()
    }

    #[test]
    fn only_what_the_values_are_to_blame_for_is_given_up() {
        let outages = [
            "08006", "25006", "25P03", "26000", "28P01", "3D000", "40001", "40P01", "42501",
            "42601", "42703", "42P01", "53300", "55000", "55P03", "57014", "57P01", "58030",
            "XX000", "",
        ];
        for code in outages {
            assert!(error(code, None).is_outage(), "{code}");
        }
        for code in ["21000", "22021", "22P02", "23502", "54000"] {
            assert!(matches!(error(code, None), StoreError::Refused(_)), "{code}");
        }
        assert!(matches!(error("23514", None), StoreError::NoPartition));
    }

    #[test]
    fn a_constraint_is_told_by_its_name() {
        let repeat = error("23505", Some("event_20261121_pkey"));
        assert!(repeat.is_repeat() && !repeat.is_outage(), "{repeat}");
        let broken = error("23514", Some("delivery_queue_interruptions"));
        assert!(matches!(broken, StoreError::Constraint { .. }) && !broken.is_repeat(), "{broken}");
    }

    #[test]
    fn what_cannot_be_read_is_no_outage_and_what_cannot_be_reached_is_one() {
        assert!(!StoreError::from(sqlx::Error::RowNotFound).is_outage());
        assert!(!StoreError::from(sqlx::Error::Decode("no uuid".into())).is_outage());
        assert!(StoreError::from(sqlx::Error::PoolTimedOut).is_outage());
        assert!(
            StoreError::from(sqlx::Error::Io(std::io::ErrorKind::BrokenPipe.into())).is_outage()
        );
        assert!(StoreError::TimedOut.is_outage());
    }
}
