//! From rows to a snapshot: what is stored is read and opened, each subscription apart.

use std::{collections::HashMap, sync::Arc, time::Duration};

use crate::{
    domain::{
        AllowedHosts, ApplicationId, EventTypePatterns, LaneLimit, Pace, RateLimit, SigningKey,
        SubscriptionId, TargetUrl,
        filter::Filter,
        routing::{Place, Snapshot},
        sealing::SealingKeys,
        subscription::{
            CustomHeaders, KeyRing, Method, PayloadFormat, RetrySettings, Sending,
            SignatureHeaders, Signing, Subscription, sealed,
        },
    },
    store::{
        routing_changes::Changes,
        subscriptions::{SettingsRow, SigningKeyRow, SubscriptionRow},
    },
};

/// An application after changes.
pub fn changed(
    application: ApplicationId,
    before: Option<&Snapshot>,
    changes: &Changes,
    sealing: &SealingKeys,
) -> Snapshot {
    let mut subscriptions: HashMap<SubscriptionId, Place> = before
        .map(|before| before.places().map(|(id, place)| (id, place.clone())).collect())
        .unwrap_or_default();
    for row in &changes.subscriptions {
        if row.deleted_at.is_some() {
            subscriptions.remove(&row.id());
            continue;
        }
        let keys = changes.keys.iter().filter(|key| key.subscription() == Some(row.id()));
        let place = match subscription(row, keys, sealing) {
            Ok(subscription) => Place::Subscription(Arc::new(subscription)),
            Err(unreadable) => {
                tracing::error!(
                    subscription = %row.id(), field = unreadable.0,
                    "a stored subscription cannot be read; its deliveries wait"
                );
                Place::Unreadable
            }
        };
        subscriptions.insert(row.id(), place);
    }
    let own = changes.keys.iter().filter(|key| key.subscription().is_none());
    let keys = match signing(own, sealing) {
        Signing::Keys(keys) => Some(keys),
        Signing::None | Signing::Unreadable => None,
    };
    Snapshot::new(application, changes.version, keys, subscriptions)
        .called(&changes.uid)
        .calling(changes.allowed_hosts.as_deref().map(|texts| hosts(application, texts)))
}

/// What cannot be read here allows nothing: a list must not be lifted by being misread.
fn hosts(application: ApplicationId, texts: &[String]) -> AllowedHosts {
    AllowedHosts::parse(texts).unwrap_or_else(|error| {
        tracing::error!(%application, %error, "`allowed_hosts` cannot be read; nothing is called");
        AllowedHosts::none()
    })
}

/// The field that this version cannot read: a later one wrote it, or a key is missing.
struct Unreadable(&'static str);

fn subscription<'k>(
    row: &SubscriptionRow,
    keys: impl Iterator<Item = &'k SigningKeyRow>,
    sealing: &SealingKeys,
) -> Result<Subscription, Unreadable> {
    let settings = &row.settings;
    let filter = settings.filter.as_deref().map(Filter::parse).transpose();
    Ok(Subscription {
        id: row.id(),
        revision: row.revision,
        is_active: settings.is_active,
        disable_after: settings
            .disable_after_s
            .map(|s| Duration::from_secs(s.unsigned_abs().into())),
        limit: LaneLimit {
            revision: row.revision,
            max_in_flight: settings.max_in_flight.map(i32::unsigned_abs),
            pace: settings.rate_limit.as_deref().map(pace).transpose()?,
        },
        event_types: EventTypePatterns::parse(&settings.event_types)
            .map_err(|_| Unreadable("event_types"))?,
        filter: filter.map_err(|_| Unreadable("filter"))?,
        sending: Sending {
            target: TargetUrl::from_stored(&settings.target_url)
                .map_err(|_| Unreadable("target_url"))?,
            method: Method::from_name(&settings.method).ok_or(Unreadable("method"))?,
            headers: headers(row.id(), settings, sealing).ok_or(Unreadable("headers"))?,
            signing: match settings.signing.as_str() {
                "none" => Signing::None,
                _ => signing(keys, sealing),
            },
            signature_headers: SignatureHeaders::from_name(&settings.signature_headers)
                .ok_or(Unreadable("signature_headers"))?,
            timeout: settings.timeout_ms.map(|ms| Duration::from_millis(ms.unsigned_abs().into())),
            retry: settings.retry.as_deref().map(retry).transpose()?,
            format: PayloadFormat::from_name(&settings.payload_format)
                .ok_or(Unreadable("payload_format"))?,
            schema_version: settings.schema_version.clone(),
        },
    })
}

fn pace(json: &str) -> Result<Pace, Unreadable> {
    let limit: RateLimit = serde_json::from_str(json).map_err(|_| Unreadable("rate_limit"))?;
    limit.pace().map_err(|_| Unreadable("rate_limit"))
}

fn retry(json: &str) -> Result<crate::domain::RetryPolicy, Unreadable> {
    let settings: RetrySettings = serde_json::from_str(json).map_err(|_| Unreadable("retry"))?;
    settings.policy().map_err(|_| Unreadable("retry"))
}

fn headers(
    id: SubscriptionId,
    settings: &SettingsRow,
    sealing: &SealingKeys,
) -> Option<CustomHeaders> {
    let Some(sealed) = &settings.sealed_headers else { return Some(CustomHeaders::default()) };
    let opened = sealing.open(sealed, &sealed::headers_of(id)).ok()?;
    CustomHeaders::from_json(opened.bytes())
}

/// Opens keys, newest first. One that does not open leaves none: signatures must not change because
/// a key is missing here.
fn signing<'k>(keys: impl Iterator<Item = &'k SigningKeyRow>, sealing: &SealingKeys) -> Signing {
    let opened = keys.map(|row| {
        let secret = sealing.open(&row.sealed, &sealed::signing_key(row.id())).ok()?;
        let key = SigningKey::from_secret(std::str::from_utf8(secret.bytes()).ok()?).ok()?;
        Some((key, row.retires_at))
    });
    let opened: Option<Vec<_>> = opened.collect();
    opened.and_then(KeyRing::new).map_or(Signing::Unreadable, Signing::Keys)
}
