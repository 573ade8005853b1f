//! HTTP to servers that the operator names: another instance, or a CMS. Their addresses are not vetted,
//! and connections are kept and used again. What receivers are sent goes through [`crate::delivery`].

use std::{error::Error, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{Request, Response};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};

use crate::tls::{self, Trust, TrustError};

/// How long connecting to one address may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may rest: less than servers usually keep one (Node.js: 5 s).
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// How many connections may rest.
const IDLE_MAX: usize = 16;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// Nobody was reached: the request was not sent.
    #[error("cannot be reached: {}", with_causes(.0))]
    Connect(#[source] hyper_util::client::legacy::Error),
    /// The exchange broke off. The server may have seen the request.
    #[error("the exchange broke off: {0}")]
    Broken(#[source] Box<dyn Error + Send + Sync>),
    /// The answer is longer than it may be.
    #[error("the answer has more than {0} bytes")]
    TooLong(usize),
}

/// Asks servers. Cheap to clone; clones share the connections.
#[derive(Debug, Clone)]
pub struct Peer(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl Peer {
    /// Connects when it is first used.
    pub fn new(trust: &Trust) -> Result<Self, TrustError> {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(trust.client()?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_MAX)
            .build(connector);
        Ok(Self(client))
    }

    /// Sends a request with an absolute URI, and reads an answer of at most `bytes_max` bytes. Waits as
    /// long as it takes.
    pub async fn ask(
        &self,
        request: Request<Full<Bytes>>,
        bytes_max: usize,
    ) -> Result<Response<Bytes>, PeerError> {
        let answer = self.0.request(request).await.map_err(|error| {
            if error.is_connect() { PeerError::Connect(error) } else { broken(&error) }
        })?;
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, bytes_max).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                PeerError::TooLong(bytes_max)
            } else {
                PeerError::Broken(error)
            }
        })?;
        Ok(Response::from_parts(parts, body.to_bytes()))
    }
}

fn broken(error: &hyper_util::client::legacy::Error) -> PeerError {
    PeerError::Broken(with_causes(error).into())
}

/// An error and what it came from, in one line: the first says hardly more than that it is one. A
/// failed handshake is explained instead.
fn with_causes(error: &(dyn Error + 'static)) -> String {
    if let Some(text) = tls::explain_cause(error) {
        return text;
    }
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
