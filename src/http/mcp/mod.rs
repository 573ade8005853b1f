//! `POST /mcp`: the API for agents, as tools of the Model Context Protocol over Streamable HTTP.
//!
//! A tool is a name for an operation of the API: its schemas are made of the operation's declaration,
//! and a call is a request to the same routes in this process, with the caller's own key. So keys,
//! roles, tenants, checks and problems are those of the API, and nothing is decided twice.
//!
//! There are no sessions: each request stands for itself, and any replica answers it. That is how the
//! protocol works since 2026-07-28, and older clients do without as well. So there is nothing to bound
//! and to time out but requests, as everywhere.

mod advice;
mod arguments;
mod declared;
mod server;
mod tool;

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
    routing::{MethodRouter, post},
};
use http_body_util::Full;
use rmcp::transport::streamable_http_server::{
    StreamableHttpServerConfig, StreamableHttpService, session::never::NeverSessionManager,
};
use serde_json::json;

use self::{server::Server, tool::Tool};
use super::{ApiState, access, body, openapi::Operation, problem::Problem, query::KnownQuery};

/// Where it is.
pub const PATH: &str = "/mcp";

type Service = StreamableHttpService<Server, NeverSessionManager>;

/// The route. `api` are the routes that tools call, with all that stands before them.
pub fn route(operations: &[Operation], api: &Router) -> MethodRouter<ApiState> {
    let tools: Arc<[Tool]> = declared::tools(operations).into();
    let server = Server::new(tools, api.clone());
    // The gate looks at `Host`, and `body` bounds what is read: both for this route as for others.
    let config = StreamableHttpServerConfig::default()
        .with_legacy_session_mode(false)
        .with_json_response(true)
        .disable_allowed_hosts();
    let sessions = Arc::new(NeverSessionManager::default());
    let service = Service::new(move || Ok(server.clone()), sessions, config);
    post(async move |State(state): State<ApiState>, request: Request| {
        answer(service, &state, request).await.unwrap_or_else(refused)
    })
}

/// Code of JSON-RPC for a request that is refused before its message is read.
const REFUSED: i32 = -32_000;

/// The answer to a request that is refused before its message is read: with the problem's status, and as
/// an error of JSON-RPC. Clients show its message, where of other bodies they show the status at most.
pub fn refused(problem: impl Into<Problem>) -> Response {
    let problem = problem.into();
    let message = format!("{}: {}", problem.title(), problem.error());
    let mut response = problem.respond(json!({
        "jsonrpc": "2.0",
        "id": null,
        "error": {"code": REFUSED, "message": message, "data": problem},
    }));
    let media_type = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, media_type);
    response
}

async fn answer(service: Service, state: &ApiState, request: Request) -> Result<Response, Problem> {
    access::is_no_web_page(&state.hosts, request.headers())?;
    KnownQuery::none().check(request.uri())?;
    let (parts, body) = request.into_parts();
    let whole = Request::from_parts(parts.clone(), body);
    let body = body::read_json(whole, state.body_limit, None).await?;
    let request = Request::from_parts(parts, Full::new(body));
    Ok(service.handle(request).await.map(Body::new).into_response())
}
