//! Faults of a request as a whole: its headers, its parameters, its size, a batch that is none.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Expected, JSON, LIMITS, invalid, rows, send};
use crate::support::TestApp;

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
async fn a_bad_request_is_a_problem_and_leaves_nothing() {
    let app = TestApp::with(LIMITS).await;
    let (single, batch) = ("/events", "/events/batch");
    let body = br#"{"type": "a", "payload": 1}"#.as_slice();
    let item = br#"{"events": [{"type": "a", "payload": 1}]}"#.as_slice();
    let large = |n: usize| format!(r#"{{"payload": "{}"}}"#, "x".repeat(n)).into_bytes();
    let items = |n: usize| format!(r#"{{"events": [{}]}}"#, vec!["1"; n].join(",")).into_bytes();
    let header =
        |detail| Expected(422, "invalid-request", Some(("header", "Idempotency-Key")), detail);
    let no_json = Expected(415, "unsupported-media-type", None, "application/json");
    let too_large = |setting| Expected(413, "body-too-large", None, setting);
    let with = |name: &'static str, value: &'static [u8]| vec![JSON[0], (name, value)];
    let key = |value: &'static [u8]| with("idempotency-key", value);
    let long = "k".repeat(256).into_bytes().leak();
    let of_batch = "k".repeat(252).into_bytes().leak();
    let cases: Vec<(&str, &str, Vec<(&str, &[u8])>, Vec<u8>, Expected)> = vec![
        ("no media type", single, vec![], body.to_vec(), no_json),
        ("text", single, vec![("content-type", b"text/plain")], body.to_vec(), no_json),
        (
            "a form",
            batch,
            vec![("content-type", b"application/x-www-form-urlencoded")],
            item.to_vec(),
            no_json,
        ),
        (
            "an odd media type",
            single,
            vec![("content-type", b"application/json\xff")],
            body.to_vec(),
            no_json,
        ),
        (
            "too large",
            single,
            JSON.to_vec(),
            large(20_000),
            too_large("20000 bytes (REQUEST_BODY_MAX)"),
        ),
        ("far too large", single, JSON.to_vec(), large(3_000_000), too_large("REQUEST_BODY_MAX")),
        (
            "a large batch",
            batch,
            JSON.to_vec(),
            large(60_000),
            too_large("60000 bytes (BATCH_BODY_MAX)"),
        ),
        ("key: no ASCII", single, key(b"\xc3\xa9"), body.to_vec(), header("printable ASCII")),
        ("key: odd bytes", single, key(b"a\xff\x80"), body.to_vec(), header("printable ASCII")),
        ("key: a tab", single, key(b"a\tb"), body.to_vec(), header("printable ASCII")),
        ("key: empty", single, key(b""), body.to_vec(), header("1 to 255")),
        ("key: too long", single, key(long), body.to_vec(), header("1 to 255")),
        (
            "key: twice",
            single,
            [key(b"a"), key(b"b")[1..].to_vec()].concat(),
            body.to_vec(),
            header("is given twice"),
        ),
        ("key: odd bytes, batch", batch, key(b"\xff"), item.to_vec(), header("printable ASCII")),
        ("key: too long, batch", batch, key(of_batch), item.to_vec(), header("1 to 255")),
        (
            "batch: an array",
            batch,
            JSON.to_vec(),
            b"[{\"payload\": 1}]".to_vec(),
            invalid("", "not an array"),
        ),
        (
            "batch: no events",
            batch,
            JSON.to_vec(),
            b"{}".to_vec(),
            invalid("/events", "`events` is missing"),
        ),
        (
            "batch: an event",
            batch,
            JSON.to_vec(),
            body.to_vec(),
            invalid("", "unknown field `type`: there are `events`"),
        ),
        (
            "batch: a slip",
            batch,
            JSON.to_vec(),
            b"{\"event\": []}".to_vec(),
            invalid("", "did you mean `events`?"),
        ),
        (
            "batch: unknown beside good",
            batch,
            JSON.to_vec(),
            br#"{"events": [{"type": "a", "payload": 1}], "atomic": true}"#.to_vec(),
            invalid("", "unknown field `atomic`"),
        ),
        (
            "batch: events twice",
            batch,
            JSON.to_vec(),
            br#"{"events": [{"type": "a", "payload": 1}], "events": []}"#.to_vec(),
            invalid("/events", "given twice"),
        ),
        (
            "batch: an object",
            batch,
            JSON.to_vec(),
            b"{\"events\": {\"payload\": 1}}".to_vec(),
            invalid("/events", "must be an array, and not an object"),
        ),
        (
            "batch: null",
            batch,
            JSON.to_vec(),
            b"{\"events\": null}".to_vec(),
            invalid("/events", "not null"),
        ),
        (
            "batch: nested",
            batch,
            JSON.to_vec(),
            [b"[".repeat(9_000), b"]".repeat(9_000)].concat(),
            invalid("", "not an array"),
        ),
        (
            "batch: none",
            batch,
            JSON.to_vec(),
            items(0),
            invalid("/events", "must hold 1 to 1000 items"),
        ),
        (
            "batch: too many",
            batch,
            JSON.to_vec(),
            items(1_001),
            invalid("/events", "must hold 1 to 1000 items"),
        ),
    ];
    for (what, path, headers, body, expected) in cases {
        let (status, media_type, problem) = send(&app, "POST", path, &headers, body).await;
        assert_eq!(
            (status, media_type.as_str()),
            (expected.0, "application/problem+json"),
            "{what}: {problem}"
        );
        expected.check(what, &problem, "");
    }

    // An event of a batch is bound by the limit of a single one.
    let body = format!(r#"{{"events": [{}]}}"#, String::from_utf8(large(20_000)).unwrap());
    let (_, _, problem) = send(&app, "POST", batch, JSON, body).await;
    let expected = Expected(
        413,
        "body-too-large",
        None,
        "the event is larger than 20000 bytes (REQUEST_BODY_MAX)",
    );
    expected.check("a large event", &problem["results"][0]["problem"], "/events/0");
    assert_eq!(rows(&app).await, 0);
    app.stop().await;
}

#[tokio::test]
async fn a_bad_question_is_a_problem() {
    let app = TestApp::start().await;
    let parameter =
        |name, detail| Expected(422, "invalid-request", Some(("parameter", name)), detail);
    let no_event = |detail| Expected(404, "event-not-found", None, detail);
    let cursor = "is not one that this list gave out";
    // The first two bytes of a cursor are its version and its list.
    let of_another_list = "AmQBktTgEjR6vI3vASNFZ4mr";
    let cases: &[(&str, Expected)] = &[
        ("/events?limit=0", parameter("limit", "must be 1 to 250")),
        ("/events?limit=251", parameter("limit", "must be 1 to 250")),
        ("/events?limit=-1", parameter("limit", "must be 1 to 250")),
        ("/events?limit=x", parameter("limit", "must be 1 to 250")),
        ("/events?limit=", parameter("limit", "must be 1 to 250")),
        ("/events?limit=99999999999999999999", parameter("limit", "must be 1 to 250")),
        ("/events?cursor=made-up", parameter("cursor", cursor)),
        ("/events?cursor=", parameter("cursor", cursor)),
        ("/events?cursor=3q2-7wAAAAAAAAAAAAAAAAAA", parameter("cursor", cursor)),
        (&format!("/events?cursor={of_another_list}"), parameter("cursor", cursor)),
        ("/events?cursor=evt_0192d4e012347abc8def0123456789ab", parameter("cursor", cursor)),
        ("/events?status=lost", parameter("status", "must be one of pending, delivered")),
        ("/events?colour=red", parameter("colour", "unknown parameter `colour`: there are")),
        ("/events?limits=5", parameter("limits", "did you mean `limit`?")),
        ("/events?createdAfter=5", parameter("createdAfter", "did you mean `created_after`?")),
        ("/events?limit=5&limit=6", parameter("limit", "given twice")),
        ("/events?a%0D%0Ab=1", parameter(r"a\r\nb", "unknown parameter")),
        ("/events?created_after=yesterday", parameter("created_after", "RFC 3339")),
        ("/events?created_before=2026-01-01T00:00:00+00:00", parameter("created_before", "%2B")),
        ("/events?type=%00", parameter("type", "dotted name")),
        ("/events?type=a%20b", parameter("type", "dotted name")),
        ("/events?subject=%00", parameter("subject", "without control characters")),
        (
            "/events?application=x",
            Expected(404, "application-not-found", Some(("parameter", "application")), "no such"),
        ),
        ("/events/evt_0192d4e012347abc8def0123456789ab", no_event("there is no such event")),
        (
            "/events/dlv_0192d4e012347abc8def0123456789ab",
            no_event("`dlv_` is that of a delivery; expected an id such as `evt_"),
        ),
        ("/events/sub_0192d4e012347abc8def0123456789ab", no_event("that of a subscription")),
        ("/events/0192d4e0-1234-7abc-8def-0123456789ab", no_event("expected an id such as `evt_")),
        ("/events/%00", no_event("expected an id")),
        ("/events/%FF", no_event("expected an id")),
        ("/events//", Expected(404, "no-route", None, "nothing at this path")),
    ];
    for (path, expected) in cases {
        let (status, media_type, problem) = send(&app, "GET", path, &[], "").await;
        assert_eq!(
            (status, media_type.as_str()),
            (expected.0, "application/problem+json"),
            "{path}: {problem}"
        );
        expected.check(path, &problem, "");
    }
    for (method, path) in
        [("DELETE", "/events"), ("GET", "/events/batch"), ("PUT", "/events/batch")]
    {
        let (status, _, problem) = send(&app, method, path, &[], "").await;
        assert_eq!((status, &problem["type"]), (405, &json!("/problems/method-not-allowed")));
    }
    app.stop().await;
}

/// What cannot be part of HTTP ends the request before anything looks at it.
#[tokio::test]
async fn headers_that_break_http_reach_nobody() {
    let app = TestApp::start().await;
    let address = app.base.strip_prefix("http://").unwrap();
    for header in [
        b"Idempotency-Key: a\0b".as_slice(),
        b"Idempotency-Key: a\x01b",
        b"Idempotency-Key: a\x7fb",
        b"X-Request-Id: a\rb",
        b"X-Request Id: a",
        b"X-Request-Id\0: a",
        b": a",
    ] {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let body = br#"{"type": "a", "payload": 1}"#;
        let length = body.len();
        let head = format!(
            "POST /events HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n"
        );
        let request = [head.as_bytes(), header, b"\r\n\r\n", body].concat();
        stream.write_all(&request).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 400 "), "{}", String::from_utf8_lossy(&answer));
    }
    // An id that is sound HTTP, and no text: the request is served, under another.
    let odd = [JSON[0], ("x-request-id", b"a\xff".as_slice())];
    let (status, ..) = send(&app, "POST", "/events", &odd, r#"{"payload": NaN}"#).await;
    assert_eq!(status, 400);
    assert_eq!(rows(&app).await, 0);
    app.stop().await;
}
