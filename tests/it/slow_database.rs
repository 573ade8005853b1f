//! A database that is slow for a while, and what is left to do when it is not any more.

use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UnixStream},
    sync::watch,
};
use tokio_util::task::TaskTracker;

use crate::support::{Receiver, TestApp, TestDatabase, eventually};

/// Each message of the service takes so much longer on its way to Postgres. Below the time-out of a
/// heartbeat.
const DELAY: Duration = Duration::from_millis(1_300);
/// Long enough for a reconciliation to begin and end.
const SLOW_FOR: Duration = Duration::from_secs(13);

/// The same database behind a proxy that delays what the service sends.
async fn behind_proxy(database: &TestDatabase, delay: watch::Receiver<Duration>) -> TestDatabase {
    let socket = database.options.get_socket().expect("the cluster listens on a socket");
    let socket = socket.join(format!(".s.PGSQL.{}", database.options.get_port()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = PgConnectOptions::new_without_pgpass()
        .host("127.0.0.1")
        .port(listener.local_addr().unwrap().port())
        .username(database.options.get_username())
        .database(&database.name)
        .ssl_mode(PgSslMode::Disable);
    let tasks = TaskTracker::new();
    tasks.clone().spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let Ok(server) = UnixStream::connect(&socket).await else { continue };
            let delay = delay.clone();
            tasks.spawn(async move {
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                let back = async { drop(tokio::io::copy(&mut from_server, &mut to_client).await) };
                let there = async {
                    let mut buffer = vec![0; 64 * 1024];
                    while let Ok(bytes @ 1..) = from_client.read(&mut buffer).await {
                        let delay = *delay.borrow();
                        tokio::time::sleep(delay).await;
                        if to_server.write_all(&buffer[..bytes]).await.is_err() {
                            return;
                        }
                    }
                };
                tokio::select! { () = back => {}, () = there => {} }
            });
        }
    });
    TestDatabase { options, name: database.name.clone() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_that_nobody_holds_are_released_soon_after_a_slow_database() {
    let database = TestDatabase::new().await;
    let (delay, delayed) = watch::channel(Duration::ZERO);
    let behind = behind_proxy(&database, delayed).await;
    let receiver = Receiver::always(500).await;
    let waits = ["--backoff-base-seconds=3600", "--backoff-max-seconds=3600"];
    let app = TestApp::on(behind, &waits).await;
    app.accept(&receiver.url("/")).await;
    eventually("its first attempt", async || (receiver.count() == 1).then_some(())).await;
    delay.send(DELAY).unwrap();
    tokio::time::sleep(SLOW_FOR).await;
    delay.send(Duration::ZERO).unwrap();

    let store = database.store();
    let lose = "update delivery_queue
                set claim_number = claim_number + 1, owner = (select dispatcher_id from dispatcher)
                where owner is null";
    let began = Instant::now();
    eventually("a claim whose answer was lost", async || {
        let lost = sqlx::query(lose).execute(store.pool()).await.unwrap().rows_affected();
        (lost == 1).then_some(())
    })
    .await;
    let count = "select count(*) from delivery_queue where owner is not null";
    eventually("the release", async || {
        let owned: i64 = sqlx::query_scalar(count).fetch_one(store.pool()).await.unwrap();
        (owned == 0).then_some(())
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    app.stop().await;
}
