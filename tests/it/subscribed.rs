//! What the receivers of subscriptions get: as the subscription says at that moment.

use chrono::{DateTime, SecondsFormat};
use serde_json::{Value, json};
use webhook_dispatcher::domain::{EventId, ids::DEFAULT_APPLICATION};

use crate::support::{Answer, Receiver, TestApp, TestDatabase, eventually};

/// Tries again at once, as often as a test needs.
fn patient() -> Value {
    json!({"max_attempts": 1_000, "base_seconds": 0.05, "max_seconds": 0.05})
}

async fn publish(app: &TestApp, event_type: &str) -> String {
    app.publish(json!({"payload": {"n": 1}, "type": event_type})).await
}

/// The envelope as the documents have it.
fn envelope(id: &str, event_type: &str, payload: &str, metadata: &str, version: &str) -> String {
    let event: EventId = id.parse().unwrap();
    let ms = event.uuid().as_u128() >> 80;
    let time = DateTime::from_timestamp_millis(i64::try_from(ms).unwrap()).unwrap();
    let time = time.to_rfc3339_opts(SecondsFormat::Millis, true);
    format!(
        r#"{{"id":"{id}","type":"{event_type}","timestamp":"{time}","tenant_id":"{DEFAULT_APPLICATION}","data":{payload},"metadata":{metadata},"schema_version":"{version}"}}"#
    )
}

/// Catches: a payload that is encoded anew, a member that is missing or elsewhere, a method, header or
/// format that is not the subscription's, a header's value in the log of attempts.
#[tokio::test]
async fn a_receiver_gets_what_its_subscription_asks_for() {
    let receiver = Receiver::always(200).await;
    let app = TestApp::start().await;
    for (path, settings) in [
        ("/envelope", json!({})),
        ("/versioned", json!({"schema_version": "2026-01 \"x\"", "method": "PATCH"})),
        (
            "/raw",
            json!({"payload_format": "raw", "method": "PUT",
                   "headers": {"Authorization": "Bearer hush", "User-Agent": "mine", "X-Tenant": "7"}}),
        ),
    ] {
        let mut body = json!({"target_url": receiver.url(path), "event_types": "invoice.*"});
        body.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        app.make("/subscriptions", body).await;
    }
    // Key order, spacing, numbers and escapes must survive: these bytes are signed.
    let payload = r#"{"z": 1.0,  "a":[1e2, "é\u00e9\/"], "big": 123456789012345678901234567890}"#;
    let metadata = r#"{"b": 1,  "a": "\u00e9"}"#;
    let body =
        format!(r#"{{"type": "invoice.paid", "payload": {payload}, "metadata": {metadata}}}"#);
    let request = app.http.post(format!("{}/events", app.base)).body(body);
    let answer = request.header("content-type", "application/json").send().await.unwrap();
    let answer: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    let id = answer["id"].as_str().unwrap();
    let event = app.wait_for(id, "delivered").await;

    let received = receiver.received();
    assert_eq!(received.len(), 3);
    let to = |path: &str| received.iter().find(|request| request.path == path).unwrap();
    let text = |path: &str| String::from_utf8(to(path).body.clone()).unwrap();
    assert_eq!(text("/envelope"), envelope(id, "invoice.paid", payload, metadata, "1"));
    let versioned = envelope(id, "invoice.paid", payload, metadata, r#"2026-01 \"x\""#);
    assert_eq!(text("/versioned"), versioned);
    assert_eq!(text("/raw"), payload);
    for (path, method) in [("/envelope", "POST"), ("/versioned", "PATCH"), ("/raw", "PUT")] {
        assert_eq!(to(path).method, method);
        assert_eq!(to(path).header("content-type"), "application/json");
        assert_eq!(to(path).header("x-webhook-event"), "invoice.paid");
        let delivery = event["deliveries"].as_array().unwrap().iter();
        let mut attempts = delivery.map(|delivery| &delivery["attempts"][0]["request"]);
        let attempt = attempts.find(|request| request["url"] == receiver.url(path)).unwrap();
        assert_eq!(attempt["method"], method, "{attempt}");
        if path == "/raw" {
            for (name, value) in
                [("authorization", "Bearer hush"), ("user-agent", "mine"), ("x-tenant", "7")]
            {
                assert_eq!(to(path).header(name), value);
                assert_eq!(attempt["headers"][name], "[redacted]");
            }
        } else {
            assert!(!to(path).headers.contains_key("authorization"));
        }
    }
    app.stop().await;
}

/// Catches: a schedule that is not the subscription's, or one attempt more or less.
#[tokio::test]
async fn a_subscription_has_its_own_schedule() {
    let receiver = Receiver::always(503).await;
    let app = TestApp::with(&["--max-attempts=7"]).await;
    for (event_type, retry, attempts) in [
        ("t.two", json!([0.05, 0.05]), 3),
        ("t.one", json!([0]), 2),
        ("t.backoff", json!({"max_attempts": 4, "base_seconds": 0.01, "max_seconds": 0.02}), 4),
        ("t.none", json!({"max_attempts": 1, "base_seconds": 1, "max_seconds": 1}), 1),
        ("t.settings", json!(null), 7),
    ] {
        let body = json!({"target_url": receiver.url("/"), "event_types": event_type,
            "retry": retry});
        app.make("/subscriptions", body).await;
        let id = publish(&app, event_type).await;
        let event = app.wait_for(&id, "dead").await;
        assert_eq!(event["attempt_count"], attempts, "{event_type}");
        let sent = receiver.received();
        let sent = sent.iter().filter(|request| request.header("webhook-id") == id).count();
        assert_eq!(sent, attempts, "{event_type}");
    }
    app.stop().await;
}

/// Catches: the deadline of the settings, which is beyond what this test waits, instead of the
/// subscription's.
#[tokio::test]
async fn a_subscription_has_its_own_deadline() {
    let hangs = std::time::Duration::from_secs(600);
    let receiver = Receiver::start(move |_, _| Answer::status(200).after(hangs)).await;
    let app = TestApp::with(&["--http-timeout=300"]).await;
    let body = json!({"target_url": receiver.url("/"), "event_types": "a", "timeout_seconds": 1,
        "retry": {"max_attempts": 1, "base_seconds": 1, "max_seconds": 1}});
    app.make("/subscriptions", body).await;
    let event = app.wait_for(&publish(&app, "a").await, "dead").await;
    assert_eq!(event["last_error"]["class"], "timeout");
    app.stop().await;
}

/// Catches: a delivery that keeps the target, or the rest, of the moment when it was routed.
#[tokio::test]
async fn what_waits_is_sent_as_the_subscription_says_now() {
    let before = Receiver::always(503).await;
    let after = Receiver::always(200).await;
    let app = TestApp::start().await;
    let body = json!({"target_url": before.url("/"), "event_types": "a", "uid": "mine",
        "retry": patient()});
    app.make("/subscriptions", body).await;
    let id = publish(&app, "a").await;
    eventually("an attempt", async || (before.count() > 0).then_some(())).await;
    let body = json!({"target_url": after.url("/new"), "payload_format": "raw", "method": "PUT"});
    assert_eq!(app.call("PATCH", "/subscriptions/mine", None, Some(&body)).await.0, 200);
    app.wait_for(&id, "delivered").await;
    let received = &after.received()[0];
    assert_eq!(received.header("webhook-id"), id);
    assert_eq!((received.method.as_str(), received.path.as_str()), ("PUT", "/new"));
    assert_eq!(received.body, br#"{"n":1}"#);
    app.stop().await;
}

/// Catches: what waits for a deleted subscription sent, or left to wait for ever, whether it is due
/// again and again or in an hour.
#[tokio::test]
async fn what_waits_for_a_deleted_subscription_is_cancelled() {
    let receiver = Receiver::always(503).await;
    let app = TestApp::start().await;
    for retry in [patient(), json!([3_600])] {
        let body = json!({"target_url": receiver.url("/"), "event_types": "a", "uid": "mine",
            "retry": retry});
        app.make("/subscriptions", body).await;
        let id = publish(&app, "a").await;
        let attempts = async || {
            let received = receiver.received();
            received.iter().filter(|request| request.header("webhook-id") == id).count()
        };
        eventually("a recorded attempt", async || {
            (app.event(&id).await["attempt_count"] != 0).then_some(())
        })
        .await;
        assert_eq!(app.call("DELETE", "/subscriptions/mine", None, None).await.0, 204);
        let event = app.wait_for(&id, "cancelled").await;
        let delivery = &event["deliveries"][0];
        let cancelled = json!("cancelled");
        assert_eq!((&delivery["state"], &delivery["reason"]), (&cancelled, &cancelled));
        assert_eq!(event["attempt_count"], attempts().await);
    }
    app.stop().await;
}

/// Catches: metadata, or settings, that only the process has which accepted the event.
#[tokio::test]
async fn another_process_sends_the_same() {
    let receiver =
        Receiver::start(|before, _| Answer::status(if before < 2 { 503 } else { 200 })).await;
    let database = TestDatabase::new().await;
    let api = TestApp::on(database.clone(), &["--role=api"]).await;
    let worker = TestApp::on(database, &["--role=worker"]).await;
    let body = json!({"target_url": receiver.url("/"), "event_types": "a", "retry": patient(),
        "headers": {"X-Tenant": "7"}});
    api.make("/subscriptions", body).await;
    let metadata = r#"{"trace":"x"}"#;
    let body = json!({"payload": 1, "type": "a", "metadata": {"trace": "x"}});
    let (_, accepted) = api.call("POST", "/events", None, Some(&body)).await;
    let id = accepted["id"].as_str().unwrap();
    api.wait_for(id, "delivered").await;
    let received = receiver.received();
    assert_eq!(received.len(), 3);
    for request in received {
        let body = String::from_utf8(request.body.clone()).unwrap();
        assert_eq!(body, envelope(id, "a", "1", metadata, "1"));
        assert_eq!(request.header("x-tenant"), "7");
    }
    api.stop().await;
    worker.stop().await;
}
