//! Subscriptions that a CMS keeps: its documents become settings by the same checks as requests, and
//! what it owns is not changed here.

use std::time::Duration;

use serde_json::{Map, Value};

use super::{
    Bounds,
    secrets::{OVERLAP_SECONDS, is_key, new_secret, secret_for, signing_key},
    settings::Given,
    stamped,
};
use crate::{
    clock::Clock,
    domain::{
        AllowedHosts, ApplicationId, SubscriptionId, sealing::SealingKeys,
        subscription::DisabledBecause,
    },
    http::{ApiError, ApiState, hosts, problem::Problem},
    store::{
        subscription_changes::NewSigningKey,
        subscriptions::{SettingsRow, SubscriptionRow},
    },
};

/// What owns such subscriptions, as they are shown.
pub const PAYLOAD: &str = "payload";
/// The fields of a document, and what they are in a request. All others are the CMS's own affair.
const FIELDS: [(&str, &str); 20] = [
    ("url", "url"),
    ("events", "events"),
    ("isActive", "is_active"),
    ("secret", "secret"),
    ("filter", "filter"),
    ("method", "method"),
    ("headers", "headers"),
    ("signing", "signing"),
    ("signatureHeaders", "signature_headers"),
    ("payloadFormat", "payload_format"),
    ("schemaVersion", "schema_version"),
    ("timeoutSeconds", "timeout_seconds"),
    ("retry", "retry"),
    ("rateLimit", "rate_limit"),
    ("maxInFlight", "max_in_flight"),
    ("disableAfterSeconds", "disable_after_seconds"),
    ("inboundSecret", "inbound_secret"),
    ("inboundTypeHeader", "inbound_type_header"),
    ("description", "description"),
    ("metadata", "metadata"),
];

/// What documents are checked against, and what seals their secrets.
#[derive(Debug, Clone)]
pub struct DocumentChecks {
    /// As of requests.
    pub bounds: Bounds,
    /// Seals secrets and headers.
    pub sealing: SealingKeys,
    /// For ids, and since when a subscription is disabled.
    pub clock: Clock,
}

/// Why a document is no subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DocumentFault {
    /// What is wrong with it, for people.
    Refused(String),
    /// The service failed; the same document may be good.
    Internal,
}

impl From<Problem> for DocumentFault {
    fn from(problem: Problem) -> Self {
        if problem.is_of_the_service() {
            Self::Internal
        } else {
            Self::Refused(in_terms_of_the_document(problem.error().to_string()))
        }
    }
}

/// What a document that was not known says.
pub struct Made {
    /// The new subscription's id.
    pub id: SubscriptionId,
    /// Its settings.
    pub settings: SettingsRow,
    /// What signs, unless nothing does.
    pub key: Option<NewSigningKey>,
    /// Warnings about the secrets of the document.
    pub warnings: Vec<String>,
}

/// What a document says of the subscription that it is.
pub struct Remade {
    /// Its settings.
    pub settings: SettingsRow,
    /// A key that signs from now on, and how long those before it sign beside it.
    pub key: Option<(NewSigningKey, Duration)>,
    /// Warnings about the secrets of the document.
    pub warnings: Vec<String>,
}

impl DocumentChecks {
    /// Makes a subscription of a document; `allowed` are the hosts that its application may call
    /// (`None`: all). Where it has no secret, one is made.
    pub fn made(
        &self,
        fields: &Map<String, Value>,
        allowed: Option<&AllowedHosts>,
    ) -> Result<Made, DocumentFault> {
        let id = SubscriptionId::new(self.clock.unix_ms(), rand::random());
        let text = request_of(fields);
        let given = Given::of(&text, &self.bounds, &self.sealing)?;
        may_call(&given, allowed)?;
        let settings = stamped(given.settings(id)?, None, self.clock.now());
        let secret = secret_for(&settings, given.secret()?)?;
        let key = secret.map(|secret| signing_key(&self.clock, &self.sealing, &secret));
        Ok(Made { id, settings, key, warnings: warnings(&given)? })
    }

    /// Makes the next settings of a subscription. `secret` is what signs now: it stays where the
    /// document has none, and is rotated away where it has another one.
    pub fn remade(
        &self,
        fields: &Map<String, Value>,
        before: &SubscriptionRow,
        secret: Option<&str>,
        allowed: Option<&AllowedHosts>,
    ) -> Result<Remade, DocumentFault> {
        let text = request_of(fields);
        let given = Given::of(&text, &self.bounds, &self.sealing)?;
        may_call(&given, allowed)?;
        let settings = given.replaced(before.id(), before.settings.clone())?;
        let settings = stamped(settings, Some(&before.settings), self.clock.now());
        let next = match given.secret()? {
            Some(_) if settings.signing == "none" => {
                secret_for(&settings, given.secret()?)?;
                None
            }
            Some(given) => {
                is_key(&given)?;
                Some(given).filter(|given| secret != Some(given))
            }
            None if settings.signing != "none" && secret.is_none() => Some(new_secret()),
            None => None,
        };
        let key = next.map(|next| {
            let key = signing_key(&self.clock, &self.sealing, &next);
            (key, Duration::from_secs_f64(OVERLAP_SECONDS))
        });
        Ok(Remade { settings, key, warnings: warnings(&given)? })
    }
}

/// Warnings about the secrets of a document, in its own terms.
fn warnings(given: &Given<'_>) -> Result<Vec<String>, Problem> {
    Ok(given.warnings()?.into_iter().map(in_terms_of_the_document).collect())
}

/// Refuses a target that the application may not call.
fn may_call(given: &Given<'_>, allowed: Option<&AllowedHosts>) -> Result<(), Problem> {
    let Some((_, target)) = given.target_url()? else { return Ok(()) };
    Ok(hosts::vet(allowed, &target)?)
}

/// The body of a request that says the same. Fields that are empty are not told: forms leave them so.
fn request_of(fields: &Map<String, Value>) -> String {
    let mut request = Map::new();
    for (theirs, ours) in FIELDS {
        match fields.get(theirs) {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) if text.is_empty() => {}
            Some(value) => {
                request.insert(ours.to_owned(), value.clone());
            }
        }
    }
    if !request.contains_key("description")
        && let Some(Value::String(name)) = fields.get("name")
    {
        request.insert("description".to_owned(), Value::String(name.clone()));
    }
    // What is no more than a draft is not wanted yet.
    if fields.get("_status").is_some_and(|status| status == "draft") {
        request.insert("is_active".to_owned(), Value::Bool(false));
    }
    Value::Object(request).to_string()
}

/// Says it with the names that the fields have in the document.
fn in_terms_of_the_document(detail: String) -> String {
    let names = FIELDS.into_iter().chain([("url", "target_url"), ("events", "event_types")]);
    names.fold(detail, |detail, (theirs, ours)| {
        detail.replace(&format!("`{ours}`"), &format!("`{theirs}`"))
    })
}

/// Refuses to change what the CMS owns. While none is set up, what it left behind is ours.
pub async fn is_ours(
    state: &ApiState,
    application: ApplicationId,
    row: &SubscriptionRow,
) -> Result<(), ApiError> {
    let (Some(document_id), Some(cms)) = (&row.cms_document_id, &state.cms) else { return Ok(()) };
    if cms.keeps(state, application).await? {
        let (document_id, collection) = (document_id.clone(), cms.collection.clone());
        return Err(ApiError::KeptInCms { document_id, collection });
    }
    Ok(())
}

/// Refuses to enable what the CMS says is inactive.
pub async fn may_be_enabled(
    state: &ApiState,
    application: ApplicationId,
    row: &SubscriptionRow,
) -> Result<(), ApiError> {
    let because = row.settings.disabled_because.as_deref();
    if because == Some(DisabledBecause::Owner.as_str()) {
        is_ours(state, application, row).await
    } else {
        Ok(())
    }
}
