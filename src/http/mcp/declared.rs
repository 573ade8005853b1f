//! Which operations are tools, and what agents are told beside the API's own words.

use serde_json::Value;

use super::tool::Tool;
use crate::http::{
    openapi::Operation,
    subscriptions::settings::{EVENT_TYPES, TARGET_URL},
};

/// What a call does, beside answering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    Reads,
    /// Something goes out to receivers, each time anew.
    Sends,
    /// Something is there that was not.
    Makes,
    /// Something is not any more what it was; the same again changes nothing.
    Changes,
}

/// A tool as it is declared.
pub struct Declared {
    /// Its name.
    pub name: &'static str,
    /// The operation that it calls.
    operation: &'static str,
    /// What a call does.
    pub effect: Effect,
    /// What agents are told after the operation's summary.
    pub told: &'static str,
    /// What of the body must be there, beside what the API's schema says.
    pub required: &'static [&'static str],
    /// What is taken where an argument is absent.
    pub defaults: &'static [(&'static str, bool)],
}

impl Declared {
    const fn new(name: &'static str, operation: &'static str, effect: Effect) -> Self {
        let (none, no_defaults): (&[&str], &[(&str, bool)]) = (&[], &[]);
        Self { name, operation, effect, told: "", required: none, defaults: no_defaults }
    }

    const fn told(mut self, told: &'static str) -> Self {
        self.told = told;
        self
    }

    /// What the argument is called that names what the path is about.
    pub fn path_name(&self) -> &'static str {
        match self.name {
            "webhook_retry" => "delivery_id",
            "webhook_event" | "webhook_explain" => "event_id",
            _ => "subscription_id",
        }
    }

    /// The members of a body that agents are offered.
    pub fn members(schema: &Value) -> impl Iterator<Item = (&str, Value)> {
        let properties = schema["properties"].as_object();
        let known = [&TARGET_URL[1..], &EVENT_TYPES[1..], &SECRETS].concat();
        let members = properties.into_iter().flatten();
        members
            .filter(move |(name, member)| {
                !known.contains(&name.as_str()) && member["type"] != "null"
            })
            .map(|(name, member)| (name.as_str(), member.clone()))
    }
}

/// What no agent is to see or to choose.
pub const SECRETS: [&str; 2] = ["secret", "inbound_secret"];

const TOOLS: [Declared; 12] = [
    Declared::new("webhook_dispatch", "createDispatch", Effect::Sends).told(
        "Waits for what the receivers answer, and tells it for each: `delivered`, `failed` or `pending`. \
         One attempt unless `retry` asks for more. For what must arrive in the end use \
         `webhook_publish`. Give an `idempotencyKey` so that a repeated call does not send twice.",
    ),
    Declared::new("webhook_publish", "createEvent", Effect::Sends).told(
        "Stores the event and answers at once with its `id`; it is then sent, and sent again until it \
         arrives. With `type` it goes to the subscriptions that match, with `target_url` to that URL \
         alone. Use `webhook_event` to see what became of it. Give an `idempotency_key` so that a \
         repeated call does not publish twice.",
    ),
    Declared::new("webhook_event", "getEvent", Effect::Reads).told(
        "With its payload, and for each target the state and every attempt: what was sent, what was \
         answered, what failed.",
    ),
    Declared::new("webhook_explain", "explainEvent", Effect::Reads).told(
        "Says for every subscription of the application why the event was delivered there, not yet, \
         not at all, or never meant for it, down to the clause of the filter.",
    ),
    Declared::new("webhook_deliveries", "listDeliveries", Effect::Reads).told(
        "Searches the log by state (`dead`: given up), subscription, event, type, time, answered status \
         and error class. Newest first; pass `next_cursor` as `cursor` for more. A page can be short and \
         still have a next one.",
    ),
    Declared::new("webhook_retry", "retryDelivery", Effect::Sends).told(
        "One attempt, now. A pending delivery keeps its schedule; one that has ended and fails again \
         stays what it was. For many use `webhook_replay`.",
    ),
    Declared {
        defaults: &[("dry_run", true)],
        ..Declared::new("webhook_replay", "createReplay", Effect::Sends).told(
            "Sends again all that has ended and matches `filter`. Unless `dry_run` is false it only \
             counts: do that first, tell the person the count, and set `dry_run` to false once they \
             agree. Receivers get the same `webhook-id` again.",
        )
    },
    Declared::new("webhook_subscriptions", "listSubscriptions", Effect::Reads).told(
        "Which events go to which URL, and how; with `attention` true those that somebody should look \
         at, and why. Secrets and the values of headers are never shown.",
    ),
    Declared {
        required: &["target_url", "event_types"],
        ..Declared::new("webhook_subscription_create", "createSubscription", Effect::Makes).told(
            "Its events are sent from now on. The secret that signs is made and not shown to you: a \
             person reads it at `GET /subscriptions/{id}/secret`.",
        )
    },
    Declared::new("webhook_subscription_update", "changeSubscription", Effect::Changes).told(
        "What is not told stays; null stands for the default. `is_active` false parks what comes, true \
         sends it.",
    ),
    Declared::new("webhook_subscription_test", "testSubscription", Effect::Sends).told(
        "A real, signed delivery of an example. Look at its outcome with `webhook_event`.",
    ),
    Declared::new("webhook_diagnose", "diagnoseSubscription", Effect::Reads).told(
        "Start here when a receiver does not get its events: its health, what its deliveries fail of, \
         since when, what was changed of the subscription, what waits, and the steps that mend it.",
    ),
];

/// Makes the tools of the operations that there are.
pub fn tools(operations: &[Operation]) -> Vec<Tool> {
    let tools = TOOLS.iter().map(|declared| {
        let operation = operations.iter().find(|one| one.id == declared.operation);
        Tool::new(
            declared,
            operation.unwrap_or_else(|| panic!("{} is no operation", declared.operation)),
        )
    });
    tools.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        domain::Permission,
        http::{mcp::tool, routes},
    };

    fn all() -> Vec<Tool> {
        tools(&routes::of_the_api())
    }

    /// Catches: a tool that is told to only read, and asks for more; and the other way round.
    #[test]
    fn what_only_reads_asks_to_read() {
        for (declared, tool) in TOOLS.iter().zip(all()) {
            let reads = declared.effect == Effect::Reads;
            assert_eq!(reads, tool.permission() == Permission::Read, "{}", declared.name);
            let hints = tool.description().annotations.clone().unwrap();
            assert_eq!(hints.read_only_hint, Some(reads), "{}", declared.name);
        }
    }

    /// Catches: a schema with parts that models' providers refuse at its top, or with no answer for it.
    #[test]
    fn schemas_are_objects_of_their_own() {
        for tool in all() {
            let description = tool.description();
            let input = json!(*description.input_schema);
            for part in ["allOf", "anyOf", "oneOf", "not"] {
                assert!(input.get(part).is_none(), "{}: {part}", tool.name());
            }
            for (name, schema) in input["properties"].as_object().unwrap() {
                assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "{name}");
                assert!(!schema.to_string().contains("\"$ref\""), "{}: {name}", tool.name());
            }
            let output = json!(description.output_schema.as_deref().unwrap());
            assert_eq!(output["type"], "object", "{}", tool.name());
            for (name, schema) in output["properties"].as_object().into_iter().flatten() {
                assert!(schema.is_object(), "{}: {name}", tool.name());
            }
            for schema in [&input, &output] {
                let built = jsonschema::draft202012::options().build(schema);
                assert!(built.is_ok(), "{}: {built:?}", tool.name());
            }
        }
    }

    /// Catches: a way for secrets to or from an agent.
    #[test]
    fn no_tool_knows_secrets() {
        for tool in all() {
            let description = tool.description();
            let output = json!(description.output_schema.as_deref().unwrap());
            for schema in [&json!(*description.input_schema), &output] {
                for name in SECRETS {
                    assert!(schema["properties"].get(name).is_none(), "{}: {name}", tool.name());
                }
            }
            assert_eq!(tool::answer(json!({"id": 1, "secret": "whsec_x"})), json!({"id": 1}));
        }
    }
}
