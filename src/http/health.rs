//! Probes and metrics.

use axum::{Json, extract::State, response::IntoResponse};
use schemars::JsonSchema;
use serde::Serialize;

use super::{ApiError, ApiState, caller::Caller};
use crate::{clock::Alarm, domain::Permission, telemetry};

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Health")]
pub struct Health {
    ok: bool,
    /// What an operator should know although the service works: one sentence each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

impl Health {
    fn of(ok: bool) -> Self {
        Self { ok, warnings: Vec::new() }
    }
}

/// The sentence about a jump of the database's clock.
fn clock_warning(alarm: Alarm) -> String {
    let (seconds, lasts) = (alarm.ahead_s.unsigned_abs(), alarm.lasts.as_secs());
    let direction = if alarm.ahead_s < 0 { "behind" } else { "ahead of" };
    format!(
        "the database's clock is {seconds} s {direction} the expected time, for {lasts} s; until that \
         has lasted for 10 minutes, nothing expires or is dropped"
    )
}

/// `GET /health`, `GET /livez`: the process answers.
pub async fn health() -> Json<Health> {
    Json(Health::of(true))
}

/// `GET /readyz`: an event could be stored now, or the reason why not.
pub async fn ready(State(state): State<ApiState>) -> Result<Json<Health>, ApiError> {
    match state.probe_store.readiness().await {
        Ok(()) => {
            let warnings = state.clock.alarm().map(clock_warning);
            Ok(Json(Health { ok: true, warnings: warnings.into_iter().collect() }))
        }
        Err(reason) => {
            tracing::debug!(%reason, "not ready");
            Err(ApiError::NotReady(reason))
        }
    }
}

/// `GET /metrics`: the text format of Prometheus. The figures are the instance's, and so not for the
/// keys of applications.
pub async fn metrics(
    State(state): State<ApiState>,
    caller: Caller,
) -> Result<impl IntoResponse, ApiError> {
    caller.must(Permission::Administer)?;
    let (in_flight, held) = {
        let lanes = state.handover.lanes();
        (lanes.in_flight(), lanes.held())
    };
    telemetry::load(in_flight, held);
    let content_type = [("content-type", "text/plain; version=0.0.4; charset=utf-8")];
    Ok((content_type, telemetry::render_metrics()))
}
