//! The accept loop: who is let in, a graceful end, and what all connections share.

mod connection;
mod crowd;
mod watched;

use std::{io, sync::Arc, time::Duration};

use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(super) use self::connection::{HEADERS_MAX, URI_BYTES_MAX};
use self::crowd::{Crowd, Place};
use super::{Routes, room::Room};
use crate::telemetry::{self, Seldom};

/// The pause after a failed `accept`: out of descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often it is logged that connections cannot be accepted.
static ACCEPT_LOG: Seldom = Seldom::each(Duration::from_secs(10));

/// What clients may take. Each is a setting.
#[derive(Debug, Clone, Copy)]
pub struct ClientBounds {
    /// `CONNECTIONS_MAX`: how many connections are served at a time.
    pub connections_max: usize,
    /// `CLIENT_CONNECTIONS_MAX`: how many of them one address may have.
    pub client_connections_max: usize,
    /// `REQUESTS_MAX`: how many requests are read, served and answered at a time.
    pub requests_max: usize,
    /// `REQUEST_HEAD_MAX`: bytes of the target and the headers of a request.
    pub head_bytes_max: usize,
    /// `REQUEST_BODIES_MAX`: bytes of all bodies together.
    pub bodies_bytes_max: usize,
    /// `REQUEST_HEAD_TIMEOUT`: from the first byte of a head to its last.
    pub head_timeout: Duration,
    /// `REQUEST_BODY_TIMEOUT`: the same of a body.
    pub body_timeout: Duration,
    /// `KEEP_ALIVE_TIMEOUT`: how long a connection may idle.
    pub keep_alive: Duration,
    /// `ANSWER_TIMEOUT`: how long a client may take to take its answer.
    pub answer_timeout: Duration,
}

impl ClientBounds {
    /// Keeps to what there are files for.
    pub fn afford(&mut self, connections_max: usize) {
        if connections_max < self.connections_max {
            self.connections_max = connections_max;
            self.client_connections_max = self.client_connections_max.min(connections_max / 2);
        }
    }
}

/// What all connections share.
struct Served {
    routes: Routes,
    room: Room,
    bounds: ClientBounds,
}

/// Serves until `stop`; then no connection is accepted any more, and requests under way may end
/// within `grace`.
pub async fn serve(
    listener: TcpListener,
    routes: Routes,
    bounds: ClientBounds,
    stop: CancellationToken,
    grace: Duration,
) {
    let connections = TaskTracker::new();
    let cut_off = CancellationToken::new();
    let crowd = Crowd::new(bounds.connections_max, bounds.client_connections_max);
    let room = Room::new(bounds.requests_max, bounds.bodies_bytes_max);
    let served = Arc::new(Served { routes, room, bounds });
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                let place = crowd.enter(address.ip());
                let (served, stop, cut_off) = (served.clone(), stop.clone(), cut_off.clone());
                connections.spawn(async move {
                    tokio::select! {
                        () = connected(stream, place, &served, &stop) => {}
                        () = cut_off.cancelled() => {}
                    }
                });
            }
            Err(error) if is_of_the_client(&error) => {}
            Err(error) => {
                telemetry::refused(telemetry::Refusal::NotAccepted);
                if ACCEPT_LOG.is_time() {
                    tracing::warn!(%error, "connections cannot be accepted for now");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(grace, connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "requests under way are cut off");
        cut_off.cancel();
        connections.wait().await;
    }
}

async fn connected(stream: TcpStream, place: Place, served: &Served, stop: &CancellationToken) {
    let _counted = telemetry::connected();
    connection::serve(stream, &place, served, stop).await;
}

/// Whether only this client is gone before it was accepted.
fn is_of_the_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

#[cfg(test)]
mod tests {
    use axum::{Router, routing::get};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tower::util::MapRequest;

    use super::*;

    /// How long anything may take before a test fails. Never what a test measures.
    const PATIENCE: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(100);

    fn routes() -> Routes {
        let routes = Router::new()
            // More than the buffers of two sockets hold.
            .route("/large", get(|| async { vec![b'x'; 64 * 1024 * 1024] }))
            .route("/slow", get(|| tokio::time::sleep(4 * SHORT)))
            .route("/never", get(std::future::pending::<()>));
        MapRequest::new(routes, |request| request)
    }

    fn served(bounds: ClientBounds) -> Served {
        Served { routes: routes(), room: Room::new(bounds.requests_max, 1024), bounds }
    }

    fn bounds() -> ClientBounds {
        ClientBounds {
            connections_max: 16,
            client_connections_max: 16,
            requests_max: 16,
            head_bytes_max: 32 * 1024,
            bodies_bytes_max: 1024,
            head_timeout: PATIENCE,
            body_timeout: PATIENCE,
            keep_alive: PATIENCE,
            answer_timeout: PATIENCE,
        }
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    async fn request(client: &mut TcpStream, path: &str) {
        let head = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
    }

    /// Serves one connection within these bounds until it ends, which it must.
    async fn to_its_end(stream: TcpStream, bounds: ClientBounds) {
        let place = Crowd::new(1, 1).enter([127, 0, 0, 1].into());
        let (served, stop) = (served(bounds), CancellationToken::new());
        let ending = connection::serve(stream, &place, &served, &stop);
        tokio::time::timeout(PATIENCE, ending).await.expect("the connection ends");
        let left = served.room.enter(false).map(|_| ());
        left.expect("nothing is held of the room any more");
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_its_answer_is_cut_off() {
        let (mut client, server) = pair().await;
        request(&mut client, "/large").await;
        to_its_end(server, ClientBounds { answer_timeout: SHORT, ..bounds() }).await;
    }

    #[tokio::test]
    async fn a_head_that_does_not_come_to_its_end_is_cut_off() {
        let (mut client, server) = pair().await;
        client.write_all(b"GET / HT").await.unwrap();
        to_its_end(server, ClientBounds { head_timeout: SHORT, ..bounds() }).await;
    }

    #[tokio::test]
    async fn a_client_that_says_nothing_is_cut_off() {
        let (_client, server) = pair().await;
        to_its_end(server, ClientBounds { keep_alive: SHORT, ..bounds() }).await;
    }

    #[tokio::test]
    async fn a_slow_handler_is_no_slow_client() {
        let (mut client, server) = pair().await;
        request(&mut client, "/slow").await;
        let short = ClientBounds {
            head_timeout: SHORT,
            keep_alive: SHORT,
            answer_timeout: SHORT,
            ..bounds()
        };
        let mut answer = String::new();
        tokio::join!(to_its_end(server, short), async {
            client.read_to_string(&mut answer).await.unwrap();
            drop(client);
        });
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    }

    #[tokio::test]
    async fn stopping_waits_for_no_request_beyond_its_grace() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let stop = CancellationToken::new();
        let serving = serve(listener, routes(), bounds(), stop.clone(), SHORT);
        let all = async {
            tokio::join!(serving, async {
                request(&mut client, "/never").await;
                // The request is to be under way; no signal tells it from outside.
                tokio::time::sleep(SHORT).await;
                stop.cancel();
            });
        };
        tokio::time::timeout(PATIENCE, all).await.expect("stops though a request is under way");
    }
}
