//! Answers that no HTTP server would give, played on the bare socket.
//!
//! A handler returns a [`Script`] like any other answer. It travels as an extension of a response
//! that is never written: `receiver` makes the service fail with it ([`TakeOver`]), so hyper stops
//! without a byte, and the connection gives its socket back for the script to play on.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::exchange::Exchange;

/// How long a reset waits for what was written before it. A reset overtakes what is still in the
/// sender's buffer, and some systems throw away what the client has not read yet.
const RESET_PAUSE: Duration = Duration::from_millis(100);

/// What a client gets instead of an answer of HTTP. The connection ends with it.
#[derive(Clone)]
pub(crate) struct Script {
    /// Written at once: nothing, a part of a head, or a head and a part of a body.
    pub(crate) opening: Bytes,
    pub(crate) then: Then,
    /// How long all of it may take. A client that stops reading cannot stretch it.
    pub(crate) time_max: Duration,
    /// Ends when the script does, whether it was played to its end or stopped.
    #[expect(dead_code, reason = "kept for its drop")]
    pub(crate) exchange: Arc<Exchange>,
}

/// What follows the opening of a script.
#[derive(Clone)]
pub(crate) enum Then {
    /// The end of the connection.
    Close,
    /// A reset, which tells the client that all is lost (RST, where a close is FIN).
    Reset,
    /// Nothing more.
    Hold,
    /// These bytes, again and again, after a pause each time.
    Repeat { bytes: Bytes, pause: Duration },
}

/// The error with which a service ends hyper's part, so that the script can be played.
#[derive(thiserror::Error)]
#[error("the rest of the connection follows a script")]
pub(crate) struct TakeOver(pub(crate) Script);

impl IntoResponse for Script {
    fn into_response(self) -> Response {
        let mut response = Response::default();
        response.extensions_mut().insert(self);
        response
    }
}

impl Script {
    /// Plays until its end, until the client hangs up, or until the time is over.
    pub(crate) async fn play(self, mut socket: TcpStream) {
        let (mut reader, mut writer) = socket.split();
        let playing = async {
            tokio::select! {
                hung_up = discard(&mut reader) => hung_up,
                written = self.write(&mut writer) => written,
            }
        };
        if let Ok(Err(error)) = tokio::time::timeout(self.time_max, playing).await {
            tracing::debug!(%error, "a script was cut short");
        }
        if let Then::Reset = self.then
            && let Err(error) = socket.set_zero_linger()
        {
            tracing::warn!(%error, "cannot reset a connection, so it is closed");
        }
    }

    async fn write(&self, socket: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        socket.write_all(&self.opening).await?;
        match &self.then {
            Then::Close => Ok(()),
            Then::Reset if self.opening.is_empty() => Ok(()),
            Then::Reset => {
                tokio::time::sleep(RESET_PAUSE).await;
                Ok(())
            }
            Then::Hold => std::future::pending().await,
            Then::Repeat { bytes, pause } => loop {
                // Tokio's shortest sleep is a millisecond, even of no time at all.
                if !pause.is_zero() {
                    tokio::time::sleep(*pause).await;
                }
                socket.write_all(bytes).await?;
            },
        }
    }
}

impl std::fmt::Debug for TakeOver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TakeOver")
    }
}

/// Reads until the client hangs up. What it still sends, it sends in vain.
async fn discard(socket: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    let mut discarded = [0; 4096];
    while socket.read(&mut discarded).await? != 0 {}
    Ok(())
}
