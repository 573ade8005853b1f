//! DNS that refuses what [`crate::domain::address`] refuses.
//!
//! The client connects to the addresses that this resolver returns and never asks again, so an
//! address is checked and then connected to: a name that changes its answer in between (DNS
//! rebinding) gains nothing. One bad address among good ones refuses the whole name. Hosts that are
//! addresses themselves never come here; [`super::client`] vets those.

use std::{
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use hickory_resolver::{
    ResolverBuilder, TokioResolver,
    config::{LookupIpStrategy, NameServerConfig, ResolverConfig},
    net::runtime::TokioRuntimeProvider,
};
use hyper_util::client::legacy::connect::dns::Name;
use tower::Service;

use crate::domain::address::{AddressPolicy, AddressRefused};

/// How long one server is asked, and how often.
const QUERY_TIMEOUT: Duration = Duration::from_secs(3);
const QUERY_ATTEMPTS: usize = 2;
/// How many addresses of one name are looked at.
const ADDRESSES_MAX: usize = 64;
/// However long a name's answer claims to hold, it is asked again after this.
const ANSWER_AGE_MAX: Duration = Duration::from_secs(60);

/// Why a name led to no address that may be called.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The look-up failed.
    #[error("{host} could not be resolved: {reason}")]
    Dns {
        /// The name.
        host: String,
        /// What the resolver said.
        reason: String,
    },
    /// One of its addresses may not be called.
    #[error("{host} resolves to an address that is refused: {refused}")]
    Blocked {
        /// The name.
        host: String,
        /// Which, and why.
        refused: AddressRefused,
    },
}

/// A resolver for connections that are encrypted, or for those that are not.
#[derive(Clone)]
pub struct VettingResolver {
    resolver: TokioResolver,
    policy: Arc<AddressPolicy>,
    is_https: bool,
}

impl VettingResolver {
    /// Vets by `policy`. Both kinds share the resolver and its cache.
    pub fn new(resolver: TokioResolver, policy: Arc<AddressPolicy>, is_https: bool) -> Self {
        Self { resolver, policy, is_https }
    }

    async fn addresses(&self, host: &str) -> Result<Vec<SocketAddr>, ResolveError> {
        let failed = |reason: String| ResolveError::Dns { host: host.to_owned(), reason };
        let answer =
            self.resolver.lookup_ip(host).await.map_err(|error| failed(error.to_string()))?;
        let mut addresses = Vec::new();
        for ip in answer.iter() {
            if addresses.len() >= ADDRESSES_MAX {
                return Err(failed(format!("it has more than {ADDRESSES_MAX} addresses")));
            }
            self.policy
                .vet(ip, self.is_https)
                .map_err(|refused| ResolveError::Blocked { host: host.to_owned(), refused })?;
            addresses.push(SocketAddr::new(ip, 0));
        }
        if addresses.is_empty() {
            return Err(failed("it has no address".to_owned()));
        }
        Ok(addresses)
    }
}

/// What the connector asks; it fills in the port.
impl Service<Name> for VettingResolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = ResolveError;
    type Future = BoxFuture<'static, Result<Self::Response, ResolveError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ResolveError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { Ok(this.addresses(name.as_str()).await?.into_iter()) })
    }
}

/// A resolver that asks these name servers, or with none of them the system's. Asynchronous. Without
/// a readable configuration of the system only the hosts file and literal addresses are left, which is
/// what a container without network needs.
pub fn resolver(servers: &[SocketAddr]) -> TokioResolver {
    let mut builder = if servers.is_empty() {
        TokioResolver::builder_tokio().unwrap_or_else(|error| {
            tracing::warn!(
                %error, "no DNS configuration could be read; only the hosts file is used"
            );
            asking(Vec::new())
        })
    } else {
        asking(servers.iter().map(|server| name_server(*server)).collect())
    };
    let options = builder.options_mut();
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.timeout = QUERY_TIMEOUT;
    options.attempts = QUERY_ATTEMPTS;
    options.positive_max_ttl = Some(ANSWER_AGE_MAX);
    options.negative_max_ttl = Some(Duration::from_secs(5));
    builder.build().expect("a resolver without TLS has nothing to load")
}

fn asking(servers: Vec<NameServerConfig>) -> ResolverBuilder<TokioRuntimeProvider> {
    TokioResolver::builder_with_config(
        ResolverConfig::from_name_servers(servers),
        TokioRuntimeProvider::default(),
    )
}

fn name_server(server: SocketAddr) -> NameServerConfig {
    let mut config = NameServerConfig::udp_and_tcp(server.ip());
    for connection in &mut config.connections {
        connection.port = server.port();
    }
    config
}
