//! Disabled subscriptions: what comes for them waits, and goes on, or is cancelled.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Answer, Receiver, TestApp, eventually};

async fn subscribe(app: &TestApp, receiver: &Receiver, settings: Value) -> String {
    let mut body = json!({"target_url": receiver.url("/"), "event_types": "a"});
    body.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
    app.make("/subscriptions", body).await["id"].as_str().unwrap().to_owned()
}

async fn publish(app: &TestApp) -> String {
    app.publish(json!({"payload": 1, "type": "a"})).await
}

async fn post(app: &TestApp, path: &str) -> Value {
    let (status, answer) = app.call("POST", path, None, None).await;
    assert_eq!(status, 200, "{path}: {answer}");
    answer
}

/// The states of the deliveries of a subscription, oldest first.
async fn states(app: &TestApp, id: &str) -> Vec<String> {
    let (status, page) = app.get(&format!("/subscriptions/{id}/deliveries?limit=250")).await;
    assert_eq!(status, 200, "{page}");
    let states = page["data"].as_array().unwrap().iter().rev();
    states.map(|one| one["state"].as_str().unwrap().to_owned()).collect()
}

async fn wait_for_states(app: &TestApp, id: &str, expected: &[&str]) {
    eventually(&format!("{expected:?}"), async || {
        let found = states(app, id).await;
        (found == expected).then_some(())
    })
    .await;
}

/// Catches: events that a disabled subscription never gets; some that it gets while it is disabled;
/// an order that is not that of the events; all of them at once.
#[tokio::test]
async fn what_comes_meanwhile_goes_on_afterwards_oldest_first() {
    let receiver =
        Receiver::start(|_, _| Answer::status(200).after(Duration::from_millis(20))).await;
    let app = TestApp::start().await;
    let id = subscribe(&app, &receiver, json!({})).await;
    let shown = post(&app, &format!("/subscriptions/{id}/disable")).await;
    assert_eq!(
        (&shown["is_active"], &shown["disabled"]["because"]),
        (&json!(false), &json!("owner"))
    );
    let mut events = Vec::new();
    for _ in 0..25 {
        events.push(publish(&app).await);
    }
    assert_eq!(states(&app, &id).await, ["parked"; 25]);
    let event = app.event(&events[0]).await;
    assert_eq!(
        (&event["status"], &event["deliveries"][0]["state"]),
        (&json!("pending"), &json!("parked"))
    );
    assert_eq!(receiver.count(), 0);

    let shown = post(&app, &format!("/subscriptions/{id}/enable")).await;
    assert_eq!((&shown["is_active"], &shown["disabled"]), (&json!(true), &Value::Null));
    wait_for_states(&app, &id, &["delivered"; 25]).await;
    let received = receiver.received();
    let order: Vec<_> = received.iter().map(|one| one.header("webhook-id").to_owned()).collect();
    // Ids of the same millisecond have no order, and some are sent at a time; but in the first second
    // no more than twice ten are let out, the oldest.
    events.sort_unstable();
    let place = |id: &String| events.iter().position(|event| event == id).unwrap();
    let places: Vec<_> = order.iter().map(place).collect();
    assert!(places[..10].iter().all(|place| *place < 20), "{places:?}");
    let pause = received[24].at - received[0].at;
    assert!(pause > Duration::from_millis(300), "{pause:?}");
    assert_eq!(order.len(), 25);
    app.stop().await;
}

/// Catches: a cancellation that leaves some to be sent, or takes what comes after it.
#[tokio::test]
async fn what_came_meanwhile_can_be_cancelled() {
    let receiver = Receiver::always(200).await;
    let app = TestApp::start().await;
    let id = subscribe(&app, &receiver, json!({"is_active": false})).await;
    let before = publish(&app).await;
    let (status, problem) =
        app.call("POST", &format!("/subscriptions/{id}/enable?parked=drop"), None, None).await;
    assert_eq!((status, &problem["parameter"]), (422, &json!("parked")));
    post(&app, &format!("/subscriptions/{id}/enable?parked=cancel")).await;
    let after = publish(&app).await;
    app.wait_for(&after, "delivered").await;
    let event = app.event(&before).await;
    assert_eq!(
        (&event["status"], &event["deliveries"][0]["reason"]),
        (&json!("cancelled"), &json!("cancelled"))
    );
    assert_eq!(receiver.received().len(), 1);
    app.stop().await;
}

/// Catches: a 410 to what a subscription was that disables what it is by now.
#[tokio::test]
async fn a_receiver_that_is_left_already_disables_nothing() {
    let gone =
        Receiver::start(|_, _| Answer::status(410).after(Duration::from_millis(1_500))).await;
    let well = Receiver::always(200).await;
    let app = TestApp::start().await;
    let id = subscribe(&app, &gone, json!({})).await;
    let event = publish(&app).await;
    eventually("a request under way", async || (gone.count() == 1).then_some(())).await;
    let patch = json!({"target_url": well.url("/")});
    let path = format!("/subscriptions/{id}");
    let (status, shown) = app.call("PATCH", &path, None, Some(&patch)).await;
    assert_eq!((status, &shown["revision"]), (200, &json!(2)));
    app.wait_for(&event, "dead").await;
    let event = publish(&app).await;
    app.wait_for(&event, "delivered").await;
    let (_, shown) = app.get(&path).await;
    assert_eq!((&shown["is_active"], &shown["revision"]), (&json!(true), &json!(2)));
    app.stop().await;
}

/// Catches: a 410 after which a subscription is still active, one that says nothing of why, and what
/// waits for its next attempt meanwhile.
#[tokio::test]
async fn a_receiver_that_is_gone_disables_its_subscription() {
    // The first is to be tried again in an hour.
    let receiver =
        Receiver::start(|before, _| Answer::status(if before == 0 { 500 } else { 410 })).await;
    let app = TestApp::start().await;
    let id = subscribe(&app, &receiver, json!({"retry": [3600]})).await;
    let first = publish(&app).await;
    eventually("a failed attempt", async || {
        (app.event(&first).await["attempt_count"] == 1).then_some(())
    })
    .await;
    let second = publish(&app).await;
    let event = app.wait_for(&second, "dead").await;
    assert_eq!(event["deliveries"][0]["reason"], "http_status");
    let shown = eventually("disabled", async || {
        let (_, shown) = app.get(&format!("/subscriptions/{id}")).await;
        (shown["is_active"] == false).then_some(shown)
    })
    .await;
    assert_eq!((&shown["disabled"]["because"], &shown["revision"]), (&json!("gone"), &json!(2)));
    publish(&app).await;
    let expected = ["parked", "dead", "parked"];
    // The one that waits is looked for once a minute.
    app.store.park_waiting(id.parse().unwrap(), 10).await.unwrap();
    wait_for_states(&app, &id, &expected).await;
    assert_eq!(receiver.count(), 2);

    // It goes on where it was: its next attempt is the second, and the last.
    post(&app, &format!("/subscriptions/{id}/enable")).await;
    let waiting = eventually("pending", async || {
        let event = app.event(&first).await;
        (event["deliveries"][0]["state"] == "pending").then_some(event)
    })
    .await;
    assert_eq!(waiting["attempt_count"], 1);
    assert_ne!(waiting["next_attempt_at"], Value::Null);
    app.stop().await;
}

/// Catches: an answer to what a subscription was that disables what it is now.
#[tokio::test]
async fn a_late_410_says_nothing_of_what_was_changed_meanwhile() {
    let gone = Receiver::start(|_, _| Answer::status(410).after(Duration::from_millis(500))).await;
    let new = Receiver::always(200).await;
    let app = TestApp::start().await;
    let id = subscribe(&app, &gone, json!({})).await;
    let old = publish(&app).await;
    eventually("a request", async || (gone.count() == 1).then_some(())).await;
    let body = json!({"target_url": new.url("/")});
    let (status, _) = app.call("PATCH", &format!("/subscriptions/{id}"), None, Some(&body)).await;
    assert_eq!(status, 200);
    app.wait_for(&old, "dead").await;
    let event = publish(&app).await;
    app.wait_for(&event, "delivered").await;
    let (_, shown) = app.get(&format!("/subscriptions/{id}")).await;
    assert_eq!((&shown["is_active"], &shown["revision"]), (&json!(true), &json!(2)));
    app.stop().await;
}

/// Catches: parked deliveries that nobody ends.
#[tokio::test]
async fn parked_deliveries_end_with_their_subscription_and_with_age() {
    let receiver = Receiver::always(200).await;
    let app = TestApp::start().await;
    let deleted = subscribe(&app, &receiver, json!({"is_active": false})).await;
    let kept = subscribe(&app, &receiver, json!({"is_active": false})).await;
    let event = publish(&app).await;
    let path = format!("/subscriptions/{deleted}");
    assert_eq!(app.call("DELETE", &path, None, None).await.0, 204);
    let shown = app.event(&event).await;
    let state = |n: usize| &shown["deliveries"][n]["state"];
    assert_eq!((state(0), state(1)), (&json!("cancelled"), &json!("parked")));

    let ten_days = Duration::from_secs(864_000);
    assert_eq!(app.store.expire_parked(ten_days, 10).await.unwrap(), 0);
    sqlx::query("update delivery_parked set created_at = now() - interval '11 days'")
        .execute(app.store.pool())
        .await
        .unwrap();
    assert_eq!(app.store.expire_parked(ten_days, 10).await.unwrap(), 1);
    let shown = app.wait_for(&event, "dead").await;
    let expired = shown["deliveries"].as_array().unwrap();
    let expired = expired.iter().find(|one| one["subscription_id"] == kept.as_str()).unwrap();
    assert_eq!((&expired["state"], &expired["reason"]), (&json!("dead"), &json!("expired")));
    app.stop().await;
}

/// Catches: a delivery that was routed by what a subscription was a moment before, and stays parked
/// for ever.
#[tokio::test]
async fn a_straggler_goes_on_too() {
    let receiver = Receiver::always(200).await;
    let app = TestApp::start().await;
    subscribe(&app, &receiver, json!({})).await;
    let event = publish(&app).await;
    app.wait_for(&event, "delivered").await;
    // As an event would that was stored just before its subscription was enabled.
    sqlx::query(
        "with gone as (delete from delivery returning *)
         insert into delivery_parked (delivery_id, event_id, application_id, subscription_id,
                                      target_url, payload_bytes)
         select delivery_id, event_id, application_id, subscription_id, target_url, 1 from gone",
    )
    .execute(app.store.pool())
    .await
    .unwrap();
    assert_eq!(app.event(&event).await["status"], "pending");
    app.wait_for(&event, "delivered").await;
    app.stop().await;
}
