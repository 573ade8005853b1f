//! The service in process: delivered, retried, dead; lanes; leases; the end.

use std::time::Duration;

use serde_json::json;
use webhook_dispatcher::{
    domain::{EventId, TargetUrl},
    store::{dispatchers::DispatcherId, events::NewEvent},
};

use crate::support::{Answer, Receiver, TestApp, TestDatabase, eventually, stored};

#[tokio::test]
async fn an_accepted_event_is_delivered_once() {
    let receiver = Receiver::always(204).await;
    let app = TestApp::start().await;
    let id = app.accept(&receiver.url("/hook")).await;
    let event = app.wait_for(&id, "delivered").await;
    assert_eq!(event["attempt_count"], 1);
    assert_eq!(event["next_attempt_at"], json!(null));
    assert_eq!(event["last_error"], json!(null));
    assert_eq!(event["deliveries"][0]["state"], "delivered");
    let received = receiver.received();
    assert_eq!(received.len(), 1);
    assert_eq!(received[0].body, br#"{"hello":"world"}"#);
    assert_eq!(received[0].header("webhook-id"), id);
    app.stop().await;
}

/// The first events after a start do not wait for Postgres to read its catalogue and to plan.
#[tokio::test]
async fn what_every_event_needs_of_postgres_is_prepared_before_the_first() {
    let app = TestApp::start().await;
    for word in ["left join application using (application_id)", "with result as ("] {
        let prepared: i64 = sqlx::query_scalar(
            "select count(*) from pg_stat_activity
             where datname = current_database() and pid <> pg_backend_pid()
               and position($1 in query) > 0",
        )
        .bind(word)
        .fetch_one(app.store.pool())
        .await
        .unwrap();
        assert_eq!(prepared, 1, "{word}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_failing_delivery_is_retried_until_it_is_delivered() {
    let receiver = Receiver::start(|before, _| match before {
        0 => Answer::status(500).body("first"),
        1 => Answer::status(302).header("location", "http://127.0.0.1:1/elsewhere"),
        _ => Answer::status(200).header("x-answer", "yes").body("done"),
    })
    .await;
    let app = TestApp::start().await;
    let id = app.accept(&receiver.url("/hook")).await;
    let event = app.wait_for(&id, "delivered").await;
    assert_eq!(event["attempt_count"], 3);
    assert_eq!(event["last_error"]["class"], "redirect");
    let attempts = event["deliveries"][0]["attempts"].as_array().unwrap();
    let told: Vec<_> = attempts
        .iter()
        .map(|a| (a["response"]["status"].as_i64(), a["error"]["class"].as_str()))
        .collect();
    assert_eq!(
        told,
        [(Some(500), Some("http_status")), (Some(302), Some("redirect")), (Some(200), None)]
    );
    assert_eq!(attempts[0]["response"]["body"], "first");
    assert_eq!(attempts[2]["response"]["headers"]["x-answer"], "yes");
    let received = receiver.received();
    assert!(received.iter().all(|r| r.header("webhook-id") == id && r.path == "/hook"));
    let numbers: Vec<_> = received.iter().map(|r| r.header("x-webhook-attempt")).collect();
    assert_eq!(numbers, ["1", "2", "3"]);
    app.stop().await;
}

#[tokio::test]
async fn a_delivery_dies_after_its_last_attempt() {
    let receiver = Receiver::always(500).await;
    let app = TestApp::with(&["--max-attempts=3"]).await;
    let id = app.accept(&receiver.url("/")).await;
    let event = app.wait_for(&id, "dead").await;
    assert_eq!(event["attempt_count"], 3);
    assert_eq!(event["deliveries"][0]["reason"], "http_status");
    assert_eq!(receiver.count(), 3);
    app.stop().await;
}

#[tokio::test]
async fn gone_is_the_end_at_once() {
    let receiver = Receiver::always(410).await;
    let app = TestApp::start().await;
    let id = app.accept(&receiver.url("/")).await;
    let event = app.wait_for(&id, "dead").await;
    assert_eq!((event["attempt_count"].as_i64(), receiver.count()), (Some(1), 1));
    app.stop().await;
}

#[tokio::test]
async fn a_hanging_receiver_times_out() {
    let receiver =
        Receiver::start(|_, _| Answer::status(200).after(Duration::from_secs(3_600))).await;
    let app = TestApp::with(&["--http-timeout=0.2", "--max-attempts=2"]).await;
    let id = app.accept(&receiver.url("/")).await;
    let event = app.wait_for(&id, "dead").await;
    assert_eq!(event["last_error"]["class"], "timeout");
    assert_eq!(event["deliveries"][0]["reason"], "timeout");
    app.stop().await;
}

#[tokio::test]
async fn retry_after_holds_up_its_url_alone() {
    let receiver = Receiver::start(|before, _| match before {
        0 => Answer::status(429).header("retry-after", "2"),
        _ => Answer::status(200),
    })
    .await;
    let app = TestApp::start().await;
    let first = app.accept(&receiver.url("/a")).await;
    eventually("the 429 to be recorded", async || {
        (app.event(&first).await["attempt_count"] == 1).then_some(())
    })
    .await;
    // Another event of the same URL must not be sent into the pause; a neighbour is.
    let second = app.accept(&receiver.url("/a")).await;
    let neighbour = app.accept(&receiver.url("/b")).await;
    for event in [&neighbour, &first, &second] {
        app.wait_for(event, "delivered").await;
    }
    let received = receiver.received();
    let paths: Vec<_> = received.iter().map(|request| request.path.as_str()).collect();
    assert_eq!(paths, ["/a", "/b", "/a", "/a"]);
    let pause = received[2].at.duration_since(received[0].at);
    // Not a measurement: the receiver asked for two seconds at least.
    assert!(pause >= Duration::from_millis(1_900), "{pause:?}");
    app.stop().await;
}

#[tokio::test]
async fn a_lane_has_no_more_in_flight_than_its_cap_and_holds_up_nobody() {
    let slow = Receiver::start(|_, _| Answer::status(200).after(Duration::from_secs(3_600))).await;
    let quick = Receiver::always(200).await;
    let app = TestApp::with(&["--lane-in-flight-max=3"]).await;
    for _ in 0..20 {
        app.accept(&slow.url("/")).await;
    }
    eventually("the slow lane to be full", async || (slow.count() == 3).then_some(())).await;
    for _ in 0..20 {
        let id = app.accept(&quick.url("/")).await;
        app.wait_for(&id, "delivered").await;
    }
    assert_eq!(slow.count(), 3);
}

#[tokio::test]
async fn what_has_no_room_in_memory_waits_in_the_queue_and_is_claimed() {
    let receiver = Receiver::always(200).await;
    // A process that only accepts has no room at all; one that only sends claims everything.
    let database = TestDatabase::new().await;
    let api = TestApp::on(database.clone(), &["--role=api"]).await;
    let mut ids = Vec::new();
    for _ in 0..50 {
        ids.push(api.accept(&receiver.url("/")).await);
    }
    assert_eq!(receiver.count(), 0);
    let worker = TestApp::on(database, &["--role=worker"]).await;
    for id in &ids {
        api.wait_for(id, "delivered").await;
    }
    assert_eq!(receiver.count(), 50);
    let (status, _) = worker.get("/events").await;
    assert_eq!(status, 404, "a worker shows no events");
    worker.stop().await;
    api.stop().await;
}

#[tokio::test]
async fn accepting_processes_wake_sending_ones() {
    let receiver = Receiver::always(200).await;
    let database = TestDatabase::new().await;
    // A poll that would come far too late: only the notification can be in time.
    let worker =
        TestApp::on(database.clone(), &["--role=worker", "--worker-poll-interval=60"]).await;
    let api = TestApp::on(database, &["--role=api"]).await;
    for _ in 0..3 {
        let id = api.accept(&receiver.url("/")).await;
        api.wait_for(&id, "delivered").await;
    }
    worker.stop().await;
    api.stop().await;
}

#[tokio::test]
async fn what_a_dead_process_held_is_sent_by_another() {
    let receiver = Receiver::always(200).await;
    let database = TestDatabase::new().await;
    let api = TestApp::on(database.clone(), &["--role=api"]).await;
    let id = api.accept(&receiver.url("/")).await;
    let dead = api.store.register_dispatcher().await.unwrap();
    sqlx::query("update delivery_queue set owner = $1, claim_number = 1")
        .bind(dead)
        .execute(api.store.pool())
        .await
        .unwrap();
    sqlx::query("update dispatcher set heartbeat_at = now() - interval '1 minute'")
        .execute(api.store.pool())
        .await
        .unwrap();
    let worker = TestApp::on(database, &["--role=worker"]).await;
    api.wait_for(&id, "delivered").await;
    worker.stop().await;
}

#[tokio::test]
async fn a_process_that_was_taken_for_dead_goes_on_under_a_new_id() {
    let receiver = Receiver::always(200).await;
    let app = TestApp::start().await;
    let old: i32 = sqlx::query_scalar("delete from dispatcher returning dispatcher_id")
        .fetch_one(app.store.pool())
        .await
        .unwrap();
    let new = eventually("a new registration", async || {
        sqlx::query_scalar::<_, i32>("select dispatcher_id from dispatcher")
            .fetch_optional(app.store.pool())
            .await
            .unwrap()
    })
    .await;
    assert!(new > old);
    let id = app.accept(&receiver.url("/")).await;
    app.wait_for(&id, "delivered").await;
    app.stop().await;
}

/// As after a commit whose answer was lost: ours in the database, unknown in memory.
#[tokio::test]
async fn rows_that_a_process_owns_and_does_not_know_are_released() {
    let receiver = Receiver::always(200).await;
    let app = TestApp::start().await;
    let id: i32 = sqlx::query_scalar("select dispatcher_id from dispatcher")
        .fetch_one(app.store.pool())
        .await
        .unwrap();
    let target = TargetUrl::parse(&receiver.url("/")).unwrap();
    let submission = stored::submission(&target);
    let unix_ms = u64::try_from(chrono::Utc::now().timestamp_millis()).unwrap();
    let event_id = EventId::new(unix_ms, rand::random());
    let delivery = stored::delivery(event_id, target, Some(DispatcherId::from_raw(id)));
    let event = NewEvent {
        event_id,
        submission: &submission,
        routing_version: 1,
        deliveries: vec![delivery],
    };
    app.store.store_events(&[event]).await.unwrap();
    let event = app.wait_for(&event_id.to_string(), "delivered").await;
    assert_eq!((event["attempt_count"].as_i64(), receiver.count()), (Some(1), 1));
    app.stop().await;
}

#[tokio::test]
async fn deliveries_that_are_too_old_die_as_expired() {
    let database = TestDatabase::new().await;
    let api = TestApp::on(database.clone(), &["--role=api"]).await;
    let id = api.accept("http://127.0.0.1:9/").await;
    sqlx::query("update delivery_queue set created_at = now() - interval '11 days'")
        .execute(api.store.pool())
        .await
        .unwrap();
    let worker = TestApp::on(database, &["--role=worker"]).await;
    let event = api.wait_for(&id, "dead").await;
    assert_eq!(event["deliveries"][0]["reason"], "expired");
    assert_eq!(event["attempt_count"], 0);
    worker.stop().await;
}

#[tokio::test]
async fn an_orderly_end_finishes_what_is_in_flight_and_gives_back_the_rest() {
    let receiver =
        Receiver::start(|_, _| Answer::status(200).after(Duration::from_millis(500))).await;
    let app = TestApp::with(&["--lane-in-flight-max=4"]).await;
    for _ in 0..12 {
        app.accept(&receiver.url("/")).await;
    }
    // One, then two, then four at a time.
    eventually("four in flight", async || (receiver.count() > 3).then_some(())).await;
    let store = app.store.clone();
    app.stop().await;
    let (delivered, waiting, owned, attempts): (i64, i64, i64, i64) = sqlx::query_as(
        "select (select count(*) from delivery where state = 'delivered'),
                (select count(*) from delivery_queue),
                (select count(owner) from delivery_queue),
                (select coalesce(sum(attempt_count), 0)::bigint from delivery_queue)",
    )
    .fetch_one(store.pool())
    .await
    .unwrap();
    assert_eq!(usize::try_from(delivered).unwrap(), receiver.count(), "each request was recorded");
    assert_eq!((delivered + waiting, owned, attempts), (12, 0, 0));
    let left: i64 = sqlx::query_scalar("select count(*) from dispatcher")
        .fetch_one(store.pool())
        .await
        .unwrap();
    assert_eq!(left, 0, "left the register");
}

#[tokio::test]
async fn after_the_grace_what_is_in_flight_is_given_back_uncounted() {
    let receiver =
        Receiver::start(|_, _| Answer::status(200).after(Duration::from_secs(3_600))).await;
    let app = TestApp::with(&["--shutdown-grace=0.3"]).await;
    app.accept(&receiver.url("/")).await;
    eventually("the request", async || (receiver.count() == 1).then_some(())).await;
    let store = app.store.clone();
    app.stop().await;
    let row: (Option<i32>, i32, i16) =
        sqlx::query_as("select owner, attempt_count, interruption_count from delivery_queue")
            .fetch_one(store.pool())
            .await
            .unwrap();
    assert_eq!(row, (None, 0, 0));
}
