//! A hand-written HTTP client and signer, which share nothing with the code under test.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::MockReceiver;

/// The default secret, which `Settings::calm()` has.
const SECRET: &[u8] = b"change-me-in-production";

/// One connection.
pub(super) struct Client(BufReader<TcpStream>);

pub(super) struct Response {
    pub(super) status: u16,
    /// The lines of the head, in lower case.
    pub(super) head: String,
    pub(super) body: String,
}

impl Client {
    pub(super) async fn connect(receiver: &MockReceiver) -> Self {
        Self(BufReader::new(TcpStream::connect(receiver.local_addr()).await.unwrap()))
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).await.unwrap();
    }

    /// Fails if the connection was closed.
    pub(super) async fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        patiently(self.0.write_all(bytes)).await
    }

    /// The next response, or `None` if the connection was closed instead.
    pub(super) async fn response(&mut self) -> Option<Response> {
        patiently(self.response_whenever()).await
    }

    async fn response_whenever(&mut self) -> Option<Response> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            // An error is a reset, as good as a close.
            if self.0.read_line(&mut head).await.unwrap_or(0) == 0 {
                assert_eq!(head, "", "the connection was closed within a response");
                return None;
            }
        }
        let head = head.to_lowercase();
        let status = head["http/1.1 ".len()..][..3].parse().unwrap();
        let length =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
        let mut body = vec![0; length.parse().unwrap()];
        self.0.read_exact(&mut body).await.unwrap();
        Some(Response { status, head, body: String::from_utf8(body).unwrap() })
    }
}

/// Waits, but not for ever: a broken receiver fails the test instead of stopping it. Shorter than
/// `HANG_MAX`, so that nothing is mistaken for done because a held request was let go.
pub(super) async fn patiently<T>(awaited: impl std::future::Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), awaited).await.expect("it must happen")
}

/// Sends one request on a connection of its own, and returns the response.
pub(super) async fn exchange(receiver: &MockReceiver, request: &[u8]) -> Response {
    let mut client = Client::connect(receiver).await;
    client.send(request).await;
    client.response().await.expect("there must be a response")
}

pub(super) async fn get(receiver: &MockReceiver, path: &str) -> Response {
    exchange(receiver, format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await
}

/// Sends a well signed webhook, and returns the status of the answer.
pub(super) async fn deliver(receiver: &MockReceiver, webhook_id: &str) -> u16 {
    exchange(receiver, &signed("/webhook", webhook_id, b"{}")).await.status
}

/// A well signed webhook.
pub(super) fn signed(path: &str, webhook_id: &str, body: &[u8]) -> Vec<u8> {
    let head =
        format!("{}content-length: {}\r\n\r\n", signed_head(path, webhook_id, body), body.len());
    [head.as_bytes(), body].concat()
}

/// The head of a well signed webhook, without the headers that tell the body's length, and without
/// the empty line.
pub(super) fn signed_head(path: &str, webhook_id: &str, body: &[u8]) -> String {
    let now_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let standard = mac(&format!("{webhook_id}.{now_unix_s}."), body);
    let rfc3339 = "2026-01-31T23:59:59Z"; // any will do: only the other time must be fresh
    let hex = mac(&format!("{rfc3339}."), body);
    format!(
        "POST {path} HTTP/1.1\r\n\
         Host: test\r\n\
         webhook-id: {webhook_id}\r\n\
         webhook-timestamp: {now_unix_s}\r\n\
         webhook-signature: v1,{}\r\n\
         X-Webhook-Timestamp: {rfc3339}\r\n\
         X-Webhook-Signature: {hex:x}\r\n\
         X-Webhook-Attempt: 3\r\n\
         X-Webhook-Delivery-Id: dlv_1\r\n",
        STANDARD.encode(standard)
    )
}

fn mac(prefix: &str, body: &[u8]) -> Bytes {
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET).unwrap();
    mac.update(prefix.as_bytes());
    mac.update(body);
    Bytes::copy_from_slice(&mac.finalize().into_bytes())
}
