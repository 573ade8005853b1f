//! `POST /dispatch`: an event to named targets, and what became of it in the answer.

mod answers;
mod classes;
mod keys;
mod measure;
mod processes;
mod settings;

use serde_json::{Value, json};

use crate::support::{TestApp, eventually};

/// A dispatch of one event to these targets.
fn to(targets: &Value) -> Value {
    json!({"event": "invoice.paid", "payload": {"amount": 120}, "targets": targets})
}

/// A dispatch as it is shown later.
async fn shown(app: &TestApp, id: &str) -> Value {
    let (status, shown) = app.get(&format!("/dispatch/{id}")).await;
    assert_eq!(status, 200, "{shown}");
    shown
}

/// Waits until a dispatch has all its results.
async fn complete(app: &TestApp, id: &str) -> Value {
    eventually("all results", async || {
        let shown = shown(app, id).await;
        (shown["status"] != "pending").then_some(shown)
    })
    .await
}

fn id_of(answer: &Value) -> &str {
    answer["dispatchId"].as_str().unwrap_or_else(|| panic!("{answer}"))
}

/// The one delivery of a dispatch, as the log shows it.
async fn delivery_of(app: &TestApp, id: &str) -> Value {
    let event = app.event(id).await;
    let delivery = event["deliveries"][0]["id"].as_str().unwrap_or_else(|| panic!("{event}"));
    let (status, delivery) = app.get(&format!("/deliveries/{delivery}")).await;
    assert_eq!(status, 200, "{delivery}");
    delivery
}
