//! Databases that the service refuses, or warns about, before it changes anything.

use sqlx::{ConnectOptions, Connection};

use super::run;
use crate::support::{
    TestDatabase,
    process::{self, Process, free_port, on},
};

/// Broken by: migrations that begin in a database that cannot hold every payload.
#[tokio::test]
async fn database_with_another_encoding_is_refused_before_any_migration() {
    let cluster = TestDatabase::new().await;
    let mut admin = cluster.options.connect().await.unwrap();
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let name = format!("{}_{}", cluster.name, encoding.to_lowercase());
        let create =
            format!("create database {name} encoding '{encoding}' locale 'C' template template0");
        run(&mut admin, &create).await;
        let database = TestDatabase { options: cluster.options.clone().database(&name), name };
        let url = database.url();
        let mut serve = process::command(&on(&url));
        let output = tokio::task::spawn_blocking(move || serve.output().unwrap()).await.unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{log}");
        let name = &database.name;
        let sentence = format!(
            "webhook-dispatcher: DATABASE_URL: the database `{name}` has the encoding {encoding}, \
             and UTF8 is required: create another database with `create database … encoding \
             'UTF8' template template0`"
        );
        assert_eq!(log.lines().last(), Some(sentence.as_str()), "{log}");
        let mut session = database.options.connect().await.unwrap();
        let tables: i64 = sqlx::query_scalar(
            "select count(*) from pg_class where relnamespace = 'public'::regnamespace",
        )
        .fetch_one(&mut session)
        .await
        .unwrap();
        assert_eq!(tables, 0, "nothing was changed");
        session.close().await.unwrap();
    }
}

/// Broken by: a start that says nothing of a schema in which every role may create overloads, or that
/// warns of each schema.
#[tokio::test]
async fn schema_open_to_public_is_warned_of_at_start() {
    let database = TestDatabase::new().await;
    let mut owner = database.options.connect().await.unwrap();
    let warning = "revoke create on schema public from public";
    run(&mut owner, "grant create on schema public to public").await;
    let url = database.url();
    let service = Process::start(free_port().await, &on(&url)).await;
    assert!(service.output().contains(warning), "{}", service.output());
    drop(service);
    run(&mut owner, warning).await;
    let service = Process::start(free_port().await, &on(&url)).await;
    assert!(!service.output().contains(warning), "{}", service.output());
}
