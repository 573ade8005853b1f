//! The service meets each of the mock receiver's routes on request: what it makes of them is the
//! contract.

use std::time::Duration;

use mock_receiver::{MockReceiver, Settings, Verdict};
use serde_json::Value;

use crate::support::{TestApp, eventually};

async fn receiver() -> MockReceiver {
    MockReceiver::bind(Settings::calm()).await.unwrap()
}

/// What is shown of the attempts of an event: status and error class of each.
fn told(event: &Value) -> Vec<(Option<u64>, Option<&str>)> {
    let attempts = event["deliveries"][0]["attempts"].as_array().unwrap();
    attempts
        .iter()
        .map(|a| (a["response"]["status"].as_u64(), a["error"]["class"].as_str()))
        .collect()
}

/// Each in a lane of its own, all at once: the time-out is waited for only once. It is long enough
/// for a machine that is busy.
#[tokio::test]
async fn each_misbehaviour_has_its_class() {
    let delivered = |status: u64| ("delivered", Some(status), None);
    let dead = |status: Option<u64>, class: &'static str| ("dead", status, Some(class));
    let cases = [
        ("/status/200", delivered(200)),
        ("/status/299", delivered(299)),
        ("/status/304", dead(Some(304), "redirect")),
        ("/status/404", dead(Some(404), "http_status")),
        ("/status/500", dead(Some(500), "http_status")),
        ("/status/999", dead(Some(999), "http_status")),
        ("/gone", dead(Some(410), "http_status")),
        ("/redirect", dead(Some(307), "redirect")),
        ("/retry-after/1", dead(Some(429), "http_status")),
        ("/retry-after/1?status=503", dead(Some(503), "http_status")),
        ("/fail-first/1", dead(Some(500), "http_status")),
        ("/slow/0.1", delivered(200)),
        ("/slow/60", dead(None, "timeout")),
        ("/hang", dead(None, "timeout")),
        // The head has come, so the status decides, even if the body does not end.
        ("/drip", delivered(200)),
        // No more is read than is kept, so the status decides.
        ("/endless", delivered(200)),
        ("/endless?status=500", dead(Some(500), "http_status")),
        ("/gzip-bomb", delivered(200)),
        ("/wrong-length", delivered(200)),
        ("/wrong-length/excess", delivered(200)),
        ("/reset", dead(None, "protocol")),
        ("/reset/head", dead(None, "protocol")),
        ("/reset/body", delivered(200)),
    ];
    let app = TestApp::with(&["--max-attempts=1", "--http-timeout=3"]).await;
    let mut sent = Vec::new();
    for (path, expected) in cases {
        let receiver = receiver().await;
        let id = app.accept(&receiver.url_of(path)).await;
        sent.push((path, expected, receiver, id));
    }
    for (path, (state, status, class), receiver, id) in sent {
        let event = eventually(path, async || {
            let event = app.event(&id).await;
            (event["status"] != "pending").then_some(event)
        })
        .await;
        assert_eq!(event["status"], state, "{path}: {event}");
        assert_eq!(told(&event), [(status, class)], "{path}: {event}");
        let [received] = &receiver.record()[..] else { panic!("{path} was called once") };
        assert_eq!((&*received.path, received.verdict), (path, Verdict::Good));
        assert_eq!(received.webhook_id(), Some(&*id));
    }
    app.stop().await;
}

#[tokio::test]
async fn a_body_without_end_is_cut_where_no_more_is_kept() {
    let app = TestApp::with(&["--response-body-max=1000"]).await;
    for (path, beginning) in [("/endless", "and so on"), ("/gzip-bomb", "\u{1f}")] {
        let receiver = receiver().await;
        let id = app.accept(&receiver.url_of(path)).await;
        let event = app.wait_for(&id, "delivered").await;
        let response = &event["deliveries"][0]["attempts"][0]["response"];
        assert_eq!(response["is_truncated"], true, "{path}");
        let body = response["body"].as_str().unwrap();
        assert!(body.starts_with(beginning) && body.chars().count() <= 1000, "{path}: {body}");
        // It hung up: the receiver would go on.
        let in_time = Duration::from_secs(30);
        let ended = receiver.wait_until(|stats| stats.in_progress == 0);
        tokio::time::timeout(in_time, ended).await.expect("the connection is closed");
    }
    app.stop().await;
}

#[tokio::test]
async fn who_fails_first_is_delivered_to_in_the_end() {
    let receiver = receiver().await;
    let app = TestApp::start().await;
    let ids = [
        app.accept(&receiver.url_of("/fail-first/2")).await,
        app.accept(&receiver.url_of("/fail-first/2")).await,
    ];
    for id in ids {
        let event = app.wait_for(&id, "delivered").await;
        let failed = (Some(500), Some("http_status"));
        assert_eq!(told(&event), [failed, failed, (Some(200), None)]);
    }
    assert_eq!(receiver.stats().on_request, 6);
    app.stop().await;
}

/// Many attempts are left, and none is made.
#[tokio::test]
async fn gone_kills_the_delivery_at_once() {
    let receiver = receiver().await;
    let app = TestApp::start().await;
    let id = app.accept(&receiver.url_of("/gone")).await;
    let event = app.wait_for(&id, "dead").await;
    assert_eq!(told(&event), [(Some(410), Some("http_status"))]);
    assert_eq!(event["deliveries"][0]["reason"], "http_status");
    app.stop().await;
}

/// What the status is of makes no difference, nor which delivery was told to wait.
#[tokio::test]
async fn retry_after_pauses_all_that_goes_to_the_url() {
    let app = TestApp::start().await;
    for path in ["/retry-after/3600", "/retry-after/3600?status=503"] {
        let receiver = receiver().await;
        let told_to_wait = app.accept(&receiver.url_of(path)).await;
        let event = eventually("the pause to be recorded", async || {
            let event = app.event(&told_to_wait).await;
            (event["attempt_count"] == 1).then_some(event)
        })
        .await;
        let next: chrono::DateTime<chrono::Utc> =
            event["next_attempt_at"].as_str().unwrap().parse().unwrap();
        let wait = next - chrono::Utc::now();
        // What is asked for is the least, less the time that this test has taken.
        assert!(chrono::TimeDelta::minutes(58) < wait, "{path}: {wait}");

        let held_back = app.accept(&receiver.url_of(path)).await;
        // Another URL of the same host, accepted later, is delivered meanwhile.
        let other = app.accept(&receiver.url_of("/status/200")).await;
        app.wait_for(&other, "delivered").await;
        assert_eq!(app.event(&held_back).await["status"], "pending");
        assert_eq!(receiver.stats().requests, 2, "{path}");
    }
    app.stop().await;
}

/// What a receiver sends beyond its answer is never taken for the next one.
#[tokio::test]
async fn an_answer_to_nothing_spoils_no_other_delivery() {
    let receiver = receiver().await;
    let app = TestApp::start().await;
    for _ in 0..5 {
        for path in ["/wrong-length/excess", "/status/202"] {
            let id = app.accept(&receiver.url_of(path)).await;
            let event = app.wait_for(&id, "delivered").await;
            let status = if path == "/status/202" { 202 } else { 200 };
            assert_eq!(told(&event), [(Some(status), None)], "{path}");
        }
    }
    app.stop().await;
}

/// The receiver that it sends elsewhere is the one that would see it come.
#[tokio::test]
async fn nobody_is_seen_to_follow_a_redirect() {
    let receiver = receiver().await;
    let app = TestApp::with(&["--max-attempts=2"]).await;
    let id = app.accept(&receiver.url_of("/redirect")).await;
    let event = app.wait_for(&id, "dead").await;
    let redirected = (Some(307), Some("redirect"));
    assert_eq!(told(&event), [redirected, redirected]);
    assert!(receiver.record().iter().all(|received| &*received.path == "/redirect"));
    app.stop().await;
}
