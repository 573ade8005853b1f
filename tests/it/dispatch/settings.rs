//! What a request says of a target stays with the delivery, and is kept from others.

use serde_json::json;
use webhook_dispatcher::domain::{
    EventId,
    sealing::{SealingKey, SealingKeys},
};

use super::{complete, delivery_of, id_of, to};
use crate::support::{Answer, Receiver, TestApp, TestDatabase, eventually};

const HUSH: &str = "Bearer hush-hush-hush";

/// Catches: a retry, a retry by hand or a replay that forgets method, headers or policy; credentials
/// that stand in the database, or are shown.
#[tokio::test]
async fn method_headers_and_policy_go_with_the_delivery_to_its_end() {
    let database = TestDatabase::new().await;
    let app = TestApp::on(database.clone(), &[]).await;
    let receiver =
        Receiver::start(|before, _| Answer::status(if before < 3 { 503 } else { 200 })).await;
    let target = json!({"url": receiver.url("/a"), "method": "PUT",
        "headers": {"Authorization": HUSH, "x-tenant": "7"}});
    let mut body = to(&json!([target]));
    body["headers"] = json!({"X-Run": "41", "X-Tenant": "common"});
    body["retry"] = json!([0.05]);
    let (status, answer) = app.post("/dispatch", &body).await;
    assert_eq!((status.as_u16(), &answer["results"][0]["status"]), (200, &json!("failed")));
    let id = id_of(&answer);
    let delivery = delivery_of(&app, id).await;
    assert_eq!(delivery["attempt_count"], 2, "{delivery}");

    let retry = format!("/deliveries/{}/retry", delivery["id"].as_str().unwrap());
    assert_eq!(app.post(&retry, &json!({})).await.0, 202);
    eventually("the retry by hand", async || (receiver.count() == 3).then_some(())).await;
    eventually("it is recorded", async || {
        let delivery = delivery_of(&app, id).await;
        (delivery["attempt_count"] == 3 && delivery["is_sent_again"] == false).then_some(())
    })
    .await;
    let replay = json!({"filter": {"event_id": id}});
    assert!(app.post("/replays", &replay).await.0.is_success());
    app.wait_for(id, "delivered").await;

    let received = receiver.received();
    assert_eq!(received.len(), 4);
    for request in &received {
        assert_eq!((request.method.as_str(), request.header("authorization")), ("PUT", HUSH));
        assert_eq!((request.header("x-tenant"), request.header("x-run")), ("7", "41"));
        assert_eq!(request.headers.get_all("x-tenant").iter().count(), 1);
    }
    let log = delivery_of(&app, id).await;
    for attempt in log["attempts"].as_array().unwrap() {
        let headers = &attempt["request"]["headers"];
        assert_eq!(attempt["request"]["method"], "PUT");
        assert_eq!(headers["authorization"], "[redacted]", "{attempt}");
    }
    let told = complete(&app, id).await;
    assert_eq!((&told["status"], &told["results"][0]["code"]), (&json!("delivered"), &json!(200)));
    let dump = database.dump().await;
    assert!(!dump.contains("hush-hush"), "a credential stands in the database");
    app.stop().await;
}

/// Catches: headers that open in another row; an older sealing key that can never be dropped; a
/// delivery that is sent without its headers, or lost, where they do not open.
#[tokio::test]
async fn headers_are_sealed_for_their_delivery_and_sealed_anew() {
    let old = "0".repeat(64);
    let new = "1".repeat(64);
    let database = TestDatabase::new().await;
    let flag = |keys: &str| format!("--encryption-key={keys}");
    let api_flags = ["--role=api", "--dispatch-wait=0.05", &flag(&old)];
    let api = TestApp::on(database.clone(), &api_flags).await;
    let receiver = Receiver::always(200).await;
    let target = |n: u8| json!({"url": receiver.url("/"), "headers": {"x-n": n.to_string()}});
    let (_, answer) = api.post("/dispatch", &to(&json!([target(0), target(1)]))).await;
    let id = id_of(&answer).to_owned();
    api.stop().await;
    let store = database.store();
    let swap = "update delivery_target a set sealed_headers = b.sealed_headers
                from delivery_target b where a.delivery_id > b.delivery_id";
    sqlx::query(swap).execute(store.pool()).await.unwrap();

    let app = TestApp::on(database.clone(), &[&flag(&format!("{new},{old}"))]).await;
    eventually("one is sent", async || (receiver.count() == 1).then_some(())).await;
    assert_eq!(receiver.received()[0].header("x-n"), "0");
    let keys = |hex: &str| SealingKeys::from(hex.parse::<SealingKey>().unwrap());
    let (low, _) = id.parse::<EventId>().unwrap().delivery_range();
    let context = format!("target headers {low}").into_bytes();
    eventually("it is sealed anew", async || {
        let sealed: Vec<u8> =
            sqlx::query_scalar("select sealed_headers from delivery_target where delivery_id = $1")
                .bind(low.uuid())
                .fetch_one(store.pool())
                .await
                .unwrap();
        keys(&new).open(&sealed, &context).ok()
    })
    .await;
    // The other one waits: what cannot be opened is neither sent bare nor given up.
    let told = super::shown(&app, &id).await;
    assert_eq!(told["results"][1]["status"], "pending", "{told}");
    assert_eq!(receiver.count(), 1);
    app.stop().await;
}

/// Catches: credentials that outlive the event that they were for.
#[tokio::test]
async fn an_erasure_takes_the_headers_along() {
    let app = TestApp::start().await;
    let receiver = Receiver::always(200).await;
    let target = json!({"url": receiver.url("/"), "headers": {"authorization": HUSH}});
    let mut ids = Vec::new();
    for _ in 0..2 {
        let (_, answer) = app.post("/dispatch", &to(&json!([target]))).await;
        ids.push(id_of(&answer).to_owned());
    }
    let erasure = json!({"scope": "event", "event_id": ids[0]});
    let (status, answer) = app.post("/erasures", &erasure).await;
    assert_eq!(status, 202, "{answer}");
    let (low, _) = ids[1].parse::<EventId>().unwrap().delivery_range();
    eventually("one is left", async || {
        let left: Vec<sqlx::types::Uuid> =
            sqlx::query_scalar("select delivery_id from delivery_target")
                .fetch_all(app.store.pool())
                .await
                .unwrap();
        (left == [low.uuid()]).then_some(())
    })
    .await;
    app.stop().await;
}
