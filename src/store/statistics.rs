//! Statistics: one row per lane and minute, added to while the minute lasts, and one per lane and hour.
//!
//! What reaches back far is read from the hours: a week of minutes is thousands of rows, each on a page
//! of its own.

use std::time::Duration;

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use sqlx::FromRow;
use uuid::Uuid;

use super::{Store, StoreError, bounded, queue::interval, session::Session, time::settled_now};
use crate::domain::{
    ApplicationId, LaneId, SubscriptionId,
    statistics::{Counts, Durations},
};

/// How many minutes one answer sums up at most: a week of them.
pub const MINUTES_MAX: i64 = 7 * 24 * 60;
/// How many rows of hours that takes, with the one that has begun.
const HOURS_MAX: i64 = MINUTES_MAX / 60 + 1;
/// How many rows of the queue, oldest first, are looked at for the oldest of an application.
const QUEUE_SCANNED_MAX: i64 = 10_000;

/// What is to be added to a minute, or an hour, of a lane.
#[derive(Debug, Clone)]
pub struct PeriodOfLane {
    /// A lane, or an application, whose sum it is then.
    pub lane: Uuid,
    /// When the minute, or the hour, began.
    pub begins_at: DateTime<Utc>,
    /// What was done.
    pub counts: Counts,
}

/// What was done over some time.
#[derive(Debug, Default, PartialEq)]
pub struct Sums {
    /// Attempts.
    pub attempts: i64,
    /// Attempts that failed.
    pub failed: i64,
    /// Deliveries that ended as `delivered`.
    pub delivered: i64,
    /// Deliveries that died.
    pub dead: i64,
    /// Deliveries that were cancelled.
    pub cancelled: i64,
    /// How long the attempts took.
    pub durations: Durations,
}

/// How a lane has fared lately.
#[derive(Debug, Default, FromRow)]
pub struct Lately {
    /// When its receiver last said 2xx.
    pub last_delivered_at: Option<DateTime<Utc>>,
    /// When the latest attempt failed that did.
    pub last_failed_at: Option<DateTime<Utc>>,
    /// Of that attempt: an error class.
    pub last_error: Option<String>,
    /// The same for people.
    pub last_message: Option<String>,
    /// What was answered.
    pub last_status: Option<i16>,
    /// Since when nothing but failures was recorded; `None`: the latest attempt succeeded.
    pub failing_since: Option<DateTime<Utc>>,
    /// How many attempts failed since then.
    pub failure_streak: i64,
}

#[derive(FromRow)]
struct PeriodRow {
    attempts: i32,
    failed: i32,
    delivered: i32,
    dead: i32,
    cancelled: i32,
    durations: Vec<i32>,
}

impl Store {
    /// Adds to minutes, and to their hours, in one transaction. No lane may be there twice for the
    /// same minute.
    pub async fn add_statistics(&self, minutes: &mut [PeriodOfLane]) -> Result<(), StoreError> {
        // Two processes must not wait for each other.
        minutes.sort_unstable_by_key(|one| (one.lane, one.begins_at));
        let hours = hours_of(minutes);
        bounded(async {
            let mut connection = self.pool.acquire().await?;
            let mut transaction = connection.begin().await?;
            add(&mut transaction, ADD_TO_MINUTES, minutes).await?;
            add(&mut transaction, ADD_TO_HOURS, &hours).await?;
            Ok(transaction.commit().await?)
        })
        .await
    }

    /// Sums up what was done for a lane since the minute of a time, which is at most [`MINUTES_MAX`]
    /// ago.
    pub async fn sums(&self, lane: Uuid, since: DateTime<Utc>) -> Result<Sums, StoreError> {
        let first_minute = floor(since, TimeDelta::minutes(1));
        let hour = floor(since, TimeDelta::hours(1));
        let first_hour = if hour == first_minute { hour } else { hour + TimeDelta::hours(1) };
        bounded(async {
            let rows: Vec<PeriodRow> = sqlx::query_as(
                "select attempts, failed, delivered, dead, cancelled, durations from lane_minute
                 where lane_id = $1 and minute >= $2 and minute < $3
                 union all
                 (select attempts, failed, delivered, dead, cancelled, durations from lane_hour
                  where lane_id = $1 and hour >= $3 order by hour desc limit $4)",
            )
            .bind(lane)
            .bind(first_minute)
            .bind(first_hour)
            .bind(HOURS_MAX)
            .fetch_all(&self.pool)
            .await?;
            let mut sums = Sums::default();
            for row in rows {
                sums.attempts += i64::from(row.attempts);
                sums.failed += i64::from(row.failed);
                sums.delivered += i64::from(row.delivered);
                sums.dead += i64::from(row.dead);
                sums.cancelled += i64::from(row.cancelled);
                sums.durations.merge(&Durations::from_counts(&row.durations));
            }
            Ok(sums)
        })
        .await
    }

    /// How a lane has fared lately.
    pub async fn lately(&self, lane: Uuid) -> Result<Lately, StoreError> {
        bounded(async { Ok(sqlx::query_as(LATELY).bind(lane).fetch_one(&self.pool).await?) }).await
    }

    /// For how long nothing but failures was recorded of a subscription, at its current revision;
    /// `None`: the latest attempt succeeded, or there is none.
    pub async fn failing_for(&self, id: SubscriptionId) -> Result<Option<Duration>, StoreError> {
        let lately = self.lately(id.lane().uuid()).await?;
        let Some(since) = lately.failing_since else { return Ok(None) };
        bounded(async {
            let seconds: Option<f64> = sqlx::query_scalar(concat!(
                "select extract(epoch from settled.now - greatest(
                     -- One that was changed in the future was changed while the clock was wrong.
                     case when updated_at <= now() + interval '5 seconds' then updated_at end,
                     $2))::float8
                 from subscription cross join (select ",
                settled_now!("$3"),
                " as now) as settled
                 where subscription_id = $1 and deleted_at is null",
            ))
            .bind(id.uuid())
            .bind(since)
            .bind(self.times().settled)
            .fetch_optional(&self.pool)
            .await?;
            Ok(seconds.map(|seconds| Duration::from_secs_f64(seconds.max(0.0))))
        })
        .await
    }

    /// Since when the oldest delivery of a lane is due that waits in the queue.
    pub async fn oldest_due(&self, lane: LaneId) -> Result<Option<DateTime<Utc>>, StoreError> {
        bounded(async {
            Ok(sqlx::query_scalar(
                "select due_at from delivery_queue
                 where lane_id = $1 and owner is null and due_at <= now()
                 order by lane_id, due_at limit 1",
            )
            .bind(lane.uuid())
            .fetch_optional(&self.pool)
            .await?)
        })
        .await
    }

    /// The same for all lanes of an application, as far as it is among the oldest
    /// [`QUEUE_SCANNED_MAX`] of the queue.
    pub async fn oldest_due_of(
        &self,
        application: ApplicationId,
    ) -> Result<Option<DateTime<Utc>>, StoreError> {
        bounded(async {
            Ok(sqlx::query_scalar(
                "select min(due_at) from (
                     select application_id, owner, due_at from delivery_queue
                     order by delivery_id limit $2
                 ) as oldest
                 where application_id = $1 and owner is null and due_at <= now()",
            )
            .bind(application.uuid())
            .bind(QUEUE_SCANNED_MAX)
            .fetch_one(&self.pool)
            .await?)
        })
        .await
    }

    /// Deletes up to `rows_max` minutes, and as many hours, that are older than this; tells how many
    /// minutes.
    pub async fn forget_statistics(&self, age: Duration, rows_max: i64) -> Result<u64, StoreError> {
        bounded(async {
            let mut deleted = 0;
            for statement in [FORGET_HOURS, FORGET_MINUTES] {
                let done = sqlx::query(statement)
                    .bind(interval(age))
                    .bind(rows_max)
                    .bind(self.times().settled);
                deleted = done.execute(&self.pool).await?.rows_affected();
            }
            Ok(deleted)
        })
        .await
    }
}

/// The beginning of the minute, or the hour, that a time is in.
fn floor(at: DateTime<Utc>, length: TimeDelta) -> DateTime<Utc> {
    at.duration_trunc(length).unwrap_or(at)
}

/// The hours of minutes that are in order.
fn hours_of(minutes: &[PeriodOfLane]) -> Vec<PeriodOfLane> {
    let mut hours: Vec<PeriodOfLane> = Vec::new();
    for minute in minutes {
        let begins_at = floor(minute.begins_at, TimeDelta::hours(1));
        match hours.last_mut() {
            Some(hour) if (hour.lane, hour.begins_at) == (minute.lane, begins_at) => {
                hour.counts.merge(minute.counts.clone());
            }
            _ => hours.push(PeriodOfLane { begins_at, ..minute.clone() }),
        }
    }
    hours
}

/// Adds to rows of one of the tables; they are in the order of its key.
async fn add(
    connection: &mut Session,
    statement: &'static str,
    periods: &[PeriodOfLane],
) -> Result<(), StoreError> {
    let all = |of: fn(&Counts) -> u32| -> Vec<i32> {
        periods.iter().map(|one| i32::try_from(of(&one.counts)).unwrap_or(i32::MAX)).collect()
    };
    let failures = || periods.iter().map(|one| one.counts.last_failure.as_ref());
    let durations = periods.iter().map(|one| {
        let counts = one.counts.durations.counts().map(|count| count.to_string());
        format!("{{{}}}", counts.join(","))
    });
    sqlx::query(statement)
        .bind(periods.iter().map(|one| one.lane).collect::<Vec<_>>())
        .bind(periods.iter().map(|one| one.begins_at).collect::<Vec<_>>())
        .bind(all(|counts| counts.attempts))
        .bind(all(|counts| counts.failed))
        .bind(all(|counts| counts.delivered))
        .bind(all(|counts| counts.dead))
        .bind(all(|counts| counts.cancelled))
        .bind(durations.collect::<Vec<_>>())
        .bind(periods.iter().map(|one| one.counts.first_failed_at).collect::<Vec<_>>())
        .bind(failures().map(|one| one.map(|it| it.at)).collect::<Vec<_>>())
        .bind(periods.iter().map(|one| one.counts.last_delivered_at).collect::<Vec<_>>())
        .bind(failures().map(|one| one.map(|it| it.class)).collect::<Vec<_>>())
        .bind(failures().map(|one| one.map(|it| it.message.as_str())).collect::<Vec<_>>())
        .bind(
            failures()
                .map(|one| one.and_then(|it| it.status).map(u16::cast_signed))
                .collect::<Vec<_>>(),
        )
        .execute(connection)
        .await?;
    Ok(())
}

macro_rules! add_to {
    ($table:literal, $begins_at:literal) => {
        concat!(
            "insert into ",
            $table,
            " as known (lane_id, ",
            $begins_at,
            ", attempts, failed, delivered, dead, cancelled, durations,
                        first_failed_at, last_failed_at, last_delivered_at, last_error,
                        last_message, last_status)
    select lane_id, begins_at, attempts, failed, delivered, dead, cancelled, durations::int[],
           first_failed_at, last_failed_at, last_delivered_at, last_error, last_message, last_status
    from unnest($1::uuid[], $2::timestamptz[], $3::int[], $4::int[], $5::int[], $6::int[],
                $7::int[], $8::text[], $9::timestamptz[], $10::timestamptz[], $11::timestamptz[],
                $12::text[], $13::text[], $14::smallint[])
         as new(lane_id, begins_at, attempts, failed, delivered, dead, cancelled, durations,
                first_failed_at, last_failed_at, last_delivered_at, last_error, last_message,
                last_status)
    on conflict (lane_id, ",
            $begins_at,
            ") do update
    set attempts = known.attempts + excluded.attempts,
        failed = known.failed + excluded.failed,
        delivered = known.delivered + excluded.delivered,
        dead = known.dead + excluded.dead,
        cancelled = known.cancelled + excluded.cancelled,
        durations = array(
            select coalesce(before, 0) + coalesce(more, 0)
            from unnest(known.durations, excluded.durations) with ordinality as u(before, more, place)
            order by place
        ),
        first_failed_at = least(known.first_failed_at, excluded.first_failed_at),
        last_delivered_at = greatest(known.last_delivered_at, excluded.last_delivered_at),
        last_failed_at = greatest(known.last_failed_at, excluded.last_failed_at),
        last_error = case when excluded.last_failed_at >= coalesce(known.last_failed_at, '-infinity')
                          then excluded.last_error else known.last_error end,
        last_message = case when excluded.last_failed_at >= coalesce(known.last_failed_at, '-infinity')
                            then excluded.last_message else known.last_message end,
        last_status = case when excluded.last_failed_at >= coalesce(known.last_failed_at, '-infinity')
                           then excluded.last_status else known.last_status end"
        )
    };
}

const ADD_TO_MINUTES: &str = add_to!("lane_minute", "minute");
const ADD_TO_HOURS: &str = add_to!("lane_hour", "hour");

macro_rules! forget {
    ($table:literal, $begins_at:literal) => {
        concat!(
            "delete from ",
            $table,
            " where ctid = any(array(select ctid from ",
            $table,
            " where ",
            $begins_at,
            " < ",
            settled_now!("$3"),
            " - $1 order by ",
            $begins_at,
            " limit $2))"
        )
    };
}

const FORGET_MINUTES: &str = forget!("lane_minute", "minute");
const FORGET_HOURS: &str = forget!("lane_hour", "hour");

// Of a minute with both, failures before and after the success cannot be told apart: the latest one
// counts. So the hour of the success is read by minutes.
const LATELY: &str = "
    with delivered as (
        select last_delivered_at as at,
               date_trunc('hour', last_delivered_at, 'UTC') + interval '1 hour' as hour_ends
        from lane_hour
        where lane_id = $1 and last_delivered_at is not null order by hour desc limit 1
    ),
    failed as (
        select last_failed_at, last_error, last_message, last_status from lane_hour
        where lane_id = $1 and last_failed_at is not null order by hour desc limit 1
    ),
    since as (
        select failed, first_failed_at, last_failed_at
        from delivered cross join lane_minute
        where lane_id = $1
          and minute >= date_trunc('minute', delivered.at) and minute < delivered.hour_ends
        union all
        select failed, first_failed_at, last_failed_at
        from lane_hour left join delivered on true
        where lane_id = $1 and hour >= coalesce(delivered.hour_ends, '-infinity')
    ),
    streak as (
        select min(case when first_failed_at > coalesce(delivered.at, '-infinity')
                        then first_failed_at else last_failed_at end) as since,
               sum(case when first_failed_at > coalesce(delivered.at, '-infinity')
                        then failed else 1 end) as count
        from since left join delivered on true
        where last_failed_at > coalesce(delivered.at, '-infinity')
    )
    select delivered.at as last_delivered_at, failed.last_failed_at, failed.last_error,
           failed.last_message, failed.last_status, streak.since as failing_since,
           coalesce(streak.count, 0)::bigint as failure_streak
    from streak left join delivered on true left join failed on true";
