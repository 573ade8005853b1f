//! Secrets that callers choose.

use std::{fs, process::Command};

use serde_json::{Value, json};

use super::{github_signature, raw};
use crate::{
    support::{Receiver, TestApp, eventually},
    tidy::root,
    verifiers::python_with_library,
};

const JSON: (&str, &str) = ("content-type", "application/json");
const STANDARD: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn warnings(answer: &Value) -> Vec<&str> {
    let all = answer["warnings"].as_array().into_iter().flatten();
    all.map(|warning| warning.as_str().unwrap()).collect()
}

/// The documented command, byte for byte.
#[tokio::test]
async fn documented_subscription_is_made_with_a_warning() {
    // Only public names, over https: as an installation has it. Nothing is looked up.
    let app = TestApp::with(&["--allowed-target-cidrs=", "--require-https=true"]).await;
    let body = r#"{"target_url": "https://your-app.com/webhook", "secret": "your-secret", "event_type": "order.created"}"#;
    let (status, _, made) = raw(&app, "POST", "/subscriptions/", &[JSON], body).await;
    assert_eq!((status, &made["secret"]), (201, &json!("your-secret")), "{made}");
    let [warning] = warnings(&made)[..] else { panic!("{made}") };
    assert!(warning.contains("short (11 bytes") && warning.contains("`whsec_` form"), "{warning}");
    assert!(!warning.contains("your-secret"), "{warning}");
    // A repeat is warned of as well, and has no secret.
    let once = [JSON, ("idempotency-key", "k")];
    raw(&app, "POST", "/subscriptions", &once, body).await;
    let (status, _, again) = raw(&app, "POST", "/subscriptions", &once, body).await;
    assert_eq!((status, &again["secret"], warnings(&again).len()), (201, &Value::Null, 1));
    app.stop().await;
}

/// Text secrets of 8 to 256 bytes wherever one is chosen, each with its warning.
#[tokio::test]
async fn text_secrets_are_accepted_and_warned_of() {
    let app = TestApp::with(&["--signing-keys=short=8-bytes!"]).await;
    let make = async |secret: Value, inbound: Value| {
        let body = json!({"target_url": "http://127.0.0.1:9/", "event_types": "a",
            "secret": secret, "inbound_secret": inbound});
        app.make("/subscriptions", body).await
    };
    for (secret, inbound, expected) in [
        (json!("8 bytes!"), json!(null), &["`secret` is short (8 bytes"][..]),
        (json!("x".repeat(24)), json!(null), &["`secret` is not in `whsec_` form"]),
        (json!("x".repeat(256)), json!("y".repeat(256)), &["`secret` is not"]),
        (json!(STANDARD), json!("8 bytes!"), &["`inbound_secret` is short (8 bytes"]),
        (json!("8 bytes!"), json!("8 bytes?"), &["`secret` is short", "`inbound_secret` is short"]),
        (json!(STANDARD), json!(STANDARD), &[]),
        (json!(null), json!(null), &[]),
    ] {
        let made = make(secret, inbound).await;
        let warnings = warnings(&made);
        assert_eq!(warnings.len(), expected.len(), "{made}");
        for (warning, expected) in warnings.iter().zip(expected) {
            assert!(warning.starts_with(expected), "{warning}");
        }
        // Shown later, the secret is sealed: no warning, and no empty list either.
        let path = format!("/subscriptions/{}", made["id"].as_str().unwrap());
        assert_eq!(app.get(&path).await.1["warnings"], Value::Null);
    }
    let id = make(json!(STANDARD), json!(null)).await["id"].as_str().unwrap().to_owned();
    let path = format!("/subscriptions/{id}/rotate-secret");
    let (status, rotated) =
        app.call("POST", &path, None, Some(&json!({"secret": "8 bytes!"}))).await;
    assert_eq!((status, warnings(&rotated).len()), (200, 1), "{rotated}");
    let (_, rotated) = app.call("POST", &path, None, Some(&json!({}))).await;
    assert_eq!(rotated["warnings"], Value::Null);
    for method in ["PATCH", "PUT"] {
        let body = json!({"target_url": "http://127.0.0.1:9/", "event_types": "a",
            "inbound_secret": "8 bytes!"});
        let path = format!("/subscriptions/{id}");
        let (status, changed) = app.call(method, &path, None, Some(&body)).await;
        assert_eq!((status, warnings(&changed).len()), (200, 1), "{method}: {changed}");
    }
    app.stop().await;
}

/// The documented request, byte for byte: the signed text need not be JSON.
#[tokio::test]
async fn documented_ingest_body_is_accepted() {
    let receiver = Receiver::always(200).await;
    let app = TestApp::start().await;
    let body = json!({"target_url": receiver.url("/"), "event_types": "a", "uid": "mine",
        "inbound_secret": "your-secret", "payload_format": "raw"});
    app.make("/subscriptions", body).await;
    let hex = github_signature("your-secret", "payload").replace("sha256=", "");
    let body = format!(r#"{{"body": "payload", "signature": "{hex}"}}"#);
    let (status, _, answer) = raw(&app, "POST", "/ingest/mine", &[JSON], &body).await;
    assert_eq!(status, 202, "{answer}");
    eventually("it arrives", async || (receiver.count() == 1).then_some(())).await;
    assert_eq!(receiver.received()[0].body, br#""payload""#);
    // Text that means to be JSON must be.
    let hex = github_signature("your-secret", "{\"a\": 1,}").replace("sha256=", "");
    let body = json!({"body": "{\"a\": 1,}", "signature": hex}).to_string();
    assert_eq!(raw(&app, "POST", "/ingest/mine", &[JSON], &body).await.0, 400);
    app.stop().await;
}

/// Each secret that a page shows in a sample with a library is one that the library takes.
#[test]
fn samples_show_secrets_that_libraries_verify() {
    let Some(python) = python_with_library() else { return };
    let mut pages = vec![root().join("README.md")];
    for folder in ["docs", "docs/guides"] {
        let entries = fs::read_dir(root().join(folder)).unwrap();
        pages.extend(entries.map(|entry| entry.unwrap().path()));
    }
    let mut count = 0;
    for page in pages.iter().filter(|page| page.extension().is_some_and(|ending| ending == "md")) {
        for part in fs::read_to_string(page).unwrap().split("Webhook(\"").skip(1) {
            let secret = part.split('"').next().unwrap();
            let code = "import sys, base64; from standardwebhooks import Webhook; \
                        Webhook(sys.argv[1]); \
                        assert len(base64.b64decode(sys.argv[1][6:], validate=True)) >= 24";
            let status = Command::new(&python).args(["-c", code, secret]).status().unwrap();
            assert!(status.success(), "{}: `{secret}` is no secret", page.display());
            count += 1;
        }
    }
    assert!(count > 1, "{count}");
}
