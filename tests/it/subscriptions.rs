//! Subscriptions as their owners see them: what is taken, shown, changed and ended.

use serde_json::{Value, json};
use webhook_dispatcher::domain::ids::DEFAULT_APPLICATION;

use crate::support::{TestApp, TestDatabase, process::ENCRYPTION_KEY};

const TARGET: &str = "http://127.0.0.1:9/hook";

/// What there is of a subscription, but for what the service adds.
fn settings(shown: &Value) -> Value {
    let mut shown = shown.clone();
    let object = shown.as_object_mut().unwrap();
    for name in ["id", "application_id", "revision", "created_at", "updated_at", "secret"] {
        object.remove(name);
    }
    let disabled = object.remove("disabled").unwrap();
    assert_eq!(disabled.is_null(), object["is_active"] == true, "{disabled}");
    shown
}

fn defaults() -> Value {
    json!({
        "uid": null, "target_url": TARGET, "event_types": ["a"], "filter": null, "method": "POST",
        "headers": {}, "signing": "standard", "signature_headers": "standard", "is_active": true,
        "disable_after_seconds": null,
        "timeout_seconds": null, "retry": null, "rate_limit": null, "max_in_flight": null,
        "payload_format": "envelope",
        "schema_version": "1", "has_inbound_secret": false, "inbound_type_header": null, "description": null, "metadata": null,
        "managed_by": null,
    })
}

fn everything() -> Value {
    json!({
        "uid": "mine", "target_url": TARGET, "event_types": ["invoice.*", "user.created"],
        "filter": {"data.amount": {"gte": 100}}, "method": "PUT",
        "headers": {"Authorization": "Bearer hush", "X-Tenant": "7"},
        "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "signing": "standard",
        "is_active": false, "disable_after_seconds": 86_400, "timeout_seconds": 2.5, "retry": [60.0, 300.0],
        "rate_limit": {"count": 10, "per_seconds": 60.0, "burst": 2}, "max_in_flight": 3,
        "payload_format": "raw",
        "schema_version": "2026-01", "signature_headers": "both",
        "inbound_secret": "twenty-four bytes are ok", "inbound_type_header": "x-github-event", "description": "for the shop",
        "metadata": {"team": ["a", 1.0]},
    })
}

/// As [`everything`] is shown.
fn everything_shown() -> Value {
    let mut shown = everything();
    let object = shown.as_object_mut().unwrap();
    object.remove("secret");
    object.remove("inbound_secret");
    object.insert("has_inbound_secret".to_owned(), json!(true));
    object.insert("managed_by".to_owned(), json!(null));
    object.insert(
        "headers".to_owned(),
        json!({"Authorization": "[redacted]", "X-Tenant": "[redacted]"}),
    );
    shown
}

fn minimal() -> Value {
    json!({"target_url": TARGET, "event_types": ["a"]})
}

async fn change(app: &TestApp, method: &str, name: &str, body: Value) -> Value {
    let path = format!("/subscriptions/{name}");
    let (status, shown) = app.call(method, &path, None, Some(&body)).await;
    assert_eq!(status, 200, "{method} {body}: {shown}");
    shown
}

async fn show(app: &TestApp, name: &str) -> Value {
    let (status, shown) = app.call("GET", &format!("/subscriptions/{name}"), None, None).await;
    assert_eq!(status, 200, "{shown}");
    shown
}

/// Catches: a field that is dropped on the way in or out, a default that is not the documented one,
/// a secret or a header's value that is shown again, a uid that is no name.
#[tokio::test]
async fn a_subscription_is_made_and_shown() {
    let app = TestApp::start().await;
    let made = app.make("/subscriptions", minimal()).await;
    assert_eq!(settings(&made), defaults());
    assert!(made["id"].as_str().unwrap().starts_with("sub_"), "{made}");
    assert_eq!(made["application_id"], DEFAULT_APPLICATION.to_string());
    assert_eq!(made["revision"], 1);
    let secret = made["secret"].as_str().unwrap();
    assert!(secret.starts_with("whsec_") && secret.len() == 50, "{secret}");

    let full = app.make("/subscriptions", everything()).await;
    assert_eq!(settings(&full), everything_shown());
    assert_eq!(full["secret"], everything()["secret"]);
    let mut shown = full.clone();
    shown.as_object_mut().unwrap().remove("secret");
    assert_eq!(show(&app, "mine").await, shown);
    assert_eq!(show(&app, full["id"].as_str().unwrap()).await, shown);
    let (_, list) = app.call("GET", "/subscriptions", None, None).await;
    assert_eq!(list["data"][0], shown);
    let (status, secret) = app.call("GET", "/subscriptions/mine/secret", None, None).await;
    assert_eq!((status, secret), (200, json!({"secret": everything()["secret"]})));

    // Any other text is a secret too, by its own bytes; and none is made where nothing signs.
    let text = json!({"target_url": TARGET, "event_types": "a", "secret": "any other long text"});
    assert_eq!(app.make("/subscriptions", text.clone()).await["secret"], text["secret"]);
    let unsigned = json!({"target_url": TARGET, "event_types": "a", "signing": "none"});
    let unsigned = app.make("/subscriptions", unsigned).await;
    assert_eq!(unsigned["secret"], Value::Null);
    let path = format!("/subscriptions/{}/secret", unsigned["id"].as_str().unwrap());
    assert_eq!(app.call("GET", &path, None, None).await.0, 409);
    // Turned on, it needs one, and shows it once.
    let path = unsigned["id"].as_str().unwrap();
    let signed = change(&app, "PATCH", path, json!({"signing": "standard"})).await;
    assert!(signed["secret"].as_str().unwrap().starts_with("whsec_"));
    assert_eq!(
        change(&app, "PATCH", path, json!({"signing": "none"})).await["secret"],
        json!(null)
    );
    let again = change(&app, "PATCH", path, json!({"signing": "standard"})).await;
    assert_eq!(again["secret"], Value::Null, "the one from before signs again");
    app.stop().await;
}

/// Catches: an alias that is not read, and one that wins over the name beside it.
#[tokio::test]
async fn other_systems_names_mean_the_same() {
    let app = TestApp::start().await;
    for (name, value) in [
        ("event_types", json!(["a", "b.*"])),
        ("events", json!(["a", "b.*"])),
        ("event_type", json!(["a", "b.*"])),
    ] {
        let made = app.make("/subscriptions", json!({"url": TARGET, name: value})).await;
        assert_eq!((&made["event_types"], &made["target_url"]), (&value, &json!(TARGET)));
        let made = app.make("/subscriptions", json!({"target_url": TARGET, name: "*"})).await;
        assert_eq!(made["event_types"], json!(["*"]));
        let id = made["id"].as_str().unwrap();
        let changed = change(&app, "PATCH", id, json!({name: "c", "url": "http://[::1]:9/"})).await;
        assert_eq!(changed["event_types"], json!(["c"]));
        assert_eq!(changed["target_url"], "http://[::1]:9/");
    }
    for (body, pointer) in [
        (json!({"target_url": TARGET, "url": TARGET, "events": "a"}), "/url"),
        (json!({"target_url": TARGET, "event_types": "a", "events": "a"}), "/events"),
        (json!({"target_url": TARGET, "events": "a", "event_type": "a"}), "/event_type"),
    ] {
        let (status, problem) = app.call("POST", "/subscriptions", None, Some(&body)).await;
        assert_eq!((status, &problem["pointer"]), (422, &json!(pointer)), "{body}");
    }
    app.stop().await;
}

/// Catches: a PUT that leaves something as it was, a PATCH that touches something else, null that
/// means nothing, a redacted header that loses its value or is stored as `[redacted]`.
#[tokio::test]
async fn put_replaces_patch_merges_and_null_is_the_default() {
    let app = TestApp::start().await;
    let full = app.make("/subscriptions", everything()).await;
    let id = full["id"].as_str().unwrap();
    let inbound = json!({"inbound_secret": null});

    // What was shown can be sent back, but for what the service adds.
    let mut sent = everything_shown();
    for name in ["has_inbound_secret", "managed_by"] {
        sent.as_object_mut().unwrap().remove(name);
    }
    assert_eq!(settings(&change(&app, "PUT", "mine", sent.clone()).await), everything_shown());
    assert_eq!(stored_headers(&app, id).await.len(), 2);
    let put = change(&app, "PUT", "mine", minimal()).await;
    let mut expected = defaults();
    expected["uid"] = json!("mine");
    expected["has_inbound_secret"] = json!(true);
    assert_eq!(settings(&put), expected);
    let patched = change(&app, "PATCH", "mine", inbound).await;
    expected["has_inbound_secret"] = json!(false);
    assert_eq!(settings(&patched), expected);
    let (_, secret) = app.call("GET", "/subscriptions/mine/secret", None, None).await;
    assert_eq!(secret["secret"], everything()["secret"], "it stays");

    // Each field alone, there and back.
    let mut body = everything();
    for name in ["uid", "secret", "target_url", "event_types"] {
        body.as_object_mut().unwrap().remove(name);
    }
    for (name, value) in body.as_object().unwrap() {
        let mut expected = expected.clone();
        let shown_as = if name == "inbound_secret" { "has_inbound_secret" } else { name };
        expected[shown_as] = everything_shown()[shown_as].clone();
        let patched = change(&app, "PATCH", "mine", json!({name: value})).await;
        assert_eq!(settings(&patched), expected, "{name}");
        let back = change(&app, "PATCH", "mine", json!({name: null})).await;
        expected[shown_as] = defaults()[shown_as].clone();
        assert_eq!(settings(&back), expected, "{name}");
    }
    let moved = change(&app, "PATCH", "mine", json!({"uid": "ours"})).await;
    assert_eq!(moved["uid"], "ours");
    assert_eq!(show(&app, "ours").await, show(&app, id).await);
    let unchanged = change(&app, "PATCH", "ours", json!({"description": null})).await;
    assert_eq!(unchanged["revision"], moved["revision"], "nothing has changed");
    app.stop().await;
}

/// The stored headers of a subscription, as the service would send them.
async fn stored_headers(app: &TestApp, id: &str) -> Vec<(String, String)> {
    use webhook_dispatcher::domain::{
        SubscriptionId,
        sealing::{SealingKey, SealingKeys},
        subscription::sealed,
    };
    let id: SubscriptionId = id.parse().unwrap();
    let bytes: Vec<u8> = sqlx::query_scalar(
        "select sealed_headers from subscription_revision where subscription_id = $1
         order by revision desc limit 1",
    )
    .bind(id.uuid())
    .fetch_one(app.store.pool())
    .await
    .unwrap();
    let key: SealingKey = ENCRYPTION_KEY.parse().unwrap();
    let keys = SealingKeys::new(key, Vec::new()).unwrap();
    let opened = keys.open(&bytes, &sealed::headers_of(id)).unwrap();
    let headers: Value = serde_json::from_slice(opened.bytes()).unwrap();
    let headers = headers.as_object().unwrap().iter();
    headers.map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect()
}

/// Catches: a value that is redacted stored as such, in whatever case its name comes; one that is
/// new or left out not taken over.
#[tokio::test]
async fn a_redacted_header_keeps_its_stored_value() {
    let app = TestApp::start().await;
    let made = app.make("/subscriptions", everything()).await;
    let id = made["id"].as_str().unwrap();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let headers = json!({"authorization": "[redacted]", "X-New": "1"});
    for method in ["PATCH", "PUT"] {
        let mut body = minimal();
        body["headers"] = headers.clone();
        let shown = change(&app, method, id, body).await;
        let names: Vec<&String> = shown["headers"].as_object().unwrap().keys().collect();
        assert_eq!(names, ["X-New", "authorization"]);
        let expected = [pair("X-New", "1"), pair("authorization", "Bearer hush")];
        assert_eq!(stored_headers(&app, id).await, expected, "{method}");
    }
    for (method, headers) in [
        ("PATCH", json!({"x-other": "[redacted]"})),
        (
            "PUT",
            json!({
                "X-New": "1", "x-other": "[redacted]"
            }),
        ),
    ] {
        let mut body = minimal();
        body["headers"] = headers;
        let path = format!("/subscriptions/{id}");
        let (status, problem) = app.call(method, &path, None, Some(&body)).await;
        assert_eq!((status, &problem["pointer"]), (422, &json!("/headers")), "{problem}");
    }
    app.stop().await;
}

/// Ids of the same millisecond are in no order of their own.
fn sort_newest_first(ids: &mut [&Value]) {
    ids.sort_by_key(|id| std::cmp::Reverse(id.as_str().unwrap()));
}

/// Catches: a filter that lets others through, a cursor that repeats or skips, a list that shows what
/// is deleted.
#[tokio::test]
async fn lists_are_filtered_and_paged() {
    let app = TestApp::start().await;
    let mut ids = Vec::new();
    for (url, types, is_active) in [
        ("http://127.0.0.1:9/1", json!(["a"]), true),
        ("http://127.0.0.1:9/2", json!(["a", "b.*"]), false),
        ("http://127.0.0.1:9", json!(["b.*"]), true),
        ("http://127.0.0.1:9/2", json!(["*"]), true),
    ] {
        let body = json!({"target_url": url, "event_types": types, "is_active": is_active});
        ids.push(app.make("/subscriptions", body).await["id"].clone());
    }
    let gone = app.make("/subscriptions", minimal()).await;
    let gone = format!("/subscriptions/{}", gone["id"].as_str().unwrap());
    assert_eq!(app.call("DELETE", &gone, None, None).await.0, 204);
    for (query, expected) in [
        ("", vec![3, 2, 1, 0]),
        ("?is_active=true", vec![3, 2, 0]),
        ("?is_active=false", vec![1]),
        ("?event_type=a", vec![1, 0]),
        ("?event_type=b.*", vec![2, 1]),
        ("?event_type=b.c", vec![]),
        ("?target_url=http://127.0.0.1:9/2", vec![3, 1]),
        ("?target_url=http://127.0.0.1:9", vec![2]),
        ("?target_url=http://127.0.0.1:9/2&is_active=true&event_type=*", vec![3]),
        ("?application=default&limit=250", vec![3, 2, 1, 0]),
    ] {
        let (status, list) = app.call("GET", &format!("/subscriptions{query}"), None, None).await;
        let shown: Vec<_> = list["data"].as_array().unwrap().iter().map(|one| &one["id"]).collect();
        let mut expected: Vec<_> = expected.into_iter().map(|place| &ids[place]).collect();
        sort_newest_first(&mut expected);
        assert_eq!((status, shown), (200, expected), "{query}");
        assert_eq!(list["next_cursor"], Value::Null, "{query}");
    }
    let (mut cursor, mut seen) = (String::new(), Vec::new());
    loop {
        let path = format!("/subscriptions?limit=1&is_active=true{cursor}");
        let (_, page) = app.call("GET", &path, None, None).await;
        seen.push(page["data"][0]["id"].clone());
        assert_eq!(page["data"].as_array().unwrap().len(), 1);
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    let mut expected = vec![&ids[3], &ids[2], &ids[0]];
    sort_newest_first(&mut expected);
    assert_eq!(seen.iter().collect::<Vec<_>>(), expected);
    app.stop().await;
}

/// Catches: a change without a revision of its own, a revision that is rewritten, a routing version
/// that is not raised or not that of the change.
#[tokio::test]
async fn each_change_is_a_revision_at_its_routing_version() {
    let app = TestApp::start().await;
    let other = app.make("/subscriptions", minimal()).await;
    let made = app.make("/subscriptions", minimal()).await;
    let path = format!("/subscriptions/{}", made["id"].as_str().unwrap());
    let version = async || -> i64 {
        sqlx::query_scalar("select routing_version from application where uid = 'default'")
            .fetch_one(app.store.pool())
            .await
            .unwrap()
    };
    let start = version().await;
    for (method, path, body) in [
        ("PATCH", path.clone(), Some(json!({"description": "2"}))),
        ("PUT", path.clone(), Some(json!({"target_url": TARGET, "event_types": "b"}))),
        ("POST", format!("{path}/disable"), None),
        ("POST", format!("{path}/disable"), None),
        ("POST", format!("{path}/enable"), None),
        ("POST", format!("{path}/rotate-secret"), Some(json!({}))),
    ] {
        assert_eq!(app.call(method, &path, None, body.as_ref()).await.0, 200, "{method} {path}");
    }
    let end = version().await;
    let of = async |shown: &Value| -> Vec<(i32, i64, Option<String>, Vec<String>, bool)> {
        let id: webhook_dispatcher::domain::SubscriptionId =
            shown["id"].as_str().unwrap().parse().unwrap();
        sqlx::query_as(
            "select revision, routing_version, description, event_types, is_active
             from subscription_revision where subscription_id = $1 order by revision",
        )
        .bind(id.uuid())
        .fetch_all(app.store.pool())
        .await
        .unwrap()
    };
    let row = |revision: i32, description: Option<&str>, types: &str, is_active: bool| {
        let version = start + i64::from(revision) - 1;
        (revision, version, description.map(str::to_owned), vec![types.to_owned()], is_active)
    };
    // The second `disable` changed nothing.
    let expected = [
        row(1, None, "a", true),
        row(2, Some("2"), "a", true),
        row(3, None, "b", true),
        row(4, None, "b", false),
        row(5, None, "b", true),
        row(6, None, "b", true),
    ];
    assert_eq!(of(&made).await, expected);
    assert_eq!(end, start + 5);
    assert_eq!(of(&other).await.len(), 1);
    let current: (i32, i64) =
        sqlx::query_as("select revision, routing_version from subscription where revision > 1")
            .fetch_one(app.store.pool())
            .await
            .unwrap();
    assert_eq!(current, (6, end));
    app.stop().await;
}

/// Catches: of two changes that read the same revision, one that overwrites the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_at_the_same_time_lose_nothing() {
    let database = TestDatabase::new().await;
    let app = TestApp::on(database.clone(), &[]).await;
    let other = TestApp::on(database, &[]).await;
    let made = app.make("/subscriptions", minimal()).await;
    let path = format!("/subscriptions/{}", made["id"].as_str().unwrap());
    let bodies = [
        json!({"description": "x"}),
        json!({"method": "PATCH"}),
        json!({"timeout_seconds": 7}),
        json!({"payload_format": "raw"}),
        json!({"schema_version": "9"}),
        json!({"metadata": [1]}),
        json!({"event_types": "z"}),
        json!({"retry": [1.0]}),
    ];
    let calls = bodies.iter().enumerate().map(|(n, body)| {
        let app = if n % 2 == 0 { &app } else { &other };
        app.call("PATCH", &path, None, Some(body))
    });
    let answers = futures_util::future::join_all(calls).await;
    let (_, shown) = app.call("GET", &path, None, None).await;
    let mut done = 0;
    for (body, (status, answer)) in bodies.iter().zip(answers) {
        let (name, value) = body.as_object().unwrap().iter().next().unwrap();
        if status == 200 {
            let value = if name == "event_types" { json!(["z"]) } else { value.clone() };
            let is_there = shown[name] == value || shown[name].as_f64() == value.as_f64();
            assert!(is_there, "{name}: {shown}");
            done += 1;
        } else {
            // Told, so that the caller can try again.
            assert_eq!((status, &answer["type"]), (409, &json!("/problems/conflict")));
        }
    }
    assert!(done >= 2);
    assert_eq!(shown["revision"], done + 1);
    app.stop().await;
    other.stop().await;
}

/// Catches: what is deleted still found, by any method or name; a uid that stays taken.
#[tokio::test]
async fn what_is_deleted_is_not_there() {
    let app = TestApp::start().await;
    let body = json!({"target_url": TARGET, "event_types": "a", "uid": "mine"});
    let made = app.make("/subscriptions", body.clone()).await;
    let (status, problem) = app.call("POST", "/subscriptions", None, Some(&body)).await;
    assert_eq!((status, &problem["pointer"]), (409, &json!("/uid")));
    let other = app.make("/subscriptions", minimal()).await;
    let path = format!("/subscriptions/{}", other["id"].as_str().unwrap());
    let (status, _) = app.call("PATCH", &path, None, Some(&json!({"uid": "mine"}))).await;
    assert_eq!(status, 409);
    assert_eq!(app.call("DELETE", "/subscriptions/mine", None, None).await, (204, json!("")));
    for name in ["mine", made["id"].as_str().unwrap()] {
        let path = format!("/subscriptions/{name}");
        for (method, path, body) in [
            ("GET", path.clone(), None),
            ("PUT", path.clone(), Some(minimal())),
            ("PATCH", path.clone(), Some(json!({}))),
            ("DELETE", path.clone(), None),
            ("POST", format!("{path}/enable"), None),
            ("POST", format!("{path}/disable"), None),
            ("GET", format!("{path}/secret"), None),
            ("POST", format!("{path}/rotate-secret"), Some(json!({}))),
        ] {
            let (status, problem) = app.call(method, &path, None, body.as_ref()).await;
            let expected = (404, &json!("/problems/subscription-not-found"));
            assert_eq!((status, &problem["type"]), expected, "{method} {path}");
        }
    }
    app.make("/subscriptions", body).await;
    app.stop().await;
}

/// Catches: a retry that makes a second subscription or shows the secret again.
#[tokio::test]
async fn an_idempotency_key_makes_one_subscription() {
    let app = TestApp::start().await;
    let once = async |body: &Value| {
        let request = app
            .http
            .post(format!("{}/subscriptions", app.base))
            .header("content-type", "application/json")
            .header("idempotency-key", "k")
            .body(body.to_string());
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_str::<Value>(&answer.text().await.unwrap()).unwrap())
    };
    let (status, mut first) = once(&minimal()).await;
    assert!(status == 201 && first["secret"].is_string());
    first.as_object_mut().unwrap().remove("secret");
    assert_eq!(once(&minimal()).await, (201, first));
    let (status, problem) = once(&everything()).await;
    assert_eq!((status, &problem["type"]), (409, &json!("/problems/idempotency-key-reused")));
    let (_, list) = app.call("GET", "/subscriptions", None, None).await;
    assert_eq!(list["data"].as_array().unwrap().len(), 1);
    app.stop().await;
}
