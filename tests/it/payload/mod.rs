//! With a real Payload CMS, and the collections that `docs/payload` has for its users.

mod collections;
mod log;
mod log_failures;
mod log_queue;
mod nonsense;
mod subscriptions;

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{TestApp, payload::PayloadCms};

/// Longer than any test.
const NEVER: Duration = Duration::from_secs(3_600);

/// The flags of a dispatcher that follows this CMS.
fn flags(cms_url: &str, poll_interval: &str) -> [String; 3] {
    [
        format!("--payload-url={cms_url}"),
        "--payload-api-key=00000000-0000-4000-8000-000000000000".to_owned(),
        format!("--payload-poll-interval={poll_interval}"),
    ]
}

/// A dispatcher that follows a CMS.
async fn following(cms_url: &str, poll_interval: &str) -> TestApp {
    TestApp::with(&flags(cms_url, poll_interval).each_ref().map(String::as_str)).await
}

/// Makes a document there; tells its id as text.
async fn make(cms: &PayloadCms, document: &Value) -> String {
    let path = "/webhookSubscriptions";
    let (status, made) = cms.call(Method::POST, path, Some(document)).await;
    assert_eq!(status, 201, "{made}");
    made["doc"]["id"].to_string()
}

/// Changes a document there.
async fn change(cms: &PayloadCms, id: &str, fields: Value) {
    let path = format!("/webhookSubscriptions/{id}");
    let (status, changed) = cms.call(Method::PATCH, &path, Some(&fields)).await;
    assert_eq!(status, 200, "{changed}");
}

/// Deletes a document there.
async fn delete(cms: &PayloadCms, id: &str) {
    let path = format!("/webhookSubscriptions/{id}");
    let (status, deleted) = cms.call(Method::DELETE, &path, None).await;
    assert_eq!(status, 200, "{deleted}");
}

/// A document with what is needed.
fn document(name: &str, url: &str) -> Value {
    json!({"name": name, "url": url, "events": [name]})
}

/// All subscriptions.
async fn all(app: &TestApp) -> Vec<Value> {
    let (status, page) = app.get("/subscriptions?limit=250").await;
    assert_eq!(status, 200, "{page}");
    page["data"].as_array().unwrap().clone()
}

/// The subscription that is this document.
async fn kept(app: &TestApp, document_id: &str) -> Option<Value> {
    let all = all(app).await;
    let managed_by = json!({"system": "payload", "document_id": document_id});
    let mut found = all.into_iter().filter(|one| one["managed_by"] == managed_by);
    let first = found.next();
    assert!(found.next().is_none(), "a document is one subscription");
    first
}
