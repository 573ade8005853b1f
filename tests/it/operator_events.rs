//! Operator events: what the service itself tells of subscriptions and deliveries, and to whom.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{Answer, Receiver, TestApp, eventually};

/// A receiver of the business's events whose answer is set from outside, one of the operator's, and
/// the service with one attempt by default.
struct Scene {
    app: TestApp,
    business: Receiver,
    status: Arc<AtomicU16>,
    operator: Receiver,
}

impl Scene {
    async fn new() -> Self {
        let status = Arc::new(AtomicU16::new(200));
        let answers = status.clone();
        let business =
            Receiver::start(move |_, _| Answer::status(answers.load(Ordering::SeqCst))).await;
        let app = TestApp::with(&["--max-attempts=1"]).await;
        Self { app, business, status, operator: Receiver::always(200).await }
    }

    fn answer_with(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    async fn subscribe(&self, uid: &str, to: &Receiver, event_types: Value) -> String {
        let body = json!({"uid": uid, "target_url": to.url(&format!("/{uid}")),
            "event_types": event_types});
        self.app.make("/subscriptions", body).await["id"].as_str().unwrap().to_owned()
    }

    async fn publish(&self, event_type: &str) -> String {
        self.app.publish(json!({"payload": 1, "type": event_type})).await
    }

    /// What the operator was told, as soon as it is so many events.
    async fn told(&self, count: usize) -> Vec<Value> {
        eventually(&format!("{count} operator events"), async || {
            (self.operator.count() >= count).then_some(())
        })
        .await;
        let received = self.operator.received();
        assert_eq!(received.len(), count, "{received:?}");
        received.iter().map(|one| serde_json::from_slice(&one.body).unwrap()).collect()
    }

    /// Nothing waits to be told any more.
    async fn quiet(&self) {
        eventually("an empty outbox and queue", async || {
            let (_, page) = self.app.get("/deliveries?state=pending").await;
            let (_, events) = self.app.get("/events?status=pending").await;
            let is_quiet = |page: &Value| page["data"].as_array().unwrap().is_empty();
            (is_quiet(&page) && is_quiet(&events)).then_some(())
        })
        .await;
        // The outbox is looked at ten times a second.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Catches: a death that nobody is told of, one that is told twice, or of another; a recovery that is
/// told of what had not died.
#[tokio::test]
async fn a_death_is_told_and_so_is_a_recovery() {
    let scene = Scene::new().await;
    let id = scene.subscribe("business", &scene.business, json!(["a", "b"])).await;
    scene.subscribe("operator", &scene.operator, json!(["webhook.delivery.*"])).await;
    let well = scene.publish("a").await;
    scene.app.wait_for(&well, "delivered").await;
    scene.answer_with(503);
    let event = scene.publish("b").await;
    let dead = scene.app.wait_for(&event, "dead").await;
    let delivery = dead["deliveries"][0]["id"].as_str().unwrap().to_owned();

    let told = &scene.told(1).await[0];
    assert_eq!(told["type"], "webhook.delivery.dead");
    let data = &told["data"];
    for (name, value) in [
        ("delivery_id", json!(delivery)),
        ("event_id", json!(event)),
        ("event_type", json!("b")),
        ("subscription_id", json!(id)),
        ("target_url", json!(scene.business.url("/business"))),
        ("reason", json!("http_status")),
        ("attempt_count", json!(1)),
        ("last_status", json!(503)),
    ] {
        assert_eq!(data[name], value, "{name} of {told}");
    }
    let (_, shown) = scene.app.get(&format!("/deliveries/{delivery}")).await;
    for name in ["created_at", "ended_at"] {
        let time = |value: &Value| -> chrono::DateTime<chrono::Utc> {
            value[name].as_str().unwrap().parse().unwrap()
        };
        assert_eq!(time(data), time(&shown), "{name}");
    }
    // It is an event like all others, and about that subscription.
    let (_, page) = scene.app.get("/events?type=webhook.delivery.dead").await;
    assert_eq!(page["data"][0]["subject"], json!(id), "{page}");

    // A failure by hand changes nothing; a success is a recovery.
    let retry = format!("/deliveries/{delivery}/retry");
    scene.app.call("POST", &retry, None, None).await;
    eventually("a second attempt", async || {
        let (_, shown) = scene.app.get(&format!("/deliveries/{delivery}")).await;
        (shown["attempt_count"] == 2).then_some(())
    })
    .await;
    scene.quiet().await;
    assert_eq!(scene.operator.count(), 1);
    scene.answer_with(200);
    scene.app.call("POST", &retry, None, None).await;
    let told = &scene.told(2).await[1];
    assert_eq!(told["type"], "webhook.delivery.recovered", "{told}");
    let data = &told["data"];
    assert_eq!(
        (&data["delivery_id"], &data["reason"], &data["attempt_count"], &data["last_status"]),
        (&json!(delivery), &json!("http_status"), &json!(3), &json!(200)),
        "{told}"
    );
    // What is delivered once more has not recovered.
    scene.app.call("POST", &retry, None, None).await;
    eventually("a fourth request", async || (scene.business.count() == 5).then_some(())).await;
    scene.quiet().await;
    assert_eq!(scene.operator.count(), 2);
    scene.app.stop().await;
}

/// Catches: a disabling or enabling that is not told, by whoever it was done; one that is told though
/// nothing changed; one that is told to the subscription itself.
#[tokio::test]
async fn disabling_and_enabling_are_told_to_others() {
    let scene = Scene::new().await;
    let id = scene.subscribe("business", &scene.business, json!(["a", "webhook.*"])).await;
    scene.subscribe("operator", &scene.operator, json!("webhook.subscription.*")).await;
    scene.answer_with(410);
    let event = scene.publish("a").await;
    scene.app.wait_for(&event, "dead").await;
    let told = &scene.told(1).await[0];
    assert_eq!(told["type"], "webhook.subscription.disabled");
    let (_, shown) = scene.app.get(&format!("/subscriptions/{id}")).await;
    let expected = json!({"subscription_id": id, "uid": "business", "because": "gone",
        "target_url": scene.business.url("/business"), "at": told["data"]["at"]});
    assert_eq!(told["data"], expected);
    assert_eq!(shown["is_active"], false);

    scene.answer_with(200);
    for (what, because, count) in
        [("enable", Value::Null, 2), ("disable", json!("owner"), 3), ("enable", Value::Null, 4)]
    {
        // The second time it changes nothing.
        for _ in 0..2 {
            let path = format!("/subscriptions/{id}/{what}");
            let (status, answer) = scene.app.call("POST", &path, None, None).await;
            assert_eq!(status, 200, "{answer}");
        }
        let told = scene.told(count).await.pop().unwrap();
        assert_eq!(told["type"], format!("webhook.subscription.{what}d"), "{told}");
        assert_eq!(told["data"]["because"], because, "{told}");
    }
    let patch = json!({"description": "changed"});
    scene.app.call("PATCH", &format!("/subscriptions/{id}"), None, Some(&patch)).await;
    scene.quiet().await;
    assert_eq!(scene.operator.count(), 4);
    // It asks for all of these events, and has got none, since they are about itself.
    assert_eq!(scene.business.count(), 1);
    let (_, page) = scene.app.get("/events?type=webhook.subscription.enabled").await;
    let event = page["data"][0]["id"].as_str().unwrap().to_owned();
    let (_, explained) = scene.app.get(&format!("/events/{event}/explain")).await;
    let verdicts = explained["data"].as_array().unwrap();
    let of_itself = verdicts.iter().find(|one| one["uid"] == "business").unwrap();
    assert_eq!(of_itself["verdict"], "not_matched", "{of_itself}");
    assert!(of_itself["detail"].as_str().unwrap().contains("about this subscription"));
    scene.app.stop().await;
}

/// Catches: `*` that is told; events that are stored though nobody asks for them; failures of whoever
/// is told of failures, told again and again; those of another application.
#[tokio::test]
async fn nobody_is_told_who_does_not_ask() {
    let scene = Scene::new().await;
    scene.subscribe("all", &scene.business, json!("*")).await;
    scene.answer_with(500);
    let event = scene.publish("a").await;
    scene.app.wait_for(&event, "dead").await;
    // Another application's operator asks, and this one's is deleted.
    let body = json!({"target_url": scene.operator.url("/"), "event_types": "webhook.*"});
    scene.app.make("/applications", json!({"uid": "other"})).await;
    scene.app.make("/subscriptions?application=other", body).await;
    scene.subscribe("gone", &scene.operator, json!("webhook.*")).await;
    scene.app.call("DELETE", "/subscriptions/gone", None, None).await;
    let event = scene.publish("a").await;
    scene.app.wait_for(&event, "dead").await;
    scene.quiet().await;
    let (_, page) = scene.app.get("/events").await;
    assert_eq!(page["data"].as_array().unwrap().len(), 2, "{page}");
    assert_eq!((scene.operator.count(), scene.business.count()), (0, 2));

    // One who asks and fails is told no more for that. The first one asks too, from now on.
    scene.subscribe("failing", &scene.business, json!("webhook.delivery.dead")).await;
    let patch = json!({"event_types": ["a", "webhook.delivery.dead"]});
    scene.app.call("PATCH", "/subscriptions/all", None, Some(&patch)).await;
    let event = scene.publish("a").await;
    scene.app.wait_for(&event, "dead").await;
    eventually("a death that is told in vain", async || {
        let (_, page) = scene.app.get("/events?type=webhook.delivery.dead&status=dead").await;
        (page["data"].as_array().unwrap().len() == 1).then_some(())
    })
    .await;
    scene.quiet().await;
    let (_, page) = scene.app.get("/events?type=webhook.delivery.dead").await;
    assert_eq!(page["data"].as_array().unwrap().len(), 1, "{page}");
    assert_eq!(scene.business.count(), 4);
    // Since it asks for them no more, nothing is stored for it.
    let patch = json!({"event_types": "a"});
    for uid in ["all", "failing"] {
        scene.app.call("PATCH", &format!("/subscriptions/{uid}"), None, Some(&patch)).await;
    }
    let event = scene.publish("a").await;
    scene.app.wait_for(&event, "dead").await;
    scene.quiet().await;
    let (_, page) = scene.app.get("/events?type=webhook.delivery.dead").await;
    assert_eq!(page["data"].as_array().unwrap().len(), 1, "{page}");
    scene.app.stop().await;
}

/// Catches: deaths without an attempt that are not told: by age while parked, and by lost leases.
#[tokio::test]
async fn deaths_without_an_attempt_are_told_too() {
    let scene = Scene::new().await;
    scene.subscribe("operator", &scene.operator, json!("webhook.delivery.dead")).await;
    let id = scene.subscribe("business", &scene.business, json!("a")).await;
    scene.app.call("POST", &format!("/subscriptions/{id}/disable"), None, None).await;
    scene.publish("a").await;
    scene.app.store.expire_parked(Duration::ZERO, 10).await.unwrap();
    let told = &scene.told(1).await[0];
    assert_eq!(told["data"]["reason"], "expired", "{told}");
    assert_eq!(
        (&told["data"]["attempt_count"], &told["data"]["last_status"]),
        (&json!(0), &Value::Null)
    );
    scene.app.stop().await;
}

/// Catches: a test of an operator's subscription without an example.
#[tokio::test]
async fn an_operators_subscription_can_be_tested() {
    let scene = Scene::new().await;
    let id = scene.subscribe("operator", &scene.operator, json!("webhook.delivery.dead")).await;
    let path = format!("/subscriptions/{id}/test");
    let (status, answer) = scene.app.call("POST", &path, None, Some(&json!({}))).await;
    assert_eq!((status, &answer["type"]), (202, &json!("webhook.delivery.dead")), "{answer}");
    let told = &scene.told(1).await[0];
    assert_eq!(told["data"]["reason"], "http_status", "{told}");
    scene.app.stop().await;
}
