//! Asks the service on this machine whether it is ready: the health check of containers, whose
//! images hold no other HTTP client.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

/// How long connecting may take, and each part of the answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How much of the answer is read: its first line is shorter.
const ANSWER_BYTES_MAX: u64 = 256;

/// Why the service does not count as ready.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// Nothing answers there.
    #[error("{0} does not answer: {1}")]
    Silent(SocketAddr, #[source] io::Error),
    /// It says so itself, or it is something else.
    #[error("{0} answers `{1}` to GET /readyz")]
    Unready(SocketAddr, String),
}

/// Asks `/readyz` of the service that is bound to `bind`.
pub fn ready(bind: SocketAddr) -> Result<(), NotReady> {
    let address = reachable(bind);
    let line = status_line(address).map_err(|error| NotReady::Silent(address, error))?;
    let is_ready = line.split_whitespace().nth(1) == Some("200");
    if is_ready { Ok(()) } else { Err(NotReady::Unready(address, line)) }
}

/// Where a service is reached from its own machine: one that listens on all addresses, on loopback.
pub fn reachable(bind: SocketAddr) -> SocketAddr {
    let ip = match bind.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, bind.port())
}

fn status_line(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET /readyz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut line = String::new();
    BufReader::new(stream.take(ANSWER_BYTES_MAX)).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_listens_everywhere_is_asked_on_loopback() {
        #[track_caller]
        fn check(bind: &str, expected: &str) {
            assert_eq!(reachable(bind.parse().unwrap()).to_string(), expected);
        }
        check("0.0.0.0:8000", "127.0.0.1:8000");
        check("[::]:80", "[::1]:80");
        check("10.1.2.3:8000", "10.1.2.3:8000");
    }
}
