//! What signs the requests of subscriptions and of explicit targets, and that secrets stay secret.

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use webhook_dispatcher::domain::{
    SigningKeyId,
    sealing::{SealingKey, SealingKeys},
    subscription::sealed,
};

use crate::{
    applications::{WITH_KEYS, tenant},
    support::{Received, Receiver, TestApp, TestDatabase, eventually, process::ENCRYPTION_KEY},
    verifiers::believes,
};

const FIRST: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const SECOND: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";
const THIRD: &str = "whsec_GBkaGxwdHh8gISIjJCUmJygpKissLS4v";

/// HMAC-SHA256 with code that is not ours.
fn hmac(secret: &str, parts: &[&[u8]]) -> Vec<u8> {
    let key = match secret.strip_prefix("whsec_") {
        Some(base64) => STANDARD.decode(base64).unwrap(),
        None => secret.as_bytes().to_vec(),
    };
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

/// `X-Webhook-Signature` as it has to be.
fn hex_signature(secret: &str, request: &Received) -> String {
    let time = request.header("x-webhook-timestamp").as_bytes();
    hex(&hmac(secret, &[time, b".", &request.body]))
}

/// Which of these secrets a request is signed with after Standard Webhooks, in the header's order.
fn signers<'s>(request: &Received, secrets: &[&'s str]) -> Vec<&'s str> {
    let id = request.header("webhook-id").as_bytes();
    let time = request.header("webhook-timestamp").as_bytes();
    let signature = |secret: &str| {
        let signature = hmac(secret, &[id, b".", time, b".", &request.body]);
        format!("v1,{}", STANDARD.encode(signature))
    };
    let signatures = request.header("webhook-signature").split(' ');
    let signer = |given: &str| secrets.iter().find(|secret| signature(secret) == given);
    signatures.map(|given| *signer(given).expect("signed with none of them")).collect()
}

/// Publishes an event and waits for the request that it comes to.
async fn sent(app: &TestApp, receiver: &Receiver, event_type: &str) -> Received {
    let body = json!({"payload": {"a": "é"}, "type": event_type});
    let (status, accepted) = app.call("POST", "/events", None, Some(&body)).await;
    assert_eq!(status, 202, "{accepted}");
    eventually("the request", async || {
        let received = receiver.received();
        received.into_iter().find(|request| request.header("webhook-id") == accepted["id"])
    })
    .await
}

async fn rotate(app: &TestApp, body: Value) -> Value {
    let path = "/subscriptions/mine/rotate-secret";
    let (status, answer) = app.call("POST", path, None, Some(&body)).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

/// Catches: the wrong secret, one that stops to sign at its rotation or never does, an order other
/// than newest first, `X-Webhook-Signature` by an old one.
#[tokio::test]
async fn the_secret_of_a_subscription_signs_and_its_predecessors_for_a_while() {
    let receiver = Receiver::always(200).await;
    let app = TestApp::start().await;
    let body = json!({"target_url": receiver.url("/"), "event_types": "a", "secret": FIRST,
        "uid": "mine"});
    app.make("/subscriptions", body).await;
    let first = sent(&app, &receiver, "a").await;
    assert_eq!(signers(&first, &[FIRST]), [FIRST]);

    let answer = rotate(&app, json!({"secret": SECOND, "overlap_seconds": 3_600})).await;
    assert_eq!(answer["secret"], SECOND);
    assert!(answer["previous_until"].is_string(), "{answer}");
    // Sending knows it within a second.
    let both = eventually("both sign", async || {
        let request = sent(&app, &receiver, "a").await;
        (signers(&request, &[FIRST, SECOND]).len() == 2).then_some(request)
    })
    .await;
    assert_eq!(signers(&both, &[FIRST, SECOND]), [SECOND, FIRST]);
    assert_eq!(both.header("x-webhook-signature"), hex_signature(SECOND, &both));
    let (_, shown) = app.call("GET", "/subscriptions/mine/secret", None, None).await;
    assert_eq!(shown["secret"], SECOND);
    // In the database's precision.
    let seconds = |time: &Value| time.as_str().unwrap()[..16].to_owned();
    assert_eq!(seconds(&shown["previous_until"]), seconds(&answer["previous_until"]));

    rotate(&app, json!({"secret": THIRD, "overlap_seconds": 1})).await;
    let after = eventually("the second retires", async || {
        let request = sent(&app, &receiver, "a").await;
        let signers = signers(&request, &[FIRST, SECOND, THIRD]);
        (signers == [THIRD, FIRST]).then_some(request)
    })
    .await;
    assert_eq!(after.header("x-webhook-signature"), hex_signature(THIRD, &after));

    // At once, where the old one has leaked.
    let answer = rotate(&app, json!({"overlap_seconds": 0})).await;
    assert_eq!(answer["previous_until"], Value::Null);
    let fourth = answer["secret"].as_str().unwrap().to_owned();
    let last = eventually("the third is out", async || {
        let request = sent(&app, &receiver, "a").await;
        let signers = signers(&request, &[FIRST, THIRD, &fourth]);
        (signers == [fourth.as_str(), FIRST]).then_some(request)
    })
    .await;

    for (secret, request, is_believed) in [
        (FIRST, &first, true),
        (SECOND, &first, false),
        (FIRST, &both, true),
        (SECOND, &both, true),
        (SECOND, &after, false),
        (THIRD, &after, true),
        (THIRD, &last, false),
        (&fourth, &last, true),
    ] {
        let Some(verdict) = believes(secret, std::slice::from_ref(request)).await else { break };
        match verdict {
            Ok(()) => assert!(is_believed, "{secret} verifies"),
            Err(why) => {
                assert!(!is_believed && why.contains("No matching signature"), "{secret}: {why}");
            }
        }
    }
    app.stop().await;
}

/// Catches: a signature that was turned off and is sent, one that was asked for and is not, one over
/// other bytes.
#[tokio::test]
async fn a_subscription_chooses_its_signature_headers() {
    const ALL: [&str; 3] = ["webhook-signature", "x-webhook-signature", "x-signature"];
    let receiver = Receiver::always(200).await;
    let app = TestApp::start().await;
    for (event_type, signing, headers, expected) in [
        ("t.standard", "standard", "standard", [true, true, false]),
        ("t.x", "standard", "x_signature", [false, false, true]),
        ("t.both", "standard", "both", [true, true, true]),
        ("t.none", "none", "both", [false, false, false]),
    ] {
        let mut body = json!({"target_url": receiver.url("/"), "event_types": event_type,
            "signing": signing, "signature_headers": headers, "payload_format": "raw"});
        if signing == "standard" {
            body["secret"] = json!(FIRST);
        }
        app.make("/subscriptions", body).await;
        let request = sent(&app, &receiver, event_type).await;
        let there = ALL.map(|name| request.headers.contains_key(name));
        assert_eq!(there, expected, "{event_type}");
        if there[0] {
            assert_eq!(signers(&request, &[FIRST]), [FIRST]);
            assert_eq!(request.header("x-webhook-signature"), hex_signature(FIRST, &request));
        }
        if there[2] {
            let expected = hex(&hmac(FIRST, &[r#"{"a":"é"}"#.as_bytes()]));
            assert_eq!(request.header("x-signature"), expected);
        }
        // What is not secret is there in any case.
        assert!(request.headers.contains_key("webhook-timestamp"));
    }
    app.stop().await;
}

/// Catches: a tenant that has its own bytes signed with the key of `default` or of another tenant,
/// whether it names the target or leaves it to the settings.
#[tokio::test]
async fn what_a_tenant_sends_is_signed_with_its_own_key_only() {
    let receiver = Receiver::always(200).await;
    let target = format!("--target-url={}", receiver.url("/default"));
    let secret = format!("--webhook-secret={FIRST}");
    let flags = [WITH_KEYS.as_slice(), &[target.as_str(), secret.as_str()]].concat();
    let app = TestApp::with(&flags).await;
    let mut known = vec![FIRST.to_owned()];
    for tenant_uid in ["acme", "rival"] {
        let (id, key) = tenant(&app, tenant_uid, "dispatcher").await;
        let own = explicit_secret(&app, &id).await;
        assert!(!known.contains(&own));
        for body in
            [json!({"payload": 1, "target_url": receiver.url("/named")}), json!({"payload": 1})]
        {
            let (status, accepted) = app.call("POST", "/events", Some(&key), Some(&body)).await;
            assert_eq!(status, 202, "{accepted}");
            let request = eventually("the request", async || {
                let all = receiver.received().into_iter();
                all.clone().find(|request| request.header("webhook-id") == accepted["id"])
            })
            .await;
            assert_eq!(signers(&request, &[own.as_str()]), [own.as_str()]);
            assert_eq!(request.header("x-webhook-signature"), hex_signature(&own, &request));
        }
        known.push(own);
    }
    app.stop().await;
}

/// The secret that signs an application's explicit targets, opened.
async fn explicit_secret(app: &TestApp, application: &str) -> String {
    let id: webhook_dispatcher::domain::ApplicationId = application.parse().unwrap();
    let (key, bytes): (uuid::Uuid, Vec<u8>) = sqlx::query_as(
        "select signing_key_id, sealed from signing_key
         where application_id = $1 and subscription_id is null",
    )
    .bind(id.uuid())
    .fetch_one(app.store.pool())
    .await
    .unwrap();
    let sealing: SealingKey = ENCRYPTION_KEY.parse().unwrap();
    let sealing = SealingKeys::new(sealing, Vec::new()).unwrap();
    let opened = sealing.open(&bytes, &sealed::signing_key(SigningKeyId::from_uuid(key))).unwrap();
    String::from_utf8(opened.bytes().to_vec()).unwrap()
}

/// Catches: a secret that is stored as it came, or logged with an attempt, anywhere in the database.
#[tokio::test]
async fn no_secret_stands_in_the_clear_in_the_database() {
    let receiver = Receiver::start(|before, _| {
        crate::support::Answer::status(if before == 0 { 503 } else { 200 })
    })
    .await;
    let database = TestDatabase::new().await;
    let app = TestApp::on(database.clone(), &[&format!("--webhook-secret={THIRD}")]).await;
    let body = json!({
        "target_url": receiver.url("/visible-path"), "event_types": "a", "secret": FIRST,
        "uid": "mine", "inbound_secret": "the-inbound-secret", "signature_headers": "both",
        "headers": {"Authorization": "Bearer the-receivers-token", "X-Other": "the-other-value"},
    });
    app.make("/subscriptions", body).await;
    sent(&app, &receiver, "a").await;
    let text = rotate(&app, json!({"secret": "a-secret-that-is-no-base64"})).await;
    assert!(text["secret"].is_string());
    let made = rotate(&app, json!({})).await;
    let made = made["secret"].as_str().unwrap();
    let patch = json!({"headers": {"Authorization": "[redacted]", "X-Third": "the-third-value"}});
    assert_eq!(app.call("PATCH", "/subscriptions/mine", None, Some(&patch)).await.0, 200);
    let request = sent(&app, &receiver, "a").await;
    assert_eq!(request.header("authorization"), "Bearer the-receivers-token");
    eventually("all is recorded", async || {
        let waiting: i64 = sqlx::query_scalar("select count(*) from delivery_queue")
            .fetch_one(app.store.pool())
            .await
            .unwrap();
        (waiting == 0).then_some(())
    })
    .await;
    let dump = database.dump().await;
    for shown in ["visible-path", "authorization: [redacted]", "x-webhook-signature: "] {
        assert!(dump.contains(shown), "the dump lacks {shown}");
    }
    let key_bytes = STANDARD.decode(&FIRST[6..]).unwrap();
    for secret in [
        &FIRST[6..],
        &THIRD[6..],
        &made[6..],
        "a-secret-that-is-no-base64",
        "the-inbound-secret",
        "the-receivers-token",
        "the-other-value",
        "the-third-value",
        &hex(&key_bytes),
    ] {
        assert!(!dump.contains(secret), "{secret} stands in the clear");
    }
    app.stop().await;
}
