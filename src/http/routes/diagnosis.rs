//! `…/diagnosis`.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::{
    examples::{DELIVERY, SUBSCRIPTION, TIME},
    statistics::since,
};
use crate::{
    domain::Permission,
    http::{
        diagnosis::{self, DiagnosisBody},
        openapi::{
            Operation, Tag,
            schemas::parameters::{self as take},
        },
    },
};

fn example() -> Value {
    json!({
        "subscription_id": SUBSCRIPTION, "uid": "crm",
        "target_url": "https://example.com/webhook", "health": "failing",
        "summary": "every attempt since `failing_since` failed",
        "steps": ["Look at the latest of `changes`: it came shortly before the failures did."],
        "since": TIME, "attempts": 12, "failed_attempts": 9, "last_delivered_at": TIME,
        "last_error": {
            "at": TIME, "class": "http_status", "message": "answered 404", "status": 404,
        },
        "failing_since": TIME, "failure_streak": 9, "disabled": null,
        "breaker": super::statistics::breaker(),
        "waiting": {"queued": 3, "parked": 0, "is_exact": true},
        "deliveries_looked_at": 12,
        "failures": [{
            "class": "http_status", "status": 404, "count": 3, "example": DELIVERY,
            "meaning": "there is nothing at that path, or not for this method",
            "what_to_do": "check the path of `target_url` and `method` against the routes of the \
                           receiver",
        }],
        "changes": [{"revision": 2, "at": TIME, "fields": ["target_url"]}],
    })
}

pub fn of_subscription() -> Operation {
    Operation::get("/subscriptions/{id}/diagnosis", diagnosis::show)
        .named("diagnoseSubscription", "Says what is wrong with a receiver, and what to do")
        .told(
            "What its newest deliveries failed of, since when, what was changed of the subscription, \
             what waits, and what to do, step by step.",
        )
        .of(Tag::Subscriptions, Permission::Read)
        .parameters([take::subscription_path()])
        .parameters(take::query(diagnosis::PARAMETERS, [take::application(), since()]))
        .answers::<DiagnosisBody>(StatusCode::OK, "The diagnosis", example())
}
