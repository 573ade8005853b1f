//! `POST /events`, `GET /events`, `GET /events/{id}`.

use axum::{
    Json,
    extract::{Request, State},
    http::{StatusCode, Uri},
};
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{
    ApiError, ApiState, body,
    caller::Caller,
    catalogue::Suggestions,
    deliveries::{DeliveryBody, ErrorBody},
    extract::{self, Cursor, EventPath, IdempotencyHeader, Parameters},
    problem::{Place, Problem},
    submission::{self, OuterKey},
    upstream::Arrival,
};
use crate::{
    domain::{ApplicationId, EventId, EventStatus, EventType, Permission, Subject, Submission},
    store::history::{EventDetail, EventFilter, EventRow},
    telemetry,
};

/// The answer of `POST /events`.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Accepted")]
pub struct AcceptedBody {
    id: EventId,
    #[schemars(extend("const" = "accepted"))]
    status: &'static str,
}

/// Accepts an event: 202 after the commit.
pub async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    key: Option<IdempotencyHeader>,
    Arrival(upstream): Arrival,
    request: Request,
) -> Result<(StatusCode, Json<AcceptedBody>), Problem> {
    let body = body::read_json(request, state.body_limit, None).await?;
    let key = key.map(|key| OuterKey::OfRequest(key.0));
    let (text, mut suggestions) = (body::text(&body)?, Suggestions::default());
    let submission = submission::read(&state, caller, &body, text, key, &mut suggestions).await?;
    drop(body);
    let result = state.ingest.submit(Submission { upstream, ..submission }).await;
    telemetry::submitted(result.is_ok());
    let accepted = result?;
    Ok((StatusCode::ACCEPTED, Json(AcceptedBody { id: accepted.event_id, status: "accepted" })))
}

/// The parameters of `GET /events`.
pub const PARAMETERS: &[&str; 8] = &[
    "application",
    "type",
    "subject",
    "status",
    "created_after",
    "created_before",
    "limit",
    "cursor",
];

/// An event as lists show it.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Event")]
pub struct EventBody {
    id: EventId,
    r#type: Option<String>,
    subject: Option<String>,
    metadata: Option<Box<RawValue>>,
    #[schemars(extend("enum" = EventStatus::ALL.map(EventStatus::as_str)))]
    status: &'static str,
    created_at: DateTime<Utc>,
    delivery_count: i32,
    attempt_count: i64,
    next_attempt_at: Option<DateTime<Utc>>,
}

/// A page of a list.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "PageOf{T}")]
pub struct Page<T> {
    /// What is on it.
    pub data: Vec<T>,
    /// Where the next one begins, if there is one.
    pub next_cursor: Option<String>,
}

/// Lists events, newest first.
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    uri: Uri,
) -> Result<Json<Page<EventBody>>, Problem> {
    caller.must(Permission::Read)?;
    let given = Parameters::of(&uri, PARAMETERS)?;
    let application = application(&state, caller, &given).await?;
    let filter = EventFilter {
        event_type: given.read("type", EventType::parse)?.map(|name| name.as_str().to_owned()),
        subject: given.read("subject", Subject::parse)?.map(|name| name.as_str().to_owned()),
        status: given.read("status", status)?,
        created_from: given.read("created_after", extract::time)?,
        created_until: given.read("created_before", extract::time)?,
        older_than: given.read("cursor", |text| Cursor::Events.read(text))?.map(EventId::from_uuid),
    };
    let limit = given.read("limit", extract::limit)?.unwrap_or(extract::LIMIT_DEFAULT);
    let page = state.store.event_page(application, &filter, limit).await?;
    Ok(Json(Page {
        data: page.events.into_iter().map(EventBody::from).collect(),
        next_cursor: page.next.map(|id| Cursor::Events.after(id.uuid())),
    }))
}

/// The application that a query is about.
pub async fn application<const N: usize>(
    state: &ApiState,
    caller: Caller,
    given: &Parameters<N>,
) -> Result<ApplicationId, Problem> {
    let named = caller.application(state, given.text("application")).await;
    named.map_err(|error| error.at(Place::Parameter("application".to_owned())))
}

/// The application that the query names, where nothing else stands in it.
pub async fn application_of(
    state: &ApiState,
    caller: Caller,
    uri: &Uri,
) -> Result<ApplicationId, Problem> {
    application(state, caller, &Parameters::of(uri, extract::OF_APPLICATION)?).await
}

/// Which page of a list of an application is asked for, where the list has no filters.
pub struct PageAsked {
    /// The application.
    pub application: ApplicationId,
    /// How many items at most.
    pub limit: usize,
    /// Behind which id it begins.
    pub older_than: Option<Uuid>,
}

impl PageAsked {
    /// Reads it off the query of somebody who may read.
    pub async fn of(
        state: &ApiState,
        caller: Caller,
        uri: &Uri,
        cursor: Cursor,
    ) -> Result<Self, Problem> {
        let given = Parameters::of(uri, extract::OF_APPLICATION_PAGE)?;
        let application = application(state, caller, &given).await?;
        caller.must(Permission::Read)?;
        let limit = given.read("limit", extract::limit)?.unwrap_or(extract::LIMIT_DEFAULT);
        let older_than = given.read("cursor", |text| cursor.read(text))?;
        Ok(Self { application, limit, older_than })
    }
}

fn status(name: &str) -> Result<EventStatus, String> {
    extract::one_of(&EventStatus::ALL, EventStatus::as_str, name)
}

/// One event with all that happened to it.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "EventDetail")]
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

/// Shows one event.
pub async fn show(
    State(state): State<ApiState>,
    caller: Caller,
    EventPath(id): EventPath,
    uri: Uri,
) -> Result<Json<EventDetailBody>, Problem> {
    let application = application_of(&state, caller, &uri).await?;
    caller.must(Permission::Read)?;
    let detail = state.store.event_detail(application, id).await?;
    Ok(Json(detail.ok_or(ApiError::EventNotFound(None))?.into()))
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
        let last_error =
            detail.attempts.iter().filter_map(ErrorBody::of).max_by_key(|error| error.at);
        let mut attempts = detail.attempts.into_iter().peekable();
        let deliveries = detail
            .deliveries
            .into_iter()
            .map(|row| {
                let id = row.delivery_id();
                let mut own = Vec::new();
                while let Some(attempt) = attempts.next_if(|a| a.delivery_id() <= id) {
                    own.push(attempt);
                }
                DeliveryBody::of(row, own)
            })
            .collect();
        Self { event: detail.event.into(), payload, last_error, deliveries }
    }
}
