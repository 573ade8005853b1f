//! More than Postgres takes.

use std::collections::BTreeSet;

use serde_json::json;

use super::{Client, post};
use crate::support::{Receiver, TestApp, eventually};

/// How many requests there may be, and how many events come at a time.
const REQUESTS_MAX: usize = 48;
const BURST: usize = 240;

/// Catches: a burst that is queued without a bound while commits stall; an answer 202 of what is not
/// kept; something that is kept and refused, or sent twice; a service that does not come back.
#[tokio::test]
async fn a_burst_beyond_what_postgres_takes_is_taken_or_refused() {
    let receiver = Receiver::always(200).await;
    let flags = [format!("--requests-max={REQUESTS_MAX}")];
    let app = TestApp::with(&[flags[0].as_str()]).await;
    // What is accepted is inserted here, and waits.
    let mut lock = app.store.pool().begin().await.unwrap();
    sqlx::raw_sql("lock table event in share mode").execute(&mut *lock).await.unwrap();
    let body = |n: usize| json!({"payload": {"n": n}, "target_url": receiver.url("/")}).to_string();
    let mut clients = Vec::new();
    for n in 0..BURST {
        let body = body(n);
        let head = post("/events", &format!("content-length: {}", body.len()));
        clients.push(Client::sending(&app, head + &body).await);
    }
    // All but those with a place are told at once, while nothing moves.
    let mut refused = BTreeSet::new();
    let mut waiting = Vec::new();
    for (n, mut client) in clients.into_iter().enumerate() {
        if n < REQUESTS_MAX {
            waiting.push((n, client));
            continue;
        }
        let answer = client.answer().await.expect("an answer");
        answer.check(503, "busy");
        refused.insert(n);
    }
    assert_eq!(refused.len(), BURST - REQUESTS_MAX);
    let (status, _) = app.get("/livez").await;
    assert_eq!(status, 200);
    lock.rollback().await.unwrap();
    let mut accepted = BTreeSet::new();
    for (n, mut client) in waiting {
        let answer = client.answer().await.expect("an answer");
        assert_eq!(answer.status, 202, "{n}: {answer:?}");
        accepted.insert((n, answer.body["id"].as_str().unwrap().to_owned()));
    }
    for (_, id) in &accepted {
        app.wait_for(id, "delivered").await;
    }
    let stored: i64 = super::events(&app).await;
    assert_eq!(usize::try_from(stored).unwrap(), REQUESTS_MAX, "nothing that was refused is kept");
    let mut sent = BTreeSet::new();
    for received in receiver.received() {
        let body: serde_json::Value = serde_json::from_slice(&received.body).unwrap();
        let n = usize::try_from(body["n"].as_u64().unwrap()).unwrap();
        assert!(sent.insert(n), "{n} was sent twice");
    }
    assert_eq!(sent, accepted.iter().map(|(n, _)| *n).collect());
    // And what was refused is taken when it comes again.
    for n in refused.iter().take(20) {
        let body = body(*n);
        let head = post("/events", &format!("content-length: {}", body.len()));
        let mut client = Client::sending(&app, head + &body).await;
        assert_eq!(client.answer().await.expect("an answer").status, 202);
    }
    app.stop().await;
}

/// Catches: callers who wait for each other: each tries in its turn to read what all of them need.
#[tokio::test]
async fn where_reading_stalls_nobody_waits_for_the_others() {
    let app = TestApp::start().await;
    let mut lock = app.store.pool().begin().await.unwrap();
    let statement = "lock table application in access exclusive mode";
    sqlx::raw_sql(statement).execute(&mut *lock).await.unwrap();
    let body = json!({"payload": 1, "target_url": "http://127.0.0.1:9/"});
    let all = futures_util::future::join_all((0..20).map(|_| app.post("/events", &body)));
    let answers = tokio::time::timeout(2 * super::PATIENCE, all).await.expect("all are answered");
    for (status, problem) in answers {
        assert_eq!(status, 503, "{problem}");
    }
    lock.rollback().await.unwrap();
    eventually("it goes on", async || (app.post("/events", &body).await.0 == 202).then_some(()))
        .await;
    app.stop().await;
}

/// Catches: readiness that waits for a database that does not answer; callers that are held for ever.
#[tokio::test]
async fn where_commits_stall_every_caller_is_answered() {
    let app = TestApp::start().await;
    let mut lock = app.store.pool().begin().await.unwrap();
    sqlx::raw_sql("lock table event in share mode").execute(&mut *lock).await.unwrap();
    let body = json!({"payload": 1, "target_url": "http://127.0.0.1:9/"});
    let one = async { app.post("/events", &body).await };
    let many = async {
        let events: Vec<_> = (0..50).map(|_| body.clone()).collect();
        app.post("/events/batch", &json!({"events": events})).await
    };
    let dispatch = async {
        let body = json!({"event": "a.b", "payload": 1, "targets": ["http://127.0.0.1:9/"]});
        app.post("/dispatch", &body).await
    };
    let all = async { tokio::join!(one, many, dispatch) };
    let answers = tokio::time::timeout(2 * super::PATIENCE, all).await.expect("all are answered");
    for (status, problem) in [answers.0, answers.1, answers.2] {
        assert_eq!(status, 503, "{problem}");
        assert_eq!(problem["type"], "/problems/unavailable");
    }
    lock.rollback().await.unwrap();
    eventually("it goes on", async || (app.post("/events", &body).await.0 == 202).then_some(()))
        .await;
    app.stop().await;
}
