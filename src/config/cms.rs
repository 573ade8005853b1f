//! The `PAYLOAD_…` settings: the CMS that keeps subscriptions and the log, if there is one.

use std::time::Duration;

use http::HeaderValue;
use url::Url;

use super::{
    check::{ConfigError, bad, set},
    settings::Settings,
};
use crate::{
    cms::{CmsSettings, SubscriptionsIn},
    domain::{Uid, ids::DEFAULT_APPLICATION, named_keys::DEFAULT_OWNER},
    store::applications::ApplicationName,
};

/// What the routes of Payload's API begin with, unless its configuration says otherwise.
const API_PATH: &str = "/api";
/// How many bytes the name of a collection may have.
const COLLECTION_BYTES_MAX: usize = 100;
/// The bounds of `PAYLOAD_POLL_INTERVAL`, and of `PAYLOAD_TIMEOUT`, in seconds.
const POLL_SECONDS: std::ops::RangeInclusive<f64> = 1.0..=3_600.0;
const TIMEOUT_SECONDS: std::ops::RangeInclusive<f64> = 0.1..=60.0;

impl Settings {
    /// The CMS, if there is one. `key` is `PAYLOAD_API_KEY`.
    pub(super) fn cms(&self, key: Option<&str>) -> Result<Option<CmsSettings>, ConfigError> {
        let url = set(self.payload_url.as_deref());
        let (url, key) = match (url, key) {
            (None, None) => return Ok(None),
            (Some(_), None) => {
                return Err(bad("PAYLOAD_API_KEY", "must be set where PAYLOAD_URL is"));
            }
            (None, Some(_)) => {
                return Err(bad("PAYLOAD_URL", "must be set where PAYLOAD_API_KEY is"));
            }
            (Some(url), Some(key)) => (url, key),
        };
        let users = collection("PAYLOAD_USERS", &self.payload_users)?;
        let users = users.ok_or_else(|| bad("PAYLOAD_USERS", "must name a collection"))?;
        let subscriptions = collection("PAYLOAD_SUBSCRIPTIONS", &self.payload_subscriptions)?;
        let deliveries = collection("PAYLOAD_DELIVERIES", &self.payload_deliveries)?;
        if subscriptions.is_none() && deliveries.is_none() {
            return Err(bad(
                "PAYLOAD_URL",
                "is set, but both PAYLOAD_SUBSCRIPTIONS and PAYLOAD_DELIVERIES are empty",
            ));
        }
        let poll_interval =
            within("PAYLOAD_POLL_INTERVAL", self.payload_poll_interval.duration(), &POLL_SECONDS)?;
        Ok(Some(CmsSettings {
            api: api(url)?,
            authorization: authorization(&users, key)?,
            users,
            timeout: within("PAYLOAD_TIMEOUT", self.payload_timeout.duration(), &TIMEOUT_SECONDS)?,
            application: application(&self.payload_application)?,
            subscriptions: subscriptions
                .map(|collection| SubscriptionsIn { collection, poll_interval }),
            deliveries,
            trust: self.trust()?,
        }))
    }

    /// How old what waits to be told to the CMS may become.
    pub(super) fn cms_log_age_max(&self, history: Duration) -> Result<Duration, ConfigError> {
        let age_max = self.payload_log_age_max.duration();
        if age_max > history && set(self.payload_url.as_deref()).is_some() {
            return Err(bad("PAYLOAD_LOG_AGE_MAX", "must not be above RETENTION_DAYS"));
        }
        Ok(age_max)
    }
}

/// What the routes begin with: the path of the URL, if it has one.
fn api(text: &str) -> Result<Url, ConfigError> {
    let refuse = |reason| Err(bad("PAYLOAD_URL", reason));
    let Ok(mut url) = text.parse::<Url>() else {
        return refuse("must be a URL such as https://cms.example.com");
    };
    if !matches!(url.scheme(), "http" | "https") {
        return refuse("must begin with http:// or https://");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return refuse("must hold no password: the key belongs into PAYLOAD_API_KEY");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return refuse("must have no `?` and no `#`");
    }
    if url.path() == "/" {
        url.set_path(API_PATH);
    }
    Ok(url)
}

/// What Payload expects: the collection whose key it is, and the key.
fn authorization(users: &str, key: &str) -> Result<HeaderValue, ConfigError> {
    let mut value = HeaderValue::try_from(format!("{users} API-Key {key}"))
        .ok()
        .filter(|value| value.to_str().is_ok())
        .ok_or_else(|| bad("PAYLOAD_API_KEY", "must be printable ASCII"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The name of a collection; `None` if it is empty.
fn collection(variable: &'static str, text: &str) -> Result<Option<String>, ConfigError> {
    let Some(name) = set(Some(text)) else { return Ok(None) };
    let is_sound = name.len() <= COLLECTION_BYTES_MAX
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    if is_sound {
        Ok(Some(name.to_owned()))
    } else {
        let reason =
            format!("must be 1 to {COLLECTION_BYTES_MAX} letters, digits, `_` and `-`: its slug");
        Err(bad(variable, reason))
    }
}

fn application(text: &str) -> Result<ApplicationName, ConfigError> {
    let name = text.trim();
    if name == DEFAULT_OWNER {
        return Ok(ApplicationName::Id(DEFAULT_APPLICATION));
    }
    if let Ok(id) = name.parse() {
        return Ok(ApplicationName::Id(id));
    }
    Uid::parse(name)
        .map(ApplicationName::Uid)
        .map_err(|_| bad("PAYLOAD_APPLICATION", "names no application by its id or its uid"))
}

fn within(
    variable: &'static str,
    value: Duration,
    seconds: &std::ops::RangeInclusive<f64>,
) -> Result<Duration, ConfigError> {
    if seconds.contains(&value.as_secs_f64()) {
        Ok(value)
    } else {
        let reason = format!("must be {} to {} seconds", seconds.start(), seconds.end());
        Err(bad(variable, reason))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::check::tests::check, *};

    const BOTH: [&str; 2] = ["--payload-url=https://cms.example.com", "--payload-api-key=k3y"];

    fn cms(more: &[&str]) -> CmsSettings {
        *check(&[&BOTH, more].concat()).unwrap().cms.unwrap()
    }

    #[track_caller]
    fn refused(flags: &[&str], variables: &[&str]) {
        let message = check(flags).unwrap_err().to_string();
        for variable in variables {
            assert!(message.contains(variable), "{variable}: {message}");
        }
        assert!(!message.contains("k3y"), "it was shown: {message}");
    }

    #[test]
    fn without_a_url_and_a_key_there_is_no_cms() {
        assert!(check(&[]).unwrap().cms.is_none());
        assert!(check(&["--payload-url= ", "--payload-api-key="]).unwrap().cms.is_none());
        refused(&BOTH[..1], &["PAYLOAD_API_KEY", "PAYLOAD_URL"]);
        refused(&BOTH[1..], &["PAYLOAD_API_KEY", "PAYLOAD_URL"]);
    }

    #[test]
    fn the_key_is_sent_as_payload_expects_it_and_not_shown() {
        let settings = cms(&["--payload-users=robots"]);
        assert_eq!(settings.authorization, "robots API-Key k3y");
        assert!(!format!("{settings:?}").contains("k3y"));
        assert_eq!(cms(&[]).authorization, "users API-Key k3y");
        refused(&[BOTH[0], "--payload-api-key=k3y\u{e9}"], &["PAYLOAD_API_KEY"]);
        refused(&[BOTH[0], BOTH[1], "--payload-users="], &["PAYLOAD_USERS"]);
    }

    #[test]
    fn the_api_is_where_the_url_says_or_under_api() {
        for (given, expected) in [
            ("https://cms.example.com", "https://cms.example.com/api"),
            ("http://127.0.0.1:3000/", "http://127.0.0.1:3000/api"),
            ("https://example.com/cms/api", "https://example.com/cms/api"),
        ] {
            assert_eq!(cms(&[&format!("--payload-url={given}")]).api.as_str(), expected);
        }
        for given in ["cms.example.com", "ftp://x", "http://a:k3y@x", "http://x?a=b", "http://x/#a"]
        {
            refused(&[BOTH[1], &format!("--payload-url={given}")], &["PAYLOAD_URL"]);
        }
    }

    #[test]
    fn an_empty_collection_turns_its_half_off() {
        let both = cms(&[]);
        assert_eq!(both.subscriptions.unwrap().collection, "webhookSubscriptions");
        assert_eq!(both.deliveries.as_deref(), Some("webhookDeliveries"));
        assert!(cms(&["--payload-subscriptions="]).subscriptions.is_none());
        assert!(cms(&["--payload-deliveries="]).deliveries.is_none());
        let neither = [BOTH[0], BOTH[1], "--payload-subscriptions=", "--payload-deliveries="];
        refused(&neither, &["PAYLOAD_URL", "PAYLOAD_SUBSCRIPTIONS", "PAYLOAD_DELIVERIES"]);
        for slug in ["a/b", "a b", "ä"] {
            let flag = format!("--payload-deliveries={slug}");
            refused(&[BOTH[0], BOTH[1], &flag], &["PAYLOAD_DELIVERIES"]);
        }
    }

    #[test]
    fn it_belongs_to_one_application() {
        let of = |name: &str| cms(&[&format!("--payload-application={name}")]).application;
        assert_eq!(cms(&[]).application, ApplicationName::Id(DEFAULT_APPLICATION));
        assert_eq!(of("acme"), ApplicationName::Uid(Uid::parse("acme").unwrap()));
        let id = format!("app_{}", "7".repeat(32));
        assert_eq!(of(&id), ApplicationName::Id(id.parse().unwrap()));
        refused(&[BOTH[0], BOTH[1], "--payload-application=a b"], &["PAYLOAD_APPLICATION"]);
    }

    #[test]
    fn times_are_bounded() {
        for (flag, variable) in [
            ("--payload-poll-interval=0.9", "PAYLOAD_POLL_INTERVAL"),
            ("--payload-poll-interval=3601", "PAYLOAD_POLL_INTERVAL"),
            ("--payload-timeout=0.01", "PAYLOAD_TIMEOUT"),
            ("--payload-timeout=61", "PAYLOAD_TIMEOUT"),
            ("--payload-log-age-max=31", "PAYLOAD_LOG_AGE_MAX"),
        ] {
            refused(&[BOTH[0], BOTH[1], flag], &[variable]);
        }
        check(&["--delivery-age-max=5", "--retention-days=6.5"]).unwrap();
        let poll = cms(&["--payload-poll-interval=1"]).subscriptions.unwrap().poll_interval;
        assert_eq!(poll, Duration::from_secs(1));
    }
}
