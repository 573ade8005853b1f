//! Every way a request can fail, and the one table that says how it looks (RFC 9457).

mod sources;

use std::borrow::Cow;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

use super::{
    openapi::schemas,
    room::Bound,
    server::{HEADERS_MAX, URI_BYTES_MAX},
    upstream,
};
use crate::{
    domain::{KeyName, Permission, Role, ids::IdError, upstream::HOPS_MAX},
    store::readiness::Unready,
    telemetry::{self, Refusal},
};

/// How long a caller should wait before it tries again, in seconds.
const RETRY_AFTER_S: u32 = 1;

/// Why a request was not served. `detail` never carries a database's message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// No such route.
    #[error("there is nothing at this path")]
    NoRoute,
    /// The route exists, with other methods.
    #[error("this path does not take this method")]
    MethodNotAllowed,
    /// No key, or a wrong one.
    #[error("send the key as `Authorization: Bearer <key>` or `X-API-Key: <key>`")]
    Unauthorized,
    /// A web page, or a name that points here, tries to drive an open service.
    #[error("{0}")]
    Forbidden(&'static str),
    /// The key is good, and its role is not enough.
    #[error("a key of the role {role} may not {}", permission.as_words())]
    NotPermitted {
        /// The caller's role.
        role: Role,
        /// What is asked for.
        permission: Permission,
    },
    /// What comes in for a subscription is not signed by its inbound secret.
    #[error("sign the body with the `inbound_secret` of the subscription")]
    InboundSignature,
    /// No key, and nothing that a subscription's inbound secret has signed.
    #[error(
        "sign the body with the `inbound_secret` of the subscription (`X-Hub-Signature-256`), or send \
         a key as `Authorization: Bearer <key>`"
    )]
    UnauthorizedIngest,
    /// The body comes from a form.
    #[error(
        "form data is not accepted: choose `application/json` as the content type in the webhook \
         settings of the sender"
    )]
    Form,
    /// The body is not JSON by its own declaration.
    #[error("send the body as `Content-Type: application/json`")]
    NotJson,
    /// The body is not JSON.
    #[error("the body is not valid JSON: {0}")]
    Malformed(String),
    /// The body is larger than the limit.
    #[error("{what} is larger than {bytes_max} bytes ({setting})")]
    TooLarge {
        /// The body, or an item of a batch.
        what: &'static str,
        /// The limit.
        bytes_max: usize,
        /// The variable that sets it.
        setting: &'static str,
    },
    /// The body did not come in time.
    #[error("the body did not arrive in time (REQUEST_BODY_TIMEOUT)")]
    TooSlow,
    /// The target of the request is longer than any that leads somewhere.
    #[error("path and query have more than {URI_BYTES_MAX} bytes")]
    UriTooLong,
    /// The head is larger than the limit, or has too many lines.
    #[error("the head has more than {bytes_max} bytes (REQUEST_HEAD_MAX) or {HEADERS_MAX} headers")]
    HeadTooLarge {
        /// The limit.
        bytes_max: usize,
    },
    /// A field, parameter or header is not what it must be.
    #[error("{0}")]
    Invalid(String),
    /// The target must not be called.
    #[error("`target_url`: {0}")]
    TargetRefused(String),
    /// No target was named, and there is no default.
    #[error("name a `target_url`, or a `type` that subscriptions ask for, or set TARGET_URL")]
    NoTarget,
    /// A dispatch names a key that its application does not have.
    #[error("`signatureKeyId`: this application has no key `{0}` in SIGNING_KEYS")]
    UnknownSigningKey(KeyName),
    /// No such event, or not this caller's.
    #[error("there is no such event{}", because(.0.as_ref()))]
    EventNotFound(Option<IdError>),
    /// No such delivery, or not this caller's.
    #[error("there is no such delivery{}", because(.0.as_ref()))]
    DeliveryNotFound(Option<IdError>),
    /// No such replay, or not this caller's.
    #[error("there is no such replay{}", because(.0.as_ref()))]
    ReplayNotFound(Option<IdError>),
    /// No such erasure, or not this caller's.
    #[error("there is no such erasure{}", because(.0.as_ref()))]
    ErasureNotFound(Option<IdError>),
    /// No such application, or not this caller's.
    #[error("there is no such application{}", because(.0.as_ref()))]
    ApplicationNotFound(Option<IdError>),
    /// No such key, or not this caller's.
    #[error("there is no such key{}", because(.0.as_ref()))]
    KeyNotFound(Option<IdError>),
    /// No such subscription, or not this caller's.
    #[error("there is no such subscription{}", because(.0.as_ref()))]
    SubscriptionNotFound(Option<IdError>),
    /// No such type in the catalogue that is asked.
    #[error("there is no such event type in this catalogue")]
    EventTypeNotFound,
    /// The application takes only types that are in its catalogue.
    #[error(
        "`type`: the application takes no event types that it does not know, and `{event_type}` is \
         none of them{}", did_you_mean(.meant.as_deref())
    )]
    UnknownEventType {
        /// What was sent.
        event_type: String,
        /// What may have been meant.
        meant: Option<String>,
    },
    /// The payload breaks the schema of its type.
    #[error("`payload` is not what the schema of `{event_type}` asks for: {faults}")]
    PayloadRefused {
        /// The type.
        event_type: String,
        /// What is wrong, and where in the payload; some of it, if it is much.
        faults: String,
    },
    /// What there is does not allow it.
    #[error("{0}")]
    Conflict(&'static str),
    /// What is to be changed is a document of the CMS.
    #[error(
        "this subscription is kept in Payload: change the document `{document_id}` of the collection \
         `{collection}` there"
    )]
    KeptInCms {
        /// The document's id.
        document_id: String,
        /// The collection that it is in.
        collection: String,
    },
    /// There are as many as there may be.
    #[error("there are {count_max} {what} already, and there may be no more")]
    Full {
        /// Of what, in the plural.
        what: &'static str,
        /// The bound.
        count_max: i64,
    },
    /// The idempotency key was used before, for something else.
    #[error("this idempotency key was used for another request in the last 24 hours")]
    KeyReused,
    /// Every item of a batch has a fault of its own.
    #[error("none of the {count} events was accepted; `results` says why, in their order")]
    BatchRefused {
        /// How many items there were.
        count: usize,
    },
    /// A delivery of a service leads back to it.
    #[error("{0}")]
    Loop(&'static str),
    /// Too much is waiting.
    #[error("too many requests are waiting; try again shortly")]
    Busy,
    /// Too much is there already.
    #[error("{0}; try again shortly")]
    Overloaded(Bound),
    /// Postgres is away.
    #[error("the database cannot be reached; nothing is known to be stored")]
    Unavailable,
    /// No event could be stored now.
    #[error("{0}")]
    NotReady(Unready),
    /// A fault of ours.
    #[error("the service failed; its log says why")]
    Internal,
}

fn because(error: Option<&IdError>) -> String {
    error.map(|error| format!(": {error}")).unwrap_or_default()
}

fn did_you_mean(name: Option<&str>) -> String {
    name.map(|name| format!(": did you mean `{name}`?")).unwrap_or_default()
}

impl ApiError {
    /// The request made something, now or when it was sent first, that is not there any more.
    pub const MADE_AND_DELETED: Self =
        Self::Conflict("what this request made was deleted since; take another idempotency key");

    /// What it is counted as, if it is a bound that was reached.
    fn refusal(&self) -> Option<Refusal> {
        Some(match self {
            Self::TooLarge { .. } => Refusal::BodyTooLarge,
            Self::TooSlow => Refusal::BodyTooSlow,
            Self::UriTooLong => Refusal::UriTooLong,
            Self::HeadTooLarge { .. } => Refusal::HeadTooLarge,
            Self::Busy => Refusal::Waiting,
            Self::Overloaded(bound) => bound.refusal(),
            Self::Unavailable => Refusal::Unavailable,
            _ => return None,
        })
    }

    /// Says where the fault is.
    pub fn at(self, place: Place) -> Problem {
        Problem { error: self, place: Some(place) }
    }

    /// Status, type and title. A new variant does not compile until it has a row.
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn row(&self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::NoRoute => (StatusCode::NOT_FOUND, "/problems/no-route", "No such route"),
            Self::MethodNotAllowed => (
                StatusCode::METHOD_NOT_ALLOWED,
                "/problems/method-not-allowed",
                "Method not allowed",
            ),
            Self::Unauthorized | Self::UnauthorizedIngest => {
                (StatusCode::UNAUTHORIZED, "/problems/unauthorized", "Key missing or wrong")
            }
            Self::Forbidden(_) => (StatusCode::FORBIDDEN, "/problems/forbidden", "Forbidden"),
            Self::NotPermitted { .. } => {
                (StatusCode::FORBIDDEN, "/problems/not-permitted", "Not permitted")
            }
            Self::InboundSignature => {
                (StatusCode::FORBIDDEN, "/problems/inbound-signature", "Signature missing or wrong")
            }
            Self::NotJson | Self::Form => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "/problems/unsupported-media-type",
                "Not declared as JSON",
            ),
            Self::Malformed(_) => {
                (StatusCode::BAD_REQUEST, "/problems/malformed-json", "Malformed JSON")
            }
            Self::TooLarge { .. } => {
                (StatusCode::PAYLOAD_TOO_LARGE, "/problems/body-too-large", "Body too large")
            }
            Self::TooSlow => {
                (StatusCode::REQUEST_TIMEOUT, "/problems/body-too-slow", "Body too slow")
            }
            Self::UriTooLong => {
                (StatusCode::URI_TOO_LONG, "/problems/uri-too-long", "URI too long")
            }
            Self::HeadTooLarge { .. } => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "/problems/head-too-large",
                "Head too large",
            ),
            Self::Invalid(_) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "/problems/invalid-request", "Invalid request")
            }
            Self::TargetRefused(_) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "/problems/target-refused", "Target refused")
            }
            Self::NoTarget => {
                (StatusCode::UNPROCESSABLE_ENTITY, "/problems/no-target", "No target")
            }
            Self::UnknownSigningKey(_) => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "/problems/unknown-signing-key",
                "Unknown signing key",
            ),
            Self::EventNotFound(_) => {
                (StatusCode::NOT_FOUND, "/problems/event-not-found", "Event not found")
            }
            Self::DeliveryNotFound(_) => {
                (StatusCode::NOT_FOUND, "/problems/delivery-not-found", "Delivery not found")
            }
            Self::ReplayNotFound(_) => {
                (StatusCode::NOT_FOUND, "/problems/replay-not-found", "Replay not found")
            }
            Self::ErasureNotFound(_) => {
                (StatusCode::NOT_FOUND, "/problems/erasure-not-found", "Erasure not found")
            }
            Self::ApplicationNotFound(_) => {
                (StatusCode::NOT_FOUND, "/problems/application-not-found", "Application not found")
            }
            Self::KeyNotFound(_) => {
                (StatusCode::NOT_FOUND, "/problems/key-not-found", "Key not found")
            }
            Self::SubscriptionNotFound(_) => (
                StatusCode::NOT_FOUND,
                "/problems/subscription-not-found",
                "Subscription not found",
            ),
            Self::EventTypeNotFound => {
                (StatusCode::NOT_FOUND, "/problems/event-type-not-found", "Event type not found")
            }
            Self::UnknownEventType { .. } => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "/problems/unknown-event-type",
                "Unknown event type",
            ),
            Self::PayloadRefused { .. } => {
                (StatusCode::UNPROCESSABLE_ENTITY, "/problems/payload-refused", "Payload refused")
            }
            Self::Conflict(_) | Self::Full { .. } => {
                (StatusCode::CONFLICT, "/problems/conflict", "Conflict")
            }
            Self::KeptInCms { .. } => {
                (StatusCode::CONFLICT, "/problems/kept-in-payload", "Kept in Payload")
            }
            Self::KeyReused => {
                (StatusCode::CONFLICT, "/problems/idempotency-key-reused", "Idempotency key reused")
            }
            Self::BatchRefused { .. } => {
                (StatusCode::UNPROCESSABLE_ENTITY, "/problems/batch-refused", "Batch refused")
            }
            Self::Loop(_) => {
                (StatusCode::LOOP_DETECTED, "/problems/loop-detected", "Loop detected")
            }
            Self::Busy | Self::Overloaded(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "/problems/busy", "Too busy")
            }
            Self::Unavailable | Self::NotReady(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "/problems/unavailable", "Database unavailable")
            }
            Self::Internal => {
                (StatusCode::INTERNAL_SERVER_ERROR, "/problems/internal", "Internal error")
            }
        }
    }
}

/// Where in a request a fault is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A value of the body, by its JSON Pointer (RFC 6901); the whole body is the empty one.
    Pointer(String),
    /// A parameter of the query.
    Parameter(String),
    /// A header.
    Header(Cow<'static, str>),
}

/// An error, and where in the request its cause is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    error: ApiError,
    place: Option<Place>,
}

impl Problem {
    /// The error.
    pub fn error(&self) -> &ApiError {
        &self.error
    }

    /// The same, of a part of a body: what was told from that part is told from the whole.
    pub fn within(mut self, part: &str) -> Self {
        self.place = match self.place {
            None => Some(Place::Pointer(part.to_owned())),
            Some(Place::Pointer(pointer)) => Some(Place::Pointer(format!("{part}{pointer}"))),
            elsewhere => elsewhere,
        };
        self
    }

    /// The status that it is answered with.
    pub fn status(&self) -> StatusCode {
        self.error.row().0
    }

    /// What it is, by which callers decide.
    pub fn r#type(&self) -> &'static str {
        self.error.row().1
    }

    /// The type without what all types begin with.
    pub fn kind(&self) -> &'static str {
        self.r#type().trim_start_matches("/problems/")
    }

    /// What it is, in a few words.
    pub fn title(&self) -> &'static str {
        self.error.row().2
    }

    /// Whether the same request can succeed later, or the fault is ours.
    pub fn is_of_the_service(&self) -> bool {
        self.status().is_server_error() && !matches!(self.error, ApiError::Loop(_))
    }

    /// The answer, with `body` as the document.
    pub fn respond(&self, body: impl Serialize) -> Response {
        let (status, ..) = self.error.row();
        if let Some(refusal) = self.error.refusal() {
            telemetry::refused(refusal);
        }
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
        }
        if status == StatusCode::LOOP_DETECTED {
            // By this the dispatcher that called knows it from the 508 of others.
            headers.insert(upstream::HOPS_HEADER, HeaderValue::from(u16::from(HOPS_MAX)));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl<E: Into<ApiError>> From<E> for Problem {
    fn from(error: E) -> Self {
        Self { error: error.into(), place: None }
    }
}

/// The document, as answers and the results of a batch show it.
#[derive(Serialize)]
struct Document<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pointer: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameter: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<&'a str>,
}

/// The component of the document that describes it; all its parts are told there.
impl JsonSchema for Problem {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        schemas::PROBLEM.into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"$ref": format!("#/components/schemas/{}", schemas::PROBLEM)})
    }
}

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (status, r#type, title) = self.error.row();
        let (mut pointer, mut parameter, mut header) = (None, None, None);
        match &self.place {
            Some(Place::Pointer(place)) => pointer = Some(place.as_str()),
            Some(Place::Parameter(name)) => parameter = Some(name.as_str()),
            Some(Place::Header(name)) => header = Some(name.as_ref()),
            None => {}
        }
        let (status, detail) = (status.as_u16(), self.error.to_string());
        Document { r#type, title, status, detail, pointer, parameter, header }.serialize(serializer)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        self.respond(&self)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        Problem::from(self).into_response()
    }
}
