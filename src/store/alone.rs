//! What one process at a time does, outside of any transaction.
//!
//! `vacuum` and `detach concurrently` cannot run in a transaction, and a lock of a session would be
//! lost in a pooler. So one connection holds the lock in a transaction, in which it does nothing
//! else, and another does the work. Both are the work's own: it may take hours, and would take the
//! places of others in the pool, and its session is set up for it.

use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection};

use super::{Store, StoreError, bounded};

/// The right to do something alone.
pub(super) struct Alone {
    guard: PgConnection,
    /// Where it is done.
    pub connection: PgConnection,
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
            let options = self.pool.unbounded().connect_options();
            let mut guard = options.connect().await?;
            sqlx::raw_sql("begin").execute(&mut guard).await?;
            let is_ours: bool = sqlx::query_scalar("select pg_try_advisory_xact_lock($1)")
                .bind(lock)
                .fetch_one(&mut guard)
                .await?;
            if !is_ours {
                return Ok(None);
            }
            let mut connection = options.connect().await?;
            sqlx::raw_sql(AssertSqlSafe(session)).execute(&mut connection).await?;
            Ok(Some(Alone { guard, connection }))
        })
        .await
    }
}

impl Alone {
    /// Gives the right back. What was done is done, however this ends.
    pub async fn end(mut self) {
        let _ = bounded(async {
            // Not left to the end of the session, which would free it later: whoever is next finds
            // it free.
            sqlx::raw_sql("rollback").execute(&mut self.guard).await?;
            Ok(())
        })
        .await;
    }
}
