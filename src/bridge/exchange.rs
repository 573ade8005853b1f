//! One message to an instance, and what it answers.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode, header};
use serde_json::Value;
use url::Url;

use crate::{
    config::Instance,
    peer::{Peer, PeerError},
    tls::Trust,
};

/// How long an answer may take: a dispatch waits for its results.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);
/// How many bytes an answer may have: twice what a tool answers, which is there as text as well.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Where a request of the protocol without sessions names its version.
const VERSION_MEMBER: &str = "io.modelcontextprotocol/protocolVersion";

/// Where messages go.
pub struct Endpoint {
    url: Url,
    key: Option<header::HeaderValue>,
    peer: Peer,
}

/// What the protocol repeats of a message in headers.
pub struct Head {
    version: Option<String>,
    method: Option<String>,
    name: Option<String>,
}

impl Head {
    /// Reads it off a message. `agreed` is the version that an `initialize` came to.
    pub fn of(message: &Value, agreed: Option<&str>) -> Self {
        let params = &message["params"];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let method = text(&message["method"]);
        let opens = method.as_deref() == Some("initialize");
        let agreed = agreed.filter(|_| !opens).map(str::to_owned);
        Self {
            version: text(&params["_meta"][VERSION_MEMBER]).or(agreed),
            name: text(&params["name"]).or_else(|| text(&params["uri"])),
            method,
        }
    }
}

impl Endpoint {
    /// `/mcp` of an instance.
    pub fn new(instance: &Instance, trust: &Trust) -> anyhow::Result<Self> {
        let mut url = instance.url.clone();
        ensure!(
            matches!(url.scheme(), "http" | "https"),
            "WEBHOOK_DISPATCHER_URL must begin with http:// or https://, not {}:",
            url.scheme()
        );
        let path = format!("{}/mcp", url.path().trim_end_matches('/').trim_end_matches("/mcp"));
        url.set_path(&path);
        url.set_query(None);
        let key = instance.reveal_key().map(|key| {
            let value = header::HeaderValue::try_from(format!("Bearer {key}"));
            let mut value = value.context("WEBHOOK_DISPATCHER_API_KEY must be printable ASCII")?;
            value.set_sensitive(true);
            anyhow::Ok(value)
        });
        Ok(Self { url, key: key.transpose()?, peer: Peer::new(trust)? })
    }

    /// Posts a message, and tells what is answered: nothing to a notification.
    pub async fn post(&self, head: &Head, message: &Value) -> anyhow::Result<Vec<Value>> {
        let asked = self.peer.ask(self.request(head, message)?, ANSWER_BYTES_MAX);
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, asked).await;
        let answer = answer.context("the instance does not answer in time")?;
        let answer = answer.map_err(|error| match error {
            PeerError::Connect(_) => {
                anyhow::Error::new(error).context(format!("no instance answers at {}", self.url))
            }
            _ => error.into(),
        });
        let (parts, body) = answer?.into_parts();
        let status = parts.status;
        let content_type = parts.headers.get(header::CONTENT_TYPE);
        let content_type = content_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
        let is_stream = content_type.starts_with("text/event-stream");
        let answers = messages(&body, is_stream);
        // An error without an id is no answer to this message: it was refused unread.
        let is_refusal = |answers: &Vec<Value>| answers.iter().any(|one| one["id"].is_null());
        if let Some(answers) = answers.filter(|all| status.is_success() || !is_refusal(all)) {
            return Ok(answers);
        }
        ensure!(!status.is_success() || body.is_empty(), "the instance answered with no message");
        if status.is_success() {
            return Ok(Vec::new());
        }
        let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
        let detail = problem["error"]["message"].as_str().or_else(|| problem["detail"].as_str());
        let detail = detail.map(str::to_owned);
        let detail = detail.unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned());
        let hint = match status {
            StatusCode::UNAUTHORIZED => " (set WEBHOOK_DISPATCHER_API_KEY)",
            StatusCode::NOT_FOUND => " (is WEBHOOK_DISPATCHER_URL that of an instance?)",
            _ => "",
        };
        bail!("{} answered {status}: {detail}{hint}", self.url)
    }

    fn request(&self, head: &Head, message: &Value) -> anyhow::Result<Request<Full<Bytes>>> {
        let mut request = Request::post(self.url.as_str())
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, text/event-stream");
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, key);
        }
        for (name, value) in [
            ("mcp-protocol-version", &head.version),
            ("mcp-method", &head.method),
            ("mcp-name", &head.name),
        ] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        Ok(request.body(Full::new(Bytes::from(message.to_string())))?)
    }
}

/// The messages of an answer; `None` if it is none of the protocol's.
fn messages(body: &[u8], is_stream: bool) -> Option<Vec<Value>> {
    let of_protocol = |text: &[u8]| {
        let message: Value = serde_json::from_slice(text).ok()?;
        (message["jsonrpc"] == "2.0").then_some(message)
    };
    if !is_stream {
        return of_protocol(body).map(|message| vec![message]);
    }
    let lines = body.split(|byte| *byte == b'\n');
    Some(lines.filter_map(|line| of_protocol(line.strip_prefix(b"data:")?)).collect())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        instance: Instance,
    }

    fn endpoint(url: &str) -> anyhow::Result<Endpoint> {
        let flags = ["mcp".to_owned(), format!("--url={url}"), "--api-key=whd_x".to_owned()];
        Endpoint::new(&Flags::parse_from(flags).instance, &Trust::default())
    }

    #[test]
    fn the_endpoint_is_below_the_instance() {
        for (given, expected) in [
            ("http://127.0.0.1:8000", "http://127.0.0.1:8000/mcp"),
            ("https://hooks.example.com/", "https://hooks.example.com/mcp"),
            ("https://hooks.example.com/mcp", "https://hooks.example.com/mcp"),
            ("https://example.com/hooks/?a=b", "https://example.com/hooks/mcp"),
        ] {
            assert_eq!(endpoint(given).unwrap().url.as_str(), expected);
        }
        assert!(endpoint("ftp://example.com").is_err());
    }

    #[test]
    fn the_version_is_the_requests_own_or_the_one_agreed_on() {
        let version = |message: Value, agreed| Head::of(&message, agreed).version;
        let list = json!({"method": "tools/list"});
        assert_eq!(version(list.clone(), None), None);
        assert_eq!(version(list, Some("2025-11-25")).as_deref(), Some("2025-11-25"));
        let opening = json!({"method": "initialize", "params": {"protocolVersion": "2025-06-18"}});
        assert_eq!(version(opening, Some("2025-11-25")), None);
        let own =
            json!({"method": "tools/call", "params": {"_meta": {VERSION_MEMBER: "2026-07-28"}}});
        assert_eq!(version(own, Some("2025-11-25")).as_deref(), Some("2026-07-28"));
    }

    #[test]
    fn a_request_says_who_calls_and_whom() {
        let endpoint = endpoint("http://127.0.0.1:8000").unwrap();
        let message = json!({"method": "tools/call", "params": {"name": "webhook_event"}});
        let request = endpoint.request(&Head::of(&message, None), &message).unwrap();
        let header = |name: &str| request.headers()[name].to_str().unwrap();
        assert_eq!(request.uri(), "http://127.0.0.1:8000/mcp");
        assert_eq!(header("authorization"), "Bearer whd_x");
        assert_eq!((header("mcp-method"), header("mcp-name")), ("tools/call", "webhook_event"));
    }

    #[test]
    fn messages_come_alone_or_as_events() {
        let one = json!({"jsonrpc": "2.0", "id": 1, "result": {}});
        assert_eq!(messages(one.to_string().as_bytes(), false), Some(vec![one.clone()]));
        let events = format!("event: message\ndata: {one}\n\ndata:\n\ndata: {one}\n\n");
        assert_eq!(messages(events.as_bytes(), true), Some(vec![one.clone(), one]));
        assert_eq!(messages(b"{\"detail\": \"no\"}", false), None);
        assert_eq!(messages(b"", false), None);
    }
}
