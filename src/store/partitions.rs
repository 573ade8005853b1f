//! The days of the history: made ahead, dropped behind.
//!
//! A day is a range of ids. Making one never locks the history: the table is made on its own and
//! then attached. Dropping one is first detached `concurrently`. Both wait for locks only shortly
//! and are tried again at the next round, long before a day is missed. Either may be interrupted
//! anywhere: what is there is read from the catalogue each time, so that the next round goes on.

use std::{collections::BTreeSet, time::Duration};

use chrono::{DateTime, Days, NaiveDate, Utc};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::{
    Store, StoreError, bounded, bounded_by,
    session::Session,
    time::{Times, ordered_now, settled_now},
};
use crate::domain::{EventId, ids};

/// The partitioned tables, and whether each holds payloads.
pub(super) const TABLES: [(&str, bool); 5] = [
    ("event", false),
    ("event_payload", true),
    ("delivery", false),
    ("delivery_target", true),
    ("attempt", false),
];
/// How many days are made ahead of today.
pub const DAYS_AHEAD: u64 = 3;
/// How long DDL waits for a lock; everybody else waits behind it.
const LOCK_TIMEOUT: &str = "lock_timeout = '2s'";
/// Longer than it takes to make all days, or to drop one, on a healthy server. A connection that
/// exceeds it is given up.
const DDL_TIMEOUT: Duration = Duration::from_mins(1);
/// How a day is vacuumed and analysed. It is written once and read by key until it is dropped, so
/// statistics change no plan, and vacuuming for inserts freezes what is dropped long before it must
/// be frozen. With the defaults, both cost more CPU than the inserts themselves while a day grew:
/// 55 us a delivery became 100 to 130. What such a vacuum does is done once, when the day is over:
/// see [`Store::freeze_days`].
const STORAGE: &str = "autovacuum_vacuum_insert_threshold = -1,
    autovacuum_analyze_scale_factor = 1, autovacuum_analyze_threshold = 100000";
/// Serialise the makers and the droppers of partitions; any numbers that nothing else in the
/// database uses. Two of them, so that a start never waits for a day that is being dropped.
const MAKE_LOCK: i64 = 0x7768_6470_6172_7401;
const DROP_LOCK: i64 = 0x7768_6470_6172_7402;

/// How long the history is kept.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// Events, deliveries and attempts.
    pub history: Duration,
    /// Payloads.
    pub payload: Duration,
}

/// A table that holds, or held, one day.
pub(super) struct DayTable {
    pub name: String,
    pub day: NaiveDate,
    pub state: DayState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DayState {
    Attached,
    /// `detach concurrently` was interrupted between its two phases: rows find it no more, and only
    /// `finalize` can detach it.
    HalfDetached,
    /// On its own: what is left where the detached table could not be dropped.
    Detached,
}

impl Store {
    /// Makes the days from yesterday to [`DAYS_AHEAD`] days from now. Ids carry the clock of the
    /// accepting process, so the day before and the day after today are never far. Tells what it
    /// made. That a lock was not to be had in time is an outage: worth another try.
    pub async fn make_partitions(&self) -> Result<Vec<String>, StoreError> {
        self.make_days(|today| {
            let first = today - Days::new(1);
            (0..=DAYS_AHEAD + 1).map(|offset| first + Days::new(offset)).collect()
        })
        .await
    }

    /// Makes the days of these events, which may be long past: what was published from SQL waits
    /// while no process runs, and days are made only by one that runs.
    pub async fn make_partitions_of(&self, events: &[EventId]) -> Result<Vec<String>, StoreError> {
        let day = |event: &EventId| {
            let ms = i64::try_from(ids::unix_ms_of(event.uuid())).unwrap_or_default();
            DateTime::from_timestamp_millis(ms).unwrap_or_default().date_naive()
        };
        let days: BTreeSet<_> = events.iter().map(day).collect();
        self.make_days(|_| days).await
    }

    async fn make_days(
        &self,
        days: impl FnOnce(NaiveDate) -> BTreeSet<NaiveDate>,
    ) -> Result<Vec<String>, StoreError> {
        bounded_by(DDL_TIMEOUT, async {
            let mut connection = self.pool.acquire().await?;
            let mut transaction = connection.begin().await?;
            // Before the lock time-out is set: nobody but another maker waits behind this one.
            sqlx::query("select pg_advisory_xact_lock($1)")
                .bind(MAKE_LOCK)
                .execute(&mut *transaction)
                .await?;
            let lock_timeout = format!("set local {LOCK_TIMEOUT}");
            sqlx::raw_sql(AssertSqlSafe(lock_timeout)).execute(&mut *transaction).await?;
            let today: DateTime<Utc> = sqlx::query_scalar(concat!("select ", ordered_now!("$1")))
                .bind(self.times().expected)
                .fetch_one(&mut *transaction)
                .await?;
            let days = days(today.date_naive());
            let mut made = Vec::new();
            for (table, _) in TABLES {
                let there = day_tables(&mut transaction, table).await?;
                for &day in &days {
                    let state = there.iter().find(|one| one.day == day).map(|one| one.state);
                    if state != Some(DayState::Attached) {
                        make_partition(&mut transaction, table, day, state).await?;
                        made.push(partition_name(table, day));
                    }
                }
            }
            transaction.commit().await?;
            Ok(made)
        })
        .await
    }

    /// Drops the days that are past their time, and of which nothing is left in the queue; also
    /// those that an earlier round has detached and then could not drop. Tells what it dropped:
    /// nothing while another process is at it.
    ///
    /// A day that cannot be dropped holds up no other; the first error is told at the end.
    pub async fn drop_partitions(&self, retention: Retention) -> Result<Vec<String>, StoreError> {
        let session = format!("set {LOCK_TIMEOUT}");
        let Some(mut alone) = self.alone(DROP_LOCK, session).await? else { return Ok(Vec::new()) };
        let past = bounded(past_days(&mut alone.connection, retention, self.times())).await?;
        let drop = |(table, one): (&str, DayTable)| {
            let statements = drop_statements(table, &one);
            (one.name, statements)
        };
        alone.work(DDL_TIMEOUT, past.into_iter().map(drop).collect()).await
    }
}

/// The tables of one partitioned table's days, oldest first, told by their names.
pub(super) async fn day_tables(
    connection: &mut Session,
    table: &str,
) -> Result<Vec<DayTable>, StoreError> {
    let rows: Vec<(String, bool, bool)> = sqlx::query_as(
        "select c.relname::text, i.inhrelid is not null, coalesce(i.inhdetachpending, false)
         from pg_class parent
         join pg_class c on c.relnamespace = parent.relnamespace and c.relkind = 'r'
         left join pg_inherits i on i.inhrelid = c.oid and i.inhparent = parent.oid
         where parent.oid = $1::regclass
           and c.relname ~ ('^' || parent.relname || '_[0-9]{8}$')
           -- Not a partition of something else.
           and (i.inhrelid is not null or not c.relispartition)
         order by c.relname",
    )
    .bind(table)
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .filter_map(|(name, is_child, is_pending)| {
            let day = name.strip_prefix(table)?.strip_prefix('_')?;
            let day = NaiveDate::parse_from_str(day, "%Y%m%d").ok()?;
            let state = match (is_child, is_pending) {
                (true, false) => DayState::Attached,
                (true, true) => DayState::HalfDetached,
                (false, _) => DayState::Detached,
            };
            Some(DayTable { name, day, state })
        })
        .collect())
}

/// The days that may be dropped, each with its partitioned table.
async fn past_days(
    connection: &mut Session,
    retention: Retention,
    times: Times,
) -> Result<Vec<(&'static str, DayTable)>, StoreError> {
    let (now, oldest_queued): (DateTime<Utc>, Option<Uuid>) = sqlx::query_as(concat!(
        "select ",
        settled_now!("$1"),
        ", least(
             (select delivery_id from delivery_queue order by delivery_id limit 1),
             (select delivery_id from delivery_parked order by delivery_id limit 1))",
    ))
    .bind(times.settled)
    .fetch_one(&mut *connection)
    .await?;
    let mut past = Vec::new();
    for (table, is_payload) in TABLES {
        let keep = if is_payload { retention.payload } else { retention.history };
        for one in day_tables(connection, table).await? {
            let next_day = one.day + Days::new(1);
            let is_past = now.signed_duration_since(start_of(next_day))
                >= chrono::Duration::from_std(keep).unwrap_or(chrono::Duration::MAX);
            // Whatever the settings say: a payload that is still to be sent stays.
            let is_wanted = oldest_queued.is_some_and(|oldest| oldest < lower_bound(next_day));
            if is_past && !is_wanted {
                past.push((table, one));
            }
        }
    }
    Ok(past)
}

/// What detaches and drops one day, from wherever an earlier round has left it.
fn drop_statements(table: &str, one: &DayTable) -> Vec<String> {
    let name = &one.name;
    let detach = match one.state {
        DayState::Attached => {
            Some(format!("alter table {table} detach partition {name} concurrently"))
        }
        DayState::HalfDetached => {
            Some(format!("alter table {table} detach partition {name} finalize"))
        }
        DayState::Detached => None,
    };
    detach.into_iter().chain([format!("drop table {name}")]).collect()
}

/// Makes one day, or attaches the table again that an interrupted drop has left of it.
async fn make_partition(
    connection: &mut Session,
    table: &str,
    day: NaiveDate,
    state: Option<DayState>,
) -> Result<(), StoreError> {
    let name = partition_name(table, day);
    let from = lower_bound(day);
    let to = lower_bound(day + Days::new(1));
    let make = match state {
        None => format!(
            "create table {name} (like {table} including defaults including constraints)
                 with ({STORAGE});"
        ),
        Some(DayState::HalfDetached) => {
            format!("alter table {table} detach partition {name} finalize;")
        }
        Some(DayState::Detached | DayState::Attached) => String::new(),
    };
    let attach = format!(
        "alter table {table} attach partition {name} for values from ('{from}') to ('{to}')"
    );
    sqlx::raw_sql(AssertSqlSafe(make + &attach)).execute(connection).await?;
    Ok(())
}

fn partition_name(table: &str, day: NaiveDate) -> String {
    format!("{table}_{}", day.format("%Y%m%d"))
}

pub(super) fn start_of(day: NaiveDate) -> DateTime<Utc> {
    day.and_time(chrono::NaiveTime::MIN).and_utc()
}

fn lower_bound(day: NaiveDate) -> Uuid {
    ids::lower_bound(u64::try_from(start_of(day).timestamp_millis()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_a_range_of_ids() {
        let day = NaiveDate::from_ymd_opt(2026, 11, 21).unwrap();
        assert_eq!(partition_name("event", day), "event_20261121");
        assert_eq!(ids::unix_ms_of(lower_bound(day)), 1_795_219_200_000);
        assert!(lower_bound(day) < lower_bound(day + Days::new(1)));
    }
}
