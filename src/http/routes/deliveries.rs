//! `/deliveries`, and what else shows the log.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::examples::{CURSOR, DELIVERY, EVENT, SUBSCRIPTION, TIME};
use crate::{
    domain::{DeliveryState, ErrorClass, EventId, Permission},
    http::{
        ApiError,
        deliveries::{self, DeliveryBody, OF_LIST, OF_SUBSCRIPTION},
        events::Page,
        extract::OF_APPLICATION,
        openapi::{
            Operation, Parameter, Tag,
            schemas::{self, parameters as take},
        },
    },
};

/// Those that are under the prefix too.
pub fn operations() -> Vec<Operation> {
    vec![list(), show(), retry(), cancel()]
}

/// The log, by another name.
pub fn status() -> Operation {
    of_one(Operation::get("/status/{id}", deliveries::show), Permission::Read)
        .named("getStatus", "Shows what became of a delivery")
        .answers::<DeliveryBody>(StatusCode::OK, "The delivery", delivery())
}

/// The log of one subscription.
pub fn of_subscription() -> Operation {
    let path = "/subscriptions/{id}/deliveries";
    Operation::get(path, deliveries::of_subscription)
        .named("listSubscriptionDeliveries", "Lists the deliveries of a subscription")
        .told("Newest first. A page looks at a bounded number of rows: where what is asked for is rare \
               it can be short, or empty, and still have a next one.")
        .of(Tag::Deliveries, Permission::Read)
        .parameters([take::subscription_path()])
        .parameters(take::query(
            OF_SUBSCRIPTION,
            [
                take::application(),
                state(),
                event(),
                event_type(),
                response_status(),
                error_class(),
                take::created_after(),
                take::created_before(),
                take::limit(),
                take::cursor(),
            ],
        ))
        .answers::<Page<DeliveryBody>>(StatusCode::OK, "A page of deliveries", page())
}

/// An example, with its attempts.
pub fn delivery() -> Value {
    let mut delivery = listed();
    delivery["attempts"] = json!([{
        "id": "att_0192d4e012347abc8def0123456789ab",
        "scheduled_at": TIME, "started_at": TIME, "duration_ms": 12,
        "request": {
            "method": "POST", "url": "https://example.com/webhook",
            "headers": {"webhook-id": EVENT},
        },
        "response": {
            "status": 503, "headers": {"retry-after": "60"}, "body": "later", "is_truncated": false,
        },
        "error": {
            "class": "http_status", "message": "answered 503", "status": 503, "at": TIME,
        },
        "is_late": false,
        "run": "schedule",
    }]);
    delivery
}

fn listed() -> Value {
    json!({
        "id": DELIVERY, "event_id": EVENT, "event_type": "invoice.paid",
        "subscription_id": SUBSCRIPTION, "target_url": "https://example.com/webhook",
        "state": "pending", "reason": null, "attempt_count": 1, "last_status": 503,
        "last_error": "http_status", "next_attempt_at": TIME, "created_at": TIME,
        "ended_at": null, "is_sent_again": false,
    })
}

fn page() -> Value {
    json!({"data": [listed()], "next_cursor": CURSOR})
}

fn state() -> Parameter {
    let names = schemas::one_of(DeliveryState::ALL.map(DeliveryState::as_str));
    take::of_query("state", "Only those in this state", names)
}

fn event() -> Parameter {
    take::of_query("event_id", "Only those of this event", schemas::id(EventId::PREFIX))
}

fn event_type() -> Parameter {
    take::of_query("event_type", "Only those of events of this type", schemas::event_type())
}

fn response_status() -> Parameter {
    let status = json!({"type": "integer", "minimum": 100, "maximum": 999});
    take::of_query("response_status", "Only those that were last answered so", status)
}

fn error_class() -> Parameter {
    let names = schemas::one_of(ErrorClass::ALL.map(ErrorClass::as_str));
    take::of_query("error_class", "Only those that last failed so", names)
}

fn of_one(operation: Operation, permission: Permission) -> Operation {
    operation
        .of(Tag::Deliveries, permission)
        .parameters([take::delivery_path()])
        .parameters(take::query(OF_APPLICATION, [take::application()]))
}

fn list() -> Operation {
    Operation::get("/deliveries", deliveries::list)
        .named("listDeliveries", "Lists deliveries, newest first")
        .told(
            "A page looks at a bounded number of rows: where what is asked for is rare it can be \
               short, or empty, and still have a next one.",
        )
        .of(Tag::Deliveries, Permission::Read)
        .parameters(take::query(
            OF_LIST,
            [
                take::application(),
                take::subscription_id(),
                state(),
                event(),
                event_type(),
                response_status(),
                error_class(),
                take::created_after(),
                take::created_before(),
                take::limit(),
                take::cursor(),
            ],
        ))
        .answers::<Page<DeliveryBody>>(StatusCode::OK, "A page of deliveries", page())
}

fn show() -> Operation {
    of_one(Operation::get("/deliveries/{id}", deliveries::show), Permission::Read)
        .named("getDelivery", "Shows a delivery with its attempts")
        .answers::<DeliveryBody>(StatusCode::OK, "The delivery", delivery())
}

fn retry() -> Operation {
    of_one(Operation::post("/deliveries/{id}/retry", deliveries::retry), Permission::Manage)
        .named("retryDelivery", "Sends a delivery at once")
        .told(
            "A pending one keeps its schedule, and the count that its policy goes by, if that fails. \
             One that has ended gets one attempt, and stays what it was if that fails.",
        )
        .answers::<DeliveryBody>(StatusCode::ACCEPTED, "It is due now", delivery())
        .fails([ApiError::Conflict("this delivery is being sent")])
}

fn cancel() -> Operation {
    let mut cancelled = delivery();
    cancelled["state"] = json!("cancelled");
    of_one(Operation::post("/deliveries/{id}/cancel", deliveries::cancel), Permission::Manage)
        .named("cancelDelivery", "Cancels a delivery that waits")
        .answers::<DeliveryBody>(StatusCode::OK, "The delivery as it is now", cancelled)
        .fails([ApiError::Conflict("this delivery has ended")])
}
