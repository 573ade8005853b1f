//! Tenants and the keys of those who call for them: what is made, shown, changed and ended.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use webhook_dispatcher::domain::ids::DEFAULT_APPLICATION;

use crate::support::{Receiver, TestApp, TestDatabase, eventually};

/// The key of the operator.
pub const ADMIN_KEY: &str = "the-operator's-own-key";
/// A service that asks for keys.
pub const WITH_KEYS: [&str; 2] =
    ["--admin-api-key=the-operator's-own-key", "--webhook-secret=a secret for the tests only"];

/// Makes an application and a key of this role for it, as the operator; answers its id and the key.
pub async fn tenant(app: &TestApp, uid: &str, role: &str) -> (String, String) {
    let (status, made) =
        app.call("POST", "/applications", Some(ADMIN_KEY), Some(&json!({"uid": uid}))).await;
    assert_eq!(status, 201, "{made}");
    (made["id"].as_str().unwrap().to_owned(), key(app, uid, role).await)
}

/// Makes a key, as the operator.
pub async fn key(app: &TestApp, application: &str, role: &str) -> String {
    let path = format!("/applications/{application}/api-keys");
    let (status, made) =
        app.call("POST", &path, Some(ADMIN_KEY), Some(&json!({"role": role}))).await;
    assert_eq!(status, 201, "{made}");
    made["key"].as_str().unwrap().to_owned()
}

/// Posts with an `Idempotency-Key`.
async fn once(app: &TestApp, path: &str, key: &str, body: &Value) -> (u16, Value) {
    let request = app
        .http
        .post(format!("{}{path}", app.base))
        .header("content-type", "application/json")
        .header("idempotency-key", key)
        .body(body.to_string());
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), serde_json::from_str(&answer.text().await.unwrap()).unwrap())
}

/// Catches: `uid` or `name` not stored or not shown, a change that loses the other field, a delete
/// that only hides (`deleted_at` not asked for by a look-up, a list or a change).
#[tokio::test]
async fn an_application_is_made_shown_changed_and_deleted() {
    let app = TestApp::start().await;
    let made = app.make("/applications", json!({"uid": "acme", "name": "Acme & Söhne"})).await;
    let id = made["id"].as_str().unwrap();
    assert!(id.starts_with("app_"), "{made}");
    assert_eq!((&made["uid"], &made["name"]), (&json!("acme"), &json!("Acme & Söhne")));
    for named in [id, "acme"] {
        let (status, shown) = app.call("GET", &format!("/applications/{named}"), None, None).await;
        assert_eq!((status, &shown), (200, &made));
    }
    // Without a uid it has its id for one; without a name its uid.
    let bare = app.make("/applications", json!({})).await;
    assert_eq!((&bare["uid"], &bare["name"]), (&bare["id"], &bare["id"]));

    let change = |named: &str, body: Value| {
        let path = format!("/applications/{named}");
        let app = &app;
        async move { app.call("PATCH", &path, None, Some(&body)).await }
    };
    let (status, renamed) = change("acme", json!({"name": "Acme"})).await;
    assert_eq!((status, &renamed["name"], &renamed["uid"]), (200, &json!("Acme"), &json!("acme")));
    assert_eq!(renamed["created_at"], made["created_at"]);
    let (status, moved) = change(id, json!({"uid": "acme-2"})).await;
    assert_eq!((status, &moved["name"], &moved["uid"]), (200, &json!("Acme"), &json!("acme-2")));
    assert_eq!(change("acme", json!({"name": "x"})).await.0, 404, "that was its old uid");

    let (_, list) = app.call("GET", "/applications?limit=2", None, None).await;
    let ids = |list: &Value| -> Vec<String> {
        let data = list["data"].as_array().unwrap().iter();
        data.map(|one| one["id"].as_str().unwrap().to_owned()).collect()
    };
    // Ids of the same millisecond are in no order of their own.
    let mut newest_first = [bare["id"].as_str().unwrap(), id];
    newest_first.sort_unstable_by(|one, other| other.cmp(one));
    assert_eq!(ids(&list), newest_first);
    let next = format!("/applications?limit=2&cursor={}", list["next_cursor"].as_str().unwrap());
    let (_, rest) = app.call("GET", &next, None, None).await;
    assert_eq!(ids(&rest), [DEFAULT_APPLICATION.to_string()]);
    assert_eq!(rest["next_cursor"], Value::Null);

    assert_eq!(app.call("DELETE", "/applications/acme-2", None, None).await.0, 204);
    for method in ["GET", "DELETE"] {
        let (status, problem) = app.call(method, &format!("/applications/{id}"), None, None).await;
        assert_eq!((status, &problem["type"]), (404, &json!("/problems/application-not-found")));
    }
    assert_eq!(change(id, json!({"name": "x"})).await.0, 404);
    let (_, list) = app.call("GET", "/applications", None, None).await;
    assert_eq!(list["data"].as_array().unwrap().len(), 2);
    app.make("/applications", json!({"uid": "acme-2"})).await;
    app.stop().await;
}

/// Catches: a uid that two applications can have, one that looks like an id, and a conflict that is
/// told as a fault of ours.
#[tokio::test]
async fn a_uid_names_one_application() {
    let app = TestApp::start().await;
    app.make("/applications", json!({"uid": "acme"})).await;
    app.make("/applications", json!({"uid": "other"})).await;
    for (method, path, body) in [
        ("POST", "/applications", json!({"uid": "acme"})),
        ("POST", "/applications", json!({"uid": "default"})),
        ("PATCH", "/applications/other", json!({"uid": "acme"})),
    ] {
        let (status, problem) = app.call(method, path, None, Some(&body)).await;
        assert_eq!((status, &problem["pointer"]), (409, &json!("/uid")), "{method} {body}");
        assert_eq!(problem["type"], "/problems/conflict");
    }
    for (body, pointer) in [
        (json!({"uid": "app_1"}), "/uid"),
        (json!({"uid": ""}), "/uid"),
        (json!({"uid": "a b"}), "/uid"),
        (json!({"uid": "x".repeat(256)}), "/uid"),
        (json!({"uid": 1}), "/uid"),
        (json!({"name": ""}), "/name"),
        (json!({"name": "a\nb"}), "/name"),
        (json!({"name": "x".repeat(256)}), "/name"),
        (json!({"nmae": "x"}), ""),
        (json!([]), ""),
    ] {
        let (status, problem) = app.call("POST", "/applications", None, Some(&body)).await;
        assert_eq!((status, &problem["pointer"]), (422, &json!(pointer)), "{body}");
    }
    app.stop().await;
}

/// Catches: the application of requests that name none renamed away or deleted.
#[tokio::test]
async fn default_stays() {
    let app = TestApp::start().await;
    for named in ["default".to_owned(), DEFAULT_APPLICATION.to_string()] {
        let path = format!("/applications/{named}");
        let (status, problem) = app.call("DELETE", &path, None, None).await;
        assert_eq!((status, &problem["type"]), (409, &json!("/problems/conflict")));
        let body = json!({"uid": "mine"});
        assert_eq!(app.call("PATCH", &path, None, Some(&body)).await.0, 409);
        // What people call it may change.
        let body = json!({"name": "Ours"});
        assert_eq!(app.call("PATCH", &path, None, Some(&body)).await.1["name"], "Ours");
    }
    app.stop().await;
}

/// Catches: a retry that makes a second application or key, an answer that differs, a secret that is
/// shown again, and another body taken for the same.
#[tokio::test]
async fn an_idempotency_key_makes_one_thing() {
    let app = TestApp::start().await;
    let body = json!({"uid": "acme", "name": "Acme"});
    let (status, first) = once(&app, "/applications", "k", &body).await;
    assert_eq!(status, 201);
    assert_eq!(once(&app, "/applications", "k", &body).await, (201, first.clone()));
    let (status, problem) = once(&app, "/applications", "k", &json!({"uid": "other"})).await;
    assert_eq!((status, &problem["type"]), (409, &json!("/problems/idempotency-key-reused")));

    let keys = "/applications/acme/api-keys";
    let body = json!({"role": "viewer"});
    // The same key in another application is another key.
    let (status, mut first) = once(&app, keys, "k", &body).await;
    assert_eq!(status, 201);
    assert!(first["key"].as_str().unwrap().starts_with("whd_"));
    let (status, again) = once(&app, keys, "k", &body).await;
    first.as_object_mut().unwrap().remove("key");
    assert_eq!((status, again), (201, first));
    let (status, problem) = once(&app, keys, "k", &json!({"role": "manager"})).await;
    assert_eq!((status, &problem["type"]), (409, &json!("/problems/idempotency-key-reused")));
    let (_, list) = app.call("GET", keys, None, None).await;
    assert_eq!(list["data"].as_array().unwrap().len(), 1);
    app.stop().await;
}

/// Catches: a key that is shown by a list or a look-up, and a role that cannot be told from another.
#[tokio::test]
async fn a_key_is_shown_once() {
    let app = TestApp::start().await;
    app.make("/applications", json!({"uid": "acme"})).await;
    let body = json!({"role": "producer", "name": "shop", "expires_at": "2100-01-01T00:00:00Z"});
    let mut made = app.make("/applications/acme/api-keys", body).await;
    let key = made["key"].as_str().unwrap().to_owned();
    assert!(key.starts_with(made["hint"].as_str().unwrap()) && key.len() > 40, "{key}");
    assert_eq!((&made["role"], &made["name"]), (&json!("producer"), &json!("shop")));
    assert_eq!(made["expires_at"], "2100-01-01T00:00:00Z");
    made.as_object_mut().unwrap().remove("key");
    let (status, list) = app.call("GET", "/applications/acme/api-keys", None, None).await;
    assert_eq!((status, &list["data"]), (200, &json!([made])));
    let path = format!("/applications/acme/api-keys/{}", made["id"].as_str().unwrap());
    assert_eq!(app.call("GET", &path, None, None).await, (200, made));

    for (body, pointer) in [
        (json!({}), "/role"),
        (json!({"role": null}), "/role"),
        (json!({"role": "admin"}), "/role"),
        (json!({"role": "Viewer"}), "/role"),
        (json!({"role": "viewer", "expires_at": "2020-01-01T00:00:00Z"}), "/expires_at"),
        (json!({"role": "viewer", "expires_at": "soon"}), "/expires_at"),
        (json!({"role": "viewer", "name": ""}), "/name"),
        (json!({"role": "viewer", "rôle": 1}), ""),
    ] {
        let (status, problem) =
            app.call("POST", "/applications/acme/api-keys", None, Some(&body)).await;
        assert_eq!((status, &problem["pointer"]), (422, &json!(pointer)), "{body}");
    }
    app.stop().await;
}

/// Catches: a key, or what it can be made of, kept anywhere in the database.
#[tokio::test]
async fn keys_are_kept_as_hashes_only() {
    let database = TestDatabase::new().await;
    let app = TestApp::on(database.clone(), &WITH_KEYS).await;
    let (_, key) = tenant(&app, "acme", "manager").await;
    // Used, so that whatever notes its use has done so.
    assert_eq!(app.call("GET", "/applications", Some(&key), None).await.0, 200);
    let dump = database.dump().await;
    assert!(dump.contains("acme"), "the dump is one");
    let random = key.strip_prefix("whd_").unwrap();
    for secret in [random, &random[8..], ADMIN_KEY] {
        assert!(!dump.contains(secret), "{secret} stands in the database");
    }
    app.stop().await;
}

/// Catches: a wrong key that an open service ignores, and one of the two headers not read.
#[tokio::test]
async fn both_headers_carry_a_key_and_a_wrong_one_is_refused_in_open_mode_too() {
    let open = TestApp::start().await;
    open.make("/applications", json!({"uid": "acme"})).await;
    let made = open.make("/applications/acme/api-keys", json!({"role": "viewer"})).await;
    let key = made["key"].as_str().unwrap();
    let status = async |name: &str, value: &str| {
        let request = open.http.get(format!("{}/applications", open.base)).header(name, value);
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let list: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        (status, list["data"].as_array().map(Vec::len))
    };
    // The tenant sees itself; who sends no key is the operator here, and sees all.
    assert_eq!(status("authorization", &format!("Bearer {key}")).await, (200, Some(1)));
    assert_eq!(status("authorization", &format!("bearer {key}")).await, (200, Some(1)));
    assert_eq!(status("x-api-key", key).await, (200, Some(1)));
    assert_eq!(status("x-other", key).await, (200, Some(2)));
    // A word that is no key of ours is as good as none, where none is asked for.
    assert_eq!(status("x-api-key", "any word").await, (200, Some(2)));
    for wrong in [&key[..key.len() - 1], "whd_x", &format!("{key}x")] {
        assert_eq!(status("x-api-key", wrong).await, (401, None), "{wrong}");
        assert_eq!(status("authorization", &format!("Bearer {wrong}")).await, (401, None));
    }
    open.stop().await;
}

/// Catches: a revoked or expired key that goes on to open, here or through another process, and a
/// use that is not noted.
#[tokio::test]
async fn a_key_opens_until_it_is_revoked_or_expires() {
    let database = TestDatabase::new().await;
    let app = TestApp::on(database.clone(), &WITH_KEYS).await;
    let other = TestApp::on(database, &WITH_KEYS).await;
    let (_, key) = tenant(&app, "acme", "viewer").await;
    let soon = (chrono::Utc::now() + chrono::Duration::milliseconds(1_500)).to_rfc3339();
    let keys = "/applications/acme/api-keys";
    let body = json!({"role": "viewer", "expires_at": soon});
    let (_, short) = app.call("POST", keys, Some(ADMIN_KEY), Some(&body)).await;
    let short = short["key"].as_str().unwrap();
    let status = async |app: &TestApp, key: &str| {
        app.call("GET", "/applications/acme", Some(key), None).await.0
    };
    assert_eq!((status(&app, &key).await, status(&other, &key).await), (200, 200));
    assert_eq!(status(&other, short).await, 200);
    eventually("it expires", async || (status(&other, short).await == 401).then_some(())).await;

    let (_, list) = app.call("GET", keys, Some(ADMIN_KEY), None).await;
    let list = list["data"].as_array().unwrap();
    assert!(list.iter().all(|key| !key["last_used_at"].is_null()), "{list:?}");
    let lasting = list.iter().find(|key| key["expires_at"].is_null()).unwrap();
    assert_eq!(lasting["revoked_at"], Value::Null);
    let id = lasting["id"].as_str().unwrap();
    let path = format!("{keys}/{id}");
    assert_eq!(app.call("DELETE", &path, Some(ADMIN_KEY), None).await.0, 204);
    assert_eq!(status(&app, &key).await, 401, "at once where it was revoked");
    eventually("revoked everywhere", async || (status(&other, &key).await == 401).then_some(()))
        .await;
    let (_, shown) = app.call("GET", &path, Some(ADMIN_KEY), None).await;
    let revoked_at = shown["revoked_at"].clone();
    assert!(revoked_at.is_string(), "{shown}");
    assert_eq!(app.call("DELETE", &path, Some(ADMIN_KEY), None).await.0, 204, "again");
    let (_, shown) = app.call("GET", &path, Some(ADMIN_KEY), None).await;
    assert_eq!(shown["revoked_at"], revoked_at);
    app.stop().await;
    other.stop().await;
}

/// Catches: keys that outlive their application, one that is made while it is deleted included, and
/// events that a deleted application still accepts or sends.
#[tokio::test]
async fn a_deleted_application_accepts_nothing() {
    let receiver = Receiver::always(503).await;
    let database = TestDatabase::new().await;
    let flags = [WITH_KEYS.as_slice(), &["--max-attempts=1000"]].concat();
    let app = TestApp::on(database.clone(), &flags).await;
    let other = TestApp::on(database, &flags).await;
    let (id, key) = tenant(&app, "acme", "manager").await;
    let event = json!({"payload": 1, "target_url": receiver.url("/")});
    for one in [&app, &other] {
        assert_eq!(one.call("POST", "/events", Some(&key), Some(&event)).await.0, 202);
    }
    assert_eq!(app.call("DELETE", "/applications/acme", Some(ADMIN_KEY), None).await.0, 204);
    // A key that another process was making at that moment.
    sqlx::query("update api_key set revoked_at = null").execute(app.store.pool()).await.unwrap();
    assert_eq!(app.call("POST", "/events", Some(&key), Some(&event)).await.0, 401);
    eventually("the other process knows", async || {
        let (status, answer) = other.call("POST", "/events", Some(&key), Some(&event)).await;
        assert_ne!(status, 202, "{answer}");
        (status == 401).then_some(())
    })
    .await;
    for application in [id.as_str(), "acme"] {
        let event = json!({"payload": 1, "type": "a", "application": application});
        let (status, problem) = app.call("POST", "/events", Some(ADMIN_KEY), Some(&event)).await;
        assert_eq!((status, &problem["pointer"]), (404, &json!("/application")));
    }
    eventually("what waited is cancelled", async || {
        let states: Vec<String> = sqlx::query_scalar("select state from delivery")
            .fetch_all(app.store.pool())
            .await
            .unwrap();
        let states: BTreeSet<_> = states.into_iter().collect();
        let waiting: i64 = sqlx::query_scalar("select count(*) from delivery_queue")
            .fetch_one(app.store.pool())
            .await
            .unwrap();
        (waiting == 0 && states.iter().eq(["cancelled"])).then_some(())
    })
    .await;
    app.stop().await;
    other.stop().await;
}

/// Catches: a creation that is sent again, after what it made was deleted, and is answered as if
/// something of its request did not exist; a batch whose own key is none.
#[tokio::test]
async fn a_creation_that_is_sent_again_after_the_deletion_is_a_conflict() {
    let app = TestApp::start().await;
    let body = json!({"target_url": "http://127.0.0.1:9/", "event_types": "a"});
    for (path, body) in [("/applications", json!({"uid": "gone"})), ("/subscriptions", body)] {
        let (status, made) = once(&app, path, path, &body).await;
        assert_eq!(status, 201, "{made}");
        let one = format!("{path}/{}", made["id"].as_str().unwrap());
        assert_eq!(app.call("DELETE", &one, None, None).await.0, 204);
        let (status, problem) = once(&app, path, path, &body).await;
        assert_eq!((status, &problem["type"]), (409, &json!("/problems/conflict")), "{problem}");
    }
    let batch = json!({"events": [{"payload": 1, "type": "a"}]});
    let (status, problem) = once(&app, "/events/batch", "", &batch).await;
    assert_eq!((status, &problem["header"]), (422, &json!("Idempotency-Key")), "{problem}");
    app.stop().await;
}

/// Catches: a subscription that is made in another application than its body says, or in one that is
/// not the caller's; two names that differ.
#[tokio::test]
async fn the_body_of_a_subscription_may_name_its_application() {
    let app = TestApp::with(&WITH_KEYS).await;
    let (id, key) = tenant(&app, "acme", "manager").await;
    tenant(&app, "rival", "manager").await;
    let body = |application: &str| json!({"target_url": "http://127.0.0.1:9/", "event_types": "a", "application": application});
    for (key, path, named, status) in [
        (ADMIN_KEY, "/subscriptions", "acme", 201),
        (ADMIN_KEY, "/subscriptions?application=acme", id.as_str(), 201),
        (ADMIN_KEY, "/subscriptions?application=rival", "acme", 422),
        (ADMIN_KEY, "/subscriptions", "nobody", 404),
        (&key, "/subscriptions", "acme", 201),
        (&key, "/subscriptions", "rival", 404),
        (&key, "/subscriptions", "default", 404),
    ] {
        let (answered, answer) = app.call("POST", path, Some(key), Some(&body(named))).await;
        assert_eq!(answered, status, "{path} {named}: {answer}");
        if status == 201 {
            assert_eq!(answer["application_id"], id.as_str());
            let path = format!("/subscriptions/{}", answer["id"].as_str().unwrap());
            let (status, problem) = app.call("PATCH", &path, Some(key), Some(&body("acme"))).await;
            assert_eq!(status, 422, "{problem}");
        } else {
            assert_eq!(answer["pointer"], "/application", "{answer}");
        }
    }
    let (_, list) = app.call("GET", "/subscriptions", Some(&key), None).await;
    assert_eq!(list["data"].as_array().unwrap().len(), 3);
    app.stop().await;
}
