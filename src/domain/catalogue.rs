//! The catalogue of event types: what a type is defined by, and the types that one can start with.

use std::{borrow::Cow, sync::LazyLock};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    event::EventType,
    json::{self, Nul},
    schema::Schema,
};

/// How many bytes the description of a type may have.
pub const DESCRIPTION_BYTES_MAX: usize = 2_000;
/// How many bytes the example of a type may have, as JSON.
pub const EXAMPLE_BYTES_MAX: usize = 64 * 1024;
/// How many bytes the version of a type may have.
pub const VERSION_BYTES_MAX: usize = 64;

/// What an event type is defined by, beside its name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Definition {
    /// What it is for.
    pub description: Option<String>,
    /// A JSON Schema of its payloads, as text.
    pub schema: Option<String>,
    /// Whether what is published must keep to the schema.
    pub checks_payload: bool,
    /// Its owner's name for this state of it; told, never compared.
    pub version: Option<String>,
    /// A payload, as JSON text.
    pub example: Option<String>,
}

/// What is wrong with a definition. The reason completes "`field` …".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {reason}")]
pub struct DefinitionError {
    /// The field.
    pub field: &'static str,
    /// Where in it, as a JSON Pointer.
    pub pointer: String,
    /// What is wrong there.
    pub reason: Cow<'static, str>,
}

impl Definition {
    /// Checks it as a whole.
    pub fn check(&self) -> Result<(), DefinitionError> {
        let fault = |field, reason: String| {
            Err(DefinitionError { field, pointer: String::new(), reason: reason.into() })
        };
        if let Some(text) = &self.description
            && (text.len() > DESCRIPTION_BYTES_MAX || text.contains('\0'))
        {
            let reason = format!("must be at most {DESCRIPTION_BYTES_MAX} bytes without U+0000");
            return fault("description", reason);
        }
        if let Some(text) = &self.version
            && (!(1..=VERSION_BYTES_MAX).contains(&text.len())
                || text.chars().any(char::is_control))
        {
            let reason =
                format!("must be 1 to {VERSION_BYTES_MAX} bytes without control characters");
            return fault("version", reason);
        }
        for (field, text) in [("schema", &self.schema), ("example", &self.example)] {
            if let Some(Err(error)) =
                text.as_ref().map(|text| json::check(text.as_bytes(), Nul::Refused))
            {
                return fault(field, error.to_string());
            }
        }
        if self.example.as_ref().is_some_and(|text| text.len() > EXAMPLE_BYTES_MAX) {
            return fault("example", format!("must be at most {EXAMPLE_BYTES_MAX} bytes of JSON"));
        }
        if self.checks_payload && self.schema.is_none() {
            return fault("checks_payload", "needs a `schema` to check payloads by".to_owned());
        }
        self.check_example()
    }

    /// Compiles the schema, and checks the example by it.
    fn check_example(&self) -> Result<(), DefinitionError> {
        let Some(schema) = &self.schema else { return Ok(()) };
        let schema = Schema::compile(schema).map_err(|error| DefinitionError {
            field: "schema",
            pointer: error.pointer,
            reason: error.reason,
        })?;
        let Some(example) = &self.example else { return Ok(()) };
        schema.check(example.as_bytes()).map_err(|faults| {
            let (pointer, message) =
                faults.into_iter().next().map_or_else(Default::default, |f| (f.pointer, f.message));
            let reason = format!("is not what `schema` asks for: {message}").into();
            DefinitionError { field: "example", pointer, reason }
        })
    }
}

/// A type of the standard catalogue.
#[derive(Debug)]
pub struct StandardType {
    /// Its name.
    pub name: EventType,
    /// What it is for, and an example.
    pub definition: Definition,
}

/// The types that one can start with.
pub fn standard_catalogue() -> &'static [StandardType] {
    &STANDARD
}

/// A type as it stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    description: String,
    example: Box<RawValue>,
}

static STANDARD: LazyLock<Vec<StandardType>> = LazyLock::new(|| {
    let entries: Vec<Entry> = serde_json::from_str(include_str!("standard_event_types.json"))
        .expect("the file is part of the source, and a test reads it");
    let read = |entry: Entry| StandardType {
        name: EventType::parse(&entry.name).expect("a test reads every name"),
        definition: Definition {
            description: Some(entry.description),
            example: Some(entry.example.get().to_owned()),
            ..Definition::default()
        },
    };
    entries.into_iter().map(read).collect()
});

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn the_standard_catalogue_is_whole() {
        let types = standard_catalogue();
        let names: BTreeSet<&str> = types.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names.len(), types.len(), "each name is there once");
        assert!(types.len() >= 50);
        for one in types {
            let name = one.name.as_str();
            one.definition.check().expect(name);
            assert!(name.contains('.'), "{name}");
            assert!(one.definition.description.as_ref().is_some_and(|text| text.len() > 10));
            let example: Value =
                serde_json::from_str(one.definition.example.as_ref().unwrap()).unwrap();
            let example = example.as_object().expect(name);
            assert!(example.keys().any(|key| key.ends_with("_id") || key == "metric"), "{name}");
        }
        for name in ["invoice.payment_failed", "bulk_email.completed", "ticket.sla_breach"] {
            assert!(names.contains(name), "{name}");
        }
    }

    #[track_caller]
    fn refused(definition: &Definition, field: &str, pointer: &str) {
        let error = definition.check().unwrap_err();
        assert_eq!((error.field, error.pointer.as_str()), (field, pointer), "{error}");
    }

    #[test]
    fn a_definition_keeps_to_its_bounds_and_to_itself() {
        let text = |bytes| Some("x".repeat(bytes));
        let json = |text: &str| Some(text.to_owned());
        let none = Definition::default;
        none().check().unwrap();
        Definition { description: text(2_000), version: text(64), ..none() }.check().unwrap();
        refused(&Definition { description: text(2_001), ..none() }, "description", "");
        for version in [text(0), text(65), json("1\n")] {
            refused(&Definition { version, ..none() }, "version", "");
        }
        let large = Some(format!("\"{}\"", "x".repeat(EXAMPLE_BYTES_MAX)));
        refused(&Definition { example: large, ..none() }, "example", "");
        refused(&Definition { example: json(r#""\u0000""#), ..none() }, "example", "");
        refused(&Definition { checks_payload: true, ..none() }, "checks_payload", "");
        let schema = json(r#"{"properties": {"a": {"type": "string"}}}"#);
        let with = |example| Definition { schema: schema.clone(), example, ..none() };
        with(json(r#"{"a": "b"}"#)).check().unwrap();
        refused(&with(json(r#"{"a": 1}"#)), "example", "/a");
        refused(&Definition { schema: json(r#"{"type": 1}"#), ..none() }, "schema", "/type");
    }
}
