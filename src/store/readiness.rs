//! Readiness: the experience of a writer, by a session of the pool.

use std::time::Duration;

use super::{
    Store, StoreError, bounded_by,
    connector::is_read_only,
    pool::PooledSession,
    session::{has_timed_out, is_of_library},
};

/// Maximum time of the answer. Shorter than the patience of most probes.
const READY_TIMEOUT: Duration = Duration::from_millis(1_800);

/// Loads the library of PL/pgSQL, which functions of the schema need.
const USE_LIBRARY: &str = "do $$ begin end $$";
/// Fails where a session must not write, where the role may not, and where there is no table. Changes
/// nothing.
const WRITE_NOTHING: &str = "with nothing as (delete from dispatcher where false returning 1)
                             select coalesce(max(version), 0) from _sqlx_migrations where success";

/// The reason why no event could be stored now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unready {
    /// A server in recovery, or a role or database that is set to read only.
    #[error("sessions of the database are read-only (25006): it is a standby, or set to read only")]
    ReadOnly,
    /// A wrong or changed password.
    #[error("the database does not accept the role or its password ({0}): see DATABASE_URL")]
    NotAuthorized(String),
    /// A file of the server is missing or of another version.
    #[error(
        "the database cannot load one of its libraries ({0}): restart Postgres if its package was \
         upgraded"
    )]
    Library(String),
    /// The bound of the server, the database or the role is reached.
    #[error("the database accepts no more connections (53300)")]
    TooManyConnections,
    /// It starts, stops, or recovers.
    #[error("the database is starting or stopping (57P03)")]
    Starting,
    /// Nothing listens, or the network does not lead there.
    #[error("the database cannot be reached")]
    Unreachable,
    /// It answers too late, or not at all.
    #[error("the database does not answer within {} ms", READY_TIMEOUT.as_millis())]
    TooSlow,
    /// The schema is older than this version of the service.
    #[error("the schema is at migration {applied}, and this version needs {needed}")]
    NotMigrated {
        /// The newest migration of the database.
        applied: i64,
        /// The newest migration of this version.
        needed: i64,
    },
    /// Another refusal, by its SQLSTATE.
    #[error("the database refuses to store events ({0})")]
    Refused(String),
}

impl Store {
    /// Whether an event could be stored now.
    pub async fn readiness(&self) -> Result<(), Unready> {
        let attempts = async {
            match self.write_nothing().await {
                // A session that was lost in that moment says nothing about the next one.
                Err(error) if error.is_outage() => self.write_nothing().await,
                answered => answered,
            }
        };
        let needed = sqlx::migrate!().iter().map(|one| one.version).max().unwrap_or_default();
        match bounded_by(READY_TIMEOUT, attempts).await {
            Ok(applied) if applied < needed => Err(Unready::NotMigrated { applied, needed }),
            Ok(_) => Ok(()),
            Err(error) => Err(reason(&error)),
        }
    }

    /// Does what a writer does, and changes nothing. The newest migration.
    async fn write_nothing(&self) -> Result<i64, StoreError> {
        let mut session: PooledSession = self.pool.acquire().await?;
        sqlx::raw_sql(USE_LIBRARY).execute(&mut *session).await?;
        Ok(sqlx::query_scalar(WRITE_NOTHING).fetch_one(&mut *session).await?)
    }
}

fn reason(error: &StoreError) -> Unready {
    let (StoreError::Unavailable(error) | StoreError::Refused(error)) = error else {
        return Unready::TooSlow;
    };
    if is_read_only(error) {
        return Unready::ReadOnly;
    }
    let sqlx::Error::Database(refusal) = error else {
        let is_slow = has_timed_out(error) || matches!(error, sqlx::Error::PoolTimedOut);
        return if is_slow { Unready::TooSlow } else { Unready::Unreachable };
    };
    let code = refusal.code().unwrap_or_default().into_owned();
    match code.as_str() {
        _ if is_of_library(error) => Unready::Library(code),
        "25006" => Unready::ReadOnly,
        "53300" => Unready::TooManyConnections,
        "57P01" | "57P02" | "57P03" => Unready::Starting,
        _ if code.starts_with("28") => Unready::NotAuthorized(code),
        _ if code.starts_with("08") => Unready::Unreachable,
        _ => Unready::Refused(code),
    }
}
