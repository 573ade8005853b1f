//! The days of the history: made ahead, dropped behind.
//!
//! A day is a range of ids. Making one never locks the history: the table is made on its own and
//! then attached. Dropping one is first detached `concurrently`. Both wait for locks only shortly
//! and are tried again at the next round, long before a day is missed.

use std::time::Duration;

use chrono::{DateTime, Days, NaiveDate, Utc};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

use super::{Store, StoreError};
use crate::domain::ids;

/// The partitioned tables, and whether each holds payloads.
const TABLES: [(&str, bool); 4] =
    [("event", false), ("event_payload", true), ("delivery", false), ("attempt", false)];
/// How many days are made ahead of today.
pub const DAYS_AHEAD: u64 = 3;
/// How long DDL waits for a lock; everybody else waits behind it.
const LOCK_TIMEOUT: &str = "set local lock_timeout = '2s'";
/// How a day is vacuumed and analysed. It is written once and read by key until it is dropped, so
/// statistics change no plan, and vacuuming for inserts freezes what is dropped long before it must
/// be frozen. With the defaults, both cost more CPU than the inserts themselves while a day grew:
/// 55 us a delivery became 100 to 130.
const STORAGE: &str = "autovacuum_vacuum_insert_threshold = -1,
    autovacuum_analyze_scale_factor = 1, autovacuum_analyze_threshold = 100000";
/// Serialises the makers of partitions; any number that nothing else in the database uses.
const ADVISORY_LOCK: i64 = 0x7768_6470_6172_7401;

/// How long the history is kept.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// Events, deliveries and attempts.
    pub history: Duration,
    /// Payloads.
    pub payload: Duration,
}

/// What a round of maintenance did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PartitionsChanged {
    /// The tables that were made.
    pub made: Vec<String>,
    /// The tables that were dropped.
    pub dropped: Vec<String>,
}

impl Store {
    /// Makes the days from yesterday to [`DAYS_AHEAD`] days from now. Ids carry the clock of the
    /// accepting process, so the day before and the day after today are never far.
    pub async fn make_partitions(&self) -> Result<Vec<String>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        let mut transaction = connection.begin().await?;
        sqlx::raw_sql(LOCK_TIMEOUT).execute(&mut *transaction).await?;
        sqlx::query("select pg_advisory_xact_lock($1)")
            .bind(ADVISORY_LOCK)
            .execute(&mut *transaction)
            .await?;
        let today: DateTime<Utc> =
            sqlx::query_scalar("select now()").fetch_one(&mut *transaction).await?;
        let first = today.date_naive() - Days::new(1);
        let mut made = Vec::new();
        for (table, _) in TABLES {
            for offset in 0..=DAYS_AHEAD + 1 {
                let day = first + Days::new(offset);
                if make_partition(&mut transaction, table, day).await? {
                    made.push(partition_name(table, day));
                }
            }
        }
        transaction.commit().await?;
        Ok(made)
    }

    /// Drops the days that are past their time, and of which nothing is left in the queue.
    pub async fn drop_partitions(&self, retention: Retention) -> Result<Vec<String>, StoreError> {
        let (now, oldest_queued): (DateTime<Utc>, Option<Uuid>) = sqlx::query_as(
            "select now(), (select delivery_id from delivery_queue order by delivery_id limit 1)",
        )
        .fetch_one(&self.pool)
        .await?;
        let mut dropped = Vec::new();
        for (table, is_payload) in TABLES {
            let keep = if is_payload { retention.payload } else { retention.history };
            for (name, day) in self.partitions_of(table).await? {
                let end = lower_bound(day + Days::new(1));
                let is_past = now.signed_duration_since(start_of(day + Days::new(1)))
                    >= chrono::Duration::from_std(keep).unwrap_or(chrono::Duration::MAX);
                // Whatever the settings say: a payload that is still to be sent stays.
                let is_wanted = oldest_queued.is_some_and(|oldest| oldest < end);
                if is_past && !is_wanted {
                    self.drop_partition(table, &name).await?;
                    dropped.push(name);
                }
            }
        }
        Ok(dropped)
    }

    async fn partitions_of(&self, table: &str) -> Result<Vec<(String, NaiveDate)>, StoreError> {
        let names: Vec<String> = sqlx::query_scalar(
            "select c.relname::text from pg_inherits i join pg_class c on c.oid = i.inhrelid
             where i.inhparent = $1::regclass order by c.relname",
        )
        .bind(table)
        .fetch_all(&self.pool)
        .await?;
        Ok(names
            .into_iter()
            .filter_map(|name| {
                let day = name.strip_prefix(table)?.strip_prefix('_')?;
                let day = NaiveDate::parse_from_str(day, "%Y%m%d").ok()?;
                Some((name, day))
            })
            .collect())
    }

    /// Detaches and drops one day. `concurrently` cannot run in a transaction; interrupted between
    /// its two phases it leaves a partition that only `finalize` can detach.
    async fn drop_partition(&self, table: &str, name: &str) -> Result<(), StoreError> {
        // A connection of its own, closed afterwards: the lock time-out is set for its session.
        let mut connection = self.pool.unbounded().acquire().await?.detach();
        sqlx::raw_sql("set lock_timeout = '2s'").execute(&mut connection).await?;
        let concurrently = format!("alter table {table} detach partition {name} concurrently");
        if let Err(error) =
            sqlx::raw_sql(AssertSqlSafe(concurrently)).execute(&mut connection).await
        {
            tracing::debug!(%error, name, "detaching again");
            let finalize = format!("alter table {table} detach partition {name} finalize");
            sqlx::raw_sql(AssertSqlSafe(finalize)).execute(&mut connection).await?;
        }
        let drop = format!("drop table {name}");
        sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut connection).await?;
        connection.close().await?;
        Ok(())
    }
}

async fn make_partition(
    connection: &mut PgConnection,
    table: &str,
    day: NaiveDate,
) -> Result<bool, StoreError> {
    let name = partition_name(table, day);
    let exists: bool = sqlx::query_scalar(
        "select exists (select from pg_inherits
                        where inhparent = $1::regclass and inhrelid = to_regclass($2))",
    )
    .bind(table)
    .bind(&name)
    .fetch_one(&mut *connection)
    .await?;
    if exists {
        return Ok(false);
    }
    let from = lower_bound(day);
    let to = lower_bound(day + Days::new(1));
    // A table of this name that is not attached is what an interrupted drop left: an old day, which
    // is not made again. `create table` then fails, and says so.
    let make = format!(
        "create table {name} (like {table} including defaults including constraints)
             with ({STORAGE});
         alter table {table} attach partition {name} for values from ('{from}') to ('{to}')"
    );
    sqlx::raw_sql(AssertSqlSafe(make)).execute(connection).await?;
    Ok(true)
}

fn partition_name(table: &str, day: NaiveDate) -> String {
    format!("{table}_{}", day.format("%Y%m%d"))
}

fn start_of(day: NaiveDate) -> DateTime<Utc> {
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
