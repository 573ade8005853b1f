//! `POST /ingest/{subscription_id}`: what another system sends, for one subscription.

use axum::{
    Json,
    extract::{Request, State},
    http::{StatusCode, Uri},
};
use bytes::Bytes;
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    ApiError, ApiState, body,
    caller::Caller,
    catalogue, events,
    extract::{self, IdempotencyHeader, SubscriptionPath},
    json::Members,
    problem::{Place, Problem},
    submission,
};
use crate::{
    domain::{
        DeliveryId, EventId, EventType, Payload, Permission, SigningKey, Submission,
        event::{EventError, Route},
        subscription::sealed,
    },
    store::subscriptions::SubscriptionRow,
    telemetry,
};

/// The header that tells the type.
pub const EVENT_TYPE: &str = "X-Event-Type";
/// The header that signs the body: `sha256=` and the hexadecimal HMAC-SHA256 over it.
pub const SIGNATURE: &str = "X-Hub-Signature-256";
/// The members of a body that brings its own signature.
pub const SIGNED_FIELDS: &[&str; 2] = &["body", "signature"];

/// What became of what came in.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Ingested")]
pub struct IngestedBody {
    /// The delivery: `GET /status/{task_id}` says what becomes of it.
    task_id: DeliveryId,
    event_id: EventId,
}

/// Accepts an event for one subscription, whatever its patterns and its filter say. Where it has an
/// `inbound_secret`, only what that has signed.
pub async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    SubscriptionPath(name): SubscriptionPath,
    uri: Uri,
    key: Option<IdempotencyHeader>,
    request: Request,
) -> Result<(StatusCode, Json<IngestedBody>), Problem> {
    let application = events::application_of(&state, caller, &uri).await?;
    caller.must(Permission::Publish)?;
    let idempotency_key = key.map(|key| submission::header_key(&key.0)).transpose()?;
    let event_type = extract::header(request.headers(), EVENT_TYPE)?.map(|text| event_type(&text));
    let event_type = event_type.transpose()?;
    let signature = extract::header(request.headers(), SIGNATURE)?;
    let body = body::read_json(request, state.body_limit, None).await?;
    let row = state.store.subscription(application, &name).await?;
    let row = row.ok_or(ApiError::SubscriptionNotFound(None))?;
    let body = match inbound_key(&state, &row)? {
        Some(key) => verified(&key, body, signature.as_deref())?,
        None => body,
    };
    let payload = json(&body)?;
    if let Some(event_type) = &event_type {
        catalogue::check(&state, application, event_type, &payload).await?;
    }
    let submission = Submission {
        application,
        event_type,
        payload,
        route: Route::One(row.id()),
        subject: None,
        metadata: None,
        idempotency_key,
    };
    let result = state.ingest.submit(submission).await;
    telemetry::submitted(result.is_ok());
    let event_id = result?.event_id;
    let task_id = DeliveryId::of_event(event_id, 0);
    Ok((StatusCode::ACCEPTED, Json(IngestedBody { task_id, event_id })))
}

fn event_type(text: &str) -> Result<EventType, Problem> {
    let fault = |error: EventError| {
        ApiError::Invalid(format!("`{EVENT_TYPE}` {error}")).at(Place::Header(EVENT_TYPE))
    };
    submission::published_type(text).map_err(fault)
}

/// What must have signed what comes in, if anything must.
fn inbound_key(state: &ApiState, row: &SubscriptionRow) -> Result<Option<SigningKey>, ApiError> {
    let Some(secret) = &row.settings.sealed_inbound_secret else { return Ok(None) };
    let opened = state.sealing.open(secret, &sealed::inbound_secret_of(row.id()));
    let key = opened.ok().and_then(|secret| {
        let text = std::str::from_utf8(secret.bytes()).ok()?;
        SigningKey::from_secret(text).ok()
    });
    key.map(Some).ok_or_else(|| {
        tracing::error!(subscription = %row.id(), "an inbound secret cannot be opened");
        ApiError::Internal
    })
}

/// What was signed: the body, by the header, or the text that a body carries beside its signature.
fn verified(key: &SigningKey, body: Bytes, header: Option<&str>) -> Result<Bytes, Problem> {
    let refused = || ApiError::InboundSignature;
    if let Some(header) = header {
        let hex = header.strip_prefix("sha256=").unwrap_or_default();
        let refused = refused().at(Place::Header(SIGNATURE));
        return if key.verifies_body(&body, hex) { Ok(body) } else { Err(refused) };
    }
    let given = Members::of(body::text(&body)?, SIGNED_FIELDS).map_err(|_| refused())?;
    let (Some(inner), Some(hex)) = (given.string("body")?, given.string("signature")?) else {
        return Err(refused().into());
    };
    if key.verifies_body(inner.as_bytes(), &hex) {
        Ok(Bytes::from(inner))
    } else {
        Err(refused().at(Place::Pointer("/signature".to_owned())))
    }
}

/// A body that is one JSON value.
fn json(body: &Bytes) -> Result<Payload, Problem> {
    let text = body::text(body)?;
    let parsed = serde_json::from_str::<&serde_json::value::RawValue>(text);
    let value = parsed.map_err(|error| ApiError::Malformed(error.to_string()))?;
    let payload = Payload::from_json(body::part_of(body, value.get()));
    payload.map_err(|error| ApiError::Invalid(format!("the body {error}")).into())
}
