//! Replays: what is sent again as a job.

mod requests;
mod running;
mod steps;

use std::collections::BTreeSet;

use serde_json::{Value, json};
use webhook_dispatcher::{domain::ReplayId, store::replay_steps::Step};

use crate::support::{TestApp, eventually};

/// A service that accepts and sends nothing: the test makes the steps.
async fn quiet() -> TestApp {
    TestApp::with(&["--role=api"]).await
}

async fn subscribe(app: &TestApp, target: &str, event_types: &str) -> String {
    let body = json!({"target_url": target, "event_types": event_types});
    app.make("/subscriptions", body).await["id"].as_str().unwrap().to_owned()
}

/// Accepts so many events of a type, in batches; tells their ids, lowest first.
async fn publish(app: &TestApp, event_type: &str, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    while ids.len() < count {
        let size = (count - ids.len()).min(1_000);
        let events: Vec<_> =
            (0..size).map(|n| json!({"payload": {"n": n}, "type": event_type})).collect();
        let (status, answer) =
            app.call("POST", "/events/batch", None, Some(&json!({"events": events}))).await;
        assert_eq!(status, 202, "{answer}");
        let results = answer["results"].as_array().unwrap().iter();
        ids.extend(results.map(|result| result["id"].as_str().unwrap().to_owned()));
    }
    ids.sort_unstable();
    ids
}

/// Ends all that waits in the queue, as if it had been sent and answered so.
async fn end_all(app: &TestApp, state: &str, reason: Option<&str>, status: Option<i16>) {
    sqlx::query(
        "with gone as (delete from delivery_queue where run is null returning *)
         insert into delivery (delivery_id, event_id, application_id, lane_id, subscription_id,
                               event_type, target_url, state, reason, attempt_count, last_status,
                               created_at)
         select g.delivery_id, g.event_id, g.application_id, g.lane_id, g.subscription_id, e.type,
                g.target_url, $1, $2, 1, $3, g.created_at
         from gone g join event e using (application_id, event_id)",
    )
    .bind(state)
    .bind(reason)
    .bind(status)
    .execute(app.store.pool())
    .await
    .unwrap();
}

/// Dead deliveries of so many new events of a type.
async fn dead(app: &TestApp, event_type: &str, count: usize) -> Vec<String> {
    let ids = publish(app, event_type, count).await;
    end_all(app, "dead", Some("http_status"), Some(500)).await;
    ids
}

/// Makes a replay, which must succeed.
async fn replay(app: &TestApp, body: Value) -> Value {
    let (status, made) = app.call("POST", "/replays", None, Some(&body)).await;
    assert_eq!(status, 202, "{body}: {made}");
    assert_eq!((&made["state"], &made["matched"]), (&json!("running"), &json!(0)));
    made
}

fn id_of(replay: &Value) -> ReplayId {
    replay["id"].as_str().unwrap().parse().unwrap()
}

async fn shown(app: &TestApp, replay: &Value) -> Value {
    let (status, shown) = app.get(&format!("/replays/{}", replay["id"].as_str().unwrap())).await;
    assert_eq!(status, 200, "{shown}");
    shown
}

async fn act(app: &TestApp, replay: &Value, what: &str) -> (u16, Value) {
    let path = format!("/replays/{}/{what}", replay["id"].as_str().unwrap());
    app.call("POST", &path, None, None).await
}

/// The next step, once it is due.
async fn step(app: &TestApp, replay: &Value) -> Step {
    let id = id_of(replay);
    eventually("a step is due", async || app.store.step_replay(id).await.unwrap()).await
}

/// Makes steps until there is none; shows the replay.
async fn run(app: &TestApp, replay: &Value) -> Value {
    while step(app, replay).await.replay.ended_at.is_none() {}
    shown(app, replay).await
}

async fn wait_for(app: &TestApp, replay: &Value, state: &str) -> Value {
    eventually(state, async || {
        let now = shown(app, replay).await;
        (now["state"] == state).then_some(now)
    })
    .await
}

/// The events that replays have put into the queue.
async fn queued(app: &TestApp) -> BTreeSet<String> {
    let ids: Vec<sqlx::types::Uuid> =
        sqlx::query_scalar("select event_id from delivery_queue where run = 'replay'")
            .fetch_all(app.store.pool())
            .await
            .unwrap();
    let count = ids.len();
    let events: BTreeSet<_> = ids.into_iter().map(|id| format!("evt_{}", id.as_simple())).collect();
    assert_eq!(events.len(), count, "each once");
    events
}

fn set(ids: &[String]) -> BTreeSet<String> {
    ids.iter().cloned().collect()
}

async fn execute(app: &TestApp, statement: &'static str) {
    sqlx::query(statement).execute(app.store.pool()).await.unwrap();
}
