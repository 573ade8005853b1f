//! What each path does.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use serde::Serialize;

use crate::chaos::Plan;
use crate::exchange::Exchange;
use crate::ledger::{Ending, Stats};
use crate::on_request;
use crate::settings::Settings;
use crate::shared::Shared;
use crate::wire::{Script, Then};

/// How long a request to `/webhook` is held without an answer; then its connection is closed.
pub const HANG_MAX: Duration = Duration::from_mins(2);

/// What the `Retry-After` of a 429 says, in seconds.
const RETRY_AFTER_S: &str = "1";

const INDEX: &str = "\
mock-receiver: a webhook receiver that behaves badly on purpose

POST /webhook   checks both signatures (401 if one is bad), then hangs, waits, fails or answers 200
GET  /stats     what came and how it was answered, as JSON
GET  /health    {\"ok\":true}

On request, each of these does always the same. They take any method, signed or not; signatures
are checked and logged all the same. For ever is an hour. With [?status=] the status can be
another one. POST an event to the dispatcher with one of them as its target_url, or try it here:

";

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
        .route("/", get(index))
        .route("/health", get(async || json(&serde_json::json!({ "ok": true }))))
        .route("/stats", get(stats))
        .route("/webhook", post(webhook))
        .merge(on_request::router())
        .fallback(async |method, uri| unknown(StatusCode::NOT_FOUND, &method, &uri))
        .method_not_allowed_fallback(async |method, uri| {
            unknown(StatusCode::METHOD_NOT_ALLOWED, &method, &uri)
        })
        .with_state(shared)
}

/// Plain text, for terminals and browsers alike. Commands name this receiver as its caller does.
async fn index(headers: HeaderMap) -> Response {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let base = format!("http://{}", host.unwrap_or("localhost:8080"));
    (StatusCode::OK, INDEX.to_owned() + &on_request::page(&base)).into_response()
}

/// Takes a webhook, and behaves as the chaos says if it is well signed.
async fn webhook(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let mut exchange = match Exchange::receive(Arc::clone(&shared), &parts, body).await {
        Ok(exchange) => exchange,
        Err(error) => return error.into_response(),
    };
    let Some((webhook_id, attempt)) = exchange.count_attempt() else {
        let why = format!("signature {}", exchange.verdict());
        exchange.end(Ending::BadlySigned);
        return text(StatusCode::UNAUTHORIZED, &why);
    };
    match shared.chaos.plan(&webhook_id, attempt) {
        Plan::Hang => {
            exchange.will_end(Ending::Hung);
            let (opening, time_max) = (Bytes::new(), shared.limits.hang);
            let exchange = Arc::new(exchange);
            Script { opening, then: Then::Hold, time_max, exchange }.into_response()
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

pub(crate) fn text(status: StatusCode, line: &str) -> Response {
    (status, format!("{line}\n")).into_response()
}

fn json(value: &impl Serialize) -> Response {
    let text = serde_json::to_string(value).expect("numbers and texts are JSON");
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}
