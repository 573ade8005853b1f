//! One connection to a receiver, and one exchange at a time over it.
//!
//! A connection is driven by the task that uses it. The task that waits for the answer polls the
//! connection itself, so there is no task a connection, and no message between the two: that was a
//! fifth of the CPU of a delivery. A connection that rests is polled by nobody; what happened to it
//! meanwhile is noticed before it is used again.

use std::{
    error::Error,
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response,
    body::{Body, Incoming},
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use super::metered::{Metered, Room};
use crate::domain::ErrorClass;

/// How many bytes the head of an answer may have.
const RESPONSE_HEAD_BYTES_MAX: usize = 64 * 1024;

/// How many bytes may be read of an answer before its head is whole: that, and those of interim
/// answers (1xx) before it, of which a receiver could send as many as it likes.
const RESPONSE_HEADS_BYTES_MAX: usize = 4 * RESPONSE_HEAD_BYTES_MAX;

/// How many bytes may come for each byte of a body: a chunk of one byte has six. Beyond it, and what
/// a head may have, a receiver would send sizes and extensions of chunks without end.
const BYTES_AROUND_A_BYTE: usize = 16;

/// What an exchange failed with, and the class that it has unless its causes say otherwise.
#[derive(Debug)]
pub(super) struct ConnectionError {
    pub otherwise: ErrorClass,
    pub cause: Box<dyn Error + Send + Sync>,
}

impl ConnectionError {
    /// A failure of this class, unless its causes say otherwise.
    pub fn new(otherwise: ErrorClass, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { otherwise, cause: cause.into() }
    }

    /// A failure of the TLS handshake.
    pub fn tls(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(ErrorClass::Tls, cause)
    }

    /// A host that no name server can know: stored by a version that did not check it.
    pub fn host(host: &str) -> Self {
        Self::new(ErrorClass::Dns, format!("`{host}` is not a host name; correct the URL"))
    }

    /// A fault of ours.
    pub fn internal(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(ErrorClass::Internal, cause)
    }
}

type Transport = TokioIo<Metered<Either<TcpStream, TlsStream<TcpStream>>>>;
type Driver = http1::Connection<Transport, Full<Bytes>>;

/// An open connection. Dropping it closes it.
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// What reads and writes; `None` once the connection has ended.
    driver: Option<Pin<Box<Driver>>>,
    /// How much it may read until the head of the answer is there.
    room: Room,
}

/// Why no answer came.
pub(super) enum SendError {
    /// The connection was closed before the request went out: another one may take it.
    Unsent(Box<Request<Full<Bytes>>>, ConnectionError),
    /// The receiver may have seen the request. Not a byte of an answer came.
    Unanswered(ConnectionError),
    /// The receiver answered something that is no answer.
    Failed(ConnectionError),
}

impl Connection {
    /// Speaks HTTP/1.1 over a stream that has just been opened.
    pub async fn over(
        stream: Either<TcpStream, TlsStream<TcpStream>>,
    ) -> Result<Self, ConnectionError> {
        let room = Room::for_head(RESPONSE_HEADS_BYTES_MAX);
        // A hundred header lines at most: hyper's own bound, for which it needs no allocation.
        // A line that is odd is unfolded, trimmed or ignored, as curl and browsers do. Lengths stay
        // strict: hyper reads them from what is left, and refuses those that contradict each other.
        let handshake = http1::Builder::new()
            .max_buf_size(RESPONSE_HEAD_BYTES_MAX)
            .allow_spaces_after_header_name_in_responses(true)
            .allow_obsolete_multiline_headers_in_responses(true)
            .ignore_invalid_headers_in_responses(true)
            .title_case_headers(true)
            .handshake(TokioIo::new(Metered { stream, room: room.clone() }))
            .await;
        let (sender, driver) = handshake.map_err(protocol)?;
        Ok(Self { sender, driver: Some(Box::pin(driver)), room })
    }

    /// Whether it can take a request, after a look at what happened since it was last used.
    pub async fn is_ready(&mut self) -> bool {
        poll_fn(|cx| {
            drive(&mut self.driver, cx);
            Poll::Ready(self.driver.is_some() && self.sender.is_ready())
        })
        .await
    }

    /// Sends a request and waits for the head of its answer.
    pub async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, SendError> {
        self.room.allow_head(RESPONSE_HEADS_BYTES_MAX);
        let mut answer = pin!(self.sender.try_send_request(request));
        let driver = &mut self.driver;
        let answered = poll_fn(|cx| {
            // First it takes the request, then the connection writes it.
            if let Poll::Ready(answered) = answer.as_mut().poll(cx) {
                return Poll::Ready(answered);
            }
            drive(driver, cx);
            answer.as_mut().poll(cx)
        });
        answered.await.map_err(|mut refused| match refused.take_message() {
            Some(request) => SendError::Unsent(Box::new(request), protocol(refused.into_error())),
            None if self.room.left() == RESPONSE_HEADS_BYTES_MAX => {
                SendError::Unanswered(protocol(refused.into_error()))
            }
            None => SendError::Failed(protocol(refused.into_error())),
        })
    }

    /// Makes room for a body of which so many bytes are wanted.
    pub fn expect_body(&self, wanted: usize) {
        let around = wanted.saturating_mul(BYTES_AROUND_A_BYTE);
        self.room.allow_body(RESPONSE_HEADS_BYTES_MAX.saturating_add(around));
    }

    /// The next portion of an answer's body; `None` at its end.
    pub async fn next_chunk(
        &mut self,
        body: &mut Incoming,
    ) -> Result<Option<Bytes>, ConnectionError> {
        loop {
            let frame = poll_fn(|cx| {
                if let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) {
                    return Poll::Ready(frame);
                }
                drive(&mut self.driver, cx);
                Pin::new(&mut *body).poll_frame(cx)
            });
            match frame.await.transpose().map_err(protocol)? {
                None => return Ok(None),
                Some(frame) => {
                    // What is not data are trailers, and they say nothing to us.
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}

/// Lets a connection read and write as far as it can. What it fails with is told to whoever waits
/// for its answer.
fn drive(driver: &mut Option<Pin<Box<Driver>>>, cx: &mut Context<'_>) {
    if let Some(running) = driver
        && running.as_mut().poll(cx).is_ready()
    {
        *driver = None;
    }
}

fn protocol(error: hyper::Error) -> ConnectionError {
    ConnectionError::new(ErrorClass::Protocol, error)
}
