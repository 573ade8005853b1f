//! `POST /events`, `GET /events`, `GET /events/{id}`.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Request, State},
    http::StatusCode,
};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    ApiError, ApiState,
    extract::{self, EventPath, IdempotencyHeader, Query},
};
use crate::{
    domain::{
        ApplicationId, AttemptId, DeliveryId, EventId, EventStatus, EventType, IdempotencyKey,
        Payload, Subject, Submission, TargetUrl,
        address::AddressPolicy,
        event::{EventError, Metadata, Route},
        ids::DEFAULT_APPLICATION,
    },
    store::history::{AttemptRow, DeliveryRow, EventDetail, EventFilter, EventRow},
    telemetry,
};

/// The body of `POST /events`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewEventBody<'a> {
    #[serde(borrow)]
    payload: &'a RawValue,
    r#type: Option<String>,
    target_url: Option<String>,
    application: Option<String>,
    idempotency_key: Option<String>,
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
    subject: Option<String>,
}

/// The answer of `POST /events`.
#[derive(Serialize)]
pub struct AcceptedBody {
    id: EventId,
    status: &'static str,
}

/// Accepts an event: 202 after the commit.
pub async fn create(
    State(state): State<ApiState>,
    key: Option<IdempotencyHeader>,
    request: Request,
) -> Result<(StatusCode, Json<AcceptedBody>), ApiError> {
    let body = extract::json_body(request, state.body_bytes_max).await?;
    let submission = submission(&state, &body, key)?;
    let result = state.ingest.submit(submission).await;
    telemetry::submitted(result.is_ok());
    let accepted = result?;
    Ok((StatusCode::ACCEPTED, Json(AcceptedBody { id: accepted.event_id, status: "accepted" })))
}

fn submission(
    state: &ApiState,
    body: &Bytes,
    key: Option<IdempotencyHeader>,
) -> Result<Submission, ApiError> {
    let given: NewEventBody<'_> = extract::parse(body)?;
    let field = |name: &'static str| {
        move |error: EventError| ApiError::Invalid(format!("`{name}` {error}"))
    };
    let event_type =
        given.r#type.as_deref().map(EventType::parse).transpose().map_err(field("type"))?;
    // The bytes as they came.
    let payload = Payload::from_json(extract::part_of(body, given.payload.get()))
        .map_err(field("payload"))?;
    let subject =
        given.subject.as_deref().map(Subject::parse).transpose().map_err(field("subject"))?;
    let metadata = given
        .metadata
        .map(|metadata| Metadata::from_json(metadata.get()))
        .transpose()
        .map_err(field("metadata"))?;
    let idempotency_key = agreed_key(key.map(|key| key.0), given.idempotency_key)?
        .map(|key| IdempotencyKey::parse(&key))
        .transpose()
        .map_err(field("idempotency_key"))?;
    let route = match (&given.target_url, &event_type) {
        (Some(target), _) => Route::Explicit(checked_target(target, &state.addresses)?),
        (None, Some(_)) => Route::Subscriptions,
        (None, None) => Route::Default(state.target_url.clone().ok_or(ApiError::NoTarget)?),
    };
    let application = application(given.application.as_deref())?;
    Ok(Submission { application, event_type, payload, route, subject, metadata, idempotency_key })
}

/// Header and body may both carry the key, if it is the same.
fn agreed_key(header: Option<String>, body: Option<String>) -> Result<Option<String>, ApiError> {
    match (header, body) {
        (Some(header), Some(body)) if header != body => Err(ApiError::Invalid(
            "`idempotency_key` differs from the header `Idempotency-Key`".to_owned(),
        )),
        (header, body) => Ok(header.or(body)),
    }
}

/// Refuses at once what is known to be refused later.
fn checked_target(text: &str, addresses: &AddressPolicy) -> Result<TargetUrl, ApiError> {
    let target = TargetUrl::parse(text)
        .map_err(|error| ApiError::Invalid(format!("`target_url` {error}")))?;
    addresses
        .vet_target(&target)
        .map_err(|refused| ApiError::TargetRefused(refused.to_string()))?;
    Ok(target)
}

/// The application that a request names; there is one, for now.
fn application(named: Option<&str>) -> Result<ApplicationId, ApiError> {
    match named {
        None | Some("default") => Ok(DEFAULT_APPLICATION),
        Some(id) if id.parse() == Ok(DEFAULT_APPLICATION) => Ok(DEFAULT_APPLICATION),
        Some(_) => Err(ApiError::ApplicationNotFound),
    }
}

/// The parameters of `GET /events`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    application: Option<String>,
    r#type: Option<String>,
    subject: Option<String>,
    status: Option<String>,
    created_after: Option<DateTime<Utc>>,
    created_before: Option<DateTime<Utc>>,
    limit: Option<usize>,
    cursor: Option<String>,
}

/// An event as lists show it.
#[derive(Serialize)]
pub struct EventBody {
    id: EventId,
    r#type: Option<String>,
    subject: Option<String>,
    metadata: Option<Box<RawValue>>,
    status: &'static str,
    created_at: DateTime<Utc>,
    delivery_count: i32,
    attempt_count: i64,
    next_attempt_at: Option<DateTime<Utc>>,
}

/// A page of a list.
#[derive(Serialize)]
pub struct Page<T> {
    data: Vec<T>,
    next_cursor: Option<String>,
}

/// Lists events, newest first.
pub async fn list(
    State(state): State<ApiState>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<EventBody>>, ApiError> {
    let application = application(query.application.as_deref())?;
    let limit = extract::limit(query.limit)?;
    let status = query.status.as_deref().map(status).transpose()?;
    let filter = EventFilter {
        event_type: query.r#type,
        subject: query.subject,
        status,
        created_from: query.created_after,
        created_until: query.created_before,
        older_than: query.cursor.as_deref().map(extract::event_of).transpose()?,
    };
    let page = state.store.event_page(application, &filter, limit).await?;
    Ok(Json(Page {
        data: page.events.into_iter().map(EventBody::from).collect(),
        next_cursor: page.next.map(extract::cursor_of),
    }))
}

fn status(name: &str) -> Result<EventStatus, ApiError> {
    EventStatus::from_name(name).ok_or_else(|| {
        let names: Vec<_> = EventStatus::ALL.iter().map(|status| status.as_str()).collect();
        ApiError::Invalid(format!("`status` must be one of {}", names.join(", ")))
    })
}

/// One event with all that happened to it.
#[derive(Serialize)]
pub struct EventDetailBody {
    #[serde(flatten)]
    event: EventBody,
    /// As it came; absent once it was dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<Box<RawValue>>,
    /// Of the latest attempt that failed.
    last_error: Option<ErrorBody>,
    deliveries: Vec<DeliveryBody>,
}

/// What went wrong in an attempt.
#[derive(Serialize, Clone)]
pub struct ErrorBody {
    class: String,
    message: String,
    status: Option<i16>,
    at: DateTime<Utc>,
}

/// A delivery with its attempts.
#[derive(Serialize)]
pub struct DeliveryBody {
    id: DeliveryId,
    target_url: String,
    state: String,
    reason: Option<String>,
    attempt_count: i32,
    next_attempt_at: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
    ended_at: Option<DateTime<Utc>>,
    attempts: Vec<AttemptBody>,
}

/// An exchange.
#[derive(Serialize)]
pub struct AttemptBody {
    id: AttemptId,
    scheduled_at: DateTime<Utc>,
    started_at: DateTime<Utc>,
    duration_ms: i32,
    request: RequestBody,
    response: Option<ResponseBody>,
    error: Option<ErrorBody>,
    is_late: bool,
}

/// What was sent.
#[derive(Serialize)]
pub struct RequestBody {
    method: &'static str,
    url: String,
    headers: BTreeMap<String, String>,
}

/// What came back.
#[derive(Serialize)]
pub struct ResponseBody {
    status: i16,
    headers: BTreeMap<String, String>,
    /// Bytes that are not UTF-8 are replaced.
    body: String,
    /// Whether there was, or may have been, more than is shown here.
    is_truncated: bool,
}

/// Shows one event.
pub async fn show(
    State(state): State<ApiState>,
    EventPath(id): EventPath,
) -> Result<Json<EventDetailBody>, ApiError> {
    let detail = state.store.event_detail(DEFAULT_APPLICATION, id).await?;
    Ok(Json(detail.ok_or(ApiError::EventNotFound)?.into()))
}

impl From<EventRow> for EventBody {
    fn from(row: EventRow) -> Self {
        Self {
            id: row.event_id(),
            status: row.status().as_str(),
            r#type: row.event_type,
            subject: row.subject,
            metadata: row.metadata.and_then(|json| RawValue::from_string(json).ok()),
            created_at: row.created_at,
            delivery_count: row.delivery_count,
            attempt_count: row.attempt_count,
            next_attempt_at: row.next_attempt_at,
        }
    }
}

impl From<EventDetail> for EventDetailBody {
    fn from(detail: EventDetail) -> Self {
        let payload = detail
            .payload
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .and_then(|json| RawValue::from_string(json).ok());
        let last_error = detail.attempts.iter().filter_map(error_of).max_by_key(|error| error.at);
        let mut attempts = detail.attempts.into_iter().peekable();
        let deliveries = detail
            .deliveries
            .into_iter()
            .map(|row| {
                let id = row.delivery_id();
                let mut own = Vec::new();
                while let Some(attempt) = attempts.next_if(|a| a.delivery_id() <= id) {
                    own.push(AttemptBody::from(attempt));
                }
                delivery_body(row, own)
            })
            .collect();
        Self { event: detail.event.into(), payload, last_error, deliveries }
    }
}

fn delivery_body(row: DeliveryRow, attempts: Vec<AttemptBody>) -> DeliveryBody {
    DeliveryBody {
        id: row.delivery_id(),
        target_url: row.target_url,
        state: row.state,
        reason: row.reason,
        attempt_count: row.attempt_count,
        next_attempt_at: row.next_attempt_at,
        created_at: row.created_at,
        ended_at: row.ended_at,
        attempts,
    }
}

fn error_of(row: &AttemptRow) -> Option<ErrorBody> {
    Some(ErrorBody {
        class: row.error_class.clone()?,
        message: row.error_message.clone()?,
        status: row.response_status,
        at: row.started_at,
    })
}

impl From<AttemptRow> for AttemptBody {
    fn from(row: AttemptRow) -> Self {
        let error = error_of(&row);
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
                method: "POST",
                url: row.request_url,
                headers: headers_of(&row.request_headers),
            },
            response,
            error,
            is_late: row.is_late,
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
