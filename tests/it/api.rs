//! The HTTP interface: what is taken, what is refused and how, what is shown, and to whom.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use reqwest::StatusCode;
use serde_json::{Value, json};
use webhook_dispatcher::domain::ids::DEFAULT_APPLICATION;

use crate::support::{Answer, Receiver, TestApp, tools};

/// Sends a raw request; answers status, media type and body.
async fn send(
    app: &TestApp,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Vec<u8>>,
) -> (u16, String, Value) {
    let url = format!("{}{path}", app.base);
    let mut request = app.http.request(method.parse().unwrap(), url).body(body.into());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    let media_type = answer.headers().get("content-type").map_or("", |v| v.to_str().unwrap());
    let media_type = media_type.to_owned();
    assert!(answer.headers().contains_key("x-request-id"), "every answer has an id");
    let text = answer.text().await.unwrap();
    (status, media_type, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

async fn stored_events(app: &TestApp) -> i64 {
    sqlx::query_scalar("select count(*) from event").fetch_one(app.store.pool()).await.unwrap()
}

const JSON: &[(&str, &str)] = &[("content-type", "application/json")];

#[tokio::test]
async fn an_event_is_shown_as_it_came() {
    let receiver = Receiver::always(200).await;
    let app = TestApp::start().await;
    // Key order, spacing, numbers and escapes must survive: these bytes are signed.
    let payload = r#"{"z": 1.0,  "a":[1e2, "é\u00e9\/"], "big": 123456789012345678901234567890}"#;
    let target = receiver.url("/hook?a=b");
    let body = format!(
        r#"{{"type": "invoice.paid", "payload": {payload}, "target_url": "{target}",
             "subject": "user-1", "metadata": {{"k": [1]}}, "application": "default"}}"#
    );
    let (status, _, answer) = send(&app, "POST", "/events/", JSON, body).await;
    assert_eq!((status, &answer["status"]), (202, &json!("accepted")));
    let id = answer["id"].as_str().unwrap().to_owned();
    let event = app.wait_for(&id, "delivered").await;
    assert_eq!(event["type"], "invoice.paid");
    assert_eq!(event["subject"], "user-1");
    assert_eq!(event["metadata"], json!({"k": [1]}));
    let delivery = &event["deliveries"][0];
    assert_eq!(delivery["target_url"], target);
    let attempt = &delivery["attempts"][0];
    assert_eq!(attempt["request"]["headers"]["webhook-id"], id);
    assert_eq!(attempt["response"]["status"], 200);
    assert_eq!(attempt["error"], Value::Null);
    for time in ["scheduled_at", "started_at"] {
        assert!(attempt[time].as_str().unwrap().ends_with('Z'), "{attempt}");
    }
    let received = &receiver.received()[0];
    assert_eq!(received.body, payload.as_bytes());
    assert_eq!(received.header("x-webhook-event"), "invoice.paid");
    assert_eq!((received.method.as_str(), received.path.as_str()), ("POST", "/hook?a=b"));
    let text = app.http.get(format!("{}/events/{id}", app.base)).send().await.unwrap();
    assert!(text.text().await.unwrap().contains(payload), "the payload is shown byte for byte");
    app.stop().await;
}

#[tokio::test]
async fn an_event_without_target_goes_to_the_default_and_one_with_a_type_to_subscriptions() {
    let receiver = Receiver::always(200).await;
    let app = TestApp::with(&[&format!("--target-url={}", receiver.url("/default"))]).await;
    let (status, answer) = app.post("/events", &json!({"payload": null})).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    app.wait_for(answer["id"].as_str().unwrap(), "delivered").await;
    assert_eq!(receiver.received()[0].path, "/default");
    assert_eq!(receiver.received()[0].body, b"null");

    let (_, answer) = app.post("/events", &json!({"payload": 1, "type": "a.b"})).await;
    let event = app.event(answer["id"].as_str().unwrap()).await;
    assert_eq!((&event["status"], &event["delivery_count"]), (&json!("unrouted"), &json!(0)));
    app.stop().await;
}

#[tokio::test]
async fn an_idempotency_key_stands_for_one_event() {
    let receiver = Receiver::always(200).await;
    let app = TestApp::start().await;
    let body = json!({"payload": 1, "target_url": receiver.url("/"), "idempotency_key": "k"});
    let (status, first) = app.post("/events", &body).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    assert_eq!(app.post("/events", &body).await, (StatusCode::ACCEPTED, first.clone()));
    let mut other = body.clone();
    other["payload"] = json!(2);
    let (status, problem) = app.post("/events", &other).await;
    assert_eq!(
        (status.as_u16(), &problem["type"]),
        (409, &json!("/problems/idempotency-key-reused"))
    );

    // The header is the same key.
    let headers = [JSON[0], ("idempotency-key", "k")];
    let same = send(&app, "POST", "/events", &headers, body.to_string()).await;
    assert_eq!((same.0, &same.2), (202, &first));
    let headers = [JSON[0], ("idempotency-key", "another")];
    let differs = send(&app, "POST", "/events", &headers, body.to_string()).await;
    assert_eq!(differs.0, 422, "header and body must agree");
    assert_eq!(stored_events(&app).await, 1);
    app.wait_for(first["id"].as_str().unwrap(), "delivered").await;
    assert_eq!(receiver.count(), 1);
    app.stop().await;
}

/// All at once, so that they meet in one batch as well as in several.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_key_used_at_once_makes_one_event() {
    let receiver = Receiver::always(200).await;
    let app = TestApp::start().await;
    for round in 0..5 {
        let key = format!("key-{round}");
        let bodies = (0..40).map(|n| {
            let payload = i32::from(n % 4 == 3);
            json!({"payload": payload, "target_url": receiver.url("/"), "idempotency_key": key})
        });
        let bodies: Vec<_> = bodies.collect();
        let posts = bodies.iter().map(|body| app.post("/events", body));
        let answers = futures_util::future::join_all(posts).await;
        let accepted: Vec<_> =
            answers.iter().filter(|(status, _)| *status == StatusCode::ACCEPTED).collect();
        assert!(accepted.len() == 30 || accepted.len() == 10, "{}", accepted.len());
        assert!(accepted.iter().all(|(_, body)| body == &accepted[0].1), "one id for all");
        assert!(answers.iter().all(|(status, _)| matches!(status.as_u16(), 202 | 409)));
    }
    assert_eq!(stored_events(&app).await, 5);
    app.stop().await;
}

#[tokio::test]
async fn lists_are_paged_and_filtered() {
    let receiver = Receiver::always(410).await;
    let app = TestApp::start().await;
    let mut ids = Vec::new();
    for n in 0..7 {
        let mut body = json!({"payload": n, "subject": format!("s{}", n % 2)});
        if n < 4 {
            body["target_url"] = json!(receiver.url("/"));
        }
        if n != 0 {
            body["type"] = json!(format!("type.{}", n % 3));
        }
        let (status, answer) = app.post("/events", &body).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
        ids.push(answer["id"].as_str().unwrap().to_owned());
    }
    for id in &ids[..4] {
        app.wait_for(id, "dead").await;
    }
    let list = async |query: &str| {
        let (status, page) = app.get(&format!("/events?{query}")).await;
        assert_eq!(status, StatusCode::OK, "{page}");
        let ids: Vec<String> = page["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|event| event["id"].as_str().unwrap().to_owned())
            .collect();
        (ids, page["next_cursor"].as_str().map(str::to_owned))
    };
    // Ids of the same millisecond are in no order of their own.
    let pick = |wanted: &[usize]| {
        let mut picked: Vec<_> = wanted.iter().map(|&n| ids[n].clone()).collect();
        picked.sort_unstable_by(|one, other| other.cmp(one));
        picked
    };
    let newest_first = pick(&[0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(list("").await, (newest_first.clone(), None));

    let (mut paged, mut cursor) = (Vec::new(), String::new());
    loop {
        let (page, next) = list(&format!("limit=3{cursor}")).await;
        assert!(page.len() <= 3);
        paged.extend(page);
        let Some(next) = next else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(paged, newest_first);

    assert_eq!(list("status=dead").await.0, pick(&[3, 2, 1, 0]));
    assert_eq!(list("status=unrouted").await.0, pick(&[6, 5, 4]));
    assert_eq!(list("status=unrouted&limit=2").await.0, pick(&[6, 5, 4])[..2]);
    assert_eq!(list("status=delivered").await.0, pick(&[]));
    assert_eq!(list("type=type.1").await.0, pick(&[4, 1]));
    assert_eq!(list("subject=s0&status=dead").await.0, pick(&[2, 0]));
    assert_eq!(list("created_after=2020-01-01T00:00:00Z").await.0, newest_first);
    assert_eq!(list("created_before=2020-01-01T00:00:00Z").await.0, pick(&[]));
    app.stop().await;
}

/// What is rare may lie far back: a page looks at so many events and no more.
#[tokio::test]
async fn a_page_looks_at_a_bounded_number_of_events() {
    let app = TestApp::start().await;
    let insert = "
        insert into event (event_id, application_id, type, subject, routing_version, delivery_count)
        select (lpad(to_hex((extract(epoch from now()) * 1000)::bigint), 12, '0')
                || '7' || lpad(to_hex(n), 3, '0') || '8000000000000000')::uuid,
               $1, case when n = 7 then 'rare' else 'common' end, 'of ' || n % 2, 1, 0
        from generate_series(1, 2400) as n";
    sqlx::query(insert).bind(DEFAULT_APPLICATION.uuid()).execute(app.store.pool()).await.unwrap();
    // The pages' sizes, until the last.
    let pages = async |query: &str| {
        let (mut sizes, mut cursor) = (Vec::new(), String::new());
        loop {
            let (status, page) = app.get(&format!("/events?limit=250&{query}{cursor}")).await;
            assert_eq!(status, StatusCode::OK, "{page}");
            sizes.push(page["data"].as_array().unwrap().len());
            let Some(next) = page["next_cursor"].as_str() else { return sizes };
            cursor = format!("&cursor={next}");
        }
    };
    assert_eq!(pages("type=rare").await, [0, 0, 0, 0, 1]);
    assert_eq!(pages("type=rare&subject=of%201").await, [0, 0, 0, 0, 1]);
    assert_eq!(pages("type=rare&subject=of%200").await, [0, 0, 0, 0, 0]);
    assert_eq!(pages("type=rare&status=unrouted").await, [0, 0, 0, 0, 1]);
    assert_eq!(pages("status=delivered").await, [0, 0, 0, 0, 0]);
    // What is common fills its pages, and none is shown twice or left out.
    assert_eq!(pages("subject=of%201").await, [250, 250, 250, 250, 200]);
    assert_eq!(pages("type=common").await.iter().sum::<usize>(), 2_399);
    assert_eq!(pages("").await.iter().sum::<usize>(), 2_400);
    app.stop().await;
}

#[tokio::test]
async fn the_latest_attempts_are_shown_and_of_their_answers_so_many_bytes() {
    let receiver = Receiver::start(|_, _| Answer::status(500).body(vec![b'x'; 16_000])).await;
    let app = TestApp::with(&["--max-attempts=1"]).await;
    let id = app.accept(&receiver.url("/")).await;
    app.wait_for(&id, "dead").await;
    let repeat = "
        insert into attempt
        select (jsonb_populate_record(attempt, jsonb_build_object(
                   'claim_number', n, 'started_at', started_at + n * interval '1 s',
                   'error_message', n))).*
        from attempt, generate_series(2, 1100) as n";
    sqlx::query(repeat).execute(app.store.pool()).await.unwrap();

    let event = app.event(&id).await;
    assert_eq!(event["last_error"]["message"], "1100");
    let attempts = event["deliveries"][0]["attempts"].as_array().unwrap();
    let message = |n: usize| attempts[n]["error"]["message"].as_str().unwrap();
    assert_eq!((attempts.len(), message(0), message(999)), (1_000, "101", "1100"));
    let response = |n: usize| &attempts[n]["response"];
    let body_bytes = |n: usize| response(n)["body"].as_str().unwrap().len();
    assert_eq!((body_bytes(999), &response(999)["is_truncated"]), (16_000, &json!(false)));
    assert_eq!((body_bytes(0), &response(0)["is_truncated"]), (0, &json!(true)));
    assert_eq!((&response(0)["status"], &response(0)["headers"]), (&json!(500), &json!({})));
    let all: usize = (0..1_000).map(body_bytes).sum();
    assert!((1_900_000..2 * 1024 * 1024).contains(&all), "{all}");
    app.stop().await;
}

#[tokio::test]
async fn http_to_a_name_is_refused_at_once_if_no_address_could_allow_it() {
    let body = r#"{"payload": 1, "target_url": "http://a.example/"}"#;
    let app = TestApp::with(&["--require-https=true", "--allowed-target-cidrs="]).await;
    let (status, _, problem) = send(&app, "POST", "/events", JSON, body).await;
    assert_eq!((status, &problem["type"]), (422, &json!("/problems/target-refused")));
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        detail.contains("REQUIRE_HTTPS") && detail.contains("ALLOWED_TARGET_CIDRS"),
        "{detail}"
    );
    app.stop().await;

    let app = TestApp::with(&["--require-https=true"]).await;
    let (status, _, answer) = send(&app, "POST", "/events", JSON, body).await;
    assert_eq!(status, 202, "it may lead to an allowed block: {answer}");
    app.stop().await;
}

#[tokio::test]
async fn with_a_key_only_its_bearers_are_answered() {
    let app = TestApp::with(&[
        "--admin-api-key=correct-horse-battery",
        "--webhook-secret=a secret for the tests only",
    ])
    .await;
    let accepted: &[&[(&str, &str)]] = &[
        &[("authorization", "Bearer correct-horse-battery")],
        &[("authorization", "bearer correct-horse-battery")],
        &[("x-api-key", "correct-horse-battery")],
    ];
    for headers in accepted {
        assert_eq!(send(&app, "GET", "/events", headers, "").await.0, 200, "{headers:?}");
    }
    let refused: &[&[(&str, &str)]] = &[
        &[],
        &[("authorization", "Bearer wrong")],
        &[("authorization", "Bearer correct-horse-battery-staple")],
        &[("authorization", "Basic correct-horse-battery")],
        &[("x-api-key", "")],
    ];
    for headers in refused {
        for path in
            ["/events", "/events/", "/events/x", "/metrics", "/metrics/", "/nothing", "/health//"]
        {
            let (status, _, problem) = send(&app, "GET", path, headers, "").await;
            assert_eq!(
                (status, &problem["type"]),
                (401, &json!("/problems/unauthorized")),
                "{path}"
            );
        }
    }
    for path in ["/health", "/livez", "/readyz", "/health/", "/livez/", "/readyz/"] {
        assert_eq!(send(&app, "GET", path, &[], "").await.2, json!({"ok": true}), "{path}");
    }
    app.stop().await;
}

#[tokio::test]
async fn without_a_key_only_this_machine_is_answered_and_no_web_page() {
    let app = TestApp::start().await;
    let port = app.base.rsplit(':').next().unwrap().to_owned();
    for host in ["localhost", "127.0.0.1", "[::1]"] {
        let host = format!("{host}:{port}");
        assert_eq!(send(&app, "GET", "/events", &[("host", &host)], "").await.0, 200, "{host}");
    }
    // A page under a name that its owner points to 127.0.0.1.
    let (status, _, problem) = send(&app, "GET", "/events", &[("host", "evil.example")], "").await;
    assert_eq!((status, &problem["type"]), (403, &json!("/problems/forbidden")));
    // A page that posts across origins, with a media type that needs no permission.
    let headers = [("content-type", "text/plain"), ("origin", "https://evil.example")];
    assert_eq!(send(&app, "POST", "/events", &headers, "{}").await.0, 403);
    // Another port is another origin: whatever runs there.
    let headers = [JSON[0], ("origin", "http://localhost:3000")];
    assert_eq!(send(&app, "POST", "/events", &headers, "{}").await.0, 403);
    let headers = [JSON[0], ("origin", app.base.as_str())];
    assert_eq!(send(&app, "POST", "/events", &headers, "{}").await.0, 422);
    app.stop().await;
}

#[tokio::test]
async fn request_ids_are_taken_over_or_made() {
    let app = TestApp::start().await;
    let given = app.http.get(format!("{}/health", app.base)).header("x-request-id", "abc");
    assert_eq!(given.send().await.unwrap().headers()["x-request-id"], "abc");
    let long = "x".repeat(500);
    let made = app.http.get(format!("{}/health", app.base)).header("x-request-id", long);
    let made = made.send().await.unwrap();
    assert!(made.headers()["x-request-id"].to_str().unwrap().starts_with("req_"));
    app.stop().await;
}

/// Catches: a metric without a description, or of a name that Prometheus advises against.
#[tokio::test]
async fn promtool_finds_nothing_wrong_with_the_metrics() {
    if !tools::is_here("promtool", "--version") {
        return;
    }
    let receiver = Receiver::always(200).await;
    let app = TestApp::start().await;
    let id = app.accept(&receiver.url("/")).await;
    app.wait_for(&id, "delivered").await;
    let (_, _, text) = send(&app, "GET", "/metrics", &[], "").await;
    app.stop().await;
    let text = text.as_str().unwrap().to_owned();
    let checked = tokio::task::spawn_blocking(move || {
        let mut promtool = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        promtool.wait_with_output().unwrap()
    });
    let output = checked.await.unwrap();
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told);
    assert!(output.status.success() && told.is_empty(), "{}: {told}", output.status);
}

#[tokio::test]
async fn metrics_are_told() {
    let receiver = Receiver::always(200).await;
    let app = TestApp::start().await;
    let id = app.accept(&receiver.url("/")).await;
    app.wait_for(&id, "delivered").await;
    let (status, media_type, text) = send(&app, "GET", "/metrics/", &[], "").await;
    assert_eq!(status, 200);
    assert!(media_type.starts_with("text/plain"));
    let text = text.as_str().unwrap();
    for line in [
        "dispatcher_events_total{result=\"accepted\"}",
        "dispatcher_attempts_total{outcome=\"delivered\"}",
        "dispatcher_attempt_seconds_bucket",
        "dispatcher_requests_in_flight",
    ] {
        assert!(text.contains(line), "{line}");
    }
    app.stop().await;
}
