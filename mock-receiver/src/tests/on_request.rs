//! What the receivers on request share: bounds in time, and signatures that change nothing.

use std::time::Duration;

use super::client::{Client, deliver, exchange, patiently, signed};
use crate::shared::Limits;
use crate::{Answer, Chaos, MockReceiver, Plan, Settings, Stats, Verdict};

async fn receiver_where_for_ever_is(forever: Duration) -> MockReceiver {
    let limits = Limits { forever, ..Limits::default() };
    MockReceiver::bind_with(Settings::calm(), limits).await.unwrap()
}

#[tokio::test]
async fn even_for_ever_ends() {
    let receiver = receiver_where_for_ever_is(Duration::from_millis(1)).await;
    for (path, ended) in [("/hang", 1), ("/drip", 2), ("/wrong-length/excess", 3)] {
        let mut client = Client::connect(&receiver).await;
        client.send(&signed(path, "evt_a", b"{}")).await;
        // Somebody who does not hang up.
        patiently(receiver.wait_until(|stats| stats.on_request == ended)).await;
        drop(client);
    }
    assert_eq!(receiver.stats(), Stats { requests: 3, on_request: 3, ..Stats::default() });
}

/// Its writing hangs as soon as the buffers are full, and nothing else would end it.
#[tokio::test]
async fn a_client_that_does_not_read_cannot_hold_on_to_an_endless_body() {
    let receiver = receiver_where_for_ever_is(Duration::from_millis(300)).await;
    let mut client = Client::connect(&receiver).await;
    client.send(&signed("/endless", "evt_a", b"{}")).await;
    patiently(receiver.wait_until(|stats| stats.on_request == 1)).await;
    drop(client);
}

#[tokio::test]
async fn signatures_are_recorded_and_change_nothing() {
    let receiver = MockReceiver::bind(Settings::calm()).await.unwrap();
    let good = signed("/status/418", "evt_a", b"[1]");
    let forged = String::from_utf8(good.clone()).unwrap().replace("[1]", "[2]");
    for request in [&good[..], forged.as_bytes()] {
        assert_eq!(exchange(&receiver, request).await.status, 418);
    }
    let [good, forged] = &receiver.record()[..] else { panic!("there must be two entries") };
    assert_eq!((good.verdict, &*good.body), (Verdict::Good, &b"[1]"[..]));
    assert!(matches!(forged.verdict, Verdict::Bad(_)), "{forged:?}");
    assert_eq!(
        (forged.answer, &*forged.body),
        (Answer::Status(418.try_into().unwrap()), &b"[2]"[..])
    );
    assert_eq!(receiver.stats(), Stats { requests: 2, on_request: 2, ..Stats::default() });
}

/// Otherwise the chaos of `/webhook` would depend on what was tried elsewhere.
#[tokio::test]
async fn trying_uses_up_no_attempt_of_an_event() {
    let settings = Settings { failure_rate: 0.5, ..Settings::calm() };
    let chaos = Chaos::new(&settings, 0);
    let is_delivery = |plan| matches!(plan, Plan::Answer { status, .. } if status.is_success());
    let webhook_id = (0..1_000)
        .map(|number| format!("evt_{number}"))
        .find(|id| [chaos.plan(id, 1), chaos.plan(id, 2)].map(is_delivery) == [true, false])
        .unwrap();
    let receiver = MockReceiver::bind(settings).await.unwrap();
    for path in ["/status/200", "/fail-first/0"] {
        assert_eq!(exchange(&receiver, &signed(path, &webhook_id, b"{}")).await.status, 200);
    }
    assert_eq!(deliver(&receiver, &webhook_id).await, 200);
    assert_eq!((receiver.stats().unique, receiver.stats().repeated), (1, 0));
}

/// A body that is too large for `/webhook` is so here.
#[tokio::test]
async fn bodies_are_bounded_here_too() {
    let limits = Limits { body_bytes: 2, ..Limits::default() };
    let receiver = MockReceiver::bind_with(Settings::calm(), limits).await.unwrap();
    let response = exchange(&receiver, &signed("/hang", "evt_a", b"[1]")).await;
    assert_eq!((response.status, receiver.stats().refused), (413, 1));
}
