//! `POST /events/batch`: many events in one request, each with a result of its own.

use axum::{
    Json,
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    ApiError, ApiState,
    body::{self, Limit},
    caller::Caller,
    catalogue::Suggestions,
    extract::IdempotencyHeader,
    json::Members,
    problem::Problem,
    submission::{self, OuterKey},
    upstream::Arrival,
};
use crate::{
    domain::{EventId, Permission, Submission, event::IDEMPOTENCY_KEY_BYTES_MAX},
    telemetry,
};

/// How many events one batch may hold.
pub const EVENTS_MAX: usize = 1_000;
/// The fields of a batch.
pub const FIELDS: &[&str; 1] = &["events"];

/// How many bytes the key of a batch may have: each event's has a slash and its place more.
pub fn key_bytes_max() -> usize {
    IDEMPOTENCY_KEY_BYTES_MAX - format!("/{}", EVENTS_MAX - 1).len()
}

/// What became of one event.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "BatchItem")]
#[serde(untagged)]
pub enum ItemBody {
    Accepted {
        id: EventId,
        #[schemars(extend("const" = "accepted"))]
        status: &'static str,
    },
    Refused {
        #[schemars(extend("const" = "refused"))]
        status: &'static str,
        problem: Problem,
    },
}

/// The answer: a result for each event, in their order.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "BatchResults")]
pub struct BatchResults {
    results: Vec<ItemBody>,
}

/// The answer where no event was accepted: a problem document with the results beside it.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "BatchProblem")]
pub struct RefusedBody<'a> {
    #[serde(flatten)]
    problem: &'a Problem,
    /// What became of each event, in their order; absent where the request itself was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    results: Option<Vec<ItemBody>>,
}

/// Accepts those events that can be: 202 after their commits, unless there is none.
pub async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    key: Option<IdempotencyHeader>,
    Arrival(upstream): Arrival,
    request: Request,
) -> Result<Response, Problem> {
    caller.must(Permission::Publish)?;
    // Held to the end: the submissions are about as large as the body.
    let mut share = state.batch_room.share();
    let body = body::read_json(request, state.batch_limit, Some(&mut share)).await?;
    let mut items = read(&state, caller, &body, key.map(|key| key.0)).await?;
    for submission in items.iter_mut().flatten() {
        submission.upstream.clone_from(&upstream);
    }
    drop(body);
    let results = submit(&state, items).await;
    Ok(answer(results))
}

/// Reads the events, each apart: one that cannot be accepted does not keep the others from it.
async fn read(
    state: &ApiState,
    caller: Caller,
    body: &Bytes,
    key: Option<String>,
) -> Result<Vec<Result<Submission, Problem>>, Problem> {
    let text = body::text(body)?;
    let texts = Members::of(text, FIELDS)?.elements("events", EVENTS_MAX)?;
    let key_of = |index: usize| key.as_ref().map(|key| format!("{key}/{index}"));
    // An empty one would be well with what is added.
    for key in [key.clone(), key_of(EVENTS_MAX - 1)].into_iter().flatten() {
        submission::header_key(&key)?;
    }
    let mut items = Vec::with_capacity(texts.len());
    let mut suggestions = Suggestions::default();
    for (index, text) in texts.into_iter().enumerate() {
        let Limit { bytes_max, setting, .. } = state.body_limit;
        let item = if text.get().len() > bytes_max {
            Err(ApiError::TooLarge { what: "the event", bytes_max, setting }.into())
        } else {
            let key = key_of(index).map(OuterKey::OfItem);
            submission::read(state, caller, body, text.get(), key, &mut suggestions).await
        };
        items.push(item.map_err(|problem| problem.within(&pointer(index))));
        // A batch is mebibytes to check; others are to be served meanwhile.
        tokio::task::yield_now().await;
    }
    Ok(items)
}

fn pointer(index: usize) -> String {
    format!("/events/{index}")
}

async fn submit(
    state: &ApiState,
    items: Vec<Result<Submission, Problem>>,
) -> Vec<Result<EventId, Problem>> {
    let mut submissions = Vec::with_capacity(items.len());
    let places: Vec<_> =
        items.into_iter().map(|item| item.map(|submission| submissions.push(submission))).collect();
    let mut answers = state.ingest.submit_each(submissions).await.into_iter();
    let results = places.into_iter().enumerate().map(|(index, place)| {
        place?;
        let answer = answers.next().expect("as many answers as submissions");
        telemetry::submitted(answer.is_ok());
        let refused = |rejected| Problem::from(ApiError::from(rejected)).within(&pointer(index));
        answer.map(|accepted| accepted.event_id).map_err(refused)
    });
    results.collect()
}

/// 202 as soon as one event was accepted. A client that looks at nothing but the status must not
/// take a batch for kept of which nothing is: then it is told what it would be for one event, 5xx if
/// that is worth another try.
fn answer(results: Vec<Result<EventId, Problem>>) -> Response {
    let count = results.len();
    let refusals = || results.iter().filter_map(|result| result.as_ref().err());
    let problem = (refusals().count() == count).then(|| {
        let of_service = refusals().filter(|problem| problem.is_of_the_service());
        let best_hope = of_service.max_by_key(|problem| problem.status());
        best_hope.map_or(ApiError::BatchRefused { count }, |problem| problem.error().clone())
    });
    let results = results.into_iter().map(|result| match result {
        Ok(id) => ItemBody::Accepted { id, status: "accepted" },
        Err(problem) => ItemBody::Refused { status: "refused", problem },
    });
    let results = results.collect();
    match problem.map(Problem::from) {
        None => (StatusCode::ACCEPTED, Json(BatchResults { results })).into_response(),
        Some(problem) => problem.respond(RefusedBody { problem: &problem, results: Some(results) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the others say, a fault that passes is worth another try of the whole.
    #[test]
    fn the_status_is_that_of_the_best_hope() {
        let id = EventId::new(1, [1; 10]);
        let no = |error: ApiError| Err(Problem::from(error));
        let invalid = || no(ApiError::Invalid("x".to_owned()));
        let cases = [
            (vec![Ok(id)], 202),
            (vec![invalid(), Ok(id), no(ApiError::Busy)], 202),
            (vec![invalid(), no(ApiError::KeyReused)], 422),
            (vec![no(ApiError::KeyReused)], 422),
            (vec![invalid(), no(ApiError::Busy), no(ApiError::Internal)], 503),
            (vec![no(ApiError::Internal), no(ApiError::Busy)], 503),
            (vec![no(ApiError::Unavailable), invalid()], 503),
            (vec![no(ApiError::Internal)], 500),
        ];
        for (results, status) in cases {
            let what = format!("{results:?}");
            assert_eq!(answer(results).status().as_u16(), status, "{what}");
        }
    }
}
