//! Which events reach which subscriptions, on every replica, from the answer on that says so.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{Receiver, TestApp, TestDatabase, eventually};

const NOWHERE: &str = "http://127.0.0.1:9/";

async fn publish(app: &TestApp, event_type: &str, payload: Value) -> Value {
    let body = json!({"payload": payload, "type": event_type});
    let (status, accepted) = app.call("POST", "/events", None, Some(&body)).await;
    assert_eq!(status, 202, "{accepted}");
    app.event(accepted["id"].as_str().unwrap()).await
}

async fn subscribe(app: &TestApp, name: &str, more: Value) {
    let mut body = json!({"target_url": format!("{NOWHERE}{name}"), "uid": name});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    app.make("/subscriptions", body).await;
}

/// The subscriptions that an event was routed to, by the last part of their URLs.
fn reached(event: &Value) -> BTreeSet<String> {
    let deliveries = event["deliveries"].as_array().unwrap().iter();
    let reached: BTreeSet<_> = deliveries
        .map(|one| one["target_url"].as_str().unwrap().rsplit('/').next().unwrap().to_owned())
        .collect();
    assert_eq!(event["delivery_count"], reached.len(), "{event}");
    reached
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Catches: an event that is routed by what a process knew a moment ago, whatever was answered
/// elsewhere since. Nothing is sent here, so that only accepting counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_replica_has_answered_holds_on_the_other() {
    let database = TestDatabase::new().await;
    let one = TestApp::on(database.clone(), &["--role=api"]).await;
    let other = TestApp::on(database, &["--role=api"]).await;
    assert_eq!(publish(&other, "a.b", json!(1)).await["status"], "unrouted");
    for round in 0..50 {
        let (one, other) = if round % 2 == 0 { (&one, &other) } else { (&other, &one) };
        let name = format!("s{round}");
        subscribe(one, &name, json!({"event_types": "a.*"})).await;
        assert_eq!(reached(&publish(other, "a.b", json!(1)).await), names(&[&name]), "made");
        let path = format!("/subscriptions/{name}");
        assert_eq!(one.call("POST", &format!("{path}/disable"), None, None).await.0, 200);
        let kept = publish(other, "a.b", json!(1)).await;
        assert_eq!(kept["deliveries"][0]["state"], "parked", "disabled, in round {round}");
        assert_eq!(one.call("POST", &format!("{path}/enable"), None, None).await.0, 200);
        let patch = json!({"event_types": "c"});
        assert_eq!(one.call("PATCH", &path, None, Some(&patch)).await.0, 200);
        assert_eq!(reached(&publish(other, "a.b", json!(1)).await), names(&[]), "changed");
        assert_eq!(reached(&publish(other, "c", json!(1)).await), names(&[&name]));
        assert_eq!(one.call("DELETE", &path, None, None).await.0, 204);
        assert_eq!(publish(other, "c", json!(1)).await["status"], "unrouted", "deleted");
    }
    one.stop().await;
    other.stop().await;
}

/// Catches: a filter that is not asked, or asked of something else; a pattern that matches too much;
/// the service's own events sent to those who asked for everything.
#[tokio::test]
async fn patterns_and_filters_decide_who_is_reached() {
    let app = TestApp::with(&["--role=api"]).await;
    subscribe(&app, "all", json!({"event_types": "*"})).await;
    subscribe(&app, "exact", json!({"event_types": "invoice.paid"})).await;
    subscribe(&app, "below", json!({"event_types": ["user.created", "invoice.*"]})).await;
    let large = json!({"event_types": "invoice.*", "filter": {"data.amount": {"gte": 100}}});
    subscribe(&app, "large", large).await;
    let own = json!({"event_types": ["webhook.*", "*"]});
    subscribe(&app, "own", own).await;
    let elsewhere = json!({"uid": "elsewhere"});
    app.make("/applications", elsewhere).await;
    let foreign = json!({"target_url": NOWHERE, "event_types": "*"});
    app.make("/subscriptions?application=elsewhere", foreign).await;
    for (event_type, payload, expected) in [
        ("invoice.paid", json!({"amount": 100}), names(&["all", "below", "exact", "large", "own"])),
        ("invoice.paid", json!({"amount": 99.9}), names(&["all", "below", "exact", "own"])),
        ("invoice.paid", json!({"amount": "100"}), names(&["all", "below", "exact", "own"])),
        ("invoice.paid.late", json!({"amount": 100}), names(&["all", "below", "large", "own"])),
        ("invoice", json!({}), names(&["all", "own"])),
        ("user.created", json!(null), names(&["all", "below", "own"])),
        ("user.created.x", json!(null), names(&["all", "own"])),
    ] {
        let event = publish(&app, event_type, payload.clone()).await;
        assert_eq!(reached(&event), expected, "{event_type} {payload}");
        assert_eq!(event["status"], "pending");
    }
    app.stop().await;
}

/// Catches: an event without takers that is told to be delivered, or that waits for ever.
#[tokio::test]
async fn an_event_that_reaches_nobody_says_so() {
    let app = TestApp::start().await;
    subscribe(&app, "exact", json!({"event_types": "a"})).await;
    let event = publish(&app, "b", json!(1)).await;
    assert_eq!((&event["status"], &event["delivery_count"]), (&json!("unrouted"), &json!(0)));
    let (_, list) = app.call("GET", "/events?status=unrouted", None, None).await;
    assert_eq!(list["data"][0]["id"], event["id"]);
    app.stop().await;
}

/// Catches: a delivery that is lost or made twice where one event has many.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_event_reaches_three_hundred() {
    let receiver = Receiver::always(200).await;
    let app = TestApp::start().await;
    let paths: BTreeSet<_> = (0..300).map(|n| format!("/{n}")).collect();
    for path in &paths {
        let body = json!({"target_url": receiver.url(path), "event_types": "a.*",
            "payload_format": "raw"});
        app.make("/subscriptions", body).await;
    }
    let event = publish(&app, "a.b", json!(1)).await;
    assert_eq!(event["delivery_count"], 300);
    app.wait_for(event["id"].as_str().unwrap(), "delivered").await;
    let received = receiver.received();
    assert_eq!(received.len(), 300);
    assert_eq!(received.into_iter().map(|request| request.path).collect::<BTreeSet<_>>(), paths);
    app.stop().await;
}

/// Catches: events of a batch that are lost where their deliveries are more than a transaction takes,
/// or routed by each other's types. Nothing is sent, so that all can be counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_batch_is_routed_event_by_event() {
    const SUBSCRIPTIONS: usize = 12;
    let app = TestApp::with(&["--role=api"]).await;
    for n in 0..SUBSCRIPTIONS {
        subscribe(&app, &format!("s{n}"), json!({"event_types": ["all", format!("only.{n}")]}))
            .await;
    }
    let event_type = |n: usize| match n % 3 {
        0 | 1 => "all".to_owned(),
        _ => format!("only.{}", n % SUBSCRIPTIONS),
    };
    let events: Vec<_> = (0..1_000).map(|n| json!({"payload": n, "type": event_type(n)})).collect();
    let (status, answer) =
        app.call("POST", "/events/batch", None, Some(&json!({"events": events}))).await;
    assert_eq!(status, 202);
    let results = answer["results"].as_array().unwrap();
    assert!(results.iter().all(|result| result["status"] == "accepted"));
    let to_all = (0..1_000).filter(|n| event_type(*n) == "all").count();
    let expected = to_all * SUBSCRIPTIONS + (1_000 - to_all);
    assert!(expected > 5_000, "more than one transaction takes");
    let waiting: i64 = sqlx::query_scalar("select count(*) from delivery_queue")
        .fetch_one(app.store.pool())
        .await
        .unwrap();
    assert_eq!(usize::try_from(waiting).unwrap(), expected);
    for n in [0, 2, 998, 999] {
        let event = app.event(results[n]["id"].as_str().unwrap()).await;
        let only = format!("s{}", n % SUBSCRIPTIONS);
        let expected = if event_type(n) == "all" {
            (0..SUBSCRIPTIONS).map(|n| format!("s{n}")).collect()
        } else {
            names(&[&only])
        };
        assert_eq!((&event["payload"], reached(&event)), (&json!(n), expected));
    }
    app.stop().await;
}

/// Catches: an event that is accepted for an application while that is deleted elsewhere.
#[tokio::test]
async fn a_deletion_that_one_replica_has_answered_holds_on_the_other() {
    let database = TestDatabase::new().await;
    let one = TestApp::on(database.clone(), &["--role=api"]).await;
    let other = TestApp::on(database, &["--role=api"]).await;
    for round in 0..10 {
        let uid = format!("tenant-{round}");
        let made = one.make("/applications", json!({"uid": uid})).await;
        let body = json!({"payload": 1, "type": "a", "application": made["id"]});
        let (status, answer) = other.call("POST", "/events", None, Some(&body)).await;
        assert_eq!(status, 202, "{answer}");
        assert_eq!(one.call("DELETE", &format!("/applications/{uid}"), None, None).await.0, 204);
        let (status, problem) = other.call("POST", "/events", None, Some(&body)).await;
        let expected = (404, &json!("/problems/application-not-found"));
        assert_eq!((status, &problem["type"]), expected);
    }
    eventually("the other forgets the name", async || {
        let (status, _) = other.call("GET", "/applications/tenant-9", None, None).await;
        (status == 404).then_some(())
    })
    .await;
    one.stop().await;
    other.stop().await;
}
