//! The running processes and their heartbeats. Which of them have expired is judged by those that see
//! the heartbeats: [`crate::domain::liveness`].

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Store, StoreError, bounded, time::ordered_now};
use crate::domain::{ids::unix_ms_of, liveness::Beat};

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
    /// The heartbeat of each.
    pub heartbeats: Vec<DateTime<Utc>>,
}

impl Heartbeat {
    /// The heartbeats with the processes that they are of.
    pub fn beats(&self) -> Vec<Beat> {
        let times = self.heartbeats.iter().map(DateTime::timestamp_micros);
        self.dispatchers.iter().copied().zip(times).collect()
    }
}

/// The newest times that the database knows.
#[derive(Debug, sqlx::FromRow)]
struct Newest {
    witnessed_at: Option<DateTime<Utc>>,
    heartbeat_at: Option<DateTime<Utc>>,
    queued: Option<Uuid>,
    attempted: Option<Uuid>,
    stored: Option<Uuid>,
}

impl Store {
    /// Registers this process and tells its id.
    pub async fn register_dispatcher(&self) -> Result<DispatcherId, StoreError> {
        bounded(async {
            Ok(sqlx::query_scalar(concat!(
                "insert into dispatcher (heartbeat_at) select ",
                ordered_now!("$1"),
                " returning dispatcher_id"
            ))
            .bind(self.times().expected)
            .fetch_one(&self.pool)
            .await?)
        })
        .await
    }

    /// Says that this process is alive. Reads the clock in the same statement.
    pub async fn beat(&self, id: DispatcherId) -> Result<Heartbeat, StoreError> {
        bounded(async {
            let times = self.times();
            Ok(sqlx::query_as(concat!(
                "with beat as (
                     update dispatcher set heartbeat_at = greatest(",
                ordered_now!("$2"),
                // Each differs from the one before, whatever the clock says.
                ", heartbeat_at + interval '1 microsecond')
                     where dispatcher_id = $1
                     returning dispatcher_id
                 ),
                 witness as (
                     insert into clock_witness (witnessed_at) select $3 where $3 is not null
                     on conflict (is_one) do update set witnessed_at = excluded.witnessed_at
                     -- Once in a while, for all processes.
                     where abs(extract(epoch from
                               excluded.witnessed_at - clock_witness.witnessed_at)) > 5
                 ),
                 peers as materialized (
                     select array_agg(dispatcher_id order by dispatcher_id) as ids,
                            array_agg(heartbeat_at order by dispatcher_id) as beats
                     from dispatcher
                 )
                 select clock_timestamp() as database_time,
                        exists (select from beat) as is_registered,
                        coalesce(ids, '{}') as dispatchers, coalesce(beats, '{}') as heartbeats
                 from peers",
            ))
            .bind(id)
            .bind(times.expected)
            .bind(times.settled)
            .fetch_one(&self.pool)
            .await?)
        })
        .await
    }

    /// Removes processes whose heartbeats have stopped, each with the last one that was seen: one that
    /// has beaten since stays.
    pub async fn bury_dispatchers(
        &self,
        stopped: &[Beat],
    ) -> Result<Vec<DispatcherId>, StoreError> {
        let (ids, beats): (Vec<i32>, Vec<Option<DateTime<Utc>>>) = stopped
            .iter()
            .map(|&(id, beat_us)| (id, DateTime::from_timestamp_micros(beat_us)))
            .unzip();
        bounded(async {
            Ok(sqlx::query_scalar(
                "delete from dispatcher d
                 using unnest($1::int[], $2::timestamptz[]) as stopped(dispatcher_id, beat)
                 where d.dispatcher_id = stopped.dispatcher_id and d.heartbeat_at = stopped.beat
                 returning d.dispatcher_id",
            )
            .bind(ids)
            .bind(beats)
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

    /// The newest time that a process before this one knew: the one that processes note, else that of
    /// the newest heartbeats and ids. `None` in a new database.
    pub async fn newest_known_time(&self) -> Result<Option<DateTime<Utc>>, StoreError> {
        let newest: Newest = bounded(async {
            Ok(sqlx::query_as(
                "select (select witnessed_at from clock_witness) as witnessed_at,
                        (select max(heartbeat_at) from dispatcher) as heartbeat_at,
                        (select delivery_id from delivery_queue
                         order by delivery_id desc limit 1) as queued,
                        (select delivery_id from attempt
                         order by delivery_id desc limit 1) as attempted,
                        (select event_id from event_payload
                         order by event_id desc limit 1) as stored",
            )
            .fetch_one(&self.pool)
            .await?)
        })
        .await?;
        if newest.witnessed_at.is_some() {
            return Ok(newest.witnessed_at);
        }
        let ids = [newest.queued, newest.attempted, newest.stored].into_iter().flatten();
        let times = ids.filter_map(|id| {
            DateTime::from_timestamp_millis(i64::try_from(unix_ms_of(id)).unwrap_or_default())
        });
        Ok(times.chain(newest.heartbeat_at).max())
    }

    /// The database's clock.
    pub async fn database_time(&self) -> Result<DateTime<Utc>, StoreError> {
        bounded(async {
            Ok(sqlx::query_scalar("select clock_timestamp()").fetch_one(&self.pool).await?)
        })
        .await
    }
}
