//! The way to the database: its schema, addresses, passwords, TLS, and a pooler in between.

mod hosts;
mod passwords;
mod pooler;
mod publish_path;
mod schema;
mod tls;

use serde_json::json;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::support::process::Process;

/// Runs statements that return no rows.
async fn run(session: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(session).await.unwrap();
}

/// The one number that a statement returns.
async fn count(session: &mut PgConnection, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(session).await.unwrap()
}

/// Posts an event to a target; returns the status and the answer.
async fn post(service: &Process, target: &str) -> (u16, String) {
    let body = json!({"payload": {"n": 1}, "target_url": target});
    let request = reqwest::Client::builder()
        .no_proxy()
        .build()
        .unwrap()
        .post(format!("{}/events", service.base))
        .header("content-type", "application/json")
        .body(body.to_string());
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

/// Status and text of `/readyz`.
async fn readiness(service: &Process) -> (u16, String) {
    let response = reqwest::get(format!("{}/readyz", service.base)).await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}
