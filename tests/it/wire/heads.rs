//! Heads of requests.

use serde_json::json;

use super::{noting, post};
use crate::support::TestApp;

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Catches: firewalls that look for `Host` at the top, or refuse what accepts nothing; a trace that
/// nobody began, whose flags switch the receiver's own off.
#[tokio::test]
async fn a_request_begins_with_host_accepts_anything_and_begins_no_trace() {
    let (receiver, heads) = noting(0, false).await;
    let app = TestApp::start().await;
    let body = json!({"payload": 1, "type": "a.b", "target_url": receiver.url()});
    let event = app.publish(body).await;
    app.wait_for(&event, "delivered").await;
    let head = heads.all().remove(0);
    let lines: Vec<_> = head.split("\r\n").collect();
    let host = format!("Host: 127.0.0.1:{}", receiver.port());
    assert_eq!(lines[..3], ["POST / HTTP/1.1", host.as_str(), "Accept: */*"], "{head}");
    let names: Vec<_> = lines[1..].iter().map(|line| line.split(':').next().unwrap()).collect();
    for name in ["Content-Type", "User-Agent", "Content-Length", "X-Webhook-Event", "Webhook-Id"] {
        assert!(names.contains(&name), "{name}: {head}");
    }
    assert_eq!(names.iter().filter(|name| name.eq_ignore_ascii_case("host")).count(), 1);
    assert!(!head.to_lowercase().contains("traceparent"), "{head}");
    // The log has what was sent.
    let shown = app.event(&event).await;
    let logged = shown["deliveries"][0]["attempts"][0]["request"]["headers"].to_string();
    assert!(logged.contains("accept") && logged.contains("127.0.0.1"), "{logged}");
    app.stop().await;
}

/// Catches: a header of the receiver's owner that a header of ours replaces.
#[tokio::test]
async fn a_target_can_ask_for_another_accept_header() {
    let (receiver, heads) = noting(0, false).await;
    let app = TestApp::start().await;
    let target = json!({"url": receiver.url(), "headers": {"accept": "text/plain"}});
    let body = json!({"event": "a.b", "payload": 1, "targets": [target]});
    let (status, answer) = post(&app, "/dispatch", &[], &body).await;
    assert_eq!((status, &answer["results"][0]["status"]), (200, &json!("delivered")), "{answer}");
    assert_eq!(heads.header("accept"), [Some("text/plain".to_owned())]);
    app.stop().await;
}

/// At the first attempt, which is sent from memory, and at the second, which is read back.
#[tokio::test]
async fn a_callers_trace_is_carried_on_unchanged_over_retries() {
    let (receiver, heads) = noting(3, false).await;
    let app = TestApp::start().await;
    let target = receiver.url();
    let trace = [("traceparent", TRACE)];
    let event = json!({"payload": 1, "target_url": target});
    let dispatch =
        json!({"event": "a.b", "payload": 1, "targets": [target], "retry": [0.05, 0.05]});
    for (path, body, id) in [
        ("/events", event.clone(), "/id"),
        ("/events/batch", json!({"events": [event]}), "/results/0/id"),
        ("/dispatch", dispatch, "/dispatchId"),
    ] {
        let (status, answer) = post(&app, path, &trace, &body).await;
        assert!(status < 300, "{path}: {answer}");
        app.wait_for(answer.pointer(id).unwrap().as_str().unwrap(), "delivered").await;
    }
    let traces = heads.header("traceparent");
    assert!(traces.len() >= 6, "{traces:?}");
    assert!(traces.iter().all(|trace| trace.as_deref() == Some(TRACE)), "{traces:?}");
    // One that is not valid, and two of them, are none.
    let before = heads.all().len();
    for bad in [&[("traceparent", "00-xyz-01")][..], &[trace[0], trace[0]]] {
        let body = json!({"payload": 1, "target_url": target});
        let (_, answer) = post(&app, "/events", bad, &body).await;
        app.wait_for(answer["id"].as_str().unwrap(), "delivered").await;
    }
    assert_eq!(heads.header("traceparent")[before..], [None, None]);
    app.stop().await;
}
