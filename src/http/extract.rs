//! Reading requests: bodies and parameters that fail as problems.

use std::time::Duration;

use axum::{
    body::Body,
    extract::{FromRequestParts, OptionalFromRequestParts, Path, Request},
    http::{HeaderMap, header, request::Parts},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::{Deserialize, de::DeserializeOwned};
use uuid::Uuid;

use super::ApiError;
use crate::domain::EventId;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Items of one page, unless the caller asks otherwise, and at most.
const LIMIT_DEFAULT: usize = 50;
const LIMIT_MAX: usize = 250;

/// Reads the body of a request that must be JSON.
pub async fn json_body(request: Request, bytes_max: usize) -> Result<Bytes, ApiError> {
    if !is_json(request.headers()) {
        return Err(ApiError::NotJson);
    }
    let body: Limited<Body> = Limited::new(request.into_body(), bytes_max);
    let collected = tokio::time::timeout(BODY_TIMEOUT, body.collect())
        .await
        .map_err(|_| ApiError::TooSlow)?
        .map_err(|error| {
            if error.is::<LengthLimitError>() {
                ApiError::TooLarge { bytes_max }
            } else {
                ApiError::Malformed("the body broke off".to_owned())
            }
        })?;
    Ok(collected.to_bytes())
}

/// Parses JSON. What is no JSON at all and what is other JSON than asked for are told apart.
pub fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => ApiError::Invalid(error.to_string()),
        _ => ApiError::Malformed(error.to_string()),
    })
}

/// How long a part of a body may be to be copied in any case: a buffer of the HTTP server, of which
/// a small body is a slice, is no smaller.
const COPIED_BYTES_MAX: usize = 8 * 1024;

/// A part of a body, to be kept after the request: a slice, unless that would keep far more in
/// memory than it shows, such as a mebibyte of blanks around one digit.
pub fn part_of(body: &Bytes, part: &str) -> Bytes {
    if part.len() <= COPIED_BYTES_MAX || part.len() < body.len() / 2 {
        Bytes::copy_from_slice(part.as_bytes())
    } else {
        body.slice_ref(part.as_bytes())
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()) else {
        return false;
    };
    let essence = value.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
        || (essence.len() > 5 && essence[essence.len() - 5..].eq_ignore_ascii_case("+json"))
}

/// Query parameters; unknown ones are refused by name.
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = axum::extract::Query::<T>::from_request_parts(parts, state).await;
        query.map(|query| Self(query.0)).map_err(|error| ApiError::Invalid(error.body_text()))
    }
}

/// The event that a path names. What cannot be an id, bytes that are no text included, names none.
pub struct EventPath(pub EventId);

impl<S: Send + Sync> FromRequestParts<S> for EventPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = <Path<String> as FromRequestParts<S>>::from_request_parts(parts, state).await;
        let id = path.ok().and_then(|Path(id)| id.parse().ok());
        id.map(Self).ok_or(ApiError::EventNotFound)
    }
}

/// `Idempotency-Key`, if the request has one.
pub struct IdempotencyHeader(pub String);

impl<S: Send + Sync> OptionalFromRequestParts<S> for IdempotencyHeader {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, ApiError> {
        let Some(value) = parts.headers.get("idempotency-key") else { return Ok(None) };
        let text = value.to_str().map_err(|_| {
            ApiError::Invalid("`Idempotency-Key` must be printable ASCII".to_owned())
        })?;
        Ok(Some(Self(text.to_owned())))
    }
}

/// The size of a page.
pub fn limit(asked: Option<usize>) -> Result<usize, ApiError> {
    match asked {
        None => Ok(LIMIT_DEFAULT),
        Some(limit) if (1..=LIMIT_MAX).contains(&limit) => Ok(limit),
        Some(_) => Err(ApiError::Invalid(format!("`limit` must be 1 to {LIMIT_MAX}"))),
    }
}

/// What a cursor begins with, so that a future form can be told apart.
const CURSOR_VERSION: u8 = 1;

/// Where a page ended, as callers pass it back. Opaque to them.
pub fn cursor_of(event: EventId) -> String {
    let mut bytes = vec![CURSOR_VERSION];
    bytes.extend_from_slice(event.uuid().as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads a cursor.
pub fn event_of(cursor: &str) -> Result<EventId, ApiError> {
    URL_SAFE_NO_PAD
        .decode(cursor)
        .ok()
        .filter(|bytes| bytes.first() == Some(&CURSOR_VERSION))
        .and_then(|bytes| Uuid::from_slice(&bytes[1..]).ok())
        .map(EventId::from_uuid)
        .ok_or_else(|| {
            ApiError::Invalid("`cursor` is not one that this service gave out".to_owned())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_read_back_and_made_up_ones_refused() {
        let event = EventId::new(1_795_219_200_000, [9; 10]);
        assert_eq!(event_of(&cursor_of(event)), Ok(event));
        for bad in ["", "x", "AAAA", "AgGZ1OASNHq8je8BI0VniQ", "evt_1", "é"] {
            assert!(event_of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_small_part_of_a_body_does_not_keep_all_of_it() {
        #[track_caller]
        fn check(part_bytes: usize, body_bytes: usize, is_slice: bool) {
            let body = Bytes::from(vec![b'x'; body_bytes]);
            let part = part_of(&body, std::str::from_utf8(&body[..part_bytes]).unwrap());
            assert_eq!(part, body[..part_bytes]);
            assert_eq!(part.as_ptr() == body.as_ptr(), is_slice);
        }
        check(1, 1024 * 1024, false);
        check(500 * 1024, 1024 * 1024, false);
        check(1024 * 1024, 1024 * 1024 + 100, true);
        check(100, 120, false);
    }

    #[test]
    fn json_is_what_says_so() {
        let check = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
            is_json(&headers)
        };
        for good in ["application/json", "Application/JSON; charset=utf-8", "application/x+json"] {
            assert!(check(good), "{good}");
        }
        for bad in ["text/plain", "application/x-www-form-urlencoded", "json", "+json", ""] {
            assert!(!check(bad), "{bad}");
        }
        assert!(!is_json(&HeaderMap::new()));
    }
}
