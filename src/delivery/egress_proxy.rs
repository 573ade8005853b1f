//! `EGRESS_PROXY`: the HTTP proxy through which targets are called.
//!
//! A tunnel leads to an address that has been vetted here: the proxy resolves no name, and what may be
//! called is decided as without it.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::Empty;
use hyper::{
    Method, Request, StatusCode, Uri,
    client::conn::http1,
    header::{HOST, HeaderValue, PROXY_AUTHORIZATION},
};
use hyper_util::rt::TokioIo;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};
use url::{Host, Url};

use super::{
    connector::{alternating, race},
    resolver::{Resolver, VettingResolver},
    words::refused,
};
use crate::domain::{ErrorClass, address::AddressPolicy, outcome::Fault};

/// Deadline of a connection to the proxy. Beyond it the proxy is at fault, and no receiver.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum size of the head of the proxy's answer, in bytes.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Maximum length of the URL, in bytes.
const URL_BYTES_MAX: usize = 1_024;

/// An HTTP proxy that opens tunnels (`CONNECT`, RFC 9110, 9.3.6). Neither `Debug` nor `Display` shows
/// its credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct EgressProxy {
    /// Host name, or address without brackets.
    pub host: String,
    /// TCP port; 80 if the URL has none.
    pub port: u16,
    /// Value of `Proxy-Authorization` (Basic, RFC 7617), if the URL has a user.
    pub authorization: Option<HeaderValue>,
}

/// The text is not the URL of such a proxy. The message does not repeat it: it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be a URL such as http://proxy.example:3128 or http://user:password@10.1.2.3:3128: scheme \
     http, no path; reserved characters in the password percent-encoded"
)]
pub struct EgressProxyError;

impl EgressProxy {
    /// Reads `http://[user:password@]host[:port]`.
    pub fn parse(text: &str) -> Result<Self, EgressProxyError> {
        let url = Some(text).filter(|text| text.len() <= URL_BYTES_MAX);
        let url = url.and_then(|text| Url::parse(text).ok()).ok_or(EgressProxyError)?;
        let is_bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        let host = match url.host() {
            Some(Host::Domain(name)) => name.to_owned(),
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
            None => return Err(EgressProxyError),
        };
        if url.scheme() != "http" || !is_bare || url.port() == Some(0) {
            return Err(EgressProxyError);
        }
        let authorization = match (url.username(), url.password()) {
            ("", None) => None,
            (user, password) => {
                let decode = |part| percent_encoding::percent_decode_str(part).collect::<Vec<u8>>();
                let credentials = [decode(user), decode(password.unwrap_or_default())].join(&b':');
                let basic = format!("Basic {}", STANDARD.encode(credentials));
                let mut value = HeaderValue::try_from(basic).map_err(|_| EgressProxyError)?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Self { host, port: url.port().unwrap_or(80), authorization })
    }
}

/// Host and port.
impl fmt::Display for EgressProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{open}{}{close}:{}", self.host, self.port)
    }
}

impl fmt::Debug for EgressProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EgressProxy({self})")
    }
}

/// There is no tunnel. The messages are shown to tenants: they name neither the proxy nor its user.
#[derive(Debug, thiserror::Error)]
pub(super) enum TunnelError {
    /// The proxy cannot be reached.
    #[error("no connection to the egress proxy of this service (EGRESS_PROXY): {}", refused(.0))]
    Unreachable(#[source] io::Error),
    /// The proxy does not answer as an HTTP proxy does.
    #[error("the egress proxy of this service (EGRESS_PROXY) opens no tunnel: {0}")]
    NoTunnel(String),
    /// The proxy has not answered at the deadline of the exchange.
    #[error(
        "the egress proxy of this service (EGRESS_PROXY) opened no tunnel in time: the target does not \
         answer, or the proxy hangs"
    )]
    Unanswered,
    /// The proxy answered with another status than 2xx.
    #[error("the egress proxy of this service (EGRESS_PROXY) answered {0}; {hint}", hint = hint(*.0))]
    Refused(StatusCode),
}

fn hint(status: StatusCode) -> &'static str {
    match status {
        // Tinyproxy says 401 of a wrong password.
        StatusCode::PROXY_AUTHENTICATION_REQUIRED | StatusCode::UNAUTHORIZED => {
            "put a user and a password that it knows in its URL"
        }
        StatusCode::FORBIDDEN => "allow CONNECT to this address and port in its rules",
        status if status.is_server_error() => "it could not connect to this address and port",
        _ => "is it an HTTP proxy that allows CONNECT?",
    }
}

impl TunnelError {
    /// Class of the failure, and the side that it counts against. A proxy says by 5xx that the target
    /// cannot be reached (RFC 9110, 15.6.3 and 15.6.5).
    pub fn class(&self) -> (ErrorClass, Fault) {
        match self {
            Self::Refused(StatusCode::FORBIDDEN) => (ErrorClass::BlockedAddress, Fault::Service),
            Self::Refused(status) if status.is_server_error() => {
                (ErrorClass::Connect, Fault::Receiver)
            }
            Self::Unanswered => (ErrorClass::Timeout, Fault::Receiver),
            Self::Unreachable(_) | Self::NoTunnel(_) | Self::Refused(_) => {
                (ErrorClass::Connect, Fault::Service)
            }
        }
    }
}

/// The way to the proxy.
pub(super) struct Egress {
    proxy: EgressProxy,
    /// Allows every address: the operator names the proxy.
    resolver: VettingResolver,
}

impl Egress {
    /// Resolves the name of the proxy as those of targets.
    pub fn new(proxy: EgressProxy, resolver: &Arc<Resolver>) -> Self {
        let everywhere = [IpNet::from(Ipv4Net::default()), IpNet::from(Ipv6Net::default())];
        let policy = AddressPolicy::new(everywhere.into(), false);
        Self { proxy, resolver: VettingResolver::new(resolver.clone(), Arc::new(policy), false) }
    }

    /// Opens a tunnel to an address, at `deadline` at the latest.
    pub async fn open_tunnel(
        &self,
        to: SocketAddr,
        deadline: Instant,
    ) -> Result<TcpStream, TunnelError> {
        let at_most = deadline.min(Instant::now() + CONNECT_TIMEOUT);
        let connected = timeout_at(at_most, self.connect(at_most)).await;
        let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let stream = connected.map_err(TunnelError::Unreachable)?;
        let tunnel = timeout_at(deadline, self.proxy.open_tunnel(stream, to)).await;
        tunnel.unwrap_or(Err(TunnelError::Unanswered))
    }

    async fn connect(&self, deadline: Instant) -> io::Result<TcpStream> {
        let EgressProxy { host, port, .. } = &self.proxy;
        let addresses = match host.parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => self.resolver.find(host, deadline).await.map_err(io::Error::other)?.addresses,
        };
        let connected = race(alternating(addresses), None, async |address| {
            TcpStream::connect((address, *port)).await
        });
        connected.await.map_err(|mut errors| {
            errors.pop().unwrap_or_else(|| io::ErrorKind::HostUnreachable.into())
        })
    }
}

impl EgressProxy {
    /// Asks the proxy at the other end of a connection for a tunnel. Waits as long as it takes.
    async fn open_tunnel(
        &self,
        stream: TcpStream,
        to: SocketAddr,
    ) -> Result<TcpStream, TunnelError> {
        let no_tunnel = |error: &dyn fmt::Display| TunnelError::NoTunnel(error.to_string());
        let request = self.request(to).map_err(|error| no_tunnel(&error))?;
        let connection = http1::Builder::new()
            .max_buf_size(HEAD_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await;
        let (mut sender, driver) = connection.map_err(|error| no_tunnel(&error))?;
        let mut exchange = pin!(async {
            let answer = sender.send_request(request).await.map_err(|error| no_tunnel(&error))?;
            let status = answer.status();
            if !status.is_success() {
                return Err(TunnelError::Refused(status));
            }
            hyper::upgrade::on(answer).await.map_err(|error| no_tunnel(&error))
        });
        let upgraded = tokio::select! {
            biased;
            ended = &mut exchange => ended?,
            // The connection has been handed over, or has broken: the exchange knows which.
            _ = driver.with_upgrades() => exchange.await?,
        };
        match upgraded.downcast::<TokioIo<TcpStream>>() {
            Ok(parts) if parts.read_buf.is_empty() => Ok(parts.io.into_inner()),
            // Targets wait for a request, or for a ClientHello: nothing comes from them before.
            Ok(_) => Err(no_tunnel(&"it sent more than the head of its answer")),
            Err(_) => Err(no_tunnel(&"it opened no tunnel")),
        }
    }

    fn request(&self, to: SocketAddr) -> Result<Request<Empty<Bytes>>, hyper::http::Error> {
        let to = to.to_string();
        let mut request = Request::builder()
            .method(Method::CONNECT)
            .uri(Uri::try_from(&to)?)
            .header(HOST, to)
            .body(Empty::new())?;
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(PROXY_AUTHORIZATION, authorization.clone());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_a_bare_http_url_and_its_credentials_are_not_shown() {
        let proxy = EgressProxy::parse("http://us%3Aer:p%40ss@proxy.example:3128").unwrap();
        assert_eq!((proxy.host.as_str(), proxy.port), ("proxy.example", 3128));
        // printf 'us:er:p@ss' | base64
        let authorization = proxy.authorization.as_ref().map(HeaderValue::as_bytes);
        assert_eq!(authorization, Some(&b"Basic dXM6ZXI6cEBzcw=="[..]));
        assert_eq!(
            format!("{proxy} {proxy:?}"),
            "proxy.example:3128 EgressProxy(proxy.example:3128)"
        );
        let proxy = EgressProxy::parse("http://[::1]").unwrap();
        assert_eq!((proxy.host.as_str(), proxy.port, proxy.authorization), ("::1", 80, None));
        let long = format!("http://{}/", "a".repeat(URL_BYTES_MAX));
        for bad in [
            "",
            "proxy:3128",
            "//proxy",
            "https://a:1",
            "socks5://a:1",
            "http://a:0",
            "http://a/b",
            "http://a/?b",
            &long,
        ] {
            assert_eq!(EgressProxy::parse(bad), Err(EgressProxyError), "{bad}");
        }
    }
}
