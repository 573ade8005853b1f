//! What an operation is, told once: the router and the document are made of the same declarations.

use axum::{
    handler::Handler,
    http::{Method, StatusCode},
    routing::{MethodFilter, MethodRouter, on},
};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Value, json};

use super::schemas;
use crate::{
    domain::{Permission, event::IDEMPOTENCY_KEY_BYTES_MAX},
    http::{ApiError, ApiState, Bound, access::NOT_LOOPBACK, problem::Problem, query::KnownQuery},
};

/// The prefix under which platforms look for subscriptions, deliveries and event types: the same
/// operations again.
const PREFIX: &str = "/api/v1/webhooks";

/// What operations are grouped by, in the order of the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    /// Publishing, and what became of it.
    Events,
    /// The log.
    Deliveries,
    /// Which events go where.
    Subscriptions,
    /// The catalogue.
    EventTypes,
    /// Tenants.
    Applications,
    /// Who may call.
    ApiKeys,
    /// The process itself.
    Service,
    /// The same again.
    Prefixed,
}

impl Tag {
    /// Every one.
    pub const ALL: [Self; 8] = [
        Self::Events,
        Self::Deliveries,
        Self::Subscriptions,
        Self::EventTypes,
        Self::Applications,
        Self::ApiKeys,
        Self::Service,
        Self::Prefixed,
    ];

    /// Name and description.
    pub const fn texts(self) -> (&'static str, &'static str) {
        match self {
            Self::Events => ("Events", "Publish events, and see what became of them."),
            Self::Deliveries => {
                ("Deliveries", "The log: each event to each of its targets, attempt by attempt.")
            }
            Self::Subscriptions => {
                ("Subscriptions", "Which events of an application go to which URL, and how.")
            }
            Self::EventTypes => (
                "Event types",
                "The catalogue: of the instance, and of each application. A type may carry a JSON \
                 Schema that payloads are held to.",
            ),
            Self::Applications => {
                ("Applications", "Tenants: each has its own subscriptions, events and keys.")
            }
            Self::ApiKeys => ("API keys", "Who may call for an application, and in which role."),
            Self::Service => ("Service", "Is it well, and what does it do."),
            Self::Prefixed => (
                "Under the prefix",
                "The same under `/api/v1/webhooks`, where platforms look for it. There, `events` are \
                 the event types.",
            ),
        }
    }
}

/// Who may call an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// Anybody, without a key.
    Anybody,
    /// A key whose role has this permission.
    With(Permission),
}

/// What a request may ask for that takes another permission than the operation itself.
#[derive(Debug, Clone, Copy)]
pub struct Further {
    /// When, in words.
    pub when: &'static str,
    /// What it takes.
    pub permission: Permission,
    /// The parameter of the query that asks for it, if one does.
    pub query: Option<(&'static str, &'static str)>,
}

/// Where a parameter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum In {
    /// In the path.
    Path,
    /// In the query.
    Query,
    /// A header.
    Header,
}

/// A parameter.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Where it stands.
    pub place: In,
    /// Its name.
    pub name: &'static str,
    /// What its value names, where that is something that can be looked up: told as `x-names`.
    pub names: Option<&'static str>,
    /// What it is.
    pub description: &'static str,
    /// What it may be.
    pub schema: Value,
}

/// A body that would be accepted.
#[derive(Debug, Clone)]
pub struct Example {
    /// What it shows.
    pub summary: &'static str,
    /// The body.
    pub value: Value,
    /// What it takes, if not what the operation itself takes.
    pub permission: Option<Permission>,
}

/// What an operation reads.
#[derive(Debug, Clone)]
pub struct Body {
    /// The name of the schema among the components.
    pub name: &'static str,
    /// What it must be.
    pub schema: Value,
    /// Bodies that are.
    pub examples: Vec<Example>,
}

/// Makes the schema of a type, or the reference to it.
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// What a good answer is made of.
#[derive(Debug, Clone, Copy)]
pub enum Content {
    /// Nothing.
    None,
    /// Text for Prometheus.
    Text,
    /// JSON of this schema.
    Json(SchemaOf),
}

/// A good answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// What it means.
    pub description: &'static str,
    /// What it consists of.
    pub content: Content,
    /// One.
    pub example: Option<Value>,
}

/// An operation of the API: a method of a path.
#[derive(Clone)]
pub struct Operation {
    pub(in crate::http) method: Method,
    pub(in crate::http) path: String,
    pub(in crate::http) route: MethodRouter<ApiState>,
    pub(in crate::http) id: String,
    pub(in crate::http) summary: &'static str,
    pub(in crate::http) description: &'static str,
    pub(in crate::http) tag: Tag,
    pub(in crate::http) caller: Caller,
    pub(in crate::http) further: Vec<Further>,
    pub(in crate::http) parameters: Vec<Parameter>,
    pub(in crate::http) body: Option<Body>,
    pub(in crate::http) answers: Vec<Answer>,
    pub(in crate::http) problems: Vec<ApiError>,
    pub(in crate::http) problem_schema: Option<SchemaOf>,
}

fn invalid() -> ApiError {
    ApiError::Invalid("unknown field `playload`: did you mean `payload`?".to_owned())
}

/// What any request can be refused for before anybody looks at what it asks for.
fn head_problems() -> [ApiError; 2] {
    [ApiError::UriTooLong, ApiError::HeadTooLarge { bytes_max: 32 * 1024 }]
}

impl Operation {
    fn new<H: Handler<T, ApiState>, T: 'static>(method: Method, path: &str, handler: H) -> Self {
        let filter = MethodFilter::try_from(method.clone()).expect("a method that routes know");
        Self {
            method,
            path: path.to_owned(),
            route: on(filter, handler),
            id: String::new(),
            summary: "",
            description: "",
            tag: Tag::Service,
            caller: Caller::Anybody,
            further: Vec::new(),
            parameters: Vec::new(),
            body: None,
            answers: Vec::new(),
            problems: head_problems().into(),
            problem_schema: None,
        }
    }

    /// `GET` of a path.
    pub fn get<H: Handler<T, ApiState>, T: 'static>(path: &str, handler: H) -> Self {
        Self::new(Method::GET, path, handler)
    }

    /// `POST` to a path.
    pub fn post<H: Handler<T, ApiState>, T: 'static>(path: &str, handler: H) -> Self {
        Self::new(Method::POST, path, handler)
    }

    /// `PUT` to a path.
    pub fn put<H: Handler<T, ApiState>, T: 'static>(path: &str, handler: H) -> Self {
        Self::new(Method::PUT, path, handler)
    }

    /// `PATCH` of a path.
    pub fn patch<H: Handler<T, ApiState>, T: 'static>(path: &str, handler: H) -> Self {
        Self::new(Method::PATCH, path, handler)
    }

    /// `DELETE` of a path.
    pub fn delete<H: Handler<T, ApiState>, T: 'static>(path: &str, handler: H) -> Self {
        Self::new(Method::DELETE, path, handler)
    }

    /// The same operation at another path too. Operations have ids of their own.
    pub fn also_at(&self, path: &str, id: &str) -> Self {
        Self { path: path.to_owned(), id: id.to_owned(), ..self.clone() }
    }

    /// The same operation under [`PREFIX`], where this part of its path is another one.
    pub fn under_the_prefix(&self, (from, to): (&str, &str)) -> Self {
        let path = format!("{PREFIX}{}", self.path.replacen(from, to, 1));
        let (first, rest) = self.id.split_at(1);
        let id = format!("webhooks{}{rest}", first.to_uppercase());
        Self { tag: Tag::Prefixed, ..self.also_at(&path, &id) }
    }

    /// The path.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The method of the path that it is. A parameter of the query that is not declared is refused,
    /// but by probes and metrics: what scrapes them may add its own.
    pub fn route(&self) -> MethodRouter<ApiState> {
        if self.tag == Tag::Service {
            return self.route.clone();
        }
        let in_query = self.parameters.iter().filter(|one| one.place == In::Query);
        let fields = self.body.iter().filter_map(|body| body.schema["properties"].as_object());
        let known = KnownQuery {
            parameters: in_query.map(|one| one.name).collect(),
            fields: fields.flat_map(|members| members.keys().cloned()).collect(),
        };
        known.guard(self.route.clone())
    }

    /// The same, at a path that names nothing.
    pub fn without_path_parameters(mut self) -> Self {
        self.parameters.retain(|parameter| parameter.place != In::Path);
        self
    }

    /// The operation's id, and what it does in a few words.
    pub fn named(mut self, id: &str, summary: &'static str) -> Self {
        (self.id, self.summary) = (id.to_owned(), summary);
        self
    }

    /// What it does, in more words (Markdown).
    pub fn told(mut self, description: &'static str) -> Self {
        self.description = description;
        self
    }

    /// Who may call, and what it belongs to. Without it anybody may, and it is the service's.
    pub fn of(mut self, tag: Tag, permission: Permission) -> Self {
        (self.tag, self.caller) = (tag, Caller::With(permission));
        if tag != Tag::Service {
            self.problem(invalid());
        }
        self.problems.extend([ApiError::Unauthorized, ApiError::Forbidden(NOT_LOOPBACK)]);
        let role = crate::domain::Role::Producer;
        self.problems.extend([ApiError::NotPermitted { role, permission }]);
        self.problems.extend([ApiError::Unavailable, ApiError::Internal]);
        self.problem(ApiError::Loop("the event has passed too many webhook dispatchers"));
        self.problem(ApiError::Overloaded(Bound::Requests));
        self
    }

    /// What some requests need beside.
    pub fn further(mut self, further: Further) -> Self {
        self.further.push(further);
        self
    }

    /// Parameters, and the problem of one that is not what it must be.
    pub fn parameters(mut self, parameters: impl IntoIterator<Item = Parameter>) -> Self {
        for parameter in parameters {
            match (parameter.place, parameter.names) {
                (In::Path, _) => {}
                (In::Query | In::Header, _) => self.problem(invalid()),
            }
            match parameter.names {
                Some("application") => self.problem(ApiError::ApplicationNotFound(None)),
                Some("event") => self.problem(ApiError::EventNotFound(None)),
                Some("delivery") => self.problem(ApiError::DeliveryNotFound(None)),
                Some("replay") => self.problem(ApiError::ReplayNotFound(None)),
                Some("erasure") => self.problem(ApiError::ErasureNotFound(None)),
                Some("subscription") => self.problem(ApiError::SubscriptionNotFound(None)),
                Some("event_type") => self.problem(ApiError::EventTypeNotFound),
                Some("api_key") => self.problem(ApiError::KeyNotFound(None)),
                _ => {}
            }
            self.parameters.push(parameter);
        }
        self
    }

    /// `Idempotency-Key` is looked at.
    pub fn idempotent(mut self) -> Self {
        self.problem(ApiError::KeyReused);
        self.parameters([schemas::idempotency_header(IDEMPOTENCY_KEY_BYTES_MAX)])
    }

    /// Reads JSON.
    pub fn reads(mut self, name: &'static str, schema: Value) -> Self {
        self.body = Some(Body { name, schema, examples: Vec::new() });
        let (what, bytes_max, setting) = ("the body", 1024 * 1024, "REQUEST_BODY_MAX");
        for error in [
            ApiError::NotJson,
            ApiError::Malformed("expected value at line 1 column 13".to_owned()),
            ApiError::TooSlow,
            ApiError::TooLarge { what, bytes_max, setting },
            invalid(),
        ] {
            self.problem(error);
        }
        self
    }

    /// A body that is accepted.
    pub fn example(self, summary: &'static str, value: Value) -> Self {
        self.example_with(summary, value, None)
    }

    /// A body that is accepted of who may do more than the operation asks for.
    pub fn example_with(
        mut self,
        summary: &'static str,
        value: Value,
        permission: Option<Permission>,
    ) -> Self {
        let body = self.body.as_mut().expect("`reads` comes before its examples");
        body.examples.push(Example { summary, value, permission });
        self
    }

    /// Answers JSON.
    pub fn answers<T: JsonSchema>(
        mut self,
        status: StatusCode,
        description: &'static str,
        example: Value,
    ) -> Self {
        let content = Content::Json(SchemaGenerator::subschema_for::<T>);
        self.answers.push(Answer { status, description, content, example: Some(example) });
        self
    }

    /// Answers nothing, with 204.
    pub fn answers_nothing(mut self, description: &'static str) -> Self {
        let (status, content) = (StatusCode::NO_CONTENT, Content::None);
        self.answers.push(Answer { status, description, content, example: None });
        self
    }

    /// Answers text.
    pub fn answers_text(mut self, description: &'static str, example: &str) -> Self {
        let (status, content) = (StatusCode::OK, Content::Text);
        let example = Some(json!(example));
        self.answers.push(Answer { status, description, content, example });
        self
    }

    /// May fail of these too.
    pub fn fails(mut self, problems: impl IntoIterator<Item = ApiError>) -> Self {
        for problem in problems {
            self.problem(problem);
        }
        self
    }

    /// The problem documents have more members than others.
    pub fn fails_as<T: JsonSchema>(mut self) -> Self {
        self.problem_schema = Some(SchemaGenerator::subschema_for::<T>);
        self
    }

    /// One of each type; the last that is told stands as the example.
    fn problem(&mut self, error: ApiError) {
        let of_type = |error: &ApiError| Problem::from(error.clone()).r#type();
        let same = |known: &ApiError| of_type(known) == of_type(&error);
        match self.problems.iter_mut().find(|known| same(known)) {
            Some(known) => *known = error,
            None => self.problems.push(error),
        }
    }
}
