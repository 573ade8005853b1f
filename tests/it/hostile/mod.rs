//! Receivers that misbehave on purpose: each exchange ends in its class, by its deadline, and takes
//! no more than its share of memory. Real sockets, the whole service.

mod answers;
mod connections;
mod endless;
mod sending;
mod slow;
mod tls;

use serde_json::{Value, json};

use crate::support::{
    TestApp,
    raw::{Misdeed, RawReceiver, Reads, Then},
};

/// The status may have come or not: a reset overtakes what was sent before it, and a short deadline may.
const PERHAPS: Option<u16> = Some(0);

/// A misdeed, and the class (or `one|other`, where it is a matter of microseconds) and the status that it ends with.
struct Case {
    name: &'static str,
    misdeed: Misdeed,
    class: &'static str,
    status: Option<u16>,
    scheme: &'static str,
}

/// What comes after the head of a request: these bytes, and then this.
fn after_head(bytes: impl AsRef<[u8]>, then: Then) -> Misdeed {
    Misdeed::Script(Reads::Head, bytes.as_ref().to_vec(), then)
}

/// No class is a delivery: once the head of a 2xx is there, its body changes nothing.
fn case(name: &'static str, misdeed: Misdeed, class: &'static str, status: Option<u16>) -> Case {
    Case { name, misdeed, class, status, scheme: "http" }
}

/// Meets all misdeeds in one dispatch; tells of each what its receiver saw.
async fn meet(app: &TestApp, cases: Vec<Case>) -> Vec<(&'static str, RawReceiver)> {
    let mut receivers = Vec::new();
    let mut targets = Vec::new();
    for case in &cases {
        let receiver = RawReceiver::start(case.misdeed.clone()).await;
        let url = format!("{}://127.0.0.1:{}/", case.scheme, receiver.port());
        targets.push((case.name, url, case.class, case.status));
        receivers.push((case.name, receiver));
    }
    dispatch(&app.base, &targets).await;
    receivers
}

/// Sends one dispatch to targets, and compares what is told of each with what is to be: a class and a
/// status.
async fn dispatch(base: &str, targets: &[(&str, String, &str, Option<u16>)]) {
    let urls: Vec<_> = targets.iter().map(|(_, url, ..)| url).collect();
    let body = json!({"event": "a.b", "payload": {"a": 1}, "targets": urls});
    let request = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = request.post(format!("{base}/dispatch")).body(body.to_string());
    let answer = request.header("content-type", "application/json").send().await.unwrap();
    let told: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    let results = told["results"].as_array().unwrap_or_else(|| panic!("{told}"));
    let mut faults = Vec::new();
    for ((name, _, class, status), result) in targets.iter().zip(results) {
        let is_delivered = result["status"] == "delivered";
        let told = result["error"]["class"].as_str().unwrap_or_default();
        let is_so = class.split('|').any(|class| class == told)
            && (*status == PERHAPS || result["code"] == json!(status));
        let has_words = result["error"]["message"] != "";
        if !is_so || is_delivered != told.is_empty() || !has_words {
            faults.push(format!("{name}: {result}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// A service whose answer waits for all results, each with this deadline in seconds.
async fn service(timeout: &str) -> TestApp {
    let timeout = format!("--http-timeout={timeout}");
    TestApp::with(&[&timeout, "--dispatch-inline-max=100", "--dispatch-wait=100"]).await
}
