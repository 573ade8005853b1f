//! What the CMS is still to be told of: events at whose targets something has ended.
//!
//! A row is written by the statement that records a result ([`super::record`], [`super::ending`]), and
//! deleted when the CMS has what the event came to. One process at a time tells, by a lease; no
//! transaction is open meanwhile. What is read of an event is read after its rows, so whatever is
//! recorded later has a row of its own, and is told later.

use std::{collections::HashMap, time::Duration};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    Store, StoreError, bounded,
    deliveries::Ranges,
    dispatches::{TargetResult, shown_attempt},
    queue::interval,
    time::{ordered_now, settled_now},
};
use crate::domain::{ApplicationId, EventId};

/// At how many rows one look is enough: many can be of one event.
const ROWS_PER_LOOK: i64 = 1_000;
/// Up to how many events that are told again are counted.
const AGAIN_COUNTED_MAX: i64 = 10_000;

/// What waits.
#[derive(Debug, Clone, Copy, PartialEq, sqlx::FromRow)]
pub struct Standing {
    /// Rows of the queue, at most.
    pub rows: i64,
    /// How long the oldest of them waits, in seconds.
    pub oldest_seconds: f64,
    /// Events that are told again later.
    pub again: i64,
    /// Some of them now.
    pub is_again_due: bool,
}

/// An event that is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// The event.
    pub event: EventId,
    /// Whose it is.
    pub application: ApplicationId,
    /// Its rows in the queue.
    pub places: Vec<i64>,
    /// How often it was tried already, if it is told again.
    pub tries: Option<i32>,
}

#[derive(sqlx::FromRow)]
struct DueRow {
    event_id: Uuid,
    application_id: Uuid,
    places: Vec<i64>,
    try_count: Option<i32>,
}

/// What is to be told again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Again {
    /// The event.
    pub event: EventId,
    /// Whose it is.
    pub application: ApplicationId,
    /// How often it was tried.
    pub tries: i32,
    /// After how long.
    pub after: Duration,
}

/// What became of an event at its targets, as far as that has ended.
#[derive(Debug)]
pub struct EventLog {
    /// The event.
    pub event: EventId,
    /// Its type, if told.
    pub event_type: Option<String>,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// Its first targets, in their order.
    pub targets: Vec<TargetResult>,
    /// How many have ended in all.
    pub target_count: i64,
}

#[derive(sqlx::FromRow)]
struct LogRow {
    event_id: Uuid,
    event_type: Option<String>,
    created_at: DateTime<Utc>,
    ended_count: i64,
    #[sqlx(flatten)]
    result: TargetResult,
}

impl Store {
    /// Tells what waits. Costs the same however much it is.
    pub async fn cms_log_standing(&self) -> Result<Standing, StoreError> {
        bounded(async {
            Ok(sqlx::query_as(STANDING)
                .bind(AGAIN_COUNTED_MAX)
                .bind(self.times().expected)
                .fetch_one(&self.pool)
                .await?)
        })
        .await
    }

    /// Takes the lease, or keeps it, for so long from now on; `false`: another process has it.
    pub async fn lease_cms_log(&self, owner: Uuid, lease: Duration) -> Result<bool, StoreError> {
        bounded(async {
            let leased = sqlx::query(concat!(
                "update cms_log_teller set owner = $1, leased_until = clock.now + $2
                 from (select ",
                ordered_now!("$3"),
                " as now) as clock
                 where owner = $1 or leased_until < clock.now
                    -- No lease is so long: it was taken while the clock was wrong.
                    or leased_until > clock.now + $2 * 2",
            ))
            .bind(owner)
            .bind(interval(lease))
            .bind(self.times().expected)
            .execute(&self.pool)
            .await?;
            Ok(leased.rows_affected() > 0)
        })
        .await
    }

    /// Gives the lease up.
    pub async fn leave_cms_log(&self, owner: Uuid) -> Result<(), StoreError> {
        bounded(async {
            sqlx::query(
                "update cms_log_teller set owner = null, leased_until = '-infinity'
                 where owner = $1",
            )
            .bind(owner)
            .execute(&self.pool)
            .await?;
            Ok(())
        })
        .await
    }

    /// Reads the next events that are to be told: up to half of `events_max` of those that are told
    /// again, then the oldest of the queue.
    pub async fn next_of_cms_log(&self, events_max: usize) -> Result<Vec<Due>, StoreError> {
        let mut due: Vec<Due> = Vec::new();
        bounded(async {
            let half = i64::try_from(events_max / 2).unwrap_or(i64::MAX);
            let again: Vec<DueRow> = sqlx::query_as(NEXT_AGAIN)
                .bind(half)
                .bind(self.times().expected)
                .fetch_all(&self.pool)
                .await?;
            due.extend(again.into_iter().map(Due::from));
            let rest = i64::try_from(events_max - due.len()).unwrap_or(i64::MAX);
            let queued: Vec<DueRow> = sqlx::query_as(NEXT_QUEUED)
                .bind(ROWS_PER_LOOK)
                .bind(rest)
                .fetch_all(&self.pool)
                .await?;
            for row in queued.into_iter().map(Due::from) {
                match due.iter_mut().find(|known| known.event == row.event) {
                    Some(known) => known.places = row.places,
                    None => due.push(row),
                }
            }
            Ok(())
        })
        .await?;
        Ok(due)
    }

    /// Reads what became of events at up to `targets_max` targets each. One that is gone, or of which
    /// nothing has ended, is missing from the answer.
    pub async fn event_logs(
        &self,
        due: &[Due],
        targets_max: i64,
    ) -> Result<Vec<EventLog>, StoreError> {
        let events: Vec<EventId> = due.iter().map(|one| one.event).collect();
        let applications: Vec<Uuid> = due.iter().map(|one| one.application.uuid()).collect();
        let ranges = Ranges::of(&events);
        let rows: Vec<LogRow> = bounded(async {
            Ok(sqlx::query_as(EVENT_LOGS)
                .bind(applications)
                .bind(ranges.events)
                .bind(ranges.low)
                .bind(ranges.high)
                .bind(targets_max)
                .fetch_all(&self.pool)
                .await?)
        })
        .await?;
        let mut logs: HashMap<Uuid, EventLog> = HashMap::new();
        for row in rows {
            let log = logs.entry(row.event_id).or_insert_with(|| EventLog {
                event: EventId::from_uuid(row.event_id),
                event_type: row.event_type,
                created_at: row.created_at,
                targets: Vec::new(),
                target_count: row.ended_count,
            });
            log.targets.push(row.result);
        }
        Ok(logs.into_values().collect())
    }

    /// Notes what was told: `done` wait no more, and those of `again` are told again later.
    pub async fn note_cms_log(&self, done: &[Due], again: &[Again]) -> Result<(), StoreError> {
        let places: Vec<i64> = done.iter().flat_map(|one| one.places.iter().copied()).collect();
        let retold: Vec<Uuid> =
            done.iter().filter(|one| one.tries.is_some()).map(|one| one.event.uuid()).collect();
        let events: Vec<Uuid> = again.iter().map(|one| one.event.uuid()).collect();
        let applications: Vec<Uuid> = again.iter().map(|one| one.application.uuid()).collect();
        let tries: Vec<i32> = again.iter().map(|one| one.tries).collect();
        let after: Vec<_> = again.iter().map(|one| interval(one.after)).collect();
        bounded(async {
            sqlx::query(NOTE)
                .bind(places)
                .bind(retold)
                .bind(events)
                .bind(applications)
                .bind(tries)
                .bind(after)
                .bind(self.times().expected)
                .execute(&self.pool)
                .await?;
            Ok(())
        })
        .await
    }

    /// Drops up to `rows_max` of what has waited for longer than this; tells how much that was.
    pub async fn drop_old_cms_log(
        &self,
        age_max: Duration,
        rows_max: i64,
    ) -> Result<i64, StoreError> {
        bounded(async {
            Ok(sqlx::query_scalar(DROP_OLD)
                .bind(interval(age_max))
                .bind(rows_max)
                .bind(self.times().settled)
                .fetch_one(&self.pool)
                .await?)
        })
        .await
    }
}

impl From<DueRow> for Due {
    fn from(row: DueRow) -> Self {
        Self {
            event: EventId::from_uuid(row.event_id),
            application: ApplicationId::from_uuid(row.application_id),
            places: row.places,
            tries: row.try_count,
        }
    }
}

// Places are given in order and rows go in about that order, so the ends tell how many there are; to
// count a backlog of a day would take seconds.
const STANDING: &str = concat!(
    "select coalesce(last.place - first.place + 1, 0) as rows,
           coalesce(extract(epoch from now() - first.queued_at), 0)::float8 as oldest_seconds,
           (select count(*) from (select from cms_log_again limit $1) as counted) as again,
           exists (select from cms_log_again where due_at <= ",
    ordered_now!("$2"),
    ") as is_again_due
    from (select) as one
    left join (
        select place, queued_at from cms_log_queue order by place limit 1
    ) as first on true
    left join (select place from cms_log_queue order by place desc limit 1) as last on true"
);

const NEXT_AGAIN: &str = concat!(
    "select event_id, application_id, array[]::bigint[] as places, try_count
    from cms_log_again where due_at <= ",
    ordered_now!("$2"),
    " order by due_at limit $1"
);

const NEXT_QUEUED: &str = "
    select event_id, application_id, array_agg(place) as places, null::int as try_count
    from (select * from cms_log_queue order by place limit $1) as head
    group by event_id, application_id
    order by min(place) limit $2";

// Each by its range of the key. What is shown of a delivery is what `target_results` shows.
const EVENT_LOGS: &str = concat!(
    "
    select asked.event_id, event.type as event_type, event.created_at, d.ended_count, d.delivery_id,
           coalesce(shown.request_url, d.target_url) as url, d.state, d.reason,
           shown.response_status, shown.duration_ms, shown.error_class, shown.error_message
    from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[])
        as asked(application_id, event_id, low, high)
    cross join lateral (
        select type, created_at from event e
        where e.application_id = asked.application_id and e.event_id = asked.event_id
        offset 0
    ) as event
    cross join lateral (
        select delivery_id, target_url, state, reason, attempt_count as attempts,
               count(*) over () as ended_count
        from delivery
        where application_id = asked.application_id and event_id = asked.event_id
          and delivery_id between asked.low and asked.high
        order by delivery_id limit $5
    ) as d
    ",
    shown_attempt!(),
    "
    order by d.delivery_id"
);

const NOTE: &str = concat!(
    "with told as (delete from cms_log_queue where place = any($1)),
    retold as (delete from cms_log_again where event_id = any($2) and event_id <> all($3))
    insert into cms_log_again (event_id, application_id, try_count, due_at)
    select event_id, application_id, try_count, ",
    ordered_now!("$7"),
    " + delay
    from unnest($3::uuid[], $4::uuid[], $5::int[], $6::interval[])
        as a(event_id, application_id, try_count, delay)
    on conflict (event_id) do update
    set try_count = excluded.try_count, due_at = excluded.due_at"
);

const DROP_OLD: &str = concat!(
    "with queued as (
        delete from cms_log_queue
        where place in (select place from cms_log_queue order by place limit $2)
          and queued_at < ",
    settled_now!("$3"),
    " - $1
        returning place
    ),
    again as (
        delete from cms_log_again
        where event_id in (select event_id from cms_log_again order by due_at limit $2)
          and queued_at < ",
    settled_now!("$3"),
    " - $1
        returning event_id
    )
    select (select count(*) from queued) + (select count(*) from again)"
);
