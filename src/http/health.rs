//! Probes and metrics.

use axum::{Json, extract::State, response::IntoResponse};
use schemars::JsonSchema;
use serde::Serialize;

use super::{ApiError, ApiState, caller::Caller};
use crate::{domain::Permission, telemetry};

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Health")]
pub struct Health {
    ok: bool,
}

/// `GET /health`, `GET /livez`: the process answers.
pub async fn health() -> Json<Health> {
    Json(Health { ok: true })
}

/// `GET /readyz`: an event could be stored now, or the reason why not.
pub async fn ready(State(state): State<ApiState>) -> Result<Json<Health>, ApiError> {
    match state.store.readiness().await {
        Ok(()) => Ok(Json(Health { ok: true })),
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
