//! Every way a request can fail, and the one table that says how it looks (RFC 9457).

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::{ingest::Rejected, store::StoreError};

/// How long a caller should wait before it tries again, in seconds.
const RETRY_AFTER_S: u32 = 1;

/// Why a request was not served. `detail` never carries a database's message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// No such route.
    #[error("there is nothing at this path")]
    NoRoute,
    /// The route exists, with other methods.
    #[error("this path does not take this method")]
    MethodNotAllowed,
    /// No key, or a wrong one.
    #[error("send the key as `Authorization: Bearer <key>` or `X-API-Key: <key>`")]
    Unauthorized,
    /// A web page, or a name that points here, tries to drive an open service.
    #[error("{0}")]
    Forbidden(&'static str),
    /// The body is not JSON by its own declaration.
    #[error("send the body as `Content-Type: application/json`")]
    NotJson,
    /// The body is not JSON.
    #[error("the body is not valid JSON: {0}")]
    Malformed(String),
    /// The body is larger than the limit.
    #[error("the body is larger than {bytes_max} bytes (REQUEST_BODY_MAX)")]
    TooLarge {
        /// The limit.
        bytes_max: usize,
    },
    /// The body did not come in time.
    #[error("the body did not arrive in time")]
    TooSlow,
    /// A field, parameter or header is not what it must be.
    #[error("{0}")]
    Invalid(String),
    /// The target must not be called.
    #[error("`target_url`: {0}")]
    TargetRefused(String),
    /// No target was named, and there is no default.
    #[error("name a `target_url`, or a `type` that subscriptions ask for, or set TARGET_URL")]
    NoTarget,
    /// No such event, or not this caller's.
    #[error("there is no such event")]
    EventNotFound,
    /// No such application, or not this caller's.
    #[error("there is no such application")]
    ApplicationNotFound,
    /// The idempotency key was used before, for something else.
    #[error("this idempotency key was used for another request in the last 24 hours")]
    KeyReused,
    /// Too much is waiting.
    #[error("too many requests are waiting; try again shortly")]
    Busy,
    /// Postgres is away.
    #[error("the database cannot be reached; nothing is known to be stored")]
    Unavailable,
    /// A fault of ours.
    #[error("the service failed; its log says why")]
    Internal,
}

impl ApiError {
    /// Status, type and title. A new variant does not compile until it has a row.
    fn row(&self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::NoRoute => (StatusCode::NOT_FOUND, "/problems/no-route", "No such route"),
            Self::MethodNotAllowed => (
                StatusCode::METHOD_NOT_ALLOWED,
                "/problems/method-not-allowed",
                "Method not allowed",
            ),
            Self::Unauthorized => {
                (StatusCode::UNAUTHORIZED, "/problems/unauthorized", "Key missing or wrong")
            }
            Self::Forbidden(_) => (StatusCode::FORBIDDEN, "/problems/forbidden", "Forbidden"),
            Self::NotJson => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "/problems/unsupported-media-type",
                "Not declared as JSON",
            ),
            Self::Malformed(_) => {
                (StatusCode::BAD_REQUEST, "/problems/malformed-json", "Malformed JSON")
            }
            Self::TooLarge { .. } => {
                (StatusCode::PAYLOAD_TOO_LARGE, "/problems/body-too-large", "Body too large")
            }
            Self::TooSlow => {
                (StatusCode::REQUEST_TIMEOUT, "/problems/body-too-slow", "Body too slow")
            }
            Self::Invalid(_) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "/problems/invalid-request", "Invalid request")
            }
            Self::TargetRefused(_) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "/problems/target-refused", "Target refused")
            }
            Self::NoTarget => {
                (StatusCode::UNPROCESSABLE_ENTITY, "/problems/no-target", "No target")
            }
            Self::EventNotFound => {
                (StatusCode::NOT_FOUND, "/problems/event-not-found", "Event not found")
            }
            Self::ApplicationNotFound => {
                (StatusCode::NOT_FOUND, "/problems/application-not-found", "Application not found")
            }
            Self::KeyReused => {
                (StatusCode::CONFLICT, "/problems/idempotency-key-reused", "Idempotency key reused")
            }
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, "/problems/busy", "Too busy"),
            Self::Unavailable => {
                (StatusCode::SERVICE_UNAVAILABLE, "/problems/unavailable", "Database unavailable")
            }
            Self::Internal => {
                (StatusCode::INTERNAL_SERVER_ERROR, "/problems/internal", "Internal error")
            }
        }
    }
}

#[derive(Serialize)]
struct Problem {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, r#type, title) = self.row();
        let problem = Problem { r#type, title, status: status.as_u16(), detail: self.to_string() };
        let mut response = (status, Json(problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        if error.is_outage() {
            tracing::warn!(%error, "a request could not be served");
            Self::Unavailable
        } else {
            tracing::error!(%error, "a request failed");
            Self::Internal
        }
    }
}

impl From<Rejected> for ApiError {
    fn from(rejected: Rejected) -> Self {
        match rejected {
            Rejected::Busy => Self::Busy,
            Rejected::Unavailable => Self::Unavailable,
            Rejected::KeyReused => Self::KeyReused,
            Rejected::NoApplication => Self::ApplicationNotFound,
            Rejected::Refused => Self::Internal,
        }
    }
}
