//! Targets: hosts that cannot be called, and headers beyond ASCII.

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use super::{noting, post};
use crate::support::{TestApp, TestDatabase};

/// Catches: a URL that is accepted on one way in and can never be called.
#[tokio::test]
async fn a_host_that_cannot_be_called_is_refused_on_every_way_in() {
    let app = TestApp::start().await;
    let made = json!({"target_url": "http://127.0.0.1:9/", "event_types": ["a"], "uid": "one"});
    app.make("/subscriptions", made).await;
    let long = format!("https://{}.example/", "x".repeat(64));
    for url in [
        "https://hooks.{{tenant}}.example.com/x",
        "https://a..example/",
        "https://-a.example/",
        "https://xn--a/",
        "http://a.example:0/",
        long.as_str(),
    ] {
        let event = json!({"payload": 1, "target_url": url});
        let subscription = json!({"target_url": url, "event_types": ["a"]});
        let dispatch = |target: Value| json!({"event": "a", "payload": 1, "targets": [target]});
        for (method, path, body, pointer) in [
            ("POST", "/events", event, "/target_url"),
            ("POST", "/dispatch", dispatch(json!(url)), "/targets/0"),
            ("POST", "/dispatch", dispatch(json!({"url": url})), "/targets/0/url"),
            ("POST", "/subscriptions", subscription.clone(), "/target_url"),
            ("PUT", "/subscriptions/one", subscription, "/target_url"),
            ("PATCH", "/subscriptions/one", json!({"target_url": url}), "/target_url"),
        ] {
            let (status, answer) = app.call(method, path, None, Some(&body)).await;
            assert_eq!(
                (status, &answer["pointer"]),
                (422, &json!(pointer)),
                "{path} {url}: {answer}"
            );
        }
        let batch = json!({"events": [{"payload": 1, "target_url": url}]});
        let (status, answer) = app.call("POST", "/events/batch", None, Some(&batch)).await;
        let pointer = &answer["results"][0]["problem"]["pointer"];
        assert_eq!((status, pointer), (422, &json!("/events/0/target_url")), "{answer}");
    }
    // RFC 1123 knows no underscores, but Compose gives such names.
    let body = json!({"target_url": "https://my_service.example/", "event_types": ["a"]});
    app.make("/subscriptions", body).await;
    app.stop().await;
}

/// Catches: a fault of a target that was accepted by an earlier version, shown as a fault of the service.
#[tokio::test]
async fn a_host_that_an_earlier_version_accepted_fails_as_the_targets_fault() {
    let database = TestDatabase::new().await;
    let app = TestApp::on(database.clone(), &["--max-attempts=1", "--require-https=false"]).await;
    let made = json!({"target_url": "http://127.0.0.1:9/", "event_types": ["a.b"]});
    app.make("/subscriptions", made).await;
    let mut session = PgConnection::connect(&database.url()).await.unwrap();
    sqlx::query("update subscription_revision set target_url = 'https://{{t}}.example/x'")
        .execute(&mut session)
        .await
        .unwrap();
    app.stop().await;
    let app = TestApp::on(database, &["--max-attempts=1"]).await;
    let event = app.publish(json!({"payload": 1, "type": "a.b"})).await;
    let dead = app.wait_for(&event, "dead").await;
    let error = &dead["deliveries"][0]["attempts"][0]["error"];
    assert_eq!(error["class"], "dns", "{dead}");
    app.stop().await;
}

/// Catches: a header that is there at the first attempt and empty at the next.
#[tokio::test]
async fn header_values_beyond_ascii_are_the_same_at_every_attempt() {
    let (receiver, heads) = noting(2, false).await;
    let app = TestApp::start().await;
    let dispatch = |value: &str| {
        let target = json!({"url": receiver.url(), "headers": {"X-Name": value}});
        json!({"event": "a.b", "payload": 1, "targets": [target], "retry": [0.05, 0.05, 0.05],
               "idempotencyKey": "k"})
    };
    let (_, answer) = post(&app, "/dispatch", &[], &dispatch("Grüße")).await;
    app.wait_for(answer["dispatchId"].as_str().unwrap(), "delivered").await;
    let latin_1 = "Grüße".bytes().map(char::from).collect::<String>();
    assert_eq!(heads.header("x-name"), vec![Some(latin_1.clone()); 3]);
    let (status, again) = post(&app, "/dispatch", &[], &dispatch("Grüße")).await;
    assert_eq!((status, &again["dispatchId"]), (200, &answer["dispatchId"]), "{again}");
    let (status, other) = post(&app, "/dispatch", &[], &dispatch("Grüsse")).await;
    assert_eq!((status, &other["type"]), (409, &json!("/problems/idempotency-key-reused")));
    let (status, other) = post(&app, "/dispatch", &[], &dispatch("Größe")).await;
    assert_eq!(status, 409, "{other}");
    // Those of a subscription are always read back.
    let made = json!({"target_url": receiver.url(), "event_types": ["c.d"],
                      "headers": {"x-name": "Grüße"}});
    app.make("/subscriptions", made).await;
    let event = app.publish(json!({"payload": 1, "type": "c.d"})).await;
    app.wait_for(&event, "delivered").await;
    assert_eq!(heads.header("x-name").pop(), Some(Some(latin_1)));
    app.stop().await;
}
