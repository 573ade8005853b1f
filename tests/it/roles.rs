//! Who may do what, and that tenants do not learn of each other: tried on every operation, with
//! cases made of the document that the service itself gives out.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    applications::{ADMIN_KEY, WITH_KEYS, key, tenant},
    support::TestApp,
};

/// The roles of an application's keys, and what each may. `admin` may all.
const ROLES: [(&str, &[&str]); 4] = [
    ("manager", &["read", "publish", "name_targets", "manage"]),
    ("dispatcher", &["read", "publish", "name_targets"]),
    ("producer", &["publish"]),
    ("viewer", &["read"]),
];
/// What operations ask for, where it is not `read` of what reads and `manage` of what changes.
const ASKED: [(&str, &str); 12] = [
    ("ingest", "publish"),
    ("createDispatch", "publish"),
    ("createEvent", "publish"),
    ("createEvents", "publish"),
    ("createApplication", "administer"),
    ("deleteApplication", "administer"),
    ("getMetrics", "administer"),
    ("getApiKey", "manage"),
    ("listApiKeys", "manage"),
    ("getSubscriptionSecret", "manage"),
    ("webhooksGetSubscriptionSecret", "manage"),
    ("getEvent", "read"),
];

/// A request that the document says how to make.
#[derive(Clone, Debug)]
struct Case {
    id: String,
    method: String,
    path: String,
    /// The names of the path's parts, and what each names.
    in_path: BTreeMap<String, String>,
    query: BTreeMap<String, String>,
    /// The parameters of the query that can name something, and what.
    in_query: BTreeMap<String, String>,
    body: Option<Value>,
    /// Where the body names an application: pointers.
    in_body: Vec<String>,
    permission: String,
    /// The statuses that are told.
    statuses: Vec<String>,
}

fn resolved<'a>(document: &'a Value, part: &'a Value) -> &'a Value {
    match part["$ref"].as_str() {
        Some(reference) => document.pointer(reference.trim_start_matches('#')).expect(reference),
        None => part,
    }
}

/// The places in a body where something of others can be named, by its schema.
fn places(document: &Value, schema: &Value, at: &str, found: &mut Vec<String>) {
    let schema = resolved(document, schema);
    let alternatives = schema["anyOf"].as_array().into_iter().flatten();
    for schema in alternatives.chain([schema]) {
        if let Some(names) = schema["x-names"].as_str() {
            assert_eq!(names, "application", "the cases know nothing else that a body names");
            found.push(at.to_owned());
        }
        for (name, member) in schema["properties"].as_object().into_iter().flatten() {
            places(document, member, &format!("{at}/{name}"), found);
        }
        if schema["items"].is_object() {
            places(document, &schema["items"], &format!("{at}/0"), found);
        }
    }
}

/// Every request that the document tells of: each operation with each of its examples, and with each
/// query that takes another permission; those for anybody are told apart.
fn cases(document: &Value) -> (Vec<Case>, Vec<String>) {
    let (mut cases, mut open) = (Vec::new(), Vec::new());
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap().to_owned();
            let Some(permission) = operation["x-required-permission"].as_str() else {
                assert_eq!(operation["security"], json!([]), "{id} asks for nothing");
                open.push(path.clone());
                continue;
            };
            let expected = ASKED.iter().find(|(asked, _)| *asked == id).map(|(_, asked)| *asked);
            let usual = if method == "get" { "read" } else { "manage" };
            assert_eq!(permission, expected.unwrap_or(usual), "{id}");
            let mut case = Case {
                id,
                method: method.to_uppercase(),
                path: path.clone(),
                in_path: BTreeMap::new(),
                query: BTreeMap::new(),
                in_query: BTreeMap::new(),
                body: None,
                in_body: Vec::new(),
                permission: permission.to_owned(),
                statuses: operation["responses"].as_object().unwrap().keys().cloned().collect(),
            };
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                let parameter = resolved(document, parameter);
                let name = parameter["name"].as_str().unwrap().to_owned();
                match (parameter["in"].as_str().unwrap(), parameter["x-names"].as_str()) {
                    ("path", Some(names)) => drop(case.in_path.insert(name, names.to_owned())),
                    ("query", Some(names)) => drop(case.in_query.insert(name, names.to_owned())),
                    ("query" | "header", None) => assert_ne!(parameter["required"], true, "{name}"),
                    other => panic!("{}: nobody knows how to fill {name}, {other:?}", case.id),
                }
            }
            let content = &operation["requestBody"]["content"]["application/json"];
            let examples: Vec<_> =
                content["examples"].as_object().into_iter().flatten().map(|(_, one)| one).collect();
            assert!(content.is_null() || !examples.is_empty(), "{}: no body is known", case.id);
            places(document, &content["schema"], "", &mut case.in_body);
            if examples.is_empty() {
                cases.push(case.clone());
            }
            for example in &examples {
                let permission = example["x-required-permission"].as_str();
                let permission = permission.map_or(case.permission.clone(), str::to_owned);
                let body = Some(example["value"].clone());
                cases.push(Case { body, permission, ..case.clone() });
            }
            for further in operation["x-further-permissions"].as_array().into_iter().flatten() {
                let Some(query) = further["query"].as_object() else { continue };
                let query = query.iter().map(|(k, v)| (k.clone(), v.as_str().unwrap().to_owned()));
                let permission = further["permission"].as_str().unwrap().to_owned();
                let body = examples.first().map(|example| example["value"].clone());
                cases.push(Case { query: query.collect(), permission, body, ..case.clone() });
            }
        }
    }
    assert!(cases.len() > 50, "{}", cases.len());
    (cases, open)
}

/// What there is of one application, by what the document calls it.
#[derive(Clone, Debug)]
struct Things(BTreeMap<&'static str, String>);

impl Things {
    async fn of(app: &TestApp, application: &str, uid: &str, nonce: usize) -> Self {
        let id =
            |answer: &Value| answer["id"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
        let call = async |path: String, body: Value| {
            app.call("POST", &path, Some(ADMIN_KEY), Some(&body)).await.1
        };
        let of = format!("?application={application}");
        let body = json!({"target_url": "http://127.0.0.1:9/", "event_types": "a",
            "uid": format!("{uid}-{nonce}")});
        let subscription = call(format!("/subscriptions{of}"), body).await;
        let body = json!({"payload": uid, "type": "a", "application": application});
        let event = call("/events".to_owned(), body).await;
        let path = format!("/events/{}{of}", id(&event));
        let shown = app.call("GET", &path, Some(ADMIN_KEY), None).await.1;
        let delivery = shown["deliveries"][0]["id"].as_str().unwrap_or_else(|| panic!("{shown}"));
        // One at a time, as there may be few; and one that does not end of itself.
        let over = "update replay set state = 'cancelled', ended_at = now()
                    where ended_at is null and application_id = $1";
        sqlx::query(over)
            .bind(application.parse::<webhook_dispatcher::domain::ApplicationId>().unwrap().uuid())
            .execute(app.store.pool())
            .await
            .unwrap();
        let body = json!({"filter": {"event_type": "nobody.cares"}});
        let replay = call(format!("/replays{of}"), body).await;
        sqlx::query("update replay set state = 'paused', ended_at = null where replay_id = $1")
            .bind(id(&replay).parse::<webhook_dispatcher::domain::ReplayId>().unwrap().uuid())
            .execute(app.store.pool())
            .await
            .unwrap();
        let body = json!({"scope": "subject", "subject": uid});
        let erasure = call(format!("/erasures{of}"), body).await;
        // There may be few at a time, and one that is done changes no more.
        let done = "update erasure set state = 'completed', ended_at = now(), subject = null
                    where ended_at is null";
        sqlx::query(done).execute(app.store.pool()).await.unwrap();
        let body = json!({"role": "viewer", "name": format!("of {uid}")});
        let key = call(format!("/applications/{application}/api-keys"), body).await;
        let event_type = format!("{uid}.type-{nonce}");
        let body = json!({"name": event_type, "description": format!("of {uid}")});
        call(format!("/event-types{of}"), body).await;
        Self(BTreeMap::from([
            ("application", application.to_owned()),
            ("subscription", id(&subscription)),
            ("event", id(&event)),
            ("api_key", id(&key)),
            ("event_type", event_type),
            ("delivery", delivery.to_owned()),
            ("replay", id(&replay)),
            ("erasure", id(&erasure)),
        ]))
    }

    /// What is nobody's.
    fn nothing() -> Self {
        let id = |prefix: &str| format!("{prefix}_0192d4e012347abc8def0123456789ab");
        Self(BTreeMap::from([
            ("application", id("app")),
            ("subscription", id("sub")),
            ("event", id("evt")),
            ("api_key", id("key")),
            ("event_type", "nobody.knows".to_owned()),
            ("delivery", id("dlv")),
            ("replay", id("rpl")),
            ("erasure", id("ers")),
        ]))
    }
}

/// Sends a case: what its path names is one's own, but for what `foreign` says.
async fn send(
    app: &TestApp,
    case: &Case,
    key: Option<&str>,
    own: &Things,
    foreign: Option<(&str, &str)>,
) -> (u16, Value) {
    let mut path = case.path.clone();
    for (name, names) in &case.in_path {
        // The routes of one event type stand also where that is called `load`.
        let own = own.0.get(names.as_str()).unwrap_or_else(|| panic!("{}: {names}", case.id));
        let value = foreign.filter(|(foreign, _)| foreign == names).map_or(own.as_str(), |f| f.1);
        path = path.replace(&format!("{{{name}}}"), value);
    }
    assert!(!path.contains('{'), "{path}");
    let mut query = case.query.clone();
    if let Some((place, value)) = foreign
        && let Some(name) = place.strip_prefix('?')
    {
        query.insert(name.to_owned(), value.to_owned());
    }
    let query: Vec<_> = query.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if !query.is_empty() {
        path = format!("{path}?{}", query.join("&"));
    }
    let mut body = case.body.clone();
    if let Some(event) = body.as_mut().and_then(|body| body.pointer_mut("/event_id")) {
        *event = json!(own.0["event"]);
    }
    if let Some((pointer, value)) = foreign.filter(|(place, _)| place.starts_with('/')) {
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        body.as_mut().unwrap().pointer_mut(parent).unwrap()[name] = json!(value);
    }
    let (status, answer) = app.call(&case.method, &path, key, body.as_ref()).await;
    assert!(
        case.statuses.contains(&status.to_string()),
        "{case:?} says nothing of {status}: {answer}"
    );
    (status, answer)
}

async fn service() -> (TestApp, Vec<Case>, Vec<String>) {
    // It sends nothing: examples name any address.
    let target = "--target-url=http://127.0.0.1:9/";
    // And nobody waits for what it does not send.
    let flags = ["--role=api", target, "--dispatch-inline-max=0"];
    let app = TestApp::with(&[WITH_KEYS.as_slice(), &flags].concat()).await;
    let (status, document) = app.get("/openapi.json").await;
    assert_eq!(status, 200);
    let (cases, open) = cases(&document);
    (app, cases, open)
}

/// Catches: a handler that does not ask what the caller may do, or asks for the wrong thing; a role
/// that may more or less than the table of the documents says; a route behind no key; an example of
/// the document that is refused.
#[tokio::test]
async fn each_role_may_what_the_document_says() {
    let (app, cases, open) = service().await;
    for path in open {
        assert_eq!(app.call("GET", &path, None, None).await.0, 200, "{path}");
    }
    let (id, _) = tenant(&app, "acme", "viewer").await;
    let mut nonce = 0;
    for (role, may) in
        [("admin", None)].into_iter().chain(ROLES.map(|(role, may)| (role, Some(may))))
    {
        let key = if role == "admin" { ADMIN_KEY.to_owned() } else { key(&app, &id, role).await };
        for case in &cases {
            // What one request deletes, the next has anew.
            nonce += 1;
            let mut things = Things::of(&app, &id, "acme", nonce).await;
            if case.id == "deleteApplication" && may.is_none() {
                let body = json!({"uid": format!("gone-{nonce}")});
                let made = app.call("POST", "/applications", Some(ADMIN_KEY), Some(&body)).await.1;
                things.0.insert("application", made["id"].as_str().unwrap().to_owned());
            }
            // Some cases mean the instance's catalogue.
            let of_instance = json!({"name": things.0["event_type"]});
            let path = "/event-types?scope=instance";
            app.call("POST", path, Some(ADMIN_KEY), Some(&of_instance)).await;
            let shown = format!("{role}: {} {case:?}", case.id);
            // The operator names the application; others have one.
            let names_application = case.in_query.contains_key("application");
            let of = (may.is_none() && names_application && case.query.is_empty())
                .then_some(("?application", id.as_str()));
            let (status, answer) = send(&app, case, Some(&key), &things, of).await;
            let problem = match &answer["results"] {
                // Of one event; `batch-refused` says no more.
                Value::Array(results) if status == 422 => &results[0]["problem"],
                _ => &answer,
            };
            let is_allowed = may.is_none_or(|may| may.contains(&case.permission.as_str()));
            let is_refused = problem["type"] == "/problems/not-permitted";
            assert_eq!(is_refused, !is_allowed, "{shown}: {status} {answer}");
            if is_refused {
                let detail = problem["detail"].as_str().unwrap();
                assert!(problem["status"] == 403 && detail.contains(role), "{shown}: {problem}");
            } else {
                // The name of an example may be taken by the case before; nobody made a `load`.
                let is_taken = status == 409 && answer["type"] == "/problems/conflict";
                let is_load = status == 404 && case.path.ends_with("/load");
                assert!(status < 300 || is_taken || is_load, "{shown}: {status} {answer}");
            }
            for wrong in [None, Some("whd_no-key-of-anybody")] {
                let (status, problem) = send(&app, case, wrong, &things, None).await;
                assert_eq!(
                    (status, &problem["type"]),
                    (401, &json!("/problems/unauthorized")),
                    "{shown}"
                );
            }
        }
    }
    app.stop().await;
}

/// All of theirs, as they see it: lists to their end, for a page of the log may be short.
async fn all_of(
    app: &TestApp,
    cases: &[Case],
    things: &Things,
    key: &str,
) -> Vec<(String, Vec<Value>)> {
    let mut seen = Vec::new();
    let is_theirs = |case: &&Case| case.method == "GET" && case.permission != "administer";
    for case in cases.iter().filter(is_theirs) {
        let (mut case, mut items) = (case.clone(), Vec::new());
        loop {
            let (status, mut answer) = send(app, &case, Some(key), things, None).await;
            assert!(status == 200 || case.path.ends_with("/load"), "{case:?}: {answer}");
            let Some(page) = answer["data"].as_array_mut() else {
                // Figures up to now, of what waits since then.
                for moving in ["since", "queue_age_seconds"] {
                    answer.as_object_mut().unwrap().remove(moving);
                }
                let mut answer = answer;
                if case.id.ends_with("iagnoseSubscription") {
                    // The newest rows of the queue are looked at, whosever they are, and it has no
                    // pages to make up for that.
                    answer.as_object_mut().unwrap().remove("deliveries_looked_at");
                }
                items.push(answer);
                break;
            };
            for mut item in page.drain(..) {
                // To the minute, and theirs to move.
                item.as_object_mut().unwrap().remove("last_used_at");
                items.push(item);
            }
            let Some(cursor) = answer["next_cursor"].as_str() else { break };
            case.query.insert("cursor".to_owned(), cursor.to_owned());
        }
        seen.push((case.id, items));
    }
    seen
}

/// Catches: a look-up, list or change that does not ask whose it is; a refusal that tells that there
/// is something (403 instead of 404, or words that differ).
#[tokio::test]
async fn what_another_application_has_is_not_there() {
    let (app, cases, _) = service().await;
    let (their_id, their_key) = tenant(&app, "acme", "manager").await;
    let (our_id, _) = tenant(&app, "rival", "viewer").await;
    let mut theirs = Things::of(&app, &their_id, "acme", 0).await;
    // A type of the instance is everybody's to see: this one is theirs alone.
    let theirs_alone = json!({"name": "acme.alone", "description": "of acme alone"});
    let made = app.call("POST", "/event-types", Some(&their_key), Some(&theirs_alone)).await;
    assert_eq!(made.0, 201, "{}", made.1);
    theirs.0.insert("event_type", "acme.alone".to_owned());
    let by_uid = BTreeMap::from([("application", "acme"), ("subscription", "acme-0")]);
    let nothing = Things::nothing();
    let before = all_of(&app, &cases, &theirs, &their_key).await;
    let mut count = 0;
    for (nonce, (role, _)) in ROLES.into_iter().enumerate() {
        let our_key = key(&app, &our_id, role).await;
        for (index, case) in cases.iter().enumerate() {
            let own = Things::of(&app, &our_id, "rival", 1_000 * (nonce + 1) + index).await;
            let named = case.in_path.values().map(|names| (names.as_str(), names.as_str()));
            // A query that names the instance's catalogue can name nobody else's.
            let in_query = case.in_query.iter().filter(|_| case.query.is_empty());
            let in_query: Vec<_> =
                in_query.map(|(name, names)| (format!("?{name}"), names.as_str())).collect();
            let in_query = in_query.iter().map(|(place, names)| (place.as_str(), *names));
            let in_body = case.in_body.iter().map(|pointer| (pointer.as_str(), "application"));
            for (place, names) in named.chain(in_query).chain(in_body) {
                let foreign = async |value: &str| {
                    let named = Some((place, value));
                    let (status, answer) = send(&app, case, Some(&our_key), &own, named).await;
                    // Of a batch the event that names it; the others are our own.
                    let refusal = answer.pointer("/results/0/problem").unwrap_or(&answer);
                    let is_none = status == 404
                        || refusal["status"] == 404
                        || refusal["data"].as_array().is_some_and(Vec::is_empty);
                    (is_none, refusal.clone())
                };
                // By its id, and by its uid where it has one: as what nobody has, said the same way.
                let by_id = Some((theirs.0[names].as_str(), nothing.0[names].as_str()));
                let by_uid = by_uid.get(names).map(|uid| (*uid, "nobody-has-it"));
                for (their, none) in [by_id, by_uid].into_iter().flatten() {
                    let expected = foreign(none).await;
                    let answer = foreign(their).await;
                    assert_eq!(answer, expected, "{role}, {place} of {case:?}");
                    let may_know = role == "manager" && case.permission != "administer";
                    let is_permitted = answer.1["type"] != "/problems/not-permitted";
                    assert!(answer.0 || !is_permitted, "{role}, {place} of {case:?}: {}", answer.1);
                    assert!(is_permitted || !may_know, "{role}, {place} of {case:?}: {}", answer.1);
                    count += 1;
                }
            }
            let (_, answer) = send(&app, case, Some(&our_key), &own, None).await;
            let answer = answer.to_string();
            for (names, mark) in &theirs.0 {
                assert!(!answer.contains(mark.as_str()), "{role} sees their {names}: {case:?}");
            }
        }
    }
    assert!(count > 200, "{count}");
    for (now, before) in all_of(&app, &cases, &theirs, &their_key).await.iter().zip(&before) {
        assert_eq!(now, before, "of theirs something has changed");
    }
    app.stop().await;
}

/// Catches: a list behind a cursor that asks no more whose it is.
#[tokio::test]
async fn a_cursor_of_others_leads_to_nothing_of_theirs() {
    let (app, ..) = service().await;
    let (their_id, their_key) = tenant(&app, "acme", "manager").await;
    let (_, our_key) = tenant(&app, "rival", "manager").await;
    for nonce in 0..2 {
        Things::of(&app, &their_id, "acme", nonce).await;
    }
    for path in ["/events", "/subscriptions"] {
        let (_, page) = app.call("GET", &format!("{path}?limit=1"), Some(&their_key), None).await;
        let cursor = page["next_cursor"].as_str().unwrap_or_else(|| panic!("{path}: {page}"));
        for path in [path.to_owned(), format!("{path}?cursor={cursor}")] {
            let (status, list) = app.call("GET", &path, Some(&our_key), None).await;
            assert_eq!((status, &list["data"]), (200, &json!([])), "{path}");
        }
    }
    app.stop().await;
}
