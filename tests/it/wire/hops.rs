//! Events that lead back to the service that sends them.

use serde_json::json;
use webhook_dispatcher::domain::upstream::HOPS_MAX;

use super::{noting, post};
use crate::support::{TestApp, TestDatabase, eventually};

/// Every event, once those have ended that there are to be.
async fn events_of(app: &TestApp, count: usize) -> Vec<serde_json::Value> {
    eventually("all events have ended", async || {
        let (_, page) = app.get("/events").await;
        let events = page["data"].as_array().unwrap().clone();
        let have_ended = events.iter().all(|event| event["status"] != "pending");
        (events.len() >= count && have_ended).then_some(events)
    })
    .await
}

/// Catches: a subscription whose target is its own service, which sends without end.
#[tokio::test]
async fn a_subscription_that_calls_itself_is_refused_after_some_hops() {
    let app = TestApp::start().await;
    let made = json!({"target_url": "http://127.0.0.1:9/", "event_types": ["a.b"]});
    let made = app.make("/subscriptions", made).await;
    let id = made["id"].as_str().unwrap();
    let itself = json!({"target_url": format!("{}/ingest/{id}", app.base)});
    let (status, _) = app.call("PATCH", &format!("/subscriptions/{id}"), None, Some(&itself)).await;
    assert_eq!(status, 200);
    app.publish(json!({"payload": 1, "type": "a.b"})).await;
    let count = usize::from(HOPS_MAX) + 1;
    let events = events_of(&app, count).await;
    assert_eq!(events.len(), count, "{events:?}");
    let dead: Vec<_> = events.iter().filter(|event| event["status"] == "dead").collect();
    assert_eq!(dead.len(), 1, "{events:?}");
    let last = app.event(dead[0]["id"].as_str().unwrap()).await;
    assert_eq!(last["attempt_count"], 1, "it is not tried again: {last}");
    let error = &last["deliveries"][0]["attempts"][0]["error"];
    assert_eq!(error["class"], "loop", "{last}");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("508") && message.contains("leads back"), "{message}");
    let body = last["deliveries"][0]["attempts"][0]["response"]["body"].as_str().unwrap();
    assert!(body.contains("/problems/loop-detected"), "{body}");
    // The log can be asked for it, and the receiver is not taken for one that fails.
    let (status, page) = app.get("/deliveries?error_class=loop").await;
    assert_eq!((status.as_u16(), page["data"].as_array().map(Vec::len)), (200, Some(1)), "{page}");
    app.stop().await;
}

/// Catches: a count that is lost in the database, or on one of the ways in.
#[tokio::test]
async fn two_services_that_call_each_other_stop_after_some_hops() {
    let (one, other) = (TestApp::start().await, TestApp::start().await);
    let kinds = [("events", json!(["x.events"])), ("ingest", json!(["x.ingest"]))];
    for (app, target) in [(&one, &other), (&other, &one)] {
        // The body of the one way is the event itself, so its payload asks for the next one.
        for (way, types) in &kinds {
            let path = if *way == "events" { "/events" } else { "/ingest/again" };
            let subscription = json!({
                "target_url": format!("{}{path}", target.base), "event_types": types,
                "payload_format": "raw", "uid": if *way == "events" { "first" } else { "again" },
            });
            app.make("/subscriptions", subscription).await;
        }
    }
    // Of the way by `/events` a payload can ask for so many further ones as it is deep.
    let mut payload = json!({"type": "x.events", "payload": 1});
    for _ in 0..=HOPS_MAX {
        payload = json!({"type": "x.events", "payload": payload});
    }
    one.publish(payload).await;
    one.publish(json!({"type": "x.ingest", "payload": 1})).await;
    // Each of the two comes HOPS_MAX times beyond the first.
    let each = usize::from(HOPS_MAX) + 1;
    let (of_one, of_other) = (events_of(&one, each).await, events_of(&other, each).await);
    assert_eq!(of_one.len() + of_other.len(), 2 * each, "{of_one:?} {of_other:?}");
    let dead = of_one.iter().chain(&of_other).filter(|event| event["status"] == "dead").count();
    assert_eq!(dead, 2);
    one.stop().await;
    other.stop().await;
}

/// Catches: a way in that does not count, or does not refuse.
#[tokio::test]
async fn hops_are_counted_and_refused_on_every_way_in() {
    let database = TestDatabase::new().await;
    let app = TestApp::on(database, &[]).await;
    let (receiver, heads) = noting(1, false).await;
    let target = receiver.url();
    let made = json!({"target_url": target, "event_types": ["nothing"], "uid": "one"});
    app.make("/subscriptions", made).await;
    let event = json!({"payload": 1, "target_url": target});
    let dispatch = json!({"event": "a.b", "payload": 1, "targets": [target], "retry": [0.05]});
    let most = HOPS_MAX.to_string();
    let ways = [
        ("/events", event.clone()),
        ("/events/batch", json!({"events": [event]})),
        ("/dispatch", dispatch),
        ("/ingest/one", json!(1)),
        ("/subscriptions/one/test", json!({})),
    ];
    for (path, body) in &ways {
        let before = heads.all().len();
        let (status, answer) = post(&app, path, &[("x-webhook-hops", most.as_str())], body).await;
        assert!(status < 300, "{path}: {answer}");
        eventually("delivered", async || (heads.all().len() > before).then_some(())).await;
        let hops = [(HOPS_MAX + 1).to_string(), "x".to_owned(), "-1".to_owned()];
        for hops in &hops {
            let (status, answer) =
                post(&app, path, &[("X-Webhook-Hops", hops.as_str())], body).await;
            let expected = (508, &json!("/problems/loop-detected"), &json!("X-Webhook-Hops"));
            assert_eq!((status, &answer["type"], &answer["header"]), expected, "{path}: {answer}");
        }
    }
    events_of(&app, ways.len()).await;
    let counted = heads.header("x-webhook-hops");
    let expected = Some((HOPS_MAX + 1).to_string());
    // One more than there are ways: the first was tried again, from the database.
    assert_eq!(counted, vec![expected; ways.len() + 1]);
    // Operations that start deliveries and make no event cannot count, so no delivery can call them.
    let (_, page) = app.get("/deliveries").await;
    let delivery = page["data"][0]["id"].as_str().unwrap();
    for (path, body) in [
        (format!("/deliveries/{delivery}/retry"), json!({})),
        ("/replays".to_owned(), json!({"filter": {"state": ["dead"]}})),
    ] {
        let (status, answer) = post(&app, &path, &[("x-webhook-hops", "1")], &body).await;
        assert_eq!((status, &answer["type"]), (508, &json!("/problems/loop-detected")), "{answer}");
    }
    app.stop().await;
}

/// Catches: a 508 of another server, which has its own meanings, taken for the end of a delivery.
#[tokio::test]
async fn a_508_of_another_server_is_tried_again() {
    let receiver = crate::support::Receiver::start(|before, _| {
        crate::support::Answer::status(if before == 0 { 508 } else { 200 })
    })
    .await;
    let app = TestApp::start().await;
    let event = app.accept(&receiver.url("/")).await;
    let shown = app.wait_for(&event, "delivered").await;
    assert_eq!(shown["attempt_count"], 2, "{shown}");
    app.stop().await;
}
