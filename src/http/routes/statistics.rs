//! `…/stats`.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::examples::TIME;
use crate::{
    domain::Permission,
    http::{
        openapi::{
            Operation, Parameter, Tag,
            schemas::parameters::{self as take, time},
        },
        statistics::{self, StatisticsBody},
    },
};

const TOLD: &str =
    "Counted by minutes, and told within seconds. A quantile is at most a fifth off.";

fn example() -> Value {
    json!({
        "since": TIME, "attempts": 1_204, "failed_attempts": 7, "delivered": 1_197, "dead": 1,
        "cancelled": 0, "success_rate": 0.999_165,
        "duration_ms": {"p50": 11.5, "p90": 23.1, "p99": 88.0},
        "last_delivered_at": TIME,
        "last_error": {
            "at": TIME, "class": "http_status", "message": "answered 503", "status": 503,
        },
        "failing_since": null, "failure_streak": 0, "queue_age_seconds": 0.0,
    })
}

fn example_of_subscription() -> Value {
    let mut example = example();
    example["breaker"] = breaker();
    example
}

/// A breaker, as it is mostly.
pub fn breaker() -> Value {
    json!({
        "state": "closed", "failures": 0, "open_until": null, "paused_until": null,
        "opens_after": 5, "pause_max_seconds": 60.0,
    })
}

pub fn since() -> Parameter {
    take::of_query("since", "From then on; by default a day ago, at most a week ago", time())
}

pub fn of_subscription() -> Operation {
    Operation::get("/subscriptions/{id}/stats", statistics::of_subscription)
        .named("getSubscriptionStatistics", "Shows how a subscription fares")
        .told(TOLD)
        .of(Tag::Subscriptions, Permission::Read)
        .parameters([take::subscription_path()])
        .parameters(take::query(statistics::OF_SUBSCRIPTION, [take::application(), since()]))
        .answers::<StatisticsBody>(StatusCode::OK, "The figures", example_of_subscription())
}

pub fn of_application() -> Operation {
    Operation::get("/applications/{id}/stats", statistics::of_application)
        .named("getApplicationStatistics", "Shows how an application fares")
        .told(TOLD)
        .of(Tag::Applications, Permission::Read)
        .parameters([take::application_path()])
        .parameters(take::query(statistics::OF_APPLICATION, [since()]))
        .answers::<StatisticsBody>(StatusCode::OK, "The figures", example())
}
