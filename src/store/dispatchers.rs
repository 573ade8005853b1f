//! The running processes: who is alive, by the database's clock alone.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::types::PgInterval;

use super::{Store, StoreError, bounded};

/// A process's id: the owner of what it claims. A new one at each start, so that it fences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, sqlx::Type)]
#[sqlx(transparent)]
pub struct DispatcherId(i32);

impl DispatcherId {
    /// The number, for logs.
    pub fn get(self) -> i32 {
        self.0
    }

    /// Takes a number as it is, from an atomic for instance.
    pub fn from_raw(id: i32) -> Self {
        Self(id)
    }
}

/// The answer to a heartbeat.
#[derive(Debug, sqlx::FromRow)]
pub struct Heartbeat {
    /// The database's clock.
    pub database_time: DateTime<Utc>,
    /// Whether the process still counts as alive. If not, its rows may be with others already.
    pub is_registered: bool,
    /// The processes that are registered.
    pub dispatchers: Vec<i32>,
}

impl Store {
    /// Registers this process and tells its id.
    pub async fn register_dispatcher(&self) -> Result<DispatcherId, StoreError> {
        bounded(async {
            Ok(sqlx::query_scalar("insert into dispatcher default values returning dispatcher_id")
                .fetch_one(&self.pool)
                .await?)
        })
        .await
    }

    /// Says that this process is alive. Reads the clock in the same statement.
    pub async fn beat(&self, id: DispatcherId) -> Result<Heartbeat, StoreError> {
        bounded(async {
            Ok(sqlx::query_as(
                "with beat as (
                     update dispatcher set heartbeat_at = clock_timestamp()
                     where dispatcher_id = $1
                     returning dispatcher_id
                 )
                 select clock_timestamp() as database_time,
                        exists (select from beat) as is_registered,
                        array(select dispatcher_id from dispatcher) as dispatchers",
            )
            .bind(id)
            .fetch_one(&self.pool)
            .await?)
        })
        .await
    }

    /// Removes the processes that have not beaten for `silence`. Only a process whose own last
    /// beats succeeded may ask: after an outage of Postgres all beats are old.
    pub async fn bury_dispatchers(
        &self,
        silence: Duration,
    ) -> Result<Vec<DispatcherId>, StoreError> {
        bounded(async {
            let silence = PgInterval::try_from(silence).expect("whole milliseconds");
            Ok(sqlx::query_scalar(
                "delete from dispatcher where heartbeat_at < now() - $1 returning dispatcher_id",
            )
            .bind(silence)
            .fetch_all(&self.pool)
            .await?)
        })
        .await
    }

    /// Removes one process: this one at its end.
    pub async fn unregister_dispatcher(&self, id: DispatcherId) -> Result<(), StoreError> {
        bounded(async {
            sqlx::query("delete from dispatcher where dispatcher_id = $1")
                .bind(id)
                .execute(&self.pool)
                .await?;
            Ok(())
        })
        .await
    }

    /// Removes every process. Only for a private cluster, where the lock on the data folder proves
    /// that nobody else can be alive.
    pub async fn unregister_all_dispatchers(&self) -> Result<(), StoreError> {
        bounded(async {
            sqlx::query("delete from dispatcher").execute(&self.pool).await?;
            Ok(())
        })
        .await
    }

    /// The database's clock.
    pub async fn database_time(&self) -> Result<DateTime<Utc>, StoreError> {
        bounded(async {
            Ok(sqlx::query_scalar("select clock_timestamp()").fetch_one(&self.pool).await?)
        })
        .await
    }
}
