//! Statistics, and subscriptions that have failed for long.

use std::time::Duration;

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use uuid::Uuid;
use webhook_dispatcher::{
    domain::statistics::{Counts, LastFailure},
    store::{Store, statistics::PeriodOfLane},
};

use crate::support::{Answer, Receiver, TestApp, TestDatabase, eventually};

async fn publish(app: &TestApp, event_type: &str) -> String {
    app.publish(json!({"payload": 1, "type": event_type})).await
}

/// Waits until the statistics know of so many attempts, and shows them.
async fn statistics(app: &TestApp, path: &str, attempts: u64) -> Value {
    eventually(&format!("{attempts} attempts"), async || {
        let (status, shown) = app.get(&format!("{path}/stats")).await;
        assert_eq!(status, 200, "{shown}");
        (shown["attempts"] == attempts).then_some(shown)
    })
    .await
}

/// Catches: an outcome that is not counted, or as another, or for another lane; figures that grow when
/// they are written twice; those of one process that overwrite the other's.
#[tokio::test]
async fn what_was_done_is_counted_by_lane_and_application() {
    let receiver = Receiver::start(|_, request| {
        let status = request.path.trim_start_matches('/').parse().unwrap();
        Answer::status(status).after(Duration::from_millis(30))
    })
    .await;
    let database = TestDatabase::new().await;
    // No pauses: twenty failures would take minutes.
    let flags = ["--max-attempts=2", "--breaker-failures=0"];
    let one = TestApp::on(database.clone(), &flags).await;
    let other = TestApp::on(database, &flags).await;
    for (uid, path) in [("well", "/200"), ("bad", "/503")] {
        let body =
            json!({"uid": uid, "target_url": receiver.url(path), "event_types": ["all", uid]});
        one.make("/subscriptions", body).await;
    }
    for round in 0..10 {
        let app = if round % 2 == 0 { &one } else { &other };
        let event = publish(app, "all").await;
        app.wait_for(&event, "dead").await;
    }
    let event = publish(&one, "well").await;
    one.wait_for(&event, "delivered").await;
    for (path, attempts, failed, delivered, dead, rate) in [
        ("/subscriptions/well", 11, 0, 11, 0, 1.0),
        ("/subscriptions/bad", 20, 20, 0, 10, 0.0),
        ("/applications/default", 31, 20, 11, 10, 11.0 / 21.0),
    ] {
        let shown = statistics(&one, path, attempts).await;
        let found = (&shown["failed_attempts"], &shown["delivered"], &shown["dead"]);
        assert_eq!(found, (&json!(failed), &json!(delivered), &json!(dead)), "{path}: {shown}");
        assert!((shown["success_rate"].as_f64().unwrap() - rate).abs() < 1e-9, "{path}: {shown}");
        let p50 = shown["duration_ms"]["p50"].as_f64().unwrap();
        assert!((20.0..10_000.0).contains(&p50), "{path}: {shown}");
        assert_eq!(shown["last_error"].is_null(), failed == 0, "{path}: {shown}");
        assert_eq!(shown["queue_age_seconds"], 0.0);
    }
    let bad = statistics(&one, "/subscriptions/bad", 20).await;
    assert_eq!((&bad["failure_streak"], &bad["last_delivered_at"]), (&json!(20), &Value::Null));
    let error = &bad["last_error"];
    assert_eq!((&error["class"], &error["status"]), (&json!("http_status"), &json!(503)));
    let well = statistics(&one, "/subscriptions/well", 11).await;
    assert_eq!((&well["failure_streak"], &well["failing_since"]), (&json!(0), &Value::Null));

    // What a process counted last is written when it stops.
    let event = publish(&one, "well").await;
    one.wait_for(&event, "delivered").await;
    let stopped = one.store.clone();
    one.stop().await;
    statistics(&other, "/subscriptions/well", 12).await;
    drop(stopped);
    for (query, status) in [("since=2020-01-01T00:00:00Z", 422), ("since=x", 422), ("until=x", 422)]
    {
        let (answered, problem) = other.get(&format!("/subscriptions/well/stats?{query}")).await;
        assert_eq!(answered.as_u16(), status, "{query}: {problem}");
    }
    assert_eq!(other.get("/subscriptions/nobody/stats").await.0.as_u16(), 404);
    other.stop().await;
}

/// Catches: a subscription that fails for ever; one that is disabled though something got through, or
/// though it may fail for ever; one that is disabled again for what failed before it was enabled.
#[tokio::test]
async fn what_fails_for_long_is_disabled() {
    let receiver = Receiver::start(|before, request| {
        let works_at_times = request.path == "/flaky" && before % 3 == 0;
        Answer::status(if works_at_times { 200 } else { 500 })
    })
    .await;
    // Two seconds, and for one of them its own.
    let app = TestApp::with(&["--disable-after=0.00002315"]).await;
    let retry = json!({"max_attempts": 1_000, "base_seconds": 0.2, "max_seconds": 0.2});
    for (uid, path, more) in [
        ("failing", "/failing", json!({})),
        ("flaky", "/flaky", json!({})),
        ("never", "/never", json!({"disable_after_seconds": 0})),
        ("patient", "/patient", json!({"disable_after_seconds": 86_400})),
    ] {
        let mut body = json!({"uid": uid, "target_url": receiver.url(path), "event_types": "a",
            "retry": retry});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        app.make("/subscriptions", body).await;
    }
    let show = async |uid: &str| app.get(&format!("/subscriptions/{uid}")).await.1;
    publish(&app, "a").await;
    let disabled = eventually("disabled", async || {
        // Something new at all times, so that what works at times does.
        publish(&app, "a").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let shown = show("failing").await;
        (shown["is_active"] == false).then_some(shown)
    })
    .await;
    assert_eq!(disabled["disabled"]["because"], "failing");
    for uid in ["flaky", "never", "patient"] {
        assert_eq!(show(uid).await["is_active"], true, "{uid}");
    }
    // Enabled again it has all of its time anew.
    let (_, shown) = app.call("POST", "/subscriptions/failing/enable", None, None).await;
    assert_eq!(shown["is_active"], true);
    let id = shown["id"].as_str().unwrap().parse().unwrap();
    let failing_for = app.store.failing_for(id).await.unwrap().unwrap();
    assert!(failing_for < Duration::from_secs(2), "{failing_for:?}");
    app.stop().await;
}

fn minute_of(lane: Uuid, begins_at: DateTime<Utc>, is_failed: bool) -> PeriodOfLane {
    let failure = is_failed.then(|| LastFailure {
        at: begins_at,
        class: "timeout",
        message: begins_at.to_string(),
        status: None,
    });
    let mut counts = Counts { delivered: u32::from(!is_failed), ..Counts::default() };
    counts.add_attempt(begins_at, Duration::from_millis(10), failure);
    PeriodOfLane { lane, begins_at, counts }
}

async fn add(store: &Store, minutes: &[PeriodOfLane]) {
    for some in minutes.chunks(100) {
        store.add_statistics(&mut some.to_vec()).await.unwrap();
    }
}

async fn run(store: &Store, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(store.pool()).await.unwrap();
}

/// Catches: a minute that counts twice, or not at all, where minutes and hours meet; a week that is read
/// by its minutes, each on a page of its own; a lane that never failed, or always, of which all minutes
/// are read to say so; hours that an older database has not.
#[tokio::test]
async fn what_reaches_back_far_is_read_by_hours() {
    let store = TestDatabase::new().await.store();
    let [well, bad] = [7, 8].map(Uuid::from_u128);
    let latest = Utc::now().duration_trunc(TimeDelta::minutes(1)).unwrap();
    let times: Vec<_> = (0..4 * 24 * 4).map(|n| latest - TimeDelta::minutes(15) * n).collect();
    for (lane, is_failed) in [(well, false), (bad, true)] {
        let minutes: Vec<_> = times.iter().map(|at| minute_of(lane, *at, is_failed)).collect();
        add(&store, &minutes).await;
    }
    for back in [0, 14, 15, 59, 60, 61, 179, 180, 1_439, 1_440, 2_000] {
        let since = latest - TimeDelta::minutes(back);
        let expected = times.iter().filter(|at| **at >= since).count();
        let expected = i64::try_from(expected).unwrap();
        let sums = store.sums(well, since).await.unwrap();
        let durations = i64::from(sums.durations.counts().iter().sum::<u32>());
        let found = (sums.attempts, sums.delivered, durations);
        assert_eq!(found, (expected, expected, expected), "{back} minutes back");
    }

    // The same by hours that are made from the minutes.
    run(&store, "create table written as table lane_hour; drop table lane_hour".to_owned()).await;
    run(&store, include_str!("../../migrations/0013_statistics_by_hour.sql").to_owned()).await;
    for (one, other) in [("written", "lane_hour"), ("lane_hour", "written")] {
        let query = format!("select count(*) from (table {one} except table {other}) as differs");
        let differ: i64 =
            sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(store.pool()).await.unwrap();
        assert_eq!(differ, 0, "{one}");
    }

    // Of the minutes only those before the first whole hour are asked for.
    let since = latest - TimeDelta::days(3);
    let sums = store.sums(well, since).await.unwrap();
    let hour_later = since + TimeDelta::hours(1);
    run(
        &store,
        format!("delete from lane_minute where not minute between '{since}' and '{hour_later}'"),
    )
    .await;
    assert_eq!(store.sums(well, since).await.unwrap(), sums);
    let lately = store.lately(well).await.unwrap();
    assert_eq!((lately.last_delivered_at, lately.last_failed_at), (Some(latest), None));
    assert_eq!((lately.failing_since, lately.failure_streak), (None, 0));
    let lately = store.lately(bad).await.unwrap();
    assert_eq!((lately.last_delivered_at, lately.last_failed_at), (None, Some(latest)));
    assert_eq!(lately.failing_since, times.last().copied());
    assert_eq!(lately.failure_streak, i64::try_from(times.len()).unwrap());
}

/// Catches: failures that count though a success came after them in the same hour, or that do not
/// though none did; those of a later hour that are forgotten.
#[tokio::test]
async fn a_streak_begins_after_the_success() {
    let store = TestDatabase::new().await.store();
    let lane = Uuid::from_u128(9);
    let hour = Utc::now().duration_trunc(TimeDelta::hours(1)).unwrap() - TimeDelta::hours(5);
    let at = |minute| hour + TimeDelta::minutes(minute);
    let minutes =
        [(5, true), (10, false), (20, true), (30, true), (65, true), (66, true), (190, true)];
    add(&store, &minutes.map(|(minute, is_failed)| minute_of(lane, at(minute), is_failed))).await;
    let lately = store.lately(lane).await.unwrap();
    assert_eq!((lately.failing_since, lately.failure_streak), (Some(at(20)), 5));
    assert_eq!(lately.last_message, Some(at(190).to_string()));
}

/// Catches: statistics that are kept for ever.
#[tokio::test]
async fn old_statistics_are_forgotten() {
    let store = TestDatabase::new().await.store();
    let now = Utc::now().duration_trunc(TimeDelta::minutes(1)).unwrap();
    let minutes =
        [0, 3, 9].map(|days| minute_of(Uuid::from_u128(1), now - TimeDelta::days(days), true));
    add(&store, &minutes).await;
    let age = Duration::from_hours(5 * 24);
    assert_eq!(store.forget_statistics(age, 100).await.unwrap(), 1);
    for table in ["lane_minute", "lane_hour"] {
        let query = format!("select count(*) from {table}");
        let kept: i64 =
            sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(store.pool()).await.unwrap();
        assert_eq!(kept, 2, "{table}");
    }
}
