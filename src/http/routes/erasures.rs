//! `/erasures`.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::examples::{APPLICATION, CURSOR, ERASURE, EVENT, TIME};
use crate::{
    domain::{EventId, Permission, erasure::Erasable},
    http::{
        ApiError,
        erasures::{self, ErasureBody, FIELDS},
        events::Page,
        extract::{OF_APPLICATION, OF_APPLICATION_PAGE},
        openapi::{
            Operation, Tag,
            schemas::{self, object, parameters as take, told},
        },
    },
};

pub fn operations() -> Vec<Operation> {
    vec![create(), list(), show()]
}

fn erasure(is_done: bool) -> Value {
    json!({
        "id": ERASURE, "application_id": APPLICATION, "scope": "subject", "event_id": null,
        "subject": (!is_done).then_some("customer 4711"),
        "subject_sha256": "d5a1b6f7d1ed2b5f4a9e6c2ff0a7b1b0c2d3e4f5061728394a5b6c7d8e9fa0b1",
        "state": if is_done { "completed" } else { "running" },
        "erased": {"events": 12, "payloads": 12, "attempts": 31, "deliveries_cancelled": 1,
                   "idempotency_keys": 2},
        "created_at": TIME, "updated_at": TIME, "ended_at": is_done.then_some(TIME),
    })
}

fn settings() -> Value {
    let mut settings = object(
        FIELDS,
        &["scope"],
        [
            ("scope", told(schemas::one_of(Erasable::SCOPES), "What is erased")),
            ("event_id", told(schemas::id(EventId::PREFIX), "With the scope `event`: which one")),
            ("subject", told(schemas::subject(), "With the scope `subject`: whom it is about")),
        ],
    );
    let only = |scope: &str, of: &[&str], not: &[&str]| {
        json!({
            "properties": {"scope": {"const": scope}},
            "required": of,
            "not": {"anyOf": not.iter().map(|name| json!({"required": [name]})).collect::<Vec<_>>()},
        })
    };
    let [event, subject, application] = Erasable::SCOPES;
    settings["oneOf"] = json!([
        only(event, &["event_id"], &["subject"]),
        only(subject, &["subject"], &["event_id"]),
        only(application, &[], &["event_id", "subject"]),
    ]);
    settings
}

fn create() -> Operation {
    Operation::post("/erasures", erasures::create)
        .named("createErasure", "Erases what is stored of an event, a subject or an application")
        .told(
            "A job, of all that was accepted by now: payloads, metadata, subjects, the headers and \
             bodies of requests and answers, and idempotency keys are deleted, and what waits to be \
             sent is cancelled. What stays is that an event of this type was, when, where it went and \
             what came of it. Nothing brings it back.",
        )
        .of(Tag::Events, Permission::Manage)
        .parameters(take::query(OF_APPLICATION, [take::application()]))
        .idempotent()
        .reads("ErasureRequest", settings())
        .example("All about somebody", json!({"scope": "subject", "subject": "customer 4711"}))
        .example("One event", json!({"scope": "event", "event_id": EVENT}))
        .example("All of a tenant that has left", json!({"scope": "application"}))
        .answers::<ErasureBody>(StatusCode::ACCEPTED, "The erasure", erasure(false))
        .fails([
            ApiError::EventNotFound(None),
            ApiError::Full {
                what: "erasures that are not done",
                count_max: crate::store::erasures::ERASURES_MAX,
            },
        ])
}

fn list() -> Operation {
    Operation::get("/erasures", erasures::list)
        .named("listErasures", "Lists erasures, newest first")
        .of(Tag::Events, Permission::Read)
        .parameters(take::query(
            OF_APPLICATION_PAGE,
            [take::application(), take::limit(), take::cursor()],
        ))
        .answers::<Page<ErasureBody>>(
            StatusCode::OK,
            "A page of erasures",
            json!({"data": [erasure(true)], "next_cursor": CURSOR}),
        )
}

fn show() -> Operation {
    Operation::get("/erasures/{id}", erasures::show)
        .named("getErasure", "Shows an erasure: how far it got, or its receipt")
        .of(Tag::Events, Permission::Read)
        .parameters([take::erasure_path()])
        .parameters(take::query(OF_APPLICATION, [take::application()]))
        .answers::<ErasureBody>(StatusCode::OK, "The erasure", erasure(true))
}
