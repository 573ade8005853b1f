//! What one process at a time does, outside of any transaction.
//!
//! `vacuum` and `detach concurrently` cannot run in a transaction, and a lock of a session would be
//! lost in a pooler. So one connection holds the lock in a transaction, in which it does nothing
//! else, and another does the work. Both are the work's own: it may take hours, and would take the
//! places of others in the pool, and its session is set up for it.

use std::{sync::Arc, time::Duration};

use sqlx::AssertSqlSafe;

use super::{Store, StoreError, bounded, bounded_by, session::Session};

/// The right to do something alone.
pub(super) struct Alone {
    guard: Session,
    /// Where it is done.
    pub connection: Session,
}

impl Store {
    /// Takes the right that a number stands for, which nothing else in the database uses. `session`
    /// is what the connection begins with. `None`: another process has it.
    pub(super) async fn alone(
        &self,
        lock: i64,
        session: String,
    ) -> Result<Option<Alone>, StoreError> {
        bounded(async {
            let connector = &self.pool.connector().direct();
            let mut guard = Session::open(connector, Arc::default()).await?.without_repeats();
            // It is idle for as long as the work takes.
            let begin = "set idle_in_transaction_session_timeout = 0; begin";
            sqlx::raw_sql(begin).execute(&mut guard).await?;
            let is_ours: bool = sqlx::query_scalar("select pg_try_advisory_xact_lock($1)")
                .bind(lock)
                .fetch_one(&mut guard)
                .await?;
            if !is_ours {
                guard.close().await?;
                return Ok(None);
            }
            let mut connection = Session::open(connector, Arc::default()).await?.without_repeats();
            sqlx::raw_sql(AssertSqlSafe(session)).execute(&mut connection).await?;
            Ok(Some(Alone { guard, connection }))
        })
        .await
    }
}

impl Alone {
    /// Runs the statements of each piece of work, one after the other, within `timeout` a piece, and
    /// gives the right back. Tells what was done. A piece that fails holds up no other, and the first
    /// error is told at the end.
    pub async fn work(
        mut self,
        timeout: Duration,
        work: Vec<(String, Vec<String>)>,
    ) -> Result<Vec<String>, StoreError> {
        let (mut done, mut failure) = (Vec::new(), None);
        for (name, statements) in work {
            let statements = async {
                // One by one: several in one message would be a transaction.
                for statement in statements {
                    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut self.connection).await?;
                }
                Ok(())
            };
            match bounded_by(timeout, statements).await {
                Ok(()) => done.push(name),
                // The connection is in the middle of something: no more can be done on it.
                Err(StoreError::TimedOut) => return Err(StoreError::TimedOut),
                Err(error) => {
                    tracing::debug!(%error, name, "not done");
                    failure.get_or_insert(error);
                }
            }
        }
        // What was done is done, however this ends.
        let _ = bounded(async { Ok(self.connection.close().await?) }).await;
        let _ = bounded(async {
            // Not left to the end of the session, which would free it later: whoever is next finds
            // it free.
            sqlx::raw_sql("rollback").execute(&mut self.guard).await?;
            Ok(self.guard.close().await?)
        })
        .await;
        failure.map_or(Ok(done), Err)
    }
}
