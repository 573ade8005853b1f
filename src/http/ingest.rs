//! `POST /ingest/{subscription_id}`: what another system sends, for one subscription.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, Uri},
};
use bytes::Bytes;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::Semaphore;

use super::{
    ApiError, ApiState, body,
    caller::{Caller, application_name},
    catalogue, events,
    extract::{self, IdempotencyHeader, Parameters, SubscriptionPath},
    json::Members,
    problem::{Place, Problem},
    submission,
    upstream::Arrival,
};
use crate::{
    domain::{
        ApplicationId, DeliveryId, EventId, EventType, IdempotencyKey, Payload, Permission,
        SigningKey, Submission,
        event::{EventError, Route},
        subscription::sealed,
    },
    store::subscriptions::{SubscriptionName, SubscriptionRow},
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

/// Number of look-ups for callers without a key that may run at a time: they share connections with
/// everybody else.
const UNKNOWN_LOOKUPS_MAX: usize = 2;
/// Time that such a caller waits for its look-up.
const UNKNOWN_LOOKUP_WAIT: Duration = Duration::from_secs(2);

/// Number of keys that a sender may derive from one secret.
const INBOUND_KEYS_MAX: usize = 2;

/// The look-ups for callers without a key. Cheap to clone.
#[derive(Debug, Clone)]
pub struct UnknownLookups(Arc<Semaphore>);

impl Default for UnknownLookups {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(UNKNOWN_LOOKUPS_MAX)))
    }
}

/// Whether a request without a key may be admitted by its signature instead.
pub fn may_be_signed(request: &Request) -> bool {
    let id = request.uri().path().strip_prefix("/ingest/");
    request.method() == Method::POST && id.is_some_and(|id| !id.is_empty() && !id.contains('/'))
}

/// What a request says of the event beside its body.
struct Head {
    idempotency_key: Option<IdempotencyKey>,
    event_type: Option<EventType>,
    signature: Option<String>,
    headers: HeaderMap,
}

/// Accepts an event for one subscription, whatever its patterns and its filter say. Where it has an
/// `inbound_secret`, only what that has signed; such a signature needs no key beside it.
pub async fn create(
    State(state): State<ApiState>,
    caller: Option<Caller>,
    name: Result<SubscriptionPath, ApiError>,
    uri: Uri,
    key: Option<IdempotencyHeader>,
    Arrival(upstream): Arrival,
    request: Request,
) -> Result<(StatusCode, Json<IngestedBody>), Problem> {
    let idempotency_key = key.map(|key| submission::header_key(&key.0)).transpose()?;
    let event_type = extract::header(request.headers(), EVENT_TYPE)?;
    let event_type = event_type.map(|text| event_type_of(EVENT_TYPE, &text)).transpose()?;
    let signature = extract::header(request.headers(), SIGNATURE)?;
    let headers = request.headers().clone();
    let head = Head { idempotency_key, event_type, signature, headers };
    let given = Parameters::of(&uri, extract::OF_APPLICATION)?;
    let (application, row, body) = if let Some(caller) = caller {
        let SubscriptionPath(name) = name?;
        let application = events::application(&state, caller, &given).await?;
        caller.must(Permission::Publish)?;
        let body = read(&state, request).await?;
        let row = state.store.subscription(application, &name).await?;
        let row = row.ok_or(ApiError::SubscriptionNotFound(None))?;
        let body = match inbound_keys(&state, &row)? {
            Some(keys) => verified(&keys, body, head.signature.as_deref())?,
            None => body,
        };
        (application, row, body)
    } else {
        let body = read(&state, request).await?;
        let SubscriptionPath(name) = name.map_err(|_| ApiError::UnauthorizedIngest)?;
        signed(&state, &name, given.text("application"), body, &head).await?
    };
    let idempotency_key = match (head.idempotency_key, caller) {
        // Whoever has the secret of one subscription must not take the keys of its application.
        (Some(key), None) => Some(key.within(&format!("ingest/{}", row.id()))),
        (key, _) => key,
    };
    let event_type = match (head.event_type, &row.settings.inbound_type_header) {
        (Some(event_type), _) => Some(event_type),
        (None, Some(name)) => own_type(name, &head.headers)?,
        (None, None) => None,
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
        upstream,
    };
    let result = state.ingest.submit(submission).await;
    telemetry::submitted(result.is_ok());
    let event_id = result?.event_id;
    let task_id = DeliveryId::of_event(event_id, 0);
    Ok((StatusCode::ACCEPTED, Json(IngestedBody { task_id, event_id })))
}

async fn read(state: &ApiState, request: Request) -> Result<Bytes, ApiError> {
    if body::is_form(request.headers()) {
        return Err(ApiError::Form);
    }
    body::read_json(request, state.body_limit, None).await
}

/// Admits a caller without a key by its signature. All that it can be refused for looks the same, and
/// takes as long: a subscription that does not exist is as one that has signed nothing of this.
async fn signed(
    state: &ApiState,
    name: &SubscriptionName,
    application: Option<&str>,
    body: Bytes,
    head: &Head,
) -> Result<(ApplicationId, SubscriptionRow, Bytes), Problem> {
    let refused = || Problem::from(ApiError::UnauthorizedIngest);
    // What is not signed at all costs no look-up.
    let is_signed =
        head.signature.is_some() || Members::of(body::text(&body)?, SIGNED_FIELDS).is_ok();
    if !is_signed {
        return Err(refused());
    }
    let application = application.map(application_name).transpose().map_err(|_| refused())?;
    let row = {
        let lookups = state.unknown_lookups.0.clone();
        let permit = tokio::time::timeout(UNKNOWN_LOOKUP_WAIT, lookups.acquire_owned()).await;
        let Ok(Ok(_permit)) = permit else { return Err(ApiError::Busy.into()) };
        state.store.subscription_of(application.as_ref(), name).await?
    };
    // A secret that does not open is logged, and is as good as none.
    let keys = row.as_ref().and_then(|(_, row)| inbound_keys(state, row).ok().flatten());
    let is_known = keys.is_some();
    // The same work for nothing: HMAC of the body by keys that nobody has.
    let mut keys = keys.unwrap_or_default();
    keys.resize_with(INBOUND_KEYS_MAX, || SigningKey::from_random(rand::random()));
    let verified = verified(&keys, body, head.signature.as_deref());
    match (row, verified) {
        (Some((application, row)), Ok(body)) if is_known => Ok((application, row, body)),
        _ => Err(refused()),
    }
}

fn event_type_of(header: &str, text: &str) -> Result<EventType, Problem> {
    let fault = |error: EventError| {
        ApiError::Invalid(format!("`{header}` {error}")).at(Place::Header(header.to_owned().into()))
    };
    submission::published_type(text).map_err(fault)
}

/// The type that the subscription's own header names.
fn own_type(name: &str, headers: &HeaderMap) -> Result<Option<EventType>, Problem> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    event_type_of(name, value.to_str().unwrap_or_default()).map(Some)
}

/// The keys that must have signed what comes in, if any must.
fn inbound_keys(
    state: &ApiState,
    row: &SubscriptionRow,
) -> Result<Option<Vec<SigningKey>>, ApiError> {
    let Some(secret) = &row.settings.sealed_inbound_secret else { return Ok(None) };
    let opened = state.sealing.open(secret, &sealed::inbound_secret_of(row.id()));
    let keys = opened.ok().and_then(|secret| {
        let text = std::str::from_utf8(secret.bytes()).ok()?;
        Some(SigningKey::inbound(text))
    });
    keys.map(Some).ok_or_else(|| {
        tracing::error!(subscription = %row.id(), "an inbound secret cannot be opened");
        ApiError::Internal
    })
}

/// What was signed: the body, by the header, or the text that a body carries beside its signature.
fn verified(keys: &[SigningKey], body: Bytes, header: Option<&str>) -> Result<Bytes, Problem> {
    let refused = || ApiError::InboundSignature;
    let verifies = |body: &[u8], hex: &str| {
        // Every key is tried: the time says nothing of which one it was.
        keys.iter().fold(false, |verified, key| key.verifies_body(body, hex) | verified)
    };
    if let Some(header) = header {
        let hex = header.strip_prefix("sha256=").unwrap_or_default();
        let refused = refused().at(Place::Header(SIGNATURE.into()));
        return if verifies(&body, hex) { Ok(body) } else { Err(refused) };
    }
    let given = Members::of(body::text(&body)?, SIGNED_FIELDS).map_err(|_| refused())?;
    let (Some(inner), Some(hex)) = (given.string("body")?, given.string("signature")?) else {
        return Err(refused().into());
    };
    let hex = hex.strip_prefix("sha256=").unwrap_or(&hex);
    if verifies(inner.as_bytes(), hex) {
        Ok(as_json(inner))
    } else {
        Err(refused().at(Place::Pointer("/signature".to_owned())))
    }
}

/// A signed text as JSON: as it stands where it is JSON, or means to be, else as a string.
fn as_json(text: String) -> Bytes {
    let means_json = text.trim_start().starts_with(['{', '[', '"']);
    if means_json || serde_json::from_str::<&serde_json::value::RawValue>(&text).is_ok() {
        return Bytes::from(text);
    }
    Bytes::from(serde_json::Value::String(text).to_string())
}

/// A body that is one JSON value.
fn json(body: &Bytes) -> Result<Payload, Problem> {
    let text = body::text(body)?;
    let parsed = serde_json::from_str::<&serde_json::value::RawValue>(text);
    let value = parsed.map_err(|error| ApiError::Malformed(error.to_string()))?;
    let payload = Payload::from_json(body::part_of(body, value.get()));
    payload.map_err(|error| ApiError::Invalid(format!("the body {error}")).into())
}
