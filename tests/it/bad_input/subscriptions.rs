//! What is wrong with a subscription is told by field, and leaves nothing.

use super::*;

const TARGET: &str = "http://127.0.0.1:9/";

fn with(name: &str, value: Value) -> Value {
    let mut body = json!({"target_url": TARGET, "event_types": ["a"]});
    body[name] = value;
    body
}

/// Fields that a subscription cannot have, and where the fault is told to be.
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn fields() -> Vec<(Value, &'static str, &'static str)> {
    let headers = |name: &str, value: &str| with("headers", json!({name: value}));
    let many: serde_json::Map<_, _> = (0..33).map(|n| (format!("h{n}"), json!(""))).collect();
    let secret = |bytes: usize| format!("whsec_{}", base64(bytes));
    let mut rows = vec![
        (json!([]), "", "a JSON object"),
        (json!({"event_types": "a"}), "/target_url", "missing"),
        (json!({"target_url": TARGET}), "/event_types", "missing"),
        (with("target_uri", json!(TARGET)), "", "did you mean `target_url`"),
        (with("rate_limit", json!(5)), "/rate_limit", "per_seconds"),
        (with("rate_limit", json!([1, 2, 3])), "/rate_limit", "per_seconds"),
        (with("rate_limit", json!({"count": 1})), "/rate_limit", "per_seconds"),
        (with("rate_limit", json!({"count": 1.5, "per_seconds": 1})), "/rate_limit", "count"),
        (with("rate_limit", json!({"count": 0, "per_seconds": 1})), "/rate_limit", "1 to 100000"),
        (with("rate_limit", json!({"count": 1, "per_seconds": 0.5})), "/rate_limit", "1 to 86400"),
        (
            with("rate_limit", json!({"count": 1, "per_seconds": 1, "burst": 0})),
            "/rate_limit",
            "`burst` of 1",
        ),
        (
            with("rate_limit", json!({"count": 1, "per_seconds": 1, "per": 1})),
            "/rate_limit",
            "per_seconds",
        ),
        (with("max_in_flight", json!(0)), "/max_in_flight", "1 to 10000"),
        (with("max_in_flight", json!(1.5)), "/max_in_flight", "whole number"),
        (with("max_in_flight", json!(10_001)), "/max_in_flight", "1 to 10000"),
        (with("max_in_flight", json!("1")), "/max_in_flight", "number"),
        (with("target_url", json!(null)), "/target_url", "must not be null"),
        (with("target_url", json!("no url")), "/target_url", "URL"),
        (with("target_url", json!("ftp://example.com/")), "/target_url", "http"),
        (with("target_url", json!("http://u:p@example.com/")), "/target_url", "user or password"),
        (with("target_url", json!("http://example.com/#a")), "/target_url", "fragment"),
        (with("disable_after_seconds", json!(-1)), "/disable_after_seconds", "0 to 2592000"),
        (with("disable_after_seconds", json!(0.5)), "/disable_after_seconds", "whole number"),
        (with("disable_after_seconds", json!(2_592_001)), "/disable_after_seconds", "0 to 2592000"),
        (with("disable_after_seconds", json!("1")), "/disable_after_seconds", "number"),
        (with("event_types", json!([])), "/event_types", "1 to 100"),
        (with("event_types", json!(vec!["a"; 101])), "/event_types", "1 to 100"),
        (with("event_types", json!(["a", 1])), "/event_types/1", "strings only"),
        (with("event_types", json!("a b")), "/event_types", "dotted"),
        (with("event_types", json!("a.*.b")), "/event_types", "*"),
        (with("event_types", json!("x".repeat(129))), "/event_types", "128 bytes"),
        (with("event_types", json!(null)), "/event_types", "array"),
        (with("filter", json!("a")), "/filter", "object"),
        (with("filter", json!({"dat": 1})), "/filter/dat", "data"),
        (with("filter", json!({"data.a": {"gtt": 1}})), "/filter/data.a/gtt", "gt"),
        (
            with("filter", json!({"all": [{"type": "a"}, {"data['x/y']": {"in": 1}}]})),
            "/filter/all/1/data['x~1y']/in",
            "list",
        ),
        (with("method", json!("GET")), "/method", "one of POST, PUT, PATCH"),
        (with("method", json!("post")), "/method", "one of POST"),
        (with("payload_format", json!("xml")), "/payload_format", "one of envelope, raw"),
        (with("signing", json!("ed25519")), "/signing", "one of standard, none"),
        (
            with("signature_headers", json!("all")),
            "/signature_headers",
            "standard, x_signature, both",
        ),
        (with("schema_version", json!("x".repeat(65))), "/schema_version", "64 bytes"),
        (with("description", json!("x".repeat(2_001))), "/description", "2000 bytes"),
        (with("description", json!("a\u{0}b")), "/description", "NUL"),
        (with("metadata", json!("x".repeat(17_000))), "/metadata", "bytes"),
        (with("uid", json!("sub_1")), "/uid", "must be"),
        (with("uid", json!("a b")), "/uid", "must be"),
        (with("timeout_seconds", json!(0.9)), "/timeout_seconds", "1 to 300"),
        (with("timeout_seconds", json!(300.5)), "/timeout_seconds", "1 to 300"),
        (with("timeout_seconds", json!(-1)), "/timeout_seconds", "1 to 300"),
        (with("retry", json!([])), "/retry", "1 to "),
        (with("retry", json!([-1])), "/retry", "zero or more"),
        (with("retry", json!(["1"])), "/retry", "a list of delays"),
        (with("retry", json!([864_000])), "/retry", "DELIVERY_AGE_MAX"),
        (with("retry", json!({"max_attempts": 3})), "/retry", "a list of delays"),
        (
            with(
                "retry",
                json!({"max_attempts": 3, "base_seconds": 1, "max_seconds": 9, "jitter": 0}),
            ),
            "/retry",
            "a list of delays",
        ),
        (
            with("retry", json!({"max_attempts": 0, "base_seconds": 1, "max_seconds": 9})),
            "/retry",
            "attempts",
        ),
        (
            with("retry", json!({"max_attempts": 1_000, "base_seconds": 1, "max_seconds": 21_600})),
            "/retry",
            "DELIVERY_AGE_MAX",
        ),
        (with("headers", json!({"x": 1})), "/headers", "object of strings"),
        (with("headers", json!(many)), "/headers", "at most 32"),
        (headers("x", &"y".repeat(8_192)), "/headers", "8192 bytes"),
        (headers("a b", "x"), "/headers", "no header name"),
        (headers("a\r\nb", "x"), "/headers", "no header name"),
        (headers("", "x"), "/headers", "no header name"),
        (headers("x", "a\r\nEvil: 1"), "/headers", "value of `x`"),
        (headers("x", "a\u{0}"), "/headers", "value of `x`"),
        (headers("x", "[redacted]"), "/headers", "no stored value"),
        (with("headers", json!({"A": "1", "a": "2"})), "/headers", "twice"),
        (with("secret", json!("short")), "/secret", "8 to 256"),
        (with("secret", json!("x".repeat(257))), "/secret", "8 to 256"),
        (with("secret", json!(secret(23))), "/secret", "24 to 64"),
        (with("secret", json!(secret(65))), "/secret", "24 to 64"),
        (with("secret", json!("whsec_ not base64 at all")), "/secret", "base64"),
        (with("inbound_secret", json!("short")), "/inbound_secret", "8 to 256"),
        (with("inbound_type_header", json!("a b")), "/inbound_type_header", "name of a header"),
        (with("inbound_type_header", json!("")), "/inbound_type_header", "name of a header"),
        (with("inbound_type_header", json!("x".repeat(65))), "/inbound_type_header", "at most 64"),
        (
            with("inbound_type_header", json!("Authorization")),
            "/inbound_type_header",
            "credentials",
        ),
        (
            json!({"target_url": TARGET, "event_types": "a", "signing": "none",
                   "secret": "sixteen bytes ok"}),
            "/secret",
            "no use",
        ),
    ];
    for name in [
        "Host",
        "content-length",
        "Content-Type",
        "webhook-id",
        "X-Webhook-Any",
        "x-signature",
        "TE",
        "X_Webhook_Signature",
        "webhook_id",
        "x_signature",
        "Content_Length",
    ] {
        rows.push((headers(name, "x"), "/headers", "may not name"));
    }
    for name in [
        "uid",
        "method",
        "signing",
        "payload_format",
        "schema_version",
        "signature_headers",
        "description",
        "secret",
        "inbound_secret",
        "inbound_type_header",
        "target_url",
    ] {
        rows.push((with(name, json!(1)), name_of(name), "must be a string, and not a number"));
    }
    rows.push((with("is_active", json!("yes")), "/is_active", "true or false"));
    rows.push((with("timeout_seconds", json!("5")), "/timeout_seconds", "a number"));
    rows
}

fn name_of(name: &str) -> &'static str {
    Box::leak(format!("/{name}").into_boxed_str())
}

fn base64(bytes: usize) -> String {
    use ::base64::{Engine, engine::general_purpose::STANDARD};
    STANDARD.encode(vec![7; bytes])
}

/// Catches: a rule that is not asked about, by POST, PUT or PATCH; a fault that is told at another
/// place; a refused request that leaves something.
#[tokio::test]
async fn a_bad_field_is_a_problem_and_leaves_nothing() {
    let app = TestApp::start().await;
    let made = app.make("/subscriptions", with("description", json!("as it was"))).await;
    let path = format!("/subscriptions/{}", made["id"].as_str().unwrap());
    for (body, pointer, detail) in fields() {
        for (method, path) in [("POST", "/subscriptions"), ("PUT", &path), ("PATCH", &path)] {
            let is_whole = method != "PATCH" || !detail.contains("missing");
            // A secret is changed by rotation only, whatever else is wrong with it.
            if !is_whole || (method != "POST" && pointer == "/secret") {
                continue;
            }
            let sent = body.to_string();
            let (status, media_type, problem) = send(&app, method, path, JSON, sent.clone()).await;
            let what = format!("{method} {}", &sent[..sent.len().min(200)]);
            assert_eq!(
                (status, media_type.as_str()),
                (422, "application/problem+json"),
                "{what}: {problem}"
            );
            invalid(pointer, detail).check(&what, &problem, "");
        }
    }
    for (method, body, pointer) in [
        ("PATCH", json!({"secret": "sixteen bytes ok"}), "/secret"),
        ("PUT", with("secret", json!("sixteen bytes ok")), "/secret"),
        ("PATCH", json!({"uid": null}), "/uid"),
    ] {
        let (status, _, problem) = send(&app, method, &path, JSON, body.to_string()).await;
        assert_eq!((status, &problem["pointer"]), (422, &json!(pointer)), "{problem}");
    }
    let (status, _, problem) = send(
        &app,
        "POST",
        "/subscriptions",
        JSON,
        r#"{"target_url": "http://127.0.0.1:9/", "event_types": "a", "timeout_seconds": 1e999}"#,
    )
    .await;
    assert_eq!((status, &problem["pointer"]), (422, &json!("/timeout_seconds")), "{problem}");
    let rotate = format!("{path}/rotate-secret");
    for (body, pointer) in [
        (json!({"secret": "short"}), "/secret"),
        (json!({"secret": "whsec_AAAA and so on"}), "/secret"),
        (json!({"overlap_seconds": -1}), "/overlap_seconds"),
        (json!({"overlap_seconds": 604_801}), "/overlap_seconds"),
        (json!({"overlap": 1}), ""),
    ] {
        let (status, _, problem) = send(&app, "POST", &rotate, JSON, body.to_string()).await;
        assert_eq!((status, &problem["pointer"]), (422, &json!(pointer)), "{problem}");
    }
    let rows: (i64, i64, i64) = sqlx::query_as(
        "select (select count(*) from subscription), (select count(*) from subscription_revision),
                (select count(*) from signing_key where subscription_id is not null)",
    )
    .fetch_one(app.store.pool())
    .await
    .unwrap();
    assert_eq!(rows, (1, 1, 1));
    app.stop().await;
}

/// Catches: a target that delivery would refuse, taken; a list that fails of what it is asked for.
#[tokio::test]
async fn a_bad_target_and_a_bad_question_are_problems() {
    let app = TestApp::with(&["--allowed-target-cidrs=127.0.0.0/8"]).await;
    for target in ["http://169.254.169.254/", "http://10.0.0.1/", "http://[::1]/", "http://0x0a.1/"]
    {
        for (name, method) in [("target_url", "POST"), ("url", "POST")] {
            let body = json!({name: target, "event_types": "a"}).to_string();
            let (status, _, problem) = send(&app, method, "/subscriptions", JSON, body).await;
            assert_eq!(status, 422, "{problem}");
            let place = if name == "url" { "/url" } else { "/target_url" };
            Expected(422, "target-refused", Some(("pointer", place)), "ALLOWED_TARGET_CIDRS")
                .check(target, &problem, "");
        }
    }
    for (query, name) in [
        ("is_active=1", "is_active"),
        ("event_type=%00", "event_type"),
        ("event_type=", "event_type"),
        ("target_url=%00", "target_url"),
        ("target_url=x", "target_url"),
        ("limit=0", "limit"),
        ("cursor=x", "cursor"),
        ("active=true", "active"),
    ] {
        let path = format!("/subscriptions?{query}");
        let (status, _, problem) = send(&app, "GET", &path, &[], "").await;
        assert_eq!((status, &problem["parameter"]), (422, &json!(name)), "{query}: {problem}");
    }
    for name in ["%00", "x%2Fy", "sub_1", "evt_0192d4e012347abc8def0123456789ab", "%ff", "é"] {
        for method in ["GET", "DELETE"] {
            let path = format!("/subscriptions/{name}");
            let (status, _, problem) = send(&app, method, &path, &[], "").await;
            let expected = (404, &json!("/problems/subscription-not-found"));
            assert_eq!((status, &problem["type"]), expected, "{name}");
        }
        let (status, _, problem) =
            send(&app, "GET", &format!("/applications/{name}"), &[], "").await;
        assert_eq!((status, &problem["type"]), (404, &json!("/problems/application-not-found")));
    }
    app.stop().await;
}
