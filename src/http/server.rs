//! The accept loop: connections up to a bound, time-outs on reading and on being read, a graceful
//! end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::body::Body;
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use super::Routes;

/// How long a request's head may take, and how long a connection may idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How many bytes a request's head may have.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// The pause after a failed `accept`: out of descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the tests make smaller.
#[derive(Clone, Copy)]
struct Bounds {
    /// How many connections are served at a time; more wait to be accepted.
    connections_max: usize,
    /// How long a client may take to read its answer; up to twice that may pass until it is cut
    /// off. Above [`HEAD_TIMEOUT`], which ends connections that merely idle.
    answer_timeout: Duration,
}

const BOUNDS: Bounds = Bounds { connections_max: 10_000, answer_timeout: Duration::from_mins(1) };

/// Serves until `stop`; then no connection is accepted any more, and requests under way may end
/// within `grace`.
pub async fn serve(
    listener: TcpListener,
    routes: Routes,
    stop: CancellationToken,
    grace: Duration,
) {
    serve_within(BOUNDS, listener, routes, stop, grace).await;
}

async fn serve_within(
    bounds: Bounds,
    listener: TcpListener,
    routes: Routes,
    stop: CancellationToken,
    grace: Duration,
) {
    let connections = TaskTracker::new();
    let cut_off = CancellationToken::new();
    let slots = Arc::new(Semaphore::new(bounds.connections_max));
    loop {
        let accept = async {
            let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
            listener.accept().await.map(|(stream, _)| (stream, slot))
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept => accepted,
        };
        match accepted {
            Ok((stream, slot)) => {
                let routes = routes.clone();
                let (stop, cut_off) = (stop.clone(), cut_off.clone());
                connections.spawn(async move {
                    tokio::select! {
                        () = connection(stream, routes, stop, bounds.answer_timeout) => {}
                        () = cut_off.cancelled() => {}
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
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

async fn connection(
    stream: TcpStream,
    routes: Routes,
    stop: CancellationToken,
    answer_timeout: Duration,
) {
    // Answers are small and wait for nothing.
    let _ = stream.set_nodelay(true);
    // Requests begun and answers made. Odd: a request is being served, and its handler has its own
    // bounds.
    let steps = AtomicU64::new(0);
    let service = service_fn(|request: Request<Incoming>| {
        steps.fetch_add(1, Ordering::Relaxed);
        let answer = routes.clone().oneshot(request.map(Body::new));
        let steps = &steps;
        async move {
            let answer = answer.await;
            steps.fetch_add(1, Ordering::Relaxed);
            answer
        }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = unread(&steps, answer_timeout) => {
            tracing::debug!("a connection was closed: its client does not read the answer");
            return;
        }
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Ends when nothing was served and no request came for all of `timeout`. Looks at the clock instead
/// of being told, which would cost each request a wake-up.
async fn unread(steps: &AtomicU64, timeout: Duration) {
    let mut before = steps.load(Ordering::Relaxed);
    loop {
        tokio::time::sleep(timeout).await;
        let now = steps.load(Ordering::Relaxed);
        if now == before && now.is_multiple_of(2) {
            return;
        }
        before = now;
    }
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

    async fn pair(path: &str) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        request(&mut client, path).await;
        (client, listener.accept().await.unwrap().0)
    }

    async fn request(client: &mut TcpStream, path: &str) {
        let head = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_its_answer_is_cut_off() {
        let (_client, server) = pair("/large").await;
        let ending = connection(server, routes(), CancellationToken::new(), SHORT);
        tokio::time::timeout(PATIENCE, ending).await.expect("the connection ends");
    }

    #[tokio::test]
    async fn a_slow_handler_is_no_slow_reader() {
        let (mut client, server) = pair("/slow").await;
        let mut answer = String::new();
        tokio::join!(connection(server, routes(), CancellationToken::new(), SHORT), async {
            client.read_to_string(&mut answer).await.unwrap();
        });
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    }

    #[tokio::test]
    async fn stopping_waits_for_no_slot() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let bounds = Bounds { connections_max: 1, ..BOUNDS };
        let stop = CancellationToken::new();
        let serving = serve_within(bounds, listener, routes(), stop.clone(), SHORT);
        let all = async {
            tokio::join!(serving, async {
                request(&mut client, "/never").await;
                // The one slot is to be taken; no signal tells it from outside.
                tokio::time::sleep(SHORT).await;
                stop.cancel();
            });
        };
        tokio::time::timeout(PATIENCE, all).await.expect("stops though all slots are taken");
    }
}
