//! The HTTP interface: routes, and what every request passes on its way to one.

mod access;
mod api_keys;
mod applications;
mod batch;
mod body;
mod caller;
mod catalogue;
mod cms_changes;
mod deliveries;
mod diagnosis;
mod dispatch;
mod dispatch_request;
mod erasures;
mod event_types;
mod events;
mod explain;
mod extract;
mod health;
mod hosts;
mod ingest;
mod json;
mod key_lookups;
mod mcp;
mod names;
mod openapi;
mod problem;
mod query;
mod replays;
mod room;
mod routes;
pub mod server;
mod statistics;
mod submission;
mod subscriptions;
mod upstream;

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Uri, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use tower::util::MapRequest;

use self::caller::Caller;
use crate::{
    clock::Clock,
    domain::{ApiKey, NamedKeys, pacing::Breaker, sealing::SealingKeys},
    ingest::{Catalogue, Handover, Ingest},
    store::Store,
};

pub use access::{Access, AdminKey, HostNames};
pub use body::{BatchRoom, Limit};
pub use caller::Known;
pub use cms_changes::{CmsChange, CmsLink, ToSee};
pub use dispatch::{DispatchBounds, DispatchesUnderWay};
pub use ingest::UnknownLookups;
pub use problem::ApiError;
pub use room::Bound;
pub use server::ClientBounds;
pub use submission::Targets;
pub use subscriptions::{
    Bounds as SubscriptionBounds,
    managed::{DocumentChecks, DocumentFault, Made, Remade},
};

/// The header that names a request in logs and support cases.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// How many bytes of a caller's own request id are taken over.
const REQUEST_ID_BYTES_MAX: usize = 128;
/// Value of `Cache-Control` where an answer has none.
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// What the handlers use.
#[derive(Clone)]
pub struct ApiState(Arc<Api>);

/// See [`ApiState`].
pub struct Api {
    /// The database, for reading.
    pub store: Store,
    /// The same for `/readyz` alone.
    pub probe_store: Store,
    /// The way in.
    pub ingest: Ingest,
    /// For who waits for results, for what is due now, and for metrics.
    pub handover: Arc<Handover>,
    /// Who may call.
    pub access: Access,
    /// The names that requests may address the service by.
    pub hosts: HostNames,
    /// Who called lately, and what they named.
    pub known: Known,
    /// Look-ups for callers without a key.
    pub unknown_lookups: UnknownLookups,
    /// What was published lately, and what its types ask for.
    pub catalogue: Catalogue,
    /// What routing and sending know of applications: the hosts that these may call.
    pub routes: Arc<crate::ingest::Routes>,
    /// For ids.
    pub clock: Clock,
    /// Seals the secrets that are made here.
    pub sealing: SealingKeys,
    /// What the settings of a subscription are checked against.
    pub subscription_bounds: SubscriptionBounds,
    /// What an event's target may be.
    pub targets: Targets,
    /// What the answer of a dispatch waits for.
    pub dispatch: DispatchBounds,
    /// Those that are on their way into the database.
    pub dispatches: DispatchesUnderWay,
    /// The keys that a dispatch can name.
    pub signing_keys: NamedKeys,
    /// The CMS that keeps subscriptions, if there is one.
    pub cms: Option<CmsLink>,
    /// How many bytes the body of a request may have, and an event of a batch.
    pub body_limit: Limit,
    /// How many bytes the body of a batch may have.
    pub batch_limit: Limit,
    /// What the bodies of all batches may hold together.
    pub batch_room: BatchRoom,
    /// When the breaker of a lane opens.
    pub breaker: Breaker,
    /// For how many days payloads are kept.
    pub payload_days: u64,
    /// Whether events are taken and shown here, or this process only sends.
    pub accepts_events: bool,
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

/// Probes come without keys.
const PROBES: [&str; 3] = ["/health", "/livez", "/readyz"];
/// What is answered also where everything else is refused for want of room: how the process is.
const PROCESS_PATHS: [&str; 4] = ["/health", "/livez", "/readyz", "/metrics"];
/// Where MCP is.
const MCP_PATH: &str = mcp::PATH;

/// All routes, behind [`without_trailing_slash`]: an axum layer would come after the routing.
pub type Routes = MapRequest<Router, fn(Request) -> Request>;

/// All routes. One layer is around them all: see [`gate`].
pub fn router(state: ApiState) -> Routes {
    let mut operations = routes::of_the_process();
    let mut routes = Router::new();
    if state.accepts_events {
        operations.extend(routes::of_the_api());
        routes = openapi::routes(&operations);
    }
    for operation in &operations {
        routes = routes.route(operation.path(), operation.route());
    }
    if state.accepts_events {
        let api = behind_the_gate(routes.clone(), state.clone());
        routes = routes.route(mcp::PATH, mcp::route(&operations, &api));
    }
    MapRequest::new(behind_the_gate(routes, state), without_trailing_slash)
}

fn behind_the_gate(routes: Router<ApiState>, state: ApiState) -> Router {
    routes
        .fallback(|| async { ApiError::NoRoute })
        .method_not_allowed_fallback(|| async { ApiError::MethodNotAllowed })
        .layer(middleware::from_fn_with_state(state.clone(), gate))
        .with_state(state)
}

/// Makes `/events/` mean `/events`, once and for all who look at the path: the access check sees
/// what the router sees. Of several slashes only one goes.
fn without_trailing_slash(mut request: Request) -> Request {
    let uri = request.uri();
    let Some(path) = uri.path().strip_suffix('/').filter(|path| !path.is_empty()) else {
        return request;
    };
    let path_and_query = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = path_and_query.parse().ok();
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
    request
}

/// Checks who calls, and that no delivery goes in circles, before anybody learns from a 404 which
/// routes there are, and gives every answer an `X-Request-Id`: the caller's, if it sent a sound one,
/// else a new one.
async fn gate(State(state): State<ApiState>, mut request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let path = request.uri().path();
    let (is_probe, is_public) = (PROBES.contains(&path), openapi::is_public(path));
    let (is_mcp, is_signed) = (path == MCP_PATH, ingest::may_be_signed(&request));
    if !PROCESS_PATHS.contains(&path) {
        state.handover.idle().wake();
    }
    let given = access::given_key(request.headers()).map(str::to_owned);
    let caller = match access::is_welcome(&state.access, &state.hosts, &request, is_public) {
        _ if is_probe => Ok(None),
        Ok(()) if is_public => Ok(None),
        Ok(()) => match access::admit(&state, given.as_deref()).await {
            // The handler asks for a signature instead. Senders and gateways may add credentials of
            // their own, which are none of ours.
            Err(ApiError::Unauthorized)
                if is_signed && !given.as_deref().is_some_and(ApiKey::is_form) =>
            {
                Ok(None)
            }
            admitted => admitted.map(Some),
        },
        Err(error) => Err(error),
    };
    let mut response = match caller {
        Ok(caller) => {
            if let Some(principal) = caller {
                request.extensions_mut().insert(Caller(principal));
            }
            match upstream::counted(request.headers()) {
                Ok(_) => next.run(request).await,
                Err(looped) => looped.into_response(),
            }
        }
        Err(error) if is_mcp => mcp::refused(error),
        Err(error) => error.into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id);
    // Secrets, payloads and figures are for the caller alone; what may be kept says so itself.
    headers.entry(header::CACHE_CONTROL).or_insert(NO_STORE);
    response
}

/// The caller's own id of a request, if it sent a sound one, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let given = headers.get(&REQUEST_ID).filter(|value| {
        (1..=REQUEST_ID_BYTES_MAX).contains(&value.len()) && value.to_str().is_ok()
    });
    given.cloned().unwrap_or_else(|| {
        let id = format!("req_{:032x}", rand::random::<u128>());
        HeaderValue::try_from(id).expect("hexadecimal digits are a header value")
    })
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[test]
    fn one_trailing_slash_of_the_path_goes() {
        #[track_caller]
        fn check(given: &str, expected: &str) {
            let request = Request::builder().uri(given).body(Body::empty()).unwrap();
            assert_eq!(without_trailing_slash(request).uri().to_string(), expected);
        }
        check("/events/", "/events");
        check("/events/?limit=1&cursor=/", "/events?limit=1&cursor=/");
        check("http://localhost:8000/events/", "http://localhost:8000/events");
        check("/events/%2F", "/events/%2F");
        check("/events?a=/", "/events?a=/");
        check("/health//", "/health/");
        check("/", "/");
        check("//", "/");
        check("*", "*");
    }
}
