//! `/ingest`.

use axum::http::StatusCode;
use serde_json::json;

use super::examples::{DELIVERY, EVENT};
use crate::{
    domain::Permission,
    http::{
        ApiError,
        extract::OF_APPLICATION,
        ingest::{self, EVENT_TYPE, IngestedBody, SIGNATURE},
        openapi::{
            Operation, Tag,
            schemas::{self, parameters as take},
        },
    },
};

pub fn create() -> Operation {
    let signature = json!({"type": "string", "pattern": "^sha256=[0-9A-Fa-f]{64}$"});
    Operation::post("/ingest/{id}", ingest::create)
        .named("ingest", "Accepts what another system sends, for one subscription")
        .told(
            "The body is the payload, whatever it is, and goes to this subscription alone, whatever its \
             patterns and its filter say. Where the subscription has an `inbound_secret`, only what that \
             has signed is accepted: by the header, or as `{\"body\": \"…\", \"signature\": hex}`, over \
             the exact text in `body`, which then is the payload.",
        )
        .of(Tag::Events, Permission::Publish)
        .parameters([take::subscription_path()])
        .parameters(take::query(OF_APPLICATION, [take::application()]))
        .parameters([
            take::of_header(EVENT_TYPE, "What happened, as a dotted name", schemas::event_type()),
            take::of_header(SIGNATURE, "`sha256=` and the HMAC-SHA256 over the body", signature),
        ])
        .idempotent()
        .reads("IngestRequest", schemas::any())
        .example("Anything", json!({"amount": 120}))
        .answers::<IngestedBody>(
            StatusCode::ACCEPTED,
            "It is stored, and will be sent",
            json!({"task_id": DELIVERY, "event_id": EVENT}),
        )
        .fails([
            ApiError::InboundSignature,
            ApiError::PayloadRefused {
                event_type: "invoice.paid".to_owned(),
                faults: "at /amount: 0 is less than the minimum of 1".to_owned(),
            },
            ApiError::UnknownEventType { event_type: "invoice.payed".to_owned(), meant: None },
            ApiError::Busy,
        ])
}
