//! Parameters that a route does not know.

use serde_json::{Value, json};

use super::raw;
use crate::support::TestApp;

const JSON: (&str, &str) = ("content-type", "application/json");

/// Every operation of the document, and MCP.
#[tokio::test]
async fn unknown_parameters_are_refused_on_every_route() {
    let app = TestApp::with(&["--role=api"]).await;
    let (_, document) = app.get("/openapi.json").await;
    let mut count = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let is_tolerant = operation["tags"] == json!(["Service"]);
            let path = path.replace("{id}", "any").replace("{name}", "any").replace("{key}", "any");
            let path = format!("{path}?nonsense=1");
            let (status, _, answer) = raw(&app, &method.to_uppercase(), &path, &[JSON], "{}").await;
            if is_tolerant {
                assert_eq!(status, 200, "{method} {path}: {answer}");
                continue;
            }
            let told = (status, &answer["type"], &answer["parameter"]);
            let expected = (422, &json!("/problems/invalid-request"), &json!("nonsense"));
            assert_eq!(told, expected, "{method} {path}: {answer}");
            assert!(operation["responses"]["422"].is_object(), "{method} {path}");
            count += 1;
        }
    }
    assert!(count > 60, "{count}");
    let (status, _, answer) = raw(&app, "POST", "/mcp?session=1", &[JSON], "{}").await;
    let problem = &answer["error"]["data"];
    assert_eq!((status, &problem["parameter"]), (422, &json!("session")), "{answer}");
    // What loads a page may add something against caches, and what scrapes may add its own.
    for path in ["/docs?v=1", "/openapi.json?v=1", "/health?probe=1", "/metrics?name[]=a"] {
        assert_eq!(raw(&app, "GET", path, &[], "").await.0, 200, "{path}");
    }
    app.stop().await;
}

/// An event must not be stored for another application than its sender meant.
#[tokio::test]
async fn an_event_is_not_stored_beside_a_parameter_that_means_something() {
    let app = TestApp::with(&["--role=api"]).await;
    let body = r#"{"payload": 1, "type": "a"}"#;
    for (path, parameter, said) in [
        ("/events?application=x", "application", "field of the body"),
        ("/events/?application=x", "application", "field of the body"),
        ("/events/batch?application=x", "application", "takes none"),
        ("/dispatch?aplication=x", "aplication", "did you mean `application`?"),
        ("/ingest/any?aplication=x", "aplication", "did you mean `application`?"),
    ] {
        let (status, _, answer) = raw(&app, "POST", path, &[JSON], body).await;
        assert_eq!((status, &answer["parameter"]), (422, &json!(parameter)), "{path}: {answer}");
        assert!(answer["detail"].as_str().unwrap().contains(said), "{path}: {answer}");
    }
    let (_, page) = app.get("/events").await;
    assert_eq!(page["data"], Value::Array(Vec::new()));
    app.stop().await;
}
