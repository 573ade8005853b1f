//! Which hosts an application may call, where its operator says so.
//!
//! Such a list narrows what may be called and never widens it: the addresses are vetted all the same.

use std::fmt;

use url::{Host, Url};

/// How many hosts a list may name.
pub const HOSTS_MAX: usize = 100;
/// How many bytes one of them may have: as many as a name of DNS.
pub const HOST_BYTES_MAX: usize = 253;
/// What stands before the name of a domain whose names below it are meant.
const BELOW: &str = "*.";

/// Why a list is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllowedHostsError {
    /// None, or over [`HOSTS_MAX`].
    #[error("must name 1 to {HOSTS_MAX} hosts; null allows all")]
    Count,
    /// Neither a host nor a domain.
    #[error("`{0}` is neither a host such as `hooks.example.com` nor `*.example.com`")]
    Malformed(String),
}

/// Why a target is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{host} is not among the hosts that this application may call; its `allowed_hosts` can allow it \
     (PATCH /applications/{{id}})"
)]
pub struct HostRefused {
    /// The host of the target.
    pub host: String,
}

/// The hosts that may be called: by name, by address, or all below a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedHosts(Vec<Allowed>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Allowed {
    /// This host, in the form that a URL's normal form gives it, without a dot at its end.
    Exactly(String),
    /// Names that end with this, which begins with a dot.
    Below(String),
}

impl AllowedHosts {
    /// Reads a list. A name is taken as a URL takes it: in any case, in any script.
    pub fn parse(texts: &[impl AsRef<str>]) -> Result<Self, AllowedHostsError> {
        if !(1..=HOSTS_MAX).contains(&texts.len()) {
            return Err(AllowedHostsError::Count);
        }
        texts.iter().map(|text| Allowed::parse(text.as_ref())).collect::<Result<_, _>>().map(Self)
    }

    /// A list on which no host is: what stands for one that cannot be read.
    pub fn none() -> Self {
        Self(Vec::new())
    }

    /// The hosts in their normal form, to be stored and shown.
    pub fn texts(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }

    /// Decides on a target.
    pub fn vet(&self, url: &Url) -> Result<(), HostRefused> {
        let host = url.host_str().unwrap_or_default();
        let host = host.strip_suffix('.').unwrap_or(host);
        let is_allowed = self.0.iter().any(|allowed| match allowed {
            Allowed::Exactly(name) => name == host,
            Allowed::Below(end) => host.len() > end.len() && host.ends_with(end),
        });
        if is_allowed { Ok(()) } else { Err(HostRefused { host: host.to_owned() }) }
    }
}

impl Allowed {
    fn parse(text: &str) -> Result<Self, AllowedHostsError> {
        let malformed = || AllowedHostsError::Malformed(text.chars().take(64).collect());
        let (is_below, name) = match text.strip_prefix(BELOW) {
            Some(name) => (true, name),
            None => (false, text),
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        let is_sound = text.len() <= HOST_BYTES_MAX && !name.contains(['*', '%']);
        let host = Host::parse(name).ok().filter(|_| is_sound).ok_or_else(malformed)?;
        match host {
            Host::Domain(name) if name.split('.').any(str::is_empty) => Err(malformed()),
            Host::Domain(name) if is_below => Ok(Self::Below(format!(".{name}"))),
            Host::Ipv4(_) | Host::Ipv6(_) if is_below => Err(malformed()),
            host => Ok(Self::Exactly(host.to_string())),
        }
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(name) => f.write_str(name),
            Self::Below(end) => write!(f, "*{end}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::TargetUrl;

    #[track_caller]
    fn check(hosts: &AllowedHosts, host: &str, is_allowed: bool) {
        let target = TargetUrl::parse(&format!("https://{host}/")).unwrap();
        let vetted = hosts.vet(target.url());
        assert_eq!(vetted.is_ok(), is_allowed, "{host}");
        if let Err(refused) = vetted {
            assert!(refused.to_string().contains("`allowed_hosts`"), "{refused}");
        }
    }

    #[test]
    fn a_list_means_hosts_and_all_below_a_domain() {
        let list =
            ["hooks.example.com", "*.Example.org.", "MÜNCHEN.example", "203.0.113.9", "[::1]"];
        let hosts = AllowedHosts::parse(&list).unwrap();
        let normal = [
            "hooks.example.com",
            "*.example.org",
            "xn--mnchen-3ya.example",
            "203.0.113.9",
            "[::1]",
        ];
        assert_eq!(hosts.texts(), normal);
        assert_eq!(AllowedHosts::parse(&normal).unwrap(), hosts);
        for host in [
            "hooks.example.com",
            "HOOKS.example.com.",
            "hooks.example.com:8443",
            "ｈooks.example.com",
            "a.example.org",
            "a.b.example.org.",
            "münchen.example",
            "xn--mnchen-3ya.example",
            "203.0.113.9",
            "0xcb007109",
            "203.0.113.9.",
            "[0:0::1]",
        ] {
            check(&hosts, host, true);
        }
        for host in [
            "example.com",
            "a.hooks.example.com",
            "hooks.example.com.evil.example",
            "xhooks.example.com",
            "example.org",
            "notexample.org",
            "example.org.evil.example",
            "203.0.113.8",
            "[::2]",
            "[::ffff:203.0.113.9]",
        ] {
            check(&hosts, host, false);
        }
        check(&AllowedHosts::none(), "hooks.example.com", false);
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for text in [
            "",
            "*",
            "*.",
            "*.*.example",
            "a*.example",
            "*example.com",
            "a..example",
            ".example.com",
            "example.com..",
            "https://example.com",
            "example.com:443",
            "example.com/",
            "user@example.com",
            "exa mple.com",
            "a%2eexample",
            "256.0.0.1",
            "*.127.0.0.1",
            "*.[::1]",
            "::1",
            &"a".repeat(254),
        ] {
            let refused = AllowedHosts::parse(&[text]).unwrap_err();
            assert!(matches!(refused, AllowedHostsError::Malformed(_)), "{text}");
        }
        let none: [&str; 0] = [];
        assert_eq!(AllowedHosts::parse(&none), Err(AllowedHostsError::Count));
        assert_eq!(AllowedHosts::parse(&["a"; 101]), Err(AllowedHostsError::Count));
    }
}
