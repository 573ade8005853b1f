//! What signs the deliveries of a subscription: made, shown to who asks, and rotated.

use axum::{
    Json,
    extract::{Request, State},
    http::Uri,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    found,
    managed::is_ours,
    settings::{self, fault},
};
use crate::{
    clock::Clock,
    domain::{
        Permission, SigningKey, SigningKeyId,
        sealing::SealingKeys,
        signature::{is_standard_secret, signing_warning},
        subscription::sealed,
    },
    http::{
        ApiError, ApiState, body, caller::Caller, events, extract::SubscriptionPath, json::Members,
        problem::Problem,
    },
    store::{subscription_changes::NewSigningKey, subscriptions::SettingsRow},
};

/// How long a key that is rotated away signs on, in seconds: unless the caller says otherwise, and
/// at most.
pub const OVERLAP_SECONDS: f64 = 24.0 * 3_600.0;
pub const OVERLAP_SECONDS_MAX: f64 = 7.0 * 24.0 * 3_600.0;

/// The fields of a rotation.
pub const ROTATION_FIELDS: &[&str; 2] = &["secret", "overlap_seconds"];

/// The secret of a subscription, for who asks for it explicitly.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Secret")]
pub struct SecretBody {
    secret: String,
    /// Until when the secrets before this one sign beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_until: Option<DateTime<Utc>>,
    /// In the answer to a request that brings the secret: its weaknesses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// Shows the current secret: the one explicit way to it after it was made.
pub async fn secret(
    State(state): State<ApiState>,
    caller: Caller,
    SubscriptionPath(name): SubscriptionPath,
    uri: Uri,
) -> Result<Json<SecretBody>, Problem> {
    let application = events::application_of(&state, caller, &uri).await?;
    caller.must(Permission::Manage)?;
    let row = found(&state, application, &name).await?;
    let keys = state.store.signing_keys(row.id()).await?;
    let current = keys.first().ok_or(ApiError::Conflict("this subscription does not sign"))?;
    let opened = state.sealing.open(&current.sealed, &sealed::signing_key(current.id()));
    let secret = opened.map_err(|error| {
        tracing::error!(%error, subscription = %row.id(), "a secret cannot be opened");
        ApiError::Internal
    })?;
    let secret = String::from_utf8_lossy(secret.bytes()).into_owned();
    let previous_until = keys.iter().filter_map(|key| key.retires_at).max();
    Ok(Json(SecretBody { secret, previous_until, warnings: Vec::new() }))
}

/// Makes a new secret, or takes the caller's; those before sign beside it for the overlap.
pub async fn rotate_secret(
    State(state): State<ApiState>,
    caller: Caller,
    SubscriptionPath(name): SubscriptionPath,
    uri: Uri,
    request: Request,
) -> Result<Json<SecretBody>, Problem> {
    let application = events::application_of(&state, caller, &uri).await?;
    caller.must(Permission::Manage)?;
    let body = body::read_json(request, state.body_limit, None).await?;
    let given = Members::of(body::text(&body)?, ROTATION_FIELDS)?;
    let secret = settings::secret(&given, "secret")?.unwrap_or_else(new_secret);
    let warnings = signing_warning("secret", &secret).into_iter().collect();
    is_key(&secret)?;
    let overlap = given.number("overlap_seconds")?.unwrap_or(OVERLAP_SECONDS);
    if !(0.0..=OVERLAP_SECONDS_MAX).contains(&overlap) {
        return Err(fault("overlap_seconds", format!("must be 0 to {OVERLAP_SECONDS_MAX}")));
    }
    let overlap = std::time::Duration::from_secs_f64(overlap);
    let row = found(&state, application, &name).await?;
    is_ours(&state, application, &row).await?;
    if row.settings.signing == "none" {
        return Err(ApiError::Conflict("this subscription does not sign").into());
    }
    let key = signing_key(&state.clock, &state.sealing, &secret);
    if !state.store.rotate_signing_key(application, row.id(), &key, overlap).await? {
        return Err(ApiError::SubscriptionNotFound(None).into());
    }
    let previous_until = (!overlap.is_zero()).then(|| state.clock.now() + overlap);
    Ok(Json(SecretBody { secret, previous_until, warnings }))
}

/// The secret of a new subscription: the caller's, or a new one; none where signing is off.
pub fn secret_for(
    settings: &SettingsRow,
    given: Option<String>,
) -> Result<Option<String>, Problem> {
    match (settings.signing.as_str(), given) {
        ("none", Some(_)) => Err(fault("secret", "has no use where `signing` is none")),
        ("none", None) => Ok(None),
        (_, Some(secret)) => {
            is_key(&secret)?;
            Ok(Some(secret))
        }
        (_, None) => Ok(Some(new_secret())),
    }
}

/// A secret that says it is base64 must be: its receivers would decode it, or fail.
pub fn is_key(secret: &str) -> Result<(), Problem> {
    let is_sound = !secret.starts_with("whsec_") || is_standard_secret(secret);
    if is_sound && SigningKey::from_secret(secret).is_ok() {
        Ok(())
    } else {
        Err(fault("secret", "must be `whsec_` and base64 of 24 to 64 bytes, or any other text"))
    }
}

/// 32 random bytes, in the form of Standard Webhooks.
pub fn new_secret() -> String {
    format!("whsec_{}", STANDARD.encode(rand::random::<[u8; 32]>()))
}

/// A key of this secret, sealed.
pub fn signing_key(clock: &Clock, sealing: &SealingKeys, secret: &str) -> NewSigningKey {
    let id = SigningKeyId::new(clock.unix_ms(), rand::random());
    let context = sealed::signing_key(id);
    NewSigningKey { id, sealed: sealing.seal(secret.as_bytes(), &context, rand::random()) }
}
