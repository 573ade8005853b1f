//! `/subscriptions`.

pub mod settings;

pub use settings::retry;

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::{
    deliveries, diagnosis,
    examples::{APPLICATION, CURSOR, EVENT, SECRET, SUBSCRIPTION, TIME},
    statistics,
};
use crate::{
    domain::Permission,
    http::{
        ApiError,
        extract::OF_APPLICATION,
        openapi::{
            Operation, Tag,
            schemas::{self, boolean, object, or_null, parameters as take, told},
        },
        subscriptions::{
            self, SubscriptionBody,
            attention::SubscriptionPage,
            secrets::{self, OVERLAP_SECONDS, OVERLAP_SECONDS_MAX, ROTATION_FIELDS, SecretBody},
            test_event::{self, TestBody},
        },
    },
};

pub fn operations() -> Vec<Operation> {
    vec![
        create(),
        list(),
        show(),
        replace(),
        change(),
        delete(),
        enable(),
        disable(),
        secret(),
        rotate_secret(),
        test(),
        deliveries::of_subscription(),
        statistics::of_subscription(),
        diagnosis::of_subscription(),
    ]
}

fn subscription() -> Value {
    json!({
        "id": SUBSCRIPTION, "application_id": APPLICATION, "uid": "crm", "managed_by": null, "revision": 1,
        "target_url": "https://example.com/webhook", "event_types": ["invoice.*"],
        "filter": {"data.amount": {"gte": 100}}, "method": "POST",
        "headers": {"Authorization": "[redacted]"}, "signing": "standard",
        "signature_headers": "standard", "is_active": true, "disabled": null, "disable_after_seconds": null, "timeout_seconds": null,
        "retry": [60, 300, 900, 3600], "rate_limit": {"count": 10, "per_seconds": 1.0, "burst": 1},
        "max_in_flight": null, "payload_format": "envelope", "schema_version": "1",
        "has_inbound_secret": false, "inbound_type_header": null, "description": null, "metadata": null,
        "created_at": TIME, "updated_at": TIME,
    })
}

fn of_one(operation: Operation, permission: Permission) -> Operation {
    operation
        .of(Tag::Subscriptions, permission)
        .parameters([take::subscription_path()])
        .parameters(take::query(OF_APPLICATION, [take::application()]))
}

fn kept() -> ApiError {
    let (document_id, collection) = ("12".to_owned(), "webhookSubscriptions".to_owned());
    ApiError::KeptInCms { document_id, collection }
}

fn refused() -> ApiError {
    ApiError::TargetRefused(
        "10.0.0.1 is refused: private (RFC 1918); ALLOWED_TARGET_CIDRS can allow it".to_owned(),
    )
}

fn create() -> Operation {
    let mut made = subscription();
    made["secret"] = json!(SECRET);
    Operation::post("/subscriptions", subscriptions::create)
        .named("createSubscription", "Makes a subscription")
        .told(
            "The answer has the `secret` that signs, this once, and `warnings` where a secret of yours \
             is short or is not in `whsec_` form.",
        )
        .of(Tag::Subscriptions, Permission::Manage)
        .parameters(take::query(OF_APPLICATION, [take::application()]))
        .idempotent()
        .reads("SubscriptionRequest", settings::new())
        .example(
            "What is needed",
            json!({"target_url": "http://127.0.0.1:8080/webhook", "event_types": ["invoice.*"]}),
        )
        .example(
            "With much of what there is",
            json!({
                "url": "http://127.0.0.1:8080/webhook",
                "events": "invoice.paid",
                "filter": {"data.amount": {"gte": 100}},
                "headers": {"Authorization": "Bearer of-the-receiver"},
                "retry": [60, 300, 900, 3600],
                "timeout_seconds": 10,
                "payload_format": "raw",
                "description": "The receiver of paid invoices",
                "metadata": {"team": "billing"},
            }),
        )
        .answers::<SubscriptionBody>(StatusCode::CREATED, "The subscription", made)
        .fails([refused(), ApiError::Conflict("`uid` is the name of another subscription")])
}

fn list() -> Operation {
    Operation::get("/subscriptions", subscriptions::list)
        .named("listSubscriptions", "Lists subscriptions, newest first")
        .of(Tag::Subscriptions, Permission::Read)
        .parameters(take::query(
            subscriptions::PARAMETERS,
            [
                take::application(),
                take::of_query("is_active", "Only those that are, or that are not", boolean()),
                take::of_query(
                    "attention",
                    "Only those that somebody should look at: disabled by the service, failing, \
                     behind, or refused as they are in the CMS",
                    json!({"const": true}),
                ),
                take::of_query(
                    "event_type",
                    "With this very pattern",
                    schemas::event_type_pattern(),
                ),
                take::of_query("target_url", "To this very URL", schemas::target_url()),
                take::limit(),
                take::cursor(),
            ],
        ))
        .answers::<SubscriptionPage>(
            StatusCode::OK,
            "A page of subscriptions",
            json!({"data": [subscription()], "next_cursor": CURSOR}),
        )
}

fn show() -> Operation {
    of_one(Operation::get("/subscriptions/{id}", subscriptions::show), Permission::Read)
        .named("getSubscription", "Shows a subscription")
        .answers::<SubscriptionBody>(StatusCode::OK, "The subscription", subscription())
}

fn replace() -> Operation {
    of_one(Operation::put("/subscriptions/{id}", subscriptions::replace), Permission::Manage)
        .named("replaceSubscription", "Replaces the settings of a subscription")
        .told("What is not told has its default. `uid` and the secrets stay.")
        .reads("SubscriptionReplacement", settings::replacement())
        .example(
            "All defaults but these",
            json!({"target_url": "http://127.0.0.1:8080/webhook", "event_types": ["invoice.*"]}),
        )
        .answers::<SubscriptionBody>(
            StatusCode::OK,
            "The subscription as it is now",
            subscription(),
        )
        .fails([
            refused(),
            ApiError::Conflict("others change this subscription at the same time"),
            kept(),
        ])
}

fn change() -> Operation {
    of_one(Operation::patch("/subscriptions/{id}", subscriptions::patch), Permission::Manage)
        .named("changeSubscription", "Changes some settings of a subscription")
        .told("What is not told stays; null stands for the default.")
        .reads("SubscriptionChange", settings::change())
        .example("Another description", json!({"description": "The receiver of paid invoices"}))
        .answers::<SubscriptionBody>(
            StatusCode::OK,
            "The subscription as it is now",
            subscription(),
        )
        .fails([
            refused(),
            ApiError::Conflict("others change this subscription at the same time"),
            kept(),
        ])
}

fn delete() -> Operation {
    of_one(Operation::delete("/subscriptions/{id}", subscriptions::delete), Permission::Manage)
        .named("deleteSubscription", "Deletes a subscription")
        .told("What waits for it is cancelled.")
        .answers_nothing("It is deleted")
        .fails([kept()])
}

fn enable() -> Operation {
    Operation::post("/subscriptions/{id}/enable", subscriptions::enable)
        .of(Tag::Subscriptions, Permission::Manage)
        .parameters([take::subscription_path()])
        .parameters(take::query(
            subscriptions::OF_ENABLING,
            [
                take::application(),
                take::of_query(
                    "parked",
                    "What becomes of the deliveries that are parked; by default they are sent",
                    schemas::one_of(["send", "cancel"]),
                ),
            ],
        ))
        .named("enableSubscription", "Sends events there again")
        .told("What is parked goes on within seconds, oldest first and not all at once.")
        .answers::<SubscriptionBody>(
            StatusCode::OK,
            "The subscription as it is now",
            subscription(),
        )
        .fails([
            ApiError::Conflict("others change this subscription at the same time"),
            kept(),
            ApiError::Busy,
        ])
}

fn disable() -> Operation {
    let disable = Operation::post("/subscriptions/{id}/disable", subscriptions::disable);
    let mut disabled = subscription();
    disabled["is_active"] = json!(false);
    disabled["disabled"] = json!({"at": TIME, "because": "owner"});
    of_one(disable, Permission::Manage)
        .named("disableSubscription", "Sends nothing there for now")
        .told("What comes for it is parked, and goes on when it is enabled again.")
        .answers::<SubscriptionBody>(StatusCode::OK, "The subscription as it is now", disabled)
        .fails([ApiError::Conflict("others change this subscription at the same time"), kept()])
}

fn secret() -> Operation {
    of_one(Operation::get("/subscriptions/{id}/secret", secrets::secret), Permission::Manage)
        .named("getSubscriptionSecret", "Shows the secret that signs")
        .answers::<SecretBody>(StatusCode::OK, "The secret", json!({"secret": SECRET}))
        .fails([ApiError::Conflict("this subscription does not sign")])
}

fn rotate_secret() -> Operation {
    let rotate = Operation::post("/subscriptions/{id}/rotate-secret", secrets::rotate_secret);
    let fields = object(
        ROTATION_FIELDS,
        &[],
        [
            (
                "secret",
                told(
                    settings::secret(),
                    "What signs from now on, `whsec_…` recommended; by default one is made",
                ),
            ),
            (
                "overlap_seconds",
                told(
                    json!({
                        "type": ["number", "null"],
                        "minimum": 0,
                        "maximum": OVERLAP_SECONDS_MAX,
                        "default": OVERLAP_SECONDS,
                    }),
                    "How long the secrets before it sign beside it",
                ),
            ),
        ],
    );
    of_one(rotate, Permission::Manage)
        .named("rotateSubscriptionSecret", "Makes a new secret, or takes yours")
        .told("Those before it sign beside it for the overlap.")
        .reads("RotationRequest", fields)
        .example("A new one, and an hour for the change", json!({"overlap_seconds": 3_600}))
        .answers::<SecretBody>(
            StatusCode::OK,
            "The secret",
            json!({"secret": SECRET, "previous_until": TIME}),
        )
        .fails([ApiError::Conflict("this subscription does not sign"), kept()])
}

fn test() -> Operation {
    let fields = object(
        test_event::FIELDS,
        &[],
        [
            (
                "type",
                told(
                    or_null(schemas::event_type()),
                    "By default the first that the subscription asks for and that has a name",
                ),
            ),
            ("payload", told(schemas::any(), "By default the catalogue's example of the type")),
        ],
    );
    of_one(
        Operation::post("/subscriptions/{id}/test", test_event::create),
        Permission::Manage,
    )
    .named("testSubscription", "Sends an example to a subscription")
    .told(
        "A real delivery, signed, retried and logged, whatever the patterns and the filter of the \
         subscription say. Its metadata is `{\"test\": true}`.",
    )
    .idempotent()
    .reads("TestRequest", fields)
    .example("The catalogue's example", json!({}))
    .example("A payload of yours", json!({"type": "invoice.paid", "payload": {"amount": 1}}))
    .answers::<TestBody>(
        StatusCode::ACCEPTED,
        "It is stored, and will be sent",
        json!({
            "id": EVENT, "status": "accepted", "type": "invoice.paid",
            "delivery_id": "dlv_0192d4e012347abc8def012345600000",
        }),
    )
    .fails([
        refused(),
        ApiError::PayloadRefused {
            event_type: "invoice.paid".to_owned(),
            faults: "at /amount: 0 is less than the minimum of 1".to_owned(),
        },
        ApiError::UnknownEventType { event_type: "invoice.payed".to_owned(), meant: None },
        ApiError::Conflict("this subscription is disabled; enable it first"),
        ApiError::Busy,
    ])
}
