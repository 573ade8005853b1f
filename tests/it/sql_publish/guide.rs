//! The examples of the guide, run as they stand in it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;
use sqlx::{Connection, PgConnection};

use super::{ask, count, delivered, role, run, session, subscribe};
use crate::{
    support::{
        Receiver, TestApp, TestDatabase,
        tools::{self, install, prepared, python_with, skip},
    },
    tidy::root,
};

const PSYCOPG: &str = "psycopg[binary]==3.3.4";
const PAYLOAD: &str = r#"{"id": 1001, "total": "12.50"}"#;

/// The first example of the guide in a language.
fn example(language: &str) -> String {
    let guide = fs::read_to_string(root().join("docs/sql.md")).unwrap();
    let fence = format!("```{language}\n");
    let example = guide.split(&fence).nth(1).unwrap_or_else(|| panic!("no example in {language}"));
    example.split("```").next().unwrap().to_owned()
}

/// A service with a subscription, on a database with orders, and a role that the examples run as.
async fn scene() -> (TestApp, Receiver, TestDatabase, String) {
    let receiver = Receiver::always(200).await;
    let database = TestDatabase::new().await;
    let app = TestApp::on(database.clone(), &[]).await;
    subscribe(&app, &receiver, json!({"payload_format": "raw"})).await;
    let role = role(&database).await;
    let orders = format!(
        "create table orders (id int primary key, state text);
         insert into orders values (1001, 'open');
         grant select, update on orders to {role}"
    );
    run(&mut session(&database).await, &orders).await;
    (app, receiver, database, role)
}

/// The event of an example has come, and its order is paid.
async fn check(app: &TestApp, receiver: &Receiver, database: &TestDatabase, id: &str) {
    delivered(app, id).await;
    let received = receiver.received();
    assert_eq!(received.len(), 1);
    assert_eq!(received[0].header("x-webhook-event"), "order.paid");
    let body: serde_json::Value = serde_json::from_slice(&received[0].body).unwrap();
    assert_eq!(body, serde_json::from_str::<serde_json::Value>(PAYLOAD).unwrap());
    let paid = "select count(*) from orders where state = 'paid'";
    assert_eq!(count(&mut session(database).await, paid).await, 1);
}

/// Runs a program of the examples, which prints the id.
async fn printed(mut command: Command, database: &TestDatabase, role: &str) -> String {
    command
        .env("PGHOST", database.options.get_socket().unwrap())
        .env("PGDATABASE", &database.name)
        .env("PGUSER", role);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Catches: an example of the guide that does not work as it stands, or needs more than the role that
/// the guide makes.
#[tokio::test]
async fn the_example_in_sql_works() {
    let (app, receiver, database, role) = scene().await;
    let options = database.options.clone().username(&role);
    let mut session = PgConnection::connect_with(&options).await.unwrap();
    let example = example("sql");
    let (before, select) = example.split_once("select ").unwrap();
    let (select, after) = select.split_once(";\n").unwrap();
    run(&mut session, before).await;
    let id = ask(&mut session, &format!("select {select}")).await.unwrap();
    run(&mut session, after).await;
    check(&app, &receiver, &database, &id).await;
    app.stop().await;
}

/// Catches: as above.
#[tokio::test]
async fn the_example_in_python_works() {
    let Some(python) = tokio::task::spawn_blocking(python_with_psycopg).await.unwrap() else {
        return;
    };
    let (app, receiver, database, role) = scene().await;
    let mut command = Command::new(python);
    command.args(["-c", &example("python")]);
    let id = printed(command, &database, &role).await;
    check(&app, &receiver, &database, &id).await;
    app.stop().await;
}

/// Catches: as above.
#[tokio::test]
async fn the_example_in_node_works() {
    let Some(folder) = tokio::task::spawn_blocking(node_with_pg).await.unwrap() else {
        return;
    };
    let (app, receiver, database, role) = scene().await;
    let mut command = Command::new("node");
    command.args(["--input-type=module", "--eval", &example("js")]).current_dir(folder);
    let id = printed(command, &database, &role).await;
    check(&app, &receiver, &database, &id).await;
    app.stop().await;
}

fn python_with_psycopg() -> Option<PathBuf> {
    python_with("psycopg", PSYCOPG)
}

fn node_with_pg() -> Option<PathBuf> {
    if let Err(error) = tools::run(Command::new("node").arg("--version")) {
        skip(&format!("node and npm are needed: {error}"));
        return None;
    }
    let sources = root().join("tests/it/sql_publish/node");
    let names = [".npmrc", "package-lock.json", "package.json"];
    let texts = names.map(|name| fs::read(sources.join(name)).unwrap());
    let key: Vec<_> = texts.iter().map(Vec::as_slice).collect();
    let made = prepared("pg", &key, |folder: &Path| {
        fs::create_dir_all(folder).map_err(|error| error.to_string())?;
        for (name, text) in names.iter().zip(&texts) {
            fs::write(folder.join(name), text).map_err(|error| error.to_string())?;
        }
        install(folder)
    });
    Some(made.expect("npm installs what the lock file names"))
}
