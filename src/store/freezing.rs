//! Freezes the days that are over.
//!
//! A day is written once. Until somebody has vacuumed it, each first reader of a page asks what became
//! of the transactions that wrote it, and writes the page again to note the answer; and Postgres does
//! it for all days at once when its transaction ids run short, which takes a busy database half a
//! day. So each day is vacuumed once, slowly, when nothing is inserted into it any more.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{
    Store, StoreError, bounded,
    partitions::{DayState, TABLES, day_tables, start_of},
    session::Session,
    time::{Times, settled_now},
};

/// How long after its end a day is left alone: some of what it began is still tried again.
const REST: Duration = Duration::from_hours(1);
/// How long one day of one table may take. What is left then is begun anew at the next round.
const FREEZE_TIMEOUT: Duration = Duration::from_hours(6);
/// As slow as Postgres' own vacuum: at most some 40 MB a second are written.
const PACE: &str = "set vacuum_cost_delay = '2ms'";
/// Of a frozen day at least so many pages of a hundred were visible to all when it was vacuumed. A
/// snapshot that was held meanwhile, or a tenth more pages since, make it worth another time.
const VISIBLE_PERCENT: i64 = 90;
/// Keeps it to one process at a time; any number that nothing else in the database uses.
const FREEZE_LOCK: i64 = 0x7768_6470_6172_7403;

impl Store {
    /// Freezes the days that are over, one after the other, oldest first. Tells which it went through:
    /// nothing while another process is at it. A day that somebody else has locked is left for the
    /// next round; one that cannot be vacuumed holds up no other, and the first error is told at the
    /// end.
    pub async fn freeze_days(&self) -> Result<Vec<String>, StoreError> {
        let Some(mut alone) = self.alone(FREEZE_LOCK, PACE.to_owned()).await? else {
            return Ok(Vec::new());
        };
        let days = bounded(days_over(&mut alone.connection, self.times())).await?;
        let vacuum = |name: String| {
            let vacuum = format!("vacuum (freeze, skip_locked) {name}");
            (name, vec![vacuum])
        };
        alone.work(FREEZE_TIMEOUT, days.into_iter().map(vacuum).collect()).await
    }
}

/// The days that are over and have something, most of which is not known to be visible to all.
async fn days_over(connection: &mut Session, times: Times) -> Result<Vec<String>, StoreError> {
    let now: DateTime<Utc> = sqlx::query_scalar(concat!("select ", settled_now!("$1")))
        .bind(times.settled)
        .fetch_one(&mut *connection)
        .await?;
    let mut names = Vec::new();
    for (table, _) in TABLES {
        let days = day_tables(connection, table).await?.into_iter().filter(|one| {
            let end = start_of(one.day + chrono::Days::new(1));
            one.state == DayState::Attached
                && now.signed_duration_since(end).to_std().is_ok_and(|age| age >= REST)
        });
        names.extend(days.map(|one| (one.day, one.name)));
    }
    names.sort();
    let names: Vec<String> = names.into_iter().map(|(_, name)| name).collect();
    Ok(sqlx::query_scalar(
        "select name
         from unnest($1::text[]) with ordinality as one(name, place)
         join pg_class c on c.oid = to_regclass(name)
         cross join lateral (
             select pg_relation_size(c.oid) / current_setting('block_size')::bigint as pages
         ) as size
         where c.relallvisible * 100 < pages * $2
         order by place",
    )
    .bind(names)
    .bind(VISIBLE_PERCENT)
    .fetch_all(connection)
    .await?)
}
