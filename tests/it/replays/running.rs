//! Replays at work: with a rate, through crashes, on several replicas.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};

use crate::support::{
    Answer, Receiver, TestDatabase,
    process::{Process, free_port, on},
};

use super::*;

/// Makes all that was delivered dead.
async fn bury(app: &TestApp) {
    execute(app, "update delivery set state = 'dead', reason = 'http_status', last_status = 500")
        .await;
}

async fn wait_until_ended(app: &TestApp, count: usize) {
    let count = i64::try_from(count).unwrap();
    eventually("all have ended", async || {
        let ended: (i64, i64) = sqlx::query_as(
            "select (select count(*) from delivery), (select count(*) from delivery_queue)",
        )
        .fetch_one(app.store.pool())
        .await
        .unwrap();
        (ended == (count, 0)).then_some(())
    })
    .await;
}

/// How often each event arrived.
fn arrivals(receiver: &Receiver) -> BTreeMap<String, usize> {
    let mut arrivals = BTreeMap::new();
    for one in receiver.received() {
        *arrivals.entry(one.header("webhook-id").to_owned()).or_default() += 1;
    }
    arrivals
}

/// Attempts that a replay made of one delivery: of how many deliveries, and of how many at most.
async fn replayed(store: &webhook_dispatcher::store::Store) -> (i64, i64) {
    sqlx::query_as(
        "select count(*), coalesce(max(count), 0) from (
             select count(*) as count from attempt where run = 'replay' group by delivery_id
         ) as each",
    )
    .fetch_one(store.pool())
    .await
    .unwrap()
}

/// Catches: a cursor that is not of the same commit as what it stands for (some are queued twice or
/// never after a crash); a replay that nobody goes on with; another `webhook-id`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_survives_a_crash_and_queues_each_once() {
    const COUNT: usize = 2_000;
    let receiver = Receiver::always(200).await;
    let database = TestDatabase::new().await;
    let app = TestApp::on(database.clone(), &["--role=api"]).await;
    subscribe(&app, &receiver.url("/"), "a").await;
    let events = dead(&app, "a", COUNT).await;
    let url = database.url();
    let environment =
        [on(&url).as_slice(), &[("ROLE", "worker"), ("ALLOWED_TARGET_CIDRS", "127.0.0.0/8")]]
            .concat();
    let service = Process::start(free_port().await, &environment).await;
    let body = json!({"filter": {"state": "dead"}, "rate_per_second": 600});
    let made = replay(&app, body).await;
    eventually("a good part is queued", async || {
        (shown(&app, &made).await["queued"].as_i64().unwrap() >= 500).then_some(())
    })
    .await;
    service.kill();
    let before = shown(&app, &made).await;
    assert_eq!(before["state"], "running", "in the middle: {before}");

    let _service = Process::start(free_port().await, &environment).await;
    let done = wait_for(&app, &made, "completed").await;
    assert_eq!((&done["matched"], &done["queued"]), (&json!(COUNT), &json!(COUNT)));
    // The newest of its events, and not where it began.
    let newest = app.event(events.iter().max().unwrap()).await;
    let at = |time: &Value| time.as_str().unwrap().parse::<DateTime<Utc>>().unwrap();
    let apart = (at(&done["reached_at"]) - at(&newest["created_at"])).abs();
    assert!(apart < TimeDelta::seconds(1), "{apart}");
    wait_until_ended(&app, COUNT).await;
    assert_eq!(replayed(&app.store).await, (i64::try_from(COUNT).unwrap(), 1));
    let arrivals = arrivals(&receiver);
    assert_eq!(arrivals.into_keys().collect::<BTreeSet<_>>(), set(&events));
    let states: Vec<String> = sqlx::query_scalar("select distinct state from delivery")
        .fetch_all(app.store.pool())
        .await
        .unwrap();
    assert_eq!(states, ["delivered"]);
    app.stop().await;
}

/// Catches: a rate that each replica keeps for itself, or that nobody keeps; a delivery that two of
/// them queue.
#[tokio::test]
async fn the_rate_is_that_of_all_replicas_together() {
    const COUNT: usize = 160;
    const RATE: usize = 40;
    let receiver = Receiver::always(200).await;
    let database = TestDatabase::new().await;
    let app = TestApp::on(database.clone(), &[]).await;
    subscribe(&app, &receiver.url("/"), "a").await;
    publish(&app, "a", COUNT).await;
    wait_until_ended(&app, COUNT).await;
    bury(&app).await;
    let other = TestApp::on(database.clone(), &[]).await;
    let third = TestApp::on(database, &[]).await;
    let made = replay(&app, json!({"filter": {"state": "dead"}, "rate_per_second": RATE})).await;
    let done = wait_for(&app, &made, "completed").await;
    assert_eq!(done["queued"], COUNT);
    wait_until_ended(&app, COUNT).await;
    assert_eq!(replayed(&app.store).await, (i64::try_from(COUNT).unwrap(), 1));
    // When each was queued, by the database's clock.
    let queued_at: Vec<chrono::DateTime<chrono::Utc>> = sqlx::query_scalar(
        "select scheduled_at from attempt where run = 'replay' order by scheduled_at",
    )
    .fetch_all(app.store.pool())
    .await
    .unwrap();
    // A second's worth, and what a step takes and may make up for.
    let most = RATE + 2 * RATE / 4;
    for window in queued_at.windows(most + 1) {
        let took = window[most] - window[0];
        assert!(took >= chrono::Duration::seconds(1), "{} in {took}", most + 1);
    }
    for one in [app, other, third] {
        one.stop().await;
    }
}

/// Catches: a replay that tries once only, or by the count of the attempts before; one whose failure
/// makes a delivered one dead.
#[tokio::test]
async fn each_is_sent_as_its_policy_says() {
    let receiver =
        Receiver::start(|before, _| Answer::status(if before < 2 { 200 } else { 500 })).await;
    let app = TestApp::with(&["--max-attempts=3"]).await;
    subscribe(&app, &receiver.url("/"), "a").await;
    publish(&app, "a", 2).await;
    wait_until_ended(&app, 2).await;
    execute(
        &app,
        "update delivery set state = 'dead', reason = 'timeout'
                   where delivery_id = (select delivery_id from delivery
                                        order by delivery_id limit 1)",
    )
    .await;
    let made = replay(&app, json!({"filter": {"event_type": "a"}})).await;
    wait_for(&app, &made, "completed").await;
    wait_until_ended(&app, 2).await;
    assert_eq!(replayed(&app.store).await, (2, 3));
    let (_, list) = app.get("/deliveries").await;
    let shown: Vec<_> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .rev()
        .map(|one| (one["state"].as_str().unwrap(), one["attempt_count"].as_i64().unwrap()))
        .collect();
    assert_eq!(shown, [("dead", 4), ("delivered", 4)]);
    app.stop().await;
}

/// Catches: events that stay unrouted, or are routed by another filter, type or time; deliveries to a
/// disabled subscription that are sent; an event that still says that it reached nobody.
#[tokio::test]
async fn events_that_reached_nobody_are_routed_by_todays_subscriptions() {
    let receiver = Receiver::always(200).await;
    let app = TestApp::start().await;
    let mut events = Vec::new();
    for (event_type, n) in [("a", 1), ("a", 2), ("a", 3), ("b", 2)] {
        let body = json!({"payload": {"n": n}, "type": event_type});
        let (status, accepted) = app.call("POST", "/events", None, Some(&body)).await;
        assert_eq!(status, 202, "{accepted}");
        events.push(accepted["id"].as_str().unwrap().to_owned());
    }
    sqlx::query("delete from event_payload where event_id = $1")
        .bind(events[2].parse::<webhook_dispatcher::domain::EventId>().unwrap().uuid())
        .execute(app.store.pool())
        .await
        .unwrap();
    let body = json!({"target_url": receiver.url("/"), "event_types": ["a", "b"],
                      "filter": {"data.n": 2}});
    app.make("/subscriptions", body).await;
    let body = json!({"target_url": receiver.url("/"), "event_types": "a", "is_active": false,
                      "filter": {"data.n": 2}});
    app.make("/subscriptions", body).await;

    // One that was for a single subscription, which is gone, is none of theirs.
    sqlx::query("update event set route = 'one' where event_id = $1")
        .bind(events[0].parse::<webhook_dispatcher::domain::EventId>().unwrap().uuid())
        .execute(app.store.pool())
        .await
        .unwrap();
    let wish = json!({"filter": {"event_type": "a"}, "include_unrouted": true, "dry_run": true});
    let (_, count) = app.call("POST", "/replays", None, Some(&wish)).await;
    assert_eq!(count["unrouted"], json!({"events": 2, "payload_gone": 1}), "{count}");
    let wish = json!({"filter": {"event_type": "a"}, "include_unrouted": true});
    let done = wait_for(&app, &replay(&app, wish.clone()).await, "completed").await;
    let expected = json!({"events": 2, "payload_gone": 1, "routed": 1, "deliveries": 2});
    assert_eq!((&done["unrouted"], &done["matched"]), (&expected, &json!(0)), "{done}");
    let states = eventually("one is delivered", async || {
        let event = app.event(&events[1]).await;
        let states: Vec<_> = event["deliveries"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["state"].as_str().unwrap().to_owned())
            .collect();
        states.contains(&"delivered".to_owned()).then_some(states)
    })
    .await;
    assert_eq!(states, ["delivered", "parked"]);
    let received = receiver.received();
    assert_eq!(
        received.iter().map(|one| one.header("webhook-id")).collect::<Vec<_>>(),
        [&events[1]]
    );
    for n in [0, 2, 3] {
        assert_eq!(app.event(&events[n]).await["status"], "unrouted");
    }

    // What has been routed is so no more.
    let done = wait_for(&app, &replay(&app, wish).await, "completed").await;
    assert_eq!(done["unrouted"]["events"], 1);
    // Nor is anything that nobody asked for.
    let done = replay(&app, json!({"filter": {"event_type": "b"}})).await;
    let done = wait_for(&app, &done, "completed").await;
    assert_eq!(done["unrouted"]["events"], 0);
    assert_eq!(app.event(&events[3]).await["status"], "unrouted");
    app.stop().await;
}
