//! From a body, or an item of a batch, to a submission: every field is checked here, and only here.

use bytes::Bytes;

use super::{
    ApiError, ApiState,
    body::part_of,
    caller::Caller,
    catalogue::{self, Suggestions},
    extract::IdempotencyHeader,
    hosts,
    json::{Members, pointer_to},
    problem::{Place, Problem},
};
use crate::domain::{
    ApplicationId, EventType, IdempotencyKey, Payload, Permission, Subject, Submission, TargetUrl,
    Upstream,
    address::AddressPolicy,
    event::{EventError, Metadata, Route},
};

/// The fields of an event, as callers send it.
pub const FIELDS: &[&str; 7] =
    &["payload", "type", "target_url", "application", "idempotency_key", "metadata", "subject"];

/// Where an idempotency key may come from, beside the field.
#[derive(Debug, Clone)]
pub enum OuterKey {
    /// The request's header, for its one event: if the field is there too, they must agree.
    OfRequest(String),
    /// Made for this item of a batch, if it has none of its own.
    OfItem(String),
}

/// What an event's target may be.
#[derive(Debug, Clone)]
pub struct Targets {
    /// That of an event that names none.
    pub default: Option<TargetUrl>,
    /// Which addresses may be called: what is known to be refused is refused at once.
    pub addresses: AddressPolicy,
}

/// An event that is well, of an application that is still to be looked up.
#[derive(Debug)]
struct Draft {
    /// How the request names the application, if it does.
    application: Option<String>,
    event_type: Option<EventType>,
    payload: Payload,
    route: Route,
    subject: Option<Subject>,
    metadata: Option<Metadata>,
    idempotency_key: Option<IdempotencyKey>,
}

impl Draft {
    /// What the caller must be permitted.
    fn permission(&self) -> Permission {
        match self.route {
            Route::Subscriptions | Route::One(_) => Permission::Publish,
            Route::Explicit(_) | Route::Default(_) | Route::Targets(_) => Permission::NameTargets,
        }
    }

    /// The submission, of this application.
    fn of(self, application: ApplicationId) -> Submission {
        let Self { event_type, payload, route, subject, metadata, idempotency_key, .. } = self;
        let upstream = Upstream::default();
        Submission {
            application,
            event_type,
            payload,
            route,
            subject,
            metadata,
            idempotency_key,
            upstream,
        }
    }
}

/// Reads an event that somebody sends: it must be well, its sender's to send, and what its type asks
/// for.
pub async fn read(
    state: &ApiState,
    caller: Caller,
    body: &Bytes,
    text: &str,
    outer_key: Option<OuterKey>,
    suggestions: &mut Suggestions,
) -> Result<Submission, Problem> {
    caller.must(Permission::Publish)?;
    let draft = draft(&state.targets, body, text, outer_key)?;
    let application = caller.application(state, draft.application.as_deref()).await;
    let application =
        application.map_err(|error| error.at(Place::Pointer(pointer_to("application"))))?;
    caller.must(draft.permission())?;
    if let Route::Explicit(target) | Route::Default(target) = &draft.route {
        let allowed = hosts::check(state, application, target).await;
        allowed.map_err(|error| match draft.route {
            Route::Explicit(_) => error.at(Place::Pointer(pointer_to("target_url"))),
            _ => error.into(),
        })?;
    }
    if let Some(event_type) = &draft.event_type {
        let payload = &draft.payload;
        catalogue::check_in(suggestions, state, application, event_type, payload).await?;
    }
    Ok(draft.of(application))
}

/// Reads an event. `text` is a part of `body`, and the payload becomes one too: the bytes as they
/// came.
fn draft(
    targets: &Targets,
    body: &Bytes,
    text: &str,
    outer_key: Option<OuterKey>,
) -> Result<Draft, Problem> {
    let given = Members::of(text, FIELDS)?;
    let event_type = field(&given, "type", published_type)?;
    let payload = Payload::from_json(part_of(body, given.required("payload")?.get()));
    let payload = payload.map_err(|error| fault("payload", error))?;
    let subject = field(&given, "subject", Subject::parse)?;
    let metadata = given.given("metadata").map(|metadata| Metadata::from_json(metadata.get()));
    let metadata = metadata.transpose().map_err(|error| fault("metadata", error))?;
    let idempotency_key = key(&given, "idempotency_key", outer_key)?;
    let target = given.string("target_url")?;
    let route = match (target, &event_type) {
        (Some(target), _) => Route::Explicit(checked_target(&target, &targets.addresses)?),
        (None, Some(_)) => Route::Subscriptions,
        (None, None) => Route::Default(targets.default.clone().ok_or(ApiError::NoTarget)?),
    };
    let application = given.string("application")?;
    Ok(Draft { application, event_type, payload, route, subject, metadata, idempotency_key })
}

/// Reads a type that somebody publishes: the service's own are not among them.
pub fn published_type(text: &str) -> Result<EventType, EventError> {
    let event_type = EventType::parse(text)?;
    if event_type.is_operators() { Err(EventError::OperatorType) } else { Ok(event_type) }
}

/// A fault of a field.
pub fn fault(name: &str, error: impl std::fmt::Display) -> Problem {
    ApiError::Invalid(format!("`{name}` {error}")).at(Place::Pointer(pointer_to(name)))
}

/// Reads a field that is a string; null is none.
pub fn field<T, E: std::fmt::Display, const N: usize>(
    given: &Members<'_, N>,
    name: &str,
    parse: fn(&str) -> Result<T, E>,
) -> Result<Option<T>, Problem> {
    let value = given.string(name)?;
    value.map(|text| parse(&text)).transpose().map_err(|error| fault(name, error))
}

/// Reads the idempotency key of a field, or the one from elsewhere.
pub fn key<const N: usize>(
    given: &Members<'_, N>,
    name: &str,
    outer: Option<OuterKey>,
) -> Result<Option<IdempotencyKey>, Problem> {
    let inner = field(given, name, IdempotencyKey::parse)?;
    let outer = match (outer, &inner) {
        (Some(OuterKey::OfRequest(header)), Some(inner)) if header != inner.as_str() => {
            let header = IdempotencyHeader::NAME;
            return Err(fault(name, format!("differs from the header `{header}`")));
        }
        (_, Some(_)) | (None, None) => return Ok(inner),
        (Some(OuterKey::OfRequest(key) | OuterKey::OfItem(key)), None) => key,
    };
    header_key(&outer).map(Some)
}

/// Reads a key that a header gave.
pub fn header_key(text: &str) -> Result<IdempotencyKey, Problem> {
    let name = IdempotencyHeader::NAME;
    IdempotencyKey::parse(text).map_err(|error| {
        ApiError::Invalid(format!("`{name}` {error}")).at(Place::Header(name.into()))
    })
}

/// Refuses at once what is known to be refused later.
fn checked_target(text: &str, addresses: &AddressPolicy) -> Result<TargetUrl, Problem> {
    let target = TargetUrl::parse(text).map_err(|error| fault("target_url", error))?;
    addresses.vet_target(&target).map_err(|refused| {
        ApiError::TargetRefused(refused.to_string()).at(Place::Pointer(pointer_to("target_url")))
    })?;
    Ok(target)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_alone(body: &[u8], outer_key: Option<OuterKey>) -> Result<Draft, Problem> {
        let addresses = AddressPolicy::new(Vec::new(), false);
        let targets = Targets { default: TargetUrl::parse("http://a.example/").ok(), addresses };
        let body = Bytes::copy_from_slice(body);
        let text = crate::http::body::text(&body)?;
        draft(&targets, &body, text, outer_key)
    }

    const WHOLE: &str = r#"{"payload": {"a": [1, "é", null]}, "type": "invoice.paid",
        "target_url": "https://a.example/b?c=d", "application": "default",
        "idempotency_key": "k", "metadata": {"m": 1e2}, "subject": "user \u00e9"}"#;

    #[test]
    fn a_key_is_the_fields_or_the_headers_and_never_two() {
        let with = |field: &str, outer| {
            let body = format!(r#"{{"payload": 1, "type": "a", "idempotency_key": {field}}}"#);
            let key = read_alone(body.as_bytes(), outer).map(|given| given.idempotency_key);
            key.map(|key| key.map(|key| key.as_str().to_owned())).map_err(|_| ())
        };
        let of_request = |key: &str| Some(OuterKey::OfRequest(key.to_owned()));
        let of_item = |key: &str| Some(OuterKey::OfItem(key.to_owned()));
        let key = |key: &str| Ok(Some(key.to_owned()));
        assert_eq!(with("null", None), Ok(None));
        assert_eq!(with("\"k\"", None), key("k"));
        assert_eq!(with("null", of_request("h")), key("h"));
        assert_eq!(with("\"k\"", of_request("k")), key("k"));
        assert_eq!(with("\"k\"", of_request("h")), Err(()));
        assert_eq!(with("null", of_item("h/1")), key("h/1"));
        assert_eq!(with("\"k\"", of_item("h/1")), key("k"));
        assert_eq!(with("null", of_request("h\t")), Err(()));
    }

    /// A body that is well, but for some bytes of it.
    fn spoilt() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![any::<u8>(), prop::sample::select(br#"{}[]",:\u0d8e-"#.to_vec())];
        let changes = prop::collection::vec((any::<prop::sample::Index>(), byte, 0_u8..3), 0..6);
        changes.prop_map(|changes| {
            let mut body = WHOLE.as_bytes().to_vec();
            for (index, byte, change) in changes {
                let at = index.index(body.len());
                match change {
                    0 => body[at] = byte,
                    1 => body.insert(at, byte),
                    _ => drop(body.remove(at)),
                }
            }
            body
        })
    }

    proptest! {
        /// Neither a panic nor a fault of ours; and what is taken is taken as it came.
        #[test]
        fn any_body_is_taken_or_refused(body in prop_oneof![
            spoilt(),
            prop::collection::vec(any::<u8>(), 0..80),
            r#"\{("(payload|type|target_url|metadata|x)": ?([0-9"\[\]{}a-z]{0,6}),? ?){0,4}\}"#
                .prop_map(String::into_bytes),
        ]) {
            match read_alone(&body, None) {
                Ok(given) => {
                    let payload = given.payload.bytes();
                    prop_assert!(body.windows(payload.len()).any(|part| part == payload));
                }
                Err(problem) => prop_assert!(!problem.is_of_the_service(), "{problem:?}"),
            }
        }
    }

    #[test]
    fn a_whole_body_is_taken() {
        let given = read_alone(WHOLE.as_bytes(), None).unwrap();
        assert_eq!(given.payload.bytes(), r#"{"a": [1, "é", null]}"#.as_bytes());
        assert_eq!(given.subject.unwrap().as_str(), "user é");
        assert_eq!(given.metadata.unwrap().as_str(), r#"{"m": 1e2}"#);
    }
}
