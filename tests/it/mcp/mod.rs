//! MCP: the tools as agents see them, by hand, and by the official clients.

mod access;
mod adapters;
mod clients;
mod tools;

use serde_json::{Value, json};

use crate::{
    applications::{ADMIN_KEY, WITH_KEYS, tenant},
    support::{Receiver, TestApp},
};

/// Tools that only read.
const READING: [&str; 5] = [
    "webhook_event",
    "webhook_explain",
    "webhook_deliveries",
    "webhook_subscriptions",
    "webhook_diagnose",
];
/// Tools that send, make or change something.
const WRITING: [&str; 7] = [
    "webhook_dispatch",
    "webhook_publish",
    "webhook_retry",
    "webhook_replay",
    "webhook_subscription_create",
    "webhook_subscription_update",
    "webhook_subscription_test",
];

/// A message, and the status and the message that is answered.
async fn message(app: &TestApp, key: Option<&str>, method: &str, params: &Value) -> (u16, Value) {
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    let mut request = app
        .http
        .post(format!("{}/mcp", app.base))
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .header("mcp-protocol-version", "2025-11-25")
        .body(body.to_string());
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    let text = answer.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

/// The names of the tools that a key sees.
async fn listed(app: &TestApp, key: &str) -> Vec<String> {
    let (status, answer) = message(app, Some(key), "tools/list", &json!({})).await;
    assert_eq!(status, 200, "{answer}");
    let tools = answer["result"]["tools"].as_array().unwrap();
    let mut names: Vec<_> =
        tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect();
    names.sort_unstable();
    names
}

/// Calls a tool: what it answers, or the problem.
pub async fn call(app: &TestApp, key: &str, name: &str, arguments: &Value) -> Result<Value, Value> {
    let params = json!({"name": name, "arguments": arguments});
    let (status, answer) = message(app, Some(key), "tools/call", &params).await;
    let result = &answer["result"];
    assert!(status == 200 && result.is_object(), "{name}: {status} {answer}");
    let text = result["content"][0]["text"].as_str().unwrap();
    let text: Value = serde_json::from_str(text).unwrap();
    if result["isError"] == true {
        assert!(result["structuredContent"].is_null(), "{name}: {answer}");
        for member in ["type", "title", "status", "detail", "what_to_do"] {
            assert!(!text[member].is_null(), "{name}, {member}: {text}");
        }
        return Err(text);
    }
    assert_eq!(result["structuredContent"], text, "{name}");
    Ok(text)
}

/// A service with an application that has a subscription, whose receiver fails, and an event that it
/// got.
struct Scene {
    app: TestApp,
    receiver: Receiver,
    application: String,
    manager: String,
    subscription: String,
    event: String,
    delivery: String,
}

impl Scene {
    async fn new(status: u16) -> Self {
        let receiver = Receiver::always(status).await;
        let app = TestApp::with(&WITH_KEYS).await;
        let (application, manager) = tenant(&app, "acme", "manager").await;
        let made = json!({"target_url": receiver.url("/hook"), "event_types": ["invoice.*"],
            "uid": "crm", "retry": [3600]});
        let (made, subscription) =
            app.call("POST", "/subscriptions", Some(&manager), Some(&made)).await;
        assert_eq!(made, 201, "{subscription}");
        let published = json!({"type": "invoice.paid", "payload": {"amount": 7}});
        let published = call(&app, &manager, "webhook_publish", &published).await.unwrap();
        let event = published["id"].as_str().unwrap().to_owned();
        let shown = crate::support::eventually("an attempt", async || {
            let path = format!("/events/{event}");
            let (_, shown) = app.call("GET", &path, Some(&manager), None).await;
            (shown["attempt_count"] == 1).then_some(shown)
        });
        let shown = shown.await;
        let delivery = shown["deliveries"][0]["id"].as_str().unwrap().to_owned();
        let subscription = subscription["id"].as_str().unwrap().to_owned();
        Self { app, receiver, application, manager, subscription, event, delivery }
    }

    /// A call of every tool that succeeds.
    fn calls(&self) -> Vec<(&'static str, Value)> {
        let (event, subscription) = (&self.event, &self.subscription);
        vec![
            ("webhook_publish", json!({"type": "invoice.paid", "payload": {"amount": 8}})),
            (
                "webhook_dispatch",
                json!({"event": "invoice.paid", "payload": {}, "targets": [self.receiver.url("/")]}),
            ),
            ("webhook_event", json!({"event_id": event})),
            ("webhook_explain", json!({"event_id": event, "limit": 10})),
            ("webhook_deliveries", json!({"subscription_id": "crm", "event_id": event})),
            ("webhook_retry", json!({"delivery_id": self.delivery})),
            ("webhook_replay", json!({"filter": {"state": "dead"}})),
            (
                "webhook_replay",
                json!({"filter": {"state": "dead"}, "dry_run": false, "idempotency_key": "once"}),
            ),
            ("webhook_subscriptions", json!({"is_active": true})),
            (
                "webhook_subscription_create",
                json!({"target_url": self.receiver.url("/b"), "event_types": ["a.b"],
                       "filter": {"data.amount": {"gte": 1}}, "headers": {"X-Team": "billing"}}),
            ),
            (
                "webhook_subscription_update",
                json!({"subscription_id": subscription, "description": "of the CRM"}),
            ),
            ("webhook_subscription_test", json!({"subscription_id": "crm"})),
            ("webhook_diagnose", json!({"subscription_id": subscription})),
        ]
    }
}

/// The key of the operator sees and may all, in any application.
#[tokio::test]
async fn the_operators_key_names_the_application() {
    let scene = Scene::new(200).await;
    let shown = json!({"event_id": scene.event, "application": "acme"});
    let shown = call(&scene.app, ADMIN_KEY, "webhook_event", &shown).await.unwrap();
    assert_eq!(shown["payload"], json!({"amount": 7}));
    let without = json!({"event_id": scene.event});
    let problem = call(&scene.app, ADMIN_KEY, "webhook_event", &without).await.unwrap_err();
    assert_eq!(problem["type"], "/problems/event-not-found");
    scene.app.stop().await;
}
