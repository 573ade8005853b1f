//! Faults of TLS, in the handshake and after it.

use super::{Case, PERHAPS, case, dispatch, meet, service};
use crate::support::{
    TestDatabase,
    process::{Process, free_port, on},
    raw::{Misdeed, Reads, Then},
    tls::{Authority, TlsReceiver},
};

/// A fatal alert: handshake_failure.
const ALERT: &[u8] = b"\x15\x03\x03\x00\x02\x02\x28";
/// A record of a handshake that is longer than any may be.
const OVERSIZED: &[u8] = b"\x16\x03\x03\xff\xff";

fn shaken(name: &'static str, bytes: &[u8], then: Then, class: &'static str) -> Case {
    let misdeed = Misdeed::Script(Reads::Something, bytes.to_vec(), then);
    Case { scheme: "https", ..case(name, misdeed, class, None) }
}

/// Catches: a handshake that fails and is told as something else.
#[tokio::test]
async fn handshakes_that_fail() {
    let app = service("60").await;
    let plain = b"HTTP/1.1 400 Plain HTTP\r\ncontent-length: 0\r\n\r\n";
    let cases = vec![
        shaken("plain HTTP", plain, Then::HalfClose, "tls"),
        shaken("another protocol", b"220 mail.example ESMTP\r\n", Then::HalfClose, "tls"),
        shaken("an alert", ALERT, Then::HalfClose, "tls"),
        shaken("an oversized record", OVERSIZED, Then::Hang, "tls"),
        shaken("a flood of zeros", b"", Then::Flood(vec![0]), "tls"),
        shaken("a flood of records", b"", Then::Flood(b"\x16\x03\x03\x00\x01\x02".to_vec()), "tls"),
        shaken("an end after the hello", b"", Then::HalfClose, "tls"),
        shaken("a close after the hello", b"", Then::Close, "tls"),
        shaken("a reset after the hello", b"", Then::Reset, "tls"),
        shaken("an end within a record", b"\x16\x03\x03\x00\x80\x02", Then::HalfClose, "tls"),
    ];
    for (name, receiver) in meet(&app, cases).await {
        assert!(receiver.written() < 24 << 20, "{name}: {} bytes", receiver.written());
    }
    app.stop().await;
}

/// Catches: a delivery that is sent again because TLS did not end as it should after the answer.
#[tokio::test]
async fn faults_after_the_handshake() {
    let authority = Authority::new();
    let file = authority.file();
    let database = TestDatabase::new().await;
    let url = database.url();
    let more = [
        ("SSL_CERT_FILE", file.to_str().unwrap()),
        ("ALLOWED_TARGET_CIDRS", "127.0.0.0/8"),
        ("DISPATCH_INLINE_MAX", "100"),
        ("DISPATCH_WAIT", "100"),
    ];
    let service = Process::start(free_port().await, &[on(&url).as_slice(), &more].concat()).await;
    let (head, nine) =
        ("HTTP/1.1 200 OK\r\n\r\nx", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx");
    let mut targets = Vec::new();
    let mut receivers = Vec::new();
    for (name, bytes, then, class, status) in [
        ("until the end", head, Then::HalfClose, "", Some(200)),
        // Many servers close without `close_notify`. A reset may overtake the head.
        ("cut", head, Then::Close, "", Some(200)),
        ("reset", head, Then::Reset, "|protocol", PERHAPS),
        ("a length, cut", nine, Then::Close, "", Some(200)),
        ("a length, reset", nine, Then::Reset, "|protocol", PERHAPS),
        ("a length, ended", nine, Then::HalfClose, "", Some(200)),
        ("a failure, cut", "HTTP/1.1 500 No\r\n\r\nx", Then::Close, "http_status", Some(500)),
        ("an endless body", head, Then::Flood(b"x".to_vec()), "", Some(200)),
        (
            "endless hints",
            "",
            Then::Flood(b"HTTP/1.1 103 Hi\r\n\r\n".to_vec()),
            "response_too_large",
            None,
        ),
        (
            "an endless header",
            "HTTP/1.1 200 OK\r\nx: ",
            Then::Flood(b"x".to_vec()),
            "response_too_large",
            None,
        ),
    ] {
        let receiver = TlsReceiver::following(&authority, bytes, then).await;
        targets.push((name, receiver.url(), class, status));
        receivers.push(receiver);
    }
    dispatch(&service.base, &targets).await;
}
