//! `/events`.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::{
    deliveries,
    examples::{CURSOR, EVENT, SUBSCRIPTION, TIME},
};
use crate::{
    domain::{EventStatus, Permission, event::IDEMPOTENCY_KEY_BYTES_MAX},
    http::{
        ApiError,
        batch::{self, BatchResults, RefusedBody},
        events::{self, AcceptedBody, EventBody, EventDetailBody, Page},
        explain::{self, ExplanationBody},
        extract::OF_APPLICATION,
        openapi::{
            Further, Operation, Tag,
            schemas::{self, object, or_null, parameters as take, told},
        },
        submission,
    },
};

pub fn operations() -> Vec<Operation> {
    vec![create(), create_batch(), list(), show(), explain()]
}

/// Who names targets of its own must be permitted that.
const NAMES_TARGETS: Further = Further {
    when: "an event has a `target_url`, or no `type`",
    permission: Permission::NameTargets,
    query: None,
};

fn event() -> Value {
    object(
        submission::FIELDS,
        &["payload"],
        [
            ("payload", told(schemas::any(), "What is sent: any JSON, byte for byte as it comes")),
            ("type", told(or_null(schemas::published_type()), "What happened, as a dotted name")),
            (
                "target_url",
                told(
                    or_null(schemas::target_url()),
                    "Where it goes: a URL of its own, in place of the subscriptions that match. An \
                     address that must not be called is refused",
                ),
            ),
            (
                "application",
                told(
                    or_null(json!({"type": "string", "x-names": "application"})),
                    "The application, by its id or its uid; by default the key's own",
                ),
            ),
            (
                "idempotency_key",
                told(
                    or_null(schemas::idempotency_key(IDEMPOTENCY_KEY_BYTES_MAX)),
                    "The same as the header `Idempotency-Key`; if both are there, they must agree",
                ),
            ),
            ("metadata", schemas::metadata()),
            ("subject", told(or_null(schemas::subject()), "Whom it is about")),
        ],
    )
}

fn to_subscriptions() -> Value {
    json!({
        "type": "invoice.paid",
        "payload": {"amount": 120, "currency": "EUR"},
        "subject": "user 17",
        "metadata": {"source": "billing"},
    })
}

fn problems() -> [ApiError; 5] {
    [
        ApiError::ApplicationNotFound(None),
        ApiError::TargetRefused(
            "10.0.0.1 is refused: private (RFC 1918); ALLOWED_TARGET_CIDRS can allow it".to_owned(),
        ),
        ApiError::NoTarget,
        ApiError::UnknownEventType {
            event_type: "invoice.payed".to_owned(),
            meant: Some("invoice.paid".to_owned()),
        },
        ApiError::PayloadRefused {
            event_type: "invoice.paid".to_owned(),
            faults: "at /amount: -5 is less than the minimum of 1".to_owned(),
        },
    ]
}

fn create() -> Operation {
    Operation::post("/events", events::create)
        .named("createEvent", "Publishes an event")
        .told(
            "Answered after the event and its deliveries are stored. With a `target_url` it goes to \
             that URL; with a `type` alone to the subscriptions that match; with neither to the \
             `TARGET_URL` of the settings.",
        )
        .of(Tag::Events, Permission::Publish)
        .further(NAMES_TARGETS)
        .idempotent()
        .reads("EventRequest", event())
        .example("To the subscriptions that match", to_subscriptions())
        .example_with(
            "To a URL of its own",
            json!({"payload": {"hello": "world"}, "target_url": "http://127.0.0.1:8080/webhook"}),
            Some(Permission::NameTargets),
        )
        .answers::<AcceptedBody>(
            StatusCode::ACCEPTED,
            "It is stored, and will be sent",
            json!({"id": EVENT, "status": "accepted"}),
        )
        .fails(problems())
        .fails([ApiError::Busy])
}

fn create_batch() -> Operation {
    let events = json!({
        "type": "array", "minItems": 1, "maxItems": batch::EVENTS_MAX, "items": event(),
    });
    Operation::post("/events/batch", batch::create)
        .named("createEvents", "Publishes many events")
        .told(
            "Each has a result of its own, in their order: good ones are stored also where others \
             are refused. With an `Idempotency-Key`, the key of each event that has none is that, a \
             slash and the event's place.",
        )
        .of(Tag::Events, Permission::Publish)
        .further(NAMES_TARGETS)
        .parameters([schemas::idempotency_header(batch::key_bytes_max())])
        .reads("BatchRequest", object(batch::FIELDS, &["events"], [("events", events)]))
        .example("Two events", json!({"events": [to_subscriptions(), {"type": "a", "payload": 1}]}))
        .answers::<BatchResults>(
            StatusCode::ACCEPTED,
            "One event is stored, or more",
            json!({"results": [
                {"id": EVENT, "status": "accepted"},
                {"status": "refused", "problem": {
                    "type": "/problems/invalid-request",
                    "title": "Invalid request",
                    "status": 422,
                    "detail": "`payload` is missing",
                    "pointer": "/events/1/payload",
                }},
            ]}),
        )
        .fails([ApiError::Busy, ApiError::BatchRefused { count: 2 }])
        .fails_as::<RefusedBody<'static>>()
}

fn list() -> Operation {
    let event = json!({
        "id": EVENT, "type": "invoice.paid", "subject": "user 17", "status": "pending",
        "metadata": {"source": "billing"}, "created_at": TIME, "delivery_count": 1,
        "attempt_count": 2, "next_attempt_at": "2026-01-31T12:00:04.5Z",
    });
    let statuses = EventStatus::ALL.map(EventStatus::as_str);
    Operation::get("/events", events::list)
        .named("listEvents", "Lists events, newest first")
        .of(Tag::Events, Permission::Read)
        .parameters(take::query(
            events::PARAMETERS,
            [
                take::application(),
                take::of_query("type", "Of this very type", schemas::event_type()),
                take::of_query("subject", "About this one", schemas::subject()),
                take::of_query("status", "Of this status", schemas::one_of(statuses)),
                take::created_after(),
                take::created_before(),
                take::limit(),
                take::cursor(),
            ],
        ))
        .answers::<Page<EventBody>>(
            StatusCode::OK,
            "A page of events",
            json!({"data": [event], "next_cursor": CURSOR}),
        )
}

fn show() -> Operation {
    let error = json!({
        "class": "http_status", "message": "the receiver answered 500", "status": 500,
        "at": "2026-01-31T12:00:00.2Z",
    });
    let event = json!({
        "id": EVENT, "type": "invoice.paid", "subject": null, "metadata": null,
        "status": "pending", "created_at": TIME, "delivery_count": 1, "attempt_count": 1,
        "next_attempt_at": "2026-01-31T12:00:02.1Z", "payload": {"amount": 120},
        "last_error": error, "deliveries": [deliveries::delivery()],
    });
    Operation::get("/events/{id}", events::show)
        .named("getEvent", "Shows an event, with its deliveries and their attempts")
        .of(Tag::Events, Permission::Read)
        .parameters([take::event_path()])
        .parameters(take::query(OF_APPLICATION, [take::application()]))
        .answers::<EventDetailBody>(StatusCode::OK, "The event", event)
}

fn explain() -> Operation {
    let explanation = json!({
        "event_id": EVENT, "event_type": "invoice.paid", "created_at": TIME,
        "route": "subscriptions", "delivery_count": 1,
        "data": [
            {
                "subscription_id": SUBSCRIPTION, "uid": "crm", "revision": 2,
                "target_url": "https://example.com/webhook", "verdict": "not_matched",
                "detail": "its filter: `data.amount` is 120; asked for: gte 1000",
                "clause": "/data.amount/gte",
            },
        ],
        "next_cursor": null,
    });
    Operation::get("/events/{id}/explain", explain::show)
        .named("explainEvent", "Says why an event went where it went, and nowhere else")
        .told(
            "Every subscription of the application, as it was when the event was routed, with what became \
             of the event there, or why it was not meant.",
        )
        .of(Tag::Events, Permission::Read)
        .parameters([take::event_path()])
        .parameters(take::query(
            explain::PARAMETERS,
            [take::application(), take::limit(), take::cursor()],
        ))
        .answers::<ExplanationBody>(StatusCode::OK, "The explanation", explanation)
}
