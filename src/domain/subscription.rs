//! Subscriptions: which events of an application go where, and how they are sent there.

use std::{borrow::Cow, collections::BTreeMap, fmt, time::Duration};

use chrono::{DateTime, Utc};
use http::header::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

use super::{
    EventTypePatterns, LaneLimit, RetryPolicy, SigningKey, SigningKeyId, SubscriptionId, TargetUrl,
    filter::Filter,
    retry::{DELAYS_MAX, RetryPolicyError},
    signature::SigningKeys,
};

/// How many headers of its own a subscription may ask for.
pub const HEADERS_MAX: usize = 32;
/// How many bytes their names and values may have together.
pub const HEADER_BYTES_MAX: usize = 8 * 1024;
/// The bounds of a subscription's deadline over one exchange.
pub const TIMEOUT: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(300);

/// A subscription as routing and sending need it: one of its revisions.
#[derive(Debug)]
pub struct Subscription {
    /// Its id; also that of its lane.
    pub id: SubscriptionId,
    /// Which of its revisions this is.
    pub revision: i32,
    /// Whether events are sent there at present.
    pub is_active: bool,
    /// How long all may fail before it is disabled, if not as the settings say; zero: for ever.
    pub disable_after: Option<Duration>,
    /// What its owner bounds.
    pub limit: LaneLimit,
    /// Which event types it means.
    pub event_types: EventTypePatterns,
    /// Which events of these.
    pub filter: Option<Filter>,
    /// How they are sent.
    pub sending: Sending,
}

/// How the events of a subscription are sent.
#[derive(Debug)]
pub struct Sending {
    /// Where to.
    pub target: TargetUrl,
    /// The method.
    pub method: Method,
    /// Headers beside ours.
    pub headers: CustomHeaders,
    /// What signs.
    pub signing: Signing,
    /// Which headers carry the signature.
    pub signature_headers: SignatureHeaders,
    /// The deadline over one exchange, if it is not that of the settings.
    pub timeout: Option<Duration>,
    /// When a failed delivery is tried again, if not as the settings say.
    pub retry: Option<RetryPolicy>,
    /// What the body is.
    pub format: PayloadFormat,
    /// What the envelope tells of its own form.
    pub schema_version: String,
}

/// A closed set of names, the same in JSON and in SQL.
macro_rules! names {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name in JSON and SQL.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }

            /// Reads a name.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|one| one.as_str() == name)
            }
        }
    };
}

pub(super) use names;

names! {
    /// The HTTP method of a subscription's requests.
    Method {
        /// The usual one.
        Post = "POST",
        /// For receivers that store what they get under the URL.
        Put = "PUT",
        /// For receivers that change it.
        Patch = "PATCH",
    }
}
names! {
    /// What a receiver gets as its body.
    PayloadFormat {
        /// An object with the event's id, type, time, tenant and metadata around the payload.
        Envelope = "envelope",
        /// The payload as it came.
        Raw = "raw",
    }
}
names! {
    /// Why nothing is sent to a subscription at present.
    DisabledBecause {
        /// Its owner says so.
        Owner = "owner",
        /// Its receiver answered 410.
        Gone = "gone",
        /// Everything has failed for long.
        Failing = "failing",
    }
}
names! {
    /// Which headers carry the signature.
    SignatureHeaders {
        /// Those of Standard Webhooks, and `X-Webhook-Signature`.
        Standard = "standard",
        /// `X-Signature` alone: hexadecimal over the body.
        XSignature = "x_signature",
        /// All of them.
        Both = "both",
    }
}

/// What signs a subscription's requests.
#[derive(Debug)]
pub enum Signing {
    /// Nothing: the subscription asks for it.
    None,
    /// These keys.
    Keys(KeyRing),
    /// There are keys, and they do not open: requests fail as `signing`.
    Unreadable,
}

/// The keys of one owner, newest first, each with the time from which it does not sign any more.
#[derive(Debug, Clone)]
pub struct KeyRing {
    keys: SigningKeys,
    retire_at: Vec<Option<DateTime<Utc>>>,
}

impl KeyRing {
    /// Keys, newest first; the first one does not retire. `None` if there are none.
    pub fn new(keys: Vec<(SigningKey, Option<DateTime<Utc>>)>) -> Option<Self> {
        let (keys, retire_at): (Vec<_>, Vec<_>) = keys.into_iter().unzip();
        Some(Self { keys: SigningKeys::newest_first(keys)?, retire_at })
    }

    /// The keys that sign at a time.
    pub fn at(&self, now: DateTime<Utc>) -> Cow<'_, SigningKeys> {
        let is_retired = |time: &Option<DateTime<Utc>>| time.is_some_and(|time| time <= now);
        if self.retire_at.iter().any(is_retired) {
            let retired: Vec<_> = self.retire_at.iter().map(is_retired).collect();
            Cow::Owned(self.keys.without(&retired))
        } else {
            Cow::Borrowed(&self.keys)
        }
    }
}

/// The headers that a subscription asks for. Their values may be credentials: `Debug` shows names.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct CustomHeaders(Vec<(HeaderName, HeaderValue)>);

/// Why a header may not be asked for. Completes "`headers` …".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CustomHeaderError {
    /// Over [`HEADERS_MAX`].
    #[error("must be at most {HEADERS_MAX}")]
    TooMany,
    /// Over [`HEADER_BYTES_MAX`].
    #[error("must have at most {HEADER_BYTES_MAX} bytes together")]
    TooLarge,
    /// No token of HTTP.
    #[error("has a name that is no header name (RFC 9110)")]
    Name,
    /// A control character, for instance.
    #[error("has a value of `{0}` that no header can carry")]
    Value(HeaderName),
    /// The same name twice, in whatever case.
    #[error("names `{0}` twice")]
    Twice(HeaderName),
    /// One that HTTP or the signature needs.
    #[error("may not name `{0}`: HTTP, or the signature, needs it as it is")]
    Reserved(HeaderName),
}

/// What HTTP itself decides about a request, or what its body is.
const RESERVED: [&str; 16] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "traceparent",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-signature",
];
/// What the signature's and our own headers begin with.
const RESERVED_PREFIXES: [&str; 2] = ["webhook-", "x-webhook-"];

/// Whether HTTP, the signature or a header of ours needs a name. CGI, WSGI and PHP read all that is no
/// letter and no digit as `_`, so `X_Webhook_Signature` is `X-Webhook-Signature` to a receiver.
fn is_reserved(name: &HeaderName) -> bool {
    let name = name.as_str().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    RESERVED.contains(&name.as_str())
        || RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

impl CustomHeaders {
    /// Checks names and values.
    pub fn new<'a>(
        headers: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, CustomHeaderError> {
        let mut checked = Vec::<(HeaderName, HeaderValue)>::new();
        let mut bytes = 0;
        for (name, value) in headers {
            bytes += name.len() + value.len();
            if bytes > HEADER_BYTES_MAX {
                return Err(CustomHeaderError::TooLarge);
            }
            if checked.len() == HEADERS_MAX {
                return Err(CustomHeaderError::TooMany);
            }
            let name =
                HeaderName::from_bytes(name.as_bytes()).map_err(|_| CustomHeaderError::Name)?;
            if is_reserved(&name) {
                return Err(CustomHeaderError::Reserved(name));
            }
            if checked.iter().any(|(known, _)| *known == name) {
                return Err(CustomHeaderError::Twice(name));
            }
            let mut value =
                HeaderValue::from_str(value).map_err(|_| CustomHeaderError::Value(name.clone()))?;
            // Shown to nobody who reads the log of attempts.
            value.set_sensitive(true);
            checked.push((name, value));
        }
        Ok(Self(checked))
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = &(HeaderName, HeaderValue)> {
        self.0.iter()
    }

    /// As an object of JSON, to be sealed.
    pub fn to_json(&self) -> Vec<u8> {
        let text = |value: &HeaderValue| {
            // Beyond ASCII too: `to_str` would refuse that.
            String::from_utf8(value.as_bytes().to_vec()).expect("values are made of text alone")
        };
        let headers: BTreeMap<&str, String> =
            self.0.iter().map(|(name, value)| (name.as_str(), text(value))).collect();
        serde_json::to_vec(&headers).expect("text is JSON")
    }

    /// From such an object. Names that were stored before they became reserved are left out.
    pub fn from_json(json: &[u8]) -> Option<Self> {
        let mut headers: BTreeMap<String, String> = serde_json::from_slice(json).ok()?;
        headers.retain(|name, _| {
            HeaderName::from_bytes(name.as_bytes()).is_ok_and(|name| !is_reserved(&name))
        });
        Self::new(headers.iter().map(|(name, value)| (name.as_str(), value.as_str()))).ok()
    }

    /// How many bytes names and values have together.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for CustomHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// A retry policy as it is written in JSON, by callers and in the database alike. Times in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum RetrySettings {
    /// So long after each failure; then dead.
    Schedule(Vec<f64>),
    /// Twice as long after each failure.
    Backoff {
        /// Attempts until the delivery is dead.
        max_attempts: u32,
        /// The delay after the first attempt.
        base_seconds: f64,
        /// The longest delay.
        max_seconds: f64,
    },
}

impl RetrySettings {
    /// The policy that is meant.
    pub fn policy(&self) -> Result<RetryPolicy, RetryPolicyError> {
        let delay = |seconds: &f64| {
            Duration::try_from_secs_f64(*seconds).map_err(|_| RetryPolicyError::Delay)
        };
        match self {
            Self::Schedule(delays) if delays.len() > DELAYS_MAX => Err(RetryPolicyError::Delays),
            Self::Schedule(delays) => {
                RetryPolicy::schedule(delays.iter().map(delay).collect::<Result<_, _>>()?)
            }
            Self::Backoff { max_attempts, base_seconds, max_seconds } => {
                RetryPolicy::exponential(*max_attempts, delay(base_seconds)?, delay(max_seconds)?)
            }
        }
    }
}

/// What sealed secrets are bound to: the row that each stands in (see [`super::sealing`]).
pub mod sealed {
    use super::{SigningKeyId, SubscriptionId};

    /// The secret of a signing key.
    pub fn signing_key(id: SigningKeyId) -> Vec<u8> {
        format!("signing_key {id}").into_bytes()
    }

    /// The headers of a subscription.
    pub fn headers_of(id: SubscriptionId) -> Vec<u8> {
        format!("subscription headers {id}").into_bytes()
    }

    /// The secret that checks what comes in for a subscription.
    pub fn inbound_secret_of(id: SubscriptionId) -> Vec<u8> {
        format!("subscription inbound secret {id}").into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_break_http_or_the_signature_are_refused() {
        use CustomHeaderError::{Name, Reserved, Twice, Value};
        let of = |name: &str| HeaderName::from_bytes(name.as_bytes()).unwrap();
        let check = |headers: &[(&'static str, &'static str)]| {
            CustomHeaders::new(headers.iter().copied()).map(|headers| headers.0.len())
        };
        assert_eq!(check(&[("Authorization", "Bearer x"), ("X-Tenant", "a, b")]), Ok(2));
        assert_eq!(check(&[("User-Agent", "mine")]), Ok(1));
        for name in ["", "a b", "a:", "é", "a\r\nb"] {
            assert_eq!(check(&[(name, "x")]), Err(Name), "{name}");
        }
        for value in ["a\r\nb", "a\nb", "\0", "\u{7f}"] {
            assert_eq!(check(&[("x", value)]), Err(Value(of("x"))), "{value:?}");
        }
        for name in [
            "Host",
            "content-LENGTH",
            "Webhook-Id",
            "x-webhook-anything",
            "X-Signature",
            "X_Webhook_Signature",
            "webhook_id",
            "x_signature",
            "Content_Length",
            "x.webhook~timestamp",
        ] {
            assert_eq!(check(&[(name, "x")]), Err(Reserved(of(name))), "{name}");
        }
        assert_eq!(check(&[("X_Tenant", "1"), ("x_webhooks", "2")]), Ok(2));
        let stored = br#"{"X_Webhook_Signature": "x", "X_Tenant": "7"}"#;
        let stored = CustomHeaders::from_json(stored).unwrap();
        assert_eq!(format!("{stored:?}"), "[\"x_tenant\"]");
        assert_eq!(check(&[("A", "1"), ("a", "2")]), Err(Twice(of("a"))));
        let names: Vec<_> = (0..=HEADERS_MAX).map(|n| format!("h{n}")).collect();
        let many = names.iter().map(|name| (name.as_str(), ""));
        assert_eq!(CustomHeaders::new(many).unwrap_err(), CustomHeaderError::TooMany);
        let large = "x".repeat(HEADER_BYTES_MAX);
        assert_eq!(CustomHeaders::new([("a", &*large)]), Err(CustomHeaderError::TooLarge));
        let secret = CustomHeaders::new([("authorization", "hush")]).unwrap();
        assert_eq!(format!("{secret:?}"), "[\"authorization\"]");
    }

    #[test]
    fn header_values_beyond_ascii_keep_their_bytes() {
        for value in ["Grüße", "日本", "\u{85}", "a\tb ", ""] {
            let headers = CustomHeaders::new([("x-name", value), ("b", "2")]).unwrap();
            let read = CustomHeaders::from_json(&headers.to_json()).unwrap();
            let bytes = |headers: &CustomHeaders| {
                let mut all: Vec<_> =
                    headers.iter().map(|(_, value)| value.as_bytes().to_vec()).collect();
                all.sort_unstable();
                all
            };
            assert_eq!(bytes(&read), bytes(&headers), "{value}");
            assert!(bytes(&read).contains(&value.as_bytes().to_vec()), "{value}");
        }
    }

    #[test]
    fn policies_are_read_in_both_forms() {
        let read = |json: &str| serde_json::from_str::<RetrySettings>(json).unwrap().policy();
        assert!(read("[60, 300, 900.5]").is_ok());
        assert!(read(r#"{"max_attempts": 5, "base_seconds": 2, "max_seconds": 60}"#).is_ok());
        for bad in [
            "[-1]",
            "[1e300]",
            r#"{"max_attempts": 0, "base_seconds": 2, "max_seconds": 60}"#,
            r#"{"max_attempts": 5, "base_seconds": 0, "max_seconds": 60}"#,
            r#"{"max_attempts": 5, "base_seconds": 61, "max_seconds": 60}"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        let unknown = r#"{"max_attempts": 5, "base_seconds": 2, "max_seconds": 60, "jitter": 0}"#;
        assert!(serde_json::from_str::<RetrySettings>(unknown).is_err());
    }

    #[test]
    fn keys_sign_until_they_retire() {
        let key = |text| SigningKey::from_secret(text).unwrap();
        let at = |seconds| DateTime::from_timestamp(seconds, 0).unwrap();
        let ring = KeyRing::new(vec![(key("new"), None), (key("old"), Some(at(100)))]).unwrap();
        let count = |time| ring.at(at(time)).standard_signatures("id", 1, b"").split(' ').count();
        assert_eq!((count(99), count(100)), (2, 1));
        assert_eq!(
            ring.at(at(100)).standard_signatures("id", 1, b""),
            key("new").standard_signature("id", 1, b"")
        );
        assert!(KeyRing::new(Vec::new()).is_none());
    }
}
