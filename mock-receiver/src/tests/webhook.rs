//! What is answered, counted and recorded.

use std::collections::BTreeMap;

use axum::http::StatusCode;

use super::client::{Client, deliver, exchange, get, patiently, signed, signed_head};
use crate::{
    Answer, BODY_BYTES_MAX, Chaos, MockReceiver, Plan, Settings, SignatureError, Stats, Verdict,
};

async fn calm() -> MockReceiver {
    MockReceiver::bind(Settings::calm()).await.unwrap()
}

#[tokio::test]
async fn a_well_signed_webhook_is_answered_and_recorded_whole() {
    let receiver = calm().await;
    let body = b"{\"name\":\"Zo\xc3\xab\"}\n\x00\xff";
    let response = exchange(&receiver, &signed("/webhook?tenant=1", "evt_a", body)).await;
    assert_eq!((response.status, response.body.as_str()), (200, "delivered\n"));

    let [entry] = &receiver.record()[..] else { panic!("there must be one entry") };
    assert_eq!((entry.number, &*entry.path), (0, "/webhook?tenant=1"));
    assert_eq!(entry.body, body.as_slice());
    assert_eq!(entry.webhook_id(), Some("evt_a"));
    assert_eq!(entry.delivery_id(), Some("dlv_1"));
    assert_eq!(entry.attempt(), Some(3));
    assert_eq!(entry.headers.get("Host"), Some("test"));
    assert_eq!(entry.verdict, Verdict::Good);
    assert_eq!(entry.answer, Answer::Status(StatusCode::OK));
    assert_eq!(receiver.stats(), Stats { requests: 1, unique: 1, ..Stats::default() });
}

#[tokio::test]
async fn a_second_delivery_counts_as_repeated() {
    let receiver = calm().await;
    for webhook_id in ["evt_a", "evt_b", "evt_a"] {
        assert_eq!(deliver(&receiver, webhook_id).await, 200);
    }
    let expected = Stats { requests: 3, unique: 2, repeated: 1, ..Stats::default() };
    assert_eq!(receiver.stats(), expected);
}

/// A forged request must not use up an attempt of a real webhook-id either.
#[tokio::test]
async fn a_badly_signed_webhook_is_answered_401_and_not_processed() {
    let settings = Settings { failure_rate: 0.5, ..Settings::calm() };
    let chaos = Chaos::new(&settings, 0);
    let webhook_id = (0..1_000)
        .map(|number| format!("evt_{number}"))
        .find(|id| [chaos.plan(id, 1), chaos.plan(id, 2)].map(is_delivery) == [true, false])
        .unwrap();
    let receiver = MockReceiver::bind(settings).await.unwrap();

    let forged = String::from_utf8(signed("/webhook", &webhook_id, b"[1]")).unwrap();
    let response = exchange(&receiver, forged.replace("[1]", "[2]").as_bytes()).await;
    assert_eq!(response.status, 401);
    assert_eq!(
        response.body,
        "signature bad: the header webhook-signature holds no signature that matches\n"
    );
    assert_eq!(deliver(&receiver, &webhook_id).await, 200);

    let expected = Stats { requests: 2, badly_signed: 1, unique: 1, ..Stats::default() };
    assert_eq!(receiver.stats(), expected);
    let [forged, _] = &receiver.record()[..] else { panic!("there must be two entries") };
    assert_eq!(forged.verdict, Verdict::Bad(SignatureError::Mismatch("webhook-signature")));
    assert_eq!(forged.answer, Answer::Status(StatusCode::UNAUTHORIZED));
    assert_eq!(forged.body, b"[2]".as_slice());
}

#[tokio::test]
async fn a_webhook_that_is_not_signed_at_all_is_answered_401() {
    let receiver = calm().await;
    let request = b"POST /webhook HTTP/1.1\r\nhost: test\r\ncontent-length: 2\r\n\r\n{}";
    assert_eq!(exchange(&receiver, request).await.status, 401);
    assert_eq!(receiver.stats().badly_signed, 1);
}

/// The order in which the webhooks arrive changes nothing for any of them.
#[tokio::test]
async fn the_chaos_depends_on_seed_id_and_attempt_only() {
    let settings = Settings { failure_rate: 0.6, seed: Some(42), ..Settings::calm() };
    let ids: Vec<_> = (0..30).map(|number| format!("evt_{number}")).collect();
    let forwards: Vec<_> = (0..3).flat_map(|_| &ids).collect();
    let one_by_one: Vec<_> = ids.iter().rev().flat_map(|id| [id; 3]).collect();

    let chaos = Chaos::new(&settings, 42);
    for order in [forwards, one_by_one] {
        let receiver = MockReceiver::bind(settings.clone()).await.unwrap();
        let mut attempts = BTreeMap::<_, u32>::new();
        for id in order {
            let attempt = attempts.entry(id).or_default();
            *attempt += 1;
            let Plan::Answer { status, .. } = chaos.plan(id, *attempt) else {
                panic!("no hanging")
            };
            assert_eq!(deliver(&receiver, id).await, status, "{id}, attempt {attempt}");
        }
        let stats = receiver.stats();
        assert_eq!(stats.failed_on_purpose + stats.unique + stats.repeated, 90);
    }
}

#[tokio::test]
async fn another_seed_is_another_chaos_and_a_random_one_is_told() {
    let settings = Settings { seed: None, ..Settings::calm() };
    let one = MockReceiver::bind(settings.clone()).await.unwrap();
    let other = MockReceiver::bind(settings).await.unwrap();
    assert_ne!(one.seed(), other.seed());
    let stats: serde_json::Value = serde_json::from_str(&get(&one, "/stats").await.body).unwrap();
    assert_eq!(stats["settings"]["seed"], one.seed());
}

#[tokio::test]
async fn a_429_says_when_to_come_back() {
    let settings = Settings { failure_rate: 1.0, ..Settings::calm() };
    let chaos = Chaos::new(&settings, 0);
    let limited = |id: &String| matches!(chaos.plan(id, 1), Plan::Answer { status, .. } if status.as_u16() == 429);
    let webhook_id = (0..1_000).map(|number| format!("evt_{number}")).find(limited).unwrap();
    let receiver = MockReceiver::bind(settings).await.unwrap();
    let response = exchange(&receiver, &signed("/webhook", &webhook_id, b"{}")).await;
    assert_eq!((response.status, response.body.as_str()), (429, "failed on purpose\n"));
    assert!(response.head.contains("retry-after: 1\r\n"), "{}", response.head);
    assert_eq!(receiver.stats().failed_on_purpose, 1);
}

#[tokio::test]
async fn a_connection_takes_one_webhook_after_the_other() {
    let receiver = calm().await;
    let mut client = Client::connect(&receiver).await;
    for webhook_id in ["evt_a", "evt_b"] {
        client.send(&signed("/webhook", webhook_id, b"{}")).await;
        assert_eq!(client.response().await.unwrap().status, 200);
    }
    assert_eq!(receiver.stats().unique, 2);
}

#[tokio::test]
async fn bodies_up_to_the_limit_are_taken_and_larger_ones_answered_413() {
    let receiver = calm().await;
    let largest = vec![b'x'; BODY_BYTES_MAX];
    let response = exchange(&receiver, &signed("/webhook", "evt_a", &largest)).await;
    assert_eq!(response.status, 200);

    let too_large = vec![b'x'; BODY_BYTES_MAX + 1];
    let response = exchange(&receiver, &signed("/webhook", "evt_b", &too_large)).await;
    assert_eq!((response.status, response.body.as_str()), (413, "the body is too large\n"));

    // Without a length told in advance.
    let mut client = Client::connect(&receiver).await;
    let head = signed_head("/webhook", "evt_c", &too_large);
    client.send(format!("{head}transfer-encoding: chunked\r\n\r\n").as_bytes()).await;
    client.send(format!("{:x}\r\n", too_large.len()).as_bytes()).await;
    client.send(&too_large).await;
    client.send(b"\r\n0\r\n\r\n").await;
    assert_eq!(client.response().await.unwrap().status, 413);

    let expected = Stats { requests: 3, unique: 1, refused: 2, ..Stats::default() };
    assert_eq!(receiver.stats(), expected);
    let bodies: Vec<_> = receiver.record().iter().map(|entry| entry.body.len()).collect();
    assert_eq!(bodies, [BODY_BYTES_MAX, 0, 0]);
    assert_eq!(receiver.record()[1].verdict, Verdict::Unchecked);
}

/// The client reads nothing until it has sent all, and still gets the answer.
#[tokio::test]
async fn a_much_too_large_body_is_read_so_that_its_413_arrives() {
    let receiver = calm().await;
    let too_large = vec![b'x'; 7 * BODY_BYTES_MAX];
    let response = exchange(&receiver, &signed("/webhook", "evt_a", &too_large)).await;
    assert_eq!(response.status, 413);
}

#[tokio::test]
async fn a_body_that_is_cut_off_is_not_processed() {
    let receiver = calm().await;
    let mut client = Client::connect(&receiver).await;
    let request = signed("/webhook", "evt_a", b"{}");
    client.send(&request[..request.len() - 1]).await;
    patiently(receiver.wait_until(|stats| stats.in_progress == 1)).await;
    drop(client);
    let stats = patiently(receiver.wait_until(|stats| stats.in_progress == 0)).await;
    assert_eq!((stats.requests, stats.unique, stats.refused + stats.abandoned), (1, 0, 1));
}

#[tokio::test]
async fn health_index_and_unknown_paths_are_answered() {
    let receiver = calm().await;
    let health = get(&receiver, "/health").await;
    assert_eq!((health.status, health.body.as_str()), (200, "{\"ok\":true}"));
    assert!(health.head.contains("content-type: application/json\r\n"), "{}", health.head);
    let index = get(&receiver, "/").await;
    assert_eq!(index.status, 200);
    for route in ["POST /webhook", "GET  /stats", "GET  /health"] {
        assert!(index.body.contains(route), "{}", index.body);
    }
    assert_eq!(get(&receiver, "/webhoook").await.status, 404);
    assert_eq!(get(&receiver, "/webhook").await.status, 405);
    assert_eq!(receiver.stats(), Stats::default());
}

#[tokio::test]
async fn stats_are_told_as_json_without_the_secret() {
    let settings = Settings {
        failure_rate: 0.25,
        delay_max: std::time::Duration::from_millis(1),
        ..Settings::calm()
    };
    let receiver = MockReceiver::bind(settings).await.unwrap();
    deliver(&receiver, "evt_a").await;
    let response = get(&receiver, "/stats").await;
    assert!(!response.body.contains("change-me"), "{}", response.body);
    let stats = receiver.stats();
    let expected = serde_json::json!({
        "requests": 1,
        "unique": stats.unique,
        "repeated": 0,
        "badly_signed": 0,
        "failed_on_purpose": stats.failed_on_purpose,
        "hung_on_purpose": 0,
        "on_request": 0,
        "refused": 0,
        "abandoned": 0,
        "in_progress": 0,
        "ids_forgotten": 0,
        "record_forgotten": 0,
        "settings": {
            "failure_rate": 0.25,
            "max_delay_sec": 0.001,
            "hang_rate": 0.0,
            "bind": "127.0.0.1",
            "port": 0,
            "seed": 0,
        },
    });
    assert_eq!(serde_json::from_str::<serde_json::Value>(&response.body).unwrap(), expected);
}

fn is_delivery(plan: Plan) -> bool {
    matches!(plan, Plan::Answer { status: StatusCode::OK, .. })
}
