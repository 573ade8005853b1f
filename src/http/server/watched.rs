//! A connection that is looked at: what it is about, and for how long already.

use std::{
    io,
    pin::Pin,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep, sleep_until},
};

use crate::http::room::Hold;

/// What is read, and dropped, of a client that still sends when we are done with it: one that is cut
/// off meanwhile may never see its answer.
const LINGER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long that may take, and how long the client may send nothing meanwhile.
const LINGER: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(3));

/// What a connection is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing has come of the next request.
    Idle = 0,
    /// Some of its head has come.
    Head = 1,
    /// It is read and served, within bounds of its own.
    Serving = 2,
    /// The client is to take the answer.
    Answering = 3,
}

/// How long each phase may last. Up to twice that may pass until it is noticed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) idle: Duration,
    pub(super) head: Duration,
    pub(super) answer: Duration,
}

/// How far a connection is.
#[derive(Debug)]
pub(super) struct Progress {
    began: Instant,
    /// The phase, and since when, in ms since the connection began.
    phase: AtomicU64,
    /// What the request holds that is being served or answered.
    hold: Mutex<Option<Hold>>,
    /// Nobody is waited for at the end.
    is_hasty: AtomicBool,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            phase: AtomicU64::new(0),
            hold: Mutex::new(None),
            is_hasty: AtomicBool::new(false),
        }
    }

    pub(super) fn enter(&self, phase: Phase) {
        let ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX >> 2);
        self.phase.store(ms << 2 | phase as u64, Ordering::Relaxed);
    }

    /// The phase, and its beginning.
    fn phase(&self) -> (Phase, Instant) {
        let packed = self.phase.load(Ordering::Relaxed);
        let phase = match packed & 3 {
            0 => Phase::Idle,
            1 => Phase::Head,
            2 => Phase::Serving,
            _ => Phase::Answering,
        };
        (phase, self.began + Duration::from_millis(packed >> 2))
    }

    /// Keeps what a request holds until its answer is taken.
    pub(super) fn keep(&self, hold: Hold) {
        self.hold.lock().unwrap_or_else(PoisonError::into_inner).replace(hold);
    }

    fn answered(&self) {
        self.enter(Phase::Idle);
        self.hold.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// The service is ending.
    pub(super) fn hurry(&self) {
        self.is_hasty.store(true, Ordering::Relaxed);
    }

    /// Resolves when a phase has lasted for too long. Looks at the clock now and then instead of being
    /// told, which would cost each request a timer.
    pub(super) async fn too_long(&self, times: Times) -> Phase {
        let interval = times.idle.min(times.head).min(times.answer);
        loop {
            let (phase, since) = self.phase();
            let (now, limit) = (
                Instant::now(),
                match phase {
                    Phase::Serving => None,
                    Phase::Idle => Some(times.idle),
                    Phase::Head => Some(times.head),
                    Phase::Answering => Some(times.answer),
                },
            );
            let over_at = limit.map(|limit| since + limit);
            if over_at.is_some_and(|over_at| over_at <= now) {
                return phase;
            }
            let next = now + interval;
            sleep_until(over_at.map_or(next, |over_at| over_at.min(next))).await;
        }
    }
}

/// The connection itself, which tells its [`Progress`].
#[derive(Debug)]
pub(super) struct Watched<'a> {
    stream: TcpStream,
    progress: &'a Progress,
    end: End,
}

/// How far the end of a connection is.
#[derive(Debug)]
enum End {
    /// The client may still send, and be sent something.
    Open,
    /// The client has ended its half.
    OfClient,
    /// Our half is ended. The client's is read until it ends.
    Lingering { bytes: usize, over: Pin<Box<Sleep>>, silent: Pin<Box<Sleep>> },
}

impl<'a> Watched<'a> {
    pub(super) fn new(stream: TcpStream, progress: &'a Progress) -> Self {
        Self { stream, progress, end: End::Open }
    }
}

impl AsyncRead for Watched<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        if buffer.filled().len() == before {
            self.end = End::OfClient;
        } else if self.progress.phase().0 == Phase::Idle {
            self.progress.enter(Phase::Head);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Called when all that was to be written is taken.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        if self.progress.phase().0 == Phase::Answering {
            self.progress.answered();
        }
        Poll::Ready(Ok(()))
    }

    /// Ends our half, and lets the client end its own: what it has sent and nobody has read would else
    /// reset the connection, and with it the answer that is on its way.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, progress, end } = &mut *self;
        if matches!(end, End::Open) {
            if ready!(Pin::new(&mut *stream).poll_shutdown(cx)).is_err() {
                // The client is gone altogether: that is no fault, and hides none.
                return Poll::Ready(Ok(()));
            }
            let (over, silent) = (Box::pin(sleep(LINGER.0)), Box::pin(sleep(LINGER.1)));
            *end = End::Lingering { bytes: 0, over, silent };
        }
        let End::Lingering { bytes, over, silent } = end else {
            return Pin::new(stream).poll_shutdown(cx);
        };
        let mut dropped = [0; 8 * 1024];
        while *bytes < LINGER_BYTES_MAX && !progress.is_hasty.load(Ordering::Relaxed) {
            let mut buffer = ReadBuf::new(&mut dropped);
            match Pin::new(&mut *stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    *bytes += buffer.filled().len();
                    silent.as_mut().reset(Instant::now() + LINGER.1);
                }
                Poll::Ready(_) => break,
                Poll::Pending => {
                    let is_over = over.as_mut().poll(cx).is_ready();
                    if is_over || silent.as_mut().poll(cx).is_ready() {
                        break;
                    }
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}
