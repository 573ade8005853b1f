//! Faults of this service: they never count against a receiver.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    Receiver, TestApp,
    dns::{DnsServer, Reply},
    eventually,
};

/// Disables a subscription after two seconds of failures, and opens a breaker at the first one.
const IMPATIENT: [&str; 3] =
    ["--disable-after=0.00002315", "--breaker-failures=1", "--max-attempts=3"];

/// Three events to a subscription; shows the first one once it has had more attempts than allowed,
/// and the time to disable the subscription has passed.
async fn fail(app: &TestApp, target_url: &str) -> Value {
    let body = json!({"uid": "receiver", "target_url": target_url, "event_types": "a"});
    app.make("/subscriptions", body).await;
    let mut events = Vec::new();
    for _ in 0..3 {
        events.push(app.publish(json!({"payload": 1, "type": "a"})).await);
    }
    // The delays are about 1, 2 and 4 s.
    eventually("a third attempt, after three seconds", async || {
        let event = app.event(&events[0]).await;
        (event["attempt_count"].as_u64() >= Some(3)).then_some(event)
    })
    .await
}

async fn check_unharmed(app: &TestApp, event: &Value, class: &str) {
    assert_eq!(event["status"], "pending", "{event}");
    assert_eq!(event["last_error"]["class"], class, "{event}");
    // Time for the statistics to be written, and for the subscription to be looked after.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let (_, shown) = app.get("/subscriptions/receiver").await;
    assert_eq!(shown["is_active"], true, "{shown}");
    let (_, stats) = app.get("/subscriptions/receiver/stats").await;
    assert_eq!(stats["breaker"]["state"], "closed", "{stats}");
    assert_eq!(stats["breaker"]["failures"], 0, "{stats}");
}

/// Catches: an address that may not be called by our settings, and that uses up attempts, opens the
/// breaker or disables the subscription; a delivery that is not sent once the fault is mended.
#[tokio::test]
async fn blocked_address_counts_for_nothing_and_delivery_goes_on_after_it() {
    let receiver = Receiver::always(200).await;
    let dns = DnsServer::start(|_, before| {
        // One question an attempt.
        Reply::addresses(&[if before < 12 { "10.1.2.3" } else { "127.0.0.1" }])
    })
    .await;
    let servers = format!("--dns-servers={}", dns.address());
    let app = TestApp::with(&[&IMPATIENT[..], &[&servers]].concat()).await;
    let port = receiver.url("/").rsplit_once(':').unwrap().1.to_owned();
    let event = fail(&app, &format!("http://receiver.test:{port}")).await;
    check_unharmed(&app, &event, "blocked_address").await;
    let id = event["id"].as_str().unwrap();
    let event = app.wait_for(id, "delivered").await;
    assert!(event["attempt_count"].as_u64() > Some(3), "more than the policy allows: {event}");
}
