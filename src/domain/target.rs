//! Where a delivery goes: an http(s) URL that has been read and checked once.

use std::{fmt, net::IpAddr, sync::Arc};

use sha2::{Digest, Sha256};
use url::{Host, Url};
use uuid::Uuid;

use super::{
    RetryPolicy,
    ids::{ApplicationId, DeliveryId, LaneId},
    named_keys::KeyName,
    retry::RetryPolicyError,
    subscription::{CustomHeaders, Method, RetrySettings},
};

/// How many bytes a target URL may have.
pub const URL_BYTES_MAX: usize = 2_048;
/// Maximum length of a host name (RFC 1035), without the dot that may end it.
pub const HOST_BYTES_MAX: usize = 253;
/// Maximum length of one part of a host name.
pub const HOST_LABEL_BYTES_MAX: usize = 63;

/// Why a text is not a target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetUrlError {
    /// Over [`URL_BYTES_MAX`].
    #[error("is longer than {URL_BYTES_MAX} bytes")]
    TooLong,
    /// No absolute URL.
    #[error("is not an absolute URL: {0}")]
    Malformed(url::ParseError),
    /// Neither http nor https.
    #[error("must begin with http:// or https://")]
    Scheme,
    /// A user or a password, which would be sent to nobody and stored in the clear.
    #[error("must not contain a user or password; use a header instead")]
    Credentials,
    /// A `#fragment`, which no server ever sees.
    #[error("must not contain a fragment (`#…`)")]
    Fragment,
    /// Port 0.
    #[error("must not name port 0")]
    Port,
    /// A host name that no name server can know, such as that of an unfilled template.
    #[error(
        "has a host that is not a host name: parts of 1 to {HOST_LABEL_BYTES_MAX} letters, digits, `_` \
         and (inside) `-`, joined by dots, at most {HOST_BYTES_MAX} characters"
    )]
    Host,
}

/// An absolute http(s) URL without credentials or fragment, in the WHATWG normal form: a host
/// that is an IPv4 address in any spelling (`0x7f.1`, `2130706433`) has become dotted decimal.
#[derive(Clone, PartialEq, Eq)]
pub struct TargetUrl(Url);

impl TargetUrl {
    /// Reads a target that somebody names: one that can be called.
    pub fn parse(text: &str) -> Result<Self, TargetUrlError> {
        let target = Self::from_stored(text)?;
        if target.0.domain().is_some_and(|name| !is_host_name(name)) {
            return Err(TargetUrlError::Host);
        }
        Ok(target)
    }

    /// Reads a target that was accepted before, perhaps by a version that did not check host names.
    pub fn from_stored(text: &str) -> Result<Self, TargetUrlError> {
        if text.len() > URL_BYTES_MAX {
            return Err(TargetUrlError::TooLong);
        }
        let url = Url::parse(text).map_err(TargetUrlError::Malformed)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(TargetUrlError::Scheme);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(TargetUrlError::Credentials);
        }
        if url.fragment().is_some() {
            return Err(TargetUrlError::Fragment);
        }
        if url.port() == Some(0) {
            return Err(TargetUrlError::Port);
        }
        // The normal form can be longer than what came: percent-encoding triples a byte.
        if url.as_str().len() > URL_BYTES_MAX {
            return Err(TargetUrlError::TooLong);
        }
        Ok(Self(url))
    }

    /// The URL in its normal form.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The parsed URL.
    pub fn url(&self) -> &Url {
        &self.0
    }

    /// Whether the exchange is encrypted.
    pub fn is_https(&self) -> bool {
        self.0.scheme() == "https"
    }

    /// The address, if the host is one rather than a name. No resolver ever sees such a host.
    pub fn literal_address(&self) -> Option<IpAddr> {
        literal_address(&self.0)
    }

    /// Whether the host is a name of this machine (RFC 6761), which is resolved without asking anybody.
    pub fn is_localhost(&self) -> bool {
        let name = self.0.domain().unwrap_or_default();
        let name = name.strip_suffix('.').unwrap_or(name);
        name == "localhost" || name.ends_with(".localhost")
    }

    /// The lane of explicit targets at this origin (scheme, host, port) within an application:
    /// a UUIDv8 made of their hash, since targets have no table that could number them.
    pub fn lane(&self, application: ApplicationId) -> LaneId {
        let mut hash = Sha256::new();
        hash.update(application.uuid().as_bytes());
        hash.update(self.0.scheme().as_bytes());
        hash.update(b"://");
        hash.update(self.0.host_str().unwrap_or_default().as_bytes());
        hash.update(self.0.port_or_known_default().unwrap_or_default().to_be_bytes());
        lane_of(hash)
    }

    /// The lane of this URL within an application, while it is not served in that of its origin: made
    /// like [`Self::lane`].
    pub fn url_lane(&self, application: ApplicationId) -> LaneId {
        let mut hash = Sha256::new();
        hash.update(application.uuid().as_bytes());
        hash.update(b"url ");
        hash.update(self.0.as_str());
        lane_of(hash)
    }
}

fn lane_of(hash: Sha256) -> LaneId {
    let digest = hash.finalize();
    let bytes: [u8; 16] = digest[..16].try_into().expect("a SHA-256 digest has 32 bytes");
    LaneId::from_uuid(uuid::Builder::from_custom_bytes(bytes).into_uuid())
}

/// A target with all that its request says about it.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTarget {
    /// Where it is.
    pub url: TargetUrl,
    /// How it is called. Targets of one request may share it.
    pub settings: Arc<TargetSettings>,
}

/// How an explicit target is called, where the request says more than its URL.
#[derive(Debug, Clone, PartialEq)]
pub struct TargetSettings {
    /// The method.
    pub method: Method,
    /// Headers beside ours. They may carry credentials.
    pub headers: CustomHeaders,
    /// What signs, if not the application's own key.
    pub signing_key: Option<KeyName>,
    /// When a failed delivery is tried again; `None`: never.
    pub retry: Option<RetrySettings>,
    policy: RetryPolicy,
}

impl TargetSettings {
    /// Settings whose policy, if there is one, is possible.
    pub fn new(
        method: Method,
        headers: CustomHeaders,
        signing_key: Option<KeyName>,
        retry: Option<RetrySettings>,
    ) -> Result<Self, RetryPolicyError> {
        let policy =
            retry.as_ref().map_or_else(|| Ok(RetryPolicy::once()), RetrySettings::policy)?;
        Ok(Self { method, headers, signing_key, retry, policy })
    }

    /// When a failed delivery is tried again.
    pub fn policy(&self) -> &RetryPolicy {
        &self.policy
    }
}

/// What the sealed headers of an explicit target are bound to (see [`super::sealing`]).
pub fn sealed_headers_of(id: DeliveryId) -> Vec<u8> {
    format!("target headers {id}").into_bytes()
}

/// Reports if a resolver and TLS can look for this name. Underscores are no part of host names
/// (RFC 1123), but Compose and Kubernetes give such names.
fn is_host_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let is_label = |label: &str| {
        (1..=HOST_LABEL_BYTES_MAX).contains(&label.len())
            && label.bytes().all(is_inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= HOST_BYTES_MAX && name.split('.').all(is_label)
}

/// The address, if the host of a URL is one rather than a name.
pub fn literal_address(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Ipv4(ip) => Some(ip.into()),
        Host::Ipv6(ip) => Some(ip.into()),
        Host::Domain(_) => None,
    }
}

impl fmt::Debug for TargetUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl fmt::Display for TargetUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

/// The lane of a subscription is the subscription itself.
impl From<super::ids::SubscriptionId> for LaneId {
    fn from(id: super::ids::SubscriptionId) -> Self {
        let uuid: Uuid = id.uuid();
        LaneId::from_uuid(uuid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::DEFAULT_APPLICATION;

    #[track_caller]
    fn check(text: &str, expected: Result<&str, TargetUrlError>) {
        let got = TargetUrl::parse(text).map(|target| target.as_str().to_owned());
        assert_eq!(got, expected.map(str::to_owned), "{text}");
    }

    #[test]
    fn only_plain_http_urls_are_targets() {
        check("http://example.com", Ok("http://example.com/"));
        check("HTTPS://Example.COM:443/a?b=c", Ok("https://example.com/a?b=c"));
        check("ftp://example.com/", Err(TargetUrlError::Scheme));
        check("file:///etc/passwd", Err(TargetUrlError::Scheme));
        check("https://user@example.com/", Err(TargetUrlError::Credentials));
        check("https://:secret@example.com/", Err(TargetUrlError::Credentials));
        check("https://example.com/#top", Err(TargetUrlError::Fragment));
        check("http://example.com:0/", Err(TargetUrlError::Port));
        let label = "x".repeat(HOST_LABEL_BYTES_MAX);
        for host in [
            "hooks.{{tenant}}.example.com",
            "a..example",
            ".example",
            ".",
            "a.example..",
            "*.example",
            "-a.example",
            "a-.example",
            "a!b.example",
            &format!("{label}x.example"),
            &format!("{}.example", [label.as_str(); 4].join(".")),
        ] {
            check(&format!("https://{host}/x"), Err(TargetUrlError::Host));
            let stored = TargetUrl::from_stored(&format!("https://{host}/x"));
            assert!(stored.is_ok(), "{host}: accepted by earlier versions");
        }
        check("https://xn--a/", Err(TargetUrlError::Malformed(url::ParseError::IdnaError)));
        check("http://my_service:80/", Ok("http://my_service/"));
        check("http://_a.b_c.example./", Ok("http://_a.b_c.example./"));
        check("http://Bücher.example/", Ok("http://xn--bcher-kva.example/"));
        check(&format!("http://{label}.example/"), Ok(&format!("http://{label}.example/")));
        check("/path", Err(TargetUrlError::Malformed(url::ParseError::RelativeUrlWithoutBase)));
        check("http://", Err(TargetUrlError::Malformed(url::ParseError::EmptyHost)));
        check(&format!("http://a/{}", "x".repeat(2_048)), Err(TargetUrlError::TooLong));
        check(&format!("http://a/{}", "é".repeat(1_000)), Err(TargetUrlError::TooLong));
    }

    #[test]
    fn every_spelling_of_an_address_is_a_literal() {
        for text in [
            "http://127.0.0.1/",
            "http://2130706433/",
            "http://0x7f000001/",
            "http://0177.0.0.1/",
            "http://127.1/",
            "http://127.0.0.1./",
            "http://１２７.0.0.1/",
        ] {
            let target = TargetUrl::parse(text).unwrap();
            assert_eq!(target.literal_address(), Some([127, 0, 0, 1].into()), "{text}");
        }
        let v6 = TargetUrl::parse("http://[::ffff:7f00:1]/").unwrap();
        assert_eq!(v6.literal_address(), Some("::ffff:127.0.0.1".parse().unwrap()));
        assert_eq!(TargetUrl::parse("http://localhost/").unwrap().literal_address(), None);
    }

    #[test]
    fn a_lane_is_an_origin_within_an_application() {
        let lane = |text: &str| TargetUrl::parse(text).unwrap().lane(DEFAULT_APPLICATION);
        assert_eq!(lane("https://a.example/1"), lane("https://A.example:443/2?q"));
        assert_ne!(lane("https://a.example/"), lane("http://a.example/"));
        assert_ne!(lane("https://a.example/"), lane("https://a.example:8443/"));
        let other = ApplicationId::from_uuid(Uuid::from_u128(7));
        assert_ne!(
            TargetUrl::parse("https://a.example/").unwrap().lane(other),
            lane("https://a.example/")
        );
    }
}
