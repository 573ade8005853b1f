//! The settings, checked as a whole: a contradiction stops the start and names the variable.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use ipnet::IpNet;
use sqlx::postgres::PgConnectOptions;

use super::settings::{DEFAULT_SECRET, Days, Role, Settings};
use crate::{
    domain::{
        RetryPolicy, SigningKey, TargetUrl, address::AddressPolicy, retry::RetryPolicyError,
        signature::SigningKeys,
    },
    http::{Access, AdminKey},
    store::partitions::Retention,
};

const DEFAULT_BIND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8000);
const DEFAULT_LOCAL_TARGET: &str = "http://127.0.0.1:8080/webhook";
/// What the local default allows to be called beside public addresses.
const LOCAL_CIDRS: &str = "127.0.0.0/8,::1/128";
/// The bounds of `REQUEST_BODY_MAX` and `RESPONSE_BODY_MAX`, in bytes.
const REQUEST_BODY_BYTES: std::ops::RangeInclusive<usize> = 1_024..=64 * 1024 * 1024;
const RESPONSE_BODY_BYTES: std::ops::RangeInclusive<usize> = 0..=1024 * 1024;
/// The bounds of `HTTP_TIMEOUT`, in seconds.
const HTTP_TIMEOUT_SECONDS: std::ops::RangeInclusive<f64> = 0.1..=300.0;

/// Where the database is.
#[derive(Debug, Clone)]
pub enum Database {
    /// Elsewhere.
    External(Box<PgConnectOptions>),
    /// Started by us, with its data in this folder.
    Private {
        /// `DATA_DIR`.
        data_dir: PathBuf,
        /// `PATH`, to find the binaries.
        path: Option<std::ffi::OsString>,
    },
}

/// The settings, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the database is.
    pub database: Database,
    /// The address to serve on.
    pub bind: SocketAddr,
    /// What this process does.
    pub role: Role,
    /// Who may call.
    pub access: Access,
    /// What signs explicit targets.
    pub signing_keys: SigningKeys,
    /// Whether that is the secret that everybody knows.
    pub signs_with_default_secret: bool,
    /// The target of an event that names none.
    pub target_url: Option<TargetUrl>,
    /// Which addresses may be called.
    pub addresses: AddressPolicy,
    /// The backstop of the queue.
    pub poll_interval: Duration,
    /// The deadline over one exchange.
    pub http_timeout: Duration,
    /// When failed deliveries are tried again.
    pub retry: RetryPolicy,
    /// The bound on `Retry-After`.
    pub retry_after_max: Duration,
    /// The age at which a delivery is given up.
    pub delivery_age_max: Duration,
    /// Requests under way in all.
    pub in_flight_max: usize,
    /// Requests under way to one lane.
    pub lane_in_flight_max: usize,
    /// How long the history is kept.
    pub retention: Retention,
    /// Bytes of a request's body.
    pub request_body_max: usize,
    /// Bytes of an answer's body.
    pub response_body_max: usize,
    /// How long requests under way may finish at the end.
    pub shutdown_grace: Duration,
}

/// Why the service does not start. Each names the variable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value that cannot be read.
    #[error("{variable}: {reason}")]
    Value {
        /// The variable.
        variable: &'static str,
        /// What is wrong with it. Never the value of a secret.
        reason: String,
    },
    /// Open to others, without a key.
    #[error(
        "BIND ({0}) is open to other machines, and ADMIN_API_KEY is not set: set it, bind to \
         127.0.0.1, or say ALLOW_UNAUTHENTICATED=true"
    )]
    Open(SocketAddr),
    /// A key, and the secret that everybody knows.
    #[error("ADMIN_API_KEY is set, but WEBHOOK_SECRET is still `{DEFAULT_SECRET}`: set it too")]
    DefaultSecret,
    /// A key, and no key.
    #[error("ADMIN_API_KEY and ALLOW_UNAUTHENTICATED=true contradict each other")]
    KeyAndNoKey,
    /// Deliveries would expire before their last attempt.
    #[error(
        "MAX_ATTEMPTS, BACKOFF_BASE_SECONDS and BACKOFF_MAX_SECONDS reach {} h ahead, beyond \
         DELIVERY_AGE_MAX ({} h)", horizon.as_secs() / 3600, age_max.as_secs() / 3600
    )]
    Horizon {
        /// How far the policy reaches.
        horizon: Duration,
        /// How old a delivery may become.
        age_max: Duration,
    },
    /// What is still to be sent would be dropped.
    #[error("{variable} must be at least a day longer than DELIVERY_AGE_MAX")]
    Retention {
        /// The variable.
        variable: &'static str,
    },
    /// Nowhere to keep the private Postgres.
    #[error("DATA_DIR must be set: neither HOME nor XDG_DATA_HOME say where your data belongs")]
    NoDataDir,
}

fn bad(variable: &'static str, reason: impl fmt::Display) -> ConfigError {
    ConfigError::Value { variable, reason: reason.to_string() }
}

/// Platforms and compose files like to set a variable to nothing.
fn set(text: Option<&str>) -> Option<&str> {
    text.map(str::trim).filter(|text| !text.is_empty())
}

impl Settings {
    /// Checks the settings as a whole.
    pub fn check(&self) -> Result<Config, ConfigError> {
        let bind = self.bind()?;
        let database_url = set(self.database_url.as_ref().map(|url| url.0.as_str()));
        let key = set(self.admin_api_key.as_ref().map(|key| key.0.as_str()));
        let is_local_default = database_url.is_none() && key.is_none() && bind.ip().is_loopback();
        let addresses = self.addresses(is_local_default)?;
        let retry = self.retry()?;
        let http_timeout = self.http_timeout()?;
        let delivery_age_max = self.delivery_age_max.duration();
        let horizon = retry.horizon(http_timeout);
        if horizon > delivery_age_max {
            return Err(ConfigError::Horizon { horizon, age_max: delivery_age_max });
        }
        Ok(Config {
            database: self.database(database_url)?,
            bind,
            role: self.role,
            access: self.access(bind, key)?,
            signing_keys: self.signing_keys()?,
            signs_with_default_secret: self.webhook_secret.0 == DEFAULT_SECRET,
            target_url: self.target(is_local_default, &addresses)?,
            addresses,
            poll_interval: self.worker_poll_interval.duration(),
            http_timeout,
            retry,
            retry_after_max: self.retry_after_max.duration(),
            delivery_age_max,
            in_flight_max: count("IN_FLIGHT_MAX", self.in_flight_max, 100_000)?,
            lane_in_flight_max: count("LANE_IN_FLIGHT_MAX", self.lane_in_flight_max, 10_000)?,
            retention: self.retention(delivery_age_max)?,
            request_body_max: within(
                "REQUEST_BODY_MAX",
                self.request_body_max,
                &REQUEST_BODY_BYTES,
            )?,
            response_body_max: within(
                "RESPONSE_BODY_MAX",
                self.response_body_max,
                &RESPONSE_BODY_BYTES,
            )?,
            shutdown_grace: self.shutdown_grace.duration(),
        })
    }

    fn bind(&self) -> Result<SocketAddr, ConfigError> {
        if let Some(bind) = set(self.bind.as_deref()) {
            return bind
                .parse()
                .map_err(|_| bad("BIND", "must be an address such as 127.0.0.1:8000"));
        }
        match set(self.port.as_deref()) {
            Some(port) => {
                let port = port.parse().map_err(|_| bad("PORT", "must be a port number"))?;
                Ok(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))
            }
            None => Ok(DEFAULT_BIND),
        }
    }

    fn database(&self, url: Option<&str>) -> Result<Database, ConfigError> {
        if let Some(url) = url {
            // The parser takes any scheme, and its message may quote the URL with a password.
            let is_postgres = url.starts_with("postgres://") || url.starts_with("postgresql://");
            let options = PgConnectOptions::from_str(url).ok().filter(|_| is_postgres);
            let options = options.ok_or_else(|| {
                bad("DATABASE_URL", "must look like postgres://user:password@host:5432/database")
            })?;
            return Ok(Database::External(Box::new(options)));
        }
        let around = &self.surroundings;
        let data_dir = match &self.data_dir {
            Some(data_dir) if !data_dir.as_os_str().is_empty() => data_dir.clone(),
            _ => crate::embedded_postgres::default_data_dir(
                around.home.as_deref(),
                around.xdg_data_home.as_deref(),
                rustix::process::geteuid().is_root(),
            )
            .ok_or(ConfigError::NoDataDir)?,
        };
        Ok(Database::Private { data_dir, path: around.path.clone() })
    }

    fn access(&self, bind: SocketAddr, key: Option<&str>) -> Result<Access, ConfigError> {
        match key {
            Some(_) if self.allow_unauthenticated => Err(ConfigError::KeyAndNoKey),
            Some(_) if self.webhook_secret.0 == DEFAULT_SECRET => Err(ConfigError::DefaultSecret),
            Some(key) => Ok(Access::Key(AdminKey::new(key))),
            None if self.allow_unauthenticated => Ok(Access::Anybody),
            None if bind.ip().is_loopback() => Ok(Access::LoopbackOnly),
            // A worker serves only its health and its metrics, but those are nobody's business.
            None => Err(ConfigError::Open(bind)),
        }
    }

    fn signing_keys(&self) -> Result<SigningKeys, ConfigError> {
        let key = SigningKey::from_secret(&self.webhook_secret.0)
            .map_err(|error| bad("WEBHOOK_SECRET", error))?;
        Ok(SigningKeys::single(key))
    }

    fn addresses(&self, is_local_default: bool) -> Result<AddressPolicy, ConfigError> {
        let default = if is_local_default { LOCAL_CIDRS } else { "" };
        let list = self.allowed_target_cidrs.as_deref().unwrap_or(default);
        let allowed = list
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .map(|item| {
                item.parse::<IpNet>().or_else(|_| item.parse::<IpAddr>().map(IpNet::from)).map_err(
                    |_| {
                        let reason = format!("`{item}` is no block such as 10.0.0.0/8");
                        bad("ALLOWED_TARGET_CIDRS", reason)
                    },
                )
            })
            .collect::<Result<_, _>>()?;
        Ok(AddressPolicy::new(allowed, self.require_https.unwrap_or(!is_local_default)))
    }

    fn target(
        &self,
        is_local_default: bool,
        addresses: &AddressPolicy,
    ) -> Result<Option<TargetUrl>, ConfigError> {
        let default = is_local_default.then_some(DEFAULT_LOCAL_TARGET);
        let Some(text) = set(self.target_url.as_deref()).or(default) else { return Ok(None) };
        let target = TargetUrl::parse(text).map_err(|error| bad("TARGET_URL", error))?;
        if let Some(address) = target.literal_address() {
            addresses.vet(address, target.is_https()).map_err(|error| bad("TARGET_URL", error))?;
        }
        Ok(Some(target))
    }

    fn retry(&self) -> Result<RetryPolicy, ConfigError> {
        RetryPolicy::exponential(
            self.max_attempts,
            self.backoff_base_seconds.duration(),
            self.backoff_max_seconds.duration(),
        )
        .map_err(|error| match error {
            RetryPolicyError::Attempts => bad("MAX_ATTEMPTS", error),
            RetryPolicyError::Base => bad("BACKOFF_BASE_SECONDS", error),
        })
    }

    fn http_timeout(&self) -> Result<Duration, ConfigError> {
        if HTTP_TIMEOUT_SECONDS.contains(&self.http_timeout.0) {
            Ok(self.http_timeout.duration())
        } else {
            Err(bad("HTTP_TIMEOUT", "must be 0.1 to 300 seconds"))
        }
    }

    fn retention(&self, age_max: Duration) -> Result<Retention, ConfigError> {
        let history = self.retention_days.duration();
        let payload = self.payload_retention_days.map_or(history, Days::duration);
        // A day more, since whole days are dropped.
        let least = age_max + Duration::from_secs(86_400);
        if history < least {
            return Err(ConfigError::Retention { variable: "RETENTION_DAYS" });
        }
        if payload < least {
            return Err(ConfigError::Retention { variable: "PAYLOAD_RETENTION_DAYS" });
        }
        if payload > history {
            return Err(bad("PAYLOAD_RETENTION_DAYS", "must not be above RETENTION_DAYS"));
        }
        Ok(Retention { history, payload })
    }
}

fn count(variable: &'static str, value: u32, max: u32) -> Result<usize, ConfigError> {
    if (1..=max).contains(&value) {
        Ok(value as usize)
    } else {
        Err(bad(variable, format!("must be 1 to {max}")))
    }
}

fn within(
    variable: &'static str,
    value: usize,
    range: &std::ops::RangeInclusive<usize>,
) -> Result<usize, ConfigError> {
    if range.contains(&value) {
        Ok(value)
    } else {
        Err(bad(variable, format!("must be {} to {}", range.start(), range.end())))
    }
}
