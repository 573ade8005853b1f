//! Clients that mean no good, over raw sockets: each ends in a bounded time, is told why where it can be
//! told, leaves nothing behind, and nobody else is harmed.

mod bodies;
mod bursts;
mod connections;
mod heads;

use std::time::Duration;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::TestApp;

/// How long anything may take before a test fails. Never what a test measures.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two bytes of a client that is slow: the misdeed itself.
const SLOW: Duration = Duration::from_millis(20);

/// A client that sends bytes.
struct Client {
    stream: TcpStream,
    read: Vec<u8>,
}

/// What it was answered.
#[derive(Debug)]
struct Answered {
    status: u16,
    /// In lower case.
    head: String,
    body: Value,
}

impl Answered {
    #[track_caller]
    fn check(&self, status: u16, problem: &str) {
        assert_eq!(self.status, status, "{self:?}");
        // At `/mcp` the problem is the data of a JSON-RPC error, which is what its clients show.
        let (found, media_type) = match &self.body["error"]["data"] {
            Value::Null => (&self.body, "application/problem+json"),
            data => (data, "application/json"),
        };
        assert_eq!(found["type"], format!("/problems/{problem}"), "{self:?}");
        assert!(self.head.contains(media_type), "{self:?}");
        assert!(self.head.contains("x-request-id: "), "{self:?}");
        assert_eq!(self.head.contains("retry-after: "), status == 503, "{self:?}");
    }
}

impl Client {
    async fn of(app: &TestApp) -> Self {
        let address = app.base.strip_prefix("http://").unwrap();
        Self::over(TcpStream::connect(address).await.unwrap())
    }

    fn over(stream: TcpStream) -> Self {
        Self { stream, read: Vec::new() }
    }

    /// A client that has sent something.
    async fn sending(app: &TestApp, bytes: impl AsRef<[u8]>) -> Self {
        let mut client = Self::of(app).await;
        client.send(bytes).await;
        client
    }

    /// Sends as far as it is taken.
    async fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        let sent = tokio::time::timeout(PATIENCE, self.stream.write_all(bytes.as_ref()));
        sent.await.expect("it is taken in time").is_ok()
    }

    /// The next answer; none if the connection ends before.
    async fn answer(&mut self) -> Option<Answered> {
        tokio::time::timeout(PATIENCE, self.read_answer()).await.expect("it comes in time")
    }

    async fn read_answer(&mut self) -> Option<Answered> {
        let length = loop {
            if let Some(end) = self.read.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            self.read_more().await?;
        };
        let head: Vec<u8> = self.read.drain(..length).collect();
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let told = head.split("content-length: ").nth(1);
        let length = told.map_or(0, |rest| rest.lines().next().unwrap().parse().unwrap());
        while self.read.len() < length {
            self.read_more().await?;
        }
        let body: Vec<u8> = self.read.drain(..length).collect();
        let text = || Value::String(String::from_utf8_lossy(&body).into_owned());
        let body = serde_json::from_slice(&body).unwrap_or_else(|_| text());
        Some(Answered { status, head, body })
    }

    async fn read_more(&mut self) -> Option<()> {
        let read = self.stream.read_buf(&mut self.read).await;
        (read.unwrap_or(0) > 0).then_some(())
    }

    /// Waits for the end of the connection; tells what came before it.
    async fn ended(mut self) -> String {
        let end = async { while self.read_more().await.is_some() {} };
        tokio::time::timeout(PATIENCE, end).await.expect("it ends in time");
        String::from_utf8_lossy(&self.read).into_owned()
    }

    /// Sends these bytes again and again, one a while, until that fails or an answer comes.
    async fn drip(&mut self, bytes: &[u8]) -> Option<Answered> {
        let dripping = async {
            for byte in bytes.iter().cycle() {
                let said = tokio::time::timeout(SLOW, self.read_answer()).await;
                match said {
                    Ok(answer) => return answer,
                    Err(_) if self.stream.write_all(&[*byte]).await.is_err() => break,
                    Err(_) => {}
                }
            }
            self.read_answer().await
        };
        tokio::time::timeout(PATIENCE, dripping).await.expect("it ends in time")
    }

    /// Sends these bytes again and again until an answer comes or the connection ends.
    async fn flood(self, bytes: &[u8]) -> Option<Answered> {
        let Self { stream, read } = self;
        let (reader, mut writer) = stream.into_split();
        let chunk = bytes.repeat((64 * 1024_usize).div_ceil(bytes.len()));
        let flooding = async { while writer.write_all(&chunk).await.is_ok() {} };
        let mut answers = Answers { reader, read };
        let flooding = async {
            tokio::select! {
                answer = answers.next() => answer,
                () = flooding => answers.next().await,
            }
        };
        tokio::time::timeout(PATIENCE, flooding).await.expect("it ends in time")
    }
}

/// The head and the problem of an answer that comes while something is still being sent.
struct Answers {
    reader: tokio::net::tcp::OwnedReadHalf,
    read: Vec<u8>,
}

impl Answers {
    async fn next(&mut self) -> Option<Answered> {
        while !self.read.windows(4).any(|window| window == b"\r\n\r\n")
            || !(self.read.ends_with(b"}") || self.read.ends_with(b"\r\n\r\n"))
        {
            if self.reader.read_buf(&mut self.read).await.unwrap_or(0) == 0 {
                return None;
            }
        }
        let text = String::from_utf8_lossy(&self.read).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = serde_json::from_str(body).unwrap_or_default();
        Some(Answered { status, head: head.to_ascii_lowercase(), body })
    }
}

/// The head of a POST of JSON.
fn post(path: &str, rest: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{rest}\r\n\r\n"
    )
}

/// A whole POST of an event.
fn event(payload: &str) -> String {
    let body = format!(r#"{{"payload": {payload}, "target_url": "http://127.0.0.1:9/"}}"#);
    post("/events", &format!("content-length: {}", body.len())) + &body
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")
}

/// Whoever else there is, is served.
async fn is_well(app: &TestApp) {
    let mut client = Client::sending(app, event("1") + &get("/readyz")).await;
    assert_eq!(client.answer().await.expect("an answer").status, 202);
    assert_eq!(client.answer().await.expect("an answer").status, 200);
}

/// How many events are stored.
async fn events(app: &TestApp) -> i64 {
    sqlx::query_scalar("select count(*) from event").fetch_one(app.store.pool()).await.unwrap()
}

/// How often clients were refused so; the figures are those of all tests together.
async fn refusals(app: &TestApp, reason: &str) -> u64 {
    let (_, metrics) = app.get("/metrics").await;
    let name = format!("dispatcher_http_refusals_total{{reason=\"{reason}\"}} ");
    let line = metrics.as_str().unwrap().lines().find_map(|line| line.strip_prefix(&name));
    line.expect("a figure of its own").parse().unwrap()
}
