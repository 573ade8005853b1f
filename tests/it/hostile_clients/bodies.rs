//! What is wrong with bodies.

use serde_json::json;

use super::{Client, event, events, get, is_well, post, refusals};
use crate::support::{TestApp, eventually};

/// Catches: a body that may take as long as its client likes, by length or in chunks.
#[tokio::test]
async fn a_body_that_drips_is_refused() {
    let app = TestApp::with(&["--request-body-timeout=0.4"]).await;
    let before = refusals(&app, "body_too_slow").await;
    for (head, unit) in [
        (post("/events", "content-length: 100000"), " "),
        (post("/events", "transfer-encoding: chunked"), "1\r\n \r\n"),
        (post("/events", "transfer-encoding: chunked"), "1;extension\r\n \r\n"),
        (post("/events", "transfer-encoding: chunked") + "0", "0"),
        (post("/events/batch", "content-length: 100000"), " "),
        (post("/ingest/any", "content-length: 100000"), " "),
        (post("/dispatch", "content-length: 100000"), " "),
        (post("/mcp", "content-length: 100000"), " "),
    ] {
        let mut client = Client::sending(&app, &head).await;
        client.drip(unit.as_bytes()).await.expect(&head).check(408, "body-too-slow");
        // And nothing after it is taken for a request.
        client.send(event("1")).await;
        client.ended().await;
    }
    assert!(refusals(&app, "body_too_slow").await >= before + 8);
    assert_eq!(events(&app).await, 0);
    is_well(&app).await;
    app.stop().await;
}

/// Catches: a body that is read although its length says enough; a client that is asked to go on with
/// it; a refusal that its client cannot read because it is still sending.
#[tokio::test]
async fn a_huge_body_is_refused_by_its_length() {
    let app = TestApp::start().await;
    let tebibyte = post("/events", "content-length: 1099511627776");
    let mut silent = Client::sending(&app, &tebibyte).await;
    silent.answer().await.expect("an answer").check(413, "body-too-large");
    let mut polite = post("/events", "content-length: 1048577\r\nexpect: 100-continue");
    let mut client = Client::sending(&app, &polite).await;
    client.answer().await.expect("an answer").check(413, "body-too-large");
    let sending = Client::sending(&app, &tebibyte).await;
    sending.flood(b" ").await.expect("an answer").check(413, "body-too-large");
    let batch = post("/events/batch", "content-length: 16777217");
    let mut client = Client::sending(&app, &batch).await;
    client.answer().await.expect("an answer").check(413, "body-too-large");
    // What may come is asked for.
    polite = post("/events", "content-length: 2\r\nexpect: 100-continue");
    let mut client = Client::sending(&app, &polite).await;
    assert_eq!(client.answer().await.expect("an answer").status, 100);
    client.send("{}").await;
    client.answer().await.expect("an answer").check(422, "invalid-request");
    // What is sent whole before anybody reads is answered too.
    let mut whole = Client::sending(&app, post("/events", "content-length: 2000000")).await;
    whole.send(vec![b' '; 2_000_000]).await;
    whole.answer().await.expect("an answer").check(413, "body-too-large");
    is_well(&app).await;
    app.stop().await;
}

/// Catches: chunks, their sizes, their extensions or trailers without a bound.
#[tokio::test]
async fn a_body_without_end_is_refused() {
    let app = TestApp::start().await;
    let head = post("/events", "transfer-encoding: chunked");
    let kib = format!("400\r\n{}\r\n", " ".repeat(1024));
    let client = Client::sending(&app, &head).await;
    client.flood(kib.as_bytes()).await.expect("an answer").check(413, "body-too-large");
    for (beginning, unit) in [
        ("fffffffffffffffff\r\n", " "),
        ("", "0"),
        ("1;", "x"),
        ("", "1;extension=1\r\n \r\n"),
        ("0\r\n", "x: y\r\n"),
        ("0\r\nx: ", "y"),
        ("nonsense\r\n", " "),
        ("-1\r\n", " "),
    ] {
        let client = Client::sending(&app, head.clone() + beginning).await;
        let answer = client.flood(unit.as_bytes()).await;
        let is_refused = answer.as_ref().is_none_or(|answer| (400..500).contains(&answer.status));
        assert!(is_refused, "{beginning:?} {unit:?}: {answer:?}");
    }
    assert_eq!(events(&app).await, 0);
    is_well(&app).await;
    app.stop().await;
}

/// Catches: a parser that recurses as deep as its input, at any way in.
#[tokio::test]
async fn nesting_has_a_bound_at_every_way_in() {
    let app = TestApp::with(&["--target-url=http://127.0.0.1:9/"]).await;
    let deep = "[".repeat(200_000) + &"]".repeat(200_000);
    let half = "{\"a\":".repeat(100_000);
    let call = |method: &str| {
        format!(r#"{{"jsonrpc": "2.0", "id": 1, "method": "{method}", "params": {deep}}}"#)
    };
    for (path, body) in [
        ("/events", deep.clone()),
        ("/events", half.clone()),
        ("/events", format!(r#"{{"payload": {deep}}}"#)),
        ("/events", format!(r#"{{"payload": 1, "metadata": {deep}}}"#)),
        ("/events", format!(r#"{{"payload": {half}"#)),
        ("/events/batch", format!(r#"{{"events": [{{"payload": {deep}}}]}}"#)),
        ("/events/batch", format!(r#"{{"events": {deep}}}"#)),
        (
            "/dispatch",
            format!(r#"{{"event": "a.b", "payload": {deep}, "targets": ["http://127.0.0.1:9/"]}}"#),
        ),
        ("/dispatch", format!(r#"{{"event": "a.b", "payload": 1, "targets": {deep}}}"#)),
        (
            "/subscriptions",
            format!(
                r#"{{"target_url": "http://127.0.0.1:9/", "event_types": "*", "filter": {deep}}}"#
            ),
        ),
        ("/event-types", format!(r#"{{"name": "a.b", "schema": {deep}}}"#)),
        ("/mcp", deep.clone()),
        ("/mcp", call("tools/call")),
    ] {
        let head = post(
            path,
            &format!(
                "accept: application/json, text/event-stream\r\ncontent-length: {}",
                body.len()
            ),
        );
        let mut client = Client::sending(&app, head + &body).await;
        let answer = client.answer().await.expect(path);
        assert!((400..500).contains(&answer.status), "{path} {}: {answer:?}", &body[..60]);
    }
    assert_eq!(events(&app).await, 0);
    is_well(&app).await;
    app.stop().await;
}

/// Catches: something that is inflated.
#[tokio::test]
async fn what_is_compressed_is_no_json() {
    let app = TestApp::start().await;
    let gzip = b"\x1f\x8b\x08\0\0\0\0\0\0\x03\xab\xae\x05\0\x43\xbf\xa6\xa3\x02\0\0\0";
    let head = format!("content-encoding: gzip\r\ncontent-length: {}", gzip.len());
    let mut client = Client::sending(&app, post("/events", &head)).await;
    client.send(gzip).await;
    client.answer().await.expect("an answer").check(400, "malformed-json");
    app.stop().await;
}

/// Catches: bodies that together take any room; a refusal only when all of it was sent; large ones that
/// shut small ones out; room that is not given back.
#[tokio::test]
async fn bodies_have_room_for_so_many_bytes_together() {
    let flags =
        ["--request-body-max=65536", "--batch-body-max=65536", "--request-bodies-max=65536"];
    let app = TestApp::with(&flags).await;
    let before = refusals(&app, "bodies").await;
    let large = post("/events", "content-length: 65536\r\nexpect: 100-continue");
    let mut slow = Client::sending(&app, &large).await;
    assert_eq!(slow.answer().await.expect("it is asked to go on").status, 100);
    slow.send(vec![b' '; 60_000]).await;
    // It holds 43 KiB as soon as they are read.
    eventually("the next one finds no room", async || {
        let mut other = Client::sending(&app, &large).await;
        let answer = other.answer().await.expect("an answer");
        (answer.status != 100).then(|| answer.check(503, "busy"))
    })
    .await;
    assert!(refusals(&app, "bodies").await > before);
    is_well(&app).await;
    // In chunks it is found out when it has come.
    let chunk = format!("400\r\n{}\r\n", " ".repeat(1024));
    let chunked = post("/events", "transfer-encoding: chunked") + &chunk.repeat(60);
    let mut other = Client::sending(&app, chunked).await;
    other.answer().await.expect("an answer").check(503, "busy");
    drop(slow);
    eventually("room", async || {
        let mut other = Client::sending(&app, &large).await;
        (other.answer().await.expect("an answer").status == 100).then_some(())
    })
    .await;
    app.stop().await;
}

/// Catches: more requests under way than there may be; one that is refused after its body was read; a
/// process of which nobody can tell any more how it is.
#[tokio::test]
async fn so_many_requests_are_under_way_and_others_are_told() {
    let app = TestApp::with(&["--requests-max=16"]).await;
    let head = post("/events", "content-length: 1000\r\nexpect: 100-continue");
    let mut slow = Vec::new();
    for _ in 0..16 {
        let mut client = Client::sending(&app, &head).await;
        assert_eq!(client.answer().await.expect("it is asked to go on").status, 100);
        slow.push(client);
    }
    let mut client = Client::sending(&app, &head).await;
    let answer = client.answer().await.expect("an answer");
    answer.check(503, "busy");
    assert!(answer.body["detail"].as_str().unwrap().contains("REQUESTS_MAX"), "{answer:?}");
    // Those with a body at hand are told, too, and may go on with the next.
    let mut client = Client::sending(&app, event("1") + &get("/events")).await;
    client.answer().await.expect("an answer").check(503, "busy");
    client.answer().await.expect("an answer").check(503, "busy");
    for path in ["/livez", "/health", "/readyz", "/readyz/", "/metrics"] {
        let mut client = Client::sending(&app, get(path)).await;
        assert_eq!(client.answer().await.expect("an answer").status, 200, "{path}");
    }
    slow.pop();
    eventually("a place", async || {
        let mut client = Client::sending(&app, event("1")).await;
        (client.answer().await.expect("an answer").status == 202).then_some(())
    })
    .await;
    // Whoever was let in is served.
    for client in &mut slow {
        client
            .send(format!(
                "{:1000}",
                json!({"payload": 1, "target_url": "http://127.0.0.1:9/"}).to_string()
            ))
            .await;
        assert_eq!(client.answer().await.expect("an answer").status, 202);
    }
    app.stop().await;
}
