//! How lanes fare, for other processes and for the next life of this one.

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    Store, StoreError, bounded,
    dispatchers::DispatcherId,
    queue::interval,
    time::{ordered_now, settled_now},
};
use crate::domain::{ApplicationId, LaneId, pacing::Health};

/// Rows of one look. What is beyond is seen by the next one.
pub const ROWS_MAX: usize = 5_000;

/// The rows of a [`HealthRow`], given the parameter of the time. What was written in the future, by a
/// clock that was wrong, lasts for as long as it was to last.
macro_rules! health {
    ($expected:literal) => {
        concat!(
            "select lane_id, application_id, failures, told_by, updated_at,
                extract(epoch from open_until - greatest(clock.now, updated_at))::float8 as open_s,
                extract(epoch from paused_until - greatest(clock.now, updated_at))::float8
                    as paused_s
             from lane_health cross join (select ",
            ordered_now!($expected),
            " as now) as clock"
        )
    };
}

/// How a lane fares. Times are from now on, by the database's clock.
#[derive(Debug, sqlx::FromRow)]
pub struct HealthRow {
    lane_id: Uuid,
    application_id: Uuid,
    failures: i32,
    open_s: Option<f64>,
    paused_s: Option<f64>,
    /// Who wrote it.
    pub told_by: DispatcherId,
    /// When.
    pub updated_at: DateTime<Utc>,
}

impl HealthRow {
    /// As the scheduler takes it.
    pub fn health(&self) -> Health {
        let left = |s: f64| Duration::try_from_secs_f64(s.max(0.0)).unwrap_or_default();
        Health {
            lane: LaneId::from_uuid(self.lane_id),
            application: ApplicationId::from_uuid(self.application_id),
            failures: u16::try_from(self.failures).unwrap_or(u16::MAX),
            open_for: self.open_s.map(left),
            paused_for: self.paused_s.filter(|s| *s > 0.0).map(left),
        }
    }
}

impl Store {
    /// Writes how lanes fare.
    pub async fn tell_health(
        &self,
        by: DispatcherId,
        news: &mut [Health],
    ) -> Result<(), StoreError> {
        // Two processes must not wait for each other.
        news.sort_unstable_by_key(|one| one.lane);
        let column = |of: fn(&Health) -> Option<Duration>| -> Vec<Option<_>> {
            news.iter().map(|one| of(one).map(interval)).collect()
        };
        bounded(async {
            sqlx::query(TELL)
                .bind(news.iter().map(|one| one.lane.uuid()).collect::<Vec<_>>())
                .bind(news.iter().map(|one| one.application.uuid()).collect::<Vec<_>>())
                .bind(news.iter().map(|one| i32::from(one.failures)).collect::<Vec<_>>())
                .bind(column(|one| one.open_for))
                .bind(column(|one| one.paused_for))
                .bind(by)
                .bind(self.times().expected)
                .execute(&self.pool)
                .await?;
            Ok(())
        })
        .await
    }

    /// Tells how lanes fare of which something was written at or after that time; oldest first, at
    /// most [`ROWS_MAX`].
    pub async fn health_since(
        &self,
        since: Option<DateTime<Utc>>,
    ) -> Result<Vec<HealthRow>, StoreError> {
        bounded(async {
            Ok(sqlx::query_as(concat!(
                health!("$3"),
                " where updated_at >= coalesce($1, '-infinity') order by updated_at limit $2"
            ))
            .bind(since)
            .bind(i64::try_from(ROWS_MAX).unwrap_or(i64::MAX))
            .bind(self.times().expected)
            .fetch_all(&self.pool)
            .await?)
        })
        .await
    }

    /// How these lanes fare, those that do not answer well.
    pub async fn health_of(&self, lanes: &[LaneId]) -> Result<Vec<HealthRow>, StoreError> {
        bounded(async {
            Ok(sqlx::query_as(concat!(health!("$2"), " where lane_id = any($1)"))
                .bind(lanes.iter().map(|lane| lane.uuid()).collect::<Vec<_>>())
                .bind(self.times().expected)
                .fetch_all(&self.pool)
                .await?)
        })
        .await
    }

    /// How one lane fares, if it does not answer well.
    pub async fn lane_health(&self, lane: LaneId) -> Result<Option<HealthRow>, StoreError> {
        Ok(self.health_of(&[lane]).await?.pop())
    }

    /// Deletes up to `rows_max` rows that nobody has written for so long and that ask for nothing
    /// more; tells how many.
    pub async fn forget_health(&self, age: Duration, rows_max: i64) -> Result<u64, StoreError> {
        bounded(async {
            let deleted = sqlx::query(concat!(
                "delete from lane_health where lane_id in (
                     select lane_id from lane_health
                     cross join (select ",
                settled_now!("$3"),
                " as now) as settled
                     where updated_at < settled.now - $1
                       and coalesce(greatest(open_until, paused_until) < settled.now, true)
                     order by updated_at limit $2 for update of lane_health skip locked)",
            ))
            .bind(interval(age))
            .bind(rows_max)
            .bind(self.times().settled)
            .execute(&self.pool)
            .await?;
            Ok(deleted.rows_affected())
        })
        .await
    }
}

const TELL: &str = concat!(
    "insert into lane_health as known
        (lane_id, application_id, failures, open_until, paused_until, told_by, updated_at)
    select lane_id, application_id, failures, clock.now + open_for, clock.now + paused_for, $6,
           clock.now
    from unnest($1::uuid[], $2::uuid[], $3::int[], $4::interval[], $5::interval[])
        as news(lane_id, application_id, failures, open_for, paused_for)
    cross join (select ",
    ordered_now!("$7"),
    " + (clock_timestamp() - now()) as now) as clock
    on conflict (lane_id) do update
    set failures = excluded.failures, open_until = excluded.open_until,
        -- What the receiver asked of one process it asked of all; not if it was written in the future.
        paused_until = greatest(
            excluded.paused_until,
            case when known.updated_at < excluded.updated_at + interval '5 seconds'
                 then known.paused_until end
        ),
        told_by = excluded.told_by, updated_at = excluded.updated_at"
);
