//! Addresses of host names, without those that [`crate::domain::address`] refuses.
//!
//! A connection goes to the addresses found here, and nothing resolves the name again: a name that
//! changes its answer between the check and the connection (DNS rebinding) gains nothing. Refused
//! addresses are left out; a name with no other address is refused
//! (docs/decisions/0012-refused-addresses.md). Hosts that are addresses themselves never come here;
//! [`super::client`] vets those.

mod names;

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use futures_util::{
    FutureExt,
    future::{self, BoxFuture, Either},
};
use hickory_resolver::{
    TokioResolver,
    net::{DnsError, NetError},
    proto::{
        op::ResponseCode,
        rr::{Name, RecordType},
    },
};
use tokio::time::{Instant, timeout, timeout_at};

pub use names::{Resolver, SystemFiles};

use super::failure::OUT_OF_FILES;
use crate::domain::{
    ErrorClass,
    address::{AddressPolicy, AddressRefused},
    outcome::Fault,
};

/// Time that the addresses of one family wait for those of the other (RFC 8305, section 3).
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);
/// Time after which a name counts as not answered, however many servers and search domains are left.
const LOOKUP_MAX: Duration = Duration::from_secs(8);
/// Addresses of one answer that are looked at. The rest is ignored.
const ADDRESSES_MAX: usize = 64;

/// A name without an address that may be called.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The name servers know no such name.
    #[error("{host}: no such host name; a name server answered so")]
    NoSuchName {
        /// The name.
        host: String,
    },
    /// The name exists, and has neither an IPv4 nor an IPv6 address.
    #[error("{host} has no address; a name server answered so")]
    NoAddress {
        /// The name.
        host: String,
    },
    /// A text that is no name of DNS.
    #[error(
        "{host} is not a valid host name: a name has at most 253 bytes, and 1 to 63 between dots"
    )]
    Invalid {
        /// The text.
        host: String,
    },
    /// No name server gave an answer that says whether there is an address.
    #[error("{host} could not be resolved: {reason}; check the name servers of this machine")]
    Unanswered {
        /// The name.
        host: String,
        /// The last failure.
        reason: String,
    },
    /// No file descriptor for the socket of a query.
    #[error("{host} could not be resolved")]
    OutOfFiles {
        /// The name.
        host: String,
        /// The error of the system.
        source: io::Error,
    },
    /// No address is left when those that may not be called are left out.
    #[error("{host} resolves to an address that is refused: {refused}")]
    Blocked {
        /// The name.
        host: String,
        /// The first refusal.
        refused: AddressRefused,
    },
}

impl ResolveError {
    /// The class of the failure, and the side that it counts against.
    pub(super) fn class(&self) -> (ErrorClass, Fault) {
        match self {
            Self::NoSuchName { .. } | Self::NoAddress { .. } | Self::Invalid { .. } => {
                (ErrorClass::Dns, Fault::Receiver)
            }
            Self::Unanswered { .. } => (ErrorClass::Dns, Fault::Service),
            Self::OutOfFiles { .. } => (ErrorClass::Internal, Fault::Service),
            Self::Blocked { .. } => (ErrorClass::BlockedAddress, Fault::Service),
        }
    }
}

/// Addresses that may be called.
pub(super) struct Found {
    /// At least one.
    pub addresses: Vec<IpAddr>,
    /// The addresses of the other family, where its answer is late.
    pub later: Option<BoxFuture<'static, Vec<IpAddr>>>,
}

/// A resolver for connections over TLS, or for plain ones.
#[derive(Clone)]
pub(super) struct VettingResolver {
    resolver: Arc<Resolver>,
    policy: Arc<AddressPolicy>,
    is_https: bool,
}

impl VettingResolver {
    /// Vets by `policy`. Both kinds share the resolver and its cache.
    pub fn new(resolver: Arc<Resolver>, policy: Arc<AddressPolicy>, is_https: bool) -> Self {
        Self { resolver, policy, is_https }
    }

    /// The addresses of a host that may be called, at `deadline` at the latest.
    pub async fn find(&self, host: &str, deadline: Instant) -> Result<Found, ResolveError> {
        let started = Instant::now();
        let found = timeout_at(deadline.min(started + LOOKUP_MAX), self.find_first(host)).await;
        found.unwrap_or_else(|_| {
            let seconds = started.elapsed().as_secs_f64();
            let reason = format!("no name server answered within {seconds:.1} s");
            Err(ResolveError::Unanswered { host: host.to_owned(), reason })
        })
    }

    async fn find_first(&self, host: &str) -> Result<Found, ResolveError> {
        let names = self.resolver.current();
        let Some(name) = names::parse(host) else {
            return Err(ResolveError::Invalid { host: host.to_owned() });
        };
        let in_hosts: Vec<_> = names.in_hosts_file(&name).take(ADDRESSES_MAX).collect();
        if !in_hosts.is_empty() {
            return self.vet(host, in_hosts, None).await;
        }
        let mut worst = Missing::Name;
        for name in names.candidates(&name) {
            let [v4, v6] = [RecordType::A, RecordType::AAAA]
                .map(|family| look_up(names.dns.clone(), name.clone(), family));
            match first_of(v4, v6).await {
                Ok((addresses, later)) => return self.vet(host, addresses, later).await,
                Err(missing) => worst = worst.max(missing),
            }
        }
        Err(worst.of(host))
    }

    /// Leaves out what may not be called. Where nothing is left, the late family decides.
    async fn vet(
        &self,
        host: &str,
        mut addresses: Vec<IpAddr>,
        mut later: Option<Family>,
    ) -> Result<Found, ResolveError> {
        let mut first_refusal = None;
        loop {
            addresses.retain(|&address| match self.policy.vet(address, self.is_https) {
                Ok(()) => true,
                Err(refused) => {
                    first_refusal.get_or_insert(refused);
                    false
                }
            });
            if !addresses.is_empty() {
                let later = later.map(|family| self.vetted(family));
                return Ok(Found { addresses, later });
            }
            let Some(family) = later.take() else { break };
            addresses = family.await.unwrap_or_default();
        }
        let host = host.to_owned();
        Err(match first_refusal {
            Some(refused) => ResolveError::Blocked { host, refused },
            None => ResolveError::NoAddress { host },
        })
    }

    fn vetted(&self, family: Family) -> BoxFuture<'static, Vec<IpAddr>> {
        let this = self.clone();
        let vetted = async move {
            let mut addresses = family.await.unwrap_or_default();
            addresses.retain(|&address| this.policy.vet(address, this.is_https).is_ok());
            addresses
        };
        vetted.boxed()
    }
}

/// A look-up of the addresses of one family.
type Family = BoxFuture<'static, Result<Vec<IpAddr>, Missing>>;

/// Reasons for no address, the least certain last.
#[derive(Debug)]
enum Missing {
    /// An answer: no such name.
    Name,
    /// An answer: no address of this family.
    Address,
    /// No answer.
    Answer(String),
    /// No file descriptor to ask with.
    File(io::Error),
}

impl Missing {
    fn max(self, other: Self) -> Self {
        let certainty = |missing: &Self| match missing {
            Self::Name => 0,
            Self::Address => 1,
            Self::Answer(_) => 2,
            Self::File(_) => 3,
        };
        if certainty(&other) > certainty(&self) { other } else { self }
    }

    fn of(self, host: &str) -> ResolveError {
        let host = host.to_owned();
        match self {
            Self::Name => ResolveError::NoSuchName { host },
            Self::Address => ResolveError::NoAddress { host },
            Self::Answer(reason) => ResolveError::Unanswered { host, reason },
            Self::File(source) => ResolveError::OutOfFiles { host, source },
        }
    }
}

impl From<NetError> for Missing {
    fn from(error: NetError) -> Self {
        match error {
            NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
                ResponseCode::NXDomain => Self::Name,
                _ => Self::Address,
            },
            NetError::Dns(DnsError::ResponseCode(code)) => {
                Self::Answer(format!("the name servers answered with an error ({code})"))
            }
            NetError::Timeout => Self::Answer("no name server answered in time".to_owned()),
            NetError::NoConnections => Self::Answer("no name server can be asked".to_owned()),
            NetError::Io(error) => match error.raw_os_error() {
                Some(code) if OUT_OF_FILES.contains(&code) => {
                    Self::File(io::Error::from_raw_os_error(code))
                }
                _ => Self::Answer(format!("no name server could be asked ({error})")),
            },
            _ => Self::Answer("the answer of the name servers could not be read".to_owned()),
        }
    }
}

fn look_up(dns: TokioResolver, name: Name, family: RecordType) -> Family {
    let look_up = async move {
        let found = dns.lookup(name, family).await?;
        let addresses = found.answers().iter().filter_map(|record| record.data.ip_addr());
        let addresses: Vec<_> = addresses.take(ADDRESSES_MAX).collect();
        if addresses.is_empty() { Err(Missing::Address) } else { Ok(addresses) }
    };
    look_up.boxed()
}

/// The addresses of both families, or of one of them when the other does not come soon.
async fn first_of(v4: Family, v6: Family) -> Result<(Vec<IpAddr>, Option<Family>), Missing> {
    let (Either::Left((first, mut other)) | Either::Right((first, mut other))) =
        future::select(v4, v6).await;
    let first = match first {
        // Only the other family can have an address, so its answer is waited for.
        Err(missing @ (Missing::Address | Missing::Answer(_) | Missing::File(_))) => {
            return other.await.map(|found| (found, None)).map_err(|other| missing.max(other));
        }
        first => first,
    };
    match (first, timeout(RESOLUTION_DELAY, &mut other).await) {
        (Ok(mut found), Ok(Ok(more))) => {
            found.extend(more);
            Ok((found, None))
        }
        (Ok(found), Ok(Err(_))) | (Err(_), Ok(Ok(found))) => Ok((found, None)),
        (Ok(found), Err(_)) => Ok((found, Some(other))),
        (Err(missing), Ok(Err(other))) => Err(missing.max(other)),
        // The whole name does not exist, so it has no address of the other family either.
        (Err(missing), Err(_)) => Err(missing),
    }
}
