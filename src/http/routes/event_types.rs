//! `/event-types`.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::examples::{APPLICATION, CURSOR, TIME};
use crate::{
    domain::{
        Permission,
        catalogue::{DESCRIPTION_BYTES_MAX, EXAMPLE_BYTES_MAX, VERSION_BYTES_MAX},
        schema::SCHEMA_BYTES_MAX,
    },
    http::{
        ApiError,
        event_types::{self, EventTypeBody, LoadedBody, OF_CATALOGUE, SCOPES},
        events::Page,
        openapi::{
            Further, Operation, Parameter, Tag,
            schemas::{self, boolean, object, or_null, parameters as take, told},
        },
    },
};

pub fn operations() -> Vec<Operation> {
    // A type may be called `load`, which is a route of its own.
    let one = [show(), change(), delete()];
    let called_load = ["getEventTypeLoad", "changeEventTypeLoad", "deleteEventTypeLoad"];
    let called_load: Vec<_> = one
        .iter()
        .zip(called_load)
        .map(|(operation, id)| operation.also_at("/event-types/load", id).without_path_parameters())
        .collect();
    [vec![create(), load(), list()], one.into(), called_load].concat()
}

/// The instance's catalogue is the operator's to change.
const OF_THE_INSTANCE: Further = Further {
    when: "`scope=instance`",
    permission: Permission::Administer,
    query: Some(("scope", SCOPES[1])),
};

fn of_catalogue() -> [Parameter; 2] {
    take::query(OF_CATALOGUE, [take::application(), scope()])
}

fn scope() -> Parameter {
    take::of_query(
        "scope",
        "`instance`: the catalogue of the instance, to which no `application` can be named. \
         `application`: that of the application, without the instance's. By default what is read is \
         both, and what is changed is the application's",
        schemas::one_of(SCOPES),
    )
}

fn event_type() -> Value {
    json!({
        "name": "invoice.paid", "scope": "application", "application_id": APPLICATION,
        "description": "An invoice was paid in full.",
        "schema": {"type": "object", "required": ["amount"]},
        "checks_payload": true, "version": "1", "example": {"amount": 4200},
        "deprecated": false, "deprecated_at": null, "created_at": TIME, "updated_at": TIME,
    })
}

/// The members of a change, in its order.
fn definition() -> [(&'static str, Value); 6] {
    [
        ("description", told(or_null(schemas::text(DESCRIPTION_BYTES_MAX)), "What it is for")),
        (
            "schema",
            told(
                json!({"type": ["object", "boolean", "null"]}),
                &format!(
                    "A JSON Schema of its payloads, at most {SCHEMA_BYTES_MAX} bytes, that refers to \
                     nothing outside of itself"
                ),
            ),
        ),
        (
            "checks_payload",
            told(or_null(boolean()), "Whether payloads must keep to the schema; by default not"),
        ),
        (
            "version",
            told(or_null(schemas::line(VERSION_BYTES_MAX)), "Your own name for this state of it"),
        ),
        (
            "example",
            told(
                schemas::any(),
                &format!(
                    "A payload, at most {EXAMPLE_BYTES_MAX} bytes; where there is a schema, it must \
                     keep to it"
                ),
            ),
        ),
        ("deprecated", told(or_null(boolean()), "Whether it should not be used any more")),
    ]
}

fn create() -> Operation {
    let [description, schema, checks, version, example, deprecated] = definition();
    let name = ("name", schemas::event_type());
    let members = [name, description, schema, checks, version, example, deprecated];
    Operation::post("/event-types", event_types::create)
        .named("createEventType", "Makes an event type")
        .of(Tag::EventTypes, Permission::Manage)
        .further(OF_THE_INSTANCE)
        .parameters(of_catalogue())
        .idempotent()
        .reads("EventTypeRequest", object(event_types::FIELDS, &["name"], members))
        .example(
            "A type with a schema that payloads are held to",
            json!({
                "name": "invoice.settled",
                "description": "An invoice was paid in full.",
                "version": "1",
                "schema": {
                    "type": "object",
                    "required": ["amount"],
                    "properties": {"amount": {"type": "integer", "minimum": 1}},
                },
                "checks_payload": true,
                "example": {"amount": 4200},
            }),
        )
        .answers::<EventTypeBody>(StatusCode::CREATED, "The type", event_type())
        .fails([ApiError::Conflict("`name` is that of another type of this catalogue")])
}

fn load() -> Operation {
    Operation::post("/event-types/load", event_types::load)
        .named("loadEventTypes", "Adds the standard catalogue")
        .told("Types whose names are there already are left as they are.")
        .of(Tag::EventTypes, Permission::Manage)
        .further(OF_THE_INSTANCE)
        .parameters(of_catalogue())
        .answers::<LoadedBody>(
            StatusCode::OK,
            "What was added",
            json!({"added": 50, "already_there": ["invoice.paid"]}),
        )
}

fn list() -> Operation {
    Operation::get("/event-types", event_types::list)
        .named("listEventTypes", "Lists event types by name")
        .of(Tag::EventTypes, Permission::Read)
        .parameters(take::query(
            event_types::OF_LIST,
            [
                take::application(),
                scope(),
                take::of_query("deprecated", "Only those that are, or that are not", boolean()),
                take::of_query(
                    "prefix",
                    "Only those whose names begin so, such as `invoice.`",
                    json!({"type": "string", "pattern": r"^[A-Za-z0-9_\-]+(\.[A-Za-z0-9_\-]+)*\.?$"}),
                ),
                take::limit(),
                take::cursor(),
            ],
        ))
        .answers::<Page<EventTypeBody>>(
            StatusCode::OK,
            "A page of types",
            json!({"data": [event_type()], "next_cursor": CURSOR}),
        )
}

fn show() -> Operation {
    Operation::get("/event-types/{name}", event_types::show)
        .named("getEventType", "Shows an event type: the application's own, else the instance's")
        .of(Tag::EventTypes, Permission::Read)
        .parameters([take::event_type_path()])
        .parameters(of_catalogue())
        .answers::<EventTypeBody>(StatusCode::OK, "The type", event_type())
}

fn change() -> Operation {
    Operation::patch("/event-types/{name}", event_types::change)
        .named("changeEventType", "Changes an event type")
        .told("What is not told stays; null takes away.")
        .of(Tag::EventTypes, Permission::Manage)
        .further(OF_THE_INSTANCE)
        .parameters([take::event_type_path()])
        .parameters(of_catalogue())
        .reads("EventTypeChange", object(event_types::CHANGED_FIELDS, &[], definition()))
        .example("Deprecate it", json!({"deprecated": true}))
        .answers::<EventTypeBody>(StatusCode::OK, "The type as it is now", event_type())
        .fails([ApiError::Conflict("somebody else changed it meanwhile: try again")])
}

fn delete() -> Operation {
    Operation::delete("/event-types/{name}", event_types::delete)
        .named("deleteEventType", "Takes an event type out of the catalogue")
        .told("Events that are stored keep their type.")
        .of(Tag::EventTypes, Permission::Manage)
        .further(OF_THE_INSTANCE)
        .parameters([take::event_type_path()])
        .parameters(of_catalogue())
        .answers_nothing("It is gone")
}
