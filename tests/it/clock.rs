//! Steps of the database's clock: what waits is sent in time, and nothing ends, stops or is dropped.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use sqlx::Row;
use webhook_dispatcher::{clock::Clock, store::partitions::Retention};

use crate::support::{
    Answer, Receiver, SteppedClock, TestApp, TestDatabase, eventually,
    process::{Process, free_port, on},
};

/// Long enough for several heartbeats.
const STEP: Duration = Duration::from_secs(3);

/// A file of metrics' value.
async fn metric(base: &str, name: &str) -> f64 {
    let text = reqwest::get(format!("{base}/metrics")).await.unwrap().text().await.unwrap();
    let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
    line.split(' ').next_back().unwrap().parse().unwrap()
}

async fn subscribe(app: &TestApp, url: &str, more: Value) -> String {
    let mut body = json!({"uid": "one", "target_url": url, "event_types": "*"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    app.make("/subscriptions", body).await["id"].as_str().unwrap().to_owned()
}

async fn warnings(app: &TestApp) -> Value {
    let (status, body) = app.get("/readyz").await;
    assert_eq!(status, 200, "{body}");
    body["warnings"].clone()
}

async fn wait_for_alarm(app: &TestApp) {
    eventually("the alarm", async || {
        warnings(app).await[0].as_str().map(|text| assert!(text.contains("clock"), "{text}"))
    })
    .await;
}

async fn wait_for_calm(app: &TestApp) {
    eventually("the end of the alarm", async || warnings(app).await.is_null().then_some(())).await;
}

async fn days(database: &TestDatabase) -> BTreeSet<String> {
    let sql = "select inhrelid::regclass::text from pg_inherits";
    let names: Vec<String> =
        sqlx::query_scalar(sql).fetch_all(database.store().pool()).await.unwrap();
    names.into_iter().collect()
}

/// How far ahead of the database's clock the lane's next time is, and what is due is due, in seconds.
async fn ahead(database: &TestDatabase) -> (f64, f64) {
    let row = sqlx::query(
        "select coalesce((select extract(epoch from max(next_at) - now()) from lane_limit), 0)::float8,
                coalesce((select extract(epoch from max(due_at) - now()) from delivery_queue), 0)::float8",
    )
    .fetch_one(database.store().pool())
    .await
    .unwrap();
    (row.get(0), row.get(1))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn step_of_the_clock_freezes_no_rate_and_kills_no_delivery() {
    let Some(clock) = SteppedClock::take().await else { return };
    let limited = Receiver::always(200).await;
    let failing = Receiver::always(500).await;
    let retries = ["--backoff-base-seconds=1", "--backoff-max-seconds=1", "--max-attempts=100"];
    let app = TestApp::on(clock.database.clone(), &retries).await;
    let rate = json!({"rate_limit": {"count": 20, "per_seconds": 1}});
    subscribe(&app, &limited.url("/"), rate).await;
    let doomed = app.accept(&failing.url("/")).await;
    let before = days(&clock.database).await;
    eventually("attempts", async || (failing.count() > 1).then_some(())).await;

    for step in ["+40d", "-40d"] {
        clock.step(step);
        // At once, so that some of it meets statements before any heartbeat has seen the step.
        for n in 0..30 {
            app.publish(json!({"payload": n, "type": "a"})).await;
        }
        wait_for_alarm(&app).await;
        let attempts = failing.count();
        tokio::time::sleep(STEP).await;
        assert!(failing.count() > attempts, "{step}: retries stand still");
        assert!(failing.count() < attempts + 8, "{step}: retries come early");
        // The services of other tests in this process set the same gauge, to what their clocks say.
        eventually("the gauge", async || {
            let jump = metric(&app.base, "dispatcher_database_clock_jump_seconds").await;
            ((jump.abs() - 40.0 * 86_400.0).abs() < 60.0).then_some(())
        })
        .await;
        clock.step("+0");
        wait_for_calm(&app).await;
        let sent = limited.count();
        app.publish(json!({"payload": "after", "type": "a"})).await;
        eventually("the rate goes on", async || (limited.count() > sent).then_some(())).await;
        let (next, due) = ahead(&clock.database).await;
        assert!(next < 10.0 && due < 10.0, "{step}: {next} s and {due} s ahead");
    }
    eventually("all of the limited", async || (limited.count() == 62).then_some(())).await;
    assert_eq!(app.event(&doomed).await["status"], "pending");
    assert_eq!(days(&clock.database).await, before, "no day is dropped or made far away");
    app.stop().await;
}

#[tokio::test]
async fn rate_left_far_ahead_heals_at_the_next_claim() {
    let receiver = Receiver::always(200).await;
    let database = TestDatabase::new().await;
    let app = TestApp::on(database.clone(), &[]).await;
    subscribe(&app, &receiver.url("/"), json!({"rate_limit": {"count": 2, "per_seconds": 1}}))
        .await;
    app.publish(json!({"payload": 1, "type": "a"})).await;
    eventually("the first", async || (receiver.count() == 1).then_some(())).await;
    app.stop().await;
    let spoil = "update lane_limit set next_at = now() + interval '40 days'";
    let spoilt = sqlx::query(spoil).execute(database.store().pool()).await.unwrap();
    assert_eq!(spoilt.rows_affected(), 1);
    let app = TestApp::on(database.clone(), &[]).await;
    app.publish(json!({"payload": 2, "type": "a"})).await;
    eventually("the next", async || (receiver.count() == 2).then_some(())).await;
    assert!(ahead(&database).await.0 < 10.0);
    app.stop().await;
}

#[tokio::test]
async fn delivery_left_far_ahead_is_sent() {
    let receiver = Receiver::start(|n, _| Answer::status(if n == 0 { 500 } else { 200 })).await;
    let database = TestDatabase::new().await;
    let waits = ["--backoff-base-seconds=3600", "--backoff-max-seconds=3600"];
    let app = TestApp::on(database.clone(), &waits).await;
    let event = app.accept(&receiver.url("/")).await;
    let spoil = "update delivery_queue set due_at = now() + interval '40 days' where owner is null";
    eventually("a retry that waits", async || {
        let spoilt = sqlx::query(spoil).execute(database.store().pool()).await.unwrap();
        (spoilt.rows_affected() == 1).then_some(())
    })
    .await;
    app.wait_for(&event, "delivered").await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_within_a_step_drops_and_expires_nothing() {
    let Some(clock) = SteppedClock::take().await else { return };
    let refusing = Receiver::always(503).await;
    let retries = ["--backoff-base-seconds=1", "--backoff-max-seconds=1", "--max-attempts=100"];
    let app = TestApp::on(clock.database.clone(), &retries).await;
    let event = app.accept(&refusing.url("/")).await;
    eventually("an attempt", async || (refusing.count() > 0).then_some(())).await;
    // Nothing in the queue keeps this one.
    let done = Receiver::always(200).await;
    let kept = app.accept(&done.url("/")).await;
    app.wait_for(&kept, "delivered").await;
    app.stop().await;
    let before = days(&clock.database).await;

    clock.step("+40d");
    let flags = [retries.as_slice(), &["--retention-days=12"]].concat();
    let app = TestApp::on(clock.database.clone(), &flags).await;
    wait_for_alarm(&app).await;
    // The first round of housekeeping has been by then.
    tokio::time::sleep(STEP).await;
    assert!(before.is_subset(&days(&clock.database).await), "days were dropped");
    assert_eq!(app.event(&event).await["status"], "pending");
    clock.step("+0");
    wait_for_calm(&app).await;
    let attempts = refusing.count();
    eventually("retries go on", async || (refusing.count() > attempts).then_some(())).await;
    assert!(ahead(&clock.database).await.1 < 10.0);
    assert_eq!(app.event(&kept).await["status"], "delivered");
    app.stop().await;
}

#[tokio::test]
async fn days_are_dropped_by_the_settled_time_only() {
    let Some(stepped) = SteppedClock::take().await else { return };
    let store = stepped.database.store();
    store.migrate().await.unwrap();
    let (clock, held_after) = (Clock::new(Duration::from_millis(400)), Duration::from_millis(400));
    let store = store.with_clock(&clock);
    let sample = async || {
        let began = Instant::now();
        let time = store.database_time().await.unwrap();
        clock.sample(time, (began, Instant::now()));
    };
    sample().await;
    store.make_partitions().await.unwrap();
    stepped.step("+40d");
    let day = Duration::from_secs(86_400);
    let retention = Retention { history: 30 * day, payload: 30 * day };
    assert_eq!(store.drop_partitions(retention).await.unwrap(), Vec::<String>::new(), "unseen");
    sample().await;
    assert!(clock.alarm().is_some());
    assert_eq!(
        store.drop_partitions(retention).await.unwrap(),
        Vec::<String>::new(),
        "in question"
    );
    tokio::time::sleep(held_after).await;
    sample().await;
    assert_eq!(clock.alarm(), None, "it has lasted");
    assert!(!store.drop_partitions(retention).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_process_with_a_heartbeat_in_the_future_is_replaced() {
    let Some(clock) = SteppedClock::take().await else { return };
    let receiver = Receiver::start(|n, _| {
        Answer::status(200).after(if n == 0 { Duration::from_secs(60) } else { Duration::ZERO })
    })
    .await;
    let url = clock.database.url();
    let local = [("ALLOWED_TARGET_CIDRS", "127.0.0.0/8"), ("REQUIRE_HTTPS", "false")];
    let environment = [on(&url).as_slice(), &local].concat();
    let first = Process::start(free_port().await, &environment).await;
    let body = json!({"payload": 1, "target_url": receiver.url("/")}).to_string();
    let accepted = reqwest::Client::builder()
        .no_proxy()
        .build()
        .unwrap()
        .post(format!("{}/events", first.base))
        .header("content-type", "application/json")
        .body(body)
        .send()
        .await
        .unwrap();
    assert_eq!(accepted.status(), 202);
    eventually("the request", async || (receiver.count() == 1).then_some(())).await;
    first.kill();
    // As a version before, or a host whose clock was wrong, has left it.
    let spoil = "update dispatcher set heartbeat_at = now() + interval '1 hour'";
    sqlx::query(spoil).execute(clock.database.store().pool()).await.unwrap();
    clock.step("-1h");
    let began = Instant::now();
    let second = Process::start(free_port().await, &environment).await;
    eventually("the takeover", async || (receiver.count() == 2).then_some(())).await;
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    drop(second);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn step_ahead_under_load_expires_no_process_and_sends_nothing_twice() {
    let Some(clock) = SteppedClock::take().await else { return };
    let receiver =
        Receiver::start(|_, _| Answer::status(200).after(Duration::from_millis(300))).await;
    let one = TestApp::on(clock.database.clone(), &[]).await;
    let two = TestApp::on(clock.database.clone(), &[]).await;
    let sql = "select array_agg(dispatcher_id order by dispatcher_id) from dispatcher";
    let pool = clock.database.store();
    let processes: Vec<i32> = sqlx::query_scalar(sql).fetch_one(pool.pool()).await.unwrap();
    assert_eq!(processes.len(), 2);
    let mut sent = 0;
    for step in ["+0", "+1h", "+0", "-1h", "+0"] {
        clock.step(step);
        let until = Instant::now() + Duration::from_millis(2_500);
        while Instant::now() < until {
            for app in [&one, &two] {
                app.accept(&receiver.url("/")).await;
                sent += 1;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    eventually("all", async || (receiver.count() >= sent).then_some(())).await;
    let still: Vec<i32> = sqlx::query_scalar(sql).fetch_one(pool.pool()).await.unwrap();
    assert_eq!(still, processes, "a process was taken for expired");
    let mut times: HashMap<String, usize> = HashMap::new();
    for request in receiver.received() {
        *times.entry(request.header("webhook-id").to_owned()).or_default() += 1;
    }
    assert_eq!(times.len(), sent);
    assert!(times.values().all(|&times| times == 1), "something was sent twice");
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clock_that_differs_from_the_host_is_reported() {
    let Some(clock) = SteppedClock::take().await else { return };
    clock.step("+10m");
    let url = clock.database.url();
    let process = Process::start(free_port().await, &on(&url)).await;
    let output = process.output();
    assert!(output.contains("clock_offset"), "{output}");
    let name = "dispatcher_database_clock_offset_seconds";
    let offset = metric(&process.base, name).await;
    assert!((595.0..605.0).contains(&offset), "{offset}");
    clock.step("+0");
    eventually("the clocks agree", async || {
        (metric(&process.base, name).await.abs() < 5.0).then_some(())
    })
    .await;
}
