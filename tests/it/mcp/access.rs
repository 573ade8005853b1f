//! Who may reach the tools, and whose things they show.

use serde_json::{Value, json};

use super::{READING, Scene, WRITING, call, listed, message};
use crate::{
    applications::{ADMIN_KEY, key, tenant},
    support::TestApp,
};

/// Catches: a list that is not filtered by the role; a call that is not refused by it.
#[tokio::test]
async fn a_role_sees_and_calls_what_it_may() {
    let scene = Scene::new(200).await;
    for (role, seen) in [
        ("manager", [READING.as_slice(), &WRITING].concat()),
        ("dispatcher", [READING.as_slice(), &["webhook_publish", "webhook_dispatch"]].concat()),
        ("producer", vec!["webhook_publish", "webhook_dispatch"]),
        ("viewer", READING.to_vec()),
    ] {
        let key = key(&scene.app, &scene.application, role).await;
        let mut seen = seen;
        seen.sort_unstable();
        assert_eq!(listed(&scene.app, &key).await, seen, "{role}");
        for (name, arguments) in scene.calls() {
            let answer = call(&scene.app, &key, name, &arguments).await;
            let refused = answer.as_ref().is_err_and(|problem| {
                problem["type"] == "/problems/not-permitted" && problem["status"] == 403
            });
            // One that may publish need not name targets.
            let names_targets = role == "producer" && name == "webhook_dispatch";
            assert_eq!(
                refused,
                !seen.contains(&name) || names_targets,
                "{role} {name}: {answer:?}"
            );
        }
    }
    // The role counts before anything is looked at.
    let viewer = key(&scene.app, &scene.application, "viewer").await;
    let nonsense = json!({"colour": "red"});
    let problem = call(&scene.app, &viewer, "webhook_retry", &nonsense).await.unwrap_err();
    assert_eq!(problem["type"], "/problems/not-permitted");
    scene.app.stop().await;
}

/// Catches: a tool that calls the API as anybody but the caller; words that tell that there is
/// something.
#[tokio::test]
async fn no_tool_shows_what_another_application_has() {
    let scene = Scene::new(503).await;
    let (_, rival) = tenant(&scene.app, "rival", "manager").await;
    let ours = [
        ("event_id", scene.event.as_str(), "evt_0192d4e012347abc8def0123456789ab"),
        ("subscription_id", scene.subscription.as_str(), "sub_0192d4e012347abc8def0123456789ab"),
        ("delivery_id", scene.delivery.as_str(), "dlv_0192d4e012347abc8def0123456789ab"),
    ];
    let mut tried = 0;
    for (name, arguments) in scene.calls() {
        for (argument, own, none) in ours {
            let Some(_) = arguments.get(argument) else { continue };
            let with = |id: &str| {
                let mut arguments = arguments.clone();
                arguments[argument] = json!(id);
                arguments
            };
            let theirs = call(&scene.app, &rival, name, &with(own)).await;
            let nothing = call(&scene.app, &rival, name, &with(none)).await;
            assert_eq!(theirs, nothing, "{name} {argument}");
            tried += 1;
        }
        let mut named = arguments.clone();
        named["application"] = json!("acme");
        let answer = call(&scene.app, &rival, name, &named).await;
        let problem = answer.expect_err(name);
        assert_eq!(problem["type"], "/problems/application-not-found", "{name}");
        assert_eq!(problem["argument"], "application", "{name}");
        tried += 1;
    }
    assert!(tried > 20, "{tried}");
    for name in ["webhook_deliveries", "webhook_subscriptions"] {
        let page = call(&scene.app, &rival, name, &json!({})).await.unwrap();
        assert_eq!(page["data"], json!([]), "{name}");
    }
    scene.app.stop().await;
}

async fn status(app: &TestApp, key: Option<&str>, headers: &[(&str, &str)]) -> (u16, Value) {
    let mut request = app
        .http
        .post(format!("{}/mcp", app.base))
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .body(json!({"jsonrpc": "2.0", "id": 1, "method": "ping"}).to_string());
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    assert_eq!(answer.headers().contains_key("www-authenticate"), status == 401);
    assert!(answer.headers().contains_key("x-request-id"));
    (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default())
}

/// Catches: the route outside the gate; a web page of elsewhere that is let in with a key, or without.
#[tokio::test]
async fn who_reaches_the_api_reaches_the_tools_and_no_web_page() {
    let scene = Scene::new(200).await;
    let app = &scene.app;
    assert_eq!(status(app, None, &[]).await.0, 401);
    assert_eq!(status(app, Some("whd_wrong"), &[]).await.0, 401);
    assert_eq!(status(app, Some(&scene.manager), &[]).await.0, 200);
    for (origin, expected) in [
        ("http://localhost:6274", 200),
        ("http://127.0.0.1", 200),
        ("https://evil.example.com", 403),
        ("http://localhost.evil.example.com", 403),
        ("null", 403),
    ] {
        let (status, answer) = status(app, Some(&scene.manager), &[("origin", origin)]).await;
        assert_eq!(status, expected, "{origin}: {answer}");
    }
    let (status_of, answer) =
        status(app, Some(&scene.manager), &[("mcp-protocol-version", "1999-01-01")]).await;
    assert_eq!(status_of, 400, "{answer}");
    scene.app.stop().await;

    // Without a key, as everywhere: on loopback, by a name of loopback.
    let app = TestApp::start().await;
    assert_eq!(status(&app, None, &[]).await.0, 200);
    assert_eq!(status(&app, None, &[("origin", "https://evil.example.com")]).await.0, 403);
    assert_eq!(status(&app, None, &[("host", "evil.example.com")]).await.0, 403);
    app.stop().await;
}

/// Catches: a body of any size; other methods; a message that is none.
#[tokio::test]
async fn what_is_no_message_is_refused() {
    let app = TestApp::with(&["--request-body-max=2000"]).await;
    let large = json!({"name": "webhook_publish", "arguments": {"payload": "x".repeat(3_000)}});
    let (status, answer) = message(&app, None, "tools/call", &large).await;
    // An error of JSON-RPC, with the problem: clients show its message.
    let problem = &answer["error"]["data"];
    assert_eq!((status, &problem["type"]), (413, &json!("/problems/body-too-large")), "{answer}");
    assert_eq!((&answer["jsonrpc"], &answer["id"]), (&json!("2.0"), &Value::Null));
    for method in ["GET", "DELETE"] {
        let (status, _) = app.call(method, "/mcp", None, None).await;
        assert_eq!(status, 405, "{method}");
    }
    let (status, answer) = message(&app, None, "nonsense", &json!({})).await;
    assert!(status == 200 && answer["error"]["code"] == -32_601, "{status} {answer}");
    let unknown = json!({"name": "webhook.publsh", "arguments": {}});
    let (_, answer) = message(&app, None, "tools/call", &unknown).await;
    let said = answer["error"]["message"].as_str().unwrap();
    assert_eq!(said, "unknown tool `webhook.publsh`: did you mean `webhook_publish`?");
    app.stop().await;
}

/// A process that only sends has no tools.
#[tokio::test]
async fn a_worker_has_no_tools() {
    let app = TestApp::with(&["--role=worker"]).await;
    let (status, _) = message(&app, Some(ADMIN_KEY), "tools/list", &json!({})).await;
    assert_eq!(status, 404);
    app.stop().await;
}
