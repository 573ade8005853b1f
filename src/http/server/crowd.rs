//! Who is connected: so many in all, and so many of one client. Beyond that a few more are let in, who
//! are told so, and who may still ask how the process is.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

use crate::{http::Bound, telemetry};

/// How many connections beyond the bounds are there at a time. Each is for one request and for some
/// seconds; the oldest makes room for a new one, so that a flood cannot keep everybody else out.
pub(super) const IN_EXCESS_MAX: usize = 256;
/// How much of an IPv6 address names one client: who has one address has 2^64.
const CLIENT_PREFIX: u32 = 64;

/// Everybody. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Crowd {
    connections_max: usize,
    client_connections_max: usize,
    there: Arc<Mutex<There>>,
}

#[derive(Debug, Default)]
struct There {
    count: usize,
    by_client: HashMap<IpAddr, usize>,
    /// By the order in which they came.
    in_excess: BTreeMap<u64, CancellationToken>,
    came: u64,
}

/// A connection's place, given up when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    crowd: Crowd,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    OfClient(IpAddr),
    InExcess { came: u64, bound: Bound, displaced: CancellationToken },
}

impl Crowd {
    pub(super) fn new(connections_max: usize, client_connections_max: usize) -> Self {
        Self { connections_max, client_connections_max, there: Arc::default() }
    }

    fn there(&self) -> MutexGuard<'_, There> {
        self.there.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets somebody in.
    pub(super) fn enter(&self, address: IpAddr) -> Place {
        let client = client_of(address);
        let mut there = self.there();
        let of_client = there.by_client.get(&client).copied().unwrap_or(0);
        let bound = if there.count >= self.connections_max {
            Bound::Connections
        } else if of_client >= self.client_connections_max {
            Bound::ClientConnections
        } else {
            there.count += 1;
            *there.by_client.entry(client).or_default() += 1;
            return Place { crowd: self.clone(), kind: Kind::OfClient(client) };
        };
        if there.in_excess.len() >= IN_EXCESS_MAX
            && let Some((_, oldest)) = there.in_excess.pop_first()
        {
            oldest.cancel();
            telemetry::refused(telemetry::Refusal::Displaced);
        }
        let (came, displaced) = (there.came, CancellationToken::new());
        there.came += 1;
        there.in_excess.insert(came, displaced.clone());
        Place { crowd: self.clone(), kind: Kind::InExcess { came, bound, displaced } }
    }
}

impl Place {
    /// Which bound it is beyond, if it is.
    pub(super) fn beyond(&self) -> Option<Bound> {
        match &self.kind {
            Kind::OfClient(_) => None,
            Kind::InExcess { bound, .. } => Some(*bound),
        }
    }

    /// Resolves when another one needs the place.
    pub(super) async fn displaced(&self) {
        match &self.kind {
            Kind::OfClient(_) => std::future::pending().await,
            Kind::InExcess { displaced, .. } => displaced.cancelled().await,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut there = self.crowd.there();
        match self.kind {
            Kind::InExcess { came, .. } => {
                there.in_excess.remove(&came);
            }
            Kind::OfClient(client) => {
                there.count -= 1;
                if let Some(of_client) = there.by_client.get_mut(&client) {
                    *of_client -= 1;
                    if *of_client == 0 {
                        there.by_client.remove(&client);
                    }
                }
            }
        }
    }
}

/// What counts as one client: an IPv4 address, or a block of IPv6.
fn client_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let prefix = u128::MAX << (Ipv6Addr::BITS - CLIENT_PREFIX);
            Ipv6Addr::from_bits(address.to_bits() & prefix).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str) -> IpAddr {
        address.parse().unwrap()
    }

    #[test]
    fn one_client_leaves_room_for_others() {
        let crowd = Crowd::new(3, 2);
        let mut of_one: Vec<_> = (0..3).map(|_| crowd.enter(at("192.0.2.1"))).collect();
        let beyond: Vec<_> = of_one.iter().map(Place::beyond).collect();
        assert_eq!(beyond, [None, None, Some(Bound::ClientConnections)]);
        let other = crowd.enter(at("192.0.2.2"));
        assert_eq!(other.beyond(), None);
        assert_eq!(crowd.enter(at("192.0.2.3")).beyond(), Some(Bound::Connections));
        of_one.remove(0);
        assert_eq!(crowd.enter(at("::ffff:192.0.2.1")).beyond(), None, "the same client, mapped");
        drop((of_one, other));
        let there = crowd.there();
        assert_eq!((there.count, there.by_client.len(), there.in_excess.len()), (0, 0, 0));
    }

    #[test]
    fn a_block_of_ipv6_is_one_client() {
        let crowd = Crowd::new(9, 1);
        let _one = crowd.enter(at("2001:db8:0:1::1"));
        assert!(crowd.enter(at("2001:db8:0:1:ffff::2")).beyond().is_some());
        assert!(crowd.enter(at("2001:db8:0:2::1")).beyond().is_none());
    }

    #[tokio::test]
    async fn beyond_the_bounds_the_oldest_makes_room() {
        let crowd = Crowd::new(1, 1);
        let _inside = crowd.enter(at("192.0.2.1"));
        let waiting: Vec<_> = (0..IN_EXCESS_MAX).map(|_| crowd.enter(at("192.0.2.1"))).collect();
        assert!(futures_util::poll!(std::pin::pin!(waiting[0].displaced())).is_pending());
        let _newest = crowd.enter(at("192.0.2.1"));
        waiting[0].displaced().await;
        assert!(futures_util::poll!(std::pin::pin!(waiting[1].displaced())).is_pending());
    }
}
