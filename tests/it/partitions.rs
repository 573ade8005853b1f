//! The days of the history against real Postgres: made ahead, dropped behind.

use std::time::Duration;

use chrono::{Days, NaiveDate, Utc};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use webhook_dispatcher::{
    domain::{EventId, TargetUrl, ids},
    store::{
        Store, StoreError,
        events::NewEvent,
        partitions::{DAYS_AHEAD, Retention},
    },
};

use crate::support::{TestDatabase, eventually, stored};

const TABLES: [&str; 5] = ["attempt", "delivery", "delivery_target", "event", "event_payload"];
const DAY: Duration = Duration::from_hours(24);
const KEEP: Retention =
    Retention { history: DAY.saturating_mul(30), payload: DAY.saturating_mul(30) };

struct Bench {
    database: TestDatabase,
    store: Store,
}

impl Bench {
    async fn new() -> Self {
        let database = TestDatabase::new().await;
        let store = database.store();
        Self { database, store }
    }

    async fn run(&self, sql: String) {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(self.store.pool()).await.unwrap();
    }

    /// Waits until no transaction of the cluster is as old as what was written so far: a session of any
    /// database that begins takes a snapshot that holds back a vacuum in all of them.
    async fn until_visible_to_all(&self) {
        let pool = self.store.pool();
        let now: String =
            sqlx::query_scalar("select pg_current_xact_id()::text").fetch_one(pool).await.unwrap();
        eventually("all transactions before are over", async || {
            sqlx::query_scalar::<_, bool>(
                "select pg_snapshot_xmin(pg_current_snapshot()) > $1::xid8",
            )
            .bind(&now)
            .fetch_one(pool)
            .await
            .unwrap()
            .then_some(())
        })
        .await;
        // And until those that had begun with such a snapshot have dropped it.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    /// Makes one day of a table.
    async fn make(&self, table: &str, day: NaiveDate) {
        let (from, to) = (lower_bound(day), lower_bound(day + Days::new(1)));
        let name = name(table, day);
        self.run(format!(
            "create table {name} (like {table} including defaults including constraints);
             alter table {table} attach partition {name} for values from ('{from}') to ('{to}')"
        ))
        .await;
    }

    /// The names of all tables that hold a day, or held one.
    async fn tables(&self) -> Vec<String> {
        sqlx::query_scalar(
            "select relname::text from pg_class where relkind = 'r' and relname ~ '_[0-9]{8}$'
             order by relname",
        )
        .fetch_all(self.store.pool())
        .await
        .unwrap()
    }

    async fn drop_all(&self) {
        for table in self.tables().await {
            self.run(format!("drop table {table}")).await;
        }
    }

    /// Leaves a day as an interrupted drop does, between the two phases of `detach concurrently`.
    async fn half_detach(&self, table: &str, day: NaiveDate) {
        let name = name(table, day);
        let mut reader = self.store.pool().begin().await.unwrap();
        let read = format!("select from {name}");
        sqlx::raw_sql(AssertSqlSafe(read)).execute(&mut *reader).await.unwrap();
        let mut dropper = self.database.options.connect().await.unwrap();
        sqlx::raw_sql("set lock_timeout = '100ms'").execute(&mut dropper).await.unwrap();
        let detach = format!("alter table {table} detach partition {name} concurrently");
        sqlx::raw_sql(AssertSqlSafe(detach)).execute(&mut dropper).await.unwrap_err();
        dropper.close().await.unwrap();
        reader.rollback().await.unwrap();
        let is_pending: bool = sqlx::query_scalar(
            "select inhdetachpending from pg_inherits where inhrelid = $1::regclass",
        )
        .bind(name)
        .fetch_one(self.store.pool())
        .await
        .unwrap();
        assert!(is_pending, "the set-up itself");
    }

    async fn insert(&self, unix_ms: u64) -> Result<EventId, StoreError> {
        let target = TargetUrl::parse("http://127.0.0.1:9/").unwrap();
        let submission = stored::submission(&target);
        let event_id = EventId::new(unix_ms, rand::random());
        let deliveries = vec![stored::delivery(event_id, target, None)];
        let event = NewEvent { event_id, submission: &submission, routing_version: 1, deliveries };
        self.store.store_events(&[event]).await.map(|_| event_id)
    }
}

fn today() -> NaiveDate {
    Utc::now().date_naive()
}

fn days_ago(days: u64) -> NaiveDate {
    today() - Days::new(days)
}

fn unix_ms(day: NaiveDate) -> u64 {
    let noon = day.and_hms_opt(12, 0, 0).unwrap().and_utc();
    u64::try_from(noon.timestamp_millis()).unwrap()
}

fn lower_bound(day: NaiveDate) -> uuid::Uuid {
    ids::lower_bound(unix_ms(day) - 43_200_000)
}

fn name(table: &str, day: NaiveDate) -> String {
    format!("{table}_{}", day.format("%Y%m%d"))
}

/// All tables' names for these days, sorted.
fn names(days: &[NaiveDate]) -> Vec<String> {
    let mut names: Vec<_> =
        TABLES.iter().flat_map(|table| days.iter().map(|day| name(table, *day))).collect();
    names.sort();
    names
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}

#[tokio::test]
async fn days_are_made_ahead_once() {
    let bench = Bench::new().await;
    bench.drop_all().await;
    let days: Vec<_> = (0..DAYS_AHEAD + 2).map(|offset| days_ago(1) + Days::new(offset)).collect();
    assert_eq!(sorted(bench.store.make_partitions().await.unwrap()), names(&days));
    assert_eq!(bench.tables().await, names(&days));
    assert!(bench.store.make_partitions().await.unwrap().is_empty());

    bench.run(format!("drop table {}", name("event", today()))).await;
    assert_eq!(bench.store.make_partitions().await.unwrap(), [name("event", today())]);
}

#[tokio::test]
async fn of_two_makers_one_makes_each_day() {
    let bench = Bench::new().await;
    bench.drop_all().await;
    let other = bench.database.store();
    let (one, two) = tokio::join!(bench.store.make_partitions(), other.make_partitions());
    let made = sorted([one.unwrap(), two.unwrap()].concat());
    assert_eq!(made, bench.tables().await);
}

#[tokio::test]
async fn an_id_of_today_lands_in_todays_partition() {
    let bench = Bench::new().await;
    bench.insert(unix_ms(today())).await.unwrap();
    for table in ["event", "event_payload"] {
        let of = format!("select tableoid::regclass::text from {table}");
        let place: String =
            sqlx::query_scalar(AssertSqlSafe(of)).fetch_one(bench.store.pool()).await.unwrap();
        assert_eq!(place, name(table, today()));
    }
}

#[tokio::test]
async fn an_id_of_no_day_is_told_apart() {
    let bench = Bench::new().await;
    for day in [days_ago(100), today() + Days::new(100)] {
        let error = bench.insert(unix_ms(day)).await.unwrap_err();
        assert!(matches!(error, StoreError::NoPartition), "{error}");
    }
}

#[tokio::test]
async fn days_past_their_time_are_dropped_and_payloads_earlier() {
    let bench = Bench::new().await;
    let made_ahead = bench.tables().await;
    for table in TABLES {
        for age in [3, 10, 40] {
            bench.make(table, days_ago(age)).await;
        }
    }
    let retention = Retention { history: DAY * 30, payload: DAY * 5 };
    let dropped = bench.store.drop_partitions(retention).await.unwrap();
    let mut expected = names(&[days_ago(40)]);
    let of_payloads = ["event_payload", "delivery_target"].map(|table| name(table, days_ago(10)));
    expected.extend(of_payloads.clone());
    assert_eq!(sorted(dropped), sorted(expected));

    let mut kept = [names(&[days_ago(3), days_ago(10)]), made_ahead].concat();
    kept.retain(|table| !of_payloads.contains(table));
    assert_eq!(bench.tables().await, sorted(kept));
    assert!(bench.store.drop_partitions(retention).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_day_is_kept_to_its_last_hour() {
    let bench = Bench::new().await;
    bench.make("event", days_ago(30)).await;
    bench.make("event", days_ago(31)).await;
    // The day that ended 29 days and some hours ago stays; the one before ended 30 days ago.
    let dropped = bench.store.drop_partitions(KEEP).await.unwrap();
    assert_eq!(dropped, [name("event", days_ago(31))]);
}

#[tokio::test]
async fn a_day_of_which_something_is_queued_is_kept() {
    let bench = Bench::new().await;
    for table in TABLES {
        for age in [40, 41, 42] {
            bench.make(table, days_ago(age)).await;
        }
    }
    bench.insert(unix_ms(days_ago(41))).await.unwrap();
    let dropped = bench.store.drop_partitions(KEEP).await.unwrap();
    assert_eq!(sorted(dropped), names(&[days_ago(42)]));

    bench.run("delete from delivery_queue".to_owned()).await;
    let dropped = bench.store.drop_partitions(KEEP).await.unwrap();
    assert_eq!(sorted(dropped), names(&[days_ago(40), days_ago(41)]));
}

#[tokio::test]
async fn of_two_droppers_one_drops_each_day() {
    let bench = Bench::new().await;
    for table in TABLES {
        bench.make(table, days_ago(40)).await;
    }
    let other = bench.database.store();
    let (one, two) = tokio::join!(bench.store.drop_partitions(KEEP), other.drop_partitions(KEEP));
    let dropped = sorted([one.unwrap(), two.unwrap()].concat());
    assert_eq!(dropped, names(&[days_ago(40)]));
}

#[tokio::test]
async fn what_an_interrupted_drop_left_is_dropped_in_its_time() {
    let bench = Bench::new().await;
    for (table, age) in [("event", 40), ("event", 20), ("delivery", 40)] {
        bench.make(table, days_ago(age)).await;
    }
    for age in [40, 20] {
        let name = name("event", days_ago(age));
        bench.run(format!("alter table event detach partition {name}")).await;
    }
    bench.half_detach("delivery", days_ago(40)).await;
    // Not ours: the name is no day's.
    bench.run("create table event_99999999 (); create table event_2026 ()".to_owned()).await;

    let dropped = bench.store.drop_partitions(KEEP).await.unwrap();
    assert_eq!(sorted(dropped), [name("delivery", days_ago(40)), name("event", days_ago(40))]);
    let left = bench.tables().await;
    assert!(left.contains(&name("event", days_ago(20))), "not past its time: {left:?}");
    assert!(left.contains(&"event_99999999".to_owned()), "{left:?}");
}

#[tokio::test]
async fn a_day_that_is_being_read_is_an_outage_and_holds_up_no_other() {
    let bench = Bench::new().await;
    for table in ["event", "delivery"] {
        bench.make(table, days_ago(40)).await;
    }
    let (read, free) = (name("event", days_ago(40)), name("delivery", days_ago(40)));
    let mut reader = bench.store.pool().begin().await.unwrap();
    let select = format!("select from {read}");
    sqlx::raw_sql(AssertSqlSafe(select)).execute(&mut *reader).await.unwrap();
    let error = bench.store.drop_partitions(KEEP).await.unwrap_err();
    assert!(error.is_outage(), "{error}");
    let left = bench.tables().await;
    assert!(left.contains(&read) && !left.contains(&free), "{left:?}");

    reader.rollback().await.unwrap();
    assert_eq!(bench.store.drop_partitions(KEEP).await.unwrap(), [read]);
}

#[tokio::test]
async fn a_day_that_an_interrupted_drop_left_detached_is_attached_again() {
    let bench = Bench::new().await;
    bench.insert(unix_ms(today())).await.unwrap();
    let (detached, half) = (name("event", today()), name("event_payload", today()));
    bench.run(format!("alter table event detach partition {detached}")).await;
    bench.half_detach("event_payload", today()).await;
    bench.insert(unix_ms(today())).await.unwrap_err();

    assert_eq!(sorted(bench.store.make_partitions().await.unwrap()), [detached, half]);
    bench.insert(unix_ms(today())).await.unwrap();
    let events: i64 =
        sqlx::query_scalar("select count(*) from event join event_payload using (event_id)")
            .fetch_one(bench.store.pool())
            .await
            .unwrap();
    assert_eq!(events, 2);
}

#[tokio::test]
async fn days_that_are_over_are_frozen_once() {
    let bench = Bench::new().await;
    for table in TABLES {
        for age in [2, 3] {
            bench.make(table, days_ago(age)).await;
        }
    }
    for age in [0, 2] {
        bench.insert(unix_ms(days_ago(age))).await.unwrap();
    }
    bench.until_visible_to_all().await;
    // Nothing of the day before that, of today, or of what is empty.
    let written = ["event", "event_payload"].map(|table| name(table, days_ago(2)));
    let other = bench.database.store();
    let (one, two) = tokio::join!(bench.store.freeze_days(), other.freeze_days());
    assert_eq!(sorted([one.unwrap(), two.unwrap()].concat()), sorted(written.to_vec()));
    let unfrozen: Vec<String> = sqlx::query_scalar(
        "select relname::text from pg_class
         where relkind = 'r' and relname ~ '_[0-9]{8}$' and pg_relation_size(oid) > 0
           and relallvisible = 0 order by 1",
    )
    .fetch_all(bench.store.pool())
    .await
    .unwrap();
    assert_eq!(unfrozen, sorted(["event", "event_payload"].map(|t| name(t, today())).to_vec()));
    assert!(bench.store.freeze_days().await.unwrap().is_empty(), "frozen already");
}
