//! The one pooled client: no redirects, no proxy from the environment, no retries of its own, one
//! deadline over the whole exchange, and an answer that is read only so far.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request, Response as Answer, Uri,
    body::{Body, Incoming},
    header::{HOST, HeaderValue, RETRY_AFTER},
    http::uri::PathAndQuery,
};
use url::{Position, Url};

use super::{
    connection::{Connection, ConnectionError, SendError},
    connector::Connector,
    failure::{failure_of, is_out_of_files},
    pool::Pool,
    request::{Outgoing, header_lines},
    resolver::{Resolver, VettingResolver},
};
use crate::domain::{
    ErrorClass, Outcome,
    address::AddressPolicy,
    attempt::Response,
    outcome::{Failure, classify},
    target::literal_address,
};
use crate::tls::{Trust, TrustError};

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
    /// The authorities whose certificates are accepted.
    pub trust: Trust,
    /// Idle connections kept to one host.
    pub idle_per_host_max: usize,
}

/// The client could not be made: no trusted certificates were found, for instance.
#[derive(Debug, thiserror::Error)]
#[error("the HTTP client could not be made: {0}")]
pub struct ClientError(TrustError);

/// Sends requests. Cheap to clone; all clones share the connections.
#[derive(Clone)]
pub struct Client(Arc<Shared>);

struct Shared {
    https: Connector,
    /// One of its own, since its resolver must vet more strictly: a name may be called over plain
    /// http only if it leads to an allowed block.
    http: Connector,
    pool: Pool<Connection>,
    settings: ClientSettings,
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
    pub fn new(settings: ClientSettings, resolver: &Arc<Resolver>) -> Result<Self, ClientError> {
        let policy = Arc::new(settings.addresses.clone());
        let resolver = |is_https| VettingResolver::new(resolver.clone(), policy.clone(), is_https);
        Ok(Self(Arc::new(Shared {
            https: Connector::encrypted(resolver(true), &settings.trust).map_err(ClientError)?,
            http: Connector::plain(resolver(false)),
            pool: Pool::new(settings.idle_per_host_max),
            settings,
        })))
    }

    /// Closes the connections that have not been used for long. To be called every few seconds.
    pub fn close_idle(&self) {
        self.0.pool.close_idle(Instant::now());
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
        let settings = &self.0.settings;
        if let Some(hosts) = &outgoing.hosts
            && let Err(refused) = hosts.vet(&outgoing.url)
        {
            let failure = Failure::new(ErrorClass::BlockedAddress, refused.to_string());
            return Outcome::failed(failure);
        }
        if let Some(address) = literal_address(&outgoing.url)
            && let Err(refused) = settings.addresses.vet(address, is_https)
        {
            let failure = Failure::new(ErrorClass::BlockedAddress, refused.to_string());
            return Outcome::failed(failure);
        }
        match self.exchange_once(outgoing, seen).await {
            Ok(retry_after) => {
                let status = seen.as_ref().map_or(0, |seen| seen.status);
                classify(status, retry_after, settings.retry_after_max)
            }
            Err(error) => Outcome::failed(failure_of(error.cause.as_ref(), error.otherwise)),
        }
    }

    /// One request and its answer; returns the answer's `Retry-After`.
    async fn exchange_once(
        &self,
        outgoing: Outgoing,
        seen: &mut Option<Seen>,
    ) -> Result<Option<Duration>, ConnectionError> {
        let Shared { pool, settings, .. } = &*self.0;
        let Outgoing { method, url, headers, body, hosts: _ } = outgoing;
        let (mut connection, mut answer) =
            self.send_somehow(&url, request(method, &url, headers, body)?).await?;
        let retry_after = retry_after(answer.headers(), std::time::SystemTime::now());
        let seen = seen.insert(Seen {
            status: answer.status().as_u16(),
            headers: kept_headers(answer.headers()),
            body: BytesMut::new(),
            is_truncated: false,
        });
        read_body(&mut connection, answer.body_mut(), settings.response_body_max, seen).await?;
        if connection.is_ready().await {
            pool.put(origin(&url), connection, Instant::now());
        }
        Ok(retry_after)
    }

    /// Sends over a connection at rest, or over a new one. What a receiver closed while it rested is
    /// noticed, and the next one is tried; a request that may have been seen is not sent again.
    async fn send_somehow(
        &self,
        url: &Url,
        mut request: Request<Full<Bytes>>,
    ) -> Result<(Connection, Answer<Incoming>), ConnectionError> {
        let Shared { https, http, pool, .. } = &*self.0;
        while let Some(mut connection) = pool.take(origin(url), Instant::now()) {
            if !connection.is_ready().await {
                continue;
            }
            match connection.send(request).await {
                Ok(answer) => return Ok((connection, answer)),
                Err(SendError::Unsent(again, _)) => request = *again,
                Err(SendError::Failed(error)) => return Err(error),
            }
        }
        let connector = if url.scheme() == "https" { https } else { http };
        let uri = url.as_str().parse::<Uri>().map_err(ConnectionError::internal)?;
        // Boxed: it is rare, and would make every exchange some kibibytes larger.
        let mut connection = match Box::pin(connector.open(uri.clone())).await {
            // What rests holds descriptors that are wanted here; or another request has freed them.
            Err(error) if is_out_of_files(error.cause.as_ref()) => {
                pool.close_all();
                Box::pin(connector.open(uri)).await?
            }
            opened => opened?,
        };
        match connection.send(request).await {
            Ok(answer) => Ok((connection, answer)),
            Err(SendError::Unsent(_, error) | SendError::Failed(error)) => Err(error),
        }
    }
}

/// Scheme, host and port, as the URL's normal form writes them.
fn origin(url: &Url) -> &str {
    &url[..Position::BeforePath]
}

/// A request in the form that goes over a connection: the origin is told by `Host`.
fn request(
    method: Method,
    url: &Url,
    mut headers: HeaderMap,
    body: Bytes,
) -> Result<Request<Full<Bytes>>, ConnectionError> {
    let authority = &url[Position::BeforeHost..Position::BeforePath];
    headers.insert(HOST, HeaderValue::from_str(authority).map_err(ConnectionError::internal)?);
    let path: PathAndQuery =
        url[Position::BeforePath..].parse().map_err(ConnectionError::internal)?;
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() = Uri::from(path);
    *request.headers_mut() = headers;
    Ok(request)
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
    connection: &mut Connection,
    body: &mut Incoming,
    max: usize,
    seen: &mut Seen,
) -> Result<(), ConnectionError> {
    // Before it is read; later it is the length of the rest.
    let length = body.size_hint().exact();
    connection.expect_body(max);
    while seen.body.len() < max {
        let Some(chunk) = connection.next_chunk(body).await? else { return Ok(()) };
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
