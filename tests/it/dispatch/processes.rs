//! The real process, killed amid a fan-out.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};

use super::to;
use crate::support::{
    Answer, Receiver, TestDatabase, eventually,
    process::{Process, free_port, on},
};

const TARGETS: usize = 500;

async fn get(url: &str) -> Option<Value> {
    let answer = reqwest::get(url).await.ok()?;
    assert_eq!(answer.status(), 200, "{url}");
    serde_json::from_str(&answer.text().await.ok()?).ok()
}

/// Catches: targets that only the process knew of, settings that do not outlive it, results that are
/// not there for who asks later.
#[tokio::test]
async fn a_killed_process_leaves_no_target_without_its_result() {
    let database = TestDatabase::new().await;
    let url = database.url();
    let more = [
        ("ALLOWED_TARGET_CIDRS", "127.0.0.0/8"),
        ("REQUIRE_HTTPS", "false"),
        ("LANE_IN_FLIGHT_MAX", "8"),
        ("WORKER_POLL_INTERVAL", "0.3"),
    ];
    let environment = [on(&url).as_slice(), &more].concat();
    let receiver =
        Receiver::start(|_, _| Answer::status(200).after(Duration::from_millis(20))).await;
    let port = free_port().await;
    let service = Process::start(port, &environment).await;
    let targets: Vec<_> = (0..TARGETS)
        .map(|n| json!({"url": receiver.url(&format!("/{n}")), "headers": {"x-n": n.to_string()}}))
        .collect();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = client
        .post(format!("{}/dispatch", service.base))
        .header("content-type", "application/json")
        .body(to(&json!(targets)).to_string());
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 202);
    let answer: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    assert_eq!(answer["results"].as_array().unwrap().len(), TARGETS);
    eventually("it is under way", async || (receiver.count() > 50).then_some(())).await;
    service.kill();
    assert!(receiver.count() < TARGETS, "it was killed too late to show anything");

    let service = Process::start(port, &environment).await;
    let id = answer["dispatchId"].as_str().unwrap();
    let path = format!("{}/dispatch/{id}", service.base);
    let told = eventually("all results", async || {
        get(&path).await.filter(|told| told["status"] != "pending")
    })
    .await;
    assert_eq!(told["status"], "delivered");
    let results = told["results"].as_array().unwrap();
    assert_eq!(results.len(), TARGETS);
    assert!(results.iter().all(|result| result["code"] == 200));
    let received = receiver.received();
    let paths: BTreeSet<_> = received.iter().map(|request| request.path.clone()).collect();
    assert_eq!(paths.len(), TARGETS);
    for request in &received {
        assert_eq!(format!("/{}", request.header("x-n")), request.path);
    }
    // At least once, and rarely twice: at most what was in flight.
    assert!(received.len() <= TARGETS + 8, "{}", received.len());
}
