//! What is wrong with how a request begins.

use super::{Client, event, events, get, is_well, post, refusals};
use crate::support::{TestApp, eventually};

/// Catches: a head that may take as long as its client likes.
#[tokio::test]
async fn a_head_that_drips_is_cut_off() {
    let app = TestApp::with(&["--request-head-timeout=0.3"]).await;
    let before = refusals(&app, "head_too_slow").await;
    for beginning in ["", "GET /livez HTTP/1.1\r\nhost: localhost\r\nx-slow: "] {
        let mut client = Client::sending(&app, beginning).await;
        assert!(client.drip(b"x").await.is_none(), "{beginning:?}");
    }
    // After a request that was answered too.
    let mut client = Client::sending(&app, get("/livez")).await;
    assert_eq!(client.answer().await.unwrap().status, 200);
    assert!(client.drip(b"x").await.is_none());
    assert!(refusals(&app, "head_too_slow").await >= before + 3);
    is_well(&app).await;
    app.stop().await;
}

/// Catches: a connection that may idle for ever, before its first request or after one.
#[tokio::test]
async fn a_connection_that_idles_is_closed() {
    let app = TestApp::with(&["--keep-alive-timeout=0.3"]).await;
    assert_eq!(Client::of(&app).await.ended().await, "");
    let client = Client::sending(&app, get("/livez")).await;
    assert!(client.ended().await.starts_with("HTTP/1.1 200 OK"));
    is_well(&app).await;
    app.stop().await;
}

/// Catches: a head without a bound, or a bound that is not told.
#[tokio::test]
async fn a_head_has_bounds() {
    let app = TestApp::start().await;
    let with = |rest: String| format!("GET /events HTTP/1.1\r\nhost: localhost\r\n{rest}\r\n");
    let header = |bytes: usize| format!("x-large: {}\r\n", "x".repeat(bytes));
    for (head, status) in [
        (with(header(31 * 1024)), 200),
        (with(header(33 * 1024)), 431),
        (with("x-many: 1\r\n".repeat(79)), 200),
        (with("x-many: 1\r\n".repeat(80)), 431),
        (with(header(2 * 1024).repeat(20)), 431),
        (get(&format!("/events?x={}", "x".repeat(8 * 1024 - 10))), 422),
        (get(&format!("/events?x={}", "x".repeat(8 * 1024 - 9))), 414),
        (get(&format!("/{}", "x".repeat(8 * 1024 - 1))), 404),
        (get(&format!("/{}", "x".repeat(8 * 1024))), 414),
    ] {
        // The connection goes on: the head came whole.
        let mut client = Client::sending(&app, head.clone() + &get("/livez")).await;
        let answer = client.answer().await.expect("an answer");
        let shown = &head[..head.len().min(60)];
        assert_eq!(answer.status, status, "{shown}: {answer:?}");
        match status {
            431 => answer.check(431, "head-too-large"),
            414 => answer.check(414, "uri-too-long"),
            _ => {}
        }
        assert_eq!(client.answer().await.expect("an answer").status, 200, "{shown}");
    }
    is_well(&app).await;
    app.stop().await;
}

/// Catches: a bound that is the client's: one that never comes to an end of its head.
#[tokio::test]
async fn a_head_without_end_is_cut_off() {
    let app = TestApp::start().await;
    let before = refusals(&app, "head_too_large").await;
    for (beginning, unit, statuses) in [
        ("GET /", "x", [431, 414]),
        ("GET / HTTP/1.1\r\nhost: localhost\r\nx: ", "x", [431; 2]),
        ("GET / HTTP/1.1\r\nhost: localhost\r\n", "x: y\r\n", [431; 2]),
    ] {
        let client = Client::sending(&app, beginning).await;
        let answer = client.flood(unit.as_bytes()).await.expect("it is told");
        assert!(statuses.contains(&answer.status), "{beginning:?}: {answer:?}");
    }
    eventually("all are counted", async || {
        (refusals(&app, "head_too_large").await >= before + 3).then_some(())
    })
    .await;
    is_well(&app).await;
    app.stop().await;
}

/// Catches: bytes that are no request, and are waited for, or taken for one.
#[tokio::test]
async fn what_is_no_request_ends() {
    let app = TestApp::with(&["--request-head-timeout=1", "--keep-alive-timeout=1"]).await;
    let hello: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let preface: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let two_lengths = post("/events", "content-length: 12\r\ncontent-length: 5") + "{}";
    let negative = post("/events", "content-length: -1") + "{}";
    let signed = post("/events", "content-length: +2") + "{}";
    let unknown_coding = post("/events", "transfer-encoding: gzip") + "{}";
    for bytes in [
        hello,
        preface,
        b"\0\0\0\0\0\0\0\0\r\n\r\n",
        b"\r\n\r\n\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET  HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\n: empty\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx: \0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        two_lengths.as_bytes(),
        negative.as_bytes(),
        signed.as_bytes(),
        unknown_coding.as_bytes(),
    ] {
        let said = Client::sending(&app, bytes).await.ended().await;
        let status = said.split(' ').nth(1).unwrap_or_default();
        let shown = String::from_utf8_lossy(bytes).into_owned();
        assert!(["", "400", "403", "505"].contains(&status), "{shown:?}: {said}");
    }
    assert_eq!(events(&app).await, 0);
    is_well(&app).await;
    app.stop().await;
}

/// Catches: answers of pipelined requests that are lost, doubled or in another order, and a client of
/// many requests that is served beyond its turn.
#[tokio::test]
async fn pipelined_requests_are_answered_one_after_the_other() {
    let app = TestApp::start().await;
    let all: String = (0..200)
        .map(|n| if n % 2 == 0 { event(&n.to_string()) } else { get("/no-such-route") })
        .collect();
    let mut client = Client::sending(&app, all).await;
    for n in 0..200 {
        let answer = client.answer().await.expect("an answer");
        assert_eq!(answer.status, if n % 2 == 0 { 202 } else { 404 }, "{n}");
    }
    assert_eq!(events(&app).await, 100);
    app.stop().await;
}
