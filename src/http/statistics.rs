//! `…/stats`: what was done for a subscription, or for an application, and how it fares.

use std::time::Duration;

use axum::{Json, extract::State, http::Uri};
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    ApiError, ApiState,
    caller::Caller,
    events,
    extract::{self, ApplicationPath, Parameters, SubscriptionPath},
    problem::{Place, Problem},
};
use crate::{
    domain::{Permission, pacing::Health},
    store::statistics::{Lately, MINUTES_MAX, Sums},
};

/// The parameters of the statistics of a subscription.
pub const OF_SUBSCRIPTION: &[&str; 2] = &["application", "since"];
/// Those of an application.
pub const OF_APPLICATION: &[&str; 1] = &["since"];
/// How far they reach back, unless the caller says otherwise.
const SINCE: TimeDelta = TimeDelta::hours(24);

/// What was done, and how it fares. Minutes are counted; what is under way is told within seconds.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Statistics")]
pub struct StatisticsBody {
    since: DateTime<Utc>,
    /// Exchanges, retries among them.
    attempts: i64,
    /// Exchanges that failed.
    failed_attempts: i64,
    /// Deliveries that ended.
    delivered: i64,
    dead: i64,
    cancelled: i64,
    /// The share of deliveries that were delivered, of those that were delivered or died.
    success_rate: Option<f64>,
    /// How long exchanges took.
    duration_ms: QuantilesBody,
    last_delivered_at: Option<DateTime<Utc>>,
    /// The latest exchange that failed, in the time that statistics are kept.
    last_error: Option<LastErrorBody>,
    /// Since when nothing but failures was recorded, if the latest exchange failed.
    failing_since: Option<DateTime<Utc>>,
    /// How many exchanges failed since then.
    failure_streak: i64,
    /// For how many seconds the oldest delivery is due that waits.
    queue_age_seconds: f64,
    /// Of a subscription only.
    #[serde(skip_serializing_if = "Option::is_none")]
    breaker: Option<BreakerBody>,
}

/// Whether anything is sent to the receiver at all. Told by the processes that send, within seconds.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Breaker")]
pub struct BreakerBody {
    /// `open`: nothing is sent until `open_until`; `half_open`: the next deliveries are probes.
    #[schemars(extend("enum" = ["closed", "open", "half_open"]))]
    state: &'static str,
    /// Failures one after the other.
    failures: u16,
    /// Until when it is open.
    open_until: Option<DateTime<Utc>>,
    /// Until when the receiver asked for quiet, by 429 or `Retry-After`.
    paused_until: Option<DateTime<Utc>>,
    /// `BREAKER_FAILURES`: the least number of failures in a row that opens it; 0: it never opens.
    opens_after: u16,
    /// `BREAKER_PAUSE_MAX`.
    pause_max_seconds: f64,
}

impl BreakerBody {
    /// The breaker of a lane that fares so; `None`: nothing bad is known of it.
    pub fn of(state: &ApiState, health: Option<Health>, now: DateTime<Utc>) -> Self {
        let open_for = health.and_then(|health| health.open_for);
        let at = |left: Duration| now + TimeDelta::from_std(left).unwrap_or(TimeDelta::MAX);
        Self {
            state: match open_for {
                None => "closed",
                Some(left) if left.is_zero() => "half_open",
                Some(_) => "open",
            },
            failures: health.map_or(0, |health| health.failures),
            open_until: open_for.filter(|left| !left.is_zero()).map(at),
            paused_until: health.and_then(|health| health.paused_for).map(at),
            opens_after: state.breaker.failures,
            pause_max_seconds: state.breaker.pause_max.as_secs_f64(),
        }
    }

    /// Why nothing, or no more than a probe, is sent to the receiver at the moment, for people.
    pub fn in_words(&self) -> Option<String> {
        let at = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Secs, true);
        if let Some(until) = self.paused_until {
            let until = at(until);
            return Some(format!(
                "the receiver asked for quiet until {until}: nothing is sent before"
            ));
        }
        let what = match (self.state, self.open_until) {
            ("open", Some(until)) => format!("nothing is sent until {}, then a probe", at(until)),
            ("half_open", _) => "nothing is sent but a probe".to_owned(),
            _ => return None,
        };
        let failures = self.failures;
        Some(format!(
            "the breaker of the receiver is open after {failures} failures in a row: {what}"
        ))
    }
}

/// Quantiles in milliseconds, at most a fifth off; absent where there was no exchange.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Quantiles")]
pub struct QuantilesBody {
    p50: Option<f64>,
    p90: Option<f64>,
    p99: Option<f64>,
}

/// The latest exchange that failed.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "LastError")]
pub struct LastErrorBody {
    at: DateTime<Utc>,
    class: String,
    message: String,
    status: Option<i16>,
}

impl LastErrorBody {
    /// The latest exchange of a lane that failed, if one did.
    pub fn of(lately: Lately) -> Option<Self> {
        let error = lately.last_error.zip(lately.last_message).zip(lately.last_failed_at);
        let status = lately.last_status;
        error.map(|((class, message), at)| Self { at, class, message, status })
    }
}

/// Statistics of a subscription.
pub async fn of_subscription(
    State(state): State<ApiState>,
    caller: Caller,
    SubscriptionPath(name): SubscriptionPath,
    uri: Uri,
) -> Result<Json<StatisticsBody>, Problem> {
    let given = Parameters::of(&uri, OF_SUBSCRIPTION)?;
    let application = events::application(&state, caller, &given).await?;
    caller.must(Permission::Read)?;
    let since = since(&state, &given)?;
    let row = state.store.subscription(application, &name).await?;
    let lane = row.ok_or(ApiError::SubscriptionNotFound(None))?.id().lane();
    let sums = state.store.sums(lane.uuid(), since).await?;
    let lately = state.store.lately(lane.uuid()).await?;
    let oldest_due = state.store.oldest_due(lane).await?;
    let now = state.clock.now();
    let health = state.store.lane_health(lane).await?.map(|row| row.health());
    Ok(Json(StatisticsBody {
        breaker: Some(BreakerBody::of(&state, health, now)),
        ..body(since, &sums, lately, oldest_due, now)
    }))
}

/// Statistics of an application: all of its subscriptions and explicit targets together.
pub async fn of_application(
    State(state): State<ApiState>,
    caller: Caller,
    ApplicationPath(name): ApplicationPath,
    uri: Uri,
) -> Result<Json<StatisticsBody>, Problem> {
    let given = Parameters::of(&uri, OF_APPLICATION)?;
    let application = caller.application(&state, Some(&name)).await?;
    caller.must(Permission::Read)?;
    let since = since(&state, &given)?;
    let sums = state.store.sums(application.uuid(), since).await?;
    let lately = state.store.lately(application.uuid()).await?;
    let oldest_due = state.store.oldest_due_of(application).await?;
    Ok(Json(body(since, &sums, lately, oldest_due, state.clock.now())))
}

/// Since when is looked at: what the query says, at most a week ago.
pub fn since<const N: usize>(
    state: &ApiState,
    given: &Parameters<N>,
) -> Result<DateTime<Utc>, Problem> {
    let now = state.clock.now();
    let since = given.read("since", extract::time)?.unwrap_or(now - SINCE);
    if now - since > TimeDelta::minutes(MINUTES_MAX) {
        let detail = "`since` must be at most a week ago".to_owned();
        return Err(ApiError::Invalid(detail).at(Place::Parameter("since".to_owned())));
    }
    Ok(since)
}

#[expect(clippy::cast_precision_loss, reason = "a share of counts far below 2^52")]
fn body(
    since: DateTime<Utc>,
    sums: &Sums,
    lately: Lately,
    oldest_due: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> StatisticsBody {
    let ended = sums.delivered + sums.dead;
    let quantile = |share| sums.durations.quantile_ms(share);
    StatisticsBody {
        since,
        attempts: sums.attempts,
        failed_attempts: sums.failed,
        delivered: sums.delivered,
        dead: sums.dead,
        cancelled: sums.cancelled,
        success_rate: (ended > 0).then(|| sums.delivered as f64 / ended as f64),
        duration_ms: QuantilesBody { p50: quantile(0.5), p90: quantile(0.9), p99: quantile(0.99) },
        last_delivered_at: lately.last_delivered_at,
        failing_since: lately.failing_since,
        failure_streak: lately.failure_streak,
        last_error: LastErrorBody::of(lately),
        queue_age_seconds: oldest_due.map_or(0.0, |at| (now - at).as_seconds_f64().max(0.0)),
        breaker: None,
    }
}
