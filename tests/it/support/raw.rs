//! A receiver that speaks bytes, for what no HTTP server would do.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
};
use tokio_util::task::AbortOnDropHandle;

/// What is done with a connection.
#[derive(Debug, Clone)]
pub enum Misdeed {
    /// Once the request's head has come: these bytes, then the end.
    Write(Vec<u8>),
    /// The same, then one byte a while, for ever.
    Drip(Vec<u8>),
    /// The same, then more as fast as they are taken, for ever.
    Flood(Vec<u8>),
    /// Nothing, for ever.
    Hang,
    /// A reset.
    Reset,
    /// Whatever else.
    Script(Reads, Vec<u8>, Then),
}

/// What is read before anything is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// Nothing; and nothing afterwards either.
    Nothing,
    /// Some bytes.
    Something,
    /// The head of the request.
    Head,
}

/// What is done when all is written.
#[derive(Debug, Clone)]
pub enum Then {
    /// Our half is closed, and the rest is read.
    HalfClose,
    /// Both halves are closed at once.
    Close,
    /// A reset.
    Reset,
    /// Nothing, for ever.
    Hang,
    /// These bytes again and again, as fast as they are taken.
    Flood(Vec<u8>),
    /// These bytes again and again, one a while.
    Drip(Vec<u8>),
}

impl Misdeed {
    /// What is read, written and done then.
    fn script(self) -> (Reads, Vec<u8>, Then) {
        match self {
            Self::Write(bytes) => (Reads::Head, bytes, Then::HalfClose),
            Self::Drip(bytes) => (Reads::Head, bytes, Then::Drip(b"x".to_vec())),
            Self::Flood(bytes) => (Reads::Head, bytes, Then::Flood(b"x".to_vec())),
            Self::Hang => (Reads::Head, Vec::new(), Then::Hang),
            Self::Reset => (Reads::Head, Vec::new(), Then::Reset),
            Self::Script(reads, bytes, then) => (reads, bytes, then),
        }
    }
}

/// Listens until it is dropped.
pub struct RawReceiver {
    address: SocketAddr,
    seen: Arc<Seen>,
    _server: AbortOnDropHandle<()>,
}

/// What a receiver has seen.
#[derive(Debug, Default)]
pub struct Seen {
    connections: AtomicUsize,
    written: AtomicUsize,
}

impl RawReceiver {
    pub async fn start(misdeed: Misdeed) -> Self {
        Self::at(([127, 0, 0, 1], 0).into(), misdeed).await.unwrap()
    }

    /// At an address that may be taken.
    pub async fn at(address: SocketAddr, misdeed: Misdeed) -> io::Result<Self> {
        let script = misdeed.script();
        Self::serving(address, move |stream, seen| follow(stream, script.clone(), seen)).await
    }

    /// Does with each connection what it is told; it is told how many came before.
    pub async fn with<F: Future<Output = io::Result<()>> + Send + 'static>(
        serve: impl Fn(TcpStream, usize) -> F + Send + Sync + 'static,
    ) -> Self {
        let serve = move |stream, seen: Arc<Seen>| serve(stream, seen.before());
        Self::serving(([127, 0, 0, 1], 0).into(), serve).await.unwrap()
    }

    async fn serving<F: Future<Output = io::Result<()>> + Send + 'static>(
        address: SocketAddr,
        serve: impl Fn(TcpStream, Arc<Seen>) -> F + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let seen = Arc::new(Seen::default());
        let noted = seen.clone();
        #[expect(clippy::disallowed_methods, reason = "aborted when the receiver is dropped")]
        let server = tokio::spawn(async move {
            let mut served = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                noted.connections.fetch_add(1, Ordering::Relaxed);
                let served_one = serve(stream, noted.clone());
                served.spawn(async move {
                    let _ = served_one.await;
                });
            }
        });
        Ok(Self { address, seen, _server: AbortOnDropHandle::new(server) })
    }

    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::Relaxed)
    }

    /// How many bytes were taken from it, over all connections.
    pub fn written(&self) -> usize {
        self.seen.written.load(Ordering::Relaxed)
    }
}

impl Seen {
    /// How many connections there were before the latest.
    fn before(&self) -> usize {
        self.connections.load(Ordering::Relaxed) - 1
    }
}

/// Reads the head of a request; `false` if the connection ended before.
pub async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<bool> {
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn follow(
    mut stream: TcpStream,
    (reads, bytes, then): (Reads, Vec<u8>, Then),
    seen: Arc<Seen>,
) -> io::Result<()> {
    match reads {
        Reads::Nothing => {}
        Reads::Something => {
            stream.read_u8().await?;
        }
        Reads::Head => {
            if !read_head(&mut stream).await? {
                return Ok(());
            }
        }
    }
    stream.write_all(&bytes).await?;
    if matches!(then, Then::Reset) {
        return stream.set_zero_linger();
    }
    finish(&mut stream, then, &seen, reads).await
}

/// The rest of a script, over whatever the connection is wrapped in.
pub(super) async fn finish(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    then: Then,
    seen: &Seen,
    reads: Reads,
) -> io::Result<()> {
    match then {
        Then::HalfClose => {
            stream.shutdown().await?;
            // An end, and not a reset, which it would be while some of the request is not read.
            while reads != Reads::Nothing && stream.read_buf(&mut Vec::new()).await? > 0 {}
            if reads == Reads::Nothing { std::future::pending().await } else { Ok(()) }
        }
        Then::Close | Then::Reset => Ok(()),
        Then::Hang => std::future::pending().await,
        Then::Flood(unit) => {
            let chunk = unit.repeat((64 * 1024_usize).div_ceil(unit.len()));
            loop {
                // From the start of a unit, however much of it was taken.
                let mut rest = &chunk[..];
                while !rest.is_empty() {
                    let taken = stream.write(rest).await?;
                    seen.written.fetch_add(taken, Ordering::Relaxed);
                    rest = &rest[taken..];
                }
            }
        }
        Then::Drip(unit) => loop {
            for byte in &unit {
                tokio::time::sleep(Duration::from_millis(20)).await; // the misdeed itself
                stream.write_all(&[*byte]).await?;
            }
        },
    }
}

/// An address that drops connection requests until this is dropped, as a firewall does: nothing
/// accepts there, and the queue of those that wait is full.
pub struct Unresponsive {
    _listener: TcpListener,
    _waiting: Vec<TcpStream>,
}

impl Unresponsive {
    /// At an address that may be taken.
    pub async fn at(address: SocketAddr) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(address)?;
        let listener = socket.listen(1)?;
        let mut waiting = Vec::new();
        // On loopback a connection is there at once, or its request was dropped.
        let dropped = Duration::from_millis(300);
        while let Ok(connected) = tokio::time::timeout(dropped, TcpStream::connect(address)).await {
            waiting.push(connected?);
            assert!(waiting.len() < 16, "connections are accepted without end");
        }
        Ok(Self { _listener: listener, _waiting: waiting })
    }
}
