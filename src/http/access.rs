//! Who may call: the key of the settings, the keys of the applications, and what an open service
//! asks of its callers.

use std::{fmt, net::IpAddr, sync::Arc};

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, Method, header},
};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{ApiError, ApiState};
use crate::domain::{ApiKey, Principal};

/// Why an open service on loopback refuses a request by its `Host`.
pub const NOT_LOOPBACK: &str = "without ADMIN_API_KEY the service answers only to localhost, \
                                127.0.0.1, [::1] and the names in ALLOWED_HOSTS as `Host`";
/// Why a service that other machines reach refuses a request by its `Host`.
const UNKNOWN_HOST: &str = "this `Host` is not known: add its name to ALLOWED_HOSTS";
/// Why a request is refused that a proxy passed on.
const BEHIND_PROXY: &str = "without ADMIN_API_KEY requests through a proxy are refused: set \
                            ADMIN_API_KEY, or ALLOW_UNAUTHENTICATED=true and ALLOWED_HOSTS";
/// Why a request is refused that a web page made.
const CROSS_SITE: &str = "without ADMIN_API_KEY no web page of another origin may call";

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

/// Maximum number of names in `ALLOWED_HOSTS`.
pub const HOST_NAMES_MAX: usize = 100;
/// Maximum length of a host name (RFC 1035).
const HOST_NAME_BYTES_MAX: usize = 253;

/// The names in `ALLOWED_HOSTS`, in lower case, without ports.
#[derive(Debug, Clone, Default)]
pub struct HostNames(Arc<[String]>);

impl HostNames {
    /// Reads a list with commas between. The error completes "ALLOWED_HOSTS: …".
    pub fn parse(list: &str) -> Result<Self, String> {
        let names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
        let names = names.map(|name| {
            let is_sound = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
            let is_name = name.len() <= HOST_NAME_BYTES_MAX && name.bytes().all(is_sound);
            if is_name || without_port(name).parse::<IpAddr>().is_ok() {
                Ok(without_port(name).to_ascii_lowercase())
            } else {
                Err(format!("`{name}` is no host name without scheme, port and path"))
            }
        });
        let names: Vec<_> = names.collect::<Result<_, _>>()?;
        if names.len() > HOST_NAMES_MAX {
            return Err(format!("must be at most {HOST_NAMES_MAX} names"));
        }
        Ok(Self(names.into()))
    }

    /// Whether no name is listed.
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `host[:port]` is listed.
    fn contain(&self, authority: &str) -> bool {
        let host = without_port(authority);
        self.0.iter().any(|name| name.eq_ignore_ascii_case(host))
    }
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

/// Checks what a request says of where it comes from. Without a key that is all that keeps web pages
/// and proxies from acting as the operator. `is_public`: what is read is for anybody.
pub fn is_welcome(
    access: &Access,
    hosts: &HostNames,
    request: &Request,
    is_public: bool,
) -> Result<(), ApiError> {
    let headers = request.headers();
    let host = host(request);
    match access {
        Access::Key(_) if hosts.is_empty() => return Ok(()),
        Access::Key(_) | Access::Anybody => {
            if !host.is_some_and(|host| hosts.contain(host) || is_address(host)) {
                return Err(ApiError::Forbidden(UNKNOWN_HOST));
            }
        }
        Access::LoopbackOnly => {
            if !host.is_some_and(|host| hosts.contain(host) || is_loopback(host)) {
                return Err(ApiError::Forbidden(NOT_LOOPBACK));
            }
            if headers.keys().any(is_of_a_proxy) {
                return Err(ApiError::Forbidden(BEHIND_PROXY));
            }
        }
    }
    let has_key = matches!(access, Access::Key(_));
    let is_reading = matches!(*request.method(), Method::GET | Method::HEAD);
    let may_cross = has_key || (is_public && is_reading);
    if !may_cross && is_cross_site(headers, host) {
        return Err(ApiError::Forbidden(CROSS_SITE));
    }
    Ok(())
}

/// Whether a header says that a proxy passed the request on.
fn is_of_a_proxy(name: &HeaderName) -> bool {
    let name = name.as_str();
    matches!(name, "forwarded" | "via" | "x-real-ip") || name.starts_with("x-forwarded-")
}

/// Whether a browser says that the request was made by a page of another origin. Clients that are no
/// browsers send neither header.
fn is_cross_site(headers: &HeaderMap, host: Option<&str>) -> bool {
    let is_of_page = |value: &HeaderValue| value != "same-origin" && value != "none";
    if headers.get_all("sec-fetch-site").iter().any(is_of_page) {
        return true;
    }
    headers.get_all(header::ORIGIN).iter().any(|origin| {
        let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
        let is_same = |(scheme, origin): (&str, &str)| {
            matches!(scheme, "http" | "https")
                && host.is_some_and(|host| host.eq_ignore_ascii_case(origin))
        };
        !origin.is_some_and(is_same)
    })
}

/// Refuses what a web page sends that is not of this machine, whoever may call otherwise: the page may
/// have been given a name that points here (DNS rebinding).
pub fn is_no_web_page(hosts: &HostNames, headers: &HeaderMap) -> Result<(), ApiError> {
    if headers.contains_key(header::ORIGIN) && !is_from_known_host(hosts, headers) {
        return Err(ApiError::Forbidden("no web page of another origin may call this"));
    }
    Ok(())
}

/// Whether the `Origin`, there being one, is a page of this machine or of a host in `ALLOWED_HOSTS`.
fn is_from_known_host(hosts: &HostNames, headers: &HeaderMap) -> bool {
    let origin = headers.get(header::ORIGIN).and_then(|value| value.to_str().ok());
    let host = origin.and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
    host.is_some_and(|host| is_loopback(host) || hosts.contain(host))
}

/// The key that a request carries.
pub fn given_key(headers: &HeaderMap) -> Option<&str> {
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

/// The host of `host[:port]`, an IPv6 address without its brackets.
fn without_port(authority: &str) -> &str {
    let host = match authority.rsplit_once(':') {
        // An address of IPv6 has its colons in brackets here.
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !host.contains(':') => {
            host
        }
        Some((host, port)) if host.ends_with(']') && port.bytes().all(|b| b.is_ascii_digit()) => {
            host
        }
        _ => authority,
    };
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// Whether `host[:port]` names this machine's loopback.
fn is_loopback(authority: &str) -> bool {
    let host = without_port(authority);
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Whether `host[:port]` is an address or `localhost`: a web page can be given a name that points
/// here (DNS rebinding), and no address.
fn is_address(authority: &str) -> bool {
    let host = without_port(authority);
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok()
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
    fn listed_hosts_are_compared_without_port_and_case() {
        let hosts = HostNames::parse(" hooks.Example.com, dispatcher,,[2001:db8::1] ").unwrap();
        for good in
            ["hooks.example.com", "HOOKS.example.com:8000", "dispatcher:80", "[2001:db8::1]:80"]
        {
            assert!(hosts.contain(good), "{good}");
        }
        for bad in [
            "example.com",
            "a.hooks.example.com",
            "dispatcher.evil.example",
            "",
            ":80",
            "dispatcher:x",
        ] {
            assert!(!hosts.contain(bad), "{bad}");
        }
        assert!(HostNames::parse("").unwrap().is_empty());
        for bad in ["https://a.example", "a.example:80", "a/b", "*", "a b", "é"] {
            assert!(HostNames::parse(bad).unwrap_err().contains(bad), "{bad}");
        }
        assert!(HostNames::parse(&["a"; HOST_NAMES_MAX + 1].join(",")).is_err());
    }

    #[test]
    fn browser_headers_of_other_origins_are_cross_site() {
        let check = |headers: &[(&'static str, &str)]| {
            let headers = headers.iter().map(|(name, value)| {
                (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
            });
            is_cross_site(&headers.collect(), Some("localhost:8000"))
        };
        assert!(!check(&[]));
        for site in ["same-origin", "none"] {
            assert!(!check(&[("sec-fetch-site", site)]), "{site}");
        }
        for site in ["cross-site", "same-site", ""] {
            assert!(check(&[("sec-fetch-site", site)]), "{site}");
        }
        for origin in ["http://localhost:8000", "https://LOCALHOST:8000"] {
            assert!(!check(&[("origin", origin)]), "{origin}");
        }
        for origin in
            ["null", "", "http://localhost:3000", "http://localhost", "file://localhost:8000"]
        {
            assert!(check(&[("origin", origin)]), "{origin}");
        }
        assert!(check(&[("origin", "http://localhost:8000"), ("sec-fetch-site", "cross-site")]));
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
