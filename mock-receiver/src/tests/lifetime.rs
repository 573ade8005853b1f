//! Requests that hang or wait, and how they and the receiver end.

use std::io::ErrorKind;
use std::time::Duration;

use super::client::{Client, deliver, patiently, signed};
use crate::shared::Limits;
use crate::{Answer, BODY_BYTES_MAX, MockReceiver, Settings, Verdict};

fn hanging() -> Settings {
    Settings { hang_rate: 1.0, ..Settings::calm() }
}

/// A receiver that holds one request, and the client of that.
async fn holding() -> (MockReceiver, Client) {
    let receiver = MockReceiver::bind(hanging()).await.unwrap();
    let mut client = Client::connect(&receiver).await;
    client.send(&signed("/webhook", "evt_a", b"{}")).await;
    patiently(receiver.wait_until(|stats| stats.hung_on_purpose == 1)).await;
    (receiver, client)
}

#[tokio::test]
async fn a_held_request_is_known_as_such_while_it_hangs_and_afterwards() {
    let (receiver, client) = holding().await;
    assert_eq!(receiver.stats().in_progress, 1);
    assert_eq!(receiver.record()[0].answer, Answer::Hang);
    drop(client);
    let stats = patiently(receiver.wait_until(|stats| stats.in_progress == 0)).await;
    assert_eq!((stats.requests, stats.hung_on_purpose, stats.abandoned), (1, 1, 0));
    assert_eq!(receiver.record()[0].answer, Answer::Hang);
    assert_eq!(receiver.record()[0].verdict, Verdict::Good);
}

#[tokio::test]
async fn a_held_request_ends_with_a_closed_connection() {
    let limits = Limits { hang: Duration::from_millis(1), ..Limits::default() };
    let receiver = MockReceiver::bind_with(hanging(), limits).await.unwrap();
    let mut client = Client::connect(&receiver).await;
    client.send(&signed("/webhook", "evt_a", b"{}")).await;
    assert!(client.response().await.is_none());
    assert_eq!((receiver.stats().hung_on_purpose, receiver.stats().in_progress), (1, 0));
}

#[tokio::test]
async fn a_client_that_hangs_up_during_the_delay_is_told_apart() {
    let settings = Settings { delay_max: Duration::from_hours(1), ..Settings::calm() };
    let receiver = MockReceiver::bind(settings).await.unwrap();
    let mut client = Client::connect(&receiver).await;
    client.send(&signed("/webhook", "evt_a", b"{}")).await;
    let is_delayed = || receiver.record().first().is_some_and(|entry| entry.verdict.is_good());
    patiently(receiver.wait_until(|_| is_delayed())).await;
    assert_eq!(receiver.record()[0].answer, Answer::Pending);
    drop(client);
    let stats = patiently(receiver.wait_until(|stats| stats.in_progress == 0)).await;
    assert_eq!((stats.abandoned, stats.unique), (1, 0));
    assert_eq!(receiver.record()[0].answer, Answer::Abandoned);
}

#[tokio::test]
async fn a_body_that_does_not_arrive_is_answered_408() {
    let limits = Limits { body_read: Duration::from_millis(1), ..Limits::default() };
    let receiver = MockReceiver::bind_with(Settings::calm(), limits).await.unwrap();
    let mut client = Client::connect(&receiver).await;
    let request = signed("/webhook", "evt_a", b"{}");
    client.send(&request[..request.len() - 1]).await;
    assert_eq!(client.response().await.unwrap().status, 408);
    assert_eq!(receiver.stats().refused, 1);
}

#[tokio::test]
async fn an_endless_body_is_not_read_for_ever() {
    let limits = Limits { body_read: Duration::from_hours(1), ..Limits::default() };
    let receiver = MockReceiver::bind_with(Settings::calm(), limits).await.unwrap();
    let mut client = Client::connect(&receiver).await;
    let endless = u64::MAX / 2;
    client
        .send(
            format!("POST /webhook HTTP/1.1\r\nhost: test\r\ncontent-length: {endless}\r\n\r\n")
                .as_bytes(),
        )
        .await;
    let some = vec![b'x'; BODY_BYTES_MAX];
    // Far more than is read, and than the kernel buffers.
    for _ in 0..100 {
        if client.try_send(&some).await.is_err() {
            break; // closed by the receiver
        }
    }
    patiently(receiver.wait_until(|stats| stats.refused == 1)).await;
}

#[tokio::test]
async fn shutdown_does_not_wait_for_held_requests_and_frees_the_port() {
    let (mut receiver, mut client) = holding().await;
    patiently(receiver.shutdown()).await;
    assert_eq!((receiver.stats().in_progress, receiver.stats().hung_on_purpose), (0, 1));
    assert!(client.response().await.is_none());
    receiver.shutdown().await; // a second time does nothing

    let settings = Settings { port: receiver.local_addr().port(), ..Settings::calm() };
    let next = MockReceiver::bind(settings).await.unwrap();
    assert_eq!(deliver(&next, "evt_a").await, 200);
    assert_eq!(receiver.stats().requests, 1);
}

#[tokio::test]
async fn dropping_the_receiver_closes_its_connections() {
    let (receiver, mut client) = holding().await;
    drop(receiver);
    assert!(client.response().await.is_none());
}

#[tokio::test]
async fn a_taken_port_and_a_bad_setting_are_refused_by_name() {
    let receiver = MockReceiver::bind(Settings::calm()).await.unwrap();
    let port = receiver.local_addr().port();
    let taken = MockReceiver::bind(Settings { port, ..Settings::calm() }).await.err().unwrap();
    assert_eq!(taken.kind(), ErrorKind::AddrInUse);
    assert!(taken.to_string().contains("(BIND, PORT)"), "{taken}");

    let settings = Settings { hang_rate: 1.5, ..Settings::calm() };
    let bad = MockReceiver::bind(settings).await.err().unwrap();
    assert_eq!(bad.kind(), ErrorKind::InvalidInput);
    assert_eq!(bad.to_string(), "HANG_RATE must be between 0 and 1, but is 1.5");
}

#[tokio::test]
async fn urls_can_be_called_also_when_bound_to_all_interfaces() {
    let settings = Settings { bind: "0.0.0.0".parse().unwrap(), ..Settings::calm() };
    let receiver = MockReceiver::bind(settings).await.unwrap();
    let port = receiver.local_addr().port();
    assert_eq!(receiver.url(), format!("http://127.0.0.1:{port}/webhook"));
    assert_eq!(receiver.url_of("/stats"), format!("http://127.0.0.1:{port}/stats"));
}
