//! `/deliveries`: the log, and what people do about it.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, Uri},
};
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    ApiError, ApiState,
    caller::Caller,
    events::{self, Page},
    extract::{self, Cursor, DeliveryPath, Parameters, SubscriptionPath},
    problem::{Place, Problem},
    upstream::FirstHand,
};
use crate::{
    domain::{
        ApplicationId, AttemptId, DeliveryId, DeliveryState, ErrorClass, EventId, EventType,
        Permission, SubscriptionId,
    },
    store::{
        deliveries::DeliveryRow,
        delivery_pages::DeliveryFilter,
        history::AttemptRow,
        runs::{Cancelled, Retried},
    },
};

/// The parameters of `GET /subscriptions/{id}/deliveries`.
pub const OF_SUBSCRIPTION: &[&str; 10] = &[
    "application",
    "state",
    "event_id",
    "event_type",
    "response_status",
    "error_class",
    "created_after",
    "created_before",
    "limit",
    "cursor",
];
/// Those of `GET /deliveries`.
pub const OF_LIST: &[&str; 11] = &[
    "application",
    "subscription_id",
    "state",
    "event_id",
    "event_type",
    "response_status",
    "error_class",
    "created_after",
    "created_before",
    "limit",
    "cursor",
];

/// What went wrong in an attempt.
#[derive(Serialize, Clone, JsonSchema)]
#[schemars(rename = "DeliveryError")]
pub struct ErrorBody {
    #[schemars(extend("enum" = ErrorClass::ALL.map(ErrorClass::as_str)))]
    class: String,
    message: String,
    status: Option<i16>,
    /// When the attempt began.
    pub at: DateTime<Utc>,
}

/// A delivery.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Delivery")]
pub struct DeliveryBody {
    id: DeliveryId,
    event_id: EventId,
    event_type: Option<String>,
    /// Absent of an explicit target.
    subscription_id: Option<SubscriptionId>,
    target_url: String,
    #[schemars(extend("enum" = DeliveryState::ALL.map(DeliveryState::as_str)))]
    state: String,
    reason: Option<String>,
    attempt_count: i32,
    /// Of the latest attempt.
    last_status: Option<i16>,
    /// The same: an error class.
    last_error: Option<String>,
    next_attempt_at: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
    ended_at: Option<DateTime<Utc>>,
    /// It has ended, and is sent again: by hand, or by a replay.
    is_sent_again: bool,
    /// The key of the settings that signs, where all is shown and the request named one.
    #[serde(skip_serializing_if = "Option::is_none")]
    signature_key_id: Option<String>,
    /// Where all is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<Vec<AttemptBody>>,
}

/// An exchange.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Attempt")]
pub struct AttemptBody {
    id: AttemptId,
    scheduled_at: DateTime<Utc>,
    started_at: DateTime<Utc>,
    duration_ms: i32,
    request: RequestBody,
    response: Option<ResponseBody>,
    error: Option<ErrorBody>,
    /// Whether its result came too late to count.
    is_late: bool,
    /// Why it was made: by the schedule, for a retry by hand (`retry` of a pending delivery, `once` of
    /// one that had ended), or for a replay.
    #[schemars(extend("enum" = ["schedule", "retry", "once", "replay"]))]
    run: String,
}

/// What was sent.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "SentRequest")]
pub struct RequestBody {
    method: String,
    url: String,
    headers: BTreeMap<String, String>,
}

/// What came back.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ReceivedResponse")]
pub struct ResponseBody {
    status: i16,
    headers: BTreeMap<String, String>,
    /// Bytes that are not UTF-8 are replaced.
    body: String,
    /// Whether there was, or may have been, more than is shown here.
    is_truncated: bool,
}

/// Lists deliveries, newest first.
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    uri: Uri,
) -> Result<Json<Page<DeliveryBody>>, Problem> {
    let given = Parameters::of(&uri, OF_LIST)?;
    let application = events::application(&state, caller, &given).await?;
    caller.must(Permission::Read)?;
    let subscription = match given.text("subscription_id") {
        Some(text) => Some(subscription(&state, application, text).await?),
        None => None,
    };
    page(&state, application, &given, subscription).await
}

/// Lists those of one subscription.
pub async fn of_subscription(
    State(state): State<ApiState>,
    caller: Caller,
    SubscriptionPath(name): SubscriptionPath,
    uri: Uri,
) -> Result<Json<Page<DeliveryBody>>, Problem> {
    let given = Parameters::of(&uri, OF_SUBSCRIPTION)?;
    let application = events::application(&state, caller, &given).await?;
    caller.must(Permission::Read)?;
    let row = state.store.subscription(application, &name).await?;
    let id = row.ok_or(ApiError::SubscriptionNotFound(None))?.id();
    page(&state, application, &given, Some(id)).await
}

/// The subscription that a parameter names; a deleted one can be named by its id, for its log.
async fn subscription(
    state: &ApiState,
    application: ApplicationId,
    text: &str,
) -> Result<SubscriptionId, Problem> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let at = |error: ApiError| error.at(Place::Parameter("subscription_id".to_owned()));
    let name = extract::subscription_name(text).map_err(at)?;
    let row = state.store.subscription(application, &name).await?;
    Ok(row.ok_or_else(|| at(ApiError::SubscriptionNotFound(None)))?.id())
}

async fn page<const N: usize>(
    state: &ApiState,
    application: ApplicationId,
    given: &Parameters<N>,
    subscription: Option<SubscriptionId>,
) -> Result<Json<Page<DeliveryBody>>, Problem> {
    let filter = DeliveryFilter {
        subscription,
        state: given.read("state", |text| {
            extract::one_of(&DeliveryState::ALL, DeliveryState::as_str, text)
        })?,
        event: given.read("event_id", str::parse::<EventId>)?,
        event_type: given.read("event_type", EventType::parse)?.map(|it| it.as_str().to_owned()),
        response_status: given.read("response_status", response_status)?,
        error_class: given.read("error_class", extract::error_class)?,
        created_from: given.read("created_after", extract::time)?,
        created_until: given.read("created_before", extract::time)?,
        older_than: given
            .read("cursor", |text| Cursor::Deliveries.read(text))?
            .map(DeliveryId::from_uuid),
    };
    let limit = given.read("limit", extract::limit)?.unwrap_or(extract::LIMIT_DEFAULT);
    let page = state.store.delivery_page(application, &filter, limit).await?;
    Ok(Json(Page {
        data: page.deliveries.into_iter().map(DeliveryBody::listed).collect(),
        next_cursor: page.next.map(|id| Cursor::Deliveries.after(id.uuid())),
    }))
}

fn response_status(text: &str) -> Result<i16, &'static str> {
    let status = text.parse().ok().filter(|status| (100..=999).contains(status));
    status.ok_or("must be an HTTP status")
}

/// Shows a delivery with its attempts.
pub async fn show(
    State(state): State<ApiState>,
    caller: Caller,
    DeliveryPath(id): DeliveryPath,
    uri: Uri,
) -> Result<Json<DeliveryBody>, Problem> {
    let application = events::application_of(&state, caller, &uri).await?;
    caller.must(Permission::Read)?;
    shown(&state, application, id).await.map(Json)
}

/// Sends a delivery at once: a pending one beside its schedule, one that has ended once more.
pub async fn retry(
    State(state): State<ApiState>,
    caller: Caller,
    DeliveryPath(id): DeliveryPath,
    _: FirstHand,
    uri: Uri,
) -> Result<(StatusCode, Json<DeliveryBody>), Problem> {
    let application = events::application_of(&state, caller, &uri).await?;
    caller.must(Permission::Manage)?;
    let refused = match state.store.retry_delivery(application, id).await? {
        Retried::Due(lane) => {
            state.handover.leave_in_queue([(lane, application)]);
            return Ok((StatusCode::ACCEPTED, Json(shown(&state, application, id).await?)));
        }
        Retried::NotFound => ApiError::DeliveryNotFound(None),
        Retried::InFlight => ApiError::Conflict("this delivery is being sent"),
        Retried::Parked => ApiError::Conflict("its subscription is disabled; enable it first"),
        Retried::SubscriptionDeleted => ApiError::Conflict("its subscription is deleted"),
        Retried::PayloadGone => ApiError::Conflict("its payload is not kept any more"),
    };
    Err(refused.into())
}

/// Cancels a delivery that waits.
pub async fn cancel(
    State(state): State<ApiState>,
    caller: Caller,
    DeliveryPath(id): DeliveryPath,
    uri: Uri,
) -> Result<Json<DeliveryBody>, Problem> {
    let application = events::application_of(&state, caller, &uri).await?;
    caller.must(Permission::Manage)?;
    let refused = match state.store.cancel_delivery(application, id).await? {
        Cancelled::Done => return shown(&state, application, id).await.map(Json),
        Cancelled::NotFound => ApiError::DeliveryNotFound(None),
        Cancelled::InFlight => ApiError::Conflict("this delivery is being sent"),
        Cancelled::Ended => ApiError::Conflict("this delivery has ended"),
    };
    Err(refused.into())
}

async fn shown(
    state: &ApiState,
    application: ApplicationId,
    id: DeliveryId,
) -> Result<DeliveryBody, Problem> {
    let detail = state.store.delivery_detail(application, id).await?;
    let detail = detail.ok_or(ApiError::DeliveryNotFound(None))?;
    Ok(DeliveryBody::of(detail.delivery, detail.attempts))
}

impl DeliveryBody {
    /// As lists show it.
    pub fn listed(row: DeliveryRow) -> Self {
        Self {
            id: row.delivery_id(),
            event_id: row.event_id(),
            subscription_id: row.subscription_id(),
            event_type: row.event_type,
            target_url: row.target_url,
            state: row.state,
            reason: row.reason,
            attempt_count: row.attempt_count,
            last_status: row.last_status,
            last_error: row.last_error,
            next_attempt_at: row.next_attempt_at,
            created_at: row.created_at,
            ended_at: row.ended_at,
            is_sent_again: row.is_sent_again,
            signature_key_id: row.signing_key,
            attempts: None,
        }
    }

    /// With its attempts.
    pub fn of(row: DeliveryRow, attempts: Vec<AttemptRow>) -> Self {
        let attempts = attempts.into_iter().map(AttemptBody::from).collect();
        Self { attempts: Some(attempts), ..Self::listed(row) }
    }
}

impl ErrorBody {
    /// What went wrong in an attempt, if anything.
    pub fn of(row: &AttemptRow) -> Option<Self> {
        Some(Self {
            class: row.error_class.clone()?,
            message: row.error_message.clone()?,
            status: row.response_status,
            at: row.started_at,
        })
    }
}

impl From<AttemptRow> for AttemptBody {
    fn from(row: AttemptRow) -> Self {
        let error = ErrorBody::of(&row);
        let response = row.response_status.map(|status| ResponseBody {
            status,
            headers: headers_of(row.response_headers.as_deref().unwrap_or_default()),
            body: String::from_utf8_lossy(row.response_body.as_deref().unwrap_or_default())
                .into_owned(),
            is_truncated: row.response_truncated,
        });
        Self {
            id: row.attempt_id(),
            scheduled_at: row.scheduled_at,
            started_at: row.started_at,
            duration_ms: row.duration_ms,
            request: RequestBody {
                method: row.request_method,
                url: row.request_url,
                headers: headers_of(&row.request_headers),
            },
            response,
            error,
            is_late: row.is_late,
            run: row.run.unwrap_or_else(|| "schedule".to_owned()),
        }
    }
}

/// Header lines by name; values of a name that came several times are joined by commas, as HTTP
/// allows.
fn headers_of(lines: &str) -> BTreeMap<String, String> {
    let mut headers = BTreeMap::<String, String>::new();
    for (name, value) in lines.lines().filter_map(|line| line.split_once(": ")) {
        headers
            .entry(name.to_owned())
            .and_modify(|known| {
                known.push_str(", ");
                known.push_str(value);
            })
            .or_insert_with(|| value.to_owned());
    }
    headers
}
