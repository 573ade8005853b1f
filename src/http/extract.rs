//! What a request says beside its body: paths, parameters and headers that fail as problems.

use axum::{
    extract::{FromRequestParts, OptionalFromRequestParts, Path},
    http::{HeaderMap, Uri, request::Parts},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use url::form_urlencoded;
use uuid::Uuid;

use super::{
    ApiError, names,
    problem::{Place, Problem},
};
use crate::{
    domain::{
        ApiKeyId, ApplicationId, DeliveryId, ErasureId, ErrorClass, EventId, EventType,
        IdempotencyKey, ReplayId, SubscriptionId, Uid,
    },
    store::{idempotency::Reservation, subscriptions::SubscriptionName},
};

/// Items of one page, unless the caller asks otherwise, and at most.
pub const LIMIT_DEFAULT: usize = 50;
pub const LIMIT_MAX: usize = 250;

/// The parameters of a list that is filtered by nothing.
pub const OF_PAGE: &[&str; 2] = &["limit", "cursor"];
/// The parameter of what is of an application, and is asked nothing else.
pub const OF_APPLICATION: &[&str; 1] = &["application"];
/// The parameters of a list of an application that has no filters.
pub const OF_APPLICATION_PAGE: &[&str; 3] = &["application", "limit", "cursor"];

/// The parameters of a query, each one of `N` known names and there once at most.
pub struct Parameters<const N: usize> {
    names: &'static [&'static str; N],
    values: [Option<String>; N],
}

impl<const N: usize> Parameters<N> {
    /// Reads the query of a URI.
    pub fn of(uri: &Uri, names: &'static [&'static str; N]) -> Result<Self, Problem> {
        let mut values = [const { None }; N];
        for (name, value) in form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
            let index = names.iter().position(|known| *known == name);
            let detail = match index {
                Some(index) if values[index].is_none() => {
                    values[index] = Some(value.into_owned());
                    continue;
                }
                Some(_) => format!("parameter `{name}` is given twice"),
                None => names::unknown("parameter", &name, names),
            };
            return Err(ApiError::Invalid(detail).at(Place::Parameter(names::shown(&name))));
        }
        Ok(Self { names, values })
    }

    /// A parameter as text.
    pub fn text(&self, name: &str) -> Option<&str> {
        let index = self.names.iter().position(|known| *known == name);
        self.values[index.expect("only names that were given are asked for")].as_deref()
    }

    /// A parameter, read. What the reader says completes "`name` …".
    pub fn read<T, E: std::fmt::Display>(
        &self,
        name: &str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, Problem> {
        let value = self.text(name).map(read).transpose();
        value.map_err(|error| {
            ApiError::Invalid(format!("`{name}` {error}")).at(Place::Parameter(name.to_owned()))
        })
    }
}

/// The event that a path names. What cannot be an id, bytes that are no text included, names none.
pub struct EventPath(pub EventId);

impl<S: Send + Sync> FromRequestParts<S> for EventPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = <Path<String> as FromRequestParts<S>>::from_request_parts(parts, state).await;
        // No text has the empty one's faults.
        let id = path.map_or_else(|_| String::new(), |Path(id)| id);
        id.parse().map(Self).map_err(|error| ApiError::EventNotFound(Some(error)))
    }
}

/// The delivery that a path names.
pub struct DeliveryPath(pub DeliveryId);

impl<S: Send + Sync> FromRequestParts<S> for DeliveryPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = <Path<String> as FromRequestParts<S>>::from_request_parts(parts, state).await;
        let id = path.map_or_else(|_| String::new(), |Path(id)| id);
        id.parse().map(Self).map_err(|error| ApiError::DeliveryNotFound(Some(error)))
    }
}

/// The replay that a path names.
pub struct ReplayPath(pub ReplayId);

impl<S: Send + Sync> FromRequestParts<S> for ReplayPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = <Path<String> as FromRequestParts<S>>::from_request_parts(parts, state).await;
        let id = path.map_or_else(|_| String::new(), |Path(id)| id);
        id.parse().map(Self).map_err(|error| ApiError::ReplayNotFound(Some(error)))
    }
}

/// The erasure that a path names.
pub struct ErasurePath(pub ErasureId);

impl<S: Send + Sync> FromRequestParts<S> for ErasurePath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = <Path<String> as FromRequestParts<S>>::from_request_parts(parts, state).await;
        let id = path.map_or_else(|_| String::new(), |Path(id)| id);
        id.parse().map(Self).map_err(|error| ApiError::ErasureNotFound(Some(error)))
    }
}

/// The application that a path names, by its id or its uid. Who may see it is the caller's to check.
pub struct ApplicationPath(pub String);

impl<S: Send + Sync> FromRequestParts<S> for ApplicationPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = <Path<String> as FromRequestParts<S>>::from_request_parts(parts, state).await;
        path.map(|Path(name)| Self(name)).map_err(|_| ApiError::ApplicationNotFound(None))
    }
}

/// The application and its key that a path names.
pub struct ApiKeyPath(pub String, pub ApiKeyId);

impl<S: Send + Sync> FromRequestParts<S> for ApiKeyPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path =
            <Path<(String, String)> as FromRequestParts<S>>::from_request_parts(parts, state).await;
        let Path((application, id)) = path.map_err(|_| ApiError::KeyNotFound(None))?;
        let id = id.parse().map_err(|error| ApiError::KeyNotFound(Some(error)))?;
        Ok(Self(application, id))
    }
}

/// The subscription that a path names, by its id or its uid.
pub struct SubscriptionPath(pub SubscriptionName);

impl<S: Send + Sync> FromRequestParts<S> for SubscriptionPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = <Path<String> as FromRequestParts<S>>::from_request_parts(parts, state).await;
        let Path(text) = path.map_err(|_| ApiError::SubscriptionNotFound(None))?;
        subscription_name(&text).map(Self)
    }
}

/// Reads what names a subscription: an id of ours, or a uid.
pub fn subscription_name(text: &str) -> Result<SubscriptionName, ApiError> {
    match (text.parse::<SubscriptionId>(), Uid::parse(text)) {
        (Ok(id), _) => Ok(SubscriptionName::Id(id)),
        (Err(_), Ok(uid)) => Ok(SubscriptionName::Uid(uid)),
        (Err(error), Err(_)) => Err(ApiError::SubscriptionNotFound(Some(error))),
    }
}

/// The event type that a path names. What cannot be a name names none.
pub struct EventTypePath(pub EventType);

impl<S: Send + Sync> FromRequestParts<S> for EventTypePath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = <Path<String> as FromRequestParts<S>>::from_request_parts(parts, state).await;
        // Where a route of that very name is, the path has no part that is named.
        let last = || parts.uri.path().rsplit('/').next().unwrap_or_default().to_owned();
        let name = path.map_or_else(|_| last(), |Path(name)| name);
        EventType::parse(&name).map(Self).map_err(|_| ApiError::EventTypeNotFound)
    }
}

/// `Idempotency-Key`, if the request has one.
pub struct IdempotencyHeader(pub String);

impl IdempotencyHeader {
    /// The header's name, as messages show it.
    pub const NAME: &'static str = "Idempotency-Key";
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for IdempotencyHeader {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Problem> {
        Ok(header(&parts.headers, Self::NAME)?.map(Self))
    }
}

/// A header's text, if it is there, once.
pub fn header(headers: &HeaderMap, name: &'static str) -> Result<Option<String>, Problem> {
    let fault = |detail: &str| {
        ApiError::Invalid(format!("`{name}` {detail}")).at(Place::Header(name.into()))
    };
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(fault("is given twice"));
    }
    let text = value.to_str().map_err(|_| fault("must be printable ASCII"))?;
    Ok(Some(text.to_owned()))
}

/// Reads the name of one of a closed set.
pub fn one_of<T: Copy>(all: &[T], name: fn(T) -> &'static str, text: &str) -> Result<T, String> {
    all.iter().copied().find(|one| name(*one) == text).ok_or_else(|| {
        let names: Vec<_> = all.iter().map(|one| name(*one)).collect();
        format!("must be one of {}", names.join(", "))
    })
}

/// Reads the name of an error class.
pub fn error_class(text: &str) -> Result<ErrorClass, String> {
    one_of(&ErrorClass::ALL, ErrorClass::as_str, text)
}

/// Reads the size of a page.
pub fn limit(text: &str) -> Result<usize, String> {
    let limit = text.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
    limit.ok_or_else(|| format!("must be 1 to {LIMIT_MAX}"))
}

/// Reads a time.
pub fn time(text: &str) -> Result<DateTime<Utc>, &'static str> {
    let time = DateTime::parse_from_rfc3339(text).map(|time| time.to_utc());
    time.map_err(
        |_| "must be a time such as 2026-01-31T12:00:00Z (RFC 3339; a `+` in a URL is %2B)",
    )
}

/// Why a text is no cursor. Completes "`cursor` …".
const NO_CURSOR: &str = "is not one that this list gave out";

/// What a cursor begins with, so that a future form can be told apart.
const CURSOR_VERSION: u8 = 2;

/// The lists that have pages. A cursor is opaque to callers, and good for its own list only.
#[derive(Debug, Clone, Copy)]
pub enum Cursor {
    /// `GET /events`.
    Events = b'e' as isize,
    /// `GET /applications`.
    Applications = b'a' as isize,
    /// `GET /applications/{id}/api-keys`.
    ApiKeys = b'k' as isize,
    /// `GET /subscriptions`.
    Subscriptions = b's' as isize,
    /// `GET /deliveries`.
    Deliveries = b'd' as isize,
    /// `GET /events/{id}/explain`.
    Explanation = b'x' as isize,
    /// `GET /replays`.
    Replays = b'r' as isize,
    /// `GET /erasures`.
    Erasures = b'z' as isize,
    /// `GET /event-types`, by name.
    EventTypes = b't' as isize,
}

impl Cursor {
    fn head(self) -> [u8; 2] {
        [CURSOR_VERSION, self as u8]
    }

    /// Where a page ended: the id of its last row.
    pub fn after(self, id: Uuid) -> String {
        URL_SAFE_NO_PAD.encode([self.head().as_slice(), id.as_bytes()].concat())
    }

    /// Reads a cursor.
    pub fn read(self, cursor: &str) -> Result<Uuid, &'static str> {
        let bytes = URL_SAFE_NO_PAD.decode(cursor).unwrap_or_default();
        bytes
            .strip_prefix(&self.head())
            .and_then(|uuid| Uuid::from_slice(uuid).ok())
            .filter(|uuid| uuid.get_version_num() == 7)
            .ok_or(NO_CURSOR)
    }

    /// Where a page of a list by name ended.
    pub fn after_name(self, name: &str) -> String {
        URL_SAFE_NO_PAD.encode([self.head().as_slice(), name.as_bytes()].concat())
    }

    /// Reads a cursor of a list of event types by name.
    pub fn read_name(self, cursor: &str) -> Result<EventType, &'static str> {
        let bytes = URL_SAFE_NO_PAD.decode(cursor).unwrap_or_default();
        bytes
            .strip_prefix(&self.head())
            .and_then(|name| str::from_utf8(name).ok())
            .and_then(|name| EventType::parse(name).ok())
            .ok_or(NO_CURSOR)
    }

    /// Cuts what [`rows_of`] asked for to a page; tells the cursor of the next one, if there is one.
    pub fn page<T>(
        self,
        mut rows: Vec<T>,
        limit: usize,
        id_of: impl FnOnce(&T) -> Uuid,
    ) -> (Vec<T>, Option<String>) {
        let has_more = rows.len() > limit;
        rows.truncate(limit);
        let last = rows.last().filter(|_| has_more).map(id_of);
        (rows, last.map(|id| self.after(id)))
    }
}

/// How many rows to read for a page: one more tells whether there is a next one.
pub fn rows_of(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1)
}

/// What makes a request the same as an earlier one with its key: what it makes, and its very bytes.
///
/// `owner` is the application that the key is unique in; `None` is the instance, whose keys no
/// application's collide with.
pub fn reservation<'a>(
    owner: impl Into<Option<ApplicationId>>,
    kind: &str,
    key: &'a IdempotencyKey,
    body: &[u8],
    result_id: Uuid,
) -> Reservation<'a> {
    let fingerprint =
        Sha256::new().chain_update(kind).chain_update([0]).chain_update(body).finalize().into();
    let application_id = owner.into().map_or(Uuid::nil(), ApplicationId::uuid);
    Reservation { application_id, key: key.as_str(), fingerprint, result_id }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cursors_are_read_back_and_made_up_ones_refused() {
        let event = EventId::new(1_795_219_200_000, [9; 10]);
        let read = |text: &str| Cursor::Events.read(text);
        assert_eq!(read(&Cursor::Events.after(event.uuid())), Ok(event.uuid()));
        let with = |version, list, uuid: Uuid| {
            URL_SAFE_NO_PAD.encode([&[version, list], uuid.as_bytes().as_slice()].concat())
        };
        assert_eq!(read(&with(CURSOR_VERSION, b'e', event.uuid())), Ok(event.uuid()));
        let others = [
            with(1, b'e', event.uuid()),
            Cursor::Applications.after(event.uuid()),
            with(CURSOR_VERSION, b'e', Uuid::from_u128(7)),
            event.to_string(),
        ];
        let made_up = ["", "x", "AAAA", "AgGZ1OASNHq8je8BI0VniQ", "evt_1", "é", "\0"];
        for bad in others.iter().map(String::as_str).chain(made_up) {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_query_makes_it_panic(query in "[a-z=&%+0-9#\\[\\]]{0,40}", cursor in ".{0,40}") {
            if let Ok(uri) = format!("/events?{query}").parse() {
                let _ = Parameters::of(&uri, &["limit", "cursor"]);
            }
            let _ = (Cursor::Events.read(&cursor), time(&cursor), limit(&cursor));
        }
    }
}
