//! Faults of an event, each sent alone and as one of a batch.

use serde_json::json;

use super::{Expected, JSON, LIMITS, invalid, malformed, rows, send};
use crate::support::TestApp;

/// What is wrong with an event, whether it comes alone or in a batch.
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn events() -> Vec<(&'static str, String, Expected)> {
    let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
    let event = |fields: &str| format!(r#"{{"payload": 1, {fields}}}"#);
    let payload = |payload: &str| format!(r#"{{"type": "a", "payload": {payload}}}"#);
    let depth = "must not nest deeper than 128 levels";
    let target =
        |pointer| Expected(422, "target-refused", Some(("pointer", "/target_url")), pointer);
    vec![
        ("an array", "[1]".to_owned(), invalid("", "expected a JSON object, and not an array")),
        (
            "an array as long as an event",
            "[1,\"a\",null,null,null,null,null]".to_owned(),
            invalid("", "an array"),
        ),
        ("a string", "\"a\"".to_owned(), invalid("", "not a string")),
        ("a number", "12".to_owned(), invalid("", "not a number")),
        ("null", "null".to_owned(), invalid("", "not null")),
        ("nested all over", nested(5_000), invalid("", "not an array")),
        ("no payload", r#"{"type": "a"}"#.to_owned(), invalid("/payload", "`payload` is missing")),
        (
            "a slip",
            r#"{"playload": 1}"#.to_owned(),
            invalid("", "unknown field `playload`: did you mean `payload`?"),
        ),
        (
            "a type of the service's own",
            event(r#""type": "webhook.delivery.dead""#),
            invalid("/type", "must not begin with `webhook.`"),
        ),
        ("another case", event(r#""targetUrl": "a""#), invalid("", "did you mean `target_url`?")),
        (
            "an unknown field",
            event(r#""colour": "red""#),
            invalid("", "unknown field `colour`: there are `payload`"),
        ),
        (
            "an unknown field, nested",
            event(&format!(r#""deep": {}"#, nested(5_000))),
            invalid("", "`deep`"),
        ),
        ("an odd field", event(r#""a\u0000\r\n": 1"#), invalid("", r"unknown field `a\0\r\n`")),
        (
            "a field twice",
            event(r#""payload": 2"#),
            invalid("/payload", "field `payload` is given twice"),
        ),
        (
            "a field twice, in disguise",
            event(r#""type": "a", "t\u0079pe": "a""#),
            invalid("/type", "given twice"),
        ),
        (
            "type: a number",
            event(r#""type": 5"#),
            invalid("/type", "`type` must be a string, and not a number"),
        ),
        (
            "type: nested",
            event(&format!(r#""type": {}"#, nested(5_000))),
            invalid("/type", "not an array"),
        ),
        (
            "target_url: an object",
            event(r#""target_url": {"url": 1}"#),
            invalid("/target_url", "not an object"),
        ),
        (
            "application: a boolean",
            event(r#""type": "a", "application": true"#),
            invalid("/application", "not a boolean"),
        ),
        (
            "idempotency_key: an array",
            event(r#""idempotency_key": ["k"]"#),
            invalid("/idempotency_key", "not an array"),
        ),
        ("subject: a number", event(r#""subject": 1.5"#), invalid("/subject", "not a number")),
        (
            "type: no name",
            event(r#""type": "a b""#),
            invalid("/type", "`type` must be a dotted name"),
        ),
        ("type: a header break", event(r#""type": "a\r\nb: c""#), invalid("/type", "dotted name")),
        ("type: NUL", event(r#""type": "a\u0000""#), invalid("/type", "dotted name")),
        (
            "type: half a pair",
            event(r#""type": "\ud800""#),
            invalid("/type", "must be Unicode text"),
        ),
        (
            "type: too long",
            event(&format!(r#""type": "{}""#, "t".repeat(129))),
            invalid("/type", "128 bytes"),
        ),
        (
            "subject: NUL",
            event(r#""type": "a", "subject": "a\u0000b""#),
            invalid("/subject", "without control characters"),
        ),
        (
            "subject: half a pair",
            event(r#""type": "a", "subject": "\udfff""#),
            invalid("/subject", "Unicode text"),
        ),
        (
            "subject: empty",
            event(r#""type": "a", "subject": """#),
            invalid("/subject", "1 to 255 bytes"),
        ),
        (
            "key: empty",
            event(r#""type": "a", "idempotency_key": """#),
            invalid("/idempotency_key", "1 to 255"),
        ),
        (
            "key: a header break",
            event(r#""type": "a", "idempotency_key": "a\r\nb""#),
            invalid("/idempotency_key", "printable ASCII"),
        ),
        (
            "key: NUL",
            event(r#""type": "a", "idempotency_key": "\u0000""#),
            invalid("/idempotency_key", "printable ASCII"),
        ),
        (
            "target: no URL",
            event(r#""target_url": "x""#),
            invalid("/target_url", "is not an absolute URL"),
        ),
        (
            "target: no http",
            event(r#""target_url": "ftp://a/""#),
            invalid("/target_url", "must begin with http:// or https://"),
        ),
        (
            "target: a script",
            event(r#""target_url": "javascript:alert(1)""#),
            invalid("/target_url", "must begin with"),
        ),
        (
            "target: user and password",
            event(r#""target_url": "http://u:p@a/""#),
            invalid("/target_url", "user or password"),
        ),
        (
            "target: a user",
            event(r#""target_url": "http://u@a/""#),
            invalid("/target_url", "user or password"),
        ),
        (
            "target: a fragment",
            event(r#""target_url": "http://a/#b""#),
            invalid("/target_url", "fragment"),
        ),
        (
            "target: NUL",
            event(r#""target_url": "http://a\u0000/""#),
            invalid("/target_url", "is not an absolute URL"),
        ),
        (
            "target: too long",
            event(&format!(r#""target_url": "http://a/{}""#, "x".repeat(2_048))),
            invalid("/target_url", "longer than 2048"),
        ),
        (
            "target: private",
            event(r#""target_url": "http://10.0.0.1/""#),
            target("ALLOWED_TARGET_CIDRS"),
        ),
        (
            "target: metadata service, odd",
            event(r#""target_url": "http://0xA9FEA9FE/""#),
            target("169.254.169.254"),
        ),
        (
            "no target",
            r#"{"payload": 1}"#.to_owned(),
            Expected(422, "no-target", None, "TARGET_URL"),
        ),
        (
            "application: unknown",
            event(r#""type": "a", "application": "x""#),
            Expected(
                404,
                "application-not-found",
                Some(("pointer", "/application")),
                "there is no such application",
            ),
        ),
        (
            "application: another kind",
            event(r#""type": "a", "application": "evt_0192d4e012347abc8def0123456789ab""#),
            Expected(
                404,
                "application-not-found",
                Some(("pointer", "/application")),
                "`evt_` is that of an event",
            ),
        ),
        ("payload: deep", payload(&nested(129)), invalid("/payload", depth)),
        ("payload: very deep", payload(&nested(5_000)), invalid("/payload", depth)),
        (
            "payload: deep objects",
            payload(&format!("{}1{}", r#"{"a":"#.repeat(129), "}".repeat(129))),
            invalid("/payload", depth),
        ),
        (
            "payload: beyond a double",
            payload(r#"{"n": [1, -1e400]}"#),
            invalid("/payload", "the range of a double"),
        ),
        (
            "payload: digits beyond a double",
            payload(&"9".repeat(400)),
            invalid("/payload", "the range of a double"),
        ),
        (
            "payload: half a pair",
            payload(r#"["\ud83d\ud83d"]"#),
            invalid("/payload", "half of a surrogate pair"),
        ),
        (
            "payload: half a pair in a name",
            payload(r#"{"\udc00": 1}"#),
            invalid("/payload", "half of a surrogate pair"),
        ),
        (
            "metadata: deep",
            event(&format!(r#""type": "a", "metadata": {}"#, nested(129))),
            invalid("/metadata", depth),
        ),
        (
            "metadata: beyond a double",
            event(r#""type": "a", "metadata": 1e400"#),
            invalid("/metadata", "the range of a double"),
        ),
        (
            "metadata: half a pair",
            event(r#""type": "a", "metadata": "\ud800""#),
            invalid("/metadata", "half of a surrogate pair"),
        ),
        (
            "metadata: NUL",
            event(r#""type": "a", "metadata": {"a": "\u0000"}"#),
            invalid("/metadata", "must not hold the character U+0000"),
        ),
        (
            "metadata: too large",
            event(&format!(r#""type": "a", "metadata": "{}""#, "m".repeat(16_384))),
            invalid("/metadata", "at most 16384 bytes"),
        ),
    ]
}

/// What is no JSON at all: then of a batch too there is nothing to be read.
fn no_json() -> Vec<(&'static str, Vec<u8>, Expected)> {
    vec![
        ("a form", b"payload=1".to_vec(), malformed("line 1 column 1")),
        ("nothing", Vec::new(), malformed("EOF")),
        ("cut off", br#"{"payload": [1, "#.to_vec(), malformed("EOF")),
        ("two values", br#"{"payload": 1} {}"#.to_vec(), malformed("trailing characters")),
        ("no UTF-8", b"{\"payload\": \"\xff\"}".to_vec(), malformed("no UTF-8 at byte 13")),
        (
            "a byte order mark",
            b"\xef\xbb\xbf{\"payload\": 1}".to_vec(),
            malformed("line 1 column 1"),
        ),
        ("a NUL", b"{\"payload\": \"\0\"}".to_vec(), malformed("control character")),
        ("a leading zero", br#"{"payload": 01}"#.to_vec(), malformed("line 1")),
        ("NaN", br#"{"payload": NaN}"#.to_vec(), malformed("line 1")),
        ("half a pair in a field's name", br#"{"\ud800": 1}"#.to_vec(), malformed("line 1")),
    ]
}

#[tokio::test]
async fn a_bad_event_is_a_problem_and_leaves_nothing() {
    let app = TestApp::with(LIMITS).await;
    for (what, body, expected) in events() {
        let (status, media_type, problem) = send(&app, "POST", "/events", JSON, body).await;
        assert_eq!(
            (status, media_type.as_str()),
            (expected.0, "application/problem+json"),
            "{what}: {problem}"
        );
        expected.check(what, &problem, "");
    }
    for (what, mut body, expected) in no_json() {
        let (status, _, problem) = send(&app, "POST", "/events", JSON, body.clone()).await;
        assert_eq!(status, expected.0, "{what}: {problem}");
        expected.check(what, &problem, "");
        if body.starts_with(br#"{"payload""#) {
            body = [br#"{"events": ["#, body.as_slice(), b"]}"].concat();
        }
        let (status, _, problem) = send(&app, "POST", "/events/batch", JSON, body).await;
        assert_eq!((status, &problem["type"]), (400, &json!("/problems/malformed-json")), "{what}");
    }
    assert_eq!(rows(&app).await, 0);
    app.stop().await;
}

#[tokio::test]
async fn a_bad_event_of_a_batch_is_a_problem_of_its_own() {
    let app = TestApp::with(LIMITS).await;
    for (what, event, expected) in events() {
        // Alone, none is accepted, and the whole says so.
        let body = format!(r#"{{"events": [{event}]}}"#);
        let (status, media_type, problem) = send(&app, "POST", "/events/batch", JSON, body).await;
        assert_eq!(
            (status, media_type.as_str()),
            (422, "application/problem+json"),
            "{what}: {problem}"
        );
        Expected(422, "batch-refused", None, "none of the 1 events").check(what, &problem, "");
        let result = &problem["results"][0];
        assert_eq!(result["status"], "refused", "{what}");
        expected.check(what, &result["problem"], "/events/0");
    }
    assert_eq!(rows(&app).await, 0);

    // Together with good ones they keep none of those.
    let good = |n: usize| format!(r#"{{"type": "good", "payload": {n}}}"#);
    let mut stored = 0;
    for chunk in events().chunks(8) {
        let mut items = Vec::new();
        for (n, (_, event, _)) in chunk.iter().enumerate() {
            items.extend([event.clone(), good(n)]);
        }
        let body = format!(r#"{{"events": [{}]}}"#, items.join(","));
        let (status, media_type, answer) = send(&app, "POST", "/events/batch", JSON, body).await;
        assert_eq!((status, media_type.as_str()), (202, "application/json"), "{answer}");
        let results = answer["results"].as_array().unwrap();
        assert_eq!(results.len(), items.len());
        for (n, (what, _, expected)) in chunk.iter().enumerate() {
            expected.check(what, &results[2 * n]["problem"], &format!("/events/{}", 2 * n));
            let id = results[2 * n + 1]["id"].as_str().unwrap();
            assert_eq!(results[2 * n + 1], json!({"id": id, "status": "accepted"}));
            assert_eq!(app.event(id).await["payload"], n);
            stored += 1;
        }
    }
    assert_eq!(rows(&app).await, 2 * stored, "an event and its payload each");
    app.stop().await;
}

/// U+0000 in a payload is the receiver's business: the bytes are kept, and sent, as they came.
#[tokio::test]
async fn a_payload_may_hold_what_text_cannot() {
    let app = TestApp::start().await;
    let body = r#"{"type": "a", "payload": {"a\u0000": "\u0000"}}"#;
    let (status, _, answer) = send(&app, "POST", "/events", JSON, body).await;
    assert_eq!(status, 202, "{answer}");
    let url = format!("{}/events/{}", app.base, answer["id"].as_str().unwrap());
    let text = app.http.get(url).send().await.unwrap().text().await.unwrap();
    assert!(text.contains(r#""payload":{"a\u0000": "\u0000"}"#), "{text}");
    app.stop().await;
}

#[tokio::test]
async fn a_key_that_stands_for_another_event_stores_nothing() {
    let app = TestApp::start().await;
    let body = |n: usize| json!({"type": "a", "payload": n, "idempotency_key": "k"});
    assert_eq!(app.post("/events", &body(1)).await.0, 202);
    let before = rows(&app).await;
    let expected = Expected(409, "idempotency-key-reused", None, "used for another request");
    let (status, problem) = app.post("/events", &body(2)).await;
    assert_eq!(status, 409);
    expected.check("alone", &problem, "");
    let (status, problem) = app.post("/events/batch", &json!({"events": [body(2), body(3)]})).await;
    assert_eq!((status.as_u16(), &problem["type"]), (422, &json!("/problems/batch-refused")));
    expected.check("in a batch", &problem["results"][1]["problem"], "/events/1");
    assert_eq!(rows(&app).await, before);
    app.stop().await;
}
