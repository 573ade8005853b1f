//! What each path does.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;

use crate::body;
use crate::chaos::Plan;
use crate::exchange::Exchange;
use crate::ledger::{Ending, Stats};
use crate::record::Verdict;
use crate::settings::Settings;
use crate::shared::Shared;

/// How long a request is held without an answer; then its connection is closed.
pub const HANG_MAX: Duration = Duration::from_mins(2);

/// What the `Retry-After` of a 429 says, in seconds.
const RETRY_AFTER_S: &str = "1";

const INDEX: &str = "\
mock-receiver: a webhook receiver that behaves badly on purpose

POST /webhook   checks both signatures (401 if one is bad), then hangs, waits, fails or answers 200
GET  /stats     what came and how it was answered, as JSON
GET  /health    {\"ok\":true}
";

/// An answer that is not sent: the connection is closed instead. See [`close_connection`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct CloseConnection;

/// `GET /stats`: the names are those of the variables, in lower case.
#[derive(Serialize)]
struct StatsPage {
    #[serde(flatten)]
    stats: Stats,
    settings: SettingsPage,
}

/// All settings but the secret.
#[derive(Serialize)]
struct SettingsPage {
    failure_rate: f64,
    max_delay_sec: f64,
    hang_rate: f64,
    bind: std::net::IpAddr,
    port: u16,
    seed: Option<u64>,
}

pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(async || INDEX))
        .route("/health", get(async || json(&serde_json::json!({ "ok": true }))))
        .route("/stats", get(stats))
        .route("/webhook", post(webhook))
        .fallback(async |method, uri| unknown(StatusCode::NOT_FOUND, &method, &uri))
        .method_not_allowed_fallback(async |method, uri| {
            unknown(StatusCode::METHOD_NOT_ALLOWED, &method, &uri)
        })
        .with_state(shared)
}

/// Takes a webhook, and behaves as the chaos says if it is well signed.
async fn webhook(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let mut exchange = Exchange::begin(Arc::clone(&shared), &parts);
    let limits = &shared.limits;
    let body = match body::read(body, limits.body_bytes, limits.body_read).await {
        Ok(body) => body,
        Err(error) => {
            exchange.end(Ending::Refused(error.status()));
            return text(error.status(), &error.to_string());
        }
    };
    let verdict = match shared.verifier.verify(&parts.headers, &body, now_unix_s()) {
        Ok(()) => Verdict::Good,
        Err(error) => Verdict::Bad(error),
    };
    let Some((webhook_id, attempt)) = exchange.body_arrived(body, verdict) else {
        exchange.end(Ending::BadlySigned);
        return text(StatusCode::UNAUTHORIZED, &format!("signature {verdict}"));
    };
    match shared.chaos.plan(&webhook_id, attempt) {
        Plan::Hang => {
            exchange.hold();
            tokio::time::sleep(limits.hang).await;
            close_connection()
        }
        Plan::Answer { delay, status } => {
            // Tokio's shortest sleep is a millisecond, even of no time at all.
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            if status.is_success() {
                exchange.end(Ending::Delivered { webhook_id });
                return text(status, "delivered");
            }
            exchange.end(Ending::FailedOnPurpose(status));
            fail(status)
        }
    }
}

async fn stats(State(shared): State<Arc<Shared>>) -> Response {
    let Settings { failure_rate, delay_max, hang_rate, bind, port, seed, secret: _ } =
        shared.settings;
    let max_delay_sec = delay_max.as_secs_f64();
    let settings = SettingsPage { failure_rate, max_delay_sec, hang_rate, bind, port, seed };
    json(&StatsPage { stats: shared.read(crate::ledger::Ledger::stats), settings })
}

/// Closes the connection without an answer.
pub(crate) fn close_connection() -> Response {
    let mut response = Response::default();
    response.extensions_mut().insert(CloseConnection);
    response
}

fn fail(status: StatusCode) -> Response {
    let mut response = text(status, "failed on purpose");
    if status == StatusCode::TOO_MANY_REQUESTS {
        let value = header::HeaderValue::from_static(RETRY_AFTER_S);
        response.headers_mut().insert(header::RETRY_AFTER, value);
    }
    response
}

/// Somebody has probably mistyped a target, so this is logged like a webhook.
fn unknown(status: StatusCode, method: &Method, uri: &Uri) -> Response {
    tracing::info!(%method, path = %uri, answer = status.as_u16(), "request");
    text(status, "GET / says what there is")
}

fn text(status: StatusCode, line: &str) -> Response {
    (status, format!("{line}\n")).into_response()
}

fn json(value: &impl Serialize) -> Response {
    let text = serde_json::to_string(value).expect("numbers and texts are JSON");
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
