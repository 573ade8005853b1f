//! Slowness in every phase: each ends by the deadline, as a timeout.

use serde_json::json;

use super::{Case, after_head, case, meet, service};
use crate::support::{
    TestApp, eventually,
    raw::{Misdeed, RawReceiver, Reads, Then},
};

fn dripping(name: &'static str, bytes: &str, unit: &[u8]) -> Case {
    case(name, after_head(bytes, Then::Drip(unit.to_vec())), "timeout", None)
}

/// A body that is slow after its head: the head decides.
fn dripping_body(name: &'static str, bytes: &str, unit: &[u8]) -> Case {
    case(name, after_head(bytes, Then::Drip(unit.to_vec())), "", Some(200))
}

/// Catches: a deadline that begins anew with each byte, or does not cover a phase; a delivery that is
/// sent again because of its answer's body.
#[tokio::test]
async fn slowness_is_a_timeout_until_the_head_is_there() {
    let app = service("1").await;
    let (ok, chunked) = ("HTTP/1.1 200 OK\r\n", "transfer-encoding: chunked\r\n\r\n");
    let mut cases = vec![
        case(
            "says nothing",
            Misdeed::Script(Reads::Nothing, Vec::new(), Then::Hang),
            "timeout",
            None,
        ),
        case("reads, and says nothing", Misdeed::Hang, "timeout", None),
        dripping("the status line", "", b"HTTP/1.1 200 OK"),
        dripping("a reason", "HTTP/1.1 200 ", b"O"),
        dripping("header lines", ok, b"x: y\r\n"),
        dripping("one header line", &format!("{ok}x: "), b"y"),
        dripping("100 Continue", "", b"HTTP/1.1 100 Continue\r\n\r\n"),
        dripping_body("a body of a length", &format!("{ok}content-length: 99999\r\n\r\n"), b"x"),
        dripping_body("a body without one", &format!("{ok}\r\n"), b"x"),
        dripping_body("chunks", &format!("{ok}{chunked}"), b"1\r\nx\r\n"),
        dripping_body("a chunk's size", &format!("{ok}{chunked}"), b"0"),
        dripping_body("a chunk's extension", &format!("{ok}{chunked}1;"), b"x"),
        dripping_body("trailers", &format!("{ok}{chunked}0\r\n"), b"x: y\r\n"),
        case(
            "a body that stops",
            after_head(format!("{ok}content-length: 9\r\n\r\nx"), Then::Hang),
            "",
            Some(200),
        ),
        case(
            "a body that stops, of a failure",
            after_head("HTTP/1.1 503 Late\r\ncontent-length: 9\r\n\r\nx", Then::Hang),
            "http_status",
            Some(503),
        ),
    ];
    let mut tls = vec![
        case(
            "no handshake",
            Misdeed::Script(Reads::Nothing, Vec::new(), Then::Hang),
            "timeout",
            None,
        ),
        case(
            "a handshake that stops",
            Misdeed::Script(Reads::Something, Vec::new(), Then::Hang),
            "timeout",
            None,
        ),
        // The beginning of a handshake record of 16 KiB, and its rest byte by byte.
        case(
            "a handshake that drips",
            Misdeed::Script(
                Reads::Something,
                b"\x16\x03\x03\x40\x00\x02\x00\x3f".to_vec(),
                Then::Drip(vec![0]),
            ),
            "timeout",
            None,
        ),
    ];
    for case in &mut tls {
        case.scheme = "https";
    }
    cases.append(&mut tls);
    meet(&app, cases).await;
    app.stop().await;
}

/// Catches: a request that is written for ever, because nobody reads it.
#[tokio::test]
async fn a_receiver_that_does_not_read_is_a_timeout() {
    let app =
        TestApp::with(&["--http-timeout=1", "--max-attempts=1", "--request-body-max=33554432"])
            .await;
    let receiver =
        RawReceiver::start(Misdeed::Script(Reads::Nothing, Vec::new(), Then::Hang)).await;
    // More than the buffers of both ends take.
    let payload = "x".repeat(24 << 20);
    let body = json!({"payload": payload, "target_url": receiver.url()});
    let (status, accepted) = app.post("/events", &body).await;
    assert_eq!(status, 202, "{accepted}");
    let id = accepted["id"].as_str().unwrap();
    let dead = eventually("dead", async || {
        let event = app.event(id).await;
        (event["status"] == "dead").then_some(event)
    })
    .await;
    assert_eq!(dead["deliveries"][0]["reason"], "timeout", "{dead}");
    app.stop().await;
}
