//! What never ends is cut off: the receiver gets rid of no more than what lies in buffers.

use super::{Case, after_head, case, meet, service};
use crate::{
    delivery::{DEADLINE, class, local, sent},
    support::raw::{Misdeed, RawReceiver, Then},
};
use webhook_dispatcher::domain::{ErrorClass, Outcome};

/// What the kernel's buffers of both ends may hold, and what we read. Without a bound a receiver gets
/// rid of gibibytes until the deadline.
const TAKEN_MAX: usize = 24 << 20;

fn flooding(
    name: &'static str,
    bytes: &str,
    unit: &[u8],
    class: &'static str,
    status: Option<u16>,
) -> Case {
    case(name, after_head(bytes, Then::Flood(unit.to_vec())), class, status)
}

/// Catches: a part of an answer that is read without a bound.
#[tokio::test]
async fn what_never_ends_is_cut_off() {
    let app = service("60").await;
    let (ok, chunked) = ("HTTP/1.1 200 OK\r\n", "transfer-encoding: chunked\r\n\r\n");
    let too_large = "response_too_large";
    let cases = vec![
        flooding("a body", &format!("{ok}\r\n"), b"x", "", Some(200)),
        flooding(
            "a body of a length",
            &format!("{ok}content-length: 9999999999999\r\n\r\n"),
            b"x",
            "",
            Some(200),
        ),
        flooding("a body of an error", "HTTP/1.1 500 No\r\n\r\n", b"x", "http_status", Some(500)),
        flooding("chunks", &format!("{ok}{chunked}"), b"1\r\nx\r\n", "", Some(200)),
        flooding("one chunk", &format!("{ok}{chunked}fffffffffff\r\n"), b"x", "", Some(200)),
        flooding("a status line", "HTTP/1.1 200 ", b"x", too_large, None),
        flooding("empty lines", "", b"\r\n", too_large, None),
        flooding("one header line", &format!("{ok}x: "), b"x", too_large, None),
        flooding("header lines", ok, b"x: y\r\n", too_large, None),
        flooding("a header's name", ok, b"x", too_large, None),
        flooding("100 Continue", "", b"HTTP/1.1 100 Continue\r\n\r\n", too_large, None),
        flooding("103 with hints", "", b"HTTP/1.1 103 Hints\r\nlink: x\r\n\r\n", too_large, None),
        // The head has decided already; what follows is read within the same bounds.
        flooding("a chunk's size", &format!("{ok}{chunked}"), b"0", "", Some(200)),
        flooding("a chunk's extension", &format!("{ok}{chunked}1;"), b"x", "", Some(200)),
        flooding(
            "extensions",
            &format!("{ok}{chunked}"),
            b"1;xxxxxxxxxxxxxxx\r\nx\r\n",
            "",
            Some(200),
        ),
        flooding("one trailer", &format!("{ok}{chunked}0\r\nx: "), b"x", "", Some(200)),
        flooding("trailers", &format!("{ok}{chunked}0\r\n"), b"x: y\r\n", "", Some(200)),
    ];
    for (name, receiver) in meet(&app, cases).await {
        assert!(receiver.written() < TAKEN_MAX, "{name}: {} bytes", receiver.written());
    }
    app.stop().await;
}

/// Catches: a body that is inflated. It is kept as the bytes that came, and cut as such.
#[tokio::test]
async fn a_compressed_body_is_kept_as_it_came() {
    // What begins as sixteen mebibytes of zeros do.
    let bomb = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\xec\xc1\x01\x01\x00\x00\x00\x80\x90\xfe\xaf\xee\x08\x0a";
    let bomb = [&bomb[..], &[0; 4_094]].concat();
    for coding in ["gzip", "deflate", "br", "zstd", "gzip, gzip"] {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-encoding: {coding}\r\n\r\n");
        let answer = [head.as_bytes(), &bomb].concat();
        let receiver = RawReceiver::start(Misdeed::Write(answer)).await;
        let exchange = sent(&local(), &receiver.url(), DEADLINE).await;
        assert_eq!(exchange.outcome, Outcome::Delivered);
        let response = exchange.response.unwrap();
        assert_eq!(response.body, bomb[..1_000], "{coding}");
        assert!(response.is_truncated);
    }
}

/// Catches: a bound that good receivers meet: hints before an answer, and many headers.
#[tokio::test]
async fn what_is_long_and_ends_is_read() {
    let hints = "HTTP/1.1 103 Hints\r\nlink: </style.css>; rel=preload\r\n\r\n".repeat(100);
    let headers = format!("x-a: {}\r\n", "y".repeat(600)).repeat(90);
    let answer = format!("{hints}HTTP/1.1 200 OK\r\n{headers}content-length: 2\r\n\r\nok");
    let receiver = RawReceiver::start(Misdeed::Write(answer.into_bytes())).await;
    let exchange = sent(&local(), &receiver.url(), DEADLINE).await;
    assert_eq!(exchange.outcome, Outcome::Delivered, "{exchange:?}");
    let headers = "x-a: b\r\n".repeat(101);
    let answer = format!("HTTP/1.1 200 OK\r\n{headers}content-length: 0\r\n\r\n");
    let receiver = RawReceiver::start(Misdeed::Write(answer.into_bytes())).await;
    let exchange = sent(&local(), &receiver.url(), DEADLINE).await;
    assert_eq!(class(&exchange), ErrorClass::ResponseTooLarge);
}
