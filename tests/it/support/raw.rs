//! A receiver that speaks bytes, for what no HTTP server would do.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::task::AbortOnDropHandle;

/// What is done with a connection once its request's head has come.
#[derive(Debug, Clone)]
pub enum Misdeed {
    /// These bytes, then the end.
    Write(Vec<u8>),
    /// These bytes, then one byte a while, for ever.
    Drip(Vec<u8>),
    /// These bytes, then more as fast as they are taken, for ever.
    Flood(Vec<u8>),
    /// Nothing, for ever.
    Hang,
    /// A reset.
    Reset,
}

/// Listens until it is dropped.
pub struct RawReceiver {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    _server: AbortOnDropHandle<()>,
}

impl RawReceiver {
    pub async fn start(misdeed: Misdeed) -> Self {
        Self::at(([127, 0, 0, 1], 0).into(), misdeed).await.unwrap()
    }

    /// At an address that may be taken.
    pub async fn at(address: SocketAddr, misdeed: Misdeed) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        #[expect(clippy::disallowed_methods, reason = "aborted when the receiver is dropped")]
        let server = tokio::spawn(async move {
            let mut served = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                let misdeed = misdeed.clone();
                served.spawn(async move {
                    let _ = serve(stream, misdeed).await;
                });
            }
        });
        Ok(Self { address, connections, _server: AbortOnDropHandle::new(server) })
    }

    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

async fn serve(mut stream: TcpStream, misdeed: Misdeed) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    match misdeed {
        Misdeed::Write(bytes) => {
            stream.write_all(&bytes).await?;
            stream.shutdown().await?;
            // An end, and not a reset, which it would be while some of the request is not read.
            while stream.read_buf(&mut head).await? > 0 {}
        }
        Misdeed::Drip(bytes) => {
            stream.write_all(&bytes).await?;
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await; // the misdeed itself
                stream.write_all(b"x").await?;
            }
        }
        Misdeed::Flood(bytes) => {
            stream.write_all(&bytes).await?;
            let chunk = vec![b'x'; 64 * 1024];
            loop {
                stream.write_all(&chunk).await?;
            }
        }
        Misdeed::Hang => std::future::pending().await,
        Misdeed::Reset => {
            stream.set_zero_linger()?;
        }
    }
    Ok(())
}
