//! An event, and the submission that every way in becomes before anything is stored.

use std::fmt;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::{
    ids::{ApplicationId, SubscriptionId},
    json::{self, JsonError, Nul},
    target::{NamedTarget, TargetUrl},
    upstream::Upstream,
};

/// How many bytes the name of an event type may have.
pub const EVENT_TYPE_BYTES_MAX: usize = 128;
/// What the names of the service's own event types begin with.
pub const OPERATOR_TYPES: &str = "webhook.";
/// How many bytes an idempotency key may have.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
/// How many bytes a subject may have.
pub const SUBJECT_BYTES_MAX: usize = 255;
/// How many bytes the metadata of an event may have, as JSON text.
pub const METADATA_BYTES_MAX: usize = 16 * 1024;

/// Why a value cannot be part of an event. The text completes "`field` …".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// Not a dotted name.
    #[error(
        "must be a dotted name such as `invoice.paid`: segments of letters, digits, `_` and `-`, \
         at most {EVENT_TYPE_BYTES_MAX} bytes"
    )]
    EventType,
    /// A name of the service's own.
    #[error("must not begin with `{OPERATOR_TYPES}`: such events are the service's own")]
    OperatorType,
    /// Empty, too long, or not printable ASCII.
    #[error("must be 1 to {IDEMPOTENCY_KEY_BYTES_MAX} printable ASCII characters")]
    IdempotencyKey,
    /// Empty, too long, or with control characters.
    #[error("must be 1 to {SUBJECT_BYTES_MAX} bytes without control characters")]
    Subject,
    /// Metadata over [`METADATA_BYTES_MAX`].
    #[error("must be at most {METADATA_BYTES_MAX} bytes of JSON")]
    MetadataTooLarge,
    /// Valid JSON that is not taken.
    #[error(transparent)]
    Json(#[from] JsonError),
}

/// A dotted name such as `invoice.paid`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EventType(String);

impl EventType {
    /// Reads a name: segments of `[A-Za-z0-9_-]`, joined by dots.
    pub fn parse(text: &str) -> Result<Self, EventError> {
        let is_segment = |s: &str| {
            !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
        };
        if text.len() <= EVENT_TYPE_BYTES_MAX && text.split('.').all(is_segment) {
            Ok(Self(text.to_owned()))
        } else {
            Err(EventError::EventType)
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is one of the service's own, which nobody else publishes.
    pub fn is_operators(&self) -> bool {
        self.0.starts_with(OPERATOR_TYPES)
    }
}

/// A caller's name for a submission, so that it can be sent again safely. Not a secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// Reads a key: printable ASCII, as a header value can carry it.
    pub fn parse(text: &str) -> Result<Self, EventError> {
        let is_sound = (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&text.len())
            && text.bytes().all(|b| (0x20..0x7f).contains(&b));
        if is_sound { Ok(Self(text.to_owned())) } else { Err(EventError::IdempotencyKey) }
    }

    /// The same key in a scope of its own, which holds no key of another scope.
    #[must_use]
    pub fn within(&self, scope: &str) -> Self {
        let hash = Sha256::digest(self.0.as_bytes());
        let hash = hash.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
        Self(format!("{scope}/{hash}"))
    }

    /// The key.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whom an event is about, for erasure and for lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject(String);

impl Subject {
    /// Reads a subject.
    pub fn parse(text: &str) -> Result<Self, EventError> {
        let is_sound =
            (1..=SUBJECT_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control);
        if is_sound { Ok(Self(text.to_owned())) } else { Err(EventError::Subject) }
    }

    /// The subject.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The payload as it came: exactly these bytes are stored, signed and sent.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload(Bytes);

impl Payload {
    /// Takes the text of one JSON value. The caller knows that it is one; here it is checked for
    /// what a parser further down the road would fail of.
    pub fn from_json(json: Bytes) -> Result<Self, EventError> {
        json::check(&json, Nul::Allowed)?;
        Ok(Self(json))
    }

    /// The bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }
}

/// Payloads are other people's data: their size is all that a log may show.
impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.0.len())
    }
}

/// Free-form JSON beside the payload, kept as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata(String);

impl Metadata {
    /// Takes the text of one JSON value.
    pub fn from_json(json: &str) -> Result<Self, EventError> {
        if json.len() > METADATA_BYTES_MAX {
            return Err(EventError::MetadataTooLarge);
        }
        json::check(json.as_bytes(), Nul::Refused)?;
        Ok(Self(json.to_owned()))
    }

    /// The JSON text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The route's name in SQL of an event whose targets each have settings of their own.
pub const TARGETS: &str = "targets";

/// How a submission finds its targets.
#[derive(Debug, Clone, PartialEq)]
pub enum Route {
    /// To the subscriptions that match, if any.
    Subscriptions,
    /// To the URL that the request names.
    Explicit(TargetUrl),
    /// To the URL that the settings name, for a request that names none.
    Default(TargetUrl),
    /// To this one subscription, whatever types and payloads it asks for.
    One(SubscriptionId),
    /// To these, as the request says of each.
    Targets(Vec<NamedTarget>),
}

impl Route {
    /// The name in JSON and in SQL, where that of the subscriptions is null.
    pub const fn as_str(&self) -> Option<&'static str> {
        match self {
            Self::Subscriptions => None,
            Self::Explicit(_) => Some("target"),
            Self::Default(_) => Some("default"),
            Self::One(_) => Some("one"),
            Self::Targets(_) => Some(TARGETS),
        }
    }
}

/// What every way in becomes: all that is needed to store an event and route it.
#[derive(Debug, Clone)]
pub struct Submission {
    /// The tenant that the event belongs to.
    pub application: ApplicationId,
    /// Its type, if the caller told one.
    pub event_type: Option<EventType>,
    /// What is sent.
    pub payload: Payload,
    /// Where it goes.
    pub route: Route,
    /// Whom it is about.
    pub subject: Option<Subject>,
    /// What the caller wants to find beside it.
    pub metadata: Option<Metadata>,
    /// The caller's name for it.
    pub idempotency_key: Option<IdempotencyKey>,
    /// The way that it came. It does not make a repeated request another one.
    pub upstream: Upstream,
}

impl Submission {
    /// How many bytes it holds in memory that its caller chose: the payload, and targets with their
    /// headers.
    pub fn held_bytes(&self) -> usize {
        let targets = match &self.route {
            Route::Targets(targets) => targets.as_slice(),
            Route::Subscriptions | Route::Explicit(_) | Route::Default(_) | Route::One(_) => &[],
        };
        let of_target =
            |target: &NamedTarget| target.url.as_str().len() + target.settings.headers.bytes();
        self.payload.bytes().len() + targets.iter().map(of_target).sum::<usize>()
    }

    /// A hash of all that makes two submissions the same, the idempotency key left out. A change
    /// of the settings' target does not make a repeated request another one.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut part = |tag: &[u8], bytes: Option<&[u8]>| {
            if let Some(bytes) = bytes {
                hash.update(tag);
                hash.update((bytes.len() as u64).to_be_bytes());
                hash.update(bytes);
            }
        };
        part(b"type", self.event_type.as_ref().map(|t| t.as_str().as_bytes()));
        part(b"payload", Some(self.payload.bytes()));
        part(b"subject", self.subject.as_ref().map(|s| s.as_str().as_bytes()));
        part(b"metadata", self.metadata.as_ref().map(|m| m.as_str().as_bytes()));
        match &self.route {
            Route::Subscriptions => part(b"subscriptions", Some(b"")),
            Route::Explicit(target) => part(b"target", Some(target.as_str().as_bytes())),
            Route::Default(_) => part(b"default", Some(b"")),
            Route::One(id) => part(b"subscription", Some(id.uuid().as_bytes())),
            Route::Targets(targets) => {
                for NamedTarget { url, settings } in targets {
                    part(b"target", Some(url.as_str().as_bytes()));
                    part(b"method", Some(settings.method.as_str().as_bytes()));
                    part(b"headers", Some(&settings.headers.to_json()));
                    part(b"key", settings.signing_key.as_ref().map(|key| key.as_str().as_bytes()));
                    let retry = settings.retry.as_ref().and_then(|r| serde_json::to_vec(r).ok());
                    part(b"retry", retry.as_deref());
                }
            }
        }
        hash.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::DEFAULT_APPLICATION;

    #[test]
    fn event_types_are_dotted_names() {
        for good in ["a", "invoice.paid", "com.example.user_2.created-v1"] {
            assert_eq!(EventType::parse(good).unwrap().as_str(), good);
        }
        let long = "x".repeat(EVENT_TYPE_BYTES_MAX + 1);
        for bad in ["", ".", "a.", ".a", "a..b", "a b", "a*", "a\r\nb", "é", "*", &long] {
            assert_eq!(EventType::parse(bad), Err(EventError::EventType), "{bad:?}");
        }
    }

    #[test]
    fn keys_and_subjects_have_bounds() {
        assert!(IdempotencyKey::parse("order 1/2").is_ok());
        for bad in ["", "é", "a\nb", &"k".repeat(256)] {
            assert!(IdempotencyKey::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Subject::parse("user é").is_ok());
        for bad in ["", "a\0b", &"s".repeat(256)] {
            assert!(Subject::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn metadata_is_text_and_a_payload_is_bytes() {
        let nul = r#"{"a": "\u0000"}"#;
        assert!(Payload::from_json(nul.into()).is_ok());
        assert_eq!(Metadata::from_json(nul), Err(JsonError::Nul.into()));
        let beyond = Err(JsonError::Number.into());
        assert_eq!(Payload::from_json("1e400".into()).map(|_| ()), beyond);
        assert_eq!(Metadata::from_json("1e400").map(|_| ()), beyond);
        let long = format!("\"{}\"", "m".repeat(METADATA_BYTES_MAX - 1));
        assert_eq!(Metadata::from_json(&long), Err(EventError::MetadataTooLarge));
    }

    #[test]
    fn fingerprints_differ_when_anything_but_the_key_differs() {
        let target = |text| TargetUrl::parse(text).unwrap();
        let base = Submission {
            application: DEFAULT_APPLICATION,
            event_type: None,
            payload: Payload::from_json("1".into()).unwrap(),
            route: Route::Explicit(target("http://a/")),
            subject: None,
            metadata: None,
            idempotency_key: None,
            upstream: Upstream::default(),
        };
        let same = Submission { idempotency_key: IdempotencyKey::parse("k").ok(), ..base.clone() };
        assert_eq!(base.fingerprint(), same.fingerprint());
        for other in [
            Submission { event_type: EventType::parse("a").ok(), ..base.clone() },
            Submission { payload: Payload::from_json("2".into()).unwrap(), ..base.clone() },
            Submission { subject: Subject::parse("s").ok(), ..base.clone() },
            Submission { metadata: Metadata::from_json("{}").ok(), ..base.clone() },
            Submission { route: Route::Explicit(target("http://b/")), ..base.clone() },
            Submission { route: Route::Default(target("http://a/")), ..base.clone() },
            Submission { route: Route::Subscriptions, ..base.clone() },
            Submission { route: Route::One(SubscriptionId::new(1, [0; 10])), ..base.clone() },
            Submission { route: Route::One(SubscriptionId::new(2, [0; 10])), ..base.clone() },
        ] {
            assert_ne!(base.fingerprint(), other.fingerprint(), "{other:?}");
        }
    }
}
