//! The settings of a subscription, as requests name them.

use serde_json::{Value, json};

use crate::{
    domain::{
        event_types::PATTERNS_MAX,
        filter::FILTER_BYTES_MAX,
        limits::{MAX_IN_FLIGHT_MAX, RATE_COUNT_MAX, RATE_SECONDS},
        retry::{ATTEMPTS_MAX, DELAYS_MAX},
        signature::SECRET_BYTES,
        subscription::{
            HEADER_BYTES_MAX, HEADERS_MAX, Method, PayloadFormat, SignatureHeaders, TIMEOUT,
        },
    },
    http::{
        openapi::schemas::{self, boolean, object, one_of, or_null, told},
        subscriptions::settings::{
            DESCRIPTION_BYTES_MAX, DISABLE_AFTER_S_MAX, EVENT_TYPES, FIELDS, HEADER_NAME_BYTES_MAX,
            SCHEMA_VERSION_BYTES_MAX, SIGNING, TARGET_URL, names,
        },
    },
};

type Member = (&'static str, Value);

/// All of them, of a new subscription: one of the names of a field that is required must be there.
pub fn new() -> Value {
    let secret = told(
        secret(),
        "Signs deliveries: `whsec_` and base64 of 24 to 64 bytes (recommended), or a text, which most \
         Standard Webhooks libraries do not verify; by default one is made, and shown in the answer",
    );
    let application = told(
        or_null(json!({"type": "string"})),
        "The application, by its id or its uid; the same as the parameter of the query",
    );
    whole(settings(secret, or_null(schemas::uid()), application))
}

/// All of them, of one that is replaced.
pub fn replacement() -> Value {
    whole(settings(no_secret(), schemas::uid(), no_application()))
}

fn whole(mut settings: Value) -> Value {
    let one_of = |names: &[&str]| {
        let each: Vec<_> = names.iter().map(|name| json!({"required": [name]})).collect();
        json!({"oneOf": each})
    };
    settings["allOf"] = json!([one_of(TARGET_URL), one_of(EVENT_TYPES)]);
    settings
}

/// Some of them: one name of a field at most.
pub fn change() -> Value {
    let mut settings = settings(no_secret(), schemas::uid(), no_application());
    let mut pairs = Vec::new();
    for names in [TARGET_URL, EVENT_TYPES] {
        for (index, one) in names.iter().enumerate() {
            let others = names[index + 1..].iter();
            pairs.extend(others.map(|other| json!({"not": {"required": [one, other]}})));
        }
    }
    settings["allOf"] = json!(pairs);
    settings
}

/// A secret that the caller may bring.
pub fn secret() -> Value {
    json!({
        "type": ["string", "null"],
        "minLength": SECRET_BYTES.start(),
        "maxLength": SECRET_BYTES.end(),
    })
}

/// None that is told: what signs is changed by another operation.
fn no_secret() -> Value {
    told(json!({"type": "null"}), "Is changed by `POST /subscriptions/{id}/rotate-secret`")
}

fn no_application() -> Value {
    told(json!({"type": "null"}), "Is told when a subscription is made, and stays")
}

/// In the order of the code.
fn settings(secret: Value, uid: Value, application: Value) -> Value {
    object(FIELDS, &[], [which_and_where(), how(secret), beside(uid, application)].concat())
}

fn which_and_where() -> Vec<Member> {
    let alias = |schema: Value, of: &[&str]| told(schema, &format!("Another name for `{}`", of[0]));
    vec![
        (
            "target_url",
            told(schemas::target_url(), "Where events go. Required, in one of its names"),
        ),
        ("url", alias(schemas::target_url(), TARGET_URL)),
        (
            "event_types",
            told(
                event_types(),
                "Which events: `invoice.paid` (this type), `invoice.*` (all below it), `*` (all). \
                 Required, in one of its names",
            ),
        ),
        ("events", alias(event_types(), EVENT_TYPES)),
        ("event_type", alias(event_types(), EVENT_TYPES)),
        (
            "filter",
            told(
                or_null(filter()),
                &format!(
                    "Which events of these types, by what is in them, such as \
                     `{{\"data.amount\": {{\"gte\": 100}}}}`; at most {FILTER_BYTES_MAX} bytes"
                ),
            ),
        ),
    ]
}

fn how(secret: Value) -> Vec<Member> {
    vec![
        ("method", or_null(one_of(names(Method::ALL, Method::as_str)))),
        (
            "headers",
            told(
                json!({
                    "type": ["object", "null"],
                    "maxProperties": HEADERS_MAX,
                    "additionalProperties": {"type": "string"},
                }),
                &format!(
                    "Headers beside ours, at most {HEADER_BYTES_MAX} bytes together. Their values \
                     are sealed, and shown as `[redacted]`, which stands for the stored value"
                ),
            ),
        ),
        ("secret", secret),
        ("signing", told(or_null(one_of(SIGNING)), "Whether deliveries are signed")),
        ("is_active", told(or_null(boolean()), "Whether events are sent there")),
        (
            "disable_after_seconds",
            told(
                json!({
                    "type": ["integer", "null"], "minimum": 0, "maximum": DISABLE_AFTER_S_MAX,
                }),
                "After how many seconds of nothing but failures it is disabled, 0 being never; by \
                 default `DISABLE_AFTER` of the settings",
            ),
        ),
        (
            "timeout_seconds",
            told(
                json!({
                    "type": ["number", "null"],
                    "minimum": TIMEOUT.start().as_secs(),
                    "maximum": TIMEOUT.end().as_secs(),
                }),
                "The deadline over one exchange; by default `HTTP_TIMEOUT` of the settings",
            ),
        ),
        ("retry", retry()),
        ("rate_limit", or_null(rate_limit())),
        (
            "max_in_flight",
            told(
                json!({"type": ["integer", "null"], "minimum": 1, "maximum": MAX_IN_FLIGHT_MAX}),
                "How many requests may be under way to it at a time, over all processes; by default \
                 as many as it answers well, up to `LANE_IN_FLIGHT_MAX` of each",
            ),
        ),
    ]
}

/// Filter of a subscription: its members are paths, `any`, `all` and `not`.
pub fn filter() -> Value {
    json!({"type": "object", "additionalProperties": {}})
}

/// Rate of requests to a subscription.
pub fn rate_limit() -> Value {
    let count = json!({"type": "integer", "minimum": 1, "maximum": RATE_COUNT_MAX});
    json!({
        "description": "How many requests may begin in a time, spread evenly, over all processes",
        "type": "object",
        "required": ["count", "per_seconds"],
        "additionalProperties": false,
        "properties": {
            "count": told(count.clone(), "So many"),
            "per_seconds": {
                "type": "number",
                "minimum": RATE_SECONDS.start(),
                "maximum": RATE_SECONDS.end(),
                "description": "In so many seconds",
            },
            "burst": told(count, "So many may begin at once after a pause; 1 by default"),
        },
    })
}

fn beside(uid: Value, application: Value) -> Vec<Member> {
    vec![
        (
            "payload_format",
            told(
                or_null(one_of(names(PayloadFormat::ALL, PayloadFormat::as_str))),
                "Whether the payload is sent in an envelope with the event's id, type and time, or \
                 raw, as it came",
            ),
        ),
        (
            "schema_version",
            told(
                or_null(schemas::text(SCHEMA_VERSION_BYTES_MAX)),
                "What the envelope says of its own form",
            ),
        ),
        (
            "signature_headers",
            told(
                or_null(one_of(names(SignatureHeaders::ALL, SignatureHeaders::as_str))),
                "Which headers carry the signature: those of Standard Webhooks, `X-Signature`, or \
                 both",
            ),
        ),
        (
            "inbound_secret",
            told(
                secret(),
                "What events that come in for this subscription are signed with. A valid signature \
                 needs no API key",
            ),
        ),
        (
            "inbound_type_header",
            told(
                json!({
                    "type": ["string", "null"],
                    "minLength": 1,
                    "maxLength": HEADER_NAME_BYTES_MAX,
                    "pattern": "^[A-Za-z0-9!#$%&'*+.^_`|~\\-]+$",
                }),
                "The header of what comes in that names its type, such as `X-GitHub-Event`, where \
                 there is no `X-Event-Type`",
            ),
        ),
        ("description", or_null(schemas::text(DESCRIPTION_BYTES_MAX))),
        ("metadata", schemas::metadata()),
        ("uid", told(uid, "Your own name for it. It cannot be taken away")),
        ("application", application),
    ]
}

fn event_types() -> Value {
    let list = json!({
        "type": "array",
        "minItems": 1,
        "maxItems": PATTERNS_MAX,
        "items": schemas::event_type_pattern(),
    });
    json!({"anyOf": [schemas::event_type_pattern(), list]})
}

/// Retries of a subscription or a target; null is the default.
pub fn retry() -> Value {
    let mut schema = retry_policy();
    if let Some(alternatives) = schema["anyOf"].as_array_mut() {
        alternatives.push(json!({"type": "null"}));
    }
    schema
}

/// When a failed delivery is tried again.
pub fn retry_policy() -> Value {
    let schedule = json!({
        "type": "array",
        "minItems": 1,
        "maxItems": DELAYS_MAX,
        "items": {"type": "number", "minimum": 0},
        "description": "So many seconds after each failure; then dead",
    });
    let backoff = json!({
        "type": "object",
        "description": "Twice as long after each failure",
        "required": ["max_attempts", "base_seconds", "max_seconds"],
        "additionalProperties": false,
        "properties": {
            "max_attempts": {"type": "integer", "minimum": 1, "maximum": ATTEMPTS_MAX},
            "base_seconds": {"type": "number", "exclusiveMinimum": 0},
            "max_seconds": {"type": "number", "exclusiveMinimum": 0},
        },
    });
    json!({
        "description": "When a failed delivery is tried again; by default as the settings say. It \
                        must not reach beyond `DELIVERY_AGE_MAX` of the settings",
        "anyOf": [schedule, backoff],
    })
}
