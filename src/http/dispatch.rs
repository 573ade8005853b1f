//! `POST /dispatch`, `GET /dispatch/{id}`: an event to the targets that the request names, answered
//! with what became of it at each.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Request, State},
    http::{StatusCode, Uri},
};
use schemars::JsonSchema;
use serde::Serialize;
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::task::TaskTracker;

use super::{
    ApiError, ApiState, body,
    caller::Caller,
    catalogue,
    dispatch_request::{self, Draft},
    events,
    extract::{EventPath, IdempotencyHeader},
    problem::Problem,
    submission::OuterKey,
    upstream::Arrival,
};
use crate::{
    domain::{
        ApplicationId, DeliveryId, DeliveryState, ErrorClass, EventId, EventStatus, KeyName,
        Permission, Upstream, ids::DEFAULT_APPLICATION,
    },
    store::{
        applications::ApplicationName,
        dispatches::{DELIVERED, FAILED, PENDING, TargetResult},
    },
    telemetry,
};

/// How many results are shown of one event.
pub const RESULTS_MAX: usize = dispatch_request::TARGETS_MAX;

/// What the answer of a dispatch waits for.
#[derive(Debug, Clone, Copy)]
pub struct DispatchBounds {
    /// Of more targets it tells nothing but that they are pending.
    pub inline_max: usize,
    /// How long it waits at most.
    pub wait: Duration,
}

/// How many dispatches may be on their way into the database at a time, their callers still there or
/// not.
const UNDER_WAY_MAX: usize = 2_048;

/// Dispatches that have been read whole: they go on whatever becomes of their callers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DispatchesUnderWay {
    tasks: TaskTracker,
    room: Arc<Semaphore>,
}

impl Default for DispatchesUnderWay {
    /// All of the room.
    fn default() -> Self {
        Self { tasks: TaskTracker::new(), room: Arc::new(Semaphore::new(UNDER_WAY_MAX)) }
    }
}

impl DispatchesUnderWay {
    /// Does something to its end, also if nobody waits for that any more.
    async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Problem>> + Send + 'static,
    ) -> Result<T, Problem> {
        let place = self.room.clone().try_acquire_owned().map_err(|_| ApiError::Busy)?;
        let task = self.tasks.spawn(async move {
            let _place = place;
            work.await
        });
        // It panicked, and the log has it.
        task.await.map_err(|_| ApiError::Internal)?
    }
}

/// What became of a dispatch at each target.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Dispatch")]
#[serde(rename_all = "camelCase")]
pub struct DispatchBody {
    /// Also the event's id.
    dispatch_id: EventId,
    /// In the order of the targets.
    results: Vec<ResultBody>,
}

/// The same, and what it comes to.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "DispatchStatus")]
#[serde(rename_all = "camelCase")]
pub struct DispatchStatusBody {
    dispatch_id: EventId,
    /// `pending` while one is; then `failed` if one or more are; `unrouted` if there was no target.
    #[schemars(extend("enum" = ["pending", "delivered", "failed", "unrouted"]))]
    status: &'static str,
    results: Vec<ResultBody>,
}

/// What became of it at one target.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "DispatchResult")]
#[serde(rename_all = "camelCase")]
pub struct ResultBody {
    /// The delivery, once it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    delivery_id: Option<DeliveryId>,
    #[schemars(extend("enum" = ["delivered", "failed", "pending"]))]
    status: &'static str,
    /// Only for keys that may read.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    detail: Option<ResultDetail>,
}

/// What only a key may see that may read.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "DispatchResultDetail")]
#[serde(rename_all = "camelCase")]
pub struct ResultDetail {
    /// In its normal form.
    url: String,
    /// What the target answered, if it did.
    code: Option<i16>,
    /// How long the exchange took, once there was one.
    duration_ms: Option<i32>,
    /// What went wrong; of what is pending: at the last attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ResultErrorBody>,
}

/// What went wrong.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "DispatchError")]
pub struct ResultErrorBody {
    #[schemars(extend("enum" = ErrorClass::ALL.map(ErrorClass::as_str)))]
    class: String,
    message: String,
}

/// Sends an event to the targets that are named, or to the subscriptions that match, and tells what
/// became of it: 200 with all results, or 202 where some are still to come.
pub async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    uri: Uri,
    key: Option<IdempotencyHeader>,
    Arrival(upstream): Arrival,
    request: Request,
) -> Result<(StatusCode, Json<DispatchBody>), Problem> {
    let application = events::application_of(&state, caller, &uri).await?;
    caller.must(Permission::Publish)?;
    let body = body::read_json(request, state.body_limit, None).await?;
    let key = key.map(|key| OuterKey::OfRequest(key.0));
    let bounds = &state.subscription_bounds;
    let draft = dispatch_request::read(&body, body::text(&body)?, key, bounds, |permission| {
        caller.must(permission)
    })?;
    drop(body);
    let give_up_at = Instant::now() + state.dispatch.wait;
    let urls = draft.urls();
    let accepting = accept(state.clone(), application, draft, upstream);
    let dispatch_id = state.dispatches.to_its_end(accepting).await?;
    let rows = results(&state, application, dispatch_id, give_up_at).await;
    let (status, results) = match rows {
        Some(rows) => {
            let may_read = caller.0.role.may(Permission::Read);
            let results: Vec<_> =
                rows.into_iter().map(|row| ResultBody::of(row, may_read)).collect();
            let is_complete = results.iter().all(|result| result.status != PENDING);
            (if is_complete { StatusCode::OK } else { StatusCode::ACCEPTED }, results)
        }
        // It is stored: that must be told, or it would be dispatched once more.
        None => (StatusCode::ACCEPTED, urls.into_iter().map(ResultBody::unknown).collect()),
    };
    Ok((status, Json(DispatchBody { dispatch_id, results })))
}

/// Stores a dispatch, and tells its event.
async fn accept(
    state: ApiState,
    application: ApplicationId,
    draft: Draft,
    upstream: Upstream,
) -> Result<EventId, Problem> {
    are_known(&state, application, &draft).await?;
    let submission = draft.of(application, upstream);
    if let Some(event_type) = &submission.event_type {
        catalogue::check(&state, application, event_type, &submission.payload).await?;
    }
    let result = state.ingest.submit(submission).await;
    telemetry::submitted(result.is_ok());
    Ok(result?.event_id)
}

/// Shows what became of a dispatch, and of any other event.
pub async fn show(
    State(state): State<ApiState>,
    caller: Caller,
    EventPath(id): EventPath,
    uri: Uri,
) -> Result<Json<DispatchStatusBody>, Problem> {
    let application = events::application_of(&state, caller, &uri).await?;
    caller.must(Permission::Read)?;
    let event = state.store.event_row(application, id).await?;
    let event = event.ok_or(ApiError::EventNotFound(None))?;
    let rows = read(&state, application, id).await?;
    let status = match event.status() {
        EventStatus::Pending => PENDING,
        EventStatus::Delivered => DELIVERED,
        EventStatus::Dead | EventStatus::Cancelled => FAILED,
        EventStatus::Unrouted => "unrouted",
    };
    let results = rows.into_iter().map(|row| ResultBody::of(row, true)).collect();
    Ok(Json(DispatchStatusBody { dispatch_id: id, status, results }))
}

/// Refuses keys that this application does not have, before anything is stored.
async fn are_known(
    state: &ApiState,
    application: ApplicationId,
    draft: &Draft,
) -> Result<(), Problem> {
    if draft.signing_keys.is_empty() {
        return Ok(());
    }
    let uid = if application == DEFAULT_APPLICATION {
        None
    } else {
        let row = state.store.application(&ApplicationName::Id(application)).await?;
        Some(row.ok_or(ApiError::ApplicationNotFound(None))?.uid)
    };
    for (name, place) in &draft.signing_keys {
        if state.signing_keys.of(application, uid.as_deref(), name).is_none() {
            return Err(unknown(name).at(place.clone()));
        }
    }
    Ok(())
}

fn unknown(name: &KeyName) -> ApiError {
    ApiError::UnknownSigningKey(name.clone())
}

/// What became of an event at its targets, once there are all results that are worth waiting for, or
/// as far as it is known then; `None` if the database cannot be asked.
async fn results(
    state: &ApiState,
    application: ApplicationId,
    event: EventId,
    give_up_at: Instant,
) -> Option<Vec<TargetResult>> {
    // Before the look: what is recorded after it is told.
    let mut waiter = state.handover.waiters().enter(event);
    let mut known = None;
    loop {
        let Ok(rows) = read(state, application, event).await else { return known };
        let is_under_way = |row: &TargetResult| {
            // What is parked waits for somebody, and not for an answer.
            matches!(row.state(), DeliveryState::Pending | DeliveryState::InFlight)
        };
        let is_waited_for =
            rows.len() <= state.dispatch.inline_max && rows.iter().any(is_under_way);
        let Some(waiter) = waiter.as_mut().filter(|_| is_waited_for) else { return Some(rows) };
        match tokio::time::timeout_at(give_up_at, waiter.changed()).await {
            Ok(true) => known = Some(rows),
            // Its time is over, or the service is ending.
            Ok(false) | Err(_) => return Some(rows),
        }
    }
}

async fn read(
    state: &ApiState,
    application: ApplicationId,
    event: EventId,
) -> Result<Vec<TargetResult>, ApiError> {
    let rows_max = i64::try_from(RESULTS_MAX).unwrap_or(i64::MAX);
    Ok(state.store.target_results(application, event, rows_max).await?)
}

impl ResultBody {
    /// The result of one target: its id and state, and the rest for callers that may read.
    fn of(row: TargetResult, may_read: bool) -> Self {
        let (delivery_id, status) = (Some(row.delivery_id()), row.status());
        let detail = may_read.then(|| {
            let error = row.error().map(|(class, message)| ResultErrorBody {
                class: class.to_owned(),
                message: message.to_owned(),
            });
            ResultDetail {
                code: row.response_status,
                duration_ms: row.duration_ms,
                error,
                url: row.url,
            }
        });
        Self { delivery_id, status, detail }
    }

    /// A target that the request names, and of which nothing could be read.
    fn unknown(url: String) -> Self {
        let detail = ResultDetail { url, code: None, duration_ms: None, error: None };
        Self { delivery_id: None, status: PENDING, detail: Some(detail) }
    }
}
