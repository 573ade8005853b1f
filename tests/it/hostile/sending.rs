//! Receivers that do not wait for the end of what they are sent.

use serde_json::json;

use crate::support::{
    TestApp,
    raw::{Misdeed, RawReceiver, Reads, Then},
};

/// Catches: an answer that is lost because the request is not over; a request that goes on to its
/// deadline although nobody is there.
#[tokio::test]
async fn who_ends_before_all_is_sent_ends_as_what_it_did() {
    // A deadline that no test sees.
    let flags = ["--http-timeout=300", "--max-attempts=1", "--request-body-max=33554432"];
    let app = TestApp::with(&flags).await;
    let refusal = b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n".to_vec();
    // More than the buffers of both ends take.
    let payload = "x".repeat(24 << 20);
    let cases = [
        ("an answer, and no reading", Reads::Head, &refusal[..], Then::Hang, "http_status"),
        // Its reset may overtake the answer.
        ("an answer and the end", Reads::Head, &refusal[..], Then::Close, "http_status|protocol"),
        ("the end", Reads::Head, &[], Then::Close, "protocol"),
        ("a reset", Reads::Something, &[], Then::Reset, "protocol"),
    ];
    for (name, reads, bytes, then, class) in cases {
        let receiver = RawReceiver::start(Misdeed::Script(reads, bytes.to_vec(), then)).await;
        let body = json!({"payload": payload, "target_url": receiver.url()});
        let event = app.publish(body).await;
        let dead = app.wait_for(&event, "dead").await;
        let delivery = &dead["deliveries"][0];
        let told = &delivery["attempts"][0];
        let told_class = told["error"]["class"].as_str().unwrap_or_default();
        assert!(class.split('|').any(|one| one == told_class), "{name}: {delivery}");
    }
    app.stop().await;
}
