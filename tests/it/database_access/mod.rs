//! The way to the database: its schema, addresses, passwords, TLS, and a pooler in between.

mod publish_path;
mod schema;

use sqlx::{AssertSqlSafe, PgConnection};

/// Runs statements that return no rows.
async fn run(session: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(session).await.unwrap();
}
