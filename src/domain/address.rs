//! Which addresses a delivery may be sent to.
//!
//! Everything that is not the public internet is refused, unless the operator's
//! `ALLOWED_TARGET_CIDRS` says otherwise. The table follows the special-purpose registries of IANA
//! (RFC 6890 and its updates), and adds what clouds put elsewhere.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::TargetUrl;

/// A block, what it is for, and where that is written.
pub type Block = (IpNet, &'static str, &'static str);

const fn block_v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix))
}

const fn block_v6(of: [u16; 8], prefix: u8) -> IpNet {
    let ip = Ipv6Addr::new(of[0], of[1], of[2], of[3], of[4], of[5], of[6], of[7]);
    IpNet::V6(Ipv6Net::new_assert(ip, prefix))
}

/// The IPv4 blocks that are refused.
const BLOCKED_V4: &[Block] = &[
    (block_v4(0, 0, 0, 0, 8), "this network", "RFC 791, RFC 1122"),
    (block_v4(10, 0, 0, 0, 8), "private", "RFC 1918"),
    (block_v4(100, 64, 0, 0, 10), "carrier-grade NAT", "RFC 6598"),
    (block_v4(127, 0, 0, 0, 8), "loopback", "RFC 1122"),
    (block_v4(169, 254, 0, 0, 16), "link-local, cloud metadata", "RFC 3927"),
    (block_v4(172, 16, 0, 0, 12), "private", "RFC 1918"),
    // DS-Lite, the dummy address, PCP and TURN anycast, NAT64 discovery.
    (block_v4(192, 0, 0, 0, 24), "protocol assignments", "RFC 6890"),
    (block_v4(192, 0, 2, 0, 24), "documentation", "RFC 5737"),
    (block_v4(192, 31, 196, 0, 24), "AS112", "RFC 7535"),
    (block_v4(192, 52, 193, 0, 24), "AMT", "RFC 7450"),
    (block_v4(192, 88, 99, 0, 24), "6to4 relay", "RFC 7526"),
    (block_v4(192, 168, 0, 0, 16), "private", "RFC 1918"),
    (block_v4(192, 175, 48, 0, 24), "AS112", "RFC 7534"),
    (block_v4(198, 18, 0, 0, 15), "benchmarking", "RFC 2544"),
    (block_v4(198, 51, 100, 0, 24), "documentation", "RFC 5737"),
    (block_v4(203, 0, 113, 0, 24), "documentation", "RFC 5737"),
    (block_v4(224, 0, 0, 0, 4), "multicast", "RFC 5771"),
    (block_v4(240, 0, 0, 0, 4), "reserved, broadcast", "RFC 1112, RFC 919"),
    // Azure's wire server: a public address that only the host answers.
    (block_v4(168, 63, 129, 16, 32), "cloud metadata", "Azure"),
];

/// The only IPv6 block that holds public addresses; everything outside it is refused.
const GLOBAL_UNICAST_V6: Ipv6Net =
    Ipv6Net::new_assert(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// The blocks within [`GLOBAL_UNICAST_V6`] that are refused, a part of another one before it.
const BLOCKED_V6: &[Block] = &[
    (block_v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32), "Teredo", "RFC 4380"),
    (block_v6([0x2001, 2, 0, 0, 0, 0, 0, 0], 48), "benchmarking", "RFC 5180"),
    (block_v6([0x2001, 3, 0, 0, 0, 0, 0, 0], 32), "AMT", "RFC 7450"),
    (block_v6([0x2001, 4, 0x0112, 0, 0, 0, 0, 0], 48), "AS112", "RFC 7535"),
    (block_v6([0x2001, 0x10, 0, 0, 0, 0, 0, 0], 28), "ORCHID", "RFC 4843"),
    (block_v6([0x2001, 0x20, 0, 0, 0, 0, 0, 0], 28), "ORCHIDv2", "RFC 7343"),
    (block_v6([0x2001, 0x30, 0, 0, 0, 0, 0, 0], 28), "drone identifiers", "RFC 9374"),
    // PCP, TURN and DNS-SD anycast among them.
    (block_v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), "protocol assignments", "RFC 2928"),
    (block_v6([0x2001, 0x0db8, 0, 0, 0, 0, 0, 0], 32), "documentation", "RFC 3849"),
    (block_v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16), "6to4", "RFC 3056"),
    (block_v6([0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0], 48), "AS112", "RFC 7534"),
    (block_v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20), "documentation", "RFC 9637"),
];

/// The IPv6 blocks outside [`GLOBAL_UNICAST_V6`] that an error names; the rest is `reserved`.
const NAMED_V6: &[Block] = &[
    (block_v6([0; 8], 128), "unspecified", "RFC 4291"),
    (block_v6([0, 0, 0, 0, 0, 0, 0, 1], 128), "loopback", "RFC 4291"),
    (block_v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96), "IPv4-mapped", "RFC 4291"),
    (block_v6([0, 0, 0, 0, 0xffff, 0, 0, 0], 96), "IPv4-translated", "RFC 2765"),
    (block_v6([0; 8], 96), "IPv4-compatible", "RFC 4291"),
    (block_v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48), "NAT64 of a local network", "RFC 8215"),
    (block_v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64), "discard-only", "RFC 6666"),
    (block_v6([0x100, 0, 0, 1, 0, 0, 0, 0], 64), "dummy prefix", "RFC 9780"),
    (block_v6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16), "segment routing", "RFC 9602"),
    (block_v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7), "unique local, cloud metadata", "RFC 4193"),
    (block_v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), "link-local", "RFC 4291"),
    (block_v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10), "site-local", "RFC 3879"),
    (block_v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), "multicast", "RFC 4291"),
];

/// The prefix under which a NAT64 gateway offers the public IPv4 internet (RFC 6052, section 2.1). An
/// address is as good as the IPv4 address in its last 32 bits.
const NAT64: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);

/// The blocks that are refused by name. Of IPv6 everything outside of `2000::/3` is refused too.
pub fn refused_blocks() -> impl Iterator<Item = Block> {
    [BLOCKED_V4, BLOCKED_V6, NAMED_V6].into_iter().flatten().copied()
}

/// Why an address is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressRefused {
    /// No public address, and not in `ALLOWED_TARGET_CIDRS`.
    #[error("{address} is not a public address ({kind}); ALLOWED_TARGET_CIDRS can allow it")]
    NotPublic {
        /// The address.
        address: IpAddr,
        /// What its block is for.
        kind: &'static str,
    },
    /// An address of a NAT64 gateway for an IPv4 address that is not public.
    #[error(
        "{address} leads through NAT64 to {inner}, which is not a public address ({kind}); \
         ALLOWED_TARGET_CIDRS can allow {inner} itself, but not through NAT64"
    )]
    Nat64 {
        /// The address.
        address: IpAddr,
        /// The IPv4 address that it contains.
        inner: Ipv4Addr,
        /// What its block is for.
        kind: &'static str,
    },
    /// Plain http to a name, whatever it leads to.
    #[error(
        "a name may be called over https only; ALLOWED_TARGET_CIDRS can allow http to the addresses \
         it leads to, REQUIRE_HTTPS=false to all"
    )]
    NameNotEncrypted,
    /// Plain http to an address that is not in `ALLOWED_TARGET_CIDRS`.
    #[error(
        "{address} may be called over https only; ALLOWED_TARGET_CIDRS can allow http to it, \
         REQUIRE_HTTPS=false to all"
    )]
    NotEncrypted {
        /// The address.
        address: IpAddr,
    },
}

/// What the operator's settings allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressPolicy {
    allowed: Vec<IpNet>,
    requires_https: bool,
}

impl AddressPolicy {
    /// A policy that lets the blocks of `allowed` be called whatever they are, over http too.
    /// Elsewhere only public addresses may be called, and over https if `requires_https`.
    pub fn new(allowed: Vec<IpNet>, requires_https: bool) -> Self {
        Self { allowed, requires_https }
    }

    /// Decides on a target before anything is called: what is refused here can never be delivered.
    /// A name's addresses are vetted when it is called, since they may change until then.
    pub fn vet_target(&self, target: &TargetUrl) -> Result<(), AddressRefused> {
        match target.literal_address() {
            Some(address) => self.vet(address, target.is_https()),
            // It leads to this machine and nowhere else (RFC 6761), so neither is asked for it later.
            None if target.is_localhost() => {
                let [v4, v6] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
                self.vet(v4, target.is_https())
                    .or_else(|why| self.vet(v6, target.is_https()).map_err(|_| why))
            }
            // A name may lead to an allowed block, if there are any.
            None if self.requires_https && !target.is_https() && self.allowed.is_empty() => {
                Err(AddressRefused::NameNotEncrypted)
            }
            None => Ok(()),
        }
    }

    /// Decides on the address that a connection would go to.
    pub fn vet(&self, address: IpAddr, is_https: bool) -> Result<(), AddressRefused> {
        if let Some(inner) = nat64_inner(address) {
            return self.vet_nat64(address, inner, is_https);
        }
        if self.is_allowed(address) {
            // A mapped address is called as the IPv4 address that it is, so that one counts too.
            return mapped_inner(address).map_or(Ok(()), |inner| self.vet(inner.into(), is_https));
        }
        if let Some(kind) = special_purpose(address) {
            return Err(AddressRefused::NotPublic { address, kind });
        }
        if self.requires_https && !is_https {
            return Err(AddressRefused::NotEncrypted { address });
        }
        Ok(())
    }

    /// A gateway reaches public addresses only (RFC 6052, section 3.1), and what it would reach under
    /// a private one is not what this machine reaches under it. So nothing allows those.
    fn vet_nat64(
        &self,
        address: IpAddr,
        inner: Ipv4Addr,
        is_https: bool,
    ) -> Result<(), AddressRefused> {
        if let Some(kind) = special_purpose(inner.into()) {
            return Err(AddressRefused::Nat64 { address, inner, kind });
        }
        let may_be_plain = || self.is_allowed(address) || self.is_allowed(inner.into());
        if self.requires_https && !is_https && !may_be_plain() {
            return Err(AddressRefused::NotEncrypted { address });
        }
        Ok(())
    }

    fn is_allowed(&self, address: IpAddr) -> bool {
        self.allowed.iter().any(|net| net.contains(&address))
    }
}

/// The IPv4 address that a NAT64 gateway reaches for an address.
fn nat64_inner(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V6(ip) if NAT64.contains(&ip) => {
            let [.., a, b, c, d] = ip.octets();
            Some(Ipv4Addr::new(a, b, c, d))
        }
        _ => None,
    }
}

/// What an address is for, if it is not public.
fn special_purpose(address: IpAddr) -> Option<&'static str> {
    let of = |blocks: &[Block]| {
        blocks.iter().find(|(net, ..)| net.contains(&address)).map(|&(_, kind, _)| kind)
    };
    match address {
        IpAddr::V4(_) => of(BLOCKED_V4),
        IpAddr::V6(ip) if GLOBAL_UNICAST_V6.contains(&ip) => of(BLOCKED_V6),
        IpAddr::V6(_) => of(NAMED_V6).or(Some("reserved")),
    }
}

/// The IPv4 address of an IPv4-mapped one.
fn mapped_inner(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V6(ip) => ip.to_ipv4_mapped(),
        IpAddr::V4(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(address: &str, expected: Option<&str>) {
        assert_eq!(special_purpose(address.parse().unwrap()), expected, "{address}");
    }

    #[test]
    fn v4_blocks_begin_and_end_where_the_registry_says() {
        for (first, last, kind) in [
            ("0.0.0.0", "0.255.255.255", "this network"),
            ("10.0.0.0", "10.255.255.255", "private"),
            ("100.64.0.0", "100.127.255.255", "carrier-grade NAT"),
            ("127.0.0.0", "127.255.255.255", "loopback"),
            ("169.254.0.0", "169.254.255.255", "link-local, cloud metadata"),
            ("172.16.0.0", "172.31.255.255", "private"),
            ("192.0.0.0", "192.0.0.255", "protocol assignments"),
            ("192.0.2.0", "192.0.2.255", "documentation"),
            ("192.88.99.0", "192.88.99.255", "6to4 relay"),
            ("192.168.0.0", "192.168.255.255", "private"),
            ("198.18.0.0", "198.19.255.255", "benchmarking"),
            ("198.51.100.0", "198.51.100.255", "documentation"),
            ("203.0.113.0", "203.0.113.255", "documentation"),
            ("224.0.0.0", "239.255.255.255", "multicast"),
            ("240.0.0.0", "255.255.255.255", "reserved, broadcast"),
            ("168.63.129.16", "168.63.129.16", "cloud metadata"),
        ] {
            check(first, Some(kind));
            check(last, Some(kind));
        }
        for public in [
            "1.0.0.0",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.0.3.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "168.63.129.15",
            "168.63.129.17",
        ] {
            check(public, None);
        }
    }

    #[test]
    fn v6_is_public_only_within_global_unicast() {
        for (address, kind) in [
            ("::", "unspecified"),
            ("::1", "loopback"),
            ("::ffff:8.8.8.8", "IPv4-mapped"),
            ("::8.8.8.8", "IPv4-compatible"),
            ("::ffff:0:8.8.8.8", "IPv4-translated"),
            ("64:ff9b:1::1", "NAT64 of a local network"),
            ("64:ff9b:1::8.8.8.8", "NAT64 of a local network"),
            ("64:ff9b:0:0:0:1:808:808", "reserved"),
            ("100::1", "discard-only"),
            ("100:0:0:1::1", "dummy prefix"),
            ("100:0:0:2::1", "reserved"),
            ("2001::1", "Teredo"),
            ("2001:1::1", "protocol assignments"),
            ("2001:2::1", "benchmarking"),
            ("2001:2:1::1", "protocol assignments"),
            ("2001:3::1", "AMT"),
            ("2001:4:112::1", "AS112"),
            ("2001:1f::1", "ORCHID"),
            ("2001:2f::1", "ORCHIDv2"),
            ("2001:3f::1", "drone identifiers"),
            ("2001:1ff:ffff::1", "protocol assignments"),
            ("2001:db8::1", "documentation"),
            ("2002:a00:1::1", "6to4"),
            ("2620:4f:8000::1", "AS112"),
            ("3fff:fff::1", "documentation"),
            ("4000::1", "reserved"),
            ("5f00::1", "segment routing"),
            ("fc00::1", "unique local, cloud metadata"),
            ("fd00:ec2::254", "unique local, cloud metadata"),
            ("fe80::1", "link-local"),
            ("fec0::1", "site-local"),
            ("ff02::1", "multicast"),
        ] {
            check(address, Some(kind));
        }
        for public in ["2001:200::1", "2606:4700::1111", "2a00:1450::1", "3ffe::1", "3fff:1000::1"]
        {
            check(public, None);
        }
    }

    #[test]
    fn the_operator_can_allow_blocks_and_http() {
        let vet = |policy: &AddressPolicy, address: &str, is_https| {
            policy.vet(address.parse().unwrap(), is_https).is_ok()
        };
        let strict = AddressPolicy::new(vec!["10.1.0.0/16".parse().unwrap()], true);
        assert!(vet(&strict, "10.1.2.3", false), "allowed blocks may be called over http");
        assert!(!vet(&strict, "10.2.0.1", true));
        assert!(vet(&strict, "8.8.8.8", true));
        assert!(!vet(&strict, "8.8.8.8", false));
        assert!(!vet(&strict, "::ffff:10.1.2.3", true), "a mapped address is another address");
        let lax = AddressPolicy::new(vec![], false);
        assert!(vet(&lax, "8.8.8.8", false));
        assert!(!vet(&lax, "127.0.0.1", false));
    }

    #[test]
    fn nat64_addresses_are_vetted_by_the_ipv4_address_inside() {
        let everything = ["0.0.0.0/0", "::/0", "64:ff9b::/96"];
        let policy = |allowed: &[&str], requires_https| {
            AddressPolicy::new(
                allowed.iter().map(|net| net.parse().unwrap()).collect(),
                requires_https,
            )
        };
        let policies = [policy(&[], true), policy(&everything, true), policy(&everything, false)];
        for policy in &policies {
            let vet = |address: &str| policy.vet(address.parse().unwrap(), true);
            for public in ["64:ff9b::8.8.8.8", "64:ff9b::101:101", "64:ff9b::dfff:ffff"] {
                assert_eq!(vet(public), Ok(()), "{public}");
            }
            for inside in [
                "64:ff9b::127.0.0.1",
                "64:ff9b::10.0.0.1",
                "64:ff9b::192.168.1.1",
                "64:ff9b::169.254.169.254",
                "64:ff9b::168.63.129.16",
                "64:ff9b::100.64.0.1",
                "64:ff9b::224.0.0.1",
                "64:ff9b::",
            ] {
                let refused = vet(inside).unwrap_err();
                assert!(matches!(refused, AddressRefused::Nat64 { .. }), "{refused}");
                assert!(refused.to_string().contains("ALLOWED_TARGET_CIDRS"), "{refused}");
            }
        }
        // Plain http where the operator allows it for either form of the address.
        let address = "64:ff9b::8.8.8.8".parse().unwrap();
        for (allowed, is_good) in
            [(&[][..], false), (&["64:ff9b::/96"], true), (&["8.8.8.0/24"], true)]
        {
            assert_eq!(policy(allowed, true).vet(address, false).is_ok(), is_good, "{allowed:?}");
        }
    }

    #[test]
    fn mapped_addresses_are_allowed_only_with_the_ipv4_address_inside() {
        let vet = |allowed: &[&str], address: &str| {
            let allowed = allowed.iter().map(|net| net.parse().unwrap()).collect();
            AddressPolicy::new(allowed, true).vet(address.parse().unwrap(), true).is_ok()
        };
        assert!(vet(&["::ffff:0:0/96"], "::ffff:8.8.8.8"));
        assert!(!vet(&["::ffff:0:0/96"], "::ffff:169.254.169.254"));
        assert!(!vet(&["::/0"], "::ffff:127.0.0.1"));
        assert!(vet(&["::/0", "127.0.0.0/8"], "::ffff:127.0.0.1"));
        assert!(!vet(&["127.0.0.0/8"], "::ffff:127.0.0.1"));
    }

    #[test]
    fn a_target_is_refused_if_no_address_could_make_it_good() {
        #[track_caller]
        fn check(allowed: &[&str], requires_https: bool, text: &str, is_good: bool) {
            let allowed = allowed.iter().map(|net| net.parse().unwrap()).collect();
            let target = TargetUrl::parse(text).unwrap();
            let vetted = AddressPolicy::new(allowed, requires_https).vet_target(&target);
            assert_eq!(vetted.is_ok(), is_good, "{text}: {vetted:?}");
            if let Err(refused) = vetted {
                assert!(refused.to_string().contains("ALLOWED_TARGET_CIDRS"), "{refused}");
            }
        }
        check(&[], true, "http://a.example/", false);
        check(&["10.0.0.0/8"], true, "http://a.example/", true);
        check(&[], false, "http://a.example/", true);
        check(&[], true, "https://a.example/", true);
        check(&[], false, "https://10.0.0.1/", false);
        check(&["10.0.0.0/8"], true, "http://10.0.0.1/", true);
        check(&["10.0.0.0/8"], true, "http://8.8.8.8/", false);
    }

    #[test]
    fn refusals_name_the_setting() {
        let policy = AddressPolicy::new(vec![], true);
        let text =
            |address: &str| policy.vet(address.parse().unwrap(), false).unwrap_err().to_string();
        assert_eq!(
            text("127.0.0.1"),
            "127.0.0.1 is not a public address (loopback); ALLOWED_TARGET_CIDRS can allow it"
        );
        assert!(text("8.8.8.8").contains("REQUIRE_HTTPS"));
    }

    proptest! {
        #[test]
        fn embedded_v4_addresses_never_pass(bits in any::<u32>()) {
            let ip = Ipv4Addr::from_bits(bits);
            let [a, b, c, d] = ip.octets().map(u16::from);
            let (high, low) = (a << 8 | b, c << 8 | d);
            let nat64 = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low);
            let vetted = AddressPolicy::new(vec![], true).vet(nat64.into(), true);
            prop_assert_eq!(vetted.is_ok(), special_purpose(ip.into()).is_none());
            for wrapped in [
                ip.to_ipv6_mapped(),
                ip.to_ipv6_compatible(),
                Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
                Ipv6Addr::new(0x2001, 0, high, low, 0, 0, 0, 1),
            ] {
                prop_assert!(special_purpose(wrapped.into()).is_some());
            }
        }
    }
}
