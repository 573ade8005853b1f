//! The HTTP interface: routes, and what every request passes on its way to one.

mod access;
mod events;
mod extract;
mod health;
mod problem;
pub mod server;

use std::sync::Arc;

use axum::{
    Router,
    http::{HeaderName, HeaderValue},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use metrics_exporter_prometheus::PrometheusHandle;

use crate::{
    domain::{TargetUrl, address::AddressPolicy},
    ingest::{Handover, Ingest},
    store::Store,
};

pub use access::{Access, AdminKey};
pub use problem::ApiError;

/// The header that names a request in logs and support cases.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// How many bytes of a caller's own request id are taken over.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// What the handlers use.
#[derive(Clone)]
pub struct ApiState(Arc<Api>);

/// See [`ApiState`].
pub struct Api {
    /// The database, for reading.
    pub store: Store,
    /// The way in.
    pub ingest: Ingest,
    /// Read for metrics only.
    pub handover: Arc<Handover>,
    /// Who may call.
    pub access: Access,
    /// The target of an event that names none.
    pub target_url: Option<TargetUrl>,
    /// Which addresses may be called: what is known to be refused is refused at once.
    pub addresses: AddressPolicy,
    /// How many bytes a request body may have.
    pub body_bytes_max: usize,
    /// Whether events are taken and shown here, or this process only sends.
    pub accepts_events: bool,
    /// Renders the metrics.
    pub metrics: Option<PrometheusHandle>,
}

impl ApiState {
    /// Wraps what the handlers use.
    pub fn new(api: Api) -> Self {
        Self(Arc::new(api))
    }
}

impl std::ops::Deref for ApiState {
    type Target = Api;

    fn deref(&self) -> &Api {
        &self.0
    }
}

/// All routes. The layers, outermost first: the request id, so that every answer has one; then the
/// access check, so that nobody learns from a 404 which routes there are.
pub fn router(state: ApiState) -> Router {
    let events = Router::new()
        .route("/events", get(events::list).post(events::create))
        .route("/events/", get(events::list).post(events::create))
        .route("/events/{id}", get(events::show))
        .route("/events/{id}/", get(events::show));
    let routes = if state.accepts_events { events } else { Router::new() };
    routes
        .route("/metrics", get(health::metrics))
        .fallback(|| async { ApiError::NoRoute })
        .method_not_allowed_fallback(|| async { ApiError::MethodNotAllowed })
        .layer(middleware::from_fn_with_state(state.clone(), access::check))
        // Probes come without keys.
        .route("/health", get(health::health))
        .route("/livez", get(health::health))
        .route("/readyz", get(health::ready))
        .layer(middleware::from_fn(request_id))
        .with_state(state)
}

/// Gives every answer an `X-Request-Id`: the caller's, if it sent a sound one, else a new one.
async fn request_id(request: axum::extract::Request, next: Next) -> Response {
    let given = request.headers().get(&REQUEST_ID).filter(|value| {
        (1..=REQUEST_ID_BYTES_MAX).contains(&value.len()) && value.to_str().is_ok()
    });
    let id = given.cloned().unwrap_or_else(|| {
        let id = format!("req_{:032x}", rand::random::<u128>());
        HeaderValue::try_from(id).expect("hexadecimal digits are a header value")
    });
    let mut response = next.run(request).await.into_response();
    response.headers_mut().insert(REQUEST_ID, id);
    response
}
