//! `GET /subscriptions/{id}/diagnosis`: what is wrong with a receiver, since when, what was changed,
//! and what to do.

use axum::{Json, extract::State, http::Uri};
use chrono::{DateTime, TimeDelta, Utc};
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    ApiError, ApiState,
    caller::Caller,
    events,
    extract::{Parameters, SubscriptionPath},
    problem::Problem,
    statistics::{self, BreakerBody, LastErrorBody},
    subscriptions::DisabledBody,
};
use crate::{
    domain::{
        DeliveryId, DeliveryState, ErrorClass, Permission, SubscriptionId,
        diagnosis::{self, Facts, Health},
        subscription::DisabledBecause,
    },
    store::{
        deliveries::DeliveryRow,
        delivery_pages::DeliveryFilter,
        diagnosing::{COUNTED_MAX, RevisionRow},
        subscriptions::SettingsRow,
    },
};

/// The parameters of a diagnosis.
pub const PARAMETERS: &[&str; 2] = &["application", "since"];
/// How many deliveries of the subscription, the newest, are looked at for what they failed of.
const DELIVERIES_LOOKED_AT: usize = 250;
/// How many changes of the subscription are told.
const CHANGES_TOLD: usize = 10;
/// How long before the first failure a change may have been for it to be pointed at.
const SHORTLY: TimeDelta = TimeDelta::hours(1);

/// What is wrong with a subscription's receiver, and what to do about it.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Diagnosis")]
pub struct DiagnosisBody {
    subscription_id: SubscriptionId,
    uid: Option<String>,
    target_url: String,
    #[schemars(extend("enum" = Health::ALL.map(Health::as_str)))]
    health: &'static str,
    /// The same in a sentence.
    summary: &'static str,
    /// What to do, in this order.
    steps: Vec<String>,
    /// From when on attempts are counted.
    since: DateTime<Utc>,
    attempts: i64,
    failed_attempts: i64,
    last_delivered_at: Option<DateTime<Utc>>,
    /// The latest exchange that failed.
    last_error: Option<LastErrorBody>,
    /// Since when nothing but failures was recorded, if the latest exchange failed.
    failing_since: Option<DateTime<Utc>>,
    failure_streak: i64,
    /// Since when nothing is sent, and why.
    disabled: Option<DisabledBody>,
    breaker: BreakerBody,
    waiting: WaitingBody,
    /// How many of its newest deliveries were looked at for `failures`.
    deliveries_looked_at: usize,
    /// What the newest deliveries last failed of, the most frequent first.
    failures: Vec<FailuresBody>,
    /// What was changed of the subscription lately, newest first.
    changes: Vec<ChangeBody>,
}

/// What waits.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Waiting")]
pub struct WaitingBody {
    /// To be sent, or sent again.
    queued: i64,
    /// Until the subscription is enabled.
    parked: i64,
    /// Whether these are all: no more than 10,000 of each are counted.
    is_exact: bool,
}

/// Deliveries that last failed the same way.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Failures")]
pub struct FailuresBody {
    #[schemars(extend("enum" = ErrorClass::ALL.map(ErrorClass::as_str)))]
    class: &'static str,
    /// What was answered, if anything.
    status: Option<i16>,
    count: usize,
    /// The newest of them, whose attempts tell more.
    example: DeliveryId,
    meaning: &'static str,
    what_to_do: &'static str,
}

/// A change of a subscription.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Change")]
pub struct ChangeBody {
    /// The revision that it made.
    revision: i32,
    at: DateTime<Utc>,
    /// What it changed; `headers` also where they were only told again. Empty of the first revision.
    fields: Vec<&'static str>,
}

/// Diagnoses a subscription's receiver.
pub async fn show(
    State(state): State<ApiState>,
    caller: Caller,
    SubscriptionPath(name): SubscriptionPath,
    uri: Uri,
) -> Result<Json<DiagnosisBody>, Problem> {
    let given = Parameters::of(&uri, PARAMETERS)?;
    let application = events::application(&state, caller, &given).await?;
    caller.must(Permission::Read)?;
    let since = statistics::since(&state, &given)?;
    let row = state.store.subscription(application, &name).await?;
    let row = row.ok_or(ApiError::SubscriptionNotFound(None))?;
    let lane = row.id().lane();
    let sums = state.store.sums(lane.uuid(), since).await?;
    let lately = state.store.lately(lane.uuid()).await?;
    let fares = state.store.lane_health(lane).await?.map(|row| row.health());
    let breaker = BreakerBody::of(&state, fares, state.clock.now());
    let waiting = state.store.waiting(application, row.id()).await?;
    let rows_max = i64::try_from(CHANGES_TOLD).unwrap_or(i64::MAX) + 1;
    let revisions = state.store.revisions(application, row.id(), rows_max).await?;
    let filter = DeliveryFilter { subscription: Some(row.id()), ..DeliveryFilter::default() };
    let page = state.store.delivery_page(application, &filter, DELIVERIES_LOOKED_AT).await?;

    let failing_since = lately.failing_since;
    let is_dead = |one: &&DeliveryRow| one.state == DeliveryState::Dead.as_str();
    let facts = Facts {
        disabled: row.settings.disabled_because.as_deref().and_then(DisabledBecause::from_name),
        attempts: sums.attempts,
        failed_attempts: sums.failed,
        is_failing: failing_since.is_some(),
        queued: waiting.queued,
        parked: waiting.parked,
        dead: page.deliveries.iter().filter(is_dead).count(),
    };
    let failures = failures(&page.deliveries);
    let remedies: Vec<_> = failures.iter().map(|one| one.what_to_do).collect();
    let changes = changes(&revisions);
    let is_changed_before = changes.iter().any(|change| {
        !change.fields.is_empty()
            && failing_since.is_some_and(|at| at >= change.at && at - change.at <= SHORTLY)
    });
    let health = Health::of(&facts);
    let mut steps = diagnosis::steps(&facts, &remedies, is_changed_before);
    if let Some(words) = breaker.in_words().filter(|_| facts.disabled.is_none()) {
        steps.push(format!("Know that {words}. What waits meanwhile uses up no attempts."));
    }
    Ok(Json(DiagnosisBody {
        subscription_id: row.id(),
        uid: row.uid,
        target_url: row.settings.target_url,
        health: health.as_str(),
        summary: health.in_words(),
        steps,
        since,
        attempts: sums.attempts,
        failed_attempts: sums.failed,
        last_delivered_at: lately.last_delivered_at,
        failing_since,
        failure_streak: lately.failure_streak,
        last_error: LastErrorBody::of(lately),
        disabled: DisabledBody::of(row.settings.disabled_at, row.settings.disabled_because),
        breaker,
        waiting: WaitingBody {
            queued: waiting.queued,
            parked: waiting.parked,
            is_exact: waiting.queued.max(waiting.parked) < COUNTED_MAX,
        },
        deliveries_looked_at: page.deliveries.len(),
        failures,
        changes,
    }))
}

/// What deliveries, newest first, last failed of; the most frequent first.
fn failures(deliveries: &[DeliveryRow]) -> Vec<FailuresBody> {
    let mut found: Vec<FailuresBody> = Vec::new();
    for one in deliveries.iter().filter(|one| one.state != DeliveryState::Delivered.as_str()) {
        let class = one.last_error.as_deref().or(one.reason.as_deref());
        let Some(class) = class.and_then(ErrorClass::from_name) else { continue };
        let same = |known: &&mut FailuresBody| {
            known.class == class.as_str() && known.status == one.last_status
        };
        if let Some(known) = found.iter_mut().find(same) {
            known.count += 1;
            continue;
        }
        let status = one.last_status.and_then(|status| u16::try_from(status).ok());
        let (meaning, what_to_do) = diagnosis::meaning(class, status);
        found.push(FailuresBody {
            class: class.as_str(),
            status: one.last_status,
            count: 1,
            example: one.delivery_id(),
            meaning,
            what_to_do,
        });
    }
    found.sort_by_key(|one| std::cmp::Reverse(one.count));
    found
}

/// What revisions, newest first, changed of those before them.
fn changes(revisions: &[RevisionRow]) -> Vec<ChangeBody> {
    let after = revisions.iter().take(CHANGES_TOLD).enumerate();
    let told = after.map(|(index, one)| ChangeBody {
        revision: one.revision,
        at: one.created_at,
        fields: match revisions.get(index + 1) {
            Some(before) => changed(&before.settings, &one.settings),
            None => Vec::new(),
        },
    });
    told.collect()
}

fn changed(before: &SettingsRow, after: &SettingsRow) -> Vec<&'static str> {
    let fields = [
        ("target_url", before.target_url != after.target_url),
        ("event_types", before.event_types != after.event_types),
        ("filter", before.filter != after.filter),
        ("method", before.method != after.method),
        ("headers", before.sealed_headers != after.sealed_headers),
        ("signing", before.signing != after.signing),
        ("signature_headers", before.signature_headers != after.signature_headers),
        ("is_active", before.is_active != after.is_active),
        ("disable_after_seconds", before.disable_after_s != after.disable_after_s),
        ("timeout_seconds", before.timeout_ms != after.timeout_ms),
        ("retry", before.retry != after.retry),
        ("rate_limit", before.rate_limit != after.rate_limit),
        ("max_in_flight", before.max_in_flight != after.max_in_flight),
        ("payload_format", before.payload_format != after.payload_format),
        ("schema_version", before.schema_version != after.schema_version),
        ("inbound_secret", before.sealed_inbound_secret != after.sealed_inbound_secret),
        ("inbound_type_header", before.inbound_type_header != after.inbound_type_header),
        ("description", before.description != after.description),
        ("metadata", before.metadata != after.metadata),
    ];
    fields.into_iter().filter(|(_, is_changed)| *is_changed).map(|(name, _)| name).collect()
}
