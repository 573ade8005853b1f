//! Schemas of arguments as the providers of models accept them.
//!
//! Where a tool's arguments are a closed set, agents can use it in strict mode: every argument is then
//! given, and null stands for an absent one. Whatever is left out here is checked by the API.

use serde_json::{Map, Value, json};

/// Formats of strings that providers accept.
const FORMATS: [&str; 2] = ["date-time", "uuid"];
/// Keywords that providers refuse.
const REFUSED: [&str; 9] = [
    "allOf",
    "dependentRequired",
    "else",
    "if",
    "maxProperties",
    "minProperties",
    "not",
    "then",
    "x-names",
];
/// Keywords that say something about a value.
const CONSTRAINING: [&str; 5] = ["type", "anyOf", "oneOf", "enum", "const"];

/// Leaves out what providers refuse: some keywords, look-ahead in patterns, formats beside a few. A free
/// value is written as its kinds, and an open object is open by `additionalProperties`.
pub fn simplify(schema: &mut Value) {
    let Some(members) = schema.as_object_mut() else { return };
    members.retain(|name, _| !REFUSED.contains(&name.as_str()));
    if let Some(alternatives) = members.remove("oneOf") {
        members.entry("anyOf").or_insert(alternatives);
    }
    if let Some(Value::String(pattern)) = members.get_mut("pattern")
        && let Some((before, rest)) = pattern.split_once("(?!")
        && let Some((_, after)) = rest.split_once(')')
    {
        *pattern = format!("{before}{after}");
    }
    let format = members.get("format").and_then(Value::as_str);
    if format.is_some_and(|format| !FORMATS.contains(&format)) {
        members.remove("format");
    }
    if !CONSTRAINING.iter().any(|name| members.contains_key(*name)) {
        members.insert("anyOf".to_owned(), any_kind());
        return;
    }
    if members.get("type").is_some_and(|kind| *kind == json!(["object", "null"])) {
        let mut object = std::mem::take(members);
        let description = object.remove("description");
        object.insert("type".to_owned(), json!("object"));
        members.insert("anyOf".to_owned(), json!([object, {"type": "null"}]));
        members.extend(description.map(|text| ("description".to_owned(), text)));
    }
    if members.get("type").is_some_and(|kind| kind == "object") {
        match members.get_mut("additionalProperties") {
            Some(Value::Object(schema)) if schema.is_empty() => {
                members.insert("additionalProperties".to_owned(), json!(true));
            }
            Some(schema) => simplify(schema),
            None => drop(members.insert("additionalProperties".to_owned(), json!(true))),
        }
    }
    for name in ["items", "properties", "anyOf"] {
        match members.get_mut(name) {
            Some(Value::Array(parts)) => parts.iter_mut().for_each(simplify),
            Some(Value::Object(parts)) if name == "properties" => {
                parts.values_mut().for_each(simplify);
            }
            Some(part) => simplify(part),
            None => {}
        }
    }
}

fn any_kind() -> Value {
    json!([
        {"type": "object", "additionalProperties": true},
        {"type": "array", "items": {"type": "object", "additionalProperties": true}},
        {"type": ["string", "number", "boolean", "null"]},
    ])
}

/// Lets a schema accept null; `false` if it did before.
pub fn make_nullable(schema: &mut Value) -> bool {
    let null = json!("null");
    let Some(members) = schema.as_object_mut() else { return false };
    if let Some(Value::Array(alternatives)) = members.get_mut("anyOf") {
        let accepts = |one: &Value| {
            let kind = &one["type"];
            *kind == null || kind.as_array().is_some_and(|kinds| kinds.contains(&null))
        };
        let is_new = !alternatives.iter().any(accepts);
        if is_new {
            alternatives.push(json!({"type": "null"}));
        }
        return is_new;
    }
    if let Some(Value::Array(values)) = members.get_mut("enum")
        && !values.contains(&Value::Null)
    {
        values.push(Value::Null);
    }
    match members.get_mut("type") {
        Some(Value::Array(kinds)) if kinds.contains(&null) => false,
        Some(Value::Array(kinds)) => {
            kinds.push(null);
            true
        }
        Some(Value::String(kind)) if kind == "object" => {
            let description = members.remove("description");
            let object = std::mem::take(members);
            *members = Map::from_iter([("anyOf".to_owned(), json!([object, {"type": null}]))]);
            members.extend(description.map(|text| ("description".to_owned(), text)));
            true
        }
        Some(kind) => {
            *kind = json!([kind, "null"]);
            true
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn simplified(mut schema: Value) -> Value {
        simplify(&mut schema);
        schema
    }

    #[test]
    fn schema_keeps_what_providers_accept() {
        let given = json!({"type": "string", "format": "iri", "pattern": "^(?!a|b)[a-z]+$", "maxLength": 9});
        let expected = json!({"type": "string", "pattern": "^[a-z]+$", "maxLength": 9});
        assert_eq!(simplified(given), expected);
        let time = json!({"type": "string", "format": "date-time"});
        assert_eq!(simplified(time.clone()), time);
        let open = simplified(json!({"type": ["object", "null"], "description": "x"}));
        let object = json!({"type": "object", "additionalProperties": true});
        assert_eq!(open, json!({"description": "x", "anyOf": [object, {"type": "null"}]}));
        assert_eq!(simplified(json!({"description": "x"}))["anyOf"], any_kind());
        let closed = json!({"type": "object", "additionalProperties": false, "not": {},
            "properties": {"a": {"allOf": [], "type": "integer"}}});
        let expected = json!({"type": "object", "additionalProperties": false,
            "properties": {"a": {"type": "integer"}}});
        assert_eq!(simplified(closed), expected);
    }

    #[test]
    fn optional_argument_accepts_null() {
        let nullable = |mut schema: Value| (make_nullable(&mut schema), schema);
        let (is_new, schema) = nullable(json!({"type": "integer"}));
        assert_eq!((is_new, schema), (true, json!({"type": ["integer", "null"]})));
        let (is_new, schema) = nullable(json!({"type": "string", "enum": ["a"]}));
        assert_eq!((is_new, schema["enum"].clone()), (true, json!(["a", null])));
        let (is_new, schema) = nullable(json!({"anyOf": [{"type": "string"}]}));
        assert_eq!((is_new, schema["anyOf"][1].clone()), (true, json!({"type": "null"})));
        for accepting in [json!({"type": ["string", "null"]}), json!({"anyOf": any_kind()})] {
            assert_eq!(nullable(accepting.clone()), (false, accepting));
        }
    }
}
