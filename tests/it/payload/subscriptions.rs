//! Subscriptions that Payload keeps.

use serde_json::{Value, json};

use super::{change, delete, document, flags, following, kept, make};
use crate::support::{
    Answer, Receiver, TestApp, TestDatabase, eventually,
    payload::PayloadCms,
    process::{Process, free_port, on},
};

/// Longer than a test: what happens in it is not by the regular look, but for the first one.
const AN_HOUR: &str = "3600";

async fn publish(app: &TestApp, event_type: &str) -> String {
    app.publish(json!({"payload": {"n": 1}, "type": event_type})).await
}

/// Makes, changes, disables and removes a document; each time the next event goes as it says now.
async fn lives(app: &TestApp, cms: &PayloadCms) {
    let (one, other) = (Receiver::always(200).await, Receiver::always(200).await);
    let mut wanted = document("order.created", &one.url("/a"));
    wanted["retry"] = json!([60, 300]);
    wanted["headers"] = json!({"X-Team": "billing"});
    wanted["timeoutSeconds"] = json!(7);
    wanted["payloadFormat"] = json!("raw");
    wanted["filter"] = json!({"data.n": {"lt": 5}});
    let id = make(cms, &wanted).await;
    let made = eventually("made", async || kept(app, &id).await).await;
    for (field, expected) in [
        ("event_types", json!(["order.created"])),
        ("description", json!("order.created")),
        ("retry", json!([60.0, 300.0])),
        ("headers", json!({"X-Team": "[redacted]"})),
        ("timeout_seconds", json!(7.0)),
        ("payload_format", json!("raw")),
        ("filter", json!({"data.n": {"lt": 5}})),
        ("is_active", json!(true)),
    ] {
        assert_eq!(made[field], expected, "{field}");
    }
    let event = publish(app, "order.created").await;
    app.wait_for(&event, "delivered").await;
    assert_eq!((one.count(), one.received()[0].header("x-team")), (1, "billing"));

    let (to, events) = (other.url("/b"), json!(["order.*", "invoice.paid"]));
    change(cms, &id, json!({"url": to, "events": events, "headers": null, "retry": null})).await;
    let changed = eventually("changed", async || {
        kept(app, &id).await.filter(|now| now["target_url"] == json!(to))
    })
    .await;
    assert_eq!(changed["id"], made["id"]);
    let shown = (&changed["event_types"], &changed["headers"], &changed["retry"]);
    assert_eq!(shown, (&events, &json!({}), &json!(null)));
    let event = publish(app, "invoice.paid").await;
    app.wait_for(&event, "delivered").await;
    assert_eq!((one.count(), other.count()), (1, 1));

    change(cms, &id, json!({"isActive": false})).await;
    let disabled = eventually("disabled", async || {
        kept(app, &id).await.filter(|now| now["is_active"] == json!(false))
    })
    .await;
    assert_eq!(disabled["disabled"]["because"], "owner");
    let event = publish(app, "invoice.paid").await;
    assert_eq!(app.event(&event).await["deliveries"][0]["state"], "parked");

    change(cms, &id, json!({"isActive": true})).await;
    app.wait_for(&event, "delivered").await;

    delete(cms, &id).await;
    eventually("removed", async || kept(app, &id).await.is_none().then_some(())).await;
    let event = publish(app, "invoice.paid").await;
    assert_eq!(app.event(&event).await["status"], "unrouted");
    assert_eq!((one.count(), other.count()), (1, 2));
}

/// The first look is over, and the next one is an hour away: what comes now comes by the hooks.
#[tokio::test]
async fn by_the_hooks_a_change_is_live_at_once() {
    let Some(mut cms) = PayloadCms::start().await else { return };
    let before = make(&cms, &document("before", "http://127.0.0.1:9/")).await;
    let app = following(&cms.url(), AN_HOUR).await;
    eventually("the first look", async || kept(&app, &before).await).await;
    cms.tells(&app.base).await;
    lives(&app, &cms).await;
    app.stop().await;
}

/// Nobody tells of anything.
#[tokio::test]
async fn by_the_look_alone_a_change_is_live_in_the_interval() {
    let Some(cms) = PayloadCms::start().await else { return };
    let app = following(&cms.url(), "1").await;
    lives(&app, &cms).await;
    app.stop().await;
}

/// A dispatcher that is away fails no save and holds none up.
#[tokio::test]
async fn a_save_does_not_wait_for_the_dispatcher() {
    let Some(mut cms) = PayloadCms::start().await else { return };
    // It accepts, and never answers.
    let silent = Receiver::start(|_, _| Answer::status(200).after(super::NEVER)).await;
    cms.tells(&silent.url("")).await;
    let id = make(&cms, &document("orders", "https://example.com/")).await;
    // The hook gives up and says so after seconds; until then the save would wait.
    assert!(!cms.log().contains("was not told"), "{}", cms.log());
    eventually("it was told", async || (silent.count() == 1).then_some(())).await;
    cms.tells("http://127.0.0.1:9").await;
    change(&cms, &id, json!({"isActive": false})).await;
    delete(&cms, &id).await;
    eventually("it says so", async || cms.log().contains("was not told of a change").then_some(()))
        .await;
}

#[tokio::test]
async fn a_bad_document_is_listed_and_the_others_go_on() {
    let Some(cms) = PayloadCms::start().await else { return };
    let app = following(&cms.url(), "1").await;
    let never_good = make(&cms, &document("never", "ftp://example.com/")).await;
    let was_good = make(&cms, &document("order.paid", "http://127.0.0.1:9/a")).await;
    let good = eventually("made", async || kept(&app, &was_good).await).await;
    change(&cms, &was_good, json!({"url": "http://127.0.0.1:9/b", "retry": [-1]})).await;
    let other = make(&cms, &document("other", "http://127.0.0.1:9/c")).await;
    eventually("another one", async || kept(&app, &other).await).await;

    let listed = eventually("both are listed", async || {
        let (_, page) = app.get("/subscriptions?attention=true").await;
        (page["data"][0].is_object() && page["refused_documents"][0].is_object()).then_some(page)
    })
    .await;
    let refused = listed["refused_documents"].as_array().unwrap();
    assert_eq!((refused.len(), &refused[0]["document_id"]), (1, &json!(never_good)), "{listed}");
    assert_eq!(refused[0]["name"], "never");
    assert!(refused[0]["detail"].as_str().unwrap().contains("`url`"), "{listed}");
    let data = listed["data"].as_array().unwrap();
    assert_eq!((data.len(), &data[0]["id"]), (1, &good["id"]));
    let attention = data[0]["attention"].as_array().unwrap();
    assert_eq!((attention.len(), &attention[0]["matter"]), (1, &json!("refused")));
    assert!(attention[0]["detail"].as_str().unwrap().contains("`retry`"), "{listed}");
    assert_eq!(kept(&app, &was_good).await.unwrap(), good, "it is as it was");
    assert!(kept(&app, &never_good).await.is_none());

    change(&cms, &never_good, json!({"url": "http://127.0.0.1:9/d"})).await;
    change(&cms, &was_good, json!({"retry": [60]})).await;
    let mended = eventually("mended", async || {
        let (_, page) = app.get("/subscriptions?attention=true").await;
        (page == json!({"data": [], "next_cursor": null})).then_some(())
    });
    mended.await;
    assert_eq!(kept(&app, &was_good).await.unwrap()["target_url"], "http://127.0.0.1:9/b");
    assert!(kept(&app, &never_good).await.is_some());

    // One that never was good is forgotten with its document.
    let third = make(&cms, &document("third", "nowhere")).await;
    let listed =
        async || app.get("/subscriptions?attention=true").await.1["refused_documents"].clone();
    eventually("listed", async || listed().await.is_array().then_some(())).await;
    delete(&cms, &third).await;
    eventually("forgotten", async || listed().await.is_null().then_some(())).await;
    app.stop().await;
}

/// Catches: a document by which a tenant calls what a request of its own may not.
#[tokio::test]
async fn a_document_may_call_no_more_than_a_request() {
    let Some(cms) = PayloadCms::start().await else { return };
    let app = following(&cms.url(), "1").await;
    let allow = async |hosts: Value| {
        let change = json!({"allowed_hosts": hosts});
        let path = "/applications/default";
        let (status, changed) = app.call("PATCH", path, None, Some(&change)).await;
        assert_eq!(status, 200, "{changed}");
    };
    allow(json!(["127.0.0.1", "169.254.169.254"])).await;
    let refused = async |count: usize| {
        eventually("they are refused", async || {
            let (_, page) = app.get("/subscriptions?attention=true").await;
            let listed = page["refused_documents"].as_array().cloned().unwrap_or_default();
            (listed.len() == count).then_some(listed)
        })
        .await
    };
    let inward = make(&cms, &document("inward", "http://169.254.169.254/")).await;
    let listed = refused(1).await;
    assert!(listed[0]["detail"].as_str().unwrap().contains("ALLOWED_TARGET_CIDRS"), "{listed:?}");
    let astray = make(&cms, &document("astray", "http://127.0.0.2/")).await;
    let listed = refused(2).await;
    let detail = |id: &str| {
        let found = listed.iter().find(|one| one["document_id"] == id);
        found.unwrap()["detail"].as_str().unwrap().to_owned()
    };
    assert!(detail(&astray).contains("`allowed_hosts`"), "{listed:?}");
    assert!(kept(&app, &inward).await.is_none() && kept(&app, &astray).await.is_none());

    let good = make(&cms, &document("good", "http://127.0.0.1:9/")).await;
    eventually("made", async || kept(&app, &good).await).await;
    change(&cms, &good, json!({"url": "http://127.0.0.2:9/"})).await;
    let attention = eventually("it is refused", async || {
        let (_, page) = app.get("/subscriptions?attention=true").await;
        page["data"][0]["attention"][0]["detail"].as_str().map(str::to_owned)
    });
    assert!(attention.await.contains("`allowed_hosts`"));
    assert_eq!(kept(&app, &good).await.unwrap()["target_url"], "http://127.0.0.1:9/");

    allow(Value::Null).await;
    eventually("it is taken", async || kept(&app, &astray).await).await;
    refused(1).await;
    app.stop().await;
}

#[tokio::test]
async fn what_payload_keeps_is_changed_there_only() {
    let Some(mut cms) = PayloadCms::start().await else { return };
    let receiver = Receiver::always(410).await;
    let id = make(&cms, &document("order.paid", &receiver.url("/"))).await;
    let app = following(&cms.url(), AN_HOUR).await;
    let made = eventually("made", async || kept(&app, &id).await).await;
    let path = format!("/subscriptions/{}", made["id"].as_str().unwrap());
    let own = app.make("/subscriptions", json!({"url": receiver.url("/own"), "events": "x"})).await;
    let own = format!("/subscriptions/{}", own["id"].as_str().unwrap());
    let whole = json!({"url": receiver.url("/mine"), "events": "order.*"});
    let refused = async |method: &str, path: &str, body: Option<&Value>| {
        let (status, problem) = app.call(method, path, None, body).await;
        assert_eq!(
            (status, &problem["type"]),
            (409, &json!("/problems/kept-in-payload")),
            "{path}"
        );
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("webhookSubscriptions") && detail.contains(&format!("`{id}`")));
    };
    refused("PUT", &path, Some(&whole)).await;
    refused("PATCH", &path, Some(&json!({"description": "mine"}))).await;
    refused("POST", &format!("{path}/disable"), None).await;
    refused("POST", &format!("{path}/rotate-secret"), Some(&json!({}))).await;
    refused("DELETE", &path, None).await;
    assert_eq!(kept(&app, &id).await.unwrap(), made);
    for (method, path, body) in [
        ("PATCH", own.clone(), Some(json!({"description": "mine"}))),
        ("POST", format!("{own}/disable"), None),
        ("DELETE", own, None),
        ("GET", format!("{path}/deliveries"), None),
        ("GET", format!("{path}/stats"), None),
    ] {
        let (status, answer) = app.call(method, &path, None, body.as_ref()).await;
        assert!(status < 300, "{method} {path}: {answer}");
    }

    // What the service has disabled, it may be asked to send again.
    let disabled = async || {
        eventually("disabled by the service", async || {
            kept(&app, &id).await.filter(|now| now["disabled"]["because"] == "gone")
        })
        .await
    };
    publish(&app, "order.paid").await;
    disabled().await;
    let (status, enabled) = app.call("POST", &format!("{path}/enable"), None, None).await;
    assert_eq!((status, &enabled["is_active"]), (200, &json!(true)));
    publish(&app, "order.paid").await;
    disabled().await;
    // So does a change that leaves it active.
    cms.tells(&app.base).await;
    change(&cms, &id, json!({"name": "orders"})).await;
    eventually("enabled by a change", async || {
        kept(&app, &id).await.filter(|now| now["is_active"] == true)
    })
    .await;
    // What its owner has disabled, the API does not enable.
    change(&cms, &id, json!({"isActive": false})).await;
    eventually("disabled", async || {
        kept(&app, &id).await.filter(|now| now["disabled"]["because"] == "owner")
    })
    .await;
    refused("POST", &format!("{path}/enable"), None).await;
    app.stop().await;
}

#[tokio::test]
async fn a_secret_is_the_document_s_or_is_made_and_kept() {
    let Some(mut cms) = PayloadCms::start().await else { return };
    let (first, second) = ("the first secret", "the second secret");
    let mut with = document("with", "http://127.0.0.1:9/");
    with["secret"] = json!(first);
    let with = make(&cms, &with).await;
    let without = make(&cms, &document("without", "http://127.0.0.1:9/")).await;
    let database = TestDatabase::new().await;
    let flags = flags(&cms.url(), AN_HOUR);
    let app = TestApp::on(database.clone(), &flags.each_ref().map(String::as_str)).await;
    let secret = async |document: &str| {
        let kept = eventually("made", async || kept(&app, document).await).await;
        let path = format!("/subscriptions/{}/secret", kept["id"].as_str().unwrap());
        app.get(&path).await.1
    };
    assert_eq!(secret(&with).await, json!({"secret": first}));
    let made = secret(&without).await;
    assert!(made["secret"].as_str().unwrap().starts_with("whsec_"), "{made}");

    cms.tells(&app.base).await;
    let renamed = async |document: &str| {
        change(&cms, document, json!({"name": "renamed"})).await;
        eventually("renamed", async || {
            kept(&app, document).await.filter(|now| now["description"] == "renamed")
        })
        .await;
    };
    renamed(&with).await;
    renamed(&without).await;
    assert_eq!(secret(&with).await, json!({"secret": first}));
    assert_eq!(secret(&without).await, made);

    change(&cms, &with, json!({"secret": second})).await;
    let rotated = eventually("rotated", async || {
        Some(secret(&with).await).filter(|now| now["secret"] == second)
    })
    .await;
    assert!(rotated["previous_until"].is_string(), "the first one signs on for a while: {rotated}");
    change(&cms, &with, json!({"secret": null, "name": "without any"})).await;
    eventually("changed", async || {
        kept(&app, &with).await.filter(|now| now["description"] == "without any")
    })
    .await;
    assert_eq!(secret(&with).await["secret"], second);
    let dump = database.dump().await;
    assert!(!dump.contains(first) && !dump.contains(second), "they are sealed");
    app.stop().await;
}

#[tokio::test]
async fn a_dispatcher_that_was_killed_catches_up() {
    let Some(cms) = PayloadCms::start().await else { return };
    let (changed, removed) = (
        make(&cms, &document("changed", "http://127.0.0.1:9/")).await,
        make(&cms, &document("removed", "http://127.0.0.1:9/")).await,
    );
    let (database, port) = (TestDatabase::new().await, free_port().await);
    let (database_url, cms_url) = (database.url(), cms.url());
    let environment = [
        on(&database_url).as_slice(),
        &[
            ("PAYLOAD_URL", &cms_url),
            ("PAYLOAD_API_KEY", cms.api_key()),
            ("PAYLOAD_POLL_INTERVAL", AN_HOUR),
            ("ALLOWED_TARGET_CIDRS", "127.0.0.0/8"),
            ("REQUIRE_HTTPS", "false"),
        ],
    ]
    .concat();
    let names = async || {
        let answer = reqwest::get(format!("http://127.0.0.1:{port}/subscriptions")).await.unwrap();
        let page: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        let mut names: Vec<_> = page["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["description"].as_str().unwrap().to_owned())
            .collect();
        names.sort_unstable();
        names
    };
    let becomes = async |expected: &[&str]| {
        eventually("they are there", async || (names().await == expected).then_some(())).await;
    };
    let process = Process::start(port, &environment).await;
    becomes(&["changed", "removed"]).await;
    process.kill();
    make(&cms, &document("made", "http://127.0.0.1:9/")).await;
    change(&cms, &changed, json!({"name": "changed since"})).await;
    delete(&cms, &removed).await;
    let _process = Process::start(port, &environment).await;
    becomes(&["changed since", "made"]).await;
}

/// What may not be told of, or to whom.
#[tokio::test]
async fn changes_are_told_to_the_application_of_the_cms_only() {
    let id = json!({"id": 1});
    let app = TestApp::start().await;
    let (status, problem) = app.call("POST", "/payload/changes", None, Some(&id)).await;
    assert_eq!((status, &problem["type"]), (409, &json!("/problems/conflict")));
    assert!(problem["detail"].as_str().unwrap().contains("PAYLOAD_URL"));
    app.stop().await;

    let flags = flags("http://127.0.0.1:9", AN_HOUR);
    let mut flags = flags.each_ref().map(String::as_str).to_vec();
    flags.extend([
        "--payload-application=shop",
        "--admin-api-key=0123456789abcdef0123456789abcdef",
        "--webhook-secret=0123456789abcdef0123456789abcdef",
    ]);
    let app = TestApp::with(&flags).await;
    let admin = Some("0123456789abcdef0123456789abcdef");
    let (status, _) = app.call("POST", "/payload/changes", admin, Some(&id)).await;
    assert_eq!(status, 404, "there is no such application yet");
    let mut keys = Vec::new();
    for uid in ["shop", "other"] {
        let made = json!({"uid": uid, "name": uid});
        let (status, made) = app.call("POST", "/applications", admin, Some(&made)).await;
        assert_eq!(status, 201, "{made}");
        for role in ["manager", "viewer"] {
            let path = format!("/applications/{uid}/api-keys");
            let (status, key) =
                app.call("POST", &path, admin, Some(&json!({"name": role, "role": role}))).await;
            assert_eq!(status, 201, "{key}");
            keys.push(key["key"].as_str().unwrap().to_owned());
        }
    }
    let expected = [202, 403, 404, 403];
    for (key, expected) in keys.iter().zip(expected) {
        let (status, answer) = app.call("POST", "/payload/changes", Some(key), Some(&id)).await;
        assert_eq!(status, expected, "{answer}");
    }
    let (status, _) = app.call("POST", "/payload/changes", admin, Some(&id)).await;
    assert_eq!(status, 202);
    app.stop().await;
}
