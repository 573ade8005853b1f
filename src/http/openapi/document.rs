//! The document: OpenAPI 3.1, made of the operations.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{
    operation::{Answer, Body, Caller, Content, In, Operation, Parameter, Tag},
    schemas,
};
use crate::{
    domain::{Permission, Role},
    http::{ApiError, problem::Problem},
};

const ABOUT: &str = "Delivers webhooks from one binary beside one Postgres, and loses none.

Errors are problem documents (RFC 9457) with a stable `type`. Lists have pages: pass `next_cursor` \
as `cursor`. What is not known is refused by name, in bodies and in queries. Beside what the schemas \
say, a rule may be told in words only: then a request that breaks it is refused with 422 all the \
same. Lengths are in bytes of UTF-8, also where a schema can only count characters.

`x-required-permission` says what an operation asks of its key, and `x-roles` which roles have that. \
What another application has is answered by 404, in the words of what does not exist.

Operations that make events read two headers beside those that they name. `traceparent` (W3C Trace \
Context) is sent on to receivers, unchanged; without it, deliveries have none. `X-Webhook-Hops` counts \
the webhook dispatchers that the event has passed; too many are answered 508.";

/// Writes the document.
pub fn document(operations: &[Operation]) -> Value {
    let mut writer = Writer::new();
    let mut paths = BTreeMap::<&str, Map<String, Value>>::new();
    for operation in operations {
        let written = writer.operation(operation);
        let path = paths.entry(&operation.path).or_default();
        let before = path.insert(operation.method.as_str().to_lowercase(), written);
        assert!(before.is_none(), "{} {} is told once", operation.method, operation.path);
    }
    let tags = Tag::ALL.map(Tag::texts);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "webhook-dispatcher",
            "version": env!("CARGO_PKG_VERSION"),
            "description": ABOUT,
            "license": {"name": env!("CARGO_PKG_LICENSE"), "identifier": env!("CARGO_PKG_LICENSE")},
        },
        "servers": [{"url": "/", "description": "This instance"}],
        "tags": tags.map(|(name, description)| json!({"name": name, "description": description})),
        "security": SCHEMES.map(|scheme| json!({scheme: []})),
        "paths": paths,
        "components": writer.components(operations),
    })
}

/// Either of them will do.
const SCHEMES: [&str; 2] = ["bearer", "apiKey"];

/// What is written once, and named where it is used.
struct Writer {
    schemas: SchemaGenerator,
    requests: BTreeMap<&'static str, Value>,
    responses: BTreeMap<String, Value>,
    parameters: BTreeMap<String, Value>,
}

impl Writer {
    fn new() -> Self {
        let settings = SchemaSettings::draft2020_12().for_serialize().with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        });
        Self {
            schemas: settings.into_generator(),
            requests: BTreeMap::new(),
            responses: BTreeMap::new(),
            parameters: BTreeMap::new(),
        }
    }

    fn operation(&mut self, operation: &Operation) -> Value {
        let mut written = json!({
            "operationId": operation.id,
            "summary": operation.summary,
            "tags": [operation.tag.texts().0],
            "responses": self.responses(operation),
        });
        if !operation.description.is_empty() {
            written["description"] = json!(operation.description);
        }
        if !operation.parameters.is_empty() {
            let parameters = operation.parameters.iter().map(|one| self.parameter(one));
            written["parameters"] = parameters.collect();
        }
        if let Some(body) = &operation.body {
            written["requestBody"] = self.body(body);
        }
        match operation.caller {
            Caller::Anybody => written["security"] = json!([]),
            Caller::With(permission) => {
                written["x-required-permission"] = json!(permission.as_str());
                written["x-roles"] = roles(permission);
            }
        }
        let further = operation.further.iter().map(|further| {
            let mut written = json!({
                "when": further.when,
                "permission": further.permission.as_str(),
                "roles": roles(further.permission),
            });
            if let Some((name, value)) = further.query {
                written["query"] = json!({name: value});
            }
            written
        });
        let further: Vec<_> = further.collect();
        if !further.is_empty() {
            written["x-further-permissions"] = json!(further);
        }
        written
    }

    /// Parameters that look alike are one component.
    fn parameter(&mut self, parameter: &Parameter) -> Value {
        let (place, prefix) = match parameter.place {
            In::Path => ("path", "Path"),
            In::Query => ("query", ""),
            In::Header => ("header", ""),
        };
        let mut written = json!({
            "in": place,
            "name": parameter.name,
            "description": parameter.description,
            "schema": parameter.schema,
        });
        if parameter.place == In::Path {
            written["required"] = json!(true);
        }
        if let Some(names) = parameter.names {
            written["x-names"] = json!(names);
        }
        let name = format!("{}{prefix}", pascal(parameter.names.unwrap_or(parameter.name)));
        let known = self.parameters.entry(name.clone()).or_insert_with(|| written.clone());
        if *known == written {
            json!({"$ref": format!("#/components/parameters/{name}")})
        } else {
            written
        }
    }

    fn body(&mut self, body: &Body) -> Value {
        let before = self.requests.insert(body.name, body.schema.clone());
        assert!(before.is_none_or(|known| known == body.schema), "{} is one schema", body.name);
        let examples: Map<_, _> = body
            .examples
            .iter()
            .enumerate()
            .map(|(index, example)| {
                let mut written = json!({"summary": example.summary, "value": example.value});
                if let Some(permission) = example.permission {
                    written["x-required-permission"] = json!(permission.as_str());
                }
                (format!("example{}", index + 1), written)
            })
            .collect();
        let schema = json!({"$ref": format!("#/components/schemas/{}", body.name)});
        json!({
            "required": true,
            "content": {"application/json": {"schema": schema, "examples": examples}},
        })
    }

    fn responses(&mut self, operation: &Operation) -> Value {
        let mut responses = Map::new();
        for answer in &operation.answers {
            responses.insert(answer.status.as_str().to_owned(), self.answer(answer));
        }
        let mut by_status = BTreeMap::<StatusCode, Vec<Problem>>::new();
        for error in &operation.problems {
            let problem = Problem::from(error.clone());
            by_status.entry(problem.status()).or_default().push(problem);
        }
        let schema = operation.problem_schema.unwrap_or(SchemaGenerator::subschema_for::<Problem>);
        let schema = schema(&mut self.schemas).to_value();
        for (status, problems) in by_status {
            let response = problem_response(status, &problems, &schema);
            let names = problems.iter().map(|one| pascal(one.kind()));
            let mut name = names.collect::<Vec<_>>().join("Or");
            if operation.problem_schema.is_some() {
                name.push_str("WithResults");
            }
            let known = self.responses.entry(name.clone()).or_insert_with(|| response.clone());
            let response = if *known == response {
                json!({"$ref": format!("#/components/responses/{name}")})
            } else {
                response
            };
            let before = responses.insert(status.as_str().to_owned(), response);
            assert!(before.is_none(), "{} has one answer of {status}", operation.id);
        }
        Value::Object(responses)
    }

    fn answer(&mut self, answer: &Answer) -> Value {
        let mut written = json!({"description": answer.description, "headers": headers(&[])});
        let (content_type, schema) = match answer.content {
            Content::None => return written,
            Content::Text => ("text/plain", json!({"type": "string"})),
            Content::Json(schema) => ("application/json", schema(&mut self.schemas).to_value()),
        };
        let mut content = json!({"schema": schema});
        if let Some(example) = &answer.example {
            content["example"] = example.clone();
        }
        written["content"] = json!({content_type: content});
        written
    }

    fn components(mut self, operations: &[Operation]) -> Value {
        let mut schemas = self.schemas.take_definitions(true);
        for (name, schema) in self.requests {
            let before = schemas.insert(name.to_owned(), schema);
            assert!(before.is_none(), "{name} is one schema");
        }
        schemas.insert(schemas::PROBLEM.to_owned(), problem_schema(operations));
        for schema in schemas.values_mut() {
            schemas::widen(schema);
        }
        let bearer = "A key of an application, or the operator's: `Authorization: Bearer <key>`";
        let api_key = "The same, in a header of its own";
        json!({
            "schemas": schemas,
            "responses": self.responses,
            "parameters": self.parameters,
            "headers": {
                "X-Request-Id": {
                    "description": "Names the request in logs: the caller's, if it sent a sound \
                                    one, else a new one",
                    "required": true,
                    "schema": {"type": "string"},
                    "example": "req_0192d4e012347abc8def0123456789ab",
                },
                "Retry-After": {
                    "description": "After how many seconds it is worth another try",
                    "required": true,
                    "schema": {"type": "integer", "minimum": 1},
                },
                "X-Webhook-Hops": {
                    "description": "Maximum number of webhook dispatchers that an event passes",
                    "required": true,
                    "schema": {"type": "integer", "minimum": 1},
                },
                "WWW-Authenticate": {
                    "description": "How to send the key",
                    "required": true,
                    "schema": {"type": "string", "const": "Bearer"},
                },
            },
            "securitySchemes": {
                SCHEMES[0]: {"type": "http", "scheme": "bearer", "description": bearer},
                SCHEMES[1]: {
                    "type": "apiKey", "in": "header", "name": "X-API-Key", "description": api_key,
                },
            },
        })
    }
}

fn roles(permission: Permission) -> Value {
    Role::ALL.into_iter().filter(|role| role.may(permission)).map(Role::as_str).collect()
}

fn headers(others: &[&str]) -> Value {
    let names = ["X-Request-Id"].iter().chain(others);
    let reference = |name| json!({"$ref": format!("#/components/headers/{name}")});
    names.map(|name| ((*name).to_owned(), reference(name))).collect::<Map<_, _>>().into()
}

/// The answer to requests that fail of these, which have one status.
fn problem_response(status: StatusCode, problems: &[Problem], schema: &Value) -> Value {
    let mut types: Vec<_> = problems.iter().map(Problem::r#type).collect();
    types.sort_unstable();
    let titles: Vec<_> = problems.iter().map(Problem::title).collect();
    let examples: Map<_, _> = problems
        .iter()
        .map(|problem| (problem.kind().to_owned(), json!({"value": problem})))
        .collect();
    let others: &[&str] = match status {
        StatusCode::UNAUTHORIZED => &["WWW-Authenticate"],
        StatusCode::SERVICE_UNAVAILABLE => &["Retry-After"],
        StatusCode::LOOP_DETECTED => &["X-Webhook-Hops"],
        _ => &[],
    };
    json!({
        "description": titles.join("; or: "),
        "headers": headers(others),
        "content": {"application/problem+json": {
            "schema": {
                "allOf": [schema],
                "properties": {"type": {"enum": types}, "status": {"const": status.as_u16()}},
            },
            "examples": examples,
        }},
    })
}

/// What every problem document is.
fn problem_schema(operations: &[Operation]) -> Value {
    // Those that no operation has for its own: there is none at such a path, or not of this method.
    let of_none = [ApiError::NoRoute, ApiError::MethodNotAllowed];
    let told = operations.iter().flat_map(|operation| &operation.problems);
    let mut types: Vec<_> =
        told.chain(&of_none).map(|error| Problem::from(error.clone()).r#type()).collect();
    types.sort_unstable();
    types.dedup();
    json!({
        "type": "object",
        "description": "A problem document (RFC 9457). Where the fault has a place, one of \
                        `pointer`, `parameter` and `header` names it",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"type": "string", "enum": types, "description": "Stable: decide by it"},
            "title": {"type": "string"},
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": {"type": "string", "description": "For people; it changes"},
            "pointer": {
                "type": "string",
                "description": "A JSON Pointer (RFC 6901) into the body; empty: the body itself",
            },
            "parameter": {"type": "string", "description": "A parameter of the query"},
            "header": {"type": "string", "description": "A header"},
        },
    })
}

/// `event-not-found`, `Idempotency-Key` or `created_after`, as components are named.
fn pascal(name: &str) -> String {
    let parts = name.split(['-', '_']);
    let parts = parts.filter_map(|part| part.split_at_checked(1));
    parts.map(|(first, rest)| first.to_uppercase() + rest).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::http::routes;

    fn whole() -> Value {
        document(&[routes::of_the_process(), routes::of_the_api()].concat())
    }

    /// Each schema of the document with each example of it, and where they stand.
    fn with_examples<'a>(
        part: &'a Value,
        at: &str,
        found: &mut Vec<(String, &'a Value, &'a Value)>,
    ) {
        if at.contains("/content/")
            && let Some(schema) = part.get("schema")
        {
            let many = part.get("examples").and_then(Value::as_object).into_iter().flatten();
            let examples = many.map(|(_, example)| &example["value"]).chain(part.get("example"));
            found.extend(examples.map(|example| (at.to_owned(), schema, example)));
        }
        let below: Vec<(String, &Value)> = match part {
            Value::Object(members) => members.iter().map(|(k, v)| (k.clone(), v)).collect(),
            Value::Array(items) => {
                items.iter().enumerate().map(|(i, v)| (i.to_string(), v)).collect()
            }
            _ => Vec::new(),
        };
        for (name, value) in below {
            with_examples(value, &format!("{at}/{name}"), found);
        }
    }

    /// Catches: an example, or a problem, that is not what its schema says; a reference to nothing.
    #[test]
    fn examples_are_what_their_schemas_say() {
        let document = whole();
        let mut found = Vec::new();
        with_examples(&document, "", &mut found);
        assert!(found.len() > 100, "{}", found.len());
        for (at, schema, example) in found {
            let mut schema = schema.clone();
            schema["components"] = document["components"].clone();
            let validator = jsonschema::draft202012::options().build(&schema).expect(&at);
            let faults: Vec<_> = validator.iter_errors(example).map(|e| e.to_string()).collect();
            assert!(faults.is_empty(), "{at}: {example}: {faults:?}");
        }
    }

    #[test]
    fn every_operation_is_told_in_full() {
        let operations = [routes::of_the_process(), routes::of_the_api()].concat();
        let mut ids = BTreeSet::new();
        for operation in &operations {
            let id = operation.id.as_str();
            assert!(!id.is_empty() && ids.insert(id), "{}: {id}", operation.path);
            assert!(!operation.summary.is_empty() && !operation.answers.is_empty(), "{id}");
            let in_path: BTreeSet<_> = operation
                .path
                .split('{')
                .skip(1)
                .map(|part| part.split('}').next().unwrap())
                .collect();
            let told = operation.parameters.iter().filter(|one| one.place == In::Path);
            assert_eq!(told.map(|one| one.name).collect::<BTreeSet<_>>(), in_path, "{id}");
            let body = operation.body.as_ref();
            assert!(body.is_none_or(|body| !body.examples.is_empty()), "{id} has no example");
        }
    }
}
