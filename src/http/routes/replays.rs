//! `/replays`.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::examples::{APPLICATION, CURSOR, REPLAY, TIME};
use crate::{
    domain::{
        DeliveryState, ErrorClass, EventId, Permission, SubscriptionId,
        replay::{PER_SECOND_DEFAULT, PER_SECOND_MAX},
    },
    http::{
        ApiError,
        events::Page,
        extract::{OF_APPLICATION, OF_APPLICATION_PAGE},
        openapi::{
            Operation, Tag,
            schemas::{self, object, or_null, parameters as take, told},
        },
        replays::{self, CountBody, FIELDS, FILTER_FIELDS, ReplayBody},
    },
};

pub fn operations() -> Vec<Operation> {
    vec![create(), list(), show(), pause(), resume(), cancel()]
}

fn replay(state: &str) -> Value {
    json!({
        "id": REPLAY, "application_id": APPLICATION, "state": state,
        "filter": {"state": ["dead"], "event_type": "invoice.paid", "created_after": TIME},
        "rate_per_second": PER_SECOND_DEFAULT, "include_unrouted": true,
        "matched": 1200, "queued": 1190, "skipped": skipped(),
        "unrouted": {"events": 3, "payload_gone": 0, "routed": 2, "deliveries": 2},
        "is_held_up": false, "reached_at": TIME, "created_at": TIME, "updated_at": TIME,
        "ended_at": (state == "cancelled").then_some(TIME),
    })
}

fn skipped() -> Value {
    json!({"in_progress": 1, "payload_gone": 9, "subscription_deleted": 0,
           "subscription_disabled": 0})
}

fn count() -> Value {
    json!({
        "matched": 1200, "queued": 1190, "skipped": skipped(),
        "unrouted": {"events": 3, "payload_gone": 0}, "is_exact": true,
    })
}

/// With events that reached nobody nothing can stand that they have not.
fn settings() -> Value {
    let mut settings = members();
    let told = replays::OF_DELIVERIES_ALONE.map(|name| json!({"required": [name]}));
    settings["not"] = json!({
        "properties": {"include_unrouted": {"const": true}, "filter": {"anyOf": told}},
        "required": ["include_unrouted", "filter"],
    });
    settings
}

fn members() -> Value {
    let rate = json!({
        "type": "integer", "minimum": 1, "maximum": PER_SECOND_MAX, "default": PER_SECOND_DEFAULT,
    });
    object(
        FIELDS,
        &["filter"],
        [
            ("filter", told(filter(), "What is sent again, of what has ended by now")),
            (
                "rate_per_second",
                told(or_null(rate), "How many deliveries are queued in a second, at most"),
            ),
            (
                "include_unrouted",
                told(
                    or_null(schemas::boolean()),
                    "Whether events that reached nobody are routed by today's subscriptions; not \
                     with `subscription_id`, `response_status` or `error_class`",
                ),
            ),
            ("dry_run", told(or_null(schemas::boolean()), "Only count what would be done: 200")),
        ],
    )
}

fn filter() -> Value {
    let state = schemas::one_of(replays::final_states().map(DeliveryState::as_str));
    let states = json!({
        "type": "array", "items": state, "minItems": 1,
        "maxItems": replays::final_states().count(),
    });
    let mut filter = object(
        FILTER_FIELDS,
        &[],
        [
            ("state", told(json!({"anyOf": [state, states]}), "Only those that ended so")),
            (
                "subscription_id",
                told(
                    take::by_id_or_uid(SubscriptionId::PREFIX),
                    "Only those of this subscription, by its id or its uid",
                ),
            ),
            ("event_id", told(schemas::id(EventId::PREFIX), "Only those of this event")),
            ("event_type", told(schemas::event_type(), "Only those of events of this type")),
            (
                "response_status",
                told(
                    json!({"type": "integer", "minimum": 100, "maximum": 999}),
                    "Only those that were last answered so",
                ),
            ),
            (
                "error_class",
                told(
                    schemas::one_of(ErrorClass::ALL.map(ErrorClass::as_str)),
                    "Only those that ended with this error",
                ),
            ),
            ("created_after", told(take::time(), "Of events accepted then, or later")),
            ("created_before", told(take::time(), "Of events accepted before")),
        ],
    );
    filter["minProperties"] = json!(1);
    filter
}

fn create() -> Operation {
    Operation::post("/replays", replays::create)
        .named("createReplay", "Sends again what has ended, as a job")
        .told(
            "Each delivery is queued once, under the same `webhook-id`, oldest first, and sent as its \
             policy says; whatever comes of it, one that was delivered stays so. What ended after \
             the request is not in it.",
        )
        .of(Tag::Deliveries, Permission::Manage)
        .parameters(take::query(OF_APPLICATION, [take::application()]))
        .idempotent()
        .reads("ReplayRequest", settings())
        .example(
            "What was lost in an outage",
            json!({"filter": {"state": "dead", "created_after": TIME}, "rate_per_second": 50}),
        )
        .example(
            "How much it would be",
            json!({"filter": {"event_type": "invoice.paid"}, "include_unrouted": true,
                   "dry_run": true}),
        )
        .answers::<ReplayBody>(StatusCode::ACCEPTED, "The replay", replay("running"))
        .answers::<CountBody>(StatusCode::OK, "What it would do (`dry_run`)", count())
        .fails([
            ApiError::SubscriptionNotFound(None),
            ApiError::Full {
                what: "replays that are not over",
                count_max: crate::store::replays::REPLAYS_MAX,
            },
        ])
}

fn list() -> Operation {
    Operation::get("/replays", replays::list)
        .named("listReplays", "Lists replays, newest first")
        .of(Tag::Deliveries, Permission::Read)
        .parameters(take::query(
            OF_APPLICATION_PAGE,
            [take::application(), take::limit(), take::cursor()],
        ))
        .answers::<Page<ReplayBody>>(
            StatusCode::OK,
            "A page of replays",
            json!({"data": [replay("running")], "next_cursor": CURSOR}),
        )
}

fn of_one(operation: Operation, permission: Permission) -> Operation {
    operation
        .of(Tag::Deliveries, permission)
        .parameters([take::replay_path()])
        .parameters(take::query(OF_APPLICATION, [take::application()]))
}

fn show() -> Operation {
    of_one(Operation::get("/replays/{id}", replays::show), Permission::Read)
        .named("getReplay", "Shows a replay and how far it got")
        .answers::<ReplayBody>(StatusCode::OK, "The replay", replay("running"))
}

fn pause() -> Operation {
    of_one(Operation::post("/replays/{id}/pause", replays::pause), Permission::Manage)
        .named("pauseReplay", "Halts a replay")
        .told("After the answer it queues nothing. What it has queued is sent.")
        .answers::<ReplayBody>(StatusCode::OK, "The replay as it is now", replay("paused"))
        .fails([ApiError::Conflict("this replay is over")])
}

fn resume() -> Operation {
    of_one(Operation::post("/replays/{id}/resume", replays::resume), Permission::Manage)
        .named("resumeReplay", "Lets a replay go on that was halted")
        .answers::<ReplayBody>(StatusCode::OK, "The replay as it is now", replay("running"))
        .fails([ApiError::Conflict("this replay is over")])
}

fn cancel() -> Operation {
    of_one(Operation::post("/replays/{id}/cancel", replays::cancel), Permission::Manage)
        .named("cancelReplay", "Ends a replay")
        .told("After the answer it queues nothing. What it has queued is sent.")
        .answers::<ReplayBody>(StatusCode::OK, "The replay as it is now", replay("cancelled"))
        .fails([ApiError::Conflict("this replay is over")])
}
