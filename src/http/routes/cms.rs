//! `/payload`.

use axum::http::StatusCode;
use serde_json::json;

use super::examples::TIME;
use crate::{
    domain::Permission,
    http::{
        ApiError,
        cms_changes::{self, CmsChangeBody, FIELDS, NO_CMS},
        openapi::{
            Operation, Tag,
            schemas::{boolean, object, or_null, told},
        },
    },
    store::cms_subscriptions::DOCUMENT_ID_BYTES_MAX,
};

pub fn changed() -> Operation {
    let id = json!({
        "anyOf": [
            {"type": "string", "minLength": 1, "maxLength": DOCUMENT_ID_BYTES_MAX},
            {"type": "integer", "minimum": 0},
        ],
    });
    let time = or_null(json!({"type": "string", "format": "date-time"}));
    let fields = object(
        FIELDS,
        &["id"],
        [
            ("id", told(id, "Which document")),
            ("updatedAt", told(time, "Its `updatedAt`: it is read until it is from then or later")),
            ("deleted", told(or_null(boolean()), "It is deleted: it is read until it is gone")),
        ],
    );
    Operation::post("/payload/changes", cms_changes::create)
        .named("tellOfPayloadChange", "Takes note that a subscription in Payload has changed")
        .told(
            "For the hooks of Payload. The document itself is read from there, within seconds. The \
             application is that of PAYLOAD_APPLICATION.",
        )
        .of(Tag::Subscriptions, Permission::Manage)
        .reads("CmsChange", fields)
        .example("It was changed", json!({"id": 12, "updatedAt": TIME}))
        .example("It was deleted", json!({"id": 12, "deleted": true}))
        .answers::<CmsChangeBody>(
            StatusCode::ACCEPTED,
            "It will be looked at",
            json!({"status": "accepted"}),
        )
        .fails([ApiError::ApplicationNotFound(None), ApiError::Conflict(NO_CMS), ApiError::Busy])
}
