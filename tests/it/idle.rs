//! A process that has nothing to do, and the setting that lets it rest.

use std::time::Duration;

use crate::support::{Answer, Receiver, TestApp, TestDatabase, eventually};

/// Transactions of this database, and those that this test makes to find out.
async fn transactions(database: &TestDatabase) -> i64 {
    let sql = "select xact_commit + xact_rollback from pg_stat_database
               where datname = current_database()";
    sqlx::query_scalar(sql).fetch_one(database.store().pool()).await.unwrap()
}

async fn rests(database: &TestDatabase) {
    eventually("a process that rests", async || {
        let before = transactions(database).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        // With the pace of a busy process there are some thirty.
        (transactions(database).await - before < 8).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_process_rests_and_wakes_with_a_request() {
    let receiver = Receiver::start(|n, _| Answer::status(if n == 0 { 500 } else { 200 })).await;
    let database = TestDatabase::new().await;
    // So long that nothing but a wake-up can be why something is sent.
    let flags = ["--idle-interval=3600", "--backoff-base-seconds=12", "--backoff-max-seconds=12"];
    let app = TestApp::on(database.clone(), &flags).await;
    let event = app.accept(&receiver.url("/")).await;
    rests(&database).await;
    // Its retry falls into the rest, and no request wakes the process.
    eventually("the retry", async || (receiver.count() == 2).then_some(())).await;
    rests(&database).await;
    app.accept(&receiver.url("/")).await;
    eventually("an event after a rest", async || (receiver.count() == 3).then_some(())).await;
    app.wait_for(&event, "delivered").await;
    app.stop().await;
}
