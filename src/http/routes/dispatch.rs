//! `/dispatch`.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::{examples::EVENT, subscriptions::retry};
use crate::{
    domain::{
        KeyName, Permission,
        event::IDEMPOTENCY_KEY_BYTES_MAX,
        named_keys::KEY_NAME_BYTES_MAX,
        subscription::{HEADER_BYTES_MAX, HEADERS_MAX, Method},
    },
    http::{
        ApiError,
        dispatch::{self, DispatchBody, DispatchStatusBody},
        dispatch_request::{FIELDS, HEADER_BYTES_OF_ALL_MAX, TARGET_FIELDS, TARGETS_MAX},
        extract::OF_APPLICATION,
        openapi::{
            Further, Operation, Tag,
            schemas::{self, object, or_null, parameters as take, told},
        },
    },
};

pub fn operations() -> Vec<Operation> {
    vec![create(), show()]
}

fn signing_key() -> Value {
    or_null(json!({
        "type": "string",
        "minLength": 1,
        "maxLength": KEY_NAME_BYTES_MAX,
        "pattern": "^[A-Za-z0-9_.\\-]+$",
    }))
}

fn headers() -> Value {
    json!({
        "type": ["object", "null"],
        "maxProperties": HEADERS_MAX,
        "additionalProperties": {"type": "string"},
    })
}

fn target() -> Value {
    let method = schemas::one_of(Method::ALL.iter().map(|method| method.as_str()));
    let url = told(schemas::target_url(), "Where it goes");
    let object = object(
        TARGET_FIELDS,
        &["url"],
        [
            ("url", url.clone()),
            ("method", told(or_null(method), "By default `POST`")),
            (
                "headers",
                told(
                    headers(),
                    &format!(
                        "Of this target: they take the place of common ones. At most \
                         {HEADER_BYTES_MAX} bytes together, kept sealed"
                    ),
                ),
            ),
            ("signatureKeyId", told(signing_key(), "The key that signs for this target")),
        ],
    );
    json!({"anyOf": [url, object]})
}

fn request() -> Value {
    let targets = json!({
        "type": "array", "minItems": 1, "maxItems": TARGETS_MAX, "items": target(),
    });
    object(
        FIELDS,
        &["event", "payload"],
        [
            ("event", told(schemas::published_type(), "What happened, as a dotted name")),
            ("payload", told(schemas::any(), "What is sent: any JSON, byte for byte as it comes")),
            (
                "targets",
                told(
                    or_null(targets),
                    "Where it goes; without them to the subscriptions that match",
                ),
            ),
            (
                "headers",
                told(
                    headers(),
                    &format!(
                        "Headers of every target; of all targets together at most \
                         {HEADER_BYTES_OF_ALL_MAX} bytes. They go with `targets`, as the next two"
                    ),
                ),
            ),
            (
                "signatureKeyId",
                told(
                    signing_key(),
                    "The key that signs, one of the application's in `SIGNING_KEYS`; by default the \
                     application's own",
                ),
            ),
            ("retry", told(retry(), "When a failed delivery is tried again; by default never")),
            (
                "idempotencyKey",
                told(
                    or_null(schemas::idempotency_key(IDEMPOTENCY_KEY_BYTES_MAX)),
                    "The same as the header `Idempotency-Key`; if both are there, they must agree",
                ),
            ),
        ],
    )
}

fn results() -> Value {
    json!([
        {"url": "https://example.com/a", "status": "delivered", "code": 204, "durationMs": 12},
        {
            "url": "https://example.com/b", "status": "failed", "code": null, "durationMs": 3,
            "error": {"class": "connect", "message": "tcp connect error: Connection refused"},
        },
    ])
}

fn create() -> Operation {
    let pending = json!([
        {"url": "https://example.com/a", "status": "pending", "code": null, "durationMs": null},
    ]);
    let unknown = KeyName::parse("2025-07").expect("an example is well");
    Operation::post("/dispatch", dispatch::create)
        .named("createDispatch", "Sends an event to targets, and tells what became of it")
        .told(
            "One attempt at each target, unless `retry` asks for more. Answered when all results are \
             in, and at the latest after `DISPATCH_WAIT`; where there are more targets than \
             `DISPATCH_INLINE_MAX`, at once. A repeat with the same idempotency key sends nothing, and \
             waits for the same results. Who hangs up cancels nothing.",
        )
        .of(Tag::Events, Permission::Publish)
        .further(Further {
            when: "it names `targets`",
            permission: Permission::NameTargets,
            query: None,
        })
        .parameters(take::query(OF_APPLICATION, [take::application()]))
        .idempotent()
        .reads("DispatchRequest", request())
        .example(
            "To the subscriptions that match",
            json!({"event": "invoice.paid", "payload": {"amount": 120}}),
        )
        .example_with(
            "To targets",
            json!({
                "event": "invoice.paid",
                "payload": {"amount": 120},
                "targets": [
                    "http://127.0.0.1:8080/webhook",
                    {"url": "http://127.0.0.1:8080/other", "method": "PUT",
                     "headers": {"X-Tenant": "7"}},
                ],
                "headers": {"X-Run": "41"},
            }),
            Some(Permission::NameTargets),
        )
        .answers::<DispatchBody>(
            StatusCode::OK,
            "All results",
            json!({"dispatchId": EVENT, "results": results()}),
        )
        .answers::<DispatchBody>(
            StatusCode::ACCEPTED,
            "It is stored; some results are still to come, and `GET /dispatch/{id}` has them",
            json!({"dispatchId": EVENT, "results": pending}),
        )
        .fails([
            ApiError::UnknownSigningKey(unknown),
            ApiError::UnknownEventType {
                event_type: "invoice.payed".to_owned(),
                meant: Some("invoice.paid".to_owned()),
            },
            ApiError::PayloadRefused {
                event_type: "invoice.paid".to_owned(),
                faults: "at /amount: -5 is less than the minimum of 1".to_owned(),
            },
            ApiError::Busy,
        ])
}

fn show() -> Operation {
    Operation::get("/dispatch/{id}", dispatch::show)
        .named("getDispatch", "Shows what became of a dispatch at each target")
        .told("Of any event: a dispatch is one. Of more than 1,000 targets the first are shown.")
        .of(Tag::Events, Permission::Read)
        .parameters([take::event_path()])
        .parameters(take::query(OF_APPLICATION, [take::application()]))
        .answers::<DispatchStatusBody>(
            StatusCode::OK,
            "Its results",
            json!({"dispatchId": EVENT, "status": "failed", "results": results()}),
        )
}
