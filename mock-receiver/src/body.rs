//! Reading a request's body within bounds.

use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::BodyExt as _;

use crate::routes::text;

/// The largest body that is taken; a larger one is answered 413.
pub const BODY_BYTES_MAX: usize = 2 * 1024 * 1024;

/// How long a client may take to send its body.
pub(crate) const BODY_READ_MAX: Duration = Duration::from_secs(30);

/// How much of a body that is too large is read and thrown away, as a multiple of the limit.
///
/// A connection closed over unread bytes is reset, and the client may then never read the 413.
const DRAIN_FACTOR: usize = 8;

/// Why a body was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the body is too large")]
    TooLarge,
    #[error("the body did not arrive in time")]
    TooSlow,
    #[error("the body was cut off or malformed")]
    Broken,
}

impl BodyError {
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::Broken => StatusCode::BAD_REQUEST,
        }
    }
}

impl IntoResponse for BodyError {
    fn into_response(self) -> Response {
        text(self.status(), &self.to_string())
    }
}

/// Reads all of the body.
pub(crate) async fn read(
    body: Body,
    bytes_max: usize,
    read_max: Duration,
) -> Result<Bytes, BodyError> {
    tokio::time::timeout(read_max, read_to_end(body, bytes_max))
        .await
        .unwrap_or(Err(BodyError::TooSlow))
}

async fn read_to_end(mut body: Body, bytes_max: usize) -> Result<Bytes, BodyError> {
    let mut bytes = Vec::new();
    let mut bytes_drained = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| BodyError::Broken)?;
        let Some(data) = frame.data_ref() else { continue }; // trailers
        if data.len() <= bytes_max - bytes.len() {
            bytes.extend_from_slice(data);
            continue;
        }
        bytes_drained += data.len();
        if bytes_max * DRAIN_FACTOR < bytes_drained {
            break;
        }
    }
    // A copy of exactly its own length, which is what the record keeps.
    if bytes_drained == 0 {
        Ok(Bytes::from(bytes.into_boxed_slice()))
    } else {
        Err(BodyError::TooLarge)
    }
}
