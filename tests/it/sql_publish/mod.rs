//! Publishing from SQL: the function, what becomes of what it keeps, and the guide's examples.

mod function;
mod guide;
mod moving;

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection, Row, postgres::PgRow};

use crate::support::{Receiver, TestApp, TestDatabase, eventually};

/// A session of the database's owner.
async fn session(database: &TestDatabase) -> PgConnection {
    database.options.connect().await.unwrap()
}

/// A session of a role that may execute the function, and nothing else.
async fn publisher(database: &TestDatabase) -> PgConnection {
    let role = role(database).await;
    database.options.clone().username(&role).connect().await.unwrap()
}

/// Makes a role that may execute the function, and nothing else; tells its name.
async fn role(database: &TestDatabase) -> String {
    let role = format!("publisher_of_{}", database.name);
    run(
        &mut session(database).await,
        &format!("create role {role} login; grant execute on function publish to {role}"),
    )
    .await;
    role
}

/// Statements without an answer.
async fn run(session: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(session).await.unwrap();
}

/// The one value of a statement, as text; or SQLSTATE, argument, message and hint of its error.
async fn ask(session: &mut PgConnection, sql: &str) -> Result<String, Refusal> {
    let answer = sqlx::query(AssertSqlSafe(sql.to_owned())).fetch_one(session).await;
    let text = |row: PgRow| row.try_get::<String, _>(0).unwrap();
    answer.map(text).map_err(|error| {
        let error = error.into_database_error().expect("Postgres answers");
        let error = error.downcast_ref::<sqlx::postgres::PgDatabaseError>();
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        Refusal {
            code: error.code().to_owned(),
            argument: text(error.column()),
            message: error.message().to_owned(),
            hint: text(error.hint()),
        }
    })
}

#[derive(Debug, PartialEq)]
struct Refusal {
    code: String,
    argument: String,
    message: String,
    hint: String,
}

async fn count(session: &mut PgConnection, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(session).await.unwrap()
}

/// A text in quotes.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A subscription of the application `default`, to all its types.
async fn subscribe(app: &TestApp, receiver: &Receiver, more: Value) {
    let mut body = json!({"target_url": receiver.url("/"), "event_types": "*"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    app.make("/subscriptions", body).await;
}

/// Waits until an event is there, which it is once it is moved, and delivered; shows it.
async fn delivered(app: &TestApp, id: &str) -> Value {
    eventually("the move", async || {
        (app.get(&format!("/events/{id}")).await.0 == 200).then_some(())
    })
    .await;
    app.wait_for(id, "delivered").await
}
