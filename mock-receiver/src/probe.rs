//! Asks the receiver on this machine whether it answers: the health check of its container, whose
//! image holds no other HTTP client.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// How long connecting may take, and each part of the answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How much of the answer is read: its first line is shorter.
const ANSWER_BYTES_MAX: u64 = 256;

/// Asks `/health` of the receiver that listens on this address; one that listens on all of them is
/// asked on loopback.
pub fn health(ip: IpAddr, port: u16) -> io::Result<()> {
    let ip = match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let address = SocketAddr::new(ip, port);
    let line = status_line(address)
        .map_err(|error| io::Error::other(format!("{address} does not answer: {error}")))?;
    if line.split_whitespace().nth(1) == Some("200") {
        Ok(())
    } else {
        Err(io::Error::other(format!("{address} answers `{line}` to GET /health")))
    }
}

fn status_line(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET /health HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut line = String::new();
    BufReader::new(stream.take(ANSWER_BYTES_MAX)).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}
