//! What an agent can do about a problem: beside what is wrong, and where.

use serde_json::{Value, json};

use crate::http::problem::Problem;

/// The problem document, with what to do.
pub fn of(problem: &Problem) -> Value {
    added(serde_json::to_value(problem).unwrap_or_default())
}

/// A problem document of the API, with what to do, and which argument it is about.
pub fn added(mut document: Value) -> Value {
    let kind = document["type"].as_str().unwrap_or_default();
    let what_to_do = what_to_do(kind.trim_start_matches("/problems/"));
    let argument = match (&document["pointer"], &document["parameter"], &document["header"]) {
        (Value::String(pointer), ..) => pointer.split('/').nth(1).map(str::to_owned),
        (_, Value::String(parameter), _) => Some(parameter.clone()),
        (_, _, Value::String(header)) => Some(header.to_lowercase().replace('-', "_")),
        _ => None,
    };
    if let Some(argument) = argument {
        document["argument"] = json!(argument);
    }
    document["what_to_do"] = json!(what_to_do);
    document
}

fn what_to_do(kind: &str) -> &'static str {
    match kind {
        "invalid-request" | "malformed-json" | "unsupported-media-type" => {
            "Correct the argument that `detail` names, by the tool's input schema, and call again."
        }
        "unauthorized" => "Ask the person for a key of this service that is not revoked.",
        "forbidden" => "Call from the machine that the service runs on, or ask for a key.",
        "not-permitted" => {
            "Do not try again: ask the person for a key of a role that may do this, or do without."
        }
        "event-not-found" => {
            "Take an id that `webhook_publish` or `webhook_deliveries` told, of this key's application; \
             events are kept for RETENTION_DAYS."
        }
        "delivery-not-found" => "Find the delivery with `webhook_deliveries`, and take its `id`.",
        "subscription-not-found" => {
            "List them with `webhook_subscriptions`, and take an `id` or a `uid` of those."
        }
        "application-not-found" => {
            "Leave `application` out for the key's own, or ask the person for its name."
        }
        "event-type-not-found" | "unknown-event-type" => {
            "Take a type that the application's catalogue has; `detail` may tell the one that was meant."
        }
        "unknown-signing-key" => {
            "Leave `signatureKeyId` out, or ask the operator for the names of the keys."
        }
        "payload-refused" => {
            "Correct the payload at the places that `detail` names, and call again."
        }
        "target-refused" => {
            "Take a public https URL, or ask the operator to allow the address that `detail` names."
        }
        "no-target" => "Name a `target_url`, or a `type` that subscriptions ask for.",
        "conflict" => "See in `detail` what stands against it, and settle that first.",
        "idempotency-key-reused" => {
            "Take a new `idempotency_key` for a new request; the same one only to repeat it unchanged."
        }
        "body-too-large" | "uri-too-long" | "head-too-large" => {
            "Send less: `detail` names the limit and the setting behind it."
        }
        "busy" | "unavailable" | "body-too-slow" => {
            "Call again in a few seconds, with the same `idempotency_key` if it makes something."
        }
        _ => "Tell the person: the service's log says more.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::ApiError;

    #[test]
    fn a_problem_says_which_argument_and_what_helps() {
        let document = of(&ApiError::Busy.into());
        assert_eq!(document["type"], "/problems/busy");
        assert!(document["what_to_do"].as_str().unwrap().contains("again"));
        for (place, argument) in [
            (json!({"pointer": "/filter/created_after"}), json!("filter")),
            (json!({"parameter": "limit"}), json!("limit")),
            (json!({"header": "Idempotency-Key"}), json!("idempotency_key")),
            (json!({"pointer": ""}), Value::Null),
        ] {
            assert_eq!(added(place)["argument"], argument);
        }
    }
}
