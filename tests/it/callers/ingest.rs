//! `POST /ingest/{id}` by a signature instead of a key.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use webhook_dispatcher::domain::SubscriptionId;

use super::{github_signature, raw};
use crate::{
    applications::{ADMIN_KEY, WITH_KEYS, tenant},
    support::TestApp,
};

const SECRET: &str = "It's a Secret to Everybody";
const JSON: (&str, &str) = ("content-type", "application/json");
/// As GitHub sends it.
const PUSH: &str = r#"{"ref": "refs/heads/main", "repository": {"id": 1, "name": "hello"}}"#;

async fn app() -> TestApp {
    TestApp::with(&[WITH_KEYS.as_slice(), &["--role=api"]].concat()).await
}

/// A subscription of an application; answers its id.
async fn subscribe(app: &TestApp, application: &str, more: Value) -> String {
    let mut body = json!({"target_url": "http://127.0.0.1:9/", "event_types": "*"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let path = format!("/subscriptions?application={application}");
    let (status, made) = app.call("POST", &path, Some(ADMIN_KEY), Some(&body)).await;
    assert_eq!(status, 201, "{made}");
    made["id"].as_str().unwrap().to_owned()
}

async fn events(app: &TestApp, application: &str) -> Vec<Value> {
    let path = format!("/events?application={application}");
    let (_, page) = app.call("GET", &path, Some(ADMIN_KEY), None).await;
    page["data"].as_array().unwrap().clone()
}

/// The standard's and GitHub's own test values, so that the signer of these tests is sound.
#[test]
fn signatures_are_those_of_github() {
    let expected = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    assert_eq!(github_signature(SECRET, "Hello, World!"), expected);
}

/// A provider that signs needs no key, and its header names the type.
#[tokio::test]
async fn valid_signature_is_the_credential() {
    let app = app().await;
    tenant(&app, "acme", "viewer").await;
    let settings = json!({"inbound_secret": SECRET, "inbound_type_header": "X-GitHub-Event",
        "uid": "github"});
    let id = subscribe(&app, "acme", settings).await;
    let signature = github_signature(SECRET, PUSH);
    let headers = [
        JSON,
        ("x-hub-signature-256", signature.as_str()),
        ("x-github-event", "push"),
        ("x-github-delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958"),
        ("user-agent", "GitHub-Hookshot/044aadd"),
    ];
    for path in [format!("/ingest/{id}"), "/ingest/github?application=acme".to_owned()] {
        let (status, _, answer) = raw(&app, "POST", &path, &headers, PUSH).await;
        assert_eq!(status, 202, "{path}: {answer}");
    }
    // A gateway in between may add credentials of its own.
    let path = format!("/ingest/{id}");
    let by_gateway = [headers.as_slice(), &[("authorization", "Bearer of.a.gateway")]].concat();
    assert_eq!(raw(&app, "POST", &path, &by_gateway, PUSH).await.0, 202);
    // Its own header, where both are there.
    let both = [headers.as_slice(), &[("x-event-type", "code.pushed")]].concat();
    raw(&app, "POST", &format!("/ingest/{id}"), &both, PUSH).await;
    let types: Vec<_> = events(&app, "acme").await.iter().map(|one| one["type"].clone()).collect();
    assert_eq!(types, ["code.pushed", "push", "push", "push"].map(|name| json!(name)));
    // A body that brings its signature.
    let hex = github_signature(SECRET, "payload").replace("sha256=", "");
    let body = json!({"body": "payload", "signature": hex}).to_string();
    assert_eq!(raw(&app, "POST", &format!("/ingest/{id}"), &[JSON], &body).await.0, 202);
    // A secret that looks like base64 is text to GitHub.
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let id = subscribe(&app, "acme", json!({"inbound_secret": secret})).await;
    let signature = github_signature(secret, PUSH);
    let headers = [JSON, ("x-hub-signature-256", signature.as_str())];
    assert_eq!(raw(&app, "POST", &format!("/ingest/{id}"), &headers, PUSH).await.0, 202);
    app.stop().await;
}

/// Without a key, everything but a valid signature is the same 401, whatever exists.
#[tokio::test]
async fn everything_else_without_a_key_is_the_same_401() {
    let app = app().await;
    tenant(&app, "acme", "viewer").await;
    let signed = subscribe(&app, "acme", json!({"inbound_secret": SECRET, "uid": "signed"})).await;
    let open = subscribe(&app, "acme", json!({"uid": "open"})).await;
    let none = SubscriptionId::new(1_795_219_200_000, [7; 10]).to_string();
    let good = github_signature(SECRET, PUSH);
    let by_other = github_signature("another secret", PUSH);
    let wrapped = json!({"body": PUSH, "signature": &by_other[7..]}).to_string();
    let mut answers = BTreeSet::new();
    let paths = [
        format!("/ingest/{signed}"),
        format!("/ingest/{open}"),
        format!("/ingest/{none}"),
        "/ingest/signed".to_owned(),
        "/ingest/nobody".to_owned(),
        "/ingest/signed?application=nobody".to_owned(),
        format!("/ingest/{signed}?application=default"),
        "/ingest/evt_0192d4e012347abc8def0123456789ab".to_owned(),
    ];
    for path in &paths {
        for (signature, body) in [
            (None, PUSH),
            (None, "[]"),
            (None, &wrapped),
            (Some(&by_other), PUSH),
            (Some(&good), "{}"),
        ] {
            let mut headers = vec![JSON];
            headers.extend(signature.map(|signature| ("x-hub-signature-256", signature.as_str())));
            let (status, headers, answer) = raw(&app, "POST", path, &headers, body).await;
            assert_eq!(status, 401, "{path}: {answer}");
            assert!(headers.contains_key("www-authenticate"));
            answers.insert(answer.to_string());
        }
    }
    assert_eq!(answers.len(), 1, "{answers:?}");
    // A good signature opens its own subscription only.
    for path in &paths[1..] {
        let headers = [JSON, ("x-hub-signature-256", good.as_str())];
        assert_eq!(raw(&app, "POST", path, &headers, PUSH).await.0, 401, "{path}");
    }
    // Nothing else opens without a key, and a wrong key of ours is no less wrong beside a signature.
    let headers = [JSON, ("x-hub-signature-256", good.as_str())];
    for (method, path) in [
        ("GET", paths[0].as_str()),
        ("POST", "/ingest"),
        ("POST", "/events"),
        ("POST", "/ingest/a/b"),
    ] {
        assert_eq!(raw(&app, method, path, &headers, PUSH).await.0, 401, "{method} {path}");
    }
    let unknown = format!("whd_{}", "a".repeat(43));
    let wrong = [headers.as_slice(), &[("x-api-key", unknown.as_str())]].concat();
    assert_eq!(raw(&app, "POST", &paths[0], &wrong, PUSH).await.0, 401);
    assert!(events(&app, "acme").await.is_empty());
    // With a key it is as before: refused by its reason.
    let keyed = [JSON, ("x-api-key", ADMIN_KEY)];
    let path = format!("{}?application=acme", paths[0]);
    let (status, _, answer) = raw(&app, "POST", &path, &keyed, PUSH).await;
    assert_eq!((status, &answer["type"]), (403, &json!("/problems/inbound-signature")));
    app.stop().await;
}

/// Requests without a key have the limits of all bodies, and few look-ups at a time; what is not signed
/// at all is not looked up.
#[tokio::test]
async fn unauthenticated_work_is_bounded() {
    let app = app().await;
    let by_other = github_signature("another secret", PUSH);
    let large = "x".repeat(2 * 1024 * 1024);
    let headers = [JSON, ("x-hub-signature-256", by_other.as_str())];
    assert_eq!(raw(&app, "POST", "/ingest/any", &headers, &large).await.0, 413);
    sqlx::query("alter table subscription rename to hidden")
        .execute(app.store.pool())
        .await
        .unwrap();
    assert_eq!(raw(&app, "POST", "/ingest/any", &[JSON], PUSH).await.0, 401);
    assert_eq!(raw(&app, "POST", "/ingest/any", &headers, PUSH).await.0, 503, "looked up");
    sqlx::query("alter table hidden rename to subscription")
        .execute(app.store.pool())
        .await
        .unwrap();
    // Many at a time: each is answered, as 401 or as busy.
    let tries = (0..200).map(|n| {
        let (app, headers) = (&app, &headers);
        async move { raw(app, "POST", &format!("/ingest/any-{n}"), headers, PUSH).await.0 }
    });
    let statuses: BTreeSet<u16> = futures_util::future::join_all(tries).await.into_iter().collect();
    assert!(statuses.is_subset(&BTreeSet::from([401, 503])), "{statuses:?}");
    app.stop().await;
}

/// The content type that GitHub sends unless it is set up otherwise.
#[tokio::test]
async fn form_encoded_bodies_are_told_what_to_choose() {
    let app = app().await;
    let id = subscribe(&app, "default", json!({"inbound_secret": SECRET})).await;
    let body = "payload=%7B%22zen%22%3A%22Keep+it+logically+awesome.%22%7D";
    let signature = github_signature(SECRET, body);
    let form = ("content-type", "application/x-www-form-urlencoded");
    for headers in [
        vec![form, ("x-hub-signature-256", signature.as_str())],
        vec![form, ("x-api-key", ADMIN_KEY)],
        vec![form],
    ] {
        let path = format!("/ingest/{id}");
        let (status, _, answer) = raw(&app, "POST", &path, &headers, body).await;
        assert_eq!((status, &answer["type"]), (415, &json!("/problems/unsupported-media-type")));
        assert!(
            answer["detail"].as_str().unwrap().contains("choose `application/json`"),
            "{answer}"
        );
    }
    app.stop().await;
}

/// Whoever has one subscription's secret cannot take the idempotency keys of the application.
#[tokio::test]
async fn idempotency_keys_of_signed_requests_are_their_own() {
    let app = app().await;
    let id = subscribe(&app, "default", json!({"inbound_secret": SECRET})).await;
    let other = subscribe(&app, "default", json!({"inbound_secret": SECRET})).await;
    let signature = github_signature(SECRET, PUSH);
    let headers = [JSON, ("x-hub-signature-256", signature.as_str()), ("idempotency-key", "k")];
    let first = raw(&app, "POST", &format!("/ingest/{id}"), &headers, PUSH).await;
    assert_eq!(first.0, 202);
    let again = raw(&app, "POST", &format!("/ingest/{id}"), &headers, PUSH).await;
    assert_eq!((again.0, &again.2), (202, &first.2));
    let elsewhere = raw(&app, "POST", &format!("/ingest/{other}"), &headers, PUSH).await;
    assert_eq!(elsewhere.0, 202, "{}", elsewhere.2);
    let headers = [JSON, ("x-api-key", ADMIN_KEY), ("idempotency-key", "k")];
    let body = r#"{"payload": 1, "type": "a"}"#;
    assert_eq!(raw(&app, "POST", "/events", &headers, body).await.0, 202);
    app.stop().await;
}

/// A header whose value is no event type is named.
#[tokio::test]
async fn a_type_header_without_a_type_is_refused() {
    let app = app().await;
    let settings = json!({"inbound_secret": SECRET, "inbound_type_header": "X-GitHub-Event"});
    let id = subscribe(&app, "default", settings).await;
    let signature = github_signature(SECRET, PUSH);
    for (value, status) in [("pull_request", 202), ("no type", 422), ("webhook.x", 422), ("", 422)]
    {
        let headers = [JSON, ("x-hub-signature-256", &signature), ("x-github-event", value)];
        let (answered, _, answer) =
            raw(&app, "POST", &format!("/ingest/{id}"), &headers, PUSH).await;
        assert_eq!(answered, status, "{value}: {answer}");
        if status == 422 {
            assert_eq!(answer["header"], "x-github-event", "{answer}");
        }
    }
    let headers = [JSON, ("x-hub-signature-256", signature.as_str())];
    let (_, _, answer) = raw(&app, "POST", &format!("/ingest/{id}"), &headers, PUSH).await;
    let path = format!("/events/{}", answer["event_id"].as_str().unwrap());
    let (_, event) = app.call("GET", &path, Some(ADMIN_KEY), None).await;
    assert_eq!(event["type"], Value::Null);
    app.stop().await;
}
