//! Who may call: the key of the settings, the keys of the applications, and what an open service
//! asks of its callers.

use std::{fmt, net::IpAddr};

use axum::{
    extract::Request,
    http::{HeaderMap, Method, header},
};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{ApiError, ApiState};
use crate::domain::{ApiKey, Principal};

/// Why an open service refuses a request by its `Host`.
pub const NOT_LOOPBACK: &str = "without ADMIN_API_KEY the service answers only to localhost, \
                                127.0.0.1 and [::1] as `Host`";

/// The key of the instance. Only its hash is kept.
#[derive(Clone)]
pub struct AdminKey([u8; 32]);

impl AdminKey {
    /// Takes the key as it is configured.
    pub fn new(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }

    /// Compares in constant time, whatever the lengths.
    fn matches(&self, given: &str) -> bool {
        let given: [u8; 32] = Sha256::digest(given.as_bytes()).into();
        self.0.ct_eq(&given).into()
    }
}

impl fmt::Debug for AdminKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminKey(redacted)")
    }
}

/// Whom the service answers.
#[derive(Debug, Clone)]
pub enum Access {
    /// Callers with the key.
    Key(AdminKey),
    /// Anybody on this machine, but no web page that a browser here shows: the service listens on
    /// loopback, and the `Host` must say so too, or a page could reach us under a name of its own
    /// that points to 127.0.0.1.
    LoopbackOnly,
    /// Anybody: the operator said so.
    Anybody,
}

/// The key that a request carries, if it may pass at all.
pub fn credentials(access: &Access, request: &Request) -> Result<Option<String>, ApiError> {
    is_welcome(access, request)?;
    Ok(given_key(request.headers()).map(str::to_owned))
}

/// Whom a key lets in. One of ours that is sent counts also where none is asked for: whoever brings it
/// means its application. Any other word is there as good as none.
pub async fn admit(state: &ApiState, given: Option<&str>) -> Result<Principal, ApiError> {
    match (given, &state.access) {
        (Some(given), Access::Key(key)) if key.matches(given) => Ok(Principal::OPERATOR),
        (Some(given), Access::LoopbackOnly | Access::Anybody)
            if !given.starts_with(ApiKey::PREFIX) =>
        {
            Ok(Principal::OPERATOR)
        }
        (Some(given), _) => {
            let principal = state.known.principal(&state.store, given).await?;
            principal.ok_or(ApiError::Unauthorized)
        }
        (None, Access::Key(_)) => Err(ApiError::Unauthorized),
        (None, Access::LoopbackOnly | Access::Anybody) => Ok(Principal::OPERATOR),
    }
}

/// What an open service asks of a request, whoever sends it.
fn is_welcome(access: &Access, request: &Request) -> Result<(), ApiError> {
    let headers = request.headers();
    match access {
        Access::Anybody | Access::Key(_) => {}
        Access::LoopbackOnly => {
            if !host(request).is_some_and(is_loopback) {
                return Err(ApiError::Forbidden(NOT_LOOPBACK));
            }
            // Browsers say where a request comes from; simple ones need no permission of ours.
            let may_change = request.method() != Method::GET;
            if may_change && headers.contains_key(header::ORIGIN) && !is_from_loopback(headers) {
                return Err(ApiError::Forbidden(
                    "without ADMIN_API_KEY no web page of another origin may call",
                ));
            }
        }
    }
    Ok(())
}

/// Refuses what a web page sends that is not of this machine, whoever may call otherwise: the page may
/// have been given a name that points here (DNS rebinding).
pub fn is_no_web_page(headers: &HeaderMap) -> Result<(), ApiError> {
    if headers.contains_key(header::ORIGIN) && !is_from_loopback(headers) {
        return Err(ApiError::Forbidden("no web page of another origin may call this"));
    }
    Ok(())
}

/// Whether the `Origin`, there being one, is a page of this machine.
fn is_from_loopback(headers: &HeaderMap) -> bool {
    let origin = headers.get(header::ORIGIN).and_then(|value| value.to_str().ok());
    let host = origin.and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
    host.is_some_and(is_loopback)
}

fn given_key(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    bearer.or_else(|| headers.get("x-api-key")?.to_str().ok())
}

/// The authority that the caller thinks it talks to: in the request line, or in `Host`.
fn host(request: &Request) -> Option<&str> {
    let from_header = || request.headers().get(header::HOST)?.to_str().ok();
    request.uri().authority().map(hyper::http::uri::Authority::as_str).or_else(from_header)
}

/// Whether `host[:port]` names this machine's loopback.
fn is_loopback(authority: &str) -> bool {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    };
    let address = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost")
        || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_loopback() {
        for good in
            ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "127.9.9.9", "[::1]:80", "[::1]"]
        {
            assert!(is_loopback(good), "{good}");
        }
        for bad in [
            "",
            ":8000",
            "example.com",
            "localhost.example.com",
            "127.0.0.1.nip.io:8000",
            "10.0.0.1",
            "[::2]:80",
            "0.0.0.0:8000",
            "127.0.0.1:x",
        ] {
            assert!(!is_loopback(bad), "{bad}");
        }
    }

    #[test]
    fn keys_are_compared_whole() {
        let key = AdminKey::new("correct horse");
        assert!(key.matches("correct horse"));
        for bad in ["", "correct", "correct horse ", "Correct horse"] {
            assert!(!key.matches(bad), "{bad}");
        }
        assert_eq!(format!("{key:?}"), "AdminKey(redacted)");
    }
}
