//! API keys: look-ups of unknown ones, the lifetime of those that others make, and names.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use webhook_dispatcher::domain::ApiKey;

use super::raw;
use crate::{
    applications::{ADMIN_KEY, WITH_KEYS, key, tenant},
    support::{TestApp, TestDatabase, eventually},
};

fn made_up() -> String {
    ApiKey::from_random(rand::random()).reveal().to_owned()
}

async fn execute(app: &TestApp, sql: &'static str) {
    sqlx::query(sql).execute(app.store.pool()).await.unwrap();
}

/// A text of another form, and a made-up key that was tried a moment ago, cost no statement: the table
/// is not even there.
#[tokio::test]
async fn made_up_keys_that_are_repeated_cost_no_statement() {
    let app = TestApp::with(&WITH_KEYS).await;
    let status = async |key: &str| app.call("GET", "/events", Some(key), None).await.0;
    let same = made_up();
    assert_eq!(status(&same).await, 401);
    execute(&app, "alter table api_key rename to hidden").await;
    for _ in 0..5 {
        assert_eq!(status(&same).await, 401);
    }
    for other in ["wrong", "whd_", "whd_guess", &format!("{same}x"), &same.replace("whd_", "whd-")]
    {
        assert_eq!(status(other).await, 401, "{other}");
    }
    assert_eq!(status(&made_up()).await, 503, "this one is looked up");
    execute(&app, "alter table hidden rename to api_key").await;
    app.stop().await;
}

/// Different made-up keys wait for one statement together, and the next one is not at once.
#[tokio::test]
async fn made_up_keys_share_statements() {
    let app = TestApp::with(&WITH_KEYS).await;
    let status = async |key: &str| app.call("GET", "/events", Some(key), None).await.0;
    let mut blocker = app.store.pool().begin().await.unwrap();
    sqlx::query("lock table api_key in access exclusive mode")
        .execute(&mut *blocker)
        .await
        .unwrap();
    let waiting = async || -> i64 {
        let sql = "select count(*) from pg_stat_activity
                   where datname = current_database() and wait_event_type = 'Lock'";
        sqlx::query_scalar(sql).fetch_one(app.store.pool()).await.unwrap()
    };
    let tries = (0..60).map(|_| async { status(&made_up()).await });
    let released = async {
        eventually("a look-up waits", async || (waiting().await > 0).then_some(())).await;
        // The others have come by then; if not, fewer statements wait.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let count = waiting().await;
        blocker.rollback().await.unwrap();
        count
    };
    let (answered, count) = tokio::join!(futures_util::future::join_all(tries), released);
    assert!(answered.iter().all(|status| *status == 401), "{answered:?}");
    assert_eq!(count, 1, "statements at a time");
    // One after the other: at most ten a second, however slow this machine is.
    let begun = Instant::now();
    for _ in 0..8 {
        assert_eq!(status(&made_up()).await, 401);
    }
    assert!(begun.elapsed() > Duration::from_millis(650), "{:?}", begun.elapsed());
    app.stop().await;
}

/// A key made on one process works on another at once, during a flood of made-up ones as well.
#[tokio::test]
async fn fresh_keys_work_at_once_during_a_flood() {
    let database = TestDatabase::new().await;
    let app = TestApp::on(database.clone(), &WITH_KEYS).await;
    let other = TestApp::on(database, &WITH_KEYS).await;
    let good = key(&app, "default", "viewer").await;
    let is_over = AtomicBool::new(false);
    let flood = async {
        while !is_over.load(Ordering::SeqCst) {
            let tries = (0..10).map(|_| async {
                assert_eq!(app.call("GET", "/events", Some(&made_up()), None).await.0, 401);
            });
            futures_util::future::join_all(tries).await;
        }
    };
    let working = async {
        for _ in 0..5 {
            assert_eq!(app.call("GET", "/events", Some(&good), None).await.0, 200);
            let fresh = key(&other, "default", "viewer").await;
            assert_eq!(app.call("GET", "/events", Some(&fresh), None).await.0, 200);
        }
        is_over.store(true, Ordering::SeqCst);
    };
    tokio::join!(flood, working);
    app.stop().await;
    other.stop().await;
}

/// A key that expires makes none that outlives it.
#[tokio::test]
async fn an_expiring_key_makes_no_key_that_outlives_it() {
    let app = TestApp::with(&WITH_KEYS).await;
    tenant(&app, "acme", "viewer").await;
    let path = "/applications/acme/api-keys";
    let make = async |with: &str, expires_at: Value| {
        let body = json!({"role": "manager", "expires_at": expires_at});
        app.call("POST", path, Some(with), Some(&body)).await
    };
    let until = "2127-01-01T00:00:00Z";
    let (_, expiring) = make(ADMIN_KEY, json!(until)).await;
    let expiring = expiring["key"].as_str().unwrap();
    for later in [Value::Null, json!("2127-01-01T00:00:01Z")] {
        let (status, problem) = make(expiring, later.clone()).await;
        assert_eq!(
            (status, &problem["pointer"]),
            (422, &json!("/expires_at")),
            "{later}: {problem}"
        );
        assert!(problem["detail"].as_str().unwrap().contains("not after 2127-01-01T00:00:00"));
    }
    for sooner in [until, "2126-12-31T00:00:00Z"] {
        let (status, made) = make(expiring, json!(sooner)).await;
        assert_eq!(status, 201, "{made}");
        // Nor through the one that it made.
        let made = made["key"].as_str().unwrap();
        assert_eq!(make(made, json!("2127-01-02T00:00:00Z")).await.0, 422);
    }
    let forever = key(&app, "acme", "manager").await;
    assert_eq!(make(&forever, Value::Null).await.0, 201);
    app.stop().await;
}

/// The keys of a tenant learn nothing of the names of others: a name is compared with its own, and not
/// looked up.
#[tokio::test]
async fn names_of_other_applications_are_not_looked_up() {
    let database = TestDatabase::new().await;
    let app = TestApp::on(database.clone(), &WITH_KEYS).await;
    let (acme, _) = tenant(&app, "acme", "viewer").await;
    let (_, rival) = tenant(&app, "rival", "viewer").await;
    app.stop().await;
    // Connections of its own: Postgres shows the last statement of each.
    let app = TestApp::on(database, &[WITH_KEYS.as_slice(), &["--role=api"]].concat()).await;
    let read = async |application: &str| {
        app.call("GET", &format!("/events?application={application}"), Some(&rival), None).await
    };
    assert_eq!(read("rival").await.0, 200);
    let nobody = read("nobody").await;
    assert_eq!(nobody.0, 404, "{}", nobody.1);
    for named in ["acme", acme.as_str(), "app_0192d4e012347abc8def0123456789ab", "default"] {
        assert_eq!(read(named).await, nobody, "{named}");
        let looked_up: Option<String> = sqlx::query_scalar(
            "select query from pg_stat_activity
             where datname = current_database() and pid <> pg_backend_pid()
               and query like '%from application%uid = $%'
               and query not like '%pg_stat_activity%' limit 1",
        )
        .fetch_optional(app.store.pool())
        .await
        .unwrap();
        assert_eq!(looked_up, None, "{named}");
    }
    // Renamed, the new name counts.
    let (status, _) = app
        .call("PATCH", "/applications/rival", Some(ADMIN_KEY), Some(&json!({"uid": "rival-2"})))
        .await;
    assert_eq!(status, 200);
    eventually("the new name", async || (read("rival-2").await.0 == 200).then_some(())).await;
    assert_eq!(read("rival").await, nobody);
    app.stop().await;
}

/// The instance's idempotency keys are no application's.
#[tokio::test]
async fn idempotency_keys_of_the_instance_are_its_own() {
    let app = TestApp::with(&WITH_KEYS).await;
    let producer = key(&app, "default", "producer").await;
    let send = async |with: &str, path: &str, body: &str| {
        let headers =
            [("content-type", "application/json"), ("x-api-key", with), ("idempotency-key", "k")];
        raw(&app, "POST", path, &headers, body).await
    };
    assert_eq!(send(&producer, "/events", r#"{"payload": 1, "type": "a"}"#).await.0, 202);
    let made = send(ADMIN_KEY, "/applications", r#"{"uid": "acme"}"#).await;
    assert_eq!(made.0, 201, "{}", made.2);
    assert_eq!(send(ADMIN_KEY, "/applications", r#"{"uid": "acme"}"#).await.2, made.2);
    // One scope for all of the instance.
    let path = "/event-types?scope=instance";
    let (status, _, answer) = send(ADMIN_KEY, path, r#"{"name": "a.b"}"#).await;
    assert_eq!(status, 409, "{answer}");
    app.stop().await;
}
