//! Signing keys that a dispatch names.

use hmac::{Hmac, KeyInit, Mac};
use serde_json::json;
use sha2::Sha256;

use super::{complete, delivery_of, id_of, to};
use crate::{
    applications::{ADMIN_KEY, WITH_KEYS, tenant},
    support::{Received, Receiver, TestApp, TestDatabase},
};

const OLD: &str = "the old key of default";
const NEW: &str = "the new key of default";
const ACME: &str = "the named key of acme";

/// Whether a request is signed with a secret, by code that is not ours.
fn is_signed_with(secret: &str, request: &Received) -> bool {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(request.header("x-webhook-timestamp").as_bytes());
    mac.update(b".");
    mac.update(&request.body);
    let digest = mac.finalize().into_bytes();
    let hex = digest.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
    request.header("x-webhook-signature") == hex
}

/// Catches: a key that does not sign, or signs beside another; an id that is not told to the receiver
/// or not kept in the log; a rotation that needs more than a setting and another id.
#[tokio::test]
async fn a_named_key_signs_and_is_told() {
    let keys = format!("--signing-keys=2025={OLD},2026={NEW}");
    let database = TestDatabase::new().await;
    let app = TestApp::on(database.clone(), &[&keys, "--webhook-secret=its own secret"]).await;
    let receiver = Receiver::always(200).await;
    let mut body = to(&json!([
        receiver.url("/common"),
        {"url": receiver.url("/other"), "signatureKeyId": "2026"},
    ]));
    body["signatureKeyId"] = json!("2025");
    let (status, answer) = app.post("/dispatch", &body).await;
    assert_eq!(status, 200, "{answer}");
    let bare = app.post("/dispatch", &to(&json!([receiver.url("/own")]))).await;
    assert_eq!(bare.0, 200);
    let received = receiver.received();
    assert_eq!(received.len(), 3);
    for request in received {
        let (secret, id) = match request.path.as_str() {
            "/common" => (OLD, Some("2025")),
            "/other" => (NEW, Some("2026")),
            _ => ("its own secret", None),
        };
        assert!(is_signed_with(secret, &request), "{request:?}");
        let told = request.headers.get("x-webhook-key-id").map(|value| value.to_str().unwrap());
        assert_eq!(told, id, "{request:?}");
        assert_eq!(request.header("webhook-signature").split(' ').count(), 1);
    }
    let event = app.event(id_of(&answer)).await;
    let of = |n: usize| event["deliveries"][n]["signature_key_id"].clone();
    assert_eq!((of(0), of(1)), (json!("2025"), json!("2026")));
    assert_eq!(delivery_of(&app, id_of(&answer)).await["signature_key_id"], "2025");
    assert!(delivery_of(&app, id_of(&bare.1)).await.get("signature_key_id").is_none());
    assert!(!database.dump().await.contains(OLD), "a secret of the settings is stored");
    app.stop().await;
}

/// Catches: a tenant that can have something signed with what is not its own, by whatever it calls
/// itself or the key.
#[tokio::test]
async fn no_tenant_signs_with_a_key_of_another() {
    let keys = format!("--signing-keys=2026={NEW},acme/acme-1={ACME}");
    let app = TestApp::with(&[WITH_KEYS.as_slice(), &[keys.as_str()]].concat()).await;
    let (acme, acme_key) = tenant(&app, "acme", "dispatcher").await;
    let (_, rival_key) = tenant(&app, "rival", "manager").await;
    let receiver = Receiver::always(200).await;
    let dispatch = async |key: &str, id: &str, more: &str| {
        let mut body = to(&json!([receiver.url("/")]));
        body["signatureKeyId"] = json!(id);
        app.call("POST", &format!("/dispatch{more}"), Some(key), Some(&body)).await
    };
    let (status, answer) = dispatch(&acme_key, "acme-1", "").await;
    assert_eq!(status, 200, "{answer}");
    assert!(is_signed_with(ACME, &receiver.received()[0]));
    let of_operator = dispatch(ADMIN_KEY, "acme-1", "?application=acme").await;
    assert_eq!(of_operator.0, 200, "{}", of_operator.1);
    let before = receiver.count();
    for (key, id, more) in [
        (&rival_key, "acme-1", ""),
        (&rival_key, "2026", ""),
        (&acme_key, "2026", ""),
        (&ADMIN_KEY.to_owned(), "acme-1", ""),
        (&ADMIN_KEY.to_owned(), "2026", "?application=acme"),
    ] {
        let (status, problem) = dispatch(key, id, more).await;
        assert_eq!(status, 422, "{id}: {problem}");
        assert_eq!(problem["type"], "/problems/unknown-signing-key");
        assert_eq!(problem["pointer"], "/signatureKeyId");
    }
    for id in ["acme/acme-1", "default/2026"] {
        assert_eq!(dispatch(&rival_key, id, "").await.0, 422, "{id}");
    }
    // What the operator calls it by is what counts.
    let rename = json!({"uid": "acme-2"});
    let path = format!("/applications/{acme}");
    assert_eq!(app.call("PATCH", &path, Some(ADMIN_KEY), Some(&rename)).await.0, 200);
    assert_eq!(dispatch(&acme_key, "acme-1", "").await.0, 422);
    assert_eq!(receiver.count(), before);
    let (_, page) = app.call("GET", "/events", Some(&rival_key), None).await;
    assert_eq!(page["data"], json!([]), "what is refused is not stored");
    app.stop().await;
}

/// Catches: a delivery that goes out with another signature, or with none, or that waits for ever.
#[tokio::test]
async fn a_key_that_was_removed_meanwhile_is_told() {
    let database = TestDatabase::new().await;
    let keys = format!("--signing-keys=gone={OLD}");
    let api = TestApp::on(database.clone(), &["--role=api", "--dispatch-wait=0.05", &keys]).await;
    let receiver = Receiver::always(200).await;
    let mut body = to(&json!([receiver.url("/")]));
    body["signatureKeyId"] = json!("gone");
    let (status, answer) = api.post("/dispatch", &body).await;
    assert_eq!(status, 202, "{answer}");
    api.stop().await;
    let app = TestApp::on(database.clone(), &["--signing-keys=other=a key of another id"]).await;
    let told = complete(&app, id_of(&answer)).await;
    let error = &told["results"][0]["error"];
    assert_eq!(error["class"], "signing", "{told}");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("`gone`") && message.contains("SIGNING_KEYS"), "{message}");
    assert_eq!(receiver.count(), 0);
    app.stop().await;
    // Put back, it signs what is sent again by hand.
    let app = TestApp::on(database, &[&keys]).await;
    let delivery = delivery_of(&app, id_of(&answer)).await;
    let path = format!("/deliveries/{}/retry", delivery["id"].as_str().unwrap());
    assert_eq!(app.post(&path, &json!({})).await.0, 202);
    app.wait_for(id_of(&answer), "delivered").await;
    assert!(is_signed_with(OLD, &receiver.received()[0]));
    app.stop().await;
}
