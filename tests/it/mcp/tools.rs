//! What the tools do, beside what the API does.

use serde_json::{Value, json};

use super::{Scene, call};
use crate::support::eventually;

async fn refused(scene: &Scene, name: &str, arguments: Value) -> Value {
    call(&scene.app, &scene.manager, name, &arguments).await.expect_err(name)
}

/// Catches: an argument that is dropped in silence; a problem without what helps, or without the place.
#[tokio::test]
async fn what_is_wrong_is_told_by_name() {
    let scene = Scene::new(200).await;
    for (name, arguments, kind, argument, said) in [
        (
            "webhook_event",
            json!({"event": scene.event}),
            "invalid-request",
            "event",
            "unknown argument `event`: did you mean `event_id`?",
        ),
        ("webhook_event", json!({}), "invalid-request", "event_id", "`event_id` is missing"),
        ("webhook_event", json!({"event_id": ""}), "invalid-request", "event_id", "is missing"),
        (
            "webhook_retry",
            json!({"delivery_id": null}),
            "invalid-request",
            "delivery_id",
            "is missing",
        ),
        (
            "webhook_event",
            json!({"event_id": "../x?y"}),
            "event-not-found",
            "event_id",
            "no such event",
        ),
        (
            "webhook_publish",
            json!({"payload": 1, "typ": "a.b"}),
            "invalid-request",
            "typ",
            "did you mean `type`",
        ),
        ("webhook_publish", json!({"type": "a.b"}), "invalid-request", "payload", "missing"),
        (
            "webhook_publish",
            json!({"payload": 1, "target_url": "http://10.0.0.1/"}),
            "target-refused",
            "target_url",
            "private",
        ),
        ("webhook_deliveries", json!({"limit": 1_000}), "invalid-request", "limit", "1 to 250"),
        (
            "webhook_replay",
            json!({"filter": {"status": "dead"}}),
            "invalid-request",
            "filter",
            "unknown field `status`",
        ),
        (
            "webhook_replay",
            json!({"filter": {"state": "dead"}, "idempotency_key": "ä\n"}),
            "invalid-request",
            "idempotency_key",
            "printable ASCII",
        ),
        (
            "webhook_subscription_create",
            json!({"target_url": "https://example.com"}),
            "invalid-request",
            "event_types",
            "event_types",
        ),
        (
            "webhook_subscription_create",
            json!({"secret": "whsec_chosen_by_an_agent"}),
            "invalid-request",
            "secret",
            "unknown argument `secret`",
        ),
    ] {
        let problem = refused(&scene, name, arguments).await;
        assert_eq!(problem["type"], format!("/problems/{kind}"), "{name}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(said), "{name}: {problem}");
        assert_eq!(problem["argument"], argument, "{name}: {problem}");
    }
    scene.app.stop().await;
}

/// Catches: a replay that is made where the agent did not say `dry_run: false`.
#[tokio::test]
async fn a_replay_only_counts_unless_told_otherwise() {
    let scene = Scene::new(200).await;
    let (app, key) = (&scene.app, &scene.manager);
    let filter = json!({"state": "delivered"});
    for dry_run in [None, Some(Value::Null), Some(json!(true))] {
        let mut arguments = json!({"filter": filter});
        if let Some(dry_run) = dry_run {
            arguments["dry_run"] = dry_run;
        }
        let count = call(app, key, "webhook_replay", &arguments).await.unwrap();
        assert!(count["matched"] == 1 && count["id"].is_null(), "{arguments}: {count}");
    }
    assert_eq!(app.call("GET", "/replays", Some(key), None).await.1["data"], json!([]));
    let arguments = json!({"filter": filter, "dry_run": false, "idempotency_key": "it"});
    let made = call(app, key, "webhook_replay", &arguments).await.unwrap();
    assert!(made["id"].as_str().unwrap().starts_with("rpl_"), "{made}");
    // With the same key nothing is made twice.
    let again = call(app, key, "webhook_replay", &arguments).await.unwrap();
    assert_eq!(again["id"], made["id"]);
    eventually("the event again", async || (scene.receiver.count() == 2).then_some(())).await;
    scene.app.stop().await;
}

/// Catches: the secret in what a model reads.
#[tokio::test]
async fn an_agent_is_shown_no_secret() {
    let scene = Scene::new(200).await;
    let arguments = json!({"target_url": scene.receiver.url("/b"), "event_types": "b.c",
        "headers": {"Authorization": "Bearer of-the-receiver"}});
    let made = call(&scene.app, &scene.manager, "webhook_subscription_create", &arguments).await;
    let made = made.unwrap();
    assert!(made["id"].is_string() && made.get("secret").is_none(), "{made}");
    assert_eq!(made["headers"]["Authorization"], "[redacted]", "{made}");
    let path = format!("/subscriptions/{}/secret", made["id"].as_str().unwrap());
    let secret = scene.app.call("GET", &path, Some(&scene.manager), None).await.1;
    assert!(secret["secret"].as_str().unwrap().starts_with("whsec_"));
    scene.app.stop().await;
}

/// Catches: a diagnosis that does not know the failure, the change before it, what waits or what is
/// parked.
#[tokio::test]
async fn a_diagnosis_tells_what_is_wrong_and_what_to_do() {
    let scene = Scene::new(404).await;
    let (app, key) = (&scene.app, &scene.manager);
    let diagnose = async || {
        let arguments = json!({"subscription_id": "crm"});
        call(app, key, "webhook_diagnose", &arguments).await.unwrap()
    };
    let told = eventually("the figures", async || {
        let told = diagnose().await;
        (told["health"] == "failing" && told["failed_attempts"] == 1).then_some(told)
    });
    let told = told.await;
    assert_eq!(told["subscription_id"], scene.subscription.as_str());
    let failure = &told["failures"][0];
    assert_eq!((&failure["class"], &failure["status"]), (&json!("http_status"), &json!(404)));
    assert_eq!((&failure["count"], &failure["example"]), (&json!(1), &json!(scene.delivery)));
    assert_eq!((&told["failed_attempts"], &told["failure_streak"]), (&json!(1), &json!(1)));
    assert_eq!(told["waiting"], json!({"queued": 1, "parked": 0, "is_exact": true}));
    assert_eq!(told["last_error"]["status"], 404);
    assert!(told["failing_since"].is_string() && told["disabled"].is_null());
    let steps = told["steps"].to_string();
    assert!(steps.contains("`target_url`") && !steps.contains("changes"), "{steps}");

    // Changed, disabled, and something comes for it.
    let update = json!({"subscription_id": "crm", "description": "old", "is_active": false});
    call(app, key, "webhook_subscription_update", &update).await.unwrap();
    let published = json!({"type": "invoice.paid", "payload": {}});
    call(app, key, "webhook_publish", &published).await.unwrap();
    let told = eventually("what is parked", async || {
        let told = diagnose().await;
        (told["waiting"]["parked"] == 2).then_some(told)
    });
    let told = told.await;
    assert_eq!(
        (&told["health"], &told["disabled"]["because"]),
        (&json!("disabled"), &json!("owner"))
    );
    assert_eq!(told["changes"][0]["revision"], 2);
    assert_eq!(told["changes"][0]["fields"], json!(["is_active", "description"]));
    assert_eq!(told["changes"][1]["fields"], json!([]));
    assert!(told["steps"].to_string().contains("on purpose"), "{told}");
    scene.app.stop().await;
}
