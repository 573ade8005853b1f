//! A subscription as answers show it.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    attention::AttentionBody,
    managed::PAYLOAD,
    settings::{self, REDACTED, names},
};
use crate::{
    domain::{
        ApplicationId, SubscriptionId,
        subscription::{DisabledBecause, Method, PayloadFormat, SignatureHeaders},
    },
    http::{ApiError, ApiState, openapi::schemas},
    store::subscriptions::SubscriptionRow,
};

/// A subscription as it is shown.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Subscription")]
pub struct SubscriptionBody {
    id: SubscriptionId,
    application_id: ApplicationId,
    uid: Option<String>,
    /// Who keeps it, if it is not kept here: then it is changed there.
    managed_by: Option<ManagedByBody>,
    revision: i32,
    target_url: String,
    event_types: Vec<String>,
    #[schemars(with = "Option<schemas::Filter>")]
    filter: Option<Box<RawValue>>,
    #[schemars(extend("enum" = names(Method::ALL, Method::as_str)))]
    method: String,
    /// Their values are shown to nobody.
    headers: BTreeMap<String, &'static str>,
    #[schemars(extend("enum" = settings::SIGNING))]
    signing: String,
    #[schemars(extend("enum" = names(SignatureHeaders::ALL, SignatureHeaders::as_str)))]
    signature_headers: String,
    is_active: bool,
    /// Since when and why, if it is not active.
    disabled: Option<DisabledBody>,
    disable_after_seconds: Option<i32>,
    timeout_seconds: Option<f64>,
    #[schemars(with = "Option<schemas::Retry>")]
    retry: Option<Box<RawValue>>,
    #[schemars(with = "Option<schemas::RateLimit>")]
    rate_limit: Option<Box<RawValue>>,
    max_in_flight: Option<i32>,
    #[schemars(extend("enum" = names(PayloadFormat::ALL, PayloadFormat::as_str)))]
    payload_format: String,
    schema_version: String,
    has_inbound_secret: bool,
    /// The header that names the type of what comes in, if the sender's is not `X-Event-Type`.
    inbound_type_header: Option<String>,
    description: Option<String>,
    metadata: Option<Box<RawValue>>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    /// Why somebody should look at it, in a list of those that want it.
    #[serde(skip_serializing_if = "Option::is_none")]
    attention: Option<Vec<AttentionBody>>,
    /// In the answer that makes it, and never again in this form.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
    /// In the answer to a request that brings a secret: its weaknesses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

impl SubscriptionBody {
    /// The same, with why somebody should look at it.
    pub(super) fn because(self, attention: Vec<AttentionBody>) -> Self {
        Self { attention: Some(attention), ..self }
    }

    /// The same, with warnings about the request.
    pub(super) fn warned(self, warnings: Vec<String>) -> Self {
        Self { warnings, ..self }
    }
}

/// What keeps a subscription instead of this API.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ManagedBy")]
pub struct ManagedByBody {
    #[schemars(extend("const" = PAYLOAD))]
    system: &'static str,
    /// The document that it is there.
    document_id: String,
}

/// Since when, and why, a subscription is disabled.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Disabled")]
pub struct DisabledBody {
    at: DateTime<Utc>,
    /// Its owner said so, its receiver answered 410, or all has failed for long.
    #[schemars(extend("enum" = names(DisabledBecause::ALL, DisabledBecause::as_str)))]
    because: String,
}

impl DisabledBody {
    /// `None` of one that is active.
    pub fn of(at: Option<DateTime<Utc>>, because: Option<String>) -> Option<Self> {
        at.zip(because).map(|(at, because)| Self { at, because })
    }
}

/// Shows a subscription, and its secret if it has just been made.
pub(super) fn shown(
    state: &ApiState,
    application_id: ApplicationId,
    row: SubscriptionRow,
    secret: Option<String>,
) -> Result<SubscriptionBody, ApiError> {
    let id = row.id();
    let json = |text: Option<String>| text.and_then(|text| RawValue::from_string(text).ok());
    let SubscriptionRow {
        uid, revision, created_at, updated_at, cms_document_id, settings, ..
    } = row;
    let headers = match &settings.sealed_headers {
        Some(sealed) => settings::open_headers(id, sealed, &state.sealing)?,
        None => BTreeMap::new(),
    };
    Ok(SubscriptionBody {
        id,
        application_id,
        uid,
        managed_by: cms_document_id
            .map(|document_id| ManagedByBody { system: PAYLOAD, document_id }),
        revision,
        target_url: settings.target_url,
        event_types: settings.event_types,
        filter: json(settings.filter),
        method: settings.method,
        headers: headers.into_keys().map(|name| (name, REDACTED)).collect(),
        signing: settings.signing,
        signature_headers: settings.signature_headers,
        is_active: settings.is_active,
        disabled: DisabledBody::of(settings.disabled_at, settings.disabled_because),
        disable_after_seconds: settings.disable_after_s,
        timeout_seconds: settings.timeout_ms.map(|ms| f64::from(ms) / 1_000.0),
        retry: json(settings.retry),
        rate_limit: json(settings.rate_limit),
        max_in_flight: settings.max_in_flight,
        payload_format: settings.payload_format,
        schema_version: settings.schema_version,
        has_inbound_secret: settings.sealed_inbound_secret.is_some(),
        inbound_type_header: settings.inbound_type_header,
        description: settings.description,
        metadata: json(settings.metadata),
        created_at,
        updated_at,
        attention: None,
        secret,
        warnings: Vec::new(),
    })
}
