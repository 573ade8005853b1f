//! What a key may see that may not read, and what a change of a URL takes along.

use serde_json::{Value, json};

use crate::{
    applications::{ADMIN_KEY, WITH_KEYS, key, tenant},
    mcp,
    support::{Receiver, TestApp},
};

/// A producer learns ids and states of a dispatch, and nothing of the subscriptions.
#[tokio::test]
async fn a_producer_sees_ids_and_states_only() {
    let app = TestApp::with(&WITH_KEYS).await;
    let (id, producer) = tenant(&app, "acme", "producer").await;
    let dispatcher = key(&app, &id, "dispatcher").await;
    let (good, bad) = (Receiver::always(204).await, Receiver::always(500).await);
    for receiver in [&good, &bad] {
        let body = json!({"target_url": receiver.url("/hidden-path"), "event_types": "a"});
        let path = "/subscriptions?application=acme";
        let (status, made) = app.call("POST", path, Some(ADMIN_KEY), Some(&body)).await;
        assert_eq!(status, 201, "{made}");
    }
    let body = json!({"event": "a", "payload": 1, "idempotencyKey": "k"});
    let (status, seen) = app.call("POST", "/dispatch", Some(&producer), Some(&body)).await;
    assert_eq!(status, 200, "{seen}");
    let mut states = Vec::new();
    for result in seen["results"].as_array().unwrap() {
        assert_eq!(result.as_object().unwrap().len(), 2, "{seen}");
        assert!(result["deliveryId"].as_str().unwrap().starts_with("dlv_"), "{seen}");
        states.push(result["status"].as_str().unwrap().to_owned());
    }
    states.sort_unstable();
    assert_eq!(states, ["delivered", "failed"]);
    // The same over MCP.
    let arguments = json!({"event": "a", "payload": 1, "idempotencyKey": "k2"});
    let tool = mcp::call(&app, &producer, "webhook.dispatch", &arguments).await.unwrap();
    for text in [seen.to_string(), tool.to_string()] {
        for hidden in ["hidden-path", "127.0.0.1", "code", "durationMs", "error", ":500"] {
            assert!(!text.contains(hidden), "{hidden}: {text}");
        }
    }
    // A key that may read sees all of the same dispatch.
    let (_, all) = app.call("POST", "/dispatch", Some(&dispatcher), Some(&body)).await;
    assert_eq!(all["dispatchId"], seen["dispatchId"]);
    for result in all["results"].as_array().unwrap() {
        assert!(result["url"].as_str().unwrap().ends_with("/hidden-path"), "{all}");
        assert!(result["code"].is_i64(), "{all}");
    }
    app.stop().await;
}

/// Stored credentials go to no other origin than the one that they were given for.
#[tokio::test]
async fn sealed_headers_do_not_follow_a_url_to_another_origin() {
    let app = TestApp::with(&["--role=api"]).await;
    let headers = json!({"Authorization": "Bearer of-the-receiver"});
    let body = json!({"target_url": "http://127.0.0.1:9/a", "event_types": "a", "uid": "mine",
        "headers": headers});
    app.make("/subscriptions", body).await;
    let change = async |method: &str, more: Value| {
        let mut body = json!({"target_url": "http://127.0.0.1:10/b"});
        if method == "PUT" {
            body["event_types"] = json!("a");
        }
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        app.call(method, "/subscriptions/mine", None, Some(&body)).await
    };
    let redacted = json!({"headers": {"Authorization": "[redacted]"}});
    for (method, more) in
        [("PATCH", json!({})), ("PATCH", redacted.clone()), ("PUT", redacted.clone())]
    {
        let (status, problem) = change(method, more.clone()).await;
        let told = (status, &problem["pointer"]);
        assert_eq!(told, (422, &json!("/headers")), "{method} {more}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains("another origin"), "{problem}");
    }
    // To the same origin they stay, in either way.
    for (method, more) in [("PATCH", json!({})), ("PUT", redacted.clone())] {
        let mut more = more;
        more["target_url"] = json!("http://127.0.0.1:9/c");
        let (status, changed) = change(method, more).await;
        assert_eq!((status, &changed["headers"]), (200, &redacted["headers"]), "{changed}");
    }
    // Given again, or given up, the URL may change.
    let (status, changed) = change("PATCH", json!({"headers": headers})).await;
    assert_eq!((status, &changed["headers"]), (200, &redacted["headers"]), "{changed}");
    let mut back = json!({"headers": null, "target_url": "http://127.0.0.1:9/"});
    let (status, changed) = change("PATCH", back.clone()).await;
    assert_eq!((status, &changed["headers"]), (200, &json!({})), "{changed}");
    back["target_url"] = json!("http://127.0.0.1:11/");
    assert_eq!(change("PUT", json!({})).await.0, 200);
    app.stop().await;
}
