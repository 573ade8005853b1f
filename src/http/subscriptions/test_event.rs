//! `POST /subscriptions/{id}/test`: an example of what the subscription asks for, sent for real.

use axum::{
    Json,
    extract::{Request, State},
    http::{StatusCode, Uri},
};
use bytes::Bytes;
use schemars::JsonSchema;
use serde::Serialize;

use super::found;
use crate::{
    domain::{
        ApplicationId, DeliveryId, EventId, EventType, EventTypePattern, EventTypePatterns,
        Payload, Permission, Submission, TargetUrl,
        event::{Metadata, Route},
        operator,
    },
    http::{
        ApiError, ApiState, body,
        caller::Caller,
        catalogue, event_types, events,
        extract::{IdempotencyHeader, SubscriptionPath},
        hosts,
        json::Members,
        problem::Problem,
        submission,
        upstream::Arrival,
    },
    store::event_types::{EventTypeFilter, Listed},
    telemetry,
};

/// The fields of a test.
pub const FIELDS: &[&str; 2] = &["type", "payload"];
/// The type of a test that names none, of a subscription that names none that the catalogue knows.
const TYPE_DEFAULT: &str = "test";
/// The payload where neither the request nor the catalogue has one.
const PAYLOAD_DEFAULT: &str = r#"{"test":true}"#;
/// What tells a receiver that nothing has happened.
const METADATA: &str = r#"{"test":true}"#;

/// A test under way.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "AcceptedTest")]
pub struct TestBody {
    id: EventId,
    #[schemars(extend("const" = "accepted"))]
    status: &'static str,
    /// What was sent, or will be in a moment.
    delivery_id: DeliveryId,
    r#type: String,
}

/// Sends an event to one subscription, whatever its patterns and its filter say: signed, retried and
/// logged like all others.
pub async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    SubscriptionPath(name): SubscriptionPath,
    uri: Uri,
    key: Option<IdempotencyHeader>,
    Arrival(upstream): Arrival,
    request: Request,
) -> Result<(StatusCode, Json<TestBody>), Problem> {
    let application = events::application_of(&state, caller, &uri).await?;
    caller.must(Permission::Manage)?;
    let body = body::read_json(request, state.body_limit, None).await?;
    let given = Members::of(body::text(&body)?, FIELDS)?;
    let event_type = submission::field(&given, "type", EventType::parse)?;
    let payload = given.raw("payload").map(|payload| body::part_of(&body, payload.get()));
    let idempotency_key = key.map(|key| submission::header_key(&key.0)).transpose()?;

    let row = found(&state, application, &name).await?;
    if !row.settings.is_active {
        return Err(ApiError::Conflict("this subscription is disabled; enable it first").into());
    }
    let unreadable = |detail: String| {
        tracing::error!(detail, subscription = %row.id(), "a stored subscription cannot be read");
        ApiError::Internal
    };
    let target = TargetUrl::from_stored(&row.settings.target_url);
    let target = target.map_err(|error| unreadable(error.to_string()))?;
    let refused = state.targets.addresses.vet_target(&target);
    refused.map_err(|refused| ApiError::TargetRefused(refused.to_string()))?;
    hosts::check(&state, application, &target).await?;
    let (event_type, example) = if let Some(event_type) = event_type {
        let example = example_of(&state, application, &event_type).await?;
        (event_type, example)
    } else {
        let patterns = EventTypePatterns::parse(&row.settings.event_types);
        let patterns = patterns.map_err(|error| unreadable(error.to_string()))?;
        example_for(&state, application, &patterns).await?
    };
    let payload = payload.or(example).unwrap_or(Bytes::from_static(PAYLOAD_DEFAULT.as_bytes()));
    let payload =
        Payload::from_json(payload).map_err(|error| submission::fault("payload", error))?;
    if event_type.as_str() != TYPE_DEFAULT {
        catalogue::check(&state, application, &event_type, &payload).await?;
    }
    let submission = Submission {
        application,
        event_type: Some(event_type.clone()),
        payload,
        route: Route::One(row.id()),
        subject: None,
        metadata: Metadata::from_json(METADATA).ok(),
        idempotency_key,
        upstream,
    };
    let result = state.ingest.submit(submission).await;
    telemetry::submitted(result.is_ok());
    let id = result?.event_id;
    let delivery_id = DeliveryId::of_event(id, 0);
    let r#type = event_type.as_str().to_owned();
    Ok((StatusCode::ACCEPTED, Json(TestBody { id, status: "accepted", delivery_id, r#type })))
}

/// The example that the catalogue has of a type: the application's own, else the instance's.
async fn example_of(
    state: &ApiState,
    application: ApplicationId,
    event_type: &EventType,
) -> Result<Option<Bytes>, ApiError> {
    if let Some(example) = operator::example_of(event_type.as_str()) {
        return Ok(Some(Bytes::from_static(example.as_bytes())));
    }
    let row = event_types::seen_by(state, application, event_type).await?;
    Ok(row.and_then(|row| row.definition().example).map(Bytes::from))
}

/// A type that the subscription asks for, and its example: the first that it names, else the first
/// of the catalogue that it means.
async fn example_for(
    state: &ApiState,
    application: ApplicationId,
    patterns: &EventTypePatterns,
) -> Result<(EventType, Option<Bytes>), ApiError> {
    let mut named = patterns.as_slice().iter().filter_map(|pattern| match pattern {
        EventTypePattern::Exact(name) => Some(name),
        EventTypePattern::Below(_) | EventTypePattern::All => None,
    });
    if let Some(name) = named.next() {
        return Ok((name.clone(), example_of(state, application, name).await?));
    }
    for pattern in patterns.as_slice() {
        let below = match pattern {
            EventTypePattern::Below(name) => Some(format!("{}.", name.as_str())),
            EventTypePattern::Exact(_) | EventTypePattern::All => None,
        };
        let filter = EventTypeFilter {
            catalogue: Listed::SeenBy(application),
            prefix: below.as_deref(),
            is_deprecated: None,
            after: None,
        };
        let known = state.store.event_types(&filter, 1).await?;
        if let Some(row) = known.into_iter().next()
            && let Ok(name) = EventType::parse(&row.name)
        {
            return Ok((name, row.definition().example.map(Bytes::from)));
        }
    }
    let name = EventType::parse(TYPE_DEFAULT).map_err(|_| ApiError::Internal)?;
    Ok((name, None))
}
