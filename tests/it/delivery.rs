//! One exchange with real sockets: what is sent, what is believed, and where it may go.

use std::{process::Command, sync::Arc, time::Duration};

use bytes::Bytes;
use webhook_dispatcher::{
    delivery::{
        Client, Exchange, Outgoing,
        client::ClientSettings,
        request::{Attempt, Signature},
        resolver::Resolver,
    },
    domain::{
        DeliveryId, ErrorClass, EventId, Outcome, SigningKey, TargetUrl, Upstream,
        address::AddressPolicy,
        signature::SigningKeys,
        subscription::{CustomHeaders, Method, SignatureHeaders},
    },
    tls::Trust,
};

use crate::support::{
    Answer, Receiver,
    raw::{Misdeed, RawReceiver},
    tls::{Authority, Certificate, TlsReceiver},
};

pub const DEADLINE: Duration = Duration::from_secs(10);
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn client(allowed: &[&str], requires_https: bool) -> Client {
    client_with(allowed, requires_https, &Resolver::new(&[]))
}

pub fn client_with(allowed: &[&str], requires_https: bool, resolver: &Arc<Resolver>) -> Client {
    client_that_trusts(allowed, requires_https, resolver, Trust::default())
}

pub fn client_that_trusts(
    allowed: &[&str],
    requires_https: bool,
    resolver: &Arc<Resolver>,
    trust: Trust,
) -> Client {
    let allowed = allowed.iter().map(|net| net.parse().unwrap()).collect();
    let settings = ClientSettings {
        addresses: AddressPolicy::new(allowed, requires_https),
        response_body_max: 1_000,
        retry_after_max: Duration::from_secs(60),
        trust,
        proxy: None,
        idle_per_host_max: 4,
    };
    Client::new(settings, resolver).unwrap()
}

pub fn local() -> Client {
    client(&["127.0.0.0/8"], false)
}

pub fn outgoing(url: &str) -> Outgoing {
    let event_id = EventId::new(1_795_219_200_000, [7; 10]);
    let keys = SigningKeys::single(SigningKey::from_secret(SECRET).unwrap());
    let attempt = Attempt {
        event_id,
        event_type: Some("invoice.paid"),
        delivery_id: DeliveryId::of_event(event_id, 0),
        number: 1,
        at: chrono::Utc::now(),
        upstream: &Upstream::default(),
        method: Method::Post,
        headers: &CustomHeaders::default(),
        signature: Signature::By(&keys, SignatureHeaders::Standard),
        target: &TargetUrl::parse(url).unwrap(),
        signing_key: None,
        body: &Bytes::from_static(b"{\"a\": 1}"),
    };
    Outgoing::of(&attempt).unwrap()
}

/// Sends to a URL, and waits for what comes of it.
pub async fn sent(client: &Client, url: &str, deadline: Duration) -> Exchange {
    let again = || Some(outgoing(url));
    client.exchange(outgoing(url), again, deadline, std::future::pending()).await
}

#[track_caller]
pub fn class(exchange: &Exchange) -> ErrorClass {
    exchange.outcome.failure().unwrap_or_else(|| panic!("{exchange:?}")).class
}

async fn misdeed(misdeed: Misdeed, deadline: Duration) -> (Exchange, RawReceiver) {
    let receiver = RawReceiver::start(misdeed).await;
    (sent(&local(), &receiver.url(), deadline).await, receiver)
}

const SHORT: Duration = Duration::from_millis(400);

#[tokio::test]
async fn connections_are_kept_and_used_again() {
    let ok = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let receiver = Receiver::start(|_, _| Answer::status(200).body("ok")).await;
    let client = local();
    for _ in 0..3 {
        let exchange = sent(&client, &receiver.url("/"), DEADLINE).await;
        assert_eq!(exchange.outcome, Outcome::Delivered);
        assert_eq!(&*exchange.response.unwrap().body, b"ok");
    }
    let closing = RawReceiver::start(Misdeed::Write(ok.to_vec())).await;
    for _ in 0..3 {
        let exchange = sent(&client, &closing.url(), DEADLINE).await;
        assert_eq!(exchange.outcome, Outcome::Delivered, "{exchange:?}");
    }
    assert_eq!(closing.connections(), 3, "what the receiver closes is opened anew");
}

/// Its rest is not what the next request is answered with.
#[tokio::test]
async fn a_connection_with_an_unfinished_answer_is_not_used_again() {
    let (client, seen) = (local(), RawReceiver::start(Misdeed::Flood(CUT.to_vec())).await);
    for _ in 0..2 {
        let exchange = sent(&client, &seen.url(), DEADLINE).await;
        assert!(exchange.response.unwrap().is_truncated);
    }
    assert_eq!(seen.connections(), 2);
}

const CUT: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n";

#[tokio::test]
async fn redirects_are_not_followed() {
    let elsewhere = Receiver::always(200).await;
    let location = elsewhere.url("/");
    for status in [301, 302, 303, 307, 308] {
        let location = location.clone();
        let receiver = Receiver::start(move |_, _| {
            Answer::status(status).header("location", location.clone())
        })
        .await;
        let exchange = sent(&local(), &receiver.url("/"), DEADLINE).await;
        assert_eq!(class(&exchange), ErrorClass::Redirect, "{status}");
    }
    assert_eq!(elsewhere.count(), 0);
}

#[tokio::test]
async fn a_long_body_is_cut_and_the_status_decides() {
    let receiver = Receiver::start(|_, _| Answer::status(200).body(vec![b'x'; 100_000])).await;
    let exchange = sent(&local(), &receiver.url("/"), DEADLINE).await;
    assert_eq!(exchange.outcome, Outcome::Delivered);
    let response = exchange.response.unwrap();
    assert_eq!((response.body.len(), response.is_truncated), (1_000, true));

    let exact = Receiver::start(|_, _| Answer::status(200).body(vec![b'x'; 1_000])).await;
    let exchange = sent(&local(), &exact.url("/"), DEADLINE).await;
    let response = exchange.response.unwrap();
    assert_eq!((response.body.len(), response.is_truncated), (1_000, false));
}

/// Nothing is waited for after the cap, so what does not end there has been received all the same.
#[tokio::test]
async fn reading_stops_at_the_cap() {
    // One chunk of 1,000 bytes, and then a second one whose head never ends.
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let full = format!("{head}3e8\r\n{}\r\n5;", "y".repeat(1_000)).into_bytes();
    let (exchange, _) = misdeed(Misdeed::Drip(full), SHORT).await;
    assert_eq!(exchange.outcome, Outcome::Delivered);
    let response = exchange.response.unwrap();
    assert_eq!((response.body.len(), response.is_truncated), (1_000, true), "there may be more");

    let short = format!("{head}3e7\r\n{}\r\n5;", "y".repeat(999)).into_bytes();
    let (exchange, _) = misdeed(Misdeed::Drip(short), SHORT).await;
    assert_eq!(exchange.outcome, Outcome::Delivered, "the head was whole");
    let response = exchange.response.unwrap();
    assert_eq!((response.body.len(), response.is_truncated), (999, true), "what came is kept");
}

#[tokio::test]
async fn an_endless_body_is_cut_at_once() {
    let head = b"HTTP/1.1 500 No\r\ncontent-type: text/plain\r\n\r\n".to_vec();
    let (exchange, _) = misdeed(Misdeed::Flood(head), DEADLINE).await;
    assert_eq!(class(&exchange), ErrorClass::HttpStatus);
    assert!(exchange.response.unwrap().is_truncated);
}

#[tokio::test]
async fn one_deadline_is_over_head_and_body() {
    for (status, class) in [(200, None), (503, Some(ErrorClass::HttpStatus))] {
        let head = format!("HTTP/1.1 {status} Text\r\ncontent-length: 999\r\n\r\n");
        let (exchange, _) = misdeed(Misdeed::Drip(head.into_bytes()), SHORT).await;
        let failure = exchange.outcome.failure().map(|failure| failure.class);
        assert_eq!(failure, class, "the head was whole, so its status decides");
        let response = exchange.response.unwrap();
        assert_eq!((response.status, response.is_truncated), (status, true), "what came is kept");
    }
    let (exchange, _) = misdeed(Misdeed::Drip(b"HTTP/1.1 200 OK\r\nx-a: ".to_vec()), SHORT).await;
    assert_eq!(class(&exchange), ErrorClass::Timeout);
    assert!(exchange.response.is_none());
    let (exchange, _) = misdeed(Misdeed::Hang, SHORT).await;
    assert_eq!(class(&exchange), ErrorClass::Timeout);
}

#[tokio::test]
async fn broken_answers_are_told_apart() {
    let (exchange, _) = misdeed(Misdeed::Reset, DEADLINE).await;
    assert_eq!(class(&exchange), ErrorClass::Protocol);
    let (exchange, _) = misdeed(Misdeed::Write(Vec::new()), DEADLINE).await;
    assert_eq!(class(&exchange), ErrorClass::Protocol, "closed without an answer");
    let (exchange, _) = misdeed(Misdeed::Write(b"SSH-2.0-x\r\n\r\n".to_vec()), DEADLINE).await;
    assert_eq!(class(&exchange), ErrorClass::Protocol);
    let short = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx".to_vec();
    let (exchange, _) = misdeed(Misdeed::Write(short), DEADLINE).await;
    assert_eq!(exchange.outcome, Outcome::Delivered, "the head was whole");
    assert!(exchange.response.unwrap().is_truncated);
    let (exchange, _) =
        misdeed(Misdeed::Flood(b"HTTP/1.1 200 OK\r\nx-a: ".to_vec()), DEADLINE).await;
    assert_eq!(class(&exchange), ErrorClass::ResponseTooLarge);
    let many: Vec<_> = (0..200).map(|n| format!("x-{n}: y\r\n")).collect();
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", many.concat()).into_bytes();
    let (exchange, _) = misdeed(Misdeed::Write(many), DEADLINE).await;
    assert_eq!(class(&exchange), ErrorClass::ResponseTooLarge);
}

#[tokio::test]
async fn what_cannot_be_reached_is_told_apart() {
    let refused = sent(&local(), "http://127.0.0.1:9/", DEADLINE).await;
    assert_eq!(class(&refused), ErrorClass::Connect);
    let plain = Receiver::always(200).await;
    let tls = format!("https://127.0.0.1:{}/", plain.port());
    assert_eq!(class(&sent(&local(), &tls, DEADLINE).await), ErrorClass::Tls);
    let unknown = sent(&local(), "http://does-not-exist.invalid/", DEADLINE).await;
    assert_eq!(class(&unknown), ErrorClass::Dns);
}

/// What the machine trusts is trusted, and nothing else.
#[tokio::test]
async fn certificates_are_verified() {
    let (trusted, unknown) = (Authority::new(), Authority::new());
    for (authority, certificate, class) in [
        (&trusted, Certificate::Good, "delivered"),
        (&trusted, Certificate::OfAnotherHost, "tls"),
        (&trusted, Certificate::Expired, "tls"),
        (&unknown, Certificate::Good, "tls"),
    ] {
        let receiver = TlsReceiver::start(authority, certificate).await;
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "delivery::deliver_to_the_url_of_the_environment", "--ignored"])
            .env("DELIVER_TO", receiver.url())
            .env("OUTCOME", class)
            .env("SSL_CERT_FILE", trusted.file())
            .spawn()
            .unwrap();
        let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
        assert!(output.await.unwrap().status.success(), "{certificate:?} should be {class}");
    }
}

/// Nothing may even connect: the listener would see it.
#[tokio::test]
async fn refused_addresses_are_not_connected_to() {
    let listener = RawReceiver::start(Misdeed::Hang).await;
    let port = listener.url().rsplit(':').next().unwrap().trim_end_matches('/').to_owned();
    let strict = client(&[], false);
    for host in ["127.0.0.1", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "localhost", "[::1]"] {
        let url = format!("http://{host}:{port}/");
        let exchange = sent(&strict, &url, DEADLINE).await;
        assert_eq!(class(&exchange), ErrorClass::BlockedAddress, "{host}: {exchange:?}");
        let message = &exchange.outcome.failure().unwrap().message;
        assert!(message.contains("ALLOWED_TARGET_CIDRS"), "{message}");
    }
    assert_eq!(listener.connections(), 0);
}

#[tokio::test]
async fn names_are_resolved_and_vetted() {
    let receiver = Receiver::always(200).await;
    let url = format!("http://localhost:{}/", receiver.port());
    let allowed = client(&["127.0.0.0/8", "::1/128"], true);
    let exchange = sent(&allowed, &url, DEADLINE).await;
    assert_eq!(exchange.outcome, Outcome::Delivered, "an allowed block may be called over http");
    assert_eq!(receiver.count(), 1);
}

#[tokio::test]
async fn no_proxy_is_taken_from_the_environment() {
    let proxy = Receiver::always(200).await;
    let target = Receiver::always(200).await;
    // The variable is the process's, so a process of its own has it.
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "delivery::deliver_to_the_url_of_the_environment", "--ignored"])
        .env("DELIVER_TO", target.url("/"))
        .env("OUTCOME", "delivered")
        .env("http_proxy", proxy.url("/"))
        .env("HTTP_PROXY", proxy.url("/"))
        .env("ALL_PROXY", proxy.url("/"))
        .spawn()
        .unwrap();
    let output = tokio::task::spawn_blocking(move || status.wait_with_output().unwrap());
    assert!(output.await.unwrap().status.success());
    assert_eq!((target.count(), proxy.count()), (2, 0));
}

/// Not a test by itself: the other half of those that need an environment.
#[tokio::test]
#[ignore = "run by no_proxy_is_taken_from_the_environment and certificates_are_verified"]
async fn deliver_to_the_url_of_the_environment() {
    let variable = |name: &str| std::env::vars().find(|(n, _)| n == name).map(|(_, value)| value);
    let url = variable("DELIVER_TO").unwrap();
    let client = local();
    // Twice: the second time over the connection that the first one opened.
    for _ in 0..2 {
        let exchange = sent(&client, &url, DEADLINE).await;
        let outcome = exchange.outcome.failure().map_or("delivered", |f| f.class.as_str());
        assert_eq!(Some(outcome), variable("OUTCOME").as_deref(), "{exchange:?}");
    }
}
