//! `webhook-dispatcher mcp`: MCP over stdio, for hosts that start their servers as processes.
//!
//! Each line that comes in is a message, and is posted to `/mcp` of a running instance; what that
//! answers goes out as a line. So both ways have the same tools, and the instance decides what the
//! key may. Nothing is kept but the protocol's version, which the instance is told in a header.

mod exchange;

use std::{collections::HashMap, sync::Arc};

use anyhow::Context;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
    task::{AbortHandle, JoinSet},
};
use tokio_util::codec::{FramedRead, FramedWrite, LinesCodec, LinesCodecError};

use self::exchange::{Endpoint, Head};
use crate::{config::Instance, tls::Trust};

/// How long a line may be: as long as the body of a request may be by default, and as much again.
const LINE_BYTES_MAX: usize = 2 * 1024 * 1024;
/// How many messages are under way at a time; more wait to be read.
const UNDER_WAY_MAX: usize = 64;

/// Codes of JSON-RPC.
const PARSE_ERROR: i32 = -32_700;
const INTERNAL_ERROR: i32 = -32_603;

/// Carries messages until the input ends and what was asked is answered.
pub async fn run(
    instance: &Instance,
    trust: &Trust,
    input: impl AsyncRead + Unpin,
    output: impl AsyncWrite + Unpin,
) -> anyhow::Result<()> {
    let endpoint = Arc::new(Endpoint::new(instance, trust)?);
    let mut lines = FramedRead::new(input, LinesCodec::new_with_max_length(LINE_BYTES_MAX));
    let mut output = FramedWrite::new(output, LinesCodec::new());
    let room = Arc::new(Semaphore::new(UNDER_WAY_MAX));
    let mut version: Option<String> = None;
    let mut under_way: JoinSet<(Value, Vec<Value>)> = JoinSet::new();
    let mut by_id: HashMap<String, AbortHandle> = HashMap::new();
    let mut is_open = true;
    while is_open || !under_way.is_empty() {
        let next = async {
            let place = room.clone().acquire_owned().await.expect("it is never closed");
            (lines.next().await, place)
        };
        tokio::select! {
            (line, place) = next, if is_open => {
                let message = match line.map(read) {
                    None => { is_open = false; continue; }
                    Some(Ok(message)) => message,
                    Some(Err(answer)) => { output.send(answer?.to_string()).await?; continue; }
                };
                if message["method"] == "notifications/cancelled" {
                    let id = message["params"]["requestId"].to_string();
                    if let Some(task) = by_id.remove(&id) { task.abort(); }
                }
                let id = message["id"].clone();
                let head = Head::of(&message, version.as_deref());
                let endpoint = endpoint.clone();
                let task = under_way.spawn(async move {
                    let answers = endpoint.post(&head, &message).await;
                    drop(place);
                    (message["id"].clone(), answers.unwrap_or_else(|error| told(&message, &error)))
                });
                if !id.is_null() { by_id.insert(id.to_string(), task); }
            }
            Some(ended) = under_way.join_next() => {
                // One that was cancelled has no answer.
                let Ok((id, answers)) = ended else { continue };
                by_id.remove(&id.to_string());
                for answer in answers {
                    let agreed = answer["result"]["protocolVersion"].as_str();
                    version = agreed.map(str::to_owned).or(version);
                    output.send(answer.to_string()).await?;
                }
            }
        }
    }
    Ok(())
}

/// Reads a line; or else what is answered to it, or why nothing can be read any more.
fn read(line: Result<String, LinesCodecError>) -> Result<Value, anyhow::Result<Value>> {
    let fault = |detail: String| Ok(error(&Value::Null, PARSE_ERROR, &detail));
    match line {
        Ok(line) => serde_json::from_str(&line).map_err(|error| fault(format!("no JSON: {error}"))),
        Err(LinesCodecError::MaxLineLengthExceeded) => {
            Err(fault(format!("a message has more than {LINE_BYTES_MAX} bytes")))
        }
        Err(LinesCodecError::Io(error)) => Err(Err(error).context("the input cannot be read")),
    }
}

/// What is answered in place of an instance that did not; nothing to what asks for no answer.
fn told(message: &Value, why: &anyhow::Error) -> Vec<Value> {
    if message["id"].is_null() || message["method"].is_null() {
        tracing::warn!("{why:#}");
        return Vec::new();
    }
    vec![error(&message["id"], INTERNAL_ERROR, &format!("{why:#}"))]
}

fn error(id: &Value, code: i32, message: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_answered() {
        let answer = read(Ok("{".to_owned())).unwrap_err().unwrap();
        assert_eq!(answer["error"]["code"], PARSE_ERROR);
        let answer = read(Err(LinesCodecError::MaxLineLengthExceeded)).unwrap_err().unwrap();
        assert!(answer["error"]["message"].as_str().unwrap().contains("bytes"));
    }

    #[test]
    fn only_what_asks_for_an_answer_gets_one() {
        let why = anyhow::anyhow!("away");
        let told = |message: Value| told(&message, &why);
        assert_eq!(told(json!({"id": 7, "method": "tools/list"}))[0]["id"], 7);
        assert!(told(json!({"method": "notifications/initialized"})).is_empty());
        assert!(told(json!({"id": 7, "result": {}})).is_empty());
    }
}
