//! New connections: resolve and vet, connect, and encrypt if the scheme says so.
//!
//! The addresses of a host are tried as RFC 8305 says ("happy eyeballs"): a new attempt begins when
//! the one before has failed, or has not succeeded within 250 ms; the first connection wins. The
//! families alternate, beginning with IPv4: receivers that allow source addresses mostly list those.

use std::{
    collections::VecDeque,
    error::Error,
    fmt,
    future::Future,
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures_util::{
    future::{BoxFuture, OptionFuture},
    stream::{FuturesUnordered, StreamExt},
};
use hyper::Uri;
use rustls::pki_types::ServerName;
use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::TlsConnector;
use tokio_util::either::Either;

use super::{
    connection::{Connection, ConnectionError},
    egress_proxy::{Egress, TunnelError},
    failure::is_out_of_files,
    resolver::VettingResolver,
    words::refused,
};
use crate::{
    domain::{ErrorClass, outcome::Fault},
    tls::{Trust, TrustError},
};

/// Connection Attempt Delay (RFC 8305, section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// Addresses of a host that are tried, and so sockets that one request can have open at a time.
const ATTEMPTS_MAX: usize = 8;

/// The kernel has no room for another socket, or for its packets.
const NO_BUFFERS: i32 = rustix::io::Errno::NOBUFS.raw_os_error();

/// Opens connections to hosts.
#[derive(Clone)]
pub(super) struct Connector {
    resolver: VettingResolver,
    egress: Option<Arc<Egress>>,
    tls: Option<TlsConnector>,
}

impl Connector {
    /// Opens connections over plain http.
    pub fn plain(resolver: VettingResolver, egress: Option<Arc<Egress>>) -> Self {
        Self { resolver, egress, tls: None }
    }

    /// Opens connections over TLS.
    pub fn encrypted(
        resolver: VettingResolver,
        egress: Option<Arc<Egress>>,
        trust: &Trust,
    ) -> Result<Self, TrustError> {
        let mut config = trust.client()?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { resolver, egress, tls: Some(TlsConnector::from(Arc::new(config))) })
    }

    /// Opens a connection to the host and port of an absolute URI. A name that is not resolved at
    /// `deadline` is a failure of DNS. The later steps have no deadline of their own here.
    pub async fn open(&self, uri: Uri, deadline: Instant) -> Result<Connection, ConnectionError> {
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = uri.port_u16().unwrap_or(if self.tls.is_some() { 443 } else { 80 });
        let stream = self.connect(host, port, deadline).await?;
        let stream = match &self.tls {
            None => Either::Left(stream),
            Some(tls) => {
                let name = ServerName::try_from(host.to_owned()).map_err(ConnectionError::tls)?;
                Either::Right(tls.connect(name, stream).await.map_err(ConnectionError::tls)?)
            }
        };
        Connection::over(stream).await
    }

    /// Connects to a host at one of the addresses that it may be called at. An address as host has
    /// been vetted before.
    async fn connect(
        &self,
        host: &str,
        port: u16,
        deadline: Instant,
    ) -> Result<TcpStream, ConnectionError> {
        let through = self.egress.as_deref().map(|egress| (egress, deadline));
        let connected = if let Ok(address) = host.parse::<IpAddr>() {
            connect_any(vec![address], None, port, through).await
        } else {
            let found = self.resolver.find(host, deadline).await;
            let found = found.map_err(|why| ConnectionError::new(ErrorClass::Dns, why))?;
            connect_any(found.addresses, found.later, port, through).await
        };
        let stream = connected.map_err(|why| ConnectionError::new(ErrorClass::Connect, why))?;
        stream.set_nodelay(true).map_err(|why| ConnectionError::new(ErrorClass::Connect, why))?;
        Ok(stream)
    }
}

/// No address accepted a connection.
#[derive(Debug)]
pub(super) struct ConnectError {
    /// The addresses that were tried, each with its failure, in the order of the failures.
    attempts: Vec<(SocketAddr, io::Error)>,
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (address, error)) in self.attempts.iter().enumerate() {
            let before = if index == 0 { "no connection to" } else { ", nor to" };
            write!(f, "{before} {address} ({})", refused(error))?;
        }
        Ok(())
    }
}

impl ConnectError {
    /// The class of the failure, and the side that it counts against: the service only where no
    /// attempt says anything of the receiver.
    pub fn class(&self) -> (ErrorClass, Fault) {
        let mut classes = self.attempts.iter().map(|(_, error)| class_of_attempt(error));
        let first = classes.next().unwrap_or((ErrorClass::Connect, Fault::Receiver));
        if first.1 == Fault::Receiver {
            return first;
        }
        classes.find(|(_, fault)| *fault == Fault::Receiver).unwrap_or(first)
    }
}

/// Class of a failed attempt, and the side that it counts against. That this machine has no route,
/// address, port or memory is no fault of the receiver.
fn class_of_attempt(error: &io::Error) -> (ErrorClass, Fault) {
    let tunnel = error.get_ref().and_then(|inner| inner.downcast_ref::<TunnelError>());
    if let Some(tunnel) = tunnel {
        return tunnel.class();
    }
    if is_out_of_files(error) {
        return (ErrorClass::Internal, Fault::Service);
    }
    let fault = match error.kind() {
        ErrorKind::NetworkUnreachable
        | ErrorKind::PermissionDenied
        | ErrorKind::AddrNotAvailable
        | ErrorKind::OutOfMemory => Fault::Service,
        _ if error.raw_os_error() == Some(NO_BUFFERS) => Fault::Service,
        _ => Fault::Receiver,
    };
    (ErrorClass::Connect, fault)
}

impl Error for ConnectError {
    /// A failure of this machine rather than one of the receiver, if there is any.
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        let errors = || self.attempts.iter().map(|(_, error)| error);
        let error = errors().find(|&error| is_out_of_files(error)).or_else(|| errors().next());
        error.map(|error| error as _)
    }
}

/// Connects to the first of these addresses that accepts it, `later` ones included; `through` a
/// proxy by a deadline.
async fn connect_any(
    addresses: Vec<IpAddr>,
    later: Option<BoxFuture<'static, Vec<IpAddr>>>,
    port: u16,
    through: Option<(&Egress, Instant)>,
) -> Result<TcpStream, ConnectError> {
    let attempt = async |address| {
        let address = SocketAddr::new(address, port);
        let connected = match through {
            None => TcpStream::connect(address).await,
            // Boxed: it is large, and would make every connection some kibibytes larger.
            Some((egress, deadline)) => {
                Box::pin(egress.open_tunnel(address, deadline)).await.map_err(io::Error::other)
            }
        };
        connected.map_err(|error| (address, error))
    };
    if let (&[only], None) = (addresses.as_slice(), &later) {
        return attempt(only).await.map_err(|failed| ConnectError { attempts: vec![failed] });
    }
    race(alternating(addresses), later, attempt).await.map_err(|attempts| ConnectError { attempts })
}

/// Runs staggered attempts until one succeeds. Fails with the failures of all.
pub(super) async fn race<T, E, F: Future<Output = Result<T, E>>>(
    mut waiting: VecDeque<IpAddr>,
    later: Option<BoxFuture<'static, Vec<IpAddr>>>,
    attempt: impl Fn(IpAddr) -> F,
) -> Result<T, Vec<E>> {
    let mut later = OptionFuture::from(later);
    let mut is_later_due = true;
    let mut running = FuturesUnordered::new();
    let mut failed = Vec::new();
    let next = tokio::time::sleep(Duration::ZERO);
    tokio::pin!(next);
    loop {
        let begun = running.len() + failed.len();
        let may_begin = !waiting.is_empty() && begun < ATTEMPTS_MAX;
        if running.is_empty() && !may_begin && (!is_later_due || begun >= ATTEMPTS_MAX) {
            return Err(failed);
        }
        tokio::select! {
            biased;
            Some(ended) = running.next() => match ended {
                Ok(connected) => return Ok(connected),
                Err(error) => {
                    failed.push(error);
                    next.as_mut().reset(Instant::now());
                }
            },
            more = &mut later, if is_later_due => {
                is_later_due = false;
                waiting.extend(more.unwrap_or_default());
                waiting = alternating(waiting.into());
            }
            () = &mut next, if may_begin => {
                if let Some(address) = waiting.pop_front() {
                    running.push(attempt(address));
                }
                next.as_mut().reset(Instant::now() + ATTEMPT_DELAY);
            }
        }
    }
}

/// Addresses with the families taking turns, each in its order, IPv4 first.
pub(super) fn alternating(addresses: Vec<IpAddr>) -> VecDeque<IpAddr> {
    let (mut v4, mut v6): (VecDeque<_>, VecDeque<_>) =
        addresses.into_iter().partition(IpAddr::is_ipv4);
    let mut turns = VecDeque::with_capacity(v4.len() + v6.len());
    while !v4.is_empty() || !v6.is_empty() {
        turns.extend(v4.pop_front());
        turns.extend(v6.pop_front());
    }
    turns
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::FutureExt;

    use super::*;

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// Broken by: a fault of this machine, for which the receiver is blamed; a receiver that is down,
    /// excused by an address of it that cannot be called from here.
    #[test]
    fn failures_of_this_machine_say_nothing_of_the_receiver() {
        #[track_caller]
        fn check(kinds: &[ErrorKind], expected: Fault) {
            let address = SocketAddr::from(([192, 0, 2, 1], 443));
            let attempts = kinds.iter().map(|&kind| (address, kind.into())).collect();
            assert_eq!(ConnectError { attempts }.class().1, expected, "{kinds:?}");
        }
        check(&[ErrorKind::AddrNotAvailable], Fault::Service);
        check(&[ErrorKind::PermissionDenied], Fault::Service);
        check(&[ErrorKind::NetworkUnreachable, ErrorKind::AddrNotAvailable], Fault::Service);
        check(&[ErrorKind::NetworkUnreachable, ErrorKind::ConnectionRefused], Fault::Receiver);
        check(&[ErrorKind::TimedOut], Fault::Receiver);
        let full = io::Error::from_raw_os_error(NO_BUFFERS);
        assert_eq!(class_of_attempt(&full), (ErrorClass::Connect, Fault::Service));
        let refused = TunnelError::Refused(hyper::StatusCode::FORBIDDEN);
        let blocked = (ErrorClass::BlockedAddress, Fault::Service);
        assert_eq!(class_of_attempt(&io::Error::other(refused)), blocked);
    }

    #[test]
    fn address_families_alternate() {
        #[track_caller]
        fn check(given: &[&str], expected: &[&str]) {
            assert_eq!(Vec::from(alternating(addresses(given))), addresses(expected), "{given:?}");
        }
        check(&[], &[]);
        check(&["::1", "1.1.1.1"], &["1.1.1.1", "::1"]);
        check(
            &["1.1.1.1", "2.2.2.2", "3.3.3.3", "::1", "::2"],
            &["1.1.1.1", "::1", "2.2.2.2", "::2", "3.3.3.3"],
        );
        check(&["::1", "::2"], &["::1", "::2"]);
    }

    /// Runs a race; returns its end, and the time at which each attempt began. An address `10.0.0.R`
    /// fails after R × 10 ms, `11.0.0.R` accepts after that time, `12.0.0.0` hangs.
    async fn run(
        waiting: &[&str],
        later: Option<&[&str]>,
    ) -> (Result<IpAddr, usize>, Vec<Duration>) {
        let (start, begun) = (Instant::now(), Mutex::new(Vec::new()));
        let later = later.map(|texts| {
            let found = addresses(texts);
            let found = async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                found
            };
            found.boxed()
        });
        let attempt = async |address: IpAddr| {
            begun.lock().unwrap().push(start.elapsed());
            let IpAddr::V4(v4) = address else { panic!("{address}") };
            let [kind, .., tens] = v4.octets();
            tokio::time::sleep(Duration::from_millis(u64::from(tens) * 10)).await;
            match kind {
                10 => Err(()),
                11 => Ok(address),
                _ => std::future::pending().await,
            }
        };
        let ended = race(addresses(waiting).into(), later, attempt).await;
        (ended.map_err(|failed| failed.len()), begun.into_inner().unwrap())
    }

    #[tokio::test]
    async fn attempts_are_staggered_and_the_first_connection_wins() {
        let accepted = |text: &str| Ok(text.parse().unwrap());
        let (ended, begun) = run(&["12.0.0.0", "12.0.0.0", "11.0.0.2"], None).await;
        assert_eq!(ended, accepted("11.0.0.2"), "the first ones hang");
        assert!(begun[1] >= ATTEMPT_DELAY && begun[2] >= 2 * ATTEMPT_DELAY, "{begun:?}");
        let (ended, begun) = run(&["10.0.0.1", "11.0.0.2"], None).await;
        assert_eq!((ended, begun.len()), (accepted("11.0.0.2"), 2), "the first one fails");
        let (ended, begun) = run(&["11.0.0.60", "12.0.0.0"], None).await;
        assert_eq!((ended, begun.len()), (accepted("11.0.0.60"), 2), "the first one is slow");
        let (ended, begun) = run(&["10.0.0.1", "10.0.0.0"], None).await;
        assert_eq!((ended, begun.len()), (Err(2), 2), "all fail");
    }

    #[tokio::test]
    async fn attempts_are_bounded() {
        let (ended, begun) = run(&["10.0.0.0"; 20], Some(&["10.0.0.0"; 20])).await;
        assert_eq!((ended, begun.len()), (Err(ATTEMPTS_MAX), ATTEMPTS_MAX));
    }

    #[tokio::test]
    async fn late_addresses_are_tried_where_the_early_ones_fail() {
        let accepted = |text: &str| Ok(text.parse().unwrap());
        let (ended, _) = run(&["10.0.0.0"], Some(&["11.0.0.1"])).await;
        assert_eq!(ended, accepted("11.0.0.1"));
        let (ended, _) = run(&["12.0.0.0"], Some(&["11.0.0.1"])).await;
        assert_eq!(ended, accepted("11.0.0.1"));
        let (ended, begun) = run(&["11.0.0.0"], Some(&["12.0.0.0"])).await;
        assert_eq!((ended, begun.len()), (accepted("11.0.0.0"), 1), "they are not waited for");
        let (ended, _) = run(&["10.0.0.0"], Some(&[])).await;
        assert_eq!(ended, Err(1));
    }
}
