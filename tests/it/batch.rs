//! `POST /events/batch`: many events in one request, each kept or refused by itself.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{Receiver, TestApp, eventually};

/// Posts a batch with an `Idempotency-Key`.
async fn post_with_key(app: &TestApp, key: &str, batch: &Value) -> (u16, Value) {
    let request = app
        .http
        .post(format!("{}/events/batch", app.base))
        .header("content-type", "application/json")
        .header("idempotency-key", key)
        .body(batch.to_string());
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), serde_json::from_str(&answer.text().await.unwrap()).unwrap())
}

fn results(answer: &Value) -> &Vec<Value> {
    answer["results"].as_array().unwrap_or_else(|| panic!("{answer}"))
}

async fn count(app: &TestApp, table: &'static str) -> i64 {
    let query = sqlx::AssertSqlSafe(format!("select count(*) from {table}"));
    sqlx::query_scalar(query).fetch_one(app.store.pool()).await.unwrap()
}

/// As many as a batch may hold, which is more than a transaction takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_batch_is_kept_in_its_order_and_delivered() {
    let receiver = Receiver::always(200).await;
    let app = TestApp::start().await;
    let events: Vec<_> = (0..1_000)
        .map(|n| json!({"payload": n, "target_url": receiver.url("/"), "subject": format!("s{n}")}))
        .collect();
    let (status, answer) = app.post("/events/batch/", &json!({"events": events})).await;
    assert_eq!(status, 202, "{answer}");
    let ids: Vec<&str> = results(&answer)
        .iter()
        .map(|result| {
            assert_eq!(result["status"], "accepted", "{result}");
            result["id"].as_str().unwrap()
        })
        .collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 1_000);
    assert_eq!(count(&app, "event").await, 1_000, "stored before it was answered");
    for n in [0, 1, 511, 512, 999] {
        let event = app.event(ids[n]).await;
        assert_eq!((&event["payload"], &event["subject"]), (&json!(n), &json!(format!("s{n}"))));
    }
    eventually("all deliveries", async || (receiver.count() >= 1_000).then_some(())).await;
    let bodies: BTreeSet<_> = receiver.received().iter().map(|r| r.body.clone()).collect();
    assert_eq!(bodies, (0..1_000).map(|n: usize| n.to_string().into_bytes()).collect());
    app.stop().await;
}

#[tokio::test]
async fn the_largest_batch_and_the_largest_event_in_it_are_taken() {
    let app = TestApp::start().await;
    // Just below a mebibyte each, and just below 16 together: more than one transaction writes.
    let payload = "x".repeat(1024 * 1024 - 100);
    let events: Vec<_> = (0..16).map(|_| json!({"type": "a", "payload": payload})).collect();
    let (status, answer) = app.post("/events/batch", &json!({"events": events})).await;
    assert_eq!(status, 202, "{answer}");
    assert!(results(&answer).iter().all(|result| result["status"] == "accepted"));
    let id = results(&answer)[15]["id"].as_str().unwrap();
    assert!(app.event(id).await["payload"] == payload.as_str());
    app.stop().await;
}

#[tokio::test]
async fn events_of_a_batch_may_share_a_key() {
    let app = TestApp::start().await;
    let event = |n: usize, key: &str| json!({"type": "a", "payload": n, "idempotency_key": key});
    let batch = json!({"events": [
        event(1, "k"), event(2, "other"), event(1, "k"), event(3, "k"), {"type": "a", "payload": 1},
    ]});
    let (status, answer) = app.post("/events/batch", &batch).await;
    assert_eq!(status, 202, "{answer}");
    let first = results(&answer);
    assert_eq!(first[0], first[2], "the same key and body: the same event");
    assert_ne!(first[0]["id"], first[1]["id"]);
    assert_eq!(first[3]["problem"]["type"], "/problems/idempotency-key-reused");
    assert_eq!(first[3]["problem"]["status"], 409);
    assert_eq!((count(&app, "event").await, count(&app, "idempotency_key").await), (3, 2));

    // Sent again: what has a key is the first answer again, alone or in a batch.
    let (_, again) = app.post("/events/batch", &batch).await;
    assert_eq!(results(&again)[..4], first[..4]);
    assert_ne!(results(&again)[4], first[4]);
    let (_, alone) = app.post("/events", &event(2, "other")).await;
    assert_eq!(alone, first[1]);
    app.stop().await;
}

/// More than one transaction takes, so that a key is met in the same one and in an earlier one.
#[tokio::test]
async fn a_key_is_one_event_across_the_transactions_of_a_batch() {
    let app = TestApp::start().await;
    let event =
        |n: usize| json!({"type": "a", "payload": n % 7, "idempotency_key": format!("k{}", n % 7)});
    let events: Vec<_> = (0..1_000).map(event).collect();
    let (status, answer) = app.post("/events/batch", &json!({"events": events})).await;
    assert_eq!(status, 202);
    let results = results(&answer);
    assert!((0..1_000).all(|n| results[n] == results[n % 7]), "{answer}");
    assert_eq!(count(&app, "event").await, 7);
    app.stop().await;
}

/// Each event gets a key from the header's and its place, so a batch can be sent again.
#[tokio::test]
async fn a_batch_with_a_key_can_be_sent_again() {
    let app = TestApp::start().await;
    let mut batch = json!({"events": [
        {"type": "a", "payload": 0}, {"type": "a b", "payload": 1},
        {"type": "a", "payload": 2, "idempotency_key": "own"}, {"type": "a", "payload": 3},
    ]});
    let (status, first) = post_with_key(&app, "order 7", &batch).await;
    assert_eq!(status, 202, "{first}");
    assert_eq!(results(&first)[1]["status"], "refused");
    assert_eq!(post_with_key(&app, "order 7", &batch).await, (202, first.clone()));
    assert_eq!(count(&app, "event").await, 3);

    // Corrected: what was refused is new, what was kept is the same.
    batch["events"][1]["type"] = json!("a");
    let (_, corrected) = post_with_key(&app, "order 7", &batch).await;
    assert_eq!(results(&corrected)[0], results(&first)[0]);
    assert_eq!(results(&corrected)[1]["status"], "accepted");
    // Changed: refused at its place.
    batch["events"][0]["payload"] = json!(9);
    let (_, changed) = post_with_key(&app, "order 7", &batch).await;
    assert_eq!(results(&changed)[0]["problem"]["type"], "/problems/idempotency-key-reused");
    assert_eq!(results(&changed)[1..], results(&corrected)[1..]);
    // Its own key stays its own, and another header makes others.
    let (_, other) = post_with_key(&app, "order 8", &batch).await;
    assert_eq!(results(&other)[2], results(&first)[2]);
    assert_ne!(results(&other)[1], results(&corrected)[1]);
    app.stop().await;
}

/// What no event can be kept for the moment is worth another try, and the whole says so.
#[tokio::test]
async fn a_batch_that_the_database_cannot_take_is_a_fault_of_the_service() {
    let app = TestApp::start().await;
    sqlx::query("alter table event add constraint never check (type <> 'never')")
        .execute(app.store.pool())
        .await
        .unwrap();
    let event = |name: &str| json!({"type": name, "payload": 1});
    let (status, problem) = app.post("/events/batch", &json!({"events": [event("never")]})).await;
    assert_eq!((status.as_u16(), &problem["type"]), (500, &json!("/problems/internal")));
    assert_eq!(results(&problem)[0]["problem"]["pointer"], "/events/0");
    let batch = json!({"events": [event("never"), event("a")]});
    let (status, answer) = app.post("/events/batch", &batch).await;
    assert_eq!(status, 202, "one bad event fails alone: {answer}");
    assert_eq!(results(&answer)[0]["problem"]["status"], 500);
    assert_eq!(results(&answer)[1]["status"], "accepted");
    app.stop().await;
}
