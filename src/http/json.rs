//! Reading JSON bodies: which member is wrong, and how, is told by name and by pointer.
//!
//! Values stay slices of the body until somebody asks for them, so that a payload is never built, and
//! nothing here recurses however deep a body nests.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor,
};
use serde_json::{error::Category, value::RawValue};

use super::{
    ApiError, names,
    problem::{Place, Problem},
};

/// The members of an object, each under one of `N` known names and there once at most.
pub struct Members<'a, const N: usize> {
    names: &'static [&'static str; N],
    values: [Option<&'a RawValue>; N],
}

impl<'a, const N: usize> Members<'a, N> {
    /// Reads an object that is all of a body, or one item of a batch.
    pub fn of(text: &'a str, names: &'static [&'static str; N]) -> Result<Self, Problem> {
        let mut fault = None;
        let object = Object { names, fault: &mut fault };
        let mut parser = serde_json::Deserializer::from_str(text);
        let values = object.deserialize(&mut parser).and_then(|values| {
            parser.end()?;
            Ok(values)
        });
        let values = values.map_err(|error| match (fault, error.classify()) {
            (Some(fault), _) => fault,
            (None, Category::Data) => {
                let found = kind_of(text);
                invalid(format!("expected a JSON object, and not {found}"), String::new())
            }
            (None, _) => ApiError::Malformed(error.to_string()).into(),
        })?;
        Ok(Self { names, values })
    }

    /// A member as it stands in the body; null is a value like others.
    pub fn raw(&self, name: &str) -> Option<&'a RawValue> {
        let index = self.names.iter().position(|known| *known == name);
        self.values[index.expect("only names that were given are asked for")]
    }

    /// A member that is free-form JSON; null is none.
    pub fn given(&self, name: &str) -> Option<&'a RawValue> {
        self.raw(name).filter(|value| value.get() != "null")
    }

    /// A member that must be there.
    pub fn required(&self, name: &str) -> Result<&'a RawValue, Problem> {
        self.raw(name).ok_or_else(|| invalid(format!("`{name}` is missing"), pointer_to(name)))
    }

    /// A member that is a string; null is none.
    pub fn string(&self, name: &str) -> Result<Option<String>, Problem> {
        let Some(value) = self.given(name) else { return Ok(None) };
        if !value.get().starts_with('"') {
            let found = kind_of(value.get());
            return Err(invalid(
                format!("`{name}` must be a string, and not {found}"),
                pointer_to(name),
            ));
        }
        // What is a string by its grammar fails only of what it is to mean: half a surrogate pair.
        let text = serde_json::from_str(value.get());
        text.map(Some).map_err(|_| {
            let detail = format!("`{name}` must be Unicode text: an escape in it stands for none");
            invalid(detail, pointer_to(name))
        })
    }

    /// A member that is true or false; null is none.
    pub fn boolean(&self, name: &str) -> Result<Option<bool>, Problem> {
        self.typed(name, "true or false")
    }

    /// A member that is a number; null is none.
    pub fn number(&self, name: &str) -> Result<Option<f64>, Problem> {
        self.typed(name, "a number")
    }

    /// A member that is an object of strings; null is none.
    pub fn text_map(&self, name: &str) -> Result<Option<BTreeMap<String, String>>, Problem> {
        self.typed(name, "an object of strings")
    }

    /// A member that is a string, or an array of up to `count_max` of them.
    pub fn strings(&self, name: &str, count_max: usize) -> Result<Vec<String>, Problem> {
        if let Some(value) = self.given(name)
            && value.get().starts_with('"')
        {
            return Ok(self.string(name)?.into_iter().collect());
        }
        let elements = self.elements(name, count_max)?.into_iter().enumerate();
        let text = |(index, element): (usize, &RawValue)| {
            serde_json::from_str(element.get()).map_err(|_| {
                let detail = format!("`{name}` must hold strings only");
                invalid(detail, format!("{}/{index}", pointer_to(name)))
            })
        };
        elements.map(text).collect()
    }

    fn typed<T: DeserializeOwned>(&self, name: &str, what: &str) -> Result<Option<T>, Problem> {
        let Some(value) = self.given(name) else { return Ok(None) };
        serde_json::from_str(value.get()).map(Some).map_err(|_| {
            let found = kind_of(value.get());
            invalid(format!("`{name}` must be {what}, and not {found}"), pointer_to(name))
        })
    }

    /// A member that is an array of up to `count_max` values, as they stand in the body; there must
    /// be one at least.
    pub fn elements(&self, name: &str, count_max: usize) -> Result<Vec<&'a RawValue>, Problem> {
        let value = self.required(name)?.get();
        let fault = |detail: String| invalid(detail, pointer_to(name));
        if !value.starts_with('[') {
            return Err(fault(format!("`{name}` must be an array, and not {}", kind_of(value))));
        }
        let elements =
            serde_json::Deserializer::from_str(value).deserialize_seq(List { count_max });
        match elements {
            Ok(elements) if !elements.is_empty() => Ok(elements),
            _ => Err(fault(format!("`{name}` must hold 1 to {count_max} items"))),
        }
    }
}

/// The JSON Pointer of a member of the body. Our names need no escapes.
pub fn pointer_to(name: &str) -> String {
    format!("/{name}")
}

fn invalid(detail: String, pointer: String) -> Problem {
    ApiError::Invalid(detail).at(Place::Pointer(pointer))
}

/// What a JSON text is, by its first character.
fn kind_of(json: &str) -> &'static str {
    match json.trim_start().as_bytes().first() {
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

/// Reads the members of an object. A fault of ours is left in `fault`: the parser's errors carry
/// nothing but text.
struct Object<'f, const N: usize> {
    names: &'static [&'static str; N],
    fault: &'f mut Option<Problem>,
}

impl<'de, const N: usize> DeserializeSeed<'de> for Object<'_, N> {
    type Value = [Option<&'de RawValue>; N];

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<Self::Value, D::Error> {
        parser.deserialize_map(self)
    }
}

impl<'de, const N: usize> Visitor<'de> for Object<'_, N> {
    type Value = [Option<&'de RawValue>; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut values = [None; N];
        while let Some(name) = map.next_key_seed(Name)? {
            let index = self.names.iter().position(|known| *known == name);
            let detail = match index {
                Some(index) if values[index].is_none() => {
                    values[index] = Some(map.next_value()?);
                    continue;
                }
                Some(_) => format!("field `{name}` is given twice"),
                None => names::unknown("field", &name, self.names),
            };
            // Of an unknown name the pointer is to the object: it can be any text, and of any length.
            let pointer = index.map(|_| pointer_to(&name)).unwrap_or_default();
            *self.fault = Some(invalid(detail, pointer));
            return Err(A::Error::custom("a fault of ours"));
        }
        Ok(values)
    }
}

/// The name of a member, borrowed where it has no escapes.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<Self::Value, D::Error> {
        parser.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Name {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_borrowed_str<E: Error>(self, name: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(name))
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(name.to_owned()))
    }
}

/// Reads an array, and gives up at the first value too many.
struct List {
    count_max: usize,
}

impl<'de> Visitor<'de> for List {
    type Value = Vec<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an array of at most {} values", self.count_max)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = sequence.next_element()? {
            if values.len() == self.count_max {
                return Err(A::Error::custom("too many values"));
            }
            values.push(value);
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &[&str; 3] = &["payload", "type", "events"];

    fn problem(text: &str, read: fn(&Members<'_, 3>) -> Result<(), Problem>) -> String {
        let problem = Members::of(text, NAMES).and_then(|members| read(&members));
        let document = serde_json::to_value(problem.expect_err(text)).unwrap();
        let pointer = document["pointer"].as_str().unwrap_or("none");
        format!("{} at {pointer}", document["detail"].as_str().unwrap())
    }

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let read = |members: &Members<'_, 3>| {
            members.required("payload")?;
            members.string("type")?;
            members.elements("events", 2).map(|_| ())
        };
        assert_eq!(problem(text, read), expected, "{text}");
    }

    #[test]
    fn what_is_wrong_is_told_by_name_and_place() {
        check("[1]", "expected a JSON object, and not an array at ");
        check(" \"a\"", "expected a JSON object, and not a string at ");
        check("5", "expected a JSON object, and not a number at ");
        check("{}", "`payload` is missing at /payload");
        check(r#"{"payload":1,"type":[]}"#, "`type` must be a string, and not an array at /type");
        check(
            r#"{"payload":1,"type":false}"#,
            "`type` must be a string, and not a boolean at /type",
        );
        check(r#"{"payload":1,"payload":1}"#, "field `payload` is given twice at /payload");
        check(r#"{"typ\u0065":"a","type":"a"}"#, "field `type` is given twice at /type");
        check(r#"{"playload":1}"#, "unknown field `playload`: did you mean `payload`? at ");
        check(
            r#"{"payload":1,"events":{}}"#,
            "`events` must be an array, and not an object at /events",
        );
        check(r#"{"payload":1,"events":[]}"#, "`events` must hold 1 to 2 items at /events");
        check(r#"{"payload":1,"events":[1,2,3]}"#, "`events` must hold 1 to 2 items at /events");
        let lone = r#"{"payload":1,"type":"\udead"}"#;
        check(lone, "`type` must be Unicode text: an escape in it stands for none at /type");
    }

    #[test]
    fn what_is_no_json_is_malformed() {
        for text in [
            "",
            "{",
            "{} {}",
            "{payload: 1}",
            "{\"payload\": 01}",
            "\u{feff}{}",
            "{\"\\ud800\": 1}",
        ] {
            assert!(problem(text, |_| Ok(())).contains("not valid JSON"), "{text}");
        }
    }

    #[test]
    fn values_are_slices_and_null_is_none_where_it_may_be() {
        let text = r#"{"payload": {"a":  1.0}, "type": null, "events": [ 1, "b" ]}"#;
        let members = Members::of(text, NAMES).unwrap();
        assert_eq!(members.raw("payload").unwrap().get(), r#"{"a":  1.0}"#);
        assert_eq!(members.string("type").unwrap(), None);
        let elements = members.elements("events", 2).unwrap();
        assert_eq!(elements.iter().map(|e| e.get()).collect::<Vec<_>>(), ["1", "\"b\""]);
        let null = Members::of(r#"{"payload": null, "type": "\u00e9"}"#, NAMES).unwrap();
        assert_eq!(null.required("payload").unwrap().get(), "null");
        assert!(null.given("payload").is_none());
        assert_eq!(null.string("type").unwrap().as_deref(), Some("é"));
    }
}
