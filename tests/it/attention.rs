//! `GET /subscriptions?attention=true`: those that somebody should look at.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Receiver, TestApp, TestDatabase, eventually};

async fn subscribe(app: &TestApp, uid: &str, target_url: &str) -> String {
    let body =
        json!({"uid": uid, "target_url": target_url, "event_types": uid, "retry": [0, 0, 3600]});
    app.make("/subscriptions", body).await["id"].as_str().unwrap().to_owned()
}

async fn publish(app: &TestApp, event_type: &str) -> String {
    app.publish(json!({"payload": 1, "type": event_type})).await
}

async fn page(app: &TestApp, query: &str) -> Value {
    let (status, page) = app.get(&format!("/subscriptions?attention=true{query}")).await;
    assert_eq!(status, 200, "{page}");
    page
}

/// What is the matter with which, as it is listed.
fn matters(page: &Value) -> Vec<(&str, Vec<&str>)> {
    page["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            let why = one["attention"].as_array().unwrap();
            let why = why.iter().map(|one| one["matter"].as_str().unwrap()).collect();
            (one["uid"].as_str().unwrap(), why)
        })
        .collect()
}

/// Catches: one that is well, or that its owner has disabled, among them; one that is missing, or under
/// another matter; a page that ends the list too early.
#[tokio::test]
async fn what_is_disabled_failing_or_behind_is_listed() {
    let (well, failing, gone) =
        (Receiver::always(200).await, Receiver::always(503).await, Receiver::always(410).await);
    let database = TestDatabase::new().await;
    let app = TestApp::on(database.clone(), &["--backoff-base-seconds=0.01"]).await;
    for (uid, receiver) in
        [("well", &well), ("failing", &failing), ("gone", &gone), ("off", &well), ("once", &well)]
    {
        subscribe(&app, uid, &receiver.url("/")).await;
    }
    app.call("POST", "/subscriptions/off/disable", None, None).await;
    for uid in ["well", "gone", "failing", "off"] {
        publish(&app, uid).await;
    }
    let found = eventually("two that want attention", async || {
        let page = page(&app, "").await;
        (matters(&page).len() == 2
            && page["data"][1]["attention"][0]["detail"]
                .as_str()
                .unwrap()
                .contains("last 3 attempts"))
        .then_some(page)
    })
    .await;
    assert_eq!(matters(&found), [("gone", vec!["disabled"]), ("failing", vec!["failing"])]);
    let failing_body = &found["data"][1]["attention"][0];
    let detail = failing_body["detail"].as_str().unwrap();
    assert!(detail.contains("http_status") && detail.contains("503"), "{failing_body}");
    assert!(found["data"][0]["attention"][0]["detail"].as_str().unwrap().contains("410"));
    assert_eq!(found["next_cursor"], Value::Null);

    // A success, and it is well again. Nothing is told of it elsewhere.
    let (_, plain) = app.get("/subscriptions").await;
    assert!(plain["data"].as_array().unwrap().iter().all(|one| one["attention"].is_null()));
    let patch = json!({"target_url": well.url("/")});
    app.call("PATCH", "/subscriptions/failing", None, Some(&patch)).await;
    let event = publish(&app, "failing").await;
    app.wait_for(&event, "delivered").await;
    eventually("the one that is well again is gone", async || {
        (matters(&page(&app, "").await) == [("gone", vec!["disabled"])]).then_some(())
    })
    .await;
    app.stop().await;

    // Nobody sends: what is due for a while is behind.
    let app = TestApp::on(database, &["--role=api"]).await;
    for uid in ["well", "once"] {
        publish(&app, uid).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(matters(&page(&app, "").await), [("gone", vec!["disabled"])]);
    sqlx::query("update delivery_queue set due_at = now() - interval '61 s' where owner is null")
        .execute(app.store.pool())
        .await
        .unwrap();
    let expected = [
        ("once", vec!["behind"]),
        ("gone", vec!["disabled"]),
        ("failing", vec!["behind"]),
        ("well", vec!["behind"]),
    ];
    assert_eq!(matters(&page(&app, "").await), expected);
    assert_eq!(matters(&page(&app, "&is_active=false").await), expected[1..2]);
    // By pages of one.
    let (mut listed, mut cursor) = (Vec::new(), String::new());
    for _ in 0..expected.len() {
        let page = page(&app, &format!("&limit=1{cursor}")).await;
        listed.extend(matters(&page).iter().map(|(uid, _)| (*uid).to_owned()));
        cursor = page["next_cursor"].as_str().map(|it| format!("&cursor={it}")).unwrap_or_default();
    }
    assert_eq!(listed, expected.map(|(uid, _)| uid));
    let (status, problem) = app.get("/subscriptions?attention=false").await;
    assert_eq!((status.as_u16(), &problem["parameter"]), (422, &json!("attention")));
    app.stop().await;
}
