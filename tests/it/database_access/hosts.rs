//! `DATABASE_URL` with several hosts: only a session that can write counts.

use sqlx::ConnectOptions;
use tokio::net::TcpListener;

use super::{count, post, readiness, run};
use crate::support::{
    Receiver, TestDatabase, TestServer, eventually,
    process::{ENCRYPTION_KEY, Process, free_port, on},
};

/// The host of a database, as it is put into an address.
fn host(database: &TestDatabase) -> String {
    database.options.get_socket().unwrap().to_str().unwrap().replace('/', "%2F")
}

/// Makes a database refuse to write, as a server does that is no primary any more, or lets it write
/// again; its sessions end.
async fn set_read_only(database: &TestDatabase, is_read_only: bool) {
    let mut admin = database.options.clone().database("postgres").connect().await.unwrap();
    let name = &database.name;
    let value = if is_read_only { "on" } else { "off" };
    run(&mut admin, &format!("alter database {name} set default_transaction_read_only = {value}"))
        .await;
    let end =
        format!("select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'");
    run(&mut admin, &end).await;
}

/// Broken by: a list of hosts that is refused; a silent or read-only host that is not passed over; a
/// fail-over that is found by a restart only.
#[tokio::test]
async fn writes_follow_the_host_that_accepts_them() {
    let first = TestDatabase::new().await;
    let server = TestServer::start("second-host", &[]).await;
    let second = server.database(&first.name).await;
    let receiver = Receiver::always(200).await;
    let target = receiver.url("/");
    // The schema and the proof of the key are in both.
    let url = second.url();
    drop(Process::start(free_port().await, &on(&url)).await);
    set_read_only(&second, true).await;

    // Accepts connections, and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!(
        "postgres://{}@{},{},{}/{}?target_session_attrs=read-write&connect_timeout=10",
        first.options.get_username(),
        silent.local_addr().unwrap(),
        host(&second),
        host(&first),
        first.name
    );
    let environment = [
        ("DATABASE_URL", url.as_str()),
        ("ENCRYPTION_KEY", ENCRYPTION_KEY),
        ("ALLOWED_TARGET_CIDRS", "127.0.0.0/8"),
    ];
    let service = Process::start(free_port().await, &environment).await;
    let (status, answer) = post(&service, &target).await;
    assert_eq!(status, 202, "{answer}");
    let mut in_first = first.options.connect().await.unwrap();
    assert_eq!(count(&mut in_first, "select count(*) from event").await, 1);

    set_read_only(&first, true).await;
    eventually("not ready while no host can write", async || {
        (readiness(&service).await.0 == 503).then_some(())
    })
    .await;
    set_read_only(&second, false).await;
    eventually("the second host", async || (post(&service, &target).await.0 == 202).then_some(()))
        .await;
    let mut in_second = second.options.connect().await.unwrap();
    assert!(count(&mut in_second, "select count(*) from event").await >= 1);
    eventually("ready", async || (readiness(&service).await.0 == 200).then_some(())).await;

    drop(in_second);
    eventually("a delivery from the second host", async || (receiver.count() >= 2).then_some(()))
        .await;
    let before = receiver.count();
    server.postgres.stop().await.unwrap();
    set_read_only(&first, false).await;
    eventually("the first host", async || (post(&service, &target).await.0 == 202).then_some(()))
        .await;
    eventually("a delivery", async || (receiver.count() > before).then_some(())).await;
}
