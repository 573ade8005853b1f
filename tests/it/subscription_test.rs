//! `POST /subscriptions/{id}/test`, the routes' other names, and what nobody may publish.

use serde_json::{Value, json};

use crate::{
    applications::{WITH_KEYS, tenant},
    support::{Receiver, TestApp},
};

async fn test(app: &TestApp, id: &str, body: Value) -> (u16, Value) {
    app.call("POST", &format!("/subscriptions/{id}/test"), None, Some(&body)).await
}

/// Catches: patterns or a filter that are asked all the same; another subscription that gets it too;
/// an example that is not the catalogue's, or the instance's where the application has its own; a
/// test that is no delivery like others.
#[tokio::test]
async fn a_test_is_a_real_delivery_of_the_example() {
    let receiver = Receiver::always(200).await;
    let app = TestApp::start().await;
    let definition = |name: &str, example: Value| json!({"name": name, "example": example});
    let instances = definition("invoice.paid", json!({"of": "the instance"}));
    app.make("/event-types?scope=instance", instances).await;
    let below = definition("invoice.sent", json!({"below": 1}));
    app.make("/event-types?scope=instance", below).await;
    let own = definition("order.created", json!({"of": "the application"}));
    app.make("/event-types", own).await;
    let other = definition("order.created", json!({"of": "the instance"}));
    app.make("/event-types?scope=instance", other).await;

    app.make("/subscriptions", json!({"target_url": receiver.url("/all"), "event_types": "*"}))
        .await;
    let nothing = json!({"data.amount": {"gt": 1_000}});
    for (types, given, expected_type, payload) in [
        (json!(["a.*", "invoice.paid"]), json!({}), "invoice.paid", json!({"of": "the instance"})),
        (json!(["order.created"]), json!({}), "order.created", json!({"of": "the application"})),
        (json!(["invoice.*"]), json!({}), "invoice.paid", json!({"of": "the instance"})),
        (json!(["nobody.knows"]), json!({}), "nobody.knows", json!({"test": true})),
        (json!(["nobody.*"]), json!({}), "test", json!({"test": true})),
        (json!("a"), json!({"type": "invoice.sent"}), "invoice.sent", json!({"below": 1})),
        (json!("a"), json!({"type": "b", "payload": [null]}), "b", json!([null])),
        (json!("a"), json!({"payload": null}), "a", Value::Null),
        (json!("webhook.x"), json!({}), "webhook.x", json!({"test": true})),
    ] {
        let body = json!({"target_url": receiver.url("/one"), "event_types": types,
            "filter": nothing});
        let made = app.make("/subscriptions", body).await;
        let (status, answer) = test(&app, made["id"].as_str().unwrap(), given).await;
        assert_eq!((status, &answer["type"]), (202, &json!(expected_type)), "{answer}");
        let event = app.wait_for(answer["id"].as_str().unwrap(), "delivered").await;
        let deliveries = event["deliveries"].as_array().unwrap();
        assert_eq!((deliveries.len(), &deliveries[0]["id"]), (1, &answer["delivery_id"]));

        let received = receiver.received();
        let sent = received.last().unwrap();
        assert_eq!(
            (sent.path.as_str(), sent.header("webhook-id")),
            ("/one", answer["id"].as_str().unwrap())
        );
        assert!(sent.header("webhook-signature").starts_with("v1,"));
        let envelope: Value = serde_json::from_slice(&sent.body).unwrap();
        assert_eq!(envelope["data"], payload, "{expected_type}");
        assert_eq!(envelope["metadata"], json!({"test": true}));
    }
    app.stop().await;
}

/// Catches: a test that is stored although it cannot or may not be sent; a key that stands for
/// nothing.
#[tokio::test]
async fn a_test_is_refused_before_anything_is_stored() {
    let app = TestApp::with(&["--role=api"]).await;
    let schema = json!({"type": "object", "required": ["amount"]});
    let strict = json!({"name": "strict", "schema": schema, "checks_payload": true});
    app.make("/event-types", strict).await;
    let body = |types: &str| json!({"target_url": "http://127.0.0.1:9/", "event_types": types});
    let one = app.make("/subscriptions", body("strict")).await;
    let one = one["id"].as_str().unwrap();
    for (given, status, kind, place) in [
        (json!({}), 422, "payload-refused", "/payload"),
        (json!({"payload": {}}), 422, "payload-refused", "/payload"),
        (json!({"type": "a b"}), 422, "invalid-request", "/type"),
        (json!({"typ": "a"}), 422, "invalid-request", ""),
        (json!([]), 422, "invalid-request", ""),
    ] {
        let (answered, problem) = test(&app, one, given.clone()).await;
        let expected = (status, json!(format!("/problems/{kind}")), json!(place));
        let found = (answered, problem["type"].clone(), problem["pointer"].clone());
        assert_eq!(found, expected, "{given}: {problem}");
    }
    let path = format!("/subscriptions/{one}/disable");
    assert_eq!(app.call("POST", &path, None, None).await.0, 200);
    let (status, problem) = test(&app, one, json!({"type": "a"})).await;
    assert_eq!((status, &problem["type"]), (409, &json!("/problems/conflict")), "{problem}");
    assert_eq!(app.get("/events").await.1["data"], json!([]));

    // The same key stands for the same test.
    let two = app.make("/subscriptions", body("a")).await;
    let url = format!("{}/subscriptions/{}/test", app.base, two["id"].as_str().unwrap());
    let mut answers = Vec::new();
    for _ in 0..2 {
        let request = app.http.post(&url).header("idempotency-key", "k");
        let request = request.header("content-type", "application/json").body("{}");
        answers.push(request.send().await.unwrap().text().await.unwrap());
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(app.get("/events").await.1["data"].as_array().unwrap().len(), 1);
    app.stop().await;
}

/// Catches: a prefix that leads elsewhere, lacks a route, or asks nobody who calls.
#[tokio::test]
async fn the_prefix_leads_to_the_same() {
    const PREFIX: &str = "/api/v1/webhooks";
    let app = TestApp::with(&WITH_KEYS).await;
    let (_, key) = tenant(&app, "acme", "manager").await;
    let call = async |method: &str, path: &str, body: Option<Value>| {
        app.call(method, path, Some(&key), body.as_ref()).await
    };
    let body = json!({"url": "http://127.0.0.1:9/", "events": ["a"], "uid": "mine"});
    let (status, made) = call("POST", &format!("{PREFIX}/subscriptions"), Some(body)).await;
    assert_eq!((status, &made["uid"]), (201, &json!("mine")), "{made}");
    let definition = json!({"name": "load", "description": "one type"});
    let (status, made) = call("POST", &format!("{PREFIX}/events"), Some(definition)).await;
    assert_eq!((status, &made["name"]), (201, &json!("load")), "{made}");
    assert_eq!(
        call("POST", &format!("{PREFIX}/events/load"), Some(json!({}))).await.1["added"],
        51
    );
    for (prefixed, plain) in [
        ("/subscriptions", "/subscriptions"),
        ("/subscriptions/mine", "/subscriptions/mine"),
        ("/subscriptions/mine/secret", "/subscriptions/mine/secret"),
        ("/events?limit=7", "/event-types?limit=7"),
        ("/events/load", "/event-types/load"),
        ("/events/invoice.paid", "/event-types/invoice.paid"),
    ] {
        let there = call("GET", &format!("{PREFIX}{prefixed}"), None).await;
        assert_eq!((there.0, &there), (200, &call("GET", plain, None).await), "{prefixed}");
    }
    for (method, path, body, expected) in [
        ("PATCH", "/subscriptions/mine", json!({"description": "x"}), 200),
        ("POST", "/subscriptions/mine/disable", json!({}), 200),
        ("POST", "/subscriptions/mine/enable", json!({}), 200),
        ("POST", "/subscriptions/mine/rotate-secret", json!({}), 200),
        ("POST", "/subscriptions/mine/test", json!({}), 202),
        ("PATCH", "/events/load", json!({"deprecated": true}), 200),
        ("DELETE", "/events/load", json!({}), 204),
        ("DELETE", "/subscriptions/mine", json!({}), 204),
        ("GET", "/event-types", json!({}), 404),
        ("GET", "/applications", json!({}), 404),
    ] {
        let path = format!("{PREFIX}{path}");
        let (status, answer) = call(method, &path, Some(body.clone())).await;
        assert_eq!(status, expected, "{method} {path}: {answer}");
        let (status, _) = app.call(method, &path, None, Some(&body)).await;
        assert_eq!(status, 401, "{method} {path}");
    }
    app.stop().await;
}

/// Catches: an application that fills the memory of every process that routes.
#[tokio::test]
async fn an_application_has_no_more_subscriptions_than_it_may() {
    let app = TestApp::with(&["--role=api"]).await;
    sqlx::query(
        "insert into subscription (subscription_id, application_id, revision, routing_version)
         select gen_random_uuid(), application_id, 1, 0
         from application, generate_series(1, 49999) where uid = 'default'",
    )
    .execute(app.store.pool())
    .await
    .unwrap();
    let body = json!({"target_url": "http://127.0.0.1:9/", "event_types": "a"});
    let made = app.make("/subscriptions", body.clone()).await;
    let (status, problem) = app.call("POST", "/subscriptions", None, Some(&body)).await;
    assert_eq!((status, &problem["type"]), (409, &json!("/problems/conflict")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("50000 subscriptions"), "{problem}");
    let path = format!("/subscriptions/{}", made["id"].as_str().unwrap());
    assert_eq!(app.call("DELETE", &path, None, None).await.0, 204);
    app.make("/subscriptions", body).await;
    app.stop().await;
}
