//! Explicit targets of many customers on one host: what one URL answers holds up no other one.

use std::time::{Duration, Instant};

use crate::support::{Answer, Receiver, TestApp, TestDatabase, eventually};

/// Time in which a neighbour must be served: seconds, and far more than a slow machine needs.
const SECONDS: Duration = Duration::from_secs(20);

const PATIENT: [&str; 2] = ["--max-attempts=1000", "--http-timeout=300"];

/// Answers as the path says.
async fn receiver() -> Receiver {
    Receiver::start(|_, request| match request.path.as_str() {
        "/500/bad" => Answer::status(500),
        "/busy" => Answer::status(429).header("retry-after", "3000"),
        "/hangs" => Answer::status(200).after(Duration::from_secs(3_600)),
        _ => Answer::status(200),
    })
    .await
}

fn calls(receiver: &Receiver, path: &str) -> usize {
    receiver.received().iter().filter(|request| request.path == path).count()
}

async fn check_neighbour(app: &TestApp, receiver: &Receiver, path: &str) {
    let began = Instant::now();
    let event = app.accept(&receiver.url(path)).await;
    app.wait_for(&event, "delivered").await;
    assert!(began.elapsed() < SECONDS, "{path}: {:?}", began.elapsed());
}

/// Catches: a breaker of the whole origin; a backlog of a bad URL that stands in front of others.
#[tokio::test]
async fn url_that_fails_does_not_hold_up_its_neighbours() {
    let receiver = receiver().await;
    let database = TestDatabase::new().await;
    let app = TestApp::on(database.clone(), &PATIENT).await;
    let mut events = Vec::new();
    for _ in 0..40 {
        events.push(app.accept(&receiver.url("/500/bad")).await);
    }
    check_neighbour(&app, &receiver, "/first").await;
    eventually("its breaker opens", async || {
        let (_, page) = app.get(&format!("/events/{}/explain", events[39])).await;
        page["data"][0]["detail"].as_str().unwrap().contains("breaker").then_some(())
    })
    .await;
    check_neighbour(&app, &receiver, "/other-customer").await;
    app.stop().await;
    // The next process knows it from the database.
    let app = TestApp::on(database, &PATIENT).await;
    check_neighbour(&app, &receiver, "/another").await;
    assert_eq!(app.event(&events[0]).await["status"], "pending");
    app.stop().await;
}

/// Catches: one 429 that silences the host; a pause that the next process does not know.
#[tokio::test]
async fn pause_asked_for_by_one_url_silences_that_url_alone() {
    let receiver = receiver().await;
    let database = TestDatabase::new().await;
    let app = TestApp::on(database.clone(), &PATIENT).await;
    app.accept(&receiver.url("/busy")).await;
    eventually("it is asked", async || (calls(&receiver, "/busy") == 1).then_some(())).await;
    check_neighbour(&app, &receiver, "/first").await;
    let mut last = String::new();
    for _ in 0..20 {
        last = app.accept(&receiver.url("/busy")).await;
    }
    check_neighbour(&app, &receiver, "/other-customer").await;
    eventually("the pause is known", async || {
        let (_, page) = app.get(&format!("/events/{last}/explain")).await;
        page["data"][0]["detail"].as_str().unwrap().contains("asked for quiet").then_some(())
    })
    .await;
    app.stop().await;
    let app = TestApp::on(database, &PATIENT).await;
    app.accept(&receiver.url("/busy")).await;
    check_neighbour(&app, &receiver, "/another").await;
    assert_eq!(calls(&receiver, "/busy"), 1);
    app.stop().await;
}

/// Catches: a URL that hangs, and an origin that sends nothing else until the timeout.
#[tokio::test]
async fn url_that_hangs_lets_its_neighbours_through() {
    let receiver = receiver().await;
    let app = TestApp::with(&PATIENT).await;
    for _ in 0..40 {
        app.accept(&receiver.url("/hangs")).await;
    }
    eventually("it hangs", async || (calls(&receiver, "/hangs") > 0).then_some(())).await;
    // After a second its origin counts as one that does not answer.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    for path in ["/one", "/two", "/one"] {
        check_neighbour(&app, &receiver, path).await;
    }
    assert!(calls(&receiver, "/hangs") <= 3, "one request, and one of each lane");
}
