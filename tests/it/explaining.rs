//! Why an event went where it went, and what comes in for one subscription.

use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::support::{Receiver, TestApp, eventually};

async fn subscribe(app: &TestApp, uid: &str, settings: Value) -> String {
    let mut body = json!({"uid": uid, "target_url": "http://127.0.0.1:9/", "event_types": "*"});
    body.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
    app.make("/subscriptions", body).await["id"].as_str().unwrap().to_owned()
}

/// All verdicts of an event, page by page.
async fn verdicts(app: &TestApp, event: &str) -> Vec<Value> {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let (status, page) = app.get(&format!("/events/{event}/explain?limit=2{cursor}")).await;
        assert_eq!(status, 200, "{page}");
        all.extend(page["data"].as_array().unwrap().clone());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return all,
        }
    }
}

/// Each uid with its verdict.
fn told(verdicts: &[Value]) -> Vec<(&str, &str)> {
    verdicts
        .iter()
        .map(|one| {
            (one["uid"].as_str().unwrap_or_default(), one["verdict"].as_str().unwrap_or_default())
        })
        .collect()
}

/// Catches: a verdict by what a subscription says today; one that is left out; a filter that does not
/// say which clause; a state that is told as another.
#[tokio::test]
async fn each_subscription_is_explained_as_it_was() {
    let receiver = Receiver::start(|_, request| {
        crate::support::Answer::status(request.path.trim_start_matches('/').parse().unwrap())
    })
    .await;
    let app = TestApp::with(&["--max-attempts=1"]).await;
    let to = |path: &str| json!({"target_url": receiver.url(path)});
    let with = |path: &str, more: Value| {
        let mut settings = to(path);
        settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        settings
    };
    subscribe(&app, "well", to("/200")).await;
    subscribe(&app, "dead", to("/404")).await;
    subscribe(&app, "tries", with("/503", json!({"retry": [3600]}))).await;
    subscribe(&app, "parked", with("/200", json!({"is_active": false}))).await;
    subscribe(&app, "types", json!({"event_types": ["user.*", "order.made"]})).await;
    subscribe(&app, "filter", json!({"filter": {"data.amount": {"gte": 1_000}}})).await;
    subscribe(&app, "deleted", json!({})).await;
    app.call("DELETE", "/subscriptions/deleted", None, None).await;
    let event = app.publish(json!({"type": "invoice.paid", "payload": {"amount": 120}})).await;
    // What comes later changes nothing.
    subscribe(&app, "later", json!({})).await;
    for uid in ["types", "filter"] {
        let body = json!({"event_types": "*", "filter": null});
        app.call("PATCH", &format!("/subscriptions/{uid}"), None, Some(&body)).await;
    }
    app.call("DELETE", "/subscriptions/well", None, None).await;

    let verdicts = eventually("all is tried", async || {
        let verdicts = verdicts(&app, &event).await;
        let waits = ["pending", "in_flight"];
        let waits = verdicts.iter().any(|one| waits.contains(&one["verdict"].as_str().unwrap()));
        (!waits).then_some(verdicts)
    })
    .await;
    let expected = [
        ("well", "delivered"),
        ("dead", "dead"),
        ("tries", "retrying"),
        ("parked", "parked"),
        ("types", "not_matched"),
        ("filter", "not_matched"),
        ("deleted", "deleted"),
    ];
    assert_eq!(told(&verdicts), expected);
    for (n, part) in [
        (0, "after 1 attempt"),
        (1, "given up after 1 attempt: http_status; the last answer was 404"),
        (2, "1 attempt, the last answer was 503; the next one is due at 20"),
        (3, ": its owner said so"),
        (4, "it asks for user.*, order.made; this is invoice.paid"),
        (5, "its filter: `data.amount` is 120; asked for: gte 1000"),
        (6, "before the event came"),
    ] {
        let detail = verdicts[n]["detail"].as_str().unwrap();
        assert!(detail.contains(part), "{n}: {detail}");
    }
    assert_eq!(verdicts[5]["clause"], "/data.amount/gte");
    assert_eq!(
        (&verdicts[5]["revision"], &verdicts[2]["delivery"]["attempt_count"]),
        (&json!(1), &json!(1))
    );

    // Without its payload, it says what it cannot know.
    sqlx::query("delete from event_payload").execute(app.store.pool()).await.unwrap();
    let verdicts = self::verdicts(&app, &event).await;
    assert_eq!(told(&verdicts)[4..6], [("types", "not_matched"), ("filter", "unknown")]);
    app.stop().await;
}

/// Catches: subscriptions that are said not to match an event that did not ask for any.
#[tokio::test]
async fn an_event_that_named_its_target_says_so() {
    let receiver = Receiver::always(200).await;
    let app = TestApp::with(&[&format!("--target-url={}", receiver.url("/default"))]).await;
    subscribe(&app, "all", json!({})).await;
    subscribe(&app, "one", json!({"target_url": receiver.url("/")})).await;
    for (body, route) in [
        (json!({"payload": 1, "target_url": receiver.url("/named")}), "target"),
        (json!({"payload": 1}), "default"),
    ] {
        let event = app.publish(body).await;
        app.wait_for(&event, "delivered").await;
        let (_, explanation) = app.get(&format!("/events/{event}/explain")).await;
        assert_eq!(explanation["route"], route);
        assert_eq!(told(explanation["data"].as_array().unwrap()), [("", "delivered")]);
    }
    let (_, test) = app.call("POST", "/subscriptions/one/test", None, Some(&json!({}))).await;
    let event = test["id"].as_str().unwrap();
    app.wait_for(event, "delivered").await;
    let (_, explanation) = app.get(&format!("/events/{event}/explain")).await;
    assert_eq!(explanation["route"], "one");
    let found = told(explanation["data"].as_array().unwrap());
    assert_eq!(found, [("all", "not_asked"), ("one", "delivered")]);
    let nobody = app.publish(json!({"payload": 1, "type": "webhookless"})).await;
    assert_eq!(told(&verdicts(&app, &nobody).await).len(), 2);
    let (status, problem) = app.get("/events/evt_0192d4e012347abc8def0123456789ab/explain").await;
    assert_eq!((status.as_u16(), &problem["type"]), (404, &json!("/problems/event-not-found")));
    app.stop().await;
}

/// Posts bytes as another system would.
async fn ingest(
    app: &TestApp,
    uid: &str,
    headers: &[(&str, &str)],
    body: impl Into<reqwest::Body>,
) -> (u16, Value) {
    let mut request = app.http.post(format!("{}/ingest/{uid}", app.base)).body(body);
    request = request.header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap())
}

fn signed(secret: &str, body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(body.as_bytes());
    let digest = mac.finalize().into_bytes();
    digest.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

/// Catches: what comes in that goes to others too, or is asked about patterns; bytes that change on
/// the way; a task that nobody knows.
#[tokio::test]
async fn what_comes_in_goes_to_its_subscription_as_it_came() {
    let receiver = Receiver::always(200).await;
    let app = TestApp::start().await;
    subscribe(&app, "all", json!({"target_url": receiver.url("/all")})).await;
    let nothing = json!({"target_url": receiver.url("/one"), "event_types": "nothing",
        "payload_format": "raw"});
    subscribe(&app, "one", nothing).await;
    let body = r#"{"z": 1.0,  "a":[1e2, "é"]}"#;
    for (headers, event_type) in
        [(vec![("x-event-type", "invoice.paid")], json!("invoice.paid")), (vec![], Value::Null)]
    {
        let (status, answer) = ingest(&app, "one", &headers, format!(" {body}\n")).await;
        assert_eq!(status, 202, "{answer}");
        let task = answer["task_id"].as_str().unwrap();
        let shown = eventually("delivered", async || {
            let (_, shown) = app.get(&format!("/status/{task}")).await;
            (shown["state"] == "delivered").then_some(shown)
        })
        .await;
        assert_eq!((&shown["event_type"], &shown["event_id"]), (&event_type, &answer["event_id"]));
    }
    let received = receiver.received();
    assert_eq!(received.len(), 2);
    for one in received {
        assert_eq!((one.path.as_str(), one.body.as_slice()), ("/one", body.as_bytes()));
    }
    let key = [("idempotency-key", "k")];
    let first = ingest(&app, "one", &key, "1").await;
    assert_eq!(ingest(&app, "one", &key, "1").await, first);
    assert_eq!(ingest(&app, "one", &key, "2").await.0, 409);
    app.stop().await;
}

/// Catches: an inbound secret that is stored and checked by nothing; a signature over other bytes, or
/// by another secret, that passes; a check that leaves something stored.
#[tokio::test]
async fn an_inbound_secret_is_asked_for() {
    let secret = "of the system that sends";
    let app = TestApp::with(&["--role=api"]).await;
    subscribe(&app, "signed", json!({"inbound_secret": secret})).await;
    subscribe(&app, "open", json!({})).await;
    let body = r#"{"amount": 1}"#;
    let good = format!("sha256={}", signed(secret, body));
    let wrapped = |signature: &str, more: Value| {
        let mut wrapped = json!({"body": body, "signature": signature});
        wrapped.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        wrapped.to_string()
    };
    let hex = signed(secret, body);
    for (headers, given) in [
        (vec![], body.to_owned()),
        (vec![("x-hub-signature-256", good.as_str())], r#"{"amount": 2}"#.to_owned()),
        (vec![("x-hub-signature-256", &good[7..])], body.to_owned()),
        (vec![("x-hub-signature-256", "sha256=")], body.to_owned()),
        (vec![], wrapped(&signed("of somebody else, though", body), json!({}))),
        (vec![], wrapped(&hex, json!({"body": "{\"amount\": 2}"}))),
        (vec![], wrapped(&hex, json!({"more": 1}))),
        (vec![], "[]".to_owned()),
    ] {
        let (status, problem) = ingest(&app, "signed", &headers, given.clone()).await;
        let expected = (403, &json!("/problems/inbound-signature"));
        assert_eq!((status, &problem["type"]), expected, "{given}: {problem}");
    }
    assert_eq!(app.get("/events").await.1["data"], json!([]));

    let by_header = ingest(&app, "signed", &[("x-hub-signature-256", &good)], body).await;
    let by_body = ingest(&app, "signed", &[], wrapped(&hex, json!({}))).await;
    for (status, answer) in [by_header, by_body] {
        assert_eq!(status, 202, "{answer}");
        let event = app.event(answer["event_id"].as_str().unwrap()).await;
        assert_eq!(event["payload"], json!({"amount": 1}));
    }
    let inner = json!({"body": "{no json", "signature": signed(secret, "{no json")});
    let (status, problem) = ingest(&app, "signed", &[], inner.to_string()).await;
    assert_eq!((status, &problem["type"]), (400, &json!("/problems/malformed-json")));
    for (headers, given, status) in [
        (vec![("x-event-type", "a b")], "1", 422),
        (vec![("x-event-type", "webhook.x")], "1", 422),
        (vec![], "", 400),
        (vec![], "1 2", 400),
        (vec![], "1e400", 422),
    ] {
        let (answered, problem) = ingest(&app, "open", &headers, given).await;
        assert_eq!(answered, status, "{headers:?} {given}: {problem}");
    }
    assert_eq!(ingest(&app, "nobody", &[], "1").await.0, 404);
    app.stop().await;
}
