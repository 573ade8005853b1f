//! What the owner of a subscription bounds, kept by several processes and through crashes: requests at
//! a time, and requests in a time, at the start of sending.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::support::{
    Answer, Receiver, TestApp, TestDatabase, eventually,
    process::{Process, free_port, on},
};

/// How long after its registration a process takes its part, and some.
const JOINED: Duration = Duration::from_secs(7);
/// What may lie between the moment that counts and the one that is written down.
const SLOP_US: i64 = 60_000;

async fn subscribe(app: &TestApp, target_url: &str, limit: Value) -> String {
    let mut body = json!({"uid": "limited", "target_url": target_url, "event_types": "*"});
    body.as_object_mut().unwrap().extend(limit.as_object().unwrap().clone());
    app.make("/subscriptions", body).await["id"].as_str().unwrap().to_owned()
}

async fn publish(app: &TestApp, count: usize) {
    for n in 0..count {
        app.publish(json!({"payload": n, "type": "a"})).await;
    }
}

/// When each attempt began, by the database's clock, in microseconds.
async fn starts(database: &TestDatabase) -> Vec<i64> {
    let sql = "select (extract(epoch from started_at) * 1000000)::bigint from attempt
               order by started_at";
    sqlx::query_scalar(sql).fetch_all(database.store().pool()).await.unwrap()
}

/// A second opinion on a generic cell rate algorithm.
fn assert_conform(starts: &[i64], step_us: i64, burst: i64) {
    let mut next = i64::MIN;
    for (n, &start) in starts.iter().enumerate() {
        let earliest = next.saturating_sub((burst - 1) * step_us);
        assert!(start + SLOP_US >= earliest, "{n}: {} µs early", earliest - start);
        next = next.max(start) + step_us;
    }
}

/// Counts how many requests are there at a time.
#[derive(Clone, Default)]
struct Crowd(Arc<Mutex<Vec<Instant>>>);

impl Crowd {
    async fn receiver(&self, stay: Duration) -> Receiver {
        let came = self.clone();
        Receiver::start(move |_, _| {
            came.0.lock().unwrap().push(Instant::now());
            Answer::status(200).after(stay)
        })
        .await
    }

    /// The most that were there at a time, if each stayed no longer than it had to.
    fn most(&self, stay: Duration) -> usize {
        let came = self.0.lock().unwrap().clone();
        let at = |now: Instant| came.iter().filter(|&&one| one <= now && now < one + stay).count();
        came.iter().map(|&one| at(one)).max().unwrap_or_default()
    }
}

/// Catches: a bound that each process keeps for itself; a part that nobody has, by which it is not
/// used; a process that takes its part before the others know of it.
#[tokio::test]
async fn requests_at_a_time_are_bounded_over_all_processes() {
    let (crowd, stay) = (Crowd::default(), Duration::from_millis(200));
    let receiver = crowd.receiver(stay).await;
    let database = TestDatabase::new().await;
    let one = TestApp::on(database.clone(), &[]).await;
    subscribe(&one, &receiver.url("/"), json!({"max_in_flight": 3})).await;
    publish(&one, 10).await;
    let two = TestApp::on(database.clone(), &[]).await;
    publish(&two, 10).await;
    eventually("the first ones", async || (receiver.count() == 20).then_some(())).await;
    tokio::time::sleep(JOINED).await;
    // Now one of them has two, and the other one.
    tokio::join!(publish(&one, 20), publish(&two, 20));
    eventually("all", async || (receiver.count() == 60).then_some(())).await;
    assert!((2..=3).contains(&crowd.most(stay)), "{}", crowd.most(stay));
    one.stop().await;
    publish(&two, 10).await;
    eventually("the rest", async || (receiver.count() == 70).then_some(())).await;
    assert!(crowd.most(stay) <= 3, "{}", crowd.most(stay));
}

/// Catches: a bound below the number of processes that each of them takes for one request, or nobody.
#[tokio::test]
async fn one_request_at_a_time_is_one_process_s() {
    let (crowd, stay) = (Crowd::default(), Duration::from_millis(50));
    let receiver = crowd.receiver(stay).await;
    let database = TestDatabase::new().await;
    let one = TestApp::on(database.clone(), &[]).await;
    subscribe(&one, &receiver.url("/"), json!({"max_in_flight": 1})).await;
    let two = TestApp::on(database.clone(), &[]).await;
    tokio::time::sleep(JOINED).await;
    tokio::join!(publish(&one, 20), publish(&two, 20));
    eventually("all", async || (receiver.count() == 40).then_some(())).await;
    assert_eq!(crowd.most(stay), 1);
}

/// Catches: a rate that each process keeps for itself, or that new events pass; an endpoint without one
/// that waits with it.
#[tokio::test]
async fn a_rate_is_kept_over_all_processes() {
    let receiver = Receiver::always(200).await;
    let database = TestDatabase::new().await;
    let one = TestApp::on(database.clone(), &[]).await;
    let rate = json!({"rate_limit": {"count": 10, "per_seconds": 1, "burst": 4}});
    subscribe(&one, &receiver.url("/"), rate).await;
    publish(&one, 12).await;
    let two = TestApp::on(database.clone(), &[]).await;
    publish(&two, 12).await;
    tokio::time::sleep(JOINED).await;
    tokio::join!(publish(&one, 20), publish(&two, 20));
    eventually("all", async || (receiver.count() == 64).then_some(())).await;
    eventually("all of it is written down", async || {
        (starts(&database).await.len() == 64).then_some(())
    })
    .await;
    let starts = starts(&database).await;
    assert_conform(&starts, 100_000, 4);
    let at_once = starts.windows(4).filter(|four| four[3] - four[0] < 100_000).count();
    assert!(at_once > 0, "a burst is used");
}

/// Catches: times that are in memory alone, so that each start begins with a full burst.
#[tokio::test]
async fn a_rate_is_kept_through_crashes() {
    let receiver = Receiver::always(200).await;
    let calls = |path: &str| receiver.received().iter().filter(|one| one.path == path).count();
    let database = TestDatabase::new().await;
    let url = database.url();
    let own = [("ALLOWED_TARGET_CIDRS", "127.0.0.0/8")];
    let environment = [&on(&url)[..], &own].concat();
    // Not one that sends: it takes no part.
    let app = TestApp::on(database.clone(), &["--role=api"]).await;
    for (path, types, per_seconds) in [("/slow", "slow", 1_000), ("/quick", "quick", 1)] {
        let body = json!({
            "target_url": receiver.url(path), "event_types": types,
            "rate_limit": {"count": 1, "per_seconds": per_seconds, "burst": 3},
        });
        app.make("/subscriptions", body).await;
    }
    for n in 0..9 {
        app.publish(json!({"payload": n, "type": "slow"})).await;
    }
    let service = Process::start(free_port().await, &environment).await;
    eventually("a burst", async || (calls("/slow") == 3).then_some(())).await;
    service.kill();
    let service = Process::start(free_port().await, &environment).await;
    eventually("the dead one's parts are free", async || {
        let sending: i64 = sqlx::query_scalar("select count(*) from dispatcher")
            .fetch_one(database.store().pool())
            .await
            .unwrap();
        (sending == 1).then_some(())
    })
    .await;
    app.publish(json!({"payload": 1, "type": "quick"})).await;
    eventually("what may be sent", async || (calls("/quick") == 1).then_some(())).await;
    for _ in 0..3 {
        app.publish(json!({"payload": 1, "type": "quick"})).await;
    }
    eventually("more of it", async || (calls("/quick") == 4).then_some(())).await;
    drop(service);
    // By what arrived: what the dead one had not written down would not be among the attempts.
    assert_eq!(calls("/slow"), 3, "the burst, and no other one");
}

/// Catches: settings that hold for new events only.
#[tokio::test]
async fn a_limit_holds_for_what_waits_already_and_no_longer_than_it_is_told() {
    let (crowd, stay) = (Crowd::default(), Duration::from_millis(100));
    let receiver = crowd.receiver(stay).await;
    let app = TestApp::with(&["--lane-in-flight-max=4"]).await;
    let id = subscribe(&app, &receiver.url("/"), json!({})).await;
    publish(&app, 200).await;
    let path = format!("/subscriptions/{id}");
    let change = async |body: Value| {
        let (status, shown) = app.call("PATCH", &path, None, Some(&body)).await;
        assert_eq!(status, 200, "{shown}");
    };
    change(json!({"rate_limit": {"count": 1, "per_seconds": 86_400}})).await;
    eventually("it stands still", async || {
        let before = receiver.count();
        tokio::time::sleep(Duration::from_secs(2)).await; // twice what a setting may be old
        (receiver.count() == before).then_some(())
    })
    .await;
    assert!(receiver.count() < 200, "{}: too late to show anything", receiver.count());
    let before = receiver.count();
    change(json!({"rate_limit": {"count": 20, "per_seconds": 1}})).await;
    eventually("a faster rate does not wait for the slower one", async || {
        (receiver.count() > before + 5).then_some(())
    })
    .await;
    change(json!({"rate_limit": null, "max_in_flight": 2})).await;
    eventually("all", async || (receiver.count() == 200).then_some(())).await;
    change(json!({"max_in_flight": null})).await;
    crowd.0.lock().unwrap().clear();
    publish(&app, 100).await;
    eventually("as many as it takes", async || (crowd.most(stay) > 2).then_some(())).await;
}
