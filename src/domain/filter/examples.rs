//! That each example of `docs/filters.md` does what it says.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{EventDocument, Filter, Operator};
use crate::domain::{
    event::{EventType, Metadata, Payload},
    event_types::EventTypePatterns,
};

const DOCUMENT: &str = include_str!("../../../docs/filters.md");

#[derive(Deserialize)]
#[serde(untagged)]
enum Example {
    Types(TypesExample),
    Event(Box<EventExample>),
    Refused(RefusedExample),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TypesExample {
    event_types: Vec<String>,
    r#type: String,
    matches: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventExample {
    filter: serde_json::Value,
    event: EventOf,
    matches: bool,
    clause: Option<String>,
    because: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventOf {
    r#type: Option<String>,
    data: serde_json::Value,
    metadata: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RefusedExample {
    filter: serde_json::Value,
    refused: String,
}

fn run(json: &str, example: Example) {
    // The texts themselves: trees of maps forget how a number or an object was written.
    let part = |names: &[&str]| {
        names.iter().fold(json.to_owned(), |json, name| {
            let members: std::collections::HashMap<String, Box<RawValue>> =
                serde_json::from_str(&json).unwrap();
            members[*name].get().to_owned()
        })
    };
    match example {
        Example::Types(TypesExample { event_types, r#type, matches }) => {
            let patterns = EventTypePatterns::parse(&event_types).unwrap();
            assert_eq!(patterns.matches(&EventType::parse(&r#type).unwrap()), matches, "{json}");
        }
        Example::Event(example) => {
            let EventExample { filter, event, matches, clause, because } = *example;
            assert!(filter.is_object());
            let event_type = event.r#type.map(|name| EventType::parse(&name).unwrap());
            assert!(!event.data.is_null());
            let payload = Payload::from_json(part(&["event", "data"]).into()).unwrap();
            let metadata =
                event.metadata.map(|_| Metadata::from_json(&part(&["event", "metadata"])).unwrap());
            let document = EventDocument::new(event_type.as_ref(), &payload, metadata.as_ref());
            let explained = Filter::parse(&part(&["filter"])).unwrap().explain(&document);
            assert_eq!(explained.is_ok(), matches, "{json}");
            let mismatch = explained.err();
            assert_eq!(mismatch.as_ref().map(|m| m.clause.clone()), clause, "{json}");
            assert_eq!(mismatch.map(|m| m.to_string()), because, "{json}");
        }
        Example::Refused(RefusedExample { filter, refused }) => {
            assert!(!filter.is_null());
            let error = Filter::parse(&part(&["filter"])).unwrap_err();
            assert_eq!(error.to_string(), refused, "{json}");
        }
    }
}

#[test]
fn every_example_does_what_it_says() {
    let mut count = 0;
    for block in DOCUMENT.split("```json\n").skip(1) {
        let json = block.split("```").next().unwrap();
        let example = serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"));
        run(json, example);
        count += 1;
    }
    assert!(count >= 15, "{count} examples");
}

#[test]
fn every_operator_and_limit_is_told() {
    for operator in Operator::ALL {
        assert!(DOCUMENT.contains(&format!("| `{}` |", operator.as_str())), "{operator:?}");
    }
    for (bound, what) in [
        (super::FILTER_BYTES_MAX, "bytes of JSON"),
        (super::FILTER_NODES_MAX, "operators, `any`, `all` and `not` together"),
        (super::FILTER_DEPTH_MAX, "filters in each other"),
        (super::IN_VALUES_MAX, "values in an `in`"),
        (super::PATH_STEPS_MAX, "names and indexes in a path"),
        (crate::domain::event_types::PATTERNS_MAX, "patterns in `event_types`"),
        (crate::domain::event_types::PATTERN_BYTES_MAX, "bytes in a pattern"),
        (super::FOUND_BYTES_MAX, "bytes of a value that an explanation shows"),
    ] {
        let row = format!("| {what} | {bound} |");
        assert!(DOCUMENT.contains(&row), "{row}");
    }
}
