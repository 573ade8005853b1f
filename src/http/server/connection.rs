//! One connection: its requests one after the other, each within the bounds.

use std::convert::Infallible;

use axum::{
    body::Body,
    http::{Method, Request},
    response::{IntoResponse, Response},
};
use hyper::{
    body::{Body as _, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::{
    Served,
    crowd::Place,
    watched::{Phase, Progress, Times, Watched},
};
use crate::{
    http::{ApiError, Bound, MCP_PATH, PROCESS_PATHS, REQUEST_ID, request_id},
    telemetry::{self, Refusal},
};

/// How many headers a request may have. The parser stops at 100.
pub(in crate::http) const HEADERS_MAX: usize = 80;
/// How many bytes the target of a request may have: path and query.
pub(in crate::http) const URI_BYTES_MAX: usize = 8 * 1024;
/// How many bytes of a head are read at least before the parser gives up: up to there a head that is
/// too large is told so by a problem.
const BUFFER_BYTES_MIN: usize = 64 * 1024;
/// How long each phase of a connection may last that is there beyond the bounds.
const TIME_IN_EXCESS: std::time::Duration = std::time::Duration::from_secs(5);

/// Serves a connection to its end.
pub(super) async fn serve(
    stream: TcpStream,
    place: &Place,
    served: &Served,
    stop: &CancellationToken,
) {
    // Answers are small and wait for nothing.
    let _ = stream.set_nodelay(true);
    let progress = &Progress::new();
    let beyond = place.beyond();
    let service = service_fn(|request: Request<Incoming>| {
        progress.enter(Phase::Serving);
        let answering = answer(served, beyond, progress, request.map(Body::new));
        async move {
            let answer = answering.await;
            progress.enter(Phase::Answering);
            Ok::<_, Infallible>(answer)
        }
    });
    let bounds = &served.bounds;
    let times = match beyond {
        Some(_) => Times { idle: TIME_IN_EXCESS, head: TIME_IN_EXCESS, answer: TIME_IN_EXCESS },
        None => Times {
            idle: bounds.keep_alive,
            head: bounds.head_timeout,
            answer: bounds.answer_timeout,
        },
    };
    let serving = http1::Builder::new()
        // `Progress` tells a head that comes slowly from a connection that idles.
        .header_read_timeout(None)
        .keep_alive(beyond.is_none())
        .max_buf_size((2 * bounds.head_bytes_max).max(BUFFER_BYTES_MIN))
        .serve_connection(TokioIo::new(Watched::new(stream, progress)), service);
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        phase = progress.too_long(times) => return too_long(phase),
        () = place.displaced() => return,
        () = stop.cancelled() => {
            progress.hurry();
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    let Err(error) = ended else { return };
    if error.is_parse_too_large() {
        telemetry::refused(Refusal::HeadTooLarge);
    } else if error.is_parse() {
        telemetry::refused(Refusal::HeadMalformed);
    }
    tracing::debug!(%error, "a connection ended early");
}

/// A connection is cut off.
fn too_long(phase: Phase) {
    match phase {
        Phase::Head => telemetry::refused(Refusal::HeadTooSlow),
        Phase::Answering => telemetry::refused(Refusal::AnswerNotTaken),
        // That is what becomes of most of them.
        Phase::Idle | Phase::Serving => return,
    }
    tracing::debug!(?phase, "a connection was closed: its client is too slow");
}

async fn answer(
    served: &Served,
    beyond: Option<Bound>,
    progress: &Progress,
    mut request: Request<Body>,
) -> Response {
    let path = request.uri().path();
    let path = path.strip_suffix('/').unwrap_or(path);
    let is_of_the_process = PROCESS_PATHS.contains(&path);
    let may_be_repeated = request.method() == Method::GET || path == MCP_PATH;
    let admitted = checked(&request, served.bounds.head_bytes_max).and_then(|()| match beyond {
        Some(bound) if !is_of_the_process => Err(ApiError::Overloaded(bound)),
        _ => served.room.enter(is_of_the_process),
    });
    let id = request_id(request.headers());
    let hold = match admitted {
        Ok(hold) => hold,
        Err(error) => return refusal(error, id),
    };
    progress.keep(hold.clone());
    request.extensions_mut().insert(hold.clone());
    let response = match served.routes.clone().oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    // What was changed is told in any case, and such answers are small.
    let bytes = response.body().size_hint().exact().filter(|_| may_be_repeated).unwrap_or(0);
    match hold.answer(usize::try_from(bytes).unwrap_or(usize::MAX)) {
        Ok(()) => response,
        Err(error) => refusal(error, id),
    }
}

fn refusal(error: ApiError, id: axum::http::HeaderValue) -> Response {
    let mut response = error.into_response();
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// Checks the size of a head.
fn checked(request: &Request<Body>, bytes_max: usize) -> Result<(), ApiError> {
    let uri = request.uri();
    let uri_bytes = uri.path().len() + uri.query().map_or(0, |query| query.len() + 1);
    if uri_bytes > URI_BYTES_MAX {
        return Err(ApiError::UriTooLong);
    }
    let headers = request.headers();
    // `: ` and the end of the line.
    let line_bytes = |(name, value): (&axum::http::HeaderName, &axum::http::HeaderValue)| {
        name.as_str().len() + value.len() + 4
    };
    let bytes = uri_bytes + headers.iter().map(line_bytes).sum::<usize>();
    if headers.len() > HEADERS_MAX || bytes > bytes_max {
        return Err(ApiError::HeadTooLarge { bytes_max });
    }
    Ok(())
}
