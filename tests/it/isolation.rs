//! No endpoint harms another: with real sockets, and receivers that hang until the test is over.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio_util::task::TaskTracker;
use webhook_dispatcher::{
    clock::Clock,
    domain::{
        ApplicationId, TargetUrl,
        ids::DEFAULT_APPLICATION,
        pacing::{Breaker, Limits},
        sealing::{SealingKey, SealingKeys},
    },
    ingest::{Batcher, Handover, Intake, Routes},
};

use crate::support::{Answer, Receiver, TestApp, TestDatabase, eventually, stored};

/// Few slots, and a deadline that no test sees.
const TIGHT: [&str; 3] = ["--in-flight-max=32", "--lane-in-flight-max=8", "--http-timeout=300"];

/// A breaker that opens after twelve answers of 500, of deliveries that are not given up meanwhile.
const OPENS_SOON: [&str; 3] =
    ["--breaker-failures=3", "--max-attempts=20", "--backoff-max-seconds=0.1"];

/// Answers as the path says: at once, never, or with a status.
async fn receiver() -> Receiver {
    Receiver::start(|_, request| match request.path.as_str() {
        "/hangs" => Answer::status(200).after(Duration::from_secs(3_600)),
        "/asks-for-quiet" => Answer::status(429).header("retry-after", "3000"),
        _ => Answer::status(200),
    })
    .await
}

async fn subscribe(app: &TestApp, uid: &str, target_url: &str, event_type: &str) {
    let body = json!({"uid": uid, "target_url": target_url, "event_types": event_type});
    app.make("/subscriptions", body).await;
}

async fn publish(app: &TestApp, event_type: &str) -> String {
    app.publish(json!({"payload": 1, "type": event_type})).await
}

fn calls(receiver: &Receiver, path: &str) -> usize {
    receiver.received().iter().filter(|request| request.path == path).count()
}

async fn breaker(app: &TestApp, uid: &str) -> Value {
    let (status, shown) = app.get(&format!("/subscriptions/{uid}/stats")).await;
    assert_eq!(status, 200, "{shown}");
    shown["breaker"].clone()
}

/// Catches: slots without shares, by which the hanging take them all; claims by age, by which their
/// backlog stands in front; a share that a new receiver does not get.
#[tokio::test]
async fn hanging_receivers_with_a_backlog_take_nothing_from_others() {
    let receiver = receiver().await;
    let app = TestApp::with(&TIGHT).await;
    subscribe(&app, "well", &receiver.url("/well"), "well").await;
    let first = publish(&app, "well").await;
    app.wait_for(&first, "delivered").await;
    for n in 0..40 {
        subscribe(&app, &format!("hangs-{n}"), &receiver.url("/hangs"), "hangs").await;
    }
    for _ in 0..20 {
        publish(&app, "hangs").await;
    }
    eventually("they hang", async || (calls(&receiver, "/hangs") >= 8).then_some(())).await;
    let mut events = Vec::new();
    for _ in 0..50 {
        events.push(publish(&app, "well").await);
    }
    for event in &events {
        app.wait_for(event, "delivered").await;
    }
    // One that nobody knew before.
    subscribe(&app, "new", &receiver.url("/new"), "new").await;
    let event = publish(&app, "new").await;
    app.wait_for(&event, "delivered").await;
    let hanging = calls(&receiver, "/hangs");
    assert!(hanging < 800, "{hanging}: the set-up itself");
}

/// Catches: requests that hang and keep their slots to their deadlines, of lanes that were well and so
/// had nearly all that there are.
#[tokio::test]
async fn who_always_answered_and_hangs_gives_up_its_slots() {
    let hangs = Arc::new(AtomicBool::new(false));
    let state = hangs.clone();
    let receiver = Receiver::start(move |_, request| {
        let hangs = request.path == "/turns" && state.load(Ordering::Relaxed);
        Answer::status(200).after(Duration::from_secs(if hangs { 3_600 } else { 0 }))
    })
    .await;
    let database = TestDatabase::new().await;
    let flags = ["--in-flight-max=16", "--lane-in-flight-max=8", "--http-timeout=300"];
    let app = TestApp::on(database.clone(), &flags).await;
    subscribe(&app, "well", &receiver.url("/well"), "well").await;
    for n in 0..16 {
        subscribe(&app, &format!("turns-{n}"), &receiver.url("/turns"), "turns").await;
    }
    for event_type in ["well", "turns"] {
        let event = publish(&app, event_type).await;
        app.wait_for(&event, "delivered").await;
    }
    hangs.store(true, Ordering::Relaxed);
    for _ in 0..3 {
        publish(&app, "turns").await;
    }
    eventually("they hang", async || (calls(&receiver, "/turns") >= 16 + 15).then_some(())).await;
    for _ in 0..5 {
        let event = publish(&app, "well").await;
        app.wait_for(&event, "delivered").await;
    }
    eventually("enough are given up for a quarter to be free", async || {
        let sql =
            "select count(distinct lane_id) from attempt join delivery_queue using (delivery_id)
                   where error_message like 'given up early%'";
        let count: i64 = sqlx::query_scalar(sql).fetch_one(database.store().pool()).await.unwrap();
        (count >= 4).then_some(())
    })
    .await;
}

/// Catches: a breaker that does not open, that lets through more than probes or has no pauses, that
/// claims or counts as attempts what it holds back, or that does not close.
#[tokio::test]
async fn an_open_breaker_holds_back_what_comes_until_a_probe_succeeds() {
    let is_mended = Arc::new(AtomicBool::new(false));
    let state = is_mended.clone();
    let receiver = Receiver::start(move |_, _| {
        Answer::status(if state.load(Ordering::Relaxed) { 200 } else { 500 })
    })
    .await;
    let database = TestDatabase::new().await;
    let app = TestApp::on(database.clone(), &OPENS_SOON).await;
    subscribe(&app, "flaky", &receiver.url("/"), "flaky").await;
    assert_eq!(breaker(&app, "flaky").await["state"], "closed");
    let mut events = vec![publish(&app, "flaky").await];
    let open = eventually("it opens", async || {
        let breaker = breaker(&app, "flaky").await;
        (breaker["state"] == "open").then_some(breaker)
    })
    .await;
    assert!(open["failures"].as_u64() >= Some(3) && open["open_until"].is_string(), "{open}");
    assert_eq!((&open["opens_after"], &open["pause_max_seconds"]), (&json!(3), &json!(60.0)));
    for _ in 0..9 {
        events.push(publish(&app, "flaky").await);
    }
    let (_, told) = app.get("/subscriptions/flaky/diagnosis").await;
    assert!(told["breaker"]["state"] != "closed", "{told}");
    assert!(told["steps"].to_string().contains("breaker"), "{told}");
    let explained = eventually("why it waits is told", async || {
        let (_, page) = app.get(&format!("/events/{}/explain", events[9])).await;
        let detail = page["data"][0]["detail"].as_str().unwrap_or_default().to_owned();
        detail.contains("breaker").then_some(detail)
    });
    assert!(explained.await.starts_with("it waits to be sent; but "), "{told}");
    eventually("it is half-open", async || {
        (breaker(&app, "flaky").await["state"] == "half_open").then_some(())
    })
    .await;
    // Two probes at first, and then four.
    eventually("the first two fail", async || (receiver.count() >= 14).then_some(())).await;
    let claimed: i64 = sqlx::query_scalar("select sum(claim_number) from delivery_queue")
        .fetch_one(database.store().pool())
        .await
        .unwrap();
    is_mended.store(true, Ordering::Relaxed);
    let mut attempts = 0;
    for event in &events {
        attempts += app.wait_for(event, "delivered").await["attempt_count"].as_u64().unwrap();
    }
    let at: Vec<Instant> = receiver.received().iter().map(|request| request.at).collect();
    let failed = u64::try_from(at.len()).unwrap() - 10;
    assert_eq!(attempts, failed + 10, "each failure was one attempt, and nothing else was one");
    assert!((14..=18).contains(&failed) && claimed <= 18, "{failed} failures, {claimed} claims");
    // A second, and two: a quarter less at most, and what answering takes.
    for (n, pause_ms) in [(12, 700), (14, 1_000)] {
        let pause = at[n] - at[n - 1];
        assert!(pause >= Duration::from_millis(pause_ms), "{n}: {pause:?}");
    }
    eventually("it closes", async || {
        (breaker(&app, "flaky").await["state"] == "closed").then_some(())
    })
    .await;
}

/// Probes of one opening of a breaker that has opened before.
const PROBES_MAX: usize = 4;

/// Catches: a breaker of which the next process knows nothing, or probes that each of several processes
/// makes for itself.
#[tokio::test]
async fn an_open_breaker_stays_open_in_the_next_process_and_in_others() {
    let receiver = Receiver::always(500).await;
    let database = TestDatabase::new().await;
    let app = TestApp::on(database.clone(), &OPENS_SOON).await;
    subscribe(&app, "down", &receiver.url("/"), "down").await;
    for _ in 0..5 {
        publish(&app, "down").await;
    }
    // The pauses are 8 s and more then, and both processes have heard of it.
    let known = async || breaker(&app, "down").await["failures"].as_u64() >= Some(6);
    eventually("it is known", async || known().await.then_some(())).await;
    app.stop().await;
    let before = receiver.count();
    let one = TestApp::on(database.clone(), &OPENS_SOON).await;
    let two = TestApp::on(database.clone(), &OPENS_SOON).await;
    for app in [&one, &two] {
        publish(app, "down").await;
    }
    eventually("it is probed", async || (receiver.count() > before).then_some(())).await;
    let failures = async || breaker(&one, "down").await["failures"].as_u64();
    eventually("that is told", async || (failures().await > Some(6)).then_some(())).await;
    // Both wait for the end of the next pause now.
    let probes = receiver.count() - before;
    assert!((1..=PROBES_MAX).contains(&probes), "one opening, of one of them: {probes} probes");
}

/// Catches: what one process knows of a lane and the next one does not.
#[tokio::test]
async fn who_asked_for_quiet_is_left_in_peace_after_a_restart() {
    let receiver = receiver().await;
    let database = TestDatabase::new().await;
    let app = TestApp::on(database.clone(), &[]).await;
    subscribe(&app, "busy", &receiver.url("/asks-for-quiet"), "both").await;
    subscribe(&app, "well", &receiver.url("/well"), "both").await;
    publish(&app, "both").await;
    eventually("it is known", async || {
        breaker(&app, "busy").await["paused_until"].is_string().then_some(())
    })
    .await;
    app.stop().await;
    let app = TestApp::on(database, &[]).await;
    for _ in 0..5 {
        publish(&app, "both").await;
    }
    eventually("the other one gets them", async || (calls(&receiver, "/well") == 6).then_some(()))
        .await;
    assert_eq!(calls(&receiver, "/asks-for-quiet"), 1);
}

fn routes() -> Routes {
    Routes::new(SealingKeys::from("07".repeat(32).parse::<SealingKey>().unwrap()))
}

/// Catches: applications that are read one after the other, so that each waits for all; one with many
/// subscriptions that holds up the others; what is missing from a common answer; a claim that leaves
/// each of its deliveries to read its own.
#[tokio::test]
async fn what_is_known_of_many_applications_is_read_together() {
    const APPLICATIONS: i32 = 300;
    let database = TestDatabase::new().await;
    let store = database.store();
    sqlx::query(
        "insert into application (application_id, uid, name)
         select gen_random_uuid(), 'tenant-' || n, 'Tenant' from generate_series(1, $1) as n",
    )
    .bind(APPLICATIONS)
    .execute(store.pool())
    .await
    .unwrap();
    // One of them is large.
    sqlx::query(
        "with made as (
             insert into subscription (subscription_id, application_id, revision, routing_version)
             select gen_random_uuid(), application_id, 1, 1
             from application, generate_series(1, 500) where uid = 'tenant-7'
             returning subscription_id
         )
         insert into subscription_revision (
             subscription_id, revision, routing_version, target_url, method, event_types, is_active,
             payload_format, schema_version, signing, signature_headers
         )
         select subscription_id, 1, 1, 'http://127.0.0.1:9/', 'POST', '{a}', true, 'raw', '1',
                'none', 'standard'
         from made",
    )
    .execute(store.pool())
    .await
    .unwrap();
    let ids: Vec<(uuid::Uuid, String)> =
        sqlx::query_as("select application_id, uid from application where uid like 'tenant-%'")
            .fetch_all(store.pool())
            .await
            .unwrap();
    let statements = async || -> i64 {
        let sql = "select xact_commit from pg_stat_database where datname = current_database()";
        sqlx::query_scalar(sql).fetch_one(database.store().pool()).await.unwrap()
    };
    let (routes, prepared) = (routes(), routes());
    let before = statements().await;
    let read = futures_util::future::join_all(ids.iter().map(async |(id, uid)| {
        let id = ApplicationId::from_uuid(*id);
        let snapshot = routes.fresh(&store, id).await.unwrap().unwrap();
        assert_eq!((snapshot.application, snapshot.uid.as_deref()), (id, Some(&**uid)));
        snapshot.subscriptions().len()
    }))
    .await;
    assert_eq!((read.iter().sum::<usize>(), read.iter().max()), (500, Some(&500)));
    assert!(
        routes
            .fresh(&store, ApplicationId::from_uuid(uuid::Uuid::from_u128(1)))
            .await
            .unwrap()
            .is_none()
    );
    prepared.prepare(&store, ids.iter().map(|(id, _)| ApplicationId::from_uuid(*id))).await;
    let unprepared = ids.iter().filter(|(id, _)| {
        let known = prepared.known(ApplicationId::from_uuid(*id));
        known.is_none_or(|snapshot| snapshot.uid.is_none())
    });
    let unprepared: Vec<&str> = unprepared.map(|(_, uid)| &**uid).collect();
    assert_eq!(unprepared, ["tenant-7"], "but for the large one");
    // Connections tell of their statements when they end, and seldom before.
    store.close().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let told = statements().await - before;
    assert!(told < i64::from(APPLICATIONS) / 2, "{told}");
}

/// Catches: a delivery that waits until its application has been read, although the transaction that
/// accepted it has just compared the version; and a change that such a comparison hides.
#[tokio::test]
async fn what_is_accepted_is_sent_without_reading_its_application_again() {
    let database = TestDatabase::new().await;
    let routes = Arc::new(routes());
    let limits = Limits {
        lane_in_flight_max: 1,
        lane_held_max: 1,
        in_flight_max: 1,
        held_max: 1,
        held_bytes_max: 1,
        breaker: Breaker { failures: 0, pause_max: Duration::ZERO },
    };
    let handover = Arc::new(Handover::new(limits));
    let intake = Intake { clock: Clock::default(), handover, routes: routes.clone() };
    let (ingest, batcher) = Batcher::new(database.store(), intake);
    TaskTracker::new().spawn(batcher.run());
    let closed = database.store();
    closed.close().await;
    let target = TargetUrl::parse("http://127.0.0.1:9/").unwrap();
    let submit = async || ingest.submit(stored::submission(&target)).await.unwrap();
    submit().await;
    let version = routes.known(DEFAULT_APPLICATION).unwrap().version;
    // What was read a second ago does not count.
    let is_old = async || tokio::time::sleep(Duration::from_millis(1_100)).await;
    is_old().await;
    routes.confirm([(DEFAULT_APPLICATION, version + 1)], Instant::now());
    assert!(routes.fresh(&closed, DEFAULT_APPLICATION).await.is_err(), "it is of another version");
    eventually("it is known as the transaction saw it", async || {
        is_old().await;
        submit().await;
        routes.fresh(&closed, DEFAULT_APPLICATION).await.ok()
    })
    .await;
    routes.forget([DEFAULT_APPLICATION]);
    routes.confirm([(DEFAULT_APPLICATION, version)], Instant::now());
    assert!(routes.learn(&closed, &[DEFAULT_APPLICATION]).await.is_err(), "it has changed");
}
