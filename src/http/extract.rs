//! What a request says beside its body: paths, parameters and headers that fail as problems.

use axum::{
    extract::{FromRequestParts, OptionalFromRequestParts, Path},
    http::{Uri, request::Parts},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use url::form_urlencoded;
use uuid::Uuid;

use super::{
    ApiError, names,
    problem::{Place, Problem},
};
use crate::domain::EventId;

/// Items of one page, unless the caller asks otherwise, and at most.
pub const LIMIT_DEFAULT: usize = 50;
const LIMIT_MAX: usize = 250;

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

/// `Idempotency-Key`, if the request has one.
pub struct IdempotencyHeader(pub String);

impl IdempotencyHeader {
    /// The header's name, as messages show it.
    pub const NAME: &'static str = "Idempotency-Key";
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for IdempotencyHeader {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Problem> {
        let fault = |detail: &str| {
            let detail = format!("`{}` {detail}", Self::NAME);
            ApiError::Invalid(detail).at(Place::Header(Self::NAME))
        };
        let mut values = parts.headers.get_all(Self::NAME).iter();
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(fault("is given twice"));
        }
        let text = value.to_str().map_err(|_| fault("must be printable ASCII"))?;
        Ok(Some(Self(text.to_owned())))
    }
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

/// What a cursor begins with, so that a future form, and that of another list, can be told apart.
const CURSOR_VERSION: u8 = 2;
const EVENTS: u8 = b'e';

/// Where a page of events ended, as callers pass it back. Opaque to them.
pub fn cursor_of(event: EventId) -> String {
    let mut bytes = vec![CURSOR_VERSION, EVENTS];
    bytes.extend_from_slice(event.uuid().as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads a cursor.
pub fn event_of(cursor: &str) -> Result<EventId, &'static str> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).unwrap_or_default();
    bytes
        .strip_prefix(&[CURSOR_VERSION, EVENTS])
        .and_then(|uuid| Uuid::from_slice(uuid).ok())
        .filter(|uuid| uuid.get_version_num() == 7)
        .map(EventId::from_uuid)
        .ok_or("is not one that this list gave out")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cursors_are_read_back_and_made_up_ones_refused() {
        let event = EventId::new(1_795_219_200_000, [9; 10]);
        assert_eq!(event_of(&cursor_of(event)), Ok(event));
        let with = |version, list, uuid: Uuid| {
            URL_SAFE_NO_PAD.encode([&[version, list], uuid.as_bytes().as_slice()].concat())
        };
        assert_eq!(event_of(&with(CURSOR_VERSION, EVENTS, event.uuid())), Ok(event));
        let others = [
            with(1, EVENTS, event.uuid()),
            with(CURSOR_VERSION, b'd', event.uuid()),
            with(CURSOR_VERSION, EVENTS, Uuid::from_u128(7)),
            event.to_string(),
        ];
        let made_up = ["", "x", "AAAA", "AgGZ1OASNHq8je8BI0VniQ", "evt_1", "é", "\0"];
        for bad in others.iter().map(String::as_str).chain(made_up) {
            assert!(event_of(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_query_makes_it_panic(query in "[a-z=&%+0-9#\\[\\]]{0,40}", cursor in ".{0,40}") {
            if let Ok(uri) = format!("/events?{query}").parse() {
                let _ = Parameters::of(&uri, &["limit", "cursor"]);
            }
            let _ = (event_of(&cursor), time(&cursor), limit(&cursor));
        }
    }
}
