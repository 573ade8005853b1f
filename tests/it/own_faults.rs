//! Faults of this service: they never count against a receiver.

use std::{
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{
    Receiver, TestApp,
    dns::{DnsServer, Reply},
    eventually,
};

/// Disables a subscription after two seconds of failures, and opens a breaker at the first one.
const IMPATIENT: [&str; 3] =
    ["--disable-after=0.00002315", "--breaker-failures=1", "--max-attempts=2"];

/// Three events to a subscription of one attempt; shows the first one once it has had more attempts
/// than that, and the time to disable the subscription has passed.
async fn fail(app: &TestApp, target_url: &str) -> Value {
    let body = json!({
        "uid": "receiver", "target_url": target_url, "event_types": "a",
        "retry": {"max_attempts": 1, "base_seconds": 1, "max_seconds": 1},
    });
    app.make("/subscriptions", body).await;
    let mut events = Vec::new();
    for _ in 0..3 {
        events.push(app.publish(json!({"payload": 1, "type": "a"})).await);
    }
    // The delays are about 1, 1 and 2 s.
    eventually("a fourth attempt, after four seconds", async || {
        let event = app.event(&events[0]).await;
        (event["attempt_count"].as_u64() >= Some(4)).then_some(event)
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
    let is_mended = Arc::new(AtomicBool::new(false));
    let state = is_mended.clone();
    let dns = DnsServer::start(move |_, _| {
        let is_mended = state.load(Ordering::Relaxed);
        Reply::addresses(&[if is_mended { "127.0.0.1" } else { "10.1.2.3" }])
    })
    .await;
    let servers = format!("--dns-servers={}", dns.address());
    let app = TestApp::with(&[&IMPATIENT[..], &[&servers]].concat()).await;
    let event = fail(&app, &format!("http://receiver.test:{}/", receiver.port())).await;
    check_unharmed(&app, &event, "blocked_address").await;
    is_mended.store(true, Ordering::Relaxed);
    let event = app.wait_for(event["id"].as_str().unwrap(), "delivered").await;
    assert!(event["attempt_count"].as_u64() > Some(4), "more than the policy allows: {event}");
}

/// Catches: name servers that do not answer, for which the receiver is blamed.
#[tokio::test]
async fn dead_name_servers_disable_no_subscription() {
    // Nothing listens there.
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let servers = format!("--dns-servers=127.0.0.1:{port}");
    let app = TestApp::with(&[&IMPATIENT[..], &[&servers]].concat()).await;
    let event = fail(&app, "http://receiver.test/").await;
    check_unharmed(&app, &event, "dns").await;
}

/// Catches: a dispatch without retries, whose caller waits for a result that never comes.
#[tokio::test]
async fn dispatch_without_retries_fails_by_a_fault_of_the_service() {
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let app = TestApp::with(&[&format!("--dns-servers=127.0.0.1:{port}")]).await;
    let target = json!("http://receiver.test/");
    let body = json!({"event": "a", "payload": 1, "targets": [target]});
    let (_, answer) = app.post("/dispatch", &body).await;
    let result = &answer["results"][0];
    assert_eq!((&result["status"], &result["error"]["class"]), (&json!("failed"), &json!("dns")));
    let body = json!({"event": "a", "payload": 1, "targets": [target], "retry": [60]});
    let (_, answer) = app.post("/dispatch", &body).await;
    assert_eq!(answer["results"][0]["status"], "pending", "{answer}");
}
