//! Probes and metrics.

use axum::http::StatusCode;
use serde_json::json;

use crate::{
    domain::Permission,
    http::{
        ApiError,
        health::{self, Health},
        openapi::{Operation, Tag},
    },
    store::readiness::Unready,
};

pub fn operations() -> Vec<Operation> {
    let well = json!({"ok": true});
    let health = Operation::get("/health", health::health)
        .named("getHealth", "The process answers")
        .answers::<Health>(StatusCode::OK, "It does", well.clone());
    let live = health.also_at("/livez", "getLiveness");
    let ready = Operation::get("/readyz", health::ready)
        .named("getReadiness", "The process can do its work")
        .answers::<Health>(StatusCode::OK, "It can", well)
        .fails([ApiError::NotReady(Unready::ReadOnly)]);
    let metrics = Operation::get("/metrics", health::metrics)
        .named("getMetrics", "Shows figures for Prometheus")
        .of(Tag::Service, Permission::Administer)
        .answers_text(
            "Metrics, in the text format of Prometheus",
            "dispatcher_deliveries_in_flight 3\n",
        );
    vec![health, live, ready, metrics]
}
