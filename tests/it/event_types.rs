//! The catalogue of event types: who may change it, what it shows, and what publishing asks of it.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{TestApp, TestDatabase, eventually};

const ADMIN: &str = "the-key-of-the-operator";
const WITH_KEYS: &[&str] =
    &["--admin-api-key=the-key-of-the-operator", "--webhook-secret=a secret for the tests only"];

/// Calls with a key; answers status and body.
async fn call(app: &TestApp, key: &str, method: Method, path: &str, body: &Value) -> (u16, Value) {
    let request = app
        .http
        .request(method, format!("{}{path}", app.base))
        .header("authorization", format!("Bearer {key}"))
        .header("content-type", "application/json");
    let request = if body.is_null() { request } else { request.body(body.to_string()) };
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default())
}

async fn get(app: &TestApp, key: &str, path: &str) -> (u16, Value) {
    call(app, key, Method::GET, path, &Value::Null).await
}

async fn post(app: &TestApp, key: &str, path: &str, body: Value) -> (u16, Value) {
    call(app, key, Method::POST, path, &body).await
}

async fn patch(app: &TestApp, key: &str, path: &str, body: Value) -> (u16, Value) {
    call(app, key, Method::PATCH, path, &body).await
}

async fn delete(app: &TestApp, key: &str, path: &str) -> u16 {
    call(app, key, Method::DELETE, path, &Value::Null).await.0
}

/// Makes an application and a key of it.
async fn tenant(app: &TestApp, uid: &str, role: &str) -> String {
    let (status, _) = post(app, ADMIN, "/applications", json!({"uid": uid})).await;
    assert!(status == 201 || status == 409);
    key_of(app, uid, role).await
}

async fn key_of(app: &TestApp, uid: &str, role: &str) -> String {
    let path = format!("/applications/{uid}/api-keys");
    let (status, body) = post(app, ADMIN, &path, json!({"role": role})).await;
    assert_eq!(status, 201, "{body}");
    body["key"].as_str().unwrap().to_owned()
}

fn names(body: &Value) -> Vec<&str> {
    body["data"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect()
}

fn amounts() -> Value {
    json!({"type": "object", "required": ["amount"],
           "properties": {"amount": {"type": "integer", "minimum": 1}}})
}

/// Broken by: a PATCH that resets what it does not name, or does not take away what it nulls; a list
/// that forgets a filter or repeats a row; a POST that overwrites, or repeats under its key.
#[tokio::test]
async fn a_type_is_made_shown_changed_deprecated_and_deleted() {
    let app = TestApp::with(WITH_KEYS).await;
    let whole = json!({"name": "invoice.paid", "description": "Paid in full.", "schema": amounts(),
        "checks_payload": true, "version": "2", "example": {"amount": 7}});
    let (status, made) = post(&app, ADMIN, "/event-types", whole.clone()).await;
    assert_eq!(status, 201, "{made}");
    for field in ["name", "description", "schema", "checks_payload", "version", "example"] {
        assert_eq!(made[field], whole[field], "{field}");
    }
    assert_eq!((&made["scope"], &made["deprecated"]), (&json!("application"), &json!(false)));
    let (status, problem) = post(&app, ADMIN, "/event-types", whole.clone()).await;
    assert_eq!((status, &problem["pointer"]), (409, &json!("/name")), "{problem}");

    let path = "/event-types/invoice.paid";
    let (status, changed) = patch(&app, ADMIN, path, json!({"deprecated": true})).await;
    assert_eq!((status, &changed["deprecated"]), (200, &json!(true)), "{changed}");
    assert!(changed["deprecated_at"].is_string());
    assert_eq!(changed["schema"], whole["schema"]);
    let taken = json!({"description": null, "version": null, "example": null});
    let (_, changed) = patch(&app, ADMIN, path, taken).await;
    for field in ["description", "version", "example"] {
        assert_eq!(changed[field], Value::Null, "{field}");
    }
    assert_eq!((&changed["checks_payload"], &changed["deprecated"]), (&json!(true), &json!(true)));
    assert_eq!(get(&app, ADMIN, path).await, (200, changed));
    let (status, problem) = patch(&app, ADMIN, path, json!({"schema": null})).await;
    assert_eq!((status, &problem["pointer"]), (422, &json!("/checks_payload")), "{problem}");
    let (status, problem) = patch(&app, ADMIN, path, json!({"name": "other"})).await;
    assert_eq!((status, &problem["type"]), (422, &json!("/problems/invalid-request")));

    for name in ["invoice.voided", "invoices", "load", "order.created"] {
        let (status, _) = post(&app, ADMIN, "/event-types", json!({"name": name})).await;
        assert_eq!(status, 201, "{name}");
    }
    let (_, first) = get(&app, ADMIN, "/event-types?limit=2").await;
    assert_eq!(names(&first), ["invoice.paid", "invoice.voided"]);
    let cursor = first["next_cursor"].as_str().unwrap();
    let (_, second) = get(&app, ADMIN, &format!("/event-types?limit=4&cursor={cursor}")).await;
    assert_eq!(names(&second), ["invoices", "load", "order.created"]);
    assert_eq!(second["next_cursor"], Value::Null);
    for (query, expected) in [
        ("prefix=invoice.", &["invoice.paid", "invoice.voided"][..]),
        ("prefix=invoice", &["invoice.paid", "invoice.voided", "invoices"]),
        ("deprecated=true", &["invoice.paid"]),
        ("deprecated=false&prefix=invoice", &["invoice.voided", "invoices"]),
    ] {
        let (_, page) = get(&app, ADMIN, &format!("/event-types?{query}")).await;
        assert_eq!(names(&page), expected, "{query}");
    }
    // A type may be called as the route beside it.
    assert_eq!(get(&app, ADMIN, "/event-types/load").await.0, 200);
    assert_eq!(delete(&app, ADMIN, "/event-types/load").await, 204);
    assert_eq!(delete(&app, ADMIN, path).await, 204);
    assert_eq!(delete(&app, ADMIN, path).await, 404);
    let (status, problem) = get(&app, ADMIN, path).await;
    assert_eq!((status, &problem["type"]), (404, &json!("/problems/event-type-not-found")));
    app.stop().await;
}

/// Broken by: a POST that ignores its key, or takes another request for the same.
#[tokio::test]
async fn a_repeated_post_is_answered_as_the_first_one() {
    let app = TestApp::start().await;
    let post = async |path: &str, body: Value| {
        let request = app.http.post(format!("{}{path}", app.base)).header("idempotency-key", "k");
        let request = request.header("content-type", "application/json").body(body.to_string());
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(post("/event-types", json!({"name": "a"})).await, 201);
    assert_eq!(post("/event-types", json!({"name": "a"})).await, 201);
    assert_eq!(post("/event-types", json!({"name": "b"})).await, 409);
    // Keys of the instance are apart from those of the application `default`.
    assert_eq!(post("/event-types?scope=instance", json!({"name": "c"})).await, 201);
    assert_eq!(post("/event-types?scope=instance", json!({"name": "d"})).await, 409);
    app.stop().await;
}

/// Broken by: a place that is not told, or is another's; a definition that is not checked as a whole.
#[tokio::test]
async fn what_is_no_type_is_refused_with_its_place() {
    let app = TestApp::start().await;
    for (body, pointer) in [
        (json!({}), "/name"),
        (json!({"name": "a b"}), "/name"),
        (json!({"name": "a", "description": "x".repeat(2_001)}), "/description"),
        (
            json!({"name": "a", "schema": {"properties": {"a": {"type": "strin"}}}}),
            "/schema/properties/a/type",
        ),
        (
            json!({"name": "a", "schema": {"items": {"$ref": "http://127.0.0.1:1/a.json"}}}),
            "/schema/items/$ref",
        ),
        (json!({"name": "a", "schema": amounts(), "example": {"amount": 0}}), "/example/amount"),
        (json!({"name": "a", "checks_payload": true}), "/checks_payload"),
        (json!({"name": "a", "deprecated": "yes"}), "/deprecated"),
        (json!({"name": "a", "versoin": "1"}), ""),
    ] {
        let (status, problem) = app.post("/event-types", &body).await;
        assert_eq!((status.as_u16(), &problem["pointer"]), (422, &json!(pointer)), "{problem}");
    }
    for query in [
        "scope=all",
        "scope=instance&application=default",
        "prefix=a%00",
        "deprecated=1",
        "cursor=x",
    ] {
        let (status, _) = app.get(&format!("/event-types?{query}")).await;
        assert_eq!(status.as_u16(), 422, "{query}");
    }
    app.stop().await;
}

/// Broken by: a look-up that does not name the application; an instance's type that wins over the
/// application's own; a role that is not asked for.
#[tokio::test]
async fn an_application_sees_its_own_and_the_instances_types_and_changes_its_own() {
    let app = TestApp::with(WITH_KEYS).await;
    let (ada, bob) = (tenant(&app, "ada", "manager").await, tenant(&app, "bob", "manager").await);
    for name in ["shared", "hidden"] {
        let body = json!({"name": name, "version": "instance"});
        assert_eq!(post(&app, ADMIN, "/event-types?scope=instance", body).await.0, 201);
    }
    for name in ["hidden", "own"] {
        let body = json!({"name": name, "version": "ada"});
        assert_eq!(post(&app, &ada, "/event-types", body).await.0, 201);
    }
    let seen = async |key: &str, query: &str| {
        let (status, page) = get(&app, key, &format!("/event-types{query}")).await;
        assert_eq!(status, 200, "{page}");
        let of = |one: &Value| format!("{} {}", one["name"], one["version"]).replace('"', "");
        page["data"].as_array().unwrap().iter().map(of).collect::<Vec<_>>().join(", ")
    };
    assert_eq!(seen(&ada, "").await, "hidden ada, own ada, shared instance");
    assert_eq!(seen(&ada, "?scope=application").await, "hidden ada, own ada");
    assert_eq!(seen(&ada, "?scope=instance").await, "hidden instance, shared instance");
    assert_eq!(seen(&bob, "").await, "hidden instance, shared instance");
    assert_eq!(seen(ADMIN, "?application=ada").await, "hidden ada, own ada, shared instance");
    let version = async |key: &str, path: &str| get(&app, key, path).await.1["version"].clone();
    assert_eq!(version(&ada, "/event-types/hidden").await, "ada");
    assert_eq!(version(&bob, "/event-types/hidden").await, "instance");
    assert_eq!(version(&ada, "/event-types/hidden?scope=instance").await, "instance");

    // What is another's is not there, by whatever way.
    assert_eq!(get(&app, &bob, "/event-types/own").await.0, 404);
    assert_eq!(get(&app, &bob, "/event-types/own?application=ada").await.0, 404);
    assert_eq!(patch(&app, &bob, "/event-types/own?application=ada", json!({})).await.0, 404);
    assert_eq!(delete(&app, &bob, "/event-types/own").await, 404);
    assert_eq!(post(&app, &bob, "/event-types?application=ada", json!({"name": "x"})).await.0, 404);
    // Without the scope it is the application's catalogue that is changed, which has none.
    assert_eq!(patch(&app, &ada, "/event-types/shared", json!({"version": "x"})).await.0, 404);
    for role in ["manager", "dispatcher", "producer", "viewer"] {
        let key = key_of(&app, "ada", role).await;
        let own = if role == "manager" { 200 } else { 403 };
        assert_eq!(patch(&app, &key, "/event-types/own", json!({})).await.0, own, "{role}");
        assert_eq!(post(&app, &key, "/event-types/load", Value::Null).await.0, own, "{role}");
        let of_instance = "/event-types/shared?scope=instance";
        assert_eq!(patch(&app, &key, of_instance, json!({"version": "x"})).await.0, 403, "{role}");
        assert_eq!(delete(&app, &key, of_instance).await, 403, "{role}");
        let load = post(&app, &key, "/event-types/load?scope=instance", Value::Null).await;
        assert_eq!(load.0, 403, "{role}");
        let reads = if role == "producer" { 403 } else { 200 };
        assert_eq!(get(&app, &key, "/event-types").await.0, reads, "{role}");
    }
    assert_eq!(delete(&app, ADMIN, "/event-types/shared?scope=instance").await, 204);
    app.stop().await;
}

/// Broken by: a check that is left out in one of the two routes, or after the commit; a pointer that
/// is not into the body; a type of another application that is checked by.
#[tokio::test]
async fn payloads_are_checked_before_anything_is_stored() {
    let app = TestApp::with(WITH_KEYS).await;
    tenant(&app, "ada", "manager").await;
    let checked = json!({"name": "paid", "schema": amounts(), "checks_payload": true});
    let told = json!({"name": "told", "schema": amounts()});
    for body in [&checked, &told] {
        assert_eq!(post(&app, ADMIN, "/event-types", body.clone()).await.0, 201);
    }
    let event = |name: &str, amount: Value| json!({"type": name, "payload": {"amount": amount}});
    let (status, problem) = post(&app, ADMIN, "/events", event("paid", json!("7"))).await;
    assert_eq!((status, &problem["type"]), (422, &json!("/problems/payload-refused")), "{problem}");
    assert_eq!(problem["pointer"], "/payload/amount");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("at /amount: it is not of type \"integer\""), "{detail}");
    let (_, problem) = post(&app, ADMIN, "/events", json!({"type": "paid", "payload": 1})).await;
    assert_eq!(problem["pointer"], "/payload");

    let batch = json!({"events": [event("paid", json!(7)), event("paid", json!(0)),
                                  event("told", json!("7")), event("other", json!("7"))]});
    let (status, body) = post(&app, ADMIN, "/events/batch", batch).await;
    assert_eq!(status, 202, "{body}");
    let results = body["results"].as_array().unwrap();
    let statuses: Vec<_> = results.iter().map(|one| one["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["accepted", "refused", "accepted", "accepted"]);
    assert_eq!(results[1]["problem"]["pointer"], "/events/1/payload/amount");
    let mut elsewhere = event("paid", json!("7"));
    elsewhere["application"] = json!("ada");
    assert_eq!(post(&app, ADMIN, "/events", elsewhere).await.0, 202);
    let stored: i64 =
        sqlx::query_scalar("select count(*) from event").fetch_one(app.store.pool()).await.unwrap();
    assert_eq!(stored, 4);
    app.stop().await;
}

/// A payload that is too much to be checked beside others. Broken by: a result that is lost between
/// the threads.
#[tokio::test]
async fn large_payloads_are_checked_too() {
    let app = TestApp::start().await;
    let schema = json!({"items": {"required": ["a"]}});
    let body = json!({"name": "many", "schema": schema, "checks_payload": true});
    assert_eq!(app.post("/event-types", &body).await.0.as_u16(), 201);
    let mut items = vec![json!({"a": 1}); 100_000];
    let send = async |items: &Vec<Value>| {
        let (status, body) = app.post("/events", &json!({"type": "many", "payload": items})).await;
        (status.as_u16(), body["pointer"].clone())
    };
    assert_eq!(send(&items).await, (202, Value::Null));
    items[99_999] = json!({});
    assert_eq!(send(&items).await, (422, json!("/payload/99999")));
    app.stop().await;
}

/// Broken by: a setting that is not kept or not asked; a catalogue that is not looked into; a name
/// that is not suggested.
#[tokio::test]
async fn an_application_may_refuse_unknown_types() {
    let app = TestApp::with(WITH_KEYS).await;
    let key = tenant(&app, "ada", "manager").await;
    let (_, shown) = get(&app, &key, "/applications/ada").await;
    assert_eq!(shown["accepts_unknown_types"], true);
    let body = json!({"name": "invoice.paid"});
    assert_eq!(post(&app, &key, "/event-types", body).await.0, 201);
    let of_instance = json!({"name": "shared"});
    assert_eq!(post(&app, ADMIN, "/event-types?scope=instance", of_instance).await.0, 201);
    let send =
        async |name: &str| post(&app, &key, "/events", json!({"type": name, "payload": 1})).await;
    assert_eq!(send("invoice.payed").await.0, 202);
    let body = json!({"accepts_unknown_types": false});
    let (status, shown) = patch(&app, &key, "/applications/ada", body).await;
    assert_eq!((status, &shown["accepts_unknown_types"]), (200, &json!(false)));
    let (status, problem) = send("invoice.payed").await;
    assert_eq!((status, &problem["type"]), (422, &json!("/problems/unknown-event-type")));
    assert_eq!(problem["pointer"], "/type");
    assert!(problem["detail"].as_str().unwrap().contains("did you mean `invoice.paid`?"));
    assert_eq!(send("invoice.paid").await.0, 202);
    assert_eq!(send("shared").await.0, 202);
    // An event without a type is of no unknown one.
    let untyped = json!({"payload": 1, "target_url": "http://127.0.0.1:9/"});
    assert_eq!(post(&app, &key, "/events", untyped).await.0, 202);
    let strict = json!({"uid": "eve", "accepts_unknown_types": false});
    assert_eq!(post(&app, ADMIN, "/applications", strict).await.0, 201);
    let event = json!({"type": "x", "payload": 1, "application": "eve"});
    assert_eq!(post(&app, ADMIN, "/events", event).await.0, 422);
    app.stop().await;
}

/// Broken by: an answer that is remembered for ever, there (`time_to_live`) or here (`forget`), or a
/// compiled schema that is found by less than its revision.
#[tokio::test]
async fn a_change_counts_here_at_once_and_elsewhere_soon() {
    let database = TestDatabase::new().await;
    let (here, there) =
        (TestApp::on(database.clone(), &[]).await, TestApp::on(database, &[]).await);
    let publishes = async |app: &TestApp| {
        app.post("/events", &json!({"type": "paid", "payload": {"amount": 5}})).await.0.as_u16()
    };
    assert_eq!((publishes(&here).await, publishes(&there).await), (202, 202));
    let change = async |path: &str, method: Method, body: Value| {
        let (status, body) = call(&here, "", method, path, &body).await;
        assert!(status < 300, "{body}");
    };
    let body = json!({"name": "paid", "schema": amounts(), "checks_payload": true});
    change("/event-types", Method::POST, body).await;
    assert_eq!(publishes(&here).await, 202);
    for (minimum, expected) in [(6, 422), (5, 202), (9, 422)] {
        let schema = json!({"properties": {"amount": {"minimum": minimum}}});
        change("/event-types/paid", Method::PATCH, json!({"schema": schema})).await;
        assert_eq!(publishes(&here).await, expected, "{minimum}");
        eventually("the change is seen by the other one", async || {
            (publishes(&there).await == expected).then_some(())
        })
        .await;
    }
    change("/event-types/paid", Method::DELETE, Value::Null).await;
    assert_eq!(publishes(&here).await, 202);
    here.stop().await;
    there.stop().await;
}

/// Broken by: a second load that fails, doubles or overwrites.
#[tokio::test]
async fn the_standard_catalogue_is_loaded_once() {
    let app = TestApp::start().await;
    let own = json!({"name": "invoice.paid", "description": "Ours."});
    let path = "/event-types?scope=instance";
    assert_eq!(app.post(path, &own).await.0.as_u16(), 201);
    let load = async |query: &str| {
        let (status, body) = app.post(&format!("/event-types/load{query}"), &Value::Null).await;
        assert_eq!(status.as_u16(), 200, "{body}");
        let there = body["already_there"].as_array().unwrap().len();
        (usize::try_from(body["added"].as_u64().unwrap()).unwrap(), there)
    };
    let (added, there) = load("?scope=instance").await;
    assert!(added >= 50 && there == 1, "{added} {there}");
    assert_eq!(load("?scope=instance").await, (0, added + 1));
    assert_eq!(load("").await, (added + 1, 0), "an application's catalogue is apart");
    let (_, shown) = app.get("/event-types/invoice.paid?scope=instance").await;
    assert_eq!(shown["description"], "Ours.");
    let (_, shown) = app.get("/event-types/ticket.sla_breach?scope=instance").await;
    assert_eq!(shown["example"]["ticket_id"], "tkt_9");
    app.stop().await;
}
