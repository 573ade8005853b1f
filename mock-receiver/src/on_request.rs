//! Receivers on request: routes that always do the same, to try what becomes of it.
//!
//! They take any method, and webhooks that are signed or not: signatures are checked and recorded
//! as elsewhere, but change nothing, so that a person with curl sees what a sender would see.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::Router;
use axum::extract::{FromRequest, FromRequestParts as _, Path, Query, Request};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, any};
use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::bomb::bomb;
use crate::exchange::Exchange;
use crate::ledger::Ending;
use crate::record::Answer;
use crate::routes::text;
use crate::settings::DELAY_MAX_LIMIT;
use crate::shared::Shared;
use crate::wire::{Script, Then};

/// How long "for ever" is: longer than any sender waits, but nothing is left behind by one that
/// never hangs up.
pub const FOREVER: Duration = Duration::from_hours(1);

/// The longest `/retry-after/{seconds}`. It costs nothing here, and senders should not believe it.
const RETRY_AFTER_S_MAX: u32 = 24 * 60 * 60;

/// One receiver on request, as it is served and as the page at `/` lists it.
struct Route {
    path: &'static str,
    does: &'static str,
    /// What to type to try it; `BASE` stands for where this receiver is.
    try_it: &'static str,
    handler: MethodRouter<Arc<Shared>>,
}

fn routes() -> [Route; 15] {
    [
        Route {
            path: "/status/{code}",
            does: "answers this status, 200 to 999",
            try_it: "curl -i -X POST BASE/status/503",
            handler: any(status),
        },
        Route {
            path: "/gone",
            does: "answers 410: send no more",
            try_it: "curl -i -X POST BASE/gone",
            handler: any(gone),
        },
        Route {
            path: "/redirect",
            does: "answers 307 to /webhook, where one sees who follows it [?status=]",
            try_it: "curl -i -X POST BASE/redirect",
            handler: any(redirect),
        },
        Route {
            path: "/retry-after/{seconds}",
            does: "answers 429 with Retry-After, at most 86400 [?status=]",
            try_it: "curl -i -X POST 'BASE/retry-after/30?status=503'",
            handler: any(retry_after),
        },
        Route {
            path: "/fail-first/{n}",
            does: "answers 500 to the first n requests of each webhook-id, then 200 [?status=]",
            try_it: "curl -i -X POST -H 'webhook-id: any' BASE/fail-first/2",
            handler: any(fail_first),
        },
        Route {
            path: "/slow/{seconds}",
            does: "answers 200 after a while, at most 3600 [?status=]",
            try_it: "curl -i -X POST BASE/slow/2.5",
            handler: any(slow),
        },
        Route {
            path: "/hang",
            does: "never answers",
            try_it: "curl -i -m 10 -X POST BASE/hang",
            handler: any(hang),
        },
        Route {
            path: "/drip",
            does: "answers 200 and then a byte a second, for ever [?status=]",
            try_it: "curl -i -N -m 10 -X POST BASE/drip",
            handler: any(drip),
        },
        Route {
            path: "/endless",
            does: "answers 200 and a body without end, as fast as it is taken [?status=]",
            try_it: "curl -i -m 10 -X POST BASE/endless | head -n 20",
            handler: any(endless),
        },
        Route {
            path: "/gzip-bomb",
            does: "answers 200 with a megabyte of gzip that unpacks to a gibibyte [?status=]",
            try_it: "curl --compressed -X POST BASE/gzip-bomb | wc -c",
            handler: any(gzip_bomb),
        },
        Route {
            path: "/wrong-length",
            does: "answers 200 and closes before the content-length it told [?status=]",
            try_it: "curl -i -X POST BASE/wrong-length",
            handler: any(wrong_length),
        },
        Route {
            path: "/wrong-length/excess",
            does: "answers 200 and sends more than it told: an answer to the next request [?status=]",
            try_it: "curl -i -X POST BASE/wrong-length/excess",
            handler: any(wrong_length_excess),
        },
        Route {
            path: "/reset",
            does: "resets the connection before any answer",
            try_it: "curl -i -X POST BASE/reset",
            handler: any(reset),
        },
        Route {
            path: "/reset/head",
            does: "resets it in the middle of the answer's head",
            try_it: "curl -i -X POST BASE/reset/head",
            handler: any(reset_in_head),
        },
        Route {
            path: "/reset/body",
            does: "resets it in the middle of the answer's body",
            try_it: "curl -i -X POST BASE/reset/body",
            handler: any(reset_in_body),
        },
    ]
}

pub(crate) fn router() -> Router<Arc<Shared>> {
    routes()
        .into_iter()
        .fold(Router::new(), |router, route| router.route(route.path, route.handler))
}

/// What the page at `/` says about them; `base` is where this receiver is.
pub(crate) fn page(base: &str) -> String {
    let lines = |Route { path, does, try_it, .. }: &Route| {
        [format!("{path:<24}{does}\n"), format!("    {}\n", try_it.replace("BASE", base))]
    };
    routes().iter().flat_map(lines).collect()
}

async fn status(asked: Asked<Status>) -> Response {
    let Status(status) = asked.path;
    asked.answer(status, "as requested")
}

async fn gone(asked: Asked) -> Response {
    asked.answer(StatusCode::GONE, "gone")
}

/// 307 keeps method and body, so that whoever follows it is seen to have delivered.
async fn redirect(asked: Asked<(), WithStatus>) -> Response {
    let status = asked.status_or(StatusCode::TEMPORARY_REDIRECT);
    with(asked.answer(status, "elsewhere"), header::LOCATION, "/webhook")
}

async fn retry_after(asked: Asked<RetryAfter, WithStatus>) -> Response {
    let RetryAfter(seconds) = asked.path;
    let status = asked.status_or(StatusCode::TOO_MANY_REQUESTS);
    with(asked.answer(status, "not now"), header::RETRY_AFTER, &seconds.to_string())
}

async fn fail_first(asked: Asked<u32, WithStatus>) -> Response {
    let failures = asked.path;
    let Some(webhook_id) = asked.exchange.webhook_id() else {
        return asked.refuse("the header webhook-id says which requests belong together");
    };
    let shared = asked.exchange.shared();
    let attempt = shared.change(|ledger| ledger.count_fail_first(failures, webhook_id));
    if failures < attempt {
        return asked.answer(StatusCode::OK, "delivered");
    }
    let status = asked.status_or(StatusCode::INTERNAL_SERVER_ERROR);
    asked.answer(status, &format!("failure {attempt} of {failures}"))
}

async fn slow(asked: Asked<Seconds, WithStatus>) -> Response {
    let Seconds(delay) = asked.path;
    tokio::time::sleep(delay).await;
    let status = asked.status_or(StatusCode::OK);
    asked.answer(status, "at last")
}

async fn hang(asked: Asked) -> Response {
    asked.play(Answer::Hang, "", Then::Hold)
}

async fn drip(asked: Asked<(), WithStatus>) -> Response {
    let dot = Then::Repeat { bytes: chunk("."), pause: Duration::from_secs(1) };
    asked.play_chunks(dot)
}

async fn endless(asked: Asked<(), WithStatus>) -> Response {
    /// Large, so that the flood costs the receiver little.
    static LINES: LazyLock<Bytes> = LazyLock::new(|| chunk(&"and so on, and on\n".repeat(4096)));
    asked.play_chunks(Then::Repeat { bytes: LINES.clone(), pause: Duration::ZERO })
}

async fn gzip_bomb(asked: Asked<(), WithStatus>) -> Response {
    let status = asked.status_or(StatusCode::OK);
    let head = asked.answer(status, "").into_parts().0;
    with(Response::from_parts(head, bomb().into()), header::CONTENT_ENCODING, "gzip")
}

async fn wrong_length(asked: Asked<(), WithStatus>) -> Response {
    asked.play_with_length(1_000, "the rest never comes\n", Then::Close)
}

/// Held open afterwards: a client that uses the connection again finds an answer on it that is
/// older than its request, and must not take it for one.
async fn wrong_length_excess(asked: Asked<(), WithStatus>) -> Response {
    let body = "ok\nHTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n";
    asked.play_with_length("ok\n".len(), body, Then::Hold)
}

async fn reset(asked: Asked) -> Response {
    asked.play(Answer::Reset, "", Then::Reset)
}

async fn reset_in_head(asked: Asked) -> Response {
    asked.play(Answer::Reset, "HTTP/1.1 200 OK\r\ncontent-ty", Then::Reset)
}

async fn reset_in_body(asked: Asked) -> Response {
    let half = "HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\nhalf of";
    asked.play(Answer::Reset, half, Then::Reset)
}

/// A request that has come whole, with what its path and its query ask for.
struct Asked<P = (), Q = NoOptions> {
    path: P,
    query: Q,
    exchange: Exchange,
}

/// For a route that takes no query; a misspelt one is not ignored.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoOptions {}

/// For a route whose status can be another one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WithStatus {
    status: Option<Status>,
}

/// A final status. Those below 200 would promise a second one; those above 599 mean nothing, and
/// what is made of them is worth a try.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "u16")]
struct Status(StatusCode);

#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "f64")]
struct Seconds(Duration);

#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "u32")]
struct RetryAfter(u32);

impl<P, Q> FromRequest<Arc<Shared>> for Asked<P, Q>
where
    P: DeserializeOwned + Send,
    Q: DeserializeOwned,
{
    type Rejection = Response;

    async fn from_request(request: Request, shared: &Arc<Shared>) -> Result<Self, Response> {
        let (mut parts, body) = request.into_parts();
        let exchange = Exchange::receive(Arc::clone(shared), &parts, body)
            .await
            .map_err(IntoResponse::into_response)?;
        let path = Path::<P>::from_request_parts(&mut parts, shared).await;
        let path = path.map_err(|error| error.body_text());
        let query = Query::<Q>::try_from_uri(&parts.uri).map_err(|error| error.body_text());
        match path.and_then(|path| Ok((path, query?))) {
            Ok((Path(path), Query(query))) => Ok(Self { path, query, exchange }),
            Err(why) => {
                let asked = Asked { path: (), query: NoOptions {}, exchange };
                Err(asked.refuse(&why))
            }
        }
    }
}

impl<P, Q> Asked<P, Q> {
    /// An answer of HTTP.
    fn answer(self, status: StatusCode, line: &str) -> Response {
        self.exchange.end(Ending::OnRequest(Answer::Status(status)));
        text(status, line)
    }

    /// The answer to what cannot be done.
    fn refuse(self, why: &str) -> Response {
        self.exchange.end(Ending::Refused(StatusCode::BAD_REQUEST));
        text(StatusCode::BAD_REQUEST, why)
    }

    /// Anything but an answer of HTTP.
    fn play(mut self, answer: Answer, opening: impl Into<Bytes>, then: Then) -> Response {
        self.exchange.will_end(Ending::OnRequest(answer));
        let time_max = self.exchange.shared().limits.forever;
        let exchange = Arc::new(self.exchange);
        Script { opening: opening.into(), then, time_max, exchange }.into_response()
    }
}

impl<P> Asked<P, WithStatus> {
    fn status_or(&self, default: StatusCode) -> StatusCode {
        self.query.status.map_or(default, |Status(status)| status)
    }

    /// A head, and then chunks of a body that nothing ends: if the connection closes, the client
    /// can tell that from an end.
    fn play_chunks(self, chunks: Then) -> Response {
        let status = self.status_or(StatusCode::OK);
        let head = head(status, "transfer-encoding: chunked");
        self.play(Answer::Status(status), head, chunks)
    }

    /// A body with a length that is not its own.
    fn play_with_length(self, length_told: usize, body: &str, then: Then) -> Response {
        let status = self.status_or(StatusCode::OK);
        let head = head(status, &format!("content-length: {length_told}"));
        self.play(Answer::Status(status), head + body, then)
    }
}

impl TryFrom<u16> for Status {
    type Error = &'static str;

    fn try_from(code: u16) -> Result<Self, Self::Error> {
        let status = StatusCode::from_u16(code).ok().filter(|status| 200 <= status.as_u16());
        status.map(Self).ok_or("a status is 200 to 999")
    }
}

impl TryFrom<f64> for Seconds {
    type Error = String;

    fn try_from(seconds: f64) -> Result<Self, Self::Error> {
        // Also refuses NaN, which is in no range.
        if (0.0..=DELAY_MAX_LIMIT.as_secs_f64()).contains(&seconds) {
            Ok(Self(Duration::from_secs_f64(seconds)))
        } else {
            Err(format!("seconds are 0 to {}", DELAY_MAX_LIMIT.as_secs()))
        }
    }
}

impl TryFrom<u32> for RetryAfter {
    type Error = String;

    fn try_from(seconds: u32) -> Result<Self, Self::Error> {
        if seconds <= RETRY_AFTER_S_MAX {
            Ok(Self(seconds))
        } else {
            Err(format!("seconds are 0 to {RETRY_AFTER_S_MAX}"))
        }
    }
}

/// The head of an answer that hyper does not write.
fn head(status: StatusCode, framing: &str) -> String {
    format!(
        "HTTP/1.1 {} {}\r\ncontent-type: text/plain\r\n{framing}\r\n\r\n",
        status.as_u16(),
        status.canonical_reason().unwrap_or_default()
    )
}

/// One chunk of a chunked body.
fn chunk(text: &str) -> Bytes {
    format!("{:x}\r\n{text}\r\n", text.len()).into()
}

fn with(mut response: Response, name: HeaderName, value: &str) -> Response {
    let value = value.parse().expect("digits and words are a header's value");
    let headers: &mut HeaderMap = response.headers_mut();
    headers.insert(name, value);
    response
}
