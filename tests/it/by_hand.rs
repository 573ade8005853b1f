//! Deliveries that somebody retries or cancels.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{Answer, Receiver, TestApp, eventually};

/// A receiver whose answer is set from outside, and the service with one attempt by default.
struct Scene {
    app: TestApp,
    receiver: Receiver,
    status: Arc<AtomicU16>,
}

impl Scene {
    async fn new() -> Self {
        let status = Arc::new(AtomicU16::new(500));
        let answers = status.clone();
        let receiver =
            Receiver::start(move |_, _| Answer::status(answers.load(Ordering::SeqCst))).await;
        let app = TestApp::with(&["--max-attempts=1"]).await;
        Self { app, receiver, status }
    }

    fn answer_with(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    /// An event to a subscription with this retry policy; tells its delivery.
    async fn deliver(&self, retry: Value) -> (String, String) {
        let uid = format!(
            "s{}",
            self.app.get("/subscriptions").await.1["data"].as_array().unwrap().len()
        );
        let body = json!({"target_url": self.receiver.url("/"), "event_types": uid, "retry": retry,
            "uid": uid});
        self.app.make("/subscriptions", body).await;
        let body = json!({"payload": 1, "type": uid});
        let (_, accepted) = self.app.call("POST", "/events", None, Some(&body)).await;
        let event = accepted["id"].as_str().unwrap().to_owned();
        let delivery = self.app.event(&event).await["deliveries"][0]["id"].clone();
        (event, delivery.as_str().unwrap().to_owned())
    }

    async fn show(&self, delivery: &str) -> Value {
        let (status, shown) = self.app.get(&format!("/deliveries/{delivery}")).await;
        assert_eq!(status, 200, "{shown}");
        shown
    }

    /// Waits for so many recorded attempts.
    async fn attempts(&self, delivery: &str, count: usize) -> Value {
        eventually(&format!("{count} attempts"), async || {
            let shown = self.show(delivery).await;
            let is_there = shown["attempts"].as_array().unwrap().len() == count;
            (is_there && shown["attempt_count"] == count).then_some(shown)
        })
        .await
    }

    async fn act(&self, delivery: &str, what: &str) -> (u16, Value) {
        self.app.call("POST", &format!("/deliveries/{delivery}/{what}"), None, None).await
    }

    async fn refused(&self, delivery: &str, what: &str, why: &str) {
        let (status, problem) = self.act(delivery, what).await;
        assert_eq!((status, &problem["type"]), (409, &json!("/problems/conflict")), "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(why), "{problem}");
    }
}

/// Catches: a retry by hand that uses up an attempt of the policy, moves the schedule, is not sent at
/// once, or is not told apart in the log.
#[tokio::test]
async fn a_pending_one_is_sent_at_once_and_keeps_its_schedule() {
    let scene = Scene::new().await;
    let (event, delivery) = scene.deliver(json!([3600])).await;
    let before = scene.attempts(&delivery, 1).await;
    assert_eq!((&before["state"], &before["last_status"]), (&json!("pending"), &json!(500)));
    for count in [2, 3] {
        let (status, answer) = scene.act(&delivery, "retry").await;
        assert_eq!(status, 202, "{answer}");
        let after = scene.attempts(&delivery, count).await;
        assert_eq!(after["next_attempt_at"], before["next_attempt_at"]);
        assert_eq!((&after["state"], &after["attempt_count"]), (&json!("pending"), &json!(count)));
        assert_eq!(after["attempts"][count - 1]["run"], "retry");
    }
    assert_eq!(before["attempts"][0]["run"], "schedule");
    scene.answer_with(200);
    assert_eq!(scene.act(&delivery, "retry").await.0, 202);
    let event = scene.app.wait_for(&event, "delivered").await;
    assert_eq!(event["attempt_count"], 4);
    let shown = scene.app.get(&format!("/status/{delivery}")).await.1;
    assert_eq!(shown, scene.show(&delivery).await);
    let received = scene.receiver.received();
    let numbers: Vec<_> = received.iter().map(|one| one.header("x-webhook-attempt")).collect();
    assert_eq!(numbers, ["1", "2", "3", "4"]);
    scene.app.stop().await;
}

/// Catches: a retry of a dead delivery that is tried more than once, that makes a delivered one dead,
/// that is lost from the lists meanwhile, or whose success changes nothing.
#[tokio::test]
async fn one_that_has_ended_gets_one_attempt() {
    let scene = Scene::new().await;
    let (event, delivery) =
        scene.deliver(json!({"max_attempts": 2, "base_seconds": 0.01, "max_seconds": 0.01})).await;
    scene.app.wait_for(&event, "dead").await;
    assert_eq!(scene.act(&delivery, "retry").await.0, 202);
    let shown = scene.attempts(&delivery, 3).await;
    assert_eq!((&shown["state"], &shown["reason"]), (&json!("dead"), &json!("http_status")));
    assert_eq!(
        (&shown["attempt_count"], &shown["attempts"][2]["run"]),
        (&json!(3), &json!("once"))
    );

    scene.answer_with(200);
    assert_eq!(scene.act(&delivery, "retry").await.0, 202);
    let event_now = scene.app.wait_for(&event, "delivered").await;
    let shown = &event_now["deliveries"][0];
    assert_eq!(
        (&shown["state"], &shown["reason"], &shown["attempt_count"]),
        (&json!("delivered"), &Value::Null, &json!(4))
    );
    assert_eq!(shown["last_status"], 200);

    // And once more, since the receiver asks for it; that it fails changes nothing.
    scene.answer_with(503);
    assert_eq!(scene.act(&delivery, "retry").await.0, 202);
    let shown = scene.attempts(&delivery, 5).await;
    assert_eq!((&shown["state"], &shown["last_status"]), (&json!("delivered"), &json!(503)));
    assert_eq!(scene.app.event(&event).await["status"], "delivered");
    let received = scene.receiver.received();
    assert!(received.iter().all(|one| one.header("webhook-id") == event));
    assert_eq!(received.last().unwrap().header("x-webhook-attempt"), "5");
    scene.app.stop().await;
}

/// Catches: a second request while one is under way; one without its payload; one to a subscription
/// that wants nothing.
#[tokio::test]
async fn what_cannot_be_retried_is_refused() {
    let scene = Scene::new().await;
    let slow = Receiver::start(|_, _| Answer::status(200).after(Duration::from_secs(2))).await;
    let event = scene.app.accept(&slow.url("/")).await;
    eventually("a request", async || (slow.count() == 1).then_some(())).await;
    let delivery = scene.app.event(&event).await["deliveries"][0]["id"].clone();
    let delivery = delivery.as_str().unwrap();
    assert_eq!(scene.show(delivery).await["state"], "in_flight");
    scene.refused(delivery, "retry", "being sent").await;
    scene.refused(delivery, "cancel", "being sent").await;
    scene.app.wait_for(&event, "delivered").await;
    scene.refused(delivery, "cancel", "has ended").await;
    sqlx::query("delete from event_payload").execute(scene.app.store.pool()).await.unwrap();
    scene.refused(delivery, "retry", "payload").await;

    let (event, delivery) = scene.deliver(json!(null)).await;
    scene.app.wait_for(&event, "dead").await;
    scene.app.call("POST", "/subscriptions/s0/disable", None, None).await;
    scene.refused(&delivery, "retry", "disabled").await;
    scene.app.call("DELETE", "/subscriptions/s0", None, None).await;
    scene.refused(&delivery, "retry", "deleted").await;
    for what in ["retry", "cancel"] {
        let (status, problem) = scene.act("dlv_0192d4e012347abc8def0123456789ab", what).await;
        assert_eq!((status, &problem["type"]), (404, &json!("/problems/delivery-not-found")));
        let (status, problem) = scene.act(&event, what).await;
        assert_eq!(status, 404);
        assert!(problem["detail"].as_str().unwrap().contains("that of an event"), "{problem}");
    }
    scene.app.stop().await;
}

/// Catches: a cancelled delivery that is sent, or that leaves no trace.
#[tokio::test]
async fn what_waits_can_be_cancelled() {
    let scene = Scene::new().await;
    let (event, delivery) = scene.deliver(json!([3600])).await;
    scene.attempts(&delivery, 1).await;
    let (status, shown) = scene.act(&delivery, "cancel").await;
    assert_eq!(
        (status, &shown["state"], &shown["reason"]),
        (200, &json!("cancelled"), &json!("cancelled"))
    );
    assert_eq!(
        (&shown["attempt_count"], shown["attempts"].as_array().unwrap().len()),
        (&json!(1), 1)
    );
    assert_eq!(scene.app.event(&event).await["status"], "cancelled");
    scene.refused(&delivery, "cancel", "has ended").await;

    // A change of mind.
    scene.answer_with(200);
    assert_eq!(scene.act(&delivery, "retry").await.0, 202);
    scene.app.wait_for(&event, "delivered").await;
    scene.app.stop().await;
}

/// Catches: a process that dies while it sends again what had ended: it must neither be lost from the
/// history nor end there twice.
#[tokio::test]
async fn a_lost_lease_leaves_what_had_ended_as_it_was() {
    let scene = Scene::new().await;
    let (event, delivery) = scene.deliver(json!(null)).await;
    scene.app.wait_for(&event, "dead").await;
    let Scene { app, receiver, .. } = scene;
    let pool = app.store.pool().clone();
    let id: webhook_dispatcher::domain::DeliveryId = delivery.parse().unwrap();
    // As a process would that claimed it and died, for the last time that is allowed.
    app.store
        .retry_delivery(webhook_dispatcher::domain::ids::DEFAULT_APPLICATION, id)
        .await
        .unwrap();
    sqlx::query(
        "update delivery_queue set owner = 1000000, claim_number = claim_number + 1,
                interruption_count = 19",
    )
    .execute(&pool)
    .await
    .unwrap();
    eventually("the queue is empty", async || {
        let count: i64 = sqlx::query_scalar("select count(*) from delivery_queue")
            .fetch_one(&pool)
            .await
            .unwrap();
        (count == 0).then_some(())
    })
    .await;
    let shown = app.get(&format!("/deliveries/{delivery}")).await.1;
    assert_eq!((&shown["state"], &shown["reason"]), (&json!("dead"), &json!("http_status")));
    assert!(receiver.count() <= 2);
    app.stop().await;
}
