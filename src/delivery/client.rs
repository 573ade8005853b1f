//! The one pooled client: no redirects, no proxy from the environment, one deadline over the whole
//! exchange, and an answer that is read only so far. A request is sent a second time in one case: a
//! connection that was used before ends without a byte of an answer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http_body_util::Full;
use hyper::{
    HeaderMap, Request, Response as Answer, StatusCode, Uri,
    body::{Body, Incoming},
    header::{HeaderName, RETRY_AFTER},
    http::uri::PathAndQuery,
};
use url::{Position, Url};

use super::{
    connection::{Connection, ConnectionError, SendError},
    connector::Connector,
    egress_proxy::{Egress, EgressProxy},
    failure::{failure_of, is_out_of_files},
    pool::Pool,
    request::{Outgoing, header_lines},
    resolver::{Resolver, VettingResolver},
};
use crate::domain::{
    ErrorClass, Outcome,
    address::AddressPolicy,
    attempt::Response,
    outcome::{Failure, classify, looped},
    target::literal_address,
    upstream,
};
use crate::tls::{Trust, TrustError};

/// How many bytes of an answer's header lines are kept.
const RESPONSE_HEADER_BYTES_KEPT: usize = 16 * 1024;

/// `Keep-Alive`, in which a receiver may say how long it keeps a connection that rests.
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
/// Time that a connection rests whose receiver says nothing. Many servers close after 5 s.
const REST: Duration = Duration::from_secs(4);
/// Maximum time that a connection rests, however long its receiver would keep it.
const REST_MAX: Duration = Duration::from_secs(30);
/// Time before the receiver's own end at which a connection is not used any more: a request needs
/// its way there. Half of the receiver's time, if that is less.
const REST_MARGIN: Duration = Duration::from_secs(1);

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
    /// The proxy through which targets are called.
    pub proxy: Option<EgressProxy>,
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
        let egress = settings.proxy.clone().map(|proxy| Arc::new(Egress::new(proxy, resolver)));
        let resolver = |is_https| VettingResolver::new(resolver.clone(), policy.clone(), is_https);
        Ok(Self(Arc::new(Shared {
            https: Connector::encrypted(resolver(true), egress.clone(), &settings.trust)
                .map_err(ClientError)?,
            http: Connector::plain(resolver(false), egress),
            pool: Pool::new(settings.idle_per_host_max),
            settings,
        })))
    }

    /// Closes the connections that have not been used for long. To be called every few seconds.
    pub fn close_idle(&self) {
        self.0.pool.close_idle(Instant::now());
    }

    /// Sends one request and waits for its end, at most until `deadline` from now or until `cut`. The
    /// deadline covers everything: DNS, connect, TLS, the head and the body of the answer. Once the
    /// head is there its status decides, even if the body breaks off: that is kept for the log.
    ///
    /// `again` makes the same request once more. It is asked where a connection that was used before
    /// ended without a byte of an answer: the receiver had closed it, most likely.
    pub async fn exchange(
        &self,
        outgoing: Outgoing,
        again: impl FnOnce() -> Option<Outgoing>,
        deadline: Duration,
        cut: impl Future<Output = ()>,
    ) -> Exchange {
        let started = Instant::now();
        let mut seen = None;
        let ends = tokio::time::Instant::now() + deadline;
        let ended = tokio::select! {
            // The request is polled first: at the deadline its error names the phase, such as DNS.
            biased;
            sent = self.send(outgoing, again, ends, &mut seen) => sent.err(),
            () = tokio::time::sleep_until(ends) => Some(Failure::new(
                ErrorClass::Timeout,
                format!("no complete answer within {} s", deadline.as_secs_f64()),
            )),
            () = cut => Some(Failure::new(
                ErrorClass::Timeout,
                "given up early: too many requests that hang at the same time",
            )),
        };
        let outcome = match (&seen, ended) {
            (Some(Seen { status, is_loop: true, .. }), _) => looped(*status),
            (Some(Seen { status, retry_after, .. }), _) => {
                classify(*status, *retry_after, self.0.settings.retry_after_max)
            }
            (None, Some(failure)) => Outcome::failed(failure),
            (None, None) => unreachable!("what is sent without a failure has an answer"),
        };
        Exchange { duration: started.elapsed(), response: seen.map(Seen::into_response), outcome }
    }

    /// Fills `seen` as soon as there is something, so that a time-out keeps what had come.
    async fn send(
        &self,
        outgoing: Outgoing,
        again: impl FnOnce() -> Option<Outgoing>,
        ends: tokio::time::Instant,
        seen: &mut Option<Seen>,
    ) -> Result<(), Failure> {
        let is_https = outgoing.url.scheme() == "https";
        let settings = &self.0.settings;
        if let Some(hosts) = &outgoing.hosts
            && let Err(refused) = hosts.vet(&outgoing.url)
        {
            return Err(Failure::new(ErrorClass::BlockedAddress, refused.to_string()));
        }
        if let Some(address) = literal_address(&outgoing.url)
            && let Err(refused) = settings.addresses.vet(address, is_https)
        {
            return Err(Failure::new(ErrorClass::BlockedAddress, refused.to_string()));
        }
        let exchanged = self.exchange_once(outgoing, again, ends, seen).await;
        exchanged.map_err(|error| failure_of(error.cause.as_ref(), error.otherwise))
    }

    /// One request and its answer.
    async fn exchange_once(
        &self,
        outgoing: Outgoing,
        again: impl FnOnce() -> Option<Outgoing>,
        ends: tokio::time::Instant,
        seen: &mut Option<Seen>,
    ) -> Result<(), ConnectionError> {
        let Shared { pool, settings, .. } = &*self.0;
        let (url, request) = request(outgoing)?;
        let (mut connection, mut answer) = self.send_somehow(&url, request, again, ends).await?;
        let rest = rest(answer.headers());
        let seen = seen.insert(Seen {
            status: answer.status().as_u16(),
            is_loop: answer.status() == StatusCode::LOOP_DETECTED
                && answer.headers().contains_key(upstream::HOPS),
            retry_after: retry_after(answer.headers(), std::time::SystemTime::now()),
            headers: kept_headers(answer.headers()),
            body: BytesMut::new(),
            is_truncated: true,
        });
        let body = answer.body_mut();
        if let Err(error) = read_body(&mut connection, body, settings.response_body_max, seen).await
        {
            let cause = error.cause;
            tracing::debug!(%url, status = seen.status, %cause, "the answer's body is not whole");
            return Ok(());
        }
        if !rest.is_zero() && connection.is_ready().await {
            pool.put(origin(&url), connection, Instant::now() + rest);
        }
        Ok(())
    }

    /// Sends over a connection at rest, or over a new one. What a receiver closed while it rested is
    /// noticed, and the next one is tried. Where it closes at the very time of the request, that is
    /// sent again, once, and over a new connection: the next one at rest may be as stale.
    async fn send_somehow(
        &self,
        url: &Url,
        mut request: Request<Full<Bytes>>,
        again: impl FnOnce() -> Option<Outgoing>,
        ends: tokio::time::Instant,
    ) -> Result<(Connection, Answer<Incoming>), ConnectionError> {
        let Shared { https, http, pool, .. } = &*self.0;
        while let Some(mut connection) = pool.take(origin(url), Instant::now()) {
            if !connection.is_ready().await {
                continue;
            }
            match connection.send(request).await {
                Ok(answer) => return Ok((connection, answer)),
                Err(SendError::Unsent(unsent, _)) => request = *unsent,
                Err(SendError::Unanswered(error)) => {
                    tracing::debug!(%url, cause = %error.cause, "a connection at rest had ended");
                    let Some(outgoing) = again() else { return Err(error) };
                    request = self::request(outgoing)?.1;
                    break;
                }
                Err(SendError::Failed(error)) => return Err(error),
            }
        }
        let connector = if url.scheme() == "https" { https } else { http };
        let uri = url.as_str().parse::<Uri>();
        let uri = uri.map_err(|_| ConnectionError::host(url.host_str().unwrap_or_default()))?;
        // Boxed: it is rare, and would make every exchange some kibibytes larger.
        let mut connection = match Box::pin(connector.open(uri.clone(), ends)).await {
            // What rests holds descriptors that are wanted here; or another request has freed them.
            Err(error) if is_out_of_files(error.cause.as_ref()) => {
                pool.close_all();
                Box::pin(connector.open(uri, ends)).await?
            }
            opened => opened?,
        };
        match connection.send(request).await {
            Ok(answer) => Ok((connection, answer)),
            Err(
                SendError::Unsent(_, error)
                | SendError::Unanswered(error)
                | SendError::Failed(error),
            ) => Err(error),
        }
    }
}

/// Scheme, host and port, as the URL's normal form writes them.
fn origin(url: &Url) -> &str {
    &url[..Position::BeforePath]
}

/// A request in the form that goes over a connection: the origin is told by `Host`.
fn request(outgoing: Outgoing) -> Result<(Url, Request<Full<Bytes>>), ConnectionError> {
    let Outgoing { method, url, headers, body, hosts: _ } = outgoing;
    let path: PathAndQuery =
        url[Position::BeforePath..].parse().map_err(ConnectionError::internal)?;
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() = Uri::from(path);
    *request.headers_mut() = headers;
    Ok((url, request))
}

/// As much of an answer as has come.
struct Seen {
    status: u16,
    /// A webhook dispatcher refuses what comes back to it.
    is_loop: bool,
    /// Its `Retry-After`.
    retry_after: Option<Duration>,
    headers: String,
    body: BytesMut,
    /// There is more of the body, or may be.
    is_truncated: bool,
}

impl Seen {
    fn into_response(self) -> Response {
        let Self { status, headers, body, is_truncated, .. } = self;
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
        let Some(chunk) = connection.next_chunk(body).await? else {
            seen.is_truncated = false;
            return Ok(());
        };
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

/// Time that a connection may rest after an answer: somewhat less than its receiver keeps it.
fn rest(headers: &HeaderMap) -> Duration {
    let Some(kept) = headers.get(KEEP_ALIVE).and_then(|value| keep_alive_timeout(value.as_bytes()))
    else {
        return REST;
    };
    kept.saturating_sub(REST_MARGIN).max(kept / 2).min(REST_MAX)
}

/// The `timeout` of a `Keep-Alive` header, in seconds: `timeout=5, max=100`.
fn keep_alive_timeout(value: &[u8]) -> Option<Duration> {
    let parameters = str::from_utf8(value).ok()?.split(',');
    let mut named = parameters.filter_map(|parameter| parameter.split_once('='));
    let (_, seconds) = named.find(|(name, _)| name.trim().eq_ignore_ascii_case("timeout"))?;
    let seconds = seconds.trim().trim_matches('"');
    seconds.parse::<u32>().ok().map(|seconds| Duration::from_secs(seconds.into()))
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
    use crate::domain::TargetUrl;

    #[test]
    fn a_connection_rests_for_less_than_its_receiver_keeps_it() {
        #[track_caller]
        fn check(value: Option<&'static str>, expected_ms: u64) {
            let mut headers = HeaderMap::new();
            headers.extend(value.map(|value| (KEEP_ALIVE, value.parse().unwrap())));
            assert_eq!(rest(&headers), Duration::from_millis(expected_ms), "{value:?}");
        }
        check(None, 4_000);
        check(Some("timeout=5"), 4_000);
        check(Some("timeout=5, max=100"), 4_000);
        check(Some("max=100, Timeout = 2"), 1_000);
        check(Some("timeout=\"3\""), 2_000);
        check(Some("timeout=1"), 500);
        check(Some("timeout=0"), 0);
        check(Some("timeout=75"), 30_000);
        for unknown in ["max=100", "timeout", "timeout=", "timeout=-1", "timeout=soon", ""] {
            check(Some(unknown), 4_000);
        }
    }

    proptest::proptest! {
        /// Catches: a target that is accepted and can never be called.
        #[test]
        fn each_target_that_is_accepted_can_be_called(
            host in r"[a-zA-Z0-9._{}!$&'()*+,;=~é-]{1,20}",
            path in r#"[/a-z0-9?{}|\\^`"<> %&\[\]é-]{0,20}"#,
        ) {
            let text = format!("https://{host}/{path}");
            if let Ok(target) = TargetUrl::parse(&text) {
                let url = target.url();
                proptest::prop_assert!(url.as_str().parse::<Uri>().is_ok(), "{url}");
                let path = url[Position::BeforePath..].parse::<PathAndQuery>();
                proptest::prop_assert!(path.is_ok(), "{url}");
                if let Some(name) = url.domain() {
                    let server = rustls::pki_types::ServerName::try_from(name);
                    proptest::prop_assert!(server.is_ok(), "{url}");
                    let name = hickory_resolver::proto::rr::Name::from_ascii(name);
                    proptest::prop_assert!(name.is_ok(), "{url}");
                }
            }
        }
    }

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
