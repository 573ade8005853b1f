//! `DNS_SERVERS`: who is asked for the addresses of targets.

use std::net::{IpAddr, SocketAddr};

use super::check::{ConfigError, bad, within};

/// Where name servers listen, and how many may be named.
const PORT: u16 = 53;
const SERVERS: std::ops::RangeInclusive<usize> = 1..=8;

/// The servers of a list; none of none.
pub(super) fn servers(list: Option<&str>) -> Result<Vec<SocketAddr>, ConfigError> {
    let Some(list) = list else { return Ok(Vec::new()) };
    let server = |text: &str| {
        let alone = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT));
        let server = text.parse::<SocketAddr>().or(alone).ok();
        server.filter(|server| server.port() != 0).ok_or_else(|| {
            bad("DNS_SERVERS", format!("`{text}` is no address such as 9.9.9.9 or [::1]:5353"))
        })
    };
    let servers = list.split(',').map(|item| server(item.trim())).collect::<Result<Vec<_>, _>>()?;
    within("DNS_SERVERS (how many)", servers.len(), &SERVERS).map(|_| servers)
}
