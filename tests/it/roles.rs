//! Who may do what, and that tenants do not learn of each other.

use serde_json::{Value, json};

use crate::{
    applications::{WITH_KEYS, key, tenant},
    support::{Receiver, TestApp},
};

/// The roles of an application's keys, in the order of the table.
const ROLES: [&str; 4] = ["manager", "dispatcher", "producer", "viewer"];

/// A request, and whether each of [`ROLES`] may send it.
type Row = (&'static str, &'static str, Option<Value>, [bool; 4]);

fn table() -> Vec<Row> {
    let all = [true; 4];
    let none = [false; 4];
    let manages = [true, false, false, false];
    let publishes = [true, true, true, false];
    let names_targets = [true, true, false, false];
    let reads = [true, true, false, true];
    let typed = json!({"payload": 1, "type": "a"});
    let named = json!({"payload": 1, "target_url": "http://127.0.0.1:9/"});
    let subscription = json!({"target_url": "http://127.0.0.1:9/", "event_types": "a"});
    vec![
        ("GET", "/nothing", None, all),
        ("GET", "/metrics", None, none),
        ("POST", "/events", Some(typed.clone()), publishes),
        ("POST", "/events", Some(named.clone()), names_targets),
        ("POST", "/events", Some(json!({"payload": 1})), names_targets),
        ("POST", "/events/batch", Some(json!({"events": [typed]})), publishes),
        ("POST", "/events/batch", Some(json!({"events": [named]})), names_targets),
        ("GET", "/events", None, reads),
        ("GET", "/events/{event}", None, reads),
        ("GET", "/subscriptions", None, reads),
        ("POST", "/subscriptions", Some(subscription.clone()), manages),
        ("GET", "/subscriptions/{subscription}", None, reads),
        ("PUT", "/subscriptions/{subscription}", Some(subscription), manages),
        ("PATCH", "/subscriptions/{subscription}", Some(json!({"description": "x"})), manages),
        ("POST", "/subscriptions/{subscription}/disable", None, manages),
        ("POST", "/subscriptions/{subscription}/enable", None, manages),
        ("GET", "/subscriptions/{subscription}/secret", None, manages),
        ("POST", "/subscriptions/{subscription}/rotate-secret", Some(json!({})), manages),
        ("POST", "/subscriptions/{subscription}/test", Some(json!({})), manages),
        ("DELETE", "/subscriptions/{subscription}", None, manages),
        ("GET", "/event-types", None, reads),
        ("POST", "/event-types", Some(json!({"name": "role.made"})), manages),
        ("POST", "/event-types/load?scope=instance", Some(json!({})), none),
        ("GET", "/applications", None, reads),
        ("POST", "/applications", Some(json!({})), none),
        ("GET", "/applications/{application}", None, reads),
        ("PATCH", "/applications/{application}", Some(json!({"name": "x"})), manages),
        ("PATCH", "/applications/{application}", Some(json!({"uid": "taken"})), none),
        ("DELETE", "/applications/{application}", None, none),
        ("GET", "/applications/{application}/api-keys", None, manages),
        ("POST", "/applications/{application}/api-keys", Some(json!({"role": "viewer"})), manages),
        ("GET", "/applications/{application}/api-keys/{key}", None, manages),
        ("DELETE", "/applications/{application}/api-keys/{key}", None, manages),
    ]
}

/// What paths of the table stand for in one application.
struct Things {
    application: String,
    event: String,
    subscription: String,
    key: String,
}

impl Things {
    async fn of(app: &TestApp, application: &str, manager: &str) -> Self {
        let id = |answer: &Value| answer["id"].as_str().unwrap().to_owned();
        let body = json!({"target_url": "http://127.0.0.1:9/", "event_types": "a"});
        let (_, subscription) =
            app.call("POST", "/subscriptions", Some(manager), Some(&body)).await;
        let body = json!({"payload": 1, "type": "nobody.cares"});
        let (_, event) = app.call("POST", "/events", Some(manager), Some(&body)).await;
        let keys = format!("/applications/{application}/api-keys");
        let body = json!({"role": "viewer"});
        let (_, key) = app.call("POST", &keys, Some(manager), Some(&body)).await;
        Self {
            application: application.to_owned(),
            event: id(&event),
            subscription: id(&subscription),
            key: id(&key),
        }
    }

    fn path(&self, path: &str) -> String {
        path.replace("{application}", &self.application)
            .replace("{event}", &self.event)
            .replace("{subscription}", &self.subscription)
            .replace("{key}", &self.key)
    }
}

/// Catches: a handler that does not ask what the caller may do, or asks for the wrong thing; a role
/// that may more or less than the table of the documents says.
#[tokio::test]
async fn each_role_may_what_the_table_says() {
    let receiver = Receiver::always(200).await;
    let target = format!("--target-url={}", receiver.url("/"));
    let app = TestApp::with(&[WITH_KEYS.as_slice(), &[target.as_str()]].concat()).await;
    let (id, manager) = tenant(&app, "acme", "manager").await;
    for (column, role) in ROLES.into_iter().enumerate() {
        let key = key(&app, &id, role).await;
        for (method, path, body, may) in table() {
            // What one request deletes, the next has anew.
            let things = Things::of(&app, &id, &manager).await;
            let shown = format!("{role}: {method} {path} {body:?}");
            let path = things.path(path);
            let (status, answer) = app.call(method, &path, Some(&key), body.as_ref()).await;
            let problem = match &answer["results"] {
                // Of one event; `batch-refused` says no more.
                Value::Array(results) if status == 422 => &results[0]["problem"],
                _ => &answer,
            };
            let is_refused = problem["type"] == "/problems/not-permitted";
            assert_eq!(is_refused, !may[column], "{shown}: {status} {answer}");
            if is_refused {
                let detail = problem["detail"].as_str().unwrap();
                assert!(problem["status"] == 403 && detail.contains(role), "{shown}: {problem}");
            } else {
                assert!(status < 300 || path == "/nothing", "{shown}: {status} {answer}");
            }
        }
    }
    app.stop().await;
}

/// Catches: a look-up, list or change that does not ask whose it is; a refusal that tells that there
/// is something (403 instead of 404, or words that differ).
#[tokio::test]
async fn what_another_application_has_is_not_there() {
    let app = TestApp::with(&WITH_KEYS).await;
    let (theirs_id, their_key) = tenant(&app, "acme", "manager").await;
    let (_, our_key) = tenant(&app, "rival", "manager").await;
    let body = json!({"target_url": "http://127.0.0.1:9/", "event_types": "a", "uid": "theirs"});
    let (_, made) = app.call("POST", "/subscriptions", Some(&their_key), Some(&body)).await;
    assert_eq!(made["uid"], "theirs");
    let mut things = Things::of(&app, &theirs_id, &their_key).await;
    let nothing = Things {
        application: "app_0192d4e012347abc8def0123456789ab".to_owned(),
        event: "evt_0192d4e012347abc8def0123456789ab".to_owned(),
        subscription: "sub_0192d4e012347abc8def0123456789ab".to_owned(),
        key: "key_0192d4e012347abc8def0123456789ab".to_owned(),
    };
    let by_uid = Things {
        application: "acme".to_owned(),
        subscription: "theirs".to_owned(),
        event: things.event.clone(),
        key: things.key.clone(),
    };
    let mut count = 0;
    for (method, path, body, _) in table() {
        if !path.contains('{') {
            continue;
        }
        // Before roles are asked about, so that nothing is told by them either.
        let expected = app.call(method, &nothing.path(path), Some(&our_key), body.as_ref()).await;
        assert_eq!(expected.0, 404, "{method} {path}: {}", expected.1);
        for theirs in [&things, &by_uid] {
            let path = theirs.path(path);
            let answer = app.call(method, &path, Some(&our_key), body.as_ref()).await;
            assert_eq!(answer, expected, "{method} {path}");
        }
        if path.contains("{key}") {
            // A key of theirs under our own name is none of ours.
            let path = path.replace("{application}", "rival");
            let answer = app.call(method, &things.path(&path), Some(&our_key), body.as_ref()).await;
            assert_eq!(answer.0, 404, "{method} {path}");
        }
        count += 1;
    }
    assert!(count > 12, "{count}");

    // Nor can it be named.
    for (method, path, mut body) in [
        ("POST", "/events", Some(json!({"payload": 1, "type": "a"}))),
        ("GET", "/events", None),
        ("GET", "/subscriptions", None),
        (
            "POST",
            "/subscriptions",
            Some(json!({"target_url": "http://127.0.0.1:9/",
            "event_types": "a"})),
        ),
    ] {
        for name in [theirs_id.as_str(), "acme", "default", "unheard-of"] {
            let path = if path == "/events" && method == "POST" {
                body.as_mut().unwrap()["application"] = json!(name);
                path.to_owned()
            } else {
                format!("{path}?application={name}")
            };
            let (status, problem) = app.call(method, &path, Some(&our_key), body.as_ref()).await;
            assert_eq!(status, 404, "{method} {path}: {problem}");
            assert_eq!(problem["type"], "/problems/application-not-found");
            assert_eq!(problem["detail"], "there is no such application");
        }
    }

    // Lists are empty, and stay so behind a cursor of theirs; and all of theirs is still there.
    for path in ["/events", "/subscriptions"] {
        let body = json!({"payload": 1, "type": "a"});
        app.call("POST", "/events", Some(&their_key), Some(&body)).await;
        let (_, page) = app.call("GET", &format!("{path}?limit=1"), Some(&their_key), None).await;
        let cursor = page["next_cursor"].as_str().unwrap_or_else(|| panic!("{path}: {page}"));
        for path in [path.to_owned(), format!("{path}?cursor={cursor}")] {
            let (status, list) = app.call("GET", &path, Some(&our_key), None).await;
            assert_eq!((status, &list["data"]), (200, &json!([])), "{path}");
        }
    }
    let (_, list) = app.call("GET", "/applications", Some(&our_key), None).await;
    assert_eq!(list["data"].as_array().unwrap().len(), 1);
    assert_eq!(list["data"][0]["uid"], "rival");
    things.application = "acme".to_owned();
    for path in [
        "/events/{event}",
        "/subscriptions/{subscription}",
        "/applications/{application}/api-keys/{key}",
    ] {
        let answer = app.call("GET", &things.path(path), Some(&their_key), None).await;
        assert_eq!(answer.0, 200, "{path}: {}", answer.1);
        assert_eq!(answer.1["revoked_at"], Value::Null);
    }
    app.stop().await;
}
