//! A tool: an operation of the API under the names that agents see. Its schemas are made of the
//! operation's declaration, and arguments become a request to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::http::{HeaderMap, HeaderName, Method, Request, header};
use rmcp::model::{Tool as Description, ToolAnnotations};
use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};
use url::form_urlencoded;

use super::{
    arguments,
    declared::{Declared, Effect, SECRETS},
};
use crate::{
    domain::Permission,
    http::{
        ApiError, names,
        openapi::{Caller, Content, In, Operation, schemas},
        problem::{Place, Problem},
        upstream::{HOPS_HEADER, TRACEPARENT},
    },
};

/// Headers of an agent's request that those to the API repeat: who calls, as whom the service is
/// addressed, and the way that an event came.
const REPEATED: [HeaderName; 5] = [
    header::AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    header::HOST,
    HOPS_HEADER,
    TRACEPARENT,
];
/// What arguments call the header.
const IDEMPOTENCY_KEY: &str = "idempotency_key";

/// Where an argument goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goes {
    Path(&'static str),
    Query,
    Header(&'static str),
    Body,
}

/// A tool.
pub struct Tool {
    description: Description,
    permission: Permission,
    method: Method,
    path: String,
    reads_body: bool,
    arguments: BTreeMap<String, Goes>,
    /// Those for which null stands for an absent argument, and is not passed on.
    absent_if_null: BTreeSet<String>,
    defaults: &'static [(&'static str, bool)],
}

impl Tool {
    /// Makes a tool of an operation.
    pub fn new(declared: &Declared, operation: &Operation) -> Self {
        let Caller::With(permission) = operation.caller else {
            panic!("{}: what anybody may call is no tool", declared.name)
        };
        let mut input = Input::default();
        for parameter in &operation.parameters {
            let (name, goes) = match parameter.place {
                In::Path => (declared.path_name(), Goes::Path(parameter.name)),
                In::Query => (parameter.name, Goes::Query),
                In::Header => (IDEMPOTENCY_KEY, Goes::Header(parameter.name)),
            };
            let mut schema = parameter.schema.clone();
            schema["description"] = json!(parameter.description);
            input.add(name, goes, schema, matches!(goes, Goes::Path(_)));
        }
        if let Some(body) = &operation.body {
            let is_required = |name: &str| {
                let required = body.schema["required"].as_array();
                required.is_some_and(|names| names.iter().any(|one| one == name))
                    || declared.required.contains(&name)
            };
            for (name, member) in Declared::members(&body.schema) {
                input.add(name, Goes::Body, member, is_required(name));
            }
        }
        for (name, value) in declared.defaults {
            input.properties[*name]["default"] = json!(value);
        }
        let output = output_schema(operation);
        let description = format!("{} {}", sentence(operation.summary), declared.told);
        let description = Description::new(declared.name, description, Arc::new(input.schema()))
            .with_title(operation.summary)
            .with_raw_output_schema(Arc::new(output))
            .with_annotations(annotations(operation.summary, declared.effect));
        Self {
            description,
            permission,
            method: operation.method.clone(),
            path: operation.path.clone(),
            reads_body: operation.body.is_some(),
            arguments: input.arguments,
            absent_if_null: input.absent_if_null,
            defaults: declared.defaults,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.description.name
    }

    /// What a key must be permitted to see it, and to call it.
    pub fn permission(&self) -> Permission {
        self.permission
    }

    /// What agents are told of it.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The request that a call comes to. `headers` are those of the agent's own request.
    pub fn request(
        &self,
        mut arguments: Map<String, Value>,
        headers: &HeaderMap,
    ) -> Result<Request<Vec<u8>>, Problem> {
        for (name, value) in self.defaults {
            let given = arguments.entry(*name).or_insert(Value::Null);
            if given.is_null() {
                *given = json!(value);
            }
        }
        let mut request = Request::builder().method(self.method.clone());
        for name in &REPEATED {
            for value in headers.get_all(name) {
                request = request.header(name, value);
            }
        }
        let (mut path, mut query) =
            (self.path.clone(), form_urlencoded::Serializer::new(String::new()));
        let mut body = Map::new();
        for (name, value) in arguments {
            if value.is_null() && self.absent_if_null.contains(&name) {
                continue;
            }
            let Some(goes) = self.arguments.get(&name) else {
                let known: Vec<_> = self.arguments.keys().map(String::as_str).collect();
                return Err(fault(&name, names::unknown("argument", &name, &known)));
            };
            if *goes == Goes::Body {
                body.insert(name, value);
                continue;
            }
            let text = match value {
                Value::Null => continue,
                Value::String(text) => text,
                other => other.to_string(),
            };
            match goes {
                Goes::Path(place) if !text.is_empty() => {
                    let text: String = form_urlencoded::byte_serialize(text.as_bytes()).collect();
                    path = path.replace(&format!("{{{place}}}"), &text.replace('+', "%20"));
                }
                Goes::Query => drop(query.append_pair(&name, &text)),
                Goes::Header(header) => request = request.header(*header, text),
                Goes::Path(_) | Goes::Body => {}
            }
        }
        if path.contains('{') {
            let name = self.named_in_path().unwrap_or_default();
            return Err(fault(name, format!("`{name}` is missing")));
        }
        let query = query.finish();
        if !query.is_empty() {
            path = format!("{path}?{query}");
        }
        let body = if self.reads_body {
            request = request.header(header::CONTENT_TYPE, "application/json");
            Value::Object(body).to_string().into_bytes()
        } else {
            Vec::new()
        };
        // A path and a query are escaped; a header's value can be what no header may have.
        let request = request.uri(path).body(body);
        request.map_err(|_| {
            fault(IDEMPOTENCY_KEY, format!("`{IDEMPOTENCY_KEY}` must be printable ASCII"))
        })
    }

    /// The argument that names what the path is about.
    fn named_in_path(&self) -> Option<&str> {
        let mut arguments = self.arguments.iter();
        arguments.find(|(_, goes)| matches!(goes, Goes::Path(_))).map(|(name, _)| name.as_str())
    }

    /// What an agent is told of a problem: where what the path names is not there, that argument.
    pub fn refusal(&self, mut problem: Value) -> Value {
        if let Some(name) = self.named_in_path()
            && problem["argument"].is_null()
            && problem["type"] == format!("/problems/{}-not-found", name.trim_end_matches("_id"))
        {
            problem["argument"] = json!(name);
        }
        problem
    }
}

/// What an agent is given of the API's answer.
pub fn answer(mut answer: Value) -> Value {
    if let Some(members) = answer.as_object_mut() {
        members.retain(|name, _| !SECRETS.contains(&name.as_str()));
    }
    answer
}

fn fault(name: &str, detail: String) -> Problem {
    let escaped = name.replace('~', "~0").replace('/', "~1");
    ApiError::Invalid(detail).at(Place::Pointer(format!("/{escaped}")))
}

fn sentence(words: &str) -> String {
    format!("{words}.")
}

/// The arguments, and what they must be.
#[derive(Default)]
struct Input {
    properties: Map<String, Value>,
    required: Vec<String>,
    arguments: BTreeMap<String, Goes>,
    absent_if_null: BTreeSet<String>,
}

impl Input {
    /// Takes an argument, unless one of that name is there.
    fn add(&mut self, name: &str, goes: Goes, mut schema: Value, is_required: bool) {
        // The body's own key, if it has one, stands for the header.
        let is_key = name.eq_ignore_ascii_case("idempotencyKey");
        if is_key && self.arguments.remove(IDEMPOTENCY_KEY).is_some() {
            self.properties.remove(IDEMPOTENCY_KEY);
        }
        if self.arguments.contains_key(name) && name != IDEMPOTENCY_KEY {
            return;
        }
        arguments::simplify(&mut schema);
        if !is_required && arguments::make_nullable(&mut schema) {
            self.absent_if_null.insert(name.to_owned());
        }
        self.arguments.insert(name.to_owned(), goes);
        self.properties.insert(name.to_owned(), schema);
        if is_required {
            self.required.push(name.to_owned());
        }
    }

    /// Without what joins members at the top, which some models refuse to read: the API says so.
    fn schema(&mut self) -> Map<String, Value> {
        let mut schema = object(json!({
            "type": "object",
            "properties": self.properties,
            "additionalProperties": false,
        }));
        if !self.required.is_empty() {
            schema.insert("required".to_owned(), json!(self.required));
        }
        schema
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        other => panic!("{other} is no object"),
    }
}

/// What a tool answers, with all that it refers to: any of the operation's answers.
fn output_schema(operation: &Operation) -> Map<String, Value> {
    let settings = SchemaSettings::draft2020_12().for_serialize().with(|settings| {
        settings.meta_schema = None;
    });
    let mut generator: SchemaGenerator = settings.into_generator();
    let mut answers = Vec::new();
    for answer in &operation.answers {
        let Content::Json(schema) = answer.content else {
            panic!("{}: a tool answers JSON", operation.id)
        };
        let schema = schema(&mut generator).to_value();
        if !answers.contains(&schema) {
            answers.push(schema);
        }
    }
    let mut definitions = generator.take_definitions(true);
    let mut root = match answers.as_slice() {
        [one] => match one["$ref"].as_str().and_then(|name| name.strip_prefix("#/$defs/")) {
            Some(name) => definitions[name].clone(),
            None => one.clone(),
        },
        several => json!({"anyOf": several}),
    };
    root["type"] = json!("object");
    let mut root = object(root);
    for schema in
        std::iter::once(&mut root).chain(definitions.values_mut().filter_map(Value::as_object_mut))
    {
        if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
            properties.retain(|name, _| !SECRETS.contains(&name.as_str()));
        }
    }
    // Only what is referred to: the root itself stands there as well.
    loop {
        let text = json!([root, definitions]).to_string();
        let before = definitions.len();
        definitions.retain(|name, _| text.contains(&format!("\"#/$defs/{name}\"")));
        if definitions.len() == before {
            break;
        }
    }
    if !definitions.is_empty() {
        root.insert("$defs".to_owned(), Value::Object(definitions));
    }
    let mut root = Value::Object(root);
    schemas::widen(&mut root);
    object(root)
}

fn annotations(title: &str, effect: Effect) -> ToolAnnotations {
    let annotations = ToolAnnotations::with_title(title);
    match effect {
        Effect::Reads => {
            annotations.read_only(true).destructive(false).idempotent(true).open_world(false)
        }
        Effect::Sends => {
            annotations.read_only(false).destructive(false).idempotent(false).open_world(true)
        }
        Effect::Makes => {
            annotations.read_only(false).destructive(false).idempotent(false).open_world(false)
        }
        Effect::Changes => {
            annotations.read_only(false).destructive(true).idempotent(true).open_world(false)
        }
    }
}
