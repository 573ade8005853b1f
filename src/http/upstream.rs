//! Reads the way that an event came from the headers of the request that brings it, and refuses what
//! goes in circles.

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderName, request::Parts},
};

use super::{
    ApiError,
    problem::{Place, Problem},
};
use crate::domain::upstream::{HOPS, HOPS_MAX, TraceParent, Upstream, hops};

/// The header's name, as messages show it.
const HOPS_SHOWN: &str = "X-Webhook-Hops";
/// See [`HOPS`].
pub const HOPS_HEADER: HeaderName = HeaderName::from_static(HOPS);
/// W3C Trace Context.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The way that the event of a request came.
pub struct Arrival(pub Upstream);

impl<S: Send + Sync> FromRequestParts<S> for Arrival {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let hops = counted(&parts.headers)?;
        let mut traces = parts.headers.get_all(&TRACEPARENT).iter();
        let traceparent = match (traces.next(), traces.next()) {
            (Some(value), None) => value.to_str().ok().and_then(TraceParent::parse),
            _ => None,
        };
        Ok(Self(Upstream { hops, traceparent }))
    }
}

/// A request that no delivery made: for operations that start deliveries and make no event, which
/// could count.
pub struct FirstHand;

impl<S: Send + Sync> FromRequestParts<S> for FirstHand {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        match counted(&parts.headers)? {
            0 => Ok(Self),
            _ => Err(ApiError::Loop("a delivery must not start other deliveries").at(place())),
        }
    }
}

/// Number of dispatchers that a request has passed, unless they are too many.
pub fn counted(headers: &HeaderMap) -> Result<u8, Problem> {
    // The largest counts, so that none can be hidden behind another.
    let counts =
        headers.get_all(&HOPS_HEADER).iter().map(|value| hops(value.to_str().unwrap_or("")));
    let hops = counts.max().unwrap_or_default();
    if hops > HOPS_MAX {
        let why = "the event has passed too many webhook dispatchers: a target leads back to a \
                   service that feeds it";
        return Err(ApiError::Loop(why).at(place()));
    }
    Ok(hops)
}

fn place() -> Place {
    Place::Header(HOPS_SHOWN.into())
}
