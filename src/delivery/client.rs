//! The one pooled client: no redirects, no proxy from the environment, no retries of its own, one
//! deadline over the whole exchange, and an answer that is read only so far.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use hickory_resolver::TokioResolver;
use reqwest::{
    Method,
    header::{HeaderMap, RETRY_AFTER},
    redirect,
};

use super::{
    failure::failure_of,
    request::{Outgoing, header_lines},
    resolver::VettingResolver,
};
use crate::domain::{
    ErrorClass, Outcome,
    address::AddressPolicy,
    attempt::Response,
    outcome::{Failure, classify},
    target::literal_address,
};

/// How long a connection may idle before it is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How many header lines an answer may have.
const RESPONSE_HEADERS_MAX: usize = 100;
/// How many bytes of an answer's header lines are kept.
const RESPONSE_HEADER_BYTES_KEPT: usize = 16 * 1024;

/// How the client behaves.
#[derive(Debug, Clone)]
pub struct ClientSettings {
    /// Which addresses may be called.
    pub addresses: AddressPolicy,
    /// How many bytes of an answer's body are read and kept.
    pub response_body_max: usize,
    /// The longest that a receiver can make us wait by `Retry-After`.
    pub retry_after_max: Duration,
    /// Idle connections kept to one host.
    pub idle_per_host_max: usize,
}

/// The client could not be made: no trusted certificates were found, for instance.
#[derive(Debug, thiserror::Error)]
#[error("the HTTP client could not be made (are CA certificates installed?): {0}")]
pub struct ClientError(#[source] reqwest::Error);

/// Sends requests. Cheap to clone; all clones share the connections.
#[derive(Clone)]
pub struct Client {
    https: reqwest::Client,
    /// A client of its own, since its resolver must vet more strictly: a name may be called over
    /// plain http only if it leads to an allowed block.
    http: reqwest::Client,
    settings: Arc<ClientSettings>,
}

/// What came of a request.
#[derive(Debug)]
pub struct Exchange {
    /// How long it took.
    pub duration: Duration,
    /// The answer, if there was one.
    pub response: Option<Response>,
    /// What it means.
    pub outcome: Outcome,
}

impl Client {
    /// A client that resolves names with `resolver`.
    pub fn new(settings: ClientSettings, resolver: &TokioResolver) -> Result<Self, ClientError> {
        // A second installation, by another service in the same process, changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let policy = Arc::new(settings.addresses.clone());
        let build = |is_https| {
            reqwest::Client::builder()
                .redirect(redirect::Policy::none())
                .no_proxy()
                .retry(reqwest::retry::never())
                .referer(false)
                .tcp_nodelay(true)
                .http1_only()
                .http1_max_headers(RESPONSE_HEADERS_MAX)
                .pool_idle_timeout(IDLE_TIMEOUT)
                .pool_max_idle_per_host(settings.idle_per_host_max)
                .dns_resolver(VettingResolver::new(resolver.clone(), policy.clone(), is_https))
                .build()
                .map_err(ClientError)
        };
        Ok(Self { https: build(true)?, http: build(false)?, settings: Arc::new(settings) })
    }

    /// Sends one request and waits for its end, at most until `deadline` from now. The deadline
    /// covers everything: DNS, connect, TLS, the head and the body of the answer.
    pub async fn exchange(&self, outgoing: Outgoing, deadline: Duration) -> Exchange {
        let started = Instant::now();
        let mut seen = None;
        let sent = tokio::time::timeout(deadline, self.send(outgoing, &mut seen)).await;
        let outcome = match sent {
            Ok(outcome) => outcome,
            // Whether the head had come does not matter: an exchange that does not end is none.
            Err(_) => Outcome::failed(Failure::new(
                ErrorClass::Timeout,
                format!("no complete answer within {} s", deadline.as_secs_f64()),
            )),
        };
        Exchange { duration: started.elapsed(), response: seen.map(Seen::into_response), outcome }
    }

    /// Fills `seen` as soon as there is something, so that a time-out keeps what had come.
    async fn send(&self, outgoing: Outgoing, seen: &mut Option<Seen>) -> Outcome {
        let is_https = outgoing.url.scheme() == "https";
        if let Some(address) = literal_address(&outgoing.url)
            && let Err(refused) = self.settings.addresses.vet(address, is_https)
        {
            let failure = Failure::new(ErrorClass::BlockedAddress, refused.to_string());
            return Outcome::failed(failure);
        }
        let client = if is_https { &self.https } else { &self.http };
        let request = client
            .request(Method::POST, outgoing.url)
            .headers(outgoing.headers)
            .body(outgoing.body);
        let mut answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => return Outcome::failed(failure_of(&error)),
        };
        let status = answer.status().as_u16();
        let retry_after = retry_after(answer.headers(), std::time::SystemTime::now());
        let seen = seen.insert(Seen {
            status,
            headers: kept_headers(answer.headers()),
            body: BytesMut::new(),
            is_truncated: false,
        });
        match read_body(&mut answer, self.settings.response_body_max, seen).await {
            Ok(()) => classify(status, retry_after, self.settings.retry_after_max),
            Err(error) => Outcome::failed(failure_of(&error)),
        }
    }
}

/// As much of an answer as has come.
struct Seen {
    status: u16,
    headers: String,
    body: BytesMut,
    is_truncated: bool,
}

impl Seen {
    fn into_response(self) -> Response {
        let Self { status, headers, body, is_truncated } = self;
        Response { status, headers, body: body.freeze(), is_truncated }
    }
}

/// Reads a body up to `max` bytes and no further: whether it would have ended there is not waited
/// for. What is longer is cut, and its connection with it. A body of just `max` bytes counts as cut
/// too, unless its length was told beforehand.
async fn read_body(
    answer: &mut reqwest::Response,
    max: usize,
    seen: &mut Seen,
) -> Result<(), reqwest::Error> {
    // Before it is read; later it is the length of the rest.
    let length = answer.content_length();
    while seen.body.len() < max {
        let Some(chunk) = answer.chunk().await? else { return Ok(()) };
        let room = max - seen.body.len();
        seen.body.extend_from_slice(&chunk[..chunk.len().min(room)]);
    }
    seen.is_truncated = length != u64::try_from(max).ok();
    Ok(())
}

fn kept_headers(headers: &HeaderMap) -> String {
    let mut lines = header_lines(headers);
    if lines.len() > RESPONSE_HEADER_BYTES_KEPT {
        lines.truncate(lines.floor_char_boundary(RESPONSE_HEADER_BYTES_KEPT));
    }
    lines
}

/// `Retry-After` (RFC 9110, 10.2.3): seconds, or a date.
fn retry_after(headers: &HeaderMap, now: std::time::SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    // A date in the past asks for no wait.
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn retry_after_is_read_in_both_forms() {
        #[track_caller]
        fn check(value: &'static str, expected: Option<u64>) {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().unwrap());
            // Sun, 06 Nov 1994 08:49:37 GMT
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
            assert_eq!(retry_after(&headers, now).map(|d| d.as_secs()), expected, "{value}");
        }
        check("120", Some(120));
        check(" 0 ", Some(0));
        check("Sun, 06 Nov 1994 08:49:47 GMT", Some(10));
        check("Sun, 06 Nov 1994 08:49:27 GMT", Some(0));
        check("soon", None);
        check("-1", None);
        check("1.5", None);
        check("", None);
    }
}
