//! Bytes on the wire: heads, trace contexts, hops; connections that real servers close; and the
//! proxy through which targets are called.

mod egress_proxy;
mod heads;
mod hops;
mod keep_alive;
mod targets;

use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{TestApp, raw::RawReceiver};

/// Heads of requests, as they came.
#[derive(Clone, Default)]
struct Heads(Arc<Mutex<Vec<String>>>);

impl Heads {
    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    /// Values of a header over all requests; `None` where it is absent.
    fn header(&self, name: &str) -> Vec<Option<String>> {
        let value = |head: &String| {
            let lines = head.split("\r\n").skip(1).filter_map(|line| line.split_once(": "));
            let mut found = lines.filter(|(known, _)| known.eq_ignore_ascii_case(name));
            found.next().map(|(_, value)| value.to_owned())
        };
        self.all().iter().map(value).collect()
    }
}

/// Reads requests of small bodies, notes their heads, and answers the first `failing` with 500. With
/// `closes` it closes each connection soon after its answer.
async fn noting(failing: usize, closes: bool) -> (RawReceiver, Heads) {
    let heads = Heads::default();
    let noted = heads.clone();
    let receiver = RawReceiver::with(move |mut stream, _| {
        let noted = noted.clone();
        async move {
            while let Some(head) = read_request(&mut stream).await? {
                let count = {
                    let mut heads = noted.0.lock().unwrap();
                    heads.push(head);
                    heads.len()
                };
                let status = if count <= failing { "500 Failed" } else { "200 OK" };
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await?;
                if closes {
                    tokio::time::sleep(std::time::Duration::from_millis(2)).await; // as asked for
                    return Ok(());
                }
            }
            Ok(())
        }
    })
    .await;
    (receiver, heads)
}

/// Reads one request to its end; returns its head.
async fn read_request(stream: &mut TcpStream) -> std::io::Result<Option<String>> {
    let mut bytes = Vec::new();
    loop {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        if let Some(end) = end {
            // Latin-1, which every byte has.
            let head: String = bytes[..end].iter().copied().map(char::from).collect();
            let length = head.to_lowercase();
            let length = length.split("content-length: ").nth(1).unwrap().lines().next().unwrap();
            let whole = end + 4 + length.trim().parse::<usize>().unwrap();
            while bytes.len() < whole {
                stream.read_buf(&mut bytes).await?;
            }
            return Ok(Some(head));
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    }
}

/// Posts JSON with headers; answers status and body.
async fn post(app: &TestApp, path: &str, headers: &[(&str, &str)], body: &Value) -> (u16, Value) {
    let mut request = app.http.post(format!("{}{path}", app.base));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.header("content-type", "application/json").body(body.to_string());
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    (status, serde_json::from_str(&response.text().await.unwrap()).unwrap())
}
