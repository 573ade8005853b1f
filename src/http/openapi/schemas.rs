//! What requests are made of, in JSON Schema 2020-12. Bounds are the constants of the code that
//! checks them; what a schema cannot say (bytes, where it counts characters; addresses; the grammar
//! of filters) is told in words.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::operation::{In, Parameter};
use crate::{
    domain::{
        ApiKeyId, ApplicationId, AttemptId, DeliveryId, ErasureId, EventId, ReplayId,
        SubscriptionId,
        event::{EVENT_TYPE_BYTES_MAX, METADATA_BYTES_MAX, OPERATOR_TYPES, SUBJECT_BYTES_MAX},
        event_types::PATTERN_BYTES_MAX,
        target::URL_BYTES_MAX,
        uid::{ID_PREFIXES, UID_BYTES_MAX},
    },
    http::{
        extract::{IdempotencyHeader, LIMIT_DEFAULT, LIMIT_MAX},
        routes::subscriptions::settings,
    },
};

/// The component that every problem document is.
pub const PROBLEM: &str = "Problem";

/// The name of an event type, without what holds it to both ends.
const EVENT_TYPE: &str = r"[A-Za-z0-9_\-]+(\.[A-Za-z0-9_\-]+)*";

/// An object of exactly these members: in the order of `names`, by which the code reads it.
pub fn object(
    names: &[&str],
    required: &[&str],
    members: impl IntoIterator<Item = (&'static str, Value)>,
) -> Value {
    let members: Vec<_> = members.into_iter().collect();
    let told: Vec<_> = members.iter().map(|(name, _)| *name).collect();
    assert_eq!(told, names, "the document and the code name the same members");
    let properties: Map<_, _> =
        members.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect();
    let mut object = json!({
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    });
    if !required.is_empty() {
        object["required"] = json!(required);
    }
    object
}

/// The same, with words.
pub fn told(mut schema: Value, description: &str) -> Value {
    schema["description"] = json!(description);
    schema
}

/// The same, or null: the same as if it were not there.
pub fn or_null(mut schema: Value) -> Value {
    if let Some(values) = schema.get_mut("enum").and_then(Value::as_array_mut) {
        values.push(Value::Null);
    }
    match schema.get("type") {
        Some(Value::String(one)) => {
            schema["type"] = json!([one, "null"]);
            schema
        }
        _ => json!({"anyOf": [schema, {"type": "null"}]}),
    }
}

/// Any JSON value.
pub fn any() -> Value {
    json!({})
}

/// Formats of numbers that readers of JSON Schema know; schemars has more.
const NUMBER_FORMATS: [&str; 4] = ["int32", "int64", "float", "double"];

/// Writes derived schemas as most readers know them: `{}` for `true` where a value may be anything, and
/// no formats of numbers beside those of OpenAPI.
pub fn widen(schema: &mut Value) {
    match schema {
        Value::Array(parts) => parts.iter_mut().for_each(widen),
        Value::Object(members) => {
            for name in ["properties", "$defs"] {
                let parts = members.get_mut(name).and_then(Value::as_object_mut);
                for part in parts.into_iter().flat_map(Map::values_mut) {
                    if *part == json!(true) {
                        *part = any();
                    }
                }
            }
            for name in ["items", "additionalProperties"] {
                if let Some(part) = members.get_mut(name).filter(|part| **part == json!(true)) {
                    *part = any();
                }
            }
            let is_number = members.get("type").is_some_and(|kind| {
                let kinds = kind.as_array().map_or(std::slice::from_ref(kind), Vec::as_slice);
                kinds.iter().any(|kind| kind == "integer" || kind == "number")
            });
            let format = members.get("format").and_then(Value::as_str);
            if is_number && format.is_some_and(|format| !NUMBER_FORMATS.contains(&format)) {
                members.remove("format");
            }
            members.values_mut().for_each(widen);
        }
        _ => {}
    }
}

/// Filter of a subscription, as answers show it.
pub struct Filter;

/// Retries of a subscription, as answers show them.
pub struct Retry;

/// Rate of a subscription, as answers show it.
pub struct RateLimit;

macro_rules! components {
    ($($name:ident: $schema:expr),+ $(,)?) => {
        $(impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                Schema::try_from($schema).expect("an object is a schema")
            }
        })+
    };
}

components! {
    Filter: settings::filter(),
    Retry: settings::retry_policy(),
    RateLimit: settings::rate_limit(),
}

/// True or false.
pub fn boolean() -> Value {
    json!({"type": "boolean"})
}

/// Text of so many bytes at most: a schema can only say so of characters.
pub fn text(bytes_max: usize) -> Value {
    json!({"type": "string", "maxLength": bytes_max, "pattern": "^[^\\u0000]*$"})
}

/// Text of one to so many bytes, in one line.
pub fn line(bytes_max: usize) -> Value {
    json!({
        "type": "string",
        "minLength": 1,
        "maxLength": bytes_max,
        "pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f]*$",
    })
}

/// One of some names.
pub fn one_of<'a>(names: impl IntoIterator<Item = &'a str>) -> Value {
    let names: Vec<_> = names.into_iter().collect();
    json!({"type": "string", "enum": names})
}

/// A dotted name.
pub fn event_type() -> Value {
    json!({
        "type": "string",
        "pattern": format!("^{EVENT_TYPE}$"),
        "maxLength": EVENT_TYPE_BYTES_MAX,
    })
}

/// A dotted name that events may be published under: not the service's own.
pub fn published_type() -> Value {
    let operators = OPERATOR_TYPES.replace('.', r"\.");
    let mut schema = event_type();
    schema["pattern"] = json!(format!("^(?!{operators}){EVENT_TYPE}$"));
    schema
}

/// A dotted name, or a pattern of such.
pub fn event_type_pattern() -> Value {
    json!({
        "type": "string",
        "pattern": format!(r"^(\*|{EVENT_TYPE}(\.\*)?)$"),
        "maxLength": PATTERN_BYTES_MAX,
    })
}

/// A caller's own name for something.
pub fn uid() -> Value {
    json!({
        "type": "string",
        "pattern": format!("^(?!{})[A-Za-z0-9][A-Za-z0-9_.~:@\\-]*$", ID_PREFIXES.join("|")),
        "maxLength": UID_BYTES_MAX,
    })
}

/// A URL that events can be sent to.
pub fn target_url() -> Value {
    json!({
        "type": "string",
        "format": "iri",
        "pattern": "^https?://",
        "maxLength": URL_BYTES_MAX,
    })
}

/// JSON that is kept beside.
pub fn metadata() -> Value {
    told(any(), &format!("Any JSON, at most {METADATA_BYTES_MAX} bytes, without U+0000"))
}

/// Whom an event is about.
pub fn subject() -> Value {
    line(SUBJECT_BYTES_MAX)
}

/// What makes a request safe to be sent again.
pub fn idempotency_key(bytes_max: usize) -> Value {
    json!({
        "type": "string",
        "minLength": 1,
        "maxLength": bytes_max,
        "pattern": "^[ -~]*$",
    })
}

/// The header `Idempotency-Key`.
pub fn idempotency_header(bytes_max: usize) -> Parameter {
    Parameter {
        place: In::Header,
        name: IdempotencyHeader::NAME,
        names: None,
        description: "Makes the request safe to be sent again: within 24 hours the same key with \
                      the same body is answered as the first was, and with another body by 409",
        schema: idempotency_key(bytes_max),
    }
}

/// An id with this prefix.
pub fn id(prefix: &str) -> Value {
    json!({"type": "string", "pattern": format!("^{prefix}[0-9a-f]{{32}}$")})
}

macro_rules! ids {
    ($($id:ty),+) => {
        $(impl JsonSchema for $id {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($id).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                Schema::try_from(id(Self::PREFIX)).expect("an object is a schema")
            }
        })+
    };
}

ids!(ApiKeyId, ApplicationId, AttemptId, DeliveryId, ErasureId, EventId, ReplayId, SubscriptionId);

/// Parameters that many operations take.
pub mod parameters {
    use super::{In, LIMIT_DEFAULT, LIMIT_MAX, Parameter, Value, event_type, id, json, uid};
    use crate::domain::{
        ApiKeyId, ApplicationId, DeliveryId, ErasureId, EventId, ReplayId, SubscriptionId,
    };

    /// Checks that the query's parameters are those that the code reads, in its order.
    pub fn query<const N: usize>(names: &[&str; N], parameters: [Parameter; N]) -> [Parameter; N] {
        let told = parameters.each_ref().map(|parameter| parameter.name);
        assert_eq!(&told, names, "the document and the code name the same parameters");
        parameters
    }

    /// A parameter of the query.
    pub fn of_query(name: &'static str, description: &'static str, schema: Value) -> Parameter {
        Parameter { place: In::Query, name, names: None, description, schema }
    }

    /// A header.
    pub fn of_header(name: &'static str, description: &'static str, schema: Value) -> Parameter {
        Parameter { place: In::Header, name, names: None, description, schema }
    }

    fn of_path(name: &'static str, names: &'static str, schema: Value) -> Parameter {
        let description = match names {
            "application" => "An application, by its id or its uid",
            "subscription" => "A subscription, by its id or its uid",
            "event_type" => "The name of an event type",
            "api_key" => "An API key, by its id",
            "delivery" => "A delivery, by its id",
            "replay" => "A replay, by its id",
            "erasure" => "An erasure, by its id",
            _ => "An event, by its id",
        };
        Parameter { place: In::Path, name, names: Some(names), description, schema }
    }

    /// An application, in the path.
    pub fn application_path() -> Parameter {
        of_path("id", "application", by_id_or_uid(ApplicationId::PREFIX))
    }

    /// An API key, in the path.
    pub fn api_key_path() -> Parameter {
        of_path("key", "api_key", id(ApiKeyId::PREFIX))
    }

    /// An event, in the path.
    pub fn event_path() -> Parameter {
        of_path("id", "event", id(EventId::PREFIX))
    }

    /// A delivery, in the path.
    pub fn delivery_path() -> Parameter {
        of_path("id", "delivery", id(DeliveryId::PREFIX))
    }

    /// A replay, in the path.
    pub fn replay_path() -> Parameter {
        of_path("id", "replay", id(ReplayId::PREFIX))
    }

    /// An erasure, in the path.
    pub fn erasure_path() -> Parameter {
        of_path("id", "erasure", id(ErasureId::PREFIX))
    }

    /// A subscription, in the path.
    pub fn subscription_path() -> Parameter {
        of_path("id", "subscription", by_id_or_uid(SubscriptionId::PREFIX))
    }

    /// An event type, in the path.
    pub fn event_type_path() -> Parameter {
        of_path("name", "event_type", event_type())
    }

    /// What an id or a uid is named by.
    pub fn by_id_or_uid(prefix: &str) -> Value {
        json!({"anyOf": [id(prefix), uid()]})
    }

    /// An application, in the query.
    pub fn application() -> Parameter {
        Parameter {
            names: Some("application"),
            ..of_query(
                "application",
                "The application, by its id or its uid; by default the key's own, with the \
                 operator's key `default`",
                by_id_or_uid(ApplicationId::PREFIX),
            )
        }
    }

    /// A subscription, in the query.
    pub fn subscription_id() -> Parameter {
        Parameter {
            names: Some("subscription"),
            ..of_query(
                "subscription_id",
                "Only those of this subscription, by its id or its uid; of a deleted one by its id",
                by_id_or_uid(SubscriptionId::PREFIX),
            )
        }
    }

    /// From when on.
    pub fn created_after() -> Parameter {
        of_query("created_after", "Of events accepted then, or later", time())
    }

    /// Until when.
    pub fn created_before() -> Parameter {
        of_query("created_before", "Of events accepted before", time())
    }

    /// A time.
    pub fn time() -> Value {
        json!({"type": "string", "format": "date-time"})
    }

    /// How much of a list.
    pub fn limit() -> Parameter {
        let bounds = json!({
            "type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT_DEFAULT,
        });
        of_query("limit", "How many items a page has at most", bounds)
    }

    /// Which part of a list.
    pub fn cursor() -> Parameter {
        let description = "Where the page begins: `next_cursor` of the page before it, unchanged";
        of_query("cursor", description, json!({"type": "string"}))
    }
}
