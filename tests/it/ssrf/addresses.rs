//! The table of addresses and spellings, by the parser, by every way in, and on the way out.

use serde_json::{Value, json};
use webhook_dispatcher::domain::{TargetUrl, address::AddressPolicy};

use super::table::{ALLOWED, NO_TARGETS, REFUSED, REFUSED_URLS};
use crate::support::{
    TestApp, TestDatabase, eventually,
    raw::{Misdeed, RawReceiver},
};

/// Everything that may not be called, with what a message calls it; on a port.
fn refused(port: u16) -> Vec<(String, &'static str)> {
    let of = |kind: &'static str, host: &str| (format!("http://{host}:{port}/"), kind);
    let hosts =
        REFUSED.iter().flat_map(|&(kind, hosts)| hosts.iter().map(move |host| of(kind, host)));
    let urls = REFUSED_URLS.iter().map(|url| ((*url).to_owned(), "is not a public address"));
    hosts.chain(urls).collect()
}

/// Catches: a block that is not known, a spelling that is read as another one, a good one refused.
#[test]
fn the_parser_and_the_policy_follow_the_table() {
    let policy = AddressPolicy::new(Vec::new(), false);
    let told = |text: &str| match TargetUrl::parse(text) {
        Err(error) => format!("no target: {error}"),
        Ok(target) => match policy.vet_target(&target) {
            Err(refused) => format!("refused: {refused}"),
            Ok(()) => "allowed".to_owned(),
        },
    };
    let refused = refused(8080);
    assert!(refused.len() >= 150, "{}", refused.len());
    let mut faults = Vec::new();
    let mut check = |text: &str, begin: &str, words: &[&str]| {
        let told = told(text);
        if !told.starts_with(begin) || words.iter().any(|word| !told.contains(word)) {
            faults.push(format!("{text} should be {begin} ({words:?}): {told}"));
        }
    };
    for (text, kind) in &refused {
        check(text, "refused", &[kind, "ALLOWED_TARGET_CIDRS"]);
    }
    for (text, word) in NO_TARGETS {
        check(text, "no target", &[word]);
    }
    for text in ALLOWED {
        check(text, "allowed", &[]);
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Catches: a way in that does not ask the policy, or does not say what would allow it.
#[tokio::test]
async fn every_way_in_follows_the_table() {
    let app = TestApp::with(&["--role=api", "--allowed-target-cidrs="]).await;
    let good = json!({"target_url": "https://good.example/", "event_types": "a"});
    let made = app.make("/subscriptions", good.clone()).await;
    let own = format!("/subscriptions/{}", made["id"].as_str().unwrap());
    let ways: [(&str, &str, fn(&str) -> Value); 5] = [
        ("POST", "/subscriptions", |url| json!({"target_url": url, "event_types": "a"})),
        ("PATCH", &own, |url| json!({"url": url})),
        ("PUT", &own, |url| json!({"target_url": url, "event_types": "a"})),
        ("POST", "/events", |url| json!({"payload": 1, "target_url": url})),
        ("POST", "/events/batch", |url| json!({"events": [{"payload": 1, "target_url": url}]})),
    ];
    for (method, path, body) in ways {
        // Of a batch the item is refused, and not the request.
        let told = async |url: &str| {
            let (status, answer) = app.call(method, path, None, Some(&body(url))).await;
            let of_item = || answer["results"][0]["problem"].clone();
            (status, if path == "/events/batch" { of_item() } else { answer })
        };
        for (url, kind) in refused(8080) {
            let (status, problem) = told(&url).await;
            assert_eq!(problem["type"], "/problems/target-refused", "{path} {url}: {problem}");
            assert_eq!(status, 422, "{path} {url}: {problem}");
            let detail = problem["detail"].as_str().unwrap();
            let is_told = detail.contains(kind) && detail.contains("ALLOWED_TARGET_CIDRS");
            assert!(is_told, "{path} {url}: {detail}");
        }
        for (text, word) in NO_TARGETS {
            let (_, problem) = told(text).await;
            let detail = problem["detail"].as_str().unwrap_or_else(|| panic!("{path} {text}"));
            assert!(detail.contains(word), "{path} {text}: {detail}");
        }
        for url in ALLOWED {
            let (status, answer) = app.call(method, path, None, Some(&body(url))).await;
            assert!((200..300).contains(&status), "{path} {url}: {status} {answer}");
            assert_eq!(answer["results"][0]["problem"], Value::Null, "{path} {url}: {answer}");
        }
    }
    let (_, now) = app.get(&own).await;
    assert_eq!(now["target_url"], "https://example.com/%00", "what was refused changed nothing");
    app.stop().await;
}

/// Catches: an address that is vetted when it is stored, and not when it is called: settings change.
#[tokio::test]
async fn what_was_stored_is_vetted_again() {
    let listener = RawReceiver::start(Misdeed::Hang).await;
    let refused = refused(listener.port());
    let database = TestDatabase::new().await;
    let everything = ["--role=api", "--allowed-target-cidrs=0.0.0.0/0,::/0"];
    let lax = TestApp::on(database.clone(), &everything).await;
    let mut subscriptions = Vec::new();
    // No setting allows what lies behind a NAT64 gateway.
    let is_allowable = |url: &str| !TargetUrl::parse(url).unwrap().as_str().contains("[64:ff9b::");
    let refused: Vec<_> = refused.into_iter().filter(|(url, _)| is_allowable(url)).collect();
    for (url, _) in &refused {
        let body = json!({"target_url": url, "event_types": "a", "signing": "none"});
        let made = lax.make("/subscriptions", body).await;
        subscriptions.push(made["id"].as_str().unwrap().to_owned());
        lax.accept(url).await;
    }
    lax.publish(json!({"type": "a", "payload": 1})).await;
    lax.stop().await;

    let flags = [
        "--allowed-target-cidrs=",
        "--max-attempts=1",
        "--dispatch-inline-max=100",
        "--dispatch-wait=100",
    ];
    let strict = TestApp::on(database, &flags).await;
    for (id, (url, kind)) in subscriptions.iter().zip(&refused) {
        let (status, problem) = strict.post(&format!("/subscriptions/{id}/test"), &json!({})).await;
        assert_eq!((status.as_u16(), &problem["type"]), (422, &json!("/problems/target-refused")));
        assert!(problem["detail"].as_str().unwrap().contains(kind), "{url}: {problem}");
    }
    let urls: Vec<_> = refused.iter().map(|(url, _)| url).collect();
    for targets in urls.chunks(100) {
        let body = json!({"event": "a.b", "payload": 1, "targets": targets});
        let (status, answer) = strict.post("/dispatch", &body).await;
        assert_eq!(status, 200, "{answer}");
        for result in answer["results"].as_array().unwrap() {
            assert_eq!(result["error"]["class"], "blocked_address", "{result}");
        }
    }
    let attempts = eventually("all attempts", async || {
        let attempts: Vec<(String, String, String)> =
            sqlx::query_as("select request_url, error_class, error_message from attempt")
                .fetch_all(strict.store.pool())
                .await
                .unwrap();
        (attempts.len() >= 3 * refused.len()).then_some(attempts)
    })
    .await;
    for (url, class, message) in attempts {
        assert_eq!(class, "blocked_address", "{url}: {message}");
        assert!(message.contains("ALLOWED_TARGET_CIDRS"), "{url}: {message}");
    }
    assert_eq!(listener.connections(), 0);
    strict.stop().await;
}
