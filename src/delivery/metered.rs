//! A stream that is read so far and no further.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// More was to be read than there was room for.
#[derive(Debug, Clone, Copy, thiserror::Error)]
pub(super) enum Exhausted {
    /// The head of an answer, with the interim answers before it.
    #[error("the answer's head does not end, or too many interim answers come before it")]
    Head,
    /// A body with what is around it: sizes of chunks, their extensions.
    #[error("far more is sent around the answer's body than is in it")]
    Body,
}

/// How many bytes may still be read, and of what. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub(super) struct Room(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bytes: AtomicUsize,
    is_for_body: AtomicBool,
}

impl Room {
    /// Room for a head.
    pub fn for_head(bytes: usize) -> Self {
        let (bytes, is_for_body) = (AtomicUsize::new(bytes), AtomicBool::new(false));
        Self(Arc::new(Inner { bytes, is_for_body }))
    }

    /// From now on a head is read, of so many bytes at most.
    pub fn allow_head(&self, bytes: usize) {
        self.allow(bytes, false);
    }

    /// From now on a body is read, of so many bytes at most.
    pub fn allow_body(&self, bytes: usize) {
        self.allow(bytes, true);
    }

    fn allow(&self, bytes: usize, is_for_body: bool) {
        self.0.bytes.store(bytes, Ordering::Relaxed);
        self.0.is_for_body.store(is_for_body, Ordering::Relaxed);
    }

    /// Maximum number of bytes that may still be read.
    pub fn left(&self) -> usize {
        self.0.bytes.load(Ordering::Relaxed)
    }

    fn check(&self) -> Result<(), Exhausted> {
        if self.0.bytes.load(Ordering::Relaxed) > 0 {
            return Ok(());
        }
        let is_for_body = self.0.is_for_body.load(Ordering::Relaxed);
        Err(if is_for_body { Exhausted::Body } else { Exhausted::Head })
    }

    /// One task at a time reads and allows, so nothing comes in between.
    fn take(&self, bytes: usize) {
        let room = self.0.bytes.load(Ordering::Relaxed);
        self.0.bytes.store(room.saturating_sub(bytes), Ordering::Relaxed);
    }
}

/// Fails with [`Exhausted`] once the room is used up; what was read till then counts.
#[derive(Debug)]
pub(super) struct Metered<S> {
    pub stream: S,
    pub room: Room,
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.room.check().map_err(io::Error::other)?;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.room.take(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
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

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    /// Reads in pieces until it fails; tells how many bytes there were, and why there are no more.
    async fn read(stream: &mut Metered<tokio::io::Repeat>) -> (usize, Exhausted) {
        let (mut piece, mut count) = ([0; 256], 0);
        loop {
            match stream.read(&mut piece).await {
                Ok(read) => count += read,
                Err(error) => {
                    let inner = error.into_inner().and_then(|inner| inner.downcast().ok());
                    return (count, *inner.expect("its own error"));
                }
            }
        }
    }

    /// Catches: a bound that is not kept to the piece; one of the head that counts for the body.
    #[tokio::test]
    async fn no_more_is_read_than_there_is_room_for_and_the_piece_that_used_it_up() {
        let room = Room::for_head(1_000);
        let mut stream = Metered { stream: tokio::io::repeat(b'x'), room: room.clone() };
        assert!(matches!(read(&mut stream).await, (1_024, Exhausted::Head)));
        room.allow_body(256);
        assert!(matches!(read(&mut stream).await, (256, Exhausted::Body)));
        room.allow_head(1);
        assert!(matches!(read(&mut stream).await, (256, Exhausted::Head)));
    }
}
