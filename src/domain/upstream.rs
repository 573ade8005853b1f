//! The way that an event came, as far as the request that brings it says so.

use std::sync::Arc;

/// Header that counts the webhook dispatchers that an event has passed, the sender of the request
/// included. Lower case, as header maps want it.
pub const HOPS: &str = "x-webhook-hops";
/// Maximum number of dispatchers that an event passes before it comes to one that refuses it. A chain
/// of services is short; a subscription that leads back to its own service has no end.
pub const HOPS_MAX: u8 = 5;
/// Length of a `traceparent` of version 00.
const TRACEPARENT_BYTES: usize = 55;

/// The way that an event came.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Upstream {
    /// Number of dispatchers that it passed before this one, at most [`HOPS_MAX`].
    pub hops: u8,
    /// Its caller's trace, if the caller named one. Deliveries carry it on unchanged.
    pub traceparent: Option<TraceParent>,
}

/// A `traceparent` (W3C Trace Context, version 00), as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceParent(Arc<str>);

impl TraceParent {
    /// Reads a header's value. One that is not valid is none: the specification says to go on without.
    pub fn parse(text: &str) -> Option<Self> {
        let is_hex = |part: &str, length| {
            part.len() == length
                && part.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        };
        let is_id = |part: &str, length| is_hex(part, length) && part.bytes().any(|b| b != b'0');
        if text.len() != TRACEPARENT_BYTES {
            return None;
        }
        let mut parts = text.split('-');
        let (version, trace) = (parts.next()?, parts.next()?);
        let (parent, flags) = (parts.next()?, parts.next()?);
        let is_valid = version == "00" && is_id(trace, 32) && is_id(parent, 16) && is_hex(flags, 2);
        is_valid.then(|| Self(text.into()))
    }

    /// The value.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Reads the number of [`HOPS`]. A value that is no number is too many: nobody sends such a header but
/// a dispatcher.
pub fn hops(text: &str) -> u8 {
    text.parse().unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_valid_traceparent_is_carried_on() {
        for flags in ["00", "01", "ff"] {
            let good = format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}");
            assert_eq!(TraceParent::parse(&good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319-cb7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0é",
        ] {
            assert_eq!(TraceParent::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn hops_that_are_no_number_are_too_many() {
        assert_eq!((hops("0"), hops("5"), hops("6")), (0, 5, 6));
        for text in ["", "-1", "x", "1.0", "99999999999999999999"] {
            assert!(hops(text) > HOPS_MAX, "{text}");
        }
    }
}
