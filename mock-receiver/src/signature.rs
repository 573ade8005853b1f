//! Whether a request was signed with our secret.
//!
//! Written from the specification (Standard Webhooks 1.0.0) and from the contract of
//! webhook-dispatcher, not from its code, and shares nothing with it. It has no clock: the time
//! is an argument.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use axum::http::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// How far `webhook-timestamp` may be from now, in either direction.
pub const TIMESTAMP_TOLERANCE: Duration = Duration::from_mins(5);

const ID: &str = "webhook-id";
const TIMESTAMP: &str = "webhook-timestamp";
const SIGNATURE: &str = "webhook-signature";
const HEX_TIMESTAMP: &str = "x-webhook-timestamp";
const HEX_SIGNATURE: &str = "x-webhook-signature";

/// The key that signatures must be made with. `Debug` does not show it.
///
/// Parsed from `whsec_` + base64 (standard alphabet, padded) of 24 to 64 bytes, which are the key;
/// of any other text the bytes of the text itself are the key.
#[derive(Clone)]
pub struct Secret(Box<[u8]>);

/// A secret must have at least one byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the secret must not be empty")]
pub struct EmptySecret;

/// Why a request does not count as signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The header is not there.
    #[error("the header {0} is missing")]
    Missing(&'static str),
    /// The header came more than once, so that others may read another value than we.
    #[error("the header {0} came more than once")]
    Repeated(&'static str),
    /// The header's value is not of the form that it must have.
    #[error("the header {0} is malformed")]
    Malformed(&'static str),
    /// `webhook-timestamp` is further from now than [`TIMESTAMP_TOLERANCE`].
    #[error("webhook-timestamp is more than {} seconds from now", TIMESTAMP_TOLERANCE.as_secs())]
    Stale,
    /// No signature in the header was made with our secret over this request.
    #[error("the header {0} holds no signature that matches")]
    Mismatch(&'static str),
}

/// Checks requests against one secret.
#[derive(Clone)]
pub struct Verifier {
    /// Holds the key already mixed in; cloned for each signature.
    keyed: Hmac<Sha256>,
}

impl Secret {
    /// Whether both are the same key. Not in constant time: for settings, not for signatures.
    #[cfg(test)]
    pub(crate) fn is_same_as(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl FromStr for Secret {
    type Err = EmptySecret;

    fn from_str(text: &str) -> Result<Self, EmptySecret> {
        if text.is_empty() {
            return Err(EmptySecret);
        }
        let decoded = text
            .strip_prefix("whsec_")
            .and_then(|base64| STANDARD.decode(base64).ok())
            .filter(|key| (24..=64).contains(&key.len()));
        Ok(Self(decoded.unwrap_or_else(|| text.as_bytes().to_vec()).into_boxed_slice()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

impl Verifier {
    /// Checks against this secret.
    pub fn new(secret: &Secret) -> Self {
        Self { keyed: Hmac::new_from_slice(&secret.0).expect("HMAC takes keys of any length") }
    }

    /// Checks both signatures, the Standard Webhooks one and `X-Webhook-Signature`; both must be
    /// good. `now_unix_s` is in seconds.
    pub fn verify(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        now_unix_s: u64,
    ) -> Result<(), SignatureError> {
        self.verify_standard(headers, body, now_unix_s)?;
        self.verify_hex(headers, body)
    }

    /// Standard Webhooks: any one of the `v1` signatures over `id.timestamp.body` will do, since
    /// there are several while keys rotate.
    fn verify_standard(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        now_unix_s: u64,
    ) -> Result<(), SignatureError> {
        let id = single(headers, ID)?;
        let timestamp = single(headers, TIMESTAMP)?;
        let signatures = single(headers, SIGNATURE)?;
        if id.is_empty() {
            return Err(SignatureError::Malformed(ID));
        }
        let signed_at_unix_s = unix_seconds(timestamp)?;
        if TIMESTAMP_TOLERANCE.as_secs() < now_unix_s.abs_diff(signed_at_unix_s) {
            return Err(SignatureError::Stale);
        }
        let signed = self.mac(&[id.as_bytes(), b".", timestamp.as_bytes(), b".", body]);
        let is_good = signatures
            .split(' ')
            .filter_map(|token| token.strip_prefix("v1,"))
            .filter_map(|base64| STANDARD.decode(base64).ok())
            .any(|signature| signed.clone().verify_slice(&signature).is_ok());
        if is_good { Ok(()) } else { Err(SignatureError::Mismatch(SIGNATURE)) }
    }

    /// `X-Webhook-Signature`: hex over the text of `X-Webhook-Timestamp`, as it came, and the body.
    fn verify_hex(&self, headers: &HeaderMap, body: &[u8]) -> Result<(), SignatureError> {
        let timestamp = single(headers, HEX_TIMESTAMP)?;
        let signature = single(headers, HEX_SIGNATURE)?;
        if !is_rfc3339_utc(timestamp) {
            return Err(SignatureError::Malformed(HEX_TIMESTAMP));
        }
        let signature = lower_hex(signature).ok_or(SignatureError::Malformed(HEX_SIGNATURE))?;
        self.mac(&[timestamp.as_bytes(), b".", body])
            .verify_slice(&signature)
            .map_err(|_| SignatureError::Mismatch(HEX_SIGNATURE))
    }

    /// The MAC over all parts in a row, not yet read: `verify_slice` compares it in constant time.
    fn mac(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = self.keyed.clone();
        for part in parts {
            mac.update(part);
        }
        mac
    }
}

/// The value of a header that must be there exactly once.
fn single<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<&'a str, SignatureError> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().ok_or(SignatureError::Missing(name))?;
    if values.next().is_some() {
        return Err(SignatureError::Repeated(name));
    }
    value.to_str().map_err(|_| SignatureError::Malformed(name))
}

/// Decimal digits only: `u64::from_str` would also take a sign.
fn unix_seconds(text: &str) -> Result<u64, SignatureError> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(SignatureError::Malformed(TIMESTAMP));
    }
    text.parse().map_err(|_| SignatureError::Malformed(TIMESTAMP))
}

/// Whether the text looks like `2026-01-31T23:59:59Z`, with or without a fraction, `Z` or
/// `+00:00`. Looks at the form only: the text is signed as text.
fn is_rfc3339_utc(text: &str) -> bool {
    let Some(local) = text.strip_suffix('Z').or_else(|| text.strip_suffix("+00:00")) else {
        return false;
    };
    let (seconds, fraction) = local.split_once('.').unwrap_or((local, "0"));
    let has_form = seconds.len() == "2026-01-31T23:59:59".len()
        && seconds.bytes().zip("0000-00-00T00:00:00".bytes()).all(|(byte, form)| match form {
            b'0' => byte.is_ascii_digit(),
            punctuation => byte == punctuation,
        });
    has_form && !fraction.is_empty() && fraction.bytes().all(|byte| byte.is_ascii_digit())
}

/// Decodes lower-case hex; upper case is against the contract.
fn lower_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect()
}

#[cfg(test)]
#[path = "signature_tests.rs"]
mod tests;
