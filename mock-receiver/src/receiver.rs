//! The receiver: its accept loop and its connections, which all stop together.

use std::error::Error as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::ledger::{Ledger, Stats};
use crate::record::Received;
use crate::routes;
use crate::settings::Settings;
use crate::shared::{Limits, Shared};
use crate::wire::{Script, TakeOver};

/// How many connections are served at a time; more wait in the kernel.
const CONNECTIONS_MAX: usize = 16_384;

/// How long a connection may take to send its next headers, idle time included. Longer than HTTP
/// clients keep idle connections (90 s is usual), so that it is they who close.
const HEADERS_READ_MAX: Duration = Duration::from_mins(2);

/// How many bytes the headers of a request may have; more are answered 431.
const HEADERS_BYTES_MAX: usize = 64 * 1024;

/// How long accepting rests after it has failed: usually there are too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A running receiver. It stops when it is dropped, in the middle of any request.
pub struct MockReceiver {
    shared: Arc<Shared>,
    local_addr: SocketAddr,
    /// Stops the accept loop; gone once it has been used.
    stop: Option<oneshot::Sender<()>>,
    /// The accept loop, which owns the connections.
    tasks: JoinSet<()>,
}

impl MockReceiver {
    /// Listens, and serves in background tasks of the current tokio runtime.
    ///
    /// Fails with `InvalidInput` if a setting is out of its range, or as listening failed.
    ///
    /// # Panics
    ///
    /// If there is no tokio runtime with I/O and time enabled.
    pub async fn bind(settings: Settings) -> io::Result<Self> {
        Self::bind_with(settings, Limits::default()).await
    }

    pub(crate) async fn bind_with(settings: Settings, limits: Limits) -> io::Result<Self> {
        settings.check().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let addr = SocketAddr::new(settings.bind, settings.port);
        let listener = TcpListener::bind(addr).await.map_err(|error| {
            io::Error::new(error.kind(), format!("cannot listen on {addr} (BIND, PORT): {error}"))
        })?;
        let local_addr = listener.local_addr()?;
        let shared = Arc::new(Shared::new(settings, limits));
        let (stop, stopped) = oneshot::channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, routes::router(Arc::clone(&shared)), stopped));
        Ok(Self { shared, local_addr, stop: Some(stop), tasks })
    }

    /// Where it listens, with the port that was taken if the settings said 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The URL to send webhooks to, such as `http://127.0.0.1:8080/webhook`.
    pub fn url(&self) -> String {
        self.url_of("/webhook")
    }

    /// The URL of a path, which must begin with `/`. An address that means "all interfaces" is
    /// replaced by loopback.
    pub fn url_of(&self, path: &str) -> String {
        let mut addr = self.local_addr;
        match addr.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => addr.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(ip) if ip.is_unspecified() => addr.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        format!("http://{addr}{path}")
    }

    /// The seed of the chaos: that of the settings, or the random one that was taken.
    pub fn seed(&self) -> u64 {
        self.shared.chaos.seed()
    }

    /// What came so far and how it was answered.
    pub fn stats(&self) -> Stats {
        self.shared.read(Ledger::stats)
    }

    /// All that came, in the order in which it came; at most [`crate::RECORD_ENTRIES_MAX`] entries
    /// and [`crate::RECORD_BYTES_MAX`] bytes, the oldest leave first.
    pub fn record(&self) -> Vec<Received> {
        self.shared.read(Ledger::record)
    }

    /// Waits until the stats fulfil `condition`, which is tried now and after each change, and
    /// returns them. Has no time-out of its own.
    pub async fn wait_until(&self, mut condition: impl FnMut(&Stats) -> bool) -> Stats {
        self.shared.wait_until(|| Some(self.stats()).filter(&mut condition)).await
    }

    /// Stops listening and closes all connections, in the middle of any request. When it returns,
    /// the port is free and nothing changes any more; stats and record stay.
    pub async fn shutdown(&mut self) {
        drop(self.stop.take());
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "the accept loop failed");
            }
        }
    }
}

/// Accepts connections until `stopped`, then ends them all. They also end if this is dropped.
async fn serve(listener: TcpListener, router: Router, mut stopped: oneshot::Receiver<()>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a connection failed");
                }
            }
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(serve_connection(stream, router.clone()));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
    }
    drop(listener);
    connections.shutdown().await;
}

/// Speaks HTTP, until the end or until a handler returns a script: hyper stops without a byte, and
/// what follows is played on the bare socket.
async fn serve_connection(stream: TcpStream, router: Router) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let paths = TowerToHyperService::new(router);
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = paths.call(request);
        async move {
            let Ok(mut response) = answer.await;
            match response.extensions_mut().remove::<Script>() {
                None => Ok(response),
                Some(script) => Err(TakeOver(script)),
            }
        }
    });
    // A client that hangs up while it waits is noticed, and its request dropped: hyper's
    // `half_close` is off by default.
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_READ_MAX)
        .max_buf_size(HEADERS_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let Err(error) = (&mut connection).await else { return };
    if let Some(TakeOver(script)) = error.source().and_then(|cause| cause.downcast_ref()) {
        script.clone().play(connection.into_parts().io.into_inner()).await;
    } else {
        tracing::debug!(%error, "a connection ended early");
    }
}
