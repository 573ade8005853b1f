//! The settings, checked as a whole: a contradiction stops the start and names the variable.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;

use super::{
    database::Database,
    dns,
    encryption::{self, MAKE_KEY},
    secrets::Secrets,
    settings::{DEFAULT_SECRET, Days, Role, Seconds, Settings},
    signing,
};
use crate::{
    cms::CmsSettings,
    delivery::EgressProxy,
    domain::{
        RetryPolicy, SigningKey, TargetUrl, address::AddressPolicy, pacing::Breaker,
        retry::RetryPolicyError, sealing::SealingKeys, signature::SigningKeys,
    },
    http::{Access, AdminKey, ClientBounds, DispatchBounds, HostNames},
    store::partitions::Retention,
    tls::Trust,
    worker::Keys,
};

const DEFAULT_BIND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8000);
const DEFAULT_LOCAL_TARGET: &str = "http://127.0.0.1:8080/webhook";
/// What the local default allows to be called beside public addresses.
const LOCAL_CIDRS: &str = "127.0.0.0/8,::1/128";
/// The bounds of `REQUEST_BODY_MAX` and `BATCH_BODY_MAX`, and of `RESPONSE_BODY_MAX`, in bytes.
const REQUEST_BODY_BYTES: std::ops::RangeInclusive<usize> = 1_024..=64 * 1024 * 1024;
const RESPONSE_BODY_BYTES: std::ops::RangeInclusive<usize> = 0..=1024 * 1024;
/// The bounds of `HTTP_TIMEOUT`, in seconds.
const HTTP_TIMEOUT_SECONDS: std::ops::RangeInclusive<f64> = 0.1..=300.0;
/// The bounds of `WORKER_POLL_INTERVAL`, in seconds: less is a busy loop.
const WORKER_POLL_SECONDS: std::ops::RangeInclusive<f64> = 0.05..=60.0;
const IDLE_SECONDS: std::ops::RangeInclusive<f64> = 2.0..=3_600.0;
/// The bounds of `DISPATCH_INLINE_MAX`, and of `DISPATCH_WAIT` in seconds.
const DISPATCH_INLINE: std::ops::RangeInclusive<usize> = 0..=100;
const DISPATCH_WAIT_SECONDS: std::ops::RangeInclusive<f64> = 0.05..=300.0;

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
    /// The names that requests may address the service by.
    pub hosts: HostNames,
    /// What `ENCRYPTION_KEY` says of the keys that seal secrets. `None` with a private database
    /// only: one is kept beside it.
    pub encryption: Option<SealingKeys>,
    /// What signs explicit targets.
    pub signing_keys: Keys,
    /// Whether that is the secret that everybody knows.
    pub signs_with_default_secret: bool,
    /// The target of an event that names none.
    pub target_url: Option<TargetUrl>,
    /// Which addresses may be called.
    pub addresses: AddressPolicy,
    /// The name servers that are asked for targets; none: the system's.
    pub dns_servers: Vec<SocketAddr>,
    /// The proxy through which targets are called.
    pub egress_proxy: Option<EgressProxy>,
    /// The authorities whose certificates are accepted.
    pub trust: Trust,
    /// What the answer of a dispatch waits for.
    pub dispatch: DispatchBounds,
    /// The backstop of the queue.
    pub poll_interval: Duration,
    /// Longest pause of an idle process between two statements of a kind; `None`: it does not rest.
    pub idle_interval: Option<Duration>,
    /// The deadline over one exchange.
    pub http_timeout: Duration,
    /// When failed deliveries are tried again.
    pub retry: RetryPolicy,
    /// The bound on `Retry-After`.
    pub retry_after_max: Duration,
    /// The age at which a delivery is given up.
    pub delivery_age_max: Duration,
    /// How long a subscription may fail before it is disabled.
    pub disable_after: Option<Duration>,
    /// Requests under way in all.
    pub in_flight_max: usize,
    /// Requests under way to one lane.
    pub lane_in_flight_max: usize,
    /// When a lane's breaker opens.
    pub breaker: Breaker,
    /// How long the history is kept.
    pub retention: Retention,
    /// What clients may take.
    pub clients: ClientBounds,
    /// Bytes of a request's body.
    pub request_body_max: usize,
    /// Bytes of a batch's body.
    pub batch_body_max: usize,
    /// Bytes of an answer's body.
    pub response_body_max: usize,
    /// The CMS that keeps subscriptions or the log.
    pub cms: Option<Box<CmsSettings>>,
    /// How old what waits to be told to it may become.
    pub cms_log_age_max: Duration,
    /// How long requests under way may finish at the end.
    pub shutdown_grace: Duration,
    /// What is allowed, and hardly meant: to be logged once at start. No secret stands in it.
    pub warnings: Vec<String>,
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
    /// A half of the service, with a database that the other half cannot open.
    #[error(
        "ROLE={0} needs DATABASE_URL: a private Postgres is open to one process only, and the other \
         half of the service would have nothing to share with this one"
    )]
    Alone(&'static str),
    /// A pooler, and no way around it.
    #[error(
        "DATABASE_URL is the address of a pooler (`pgbouncer=true`), so DATABASE_DIRECT_URL must be \
         set to the address of Postgres itself: migrations and LISTEN need a session of their own"
    )]
    PoolerAlone,
    /// No key for secrets that are kept elsewhere.
    #[error(
        "ENCRYPTION_KEY must be set where DATABASE_URL is: it seals the secrets in that database. \
         Make it once with `{MAKE_KEY}`, set the same for all processes of that database, and keep a \
         copy of it apart from the database's backups"
    )]
    NoEncryptionKey,
    /// One endpoint that hangs could take every slot.
    #[error(
        "LANE_IN_FLIGHT_MAX ({lane}) must be at most half of IN_FLIGHT_MAX ({all}): one endpoint \
         that hangs would hold up all others"
    )]
    Lane {
        /// `LANE_IN_FLIGHT_MAX`.
        lane: usize,
        /// `IN_FLIGHT_MAX`.
        all: usize,
    },
    /// Clients of one address could have more connections than there are.
    #[error("CLIENT_CONNECTIONS_MAX ({client}) must not be above CONNECTIONS_MAX ({all})")]
    Clients {
        /// `CLIENT_CONNECTIONS_MAX`.
        client: usize,
        /// `CONNECTIONS_MAX`.
        all: usize,
    },
    /// A body that may come finds no room.
    #[error(
        "REQUEST_BODIES_MAX must not be below {variable}: a body that large would never be taken"
    )]
    Bodies {
        /// The variable that allows it.
        variable: &'static str,
    },
    /// A receiver could make a delivery expire.
    #[error("RETRY_AFTER_MAX must be below DELIVERY_AGE_MAX")]
    RetryAfter,
    /// Nowhere to keep the private Postgres.
    #[error("DATA_DIR must be set: neither HOME nor XDG_DATA_HOME say where your data belongs")]
    NoDataDir,
}

pub(super) fn bad(variable: &'static str, reason: impl fmt::Display) -> ConfigError {
    ConfigError::Value { variable, reason: reason.to_string() }
}

/// Platforms and compose files like to set a variable to nothing.
pub(super) fn set(text: Option<&str>) -> Option<&str> {
    text.map(str::trim).filter(|text| !text.is_empty())
}

impl Settings {
    /// Checks the settings as a whole.
    pub fn check(&self) -> Result<Config, ConfigError> {
        let bind = self.bind()?;
        let has_database_url = self.has_database_url();
        let secrets = self.secrets()?;
        secrets.check_strength()?;
        let key = secrets.admin_api_key.as_deref();
        let is_local_default = !has_database_url && key.is_none() && bind.ip().is_loopback();
        let addresses = self.addresses(is_local_default)?;
        let retry = self.retry()?;
        let http_timeout = self.http_timeout()?;
        let delivery_age_max = self.delivery_age_max.duration();
        let horizon = retry.horizon(http_timeout);
        if horizon > delivery_age_max {
            return Err(ConfigError::Horizon { horizon, age_max: delivery_age_max });
        }
        let retry_after_max = self.retry_after_max.duration();
        if retry_after_max >= delivery_age_max {
            return Err(ConfigError::RetryAfter);
        }
        let (in_flight_max, lane_in_flight_max) = self.in_flight()?;
        let retention = self.retention(delivery_age_max)?;
        let (signing_keys, of_keys) = signing_keys(&secrets)?;
        let database = self.database()?;
        let mut warnings = warnings(&secrets, of_keys);
        warnings.extend(Self::database_warnings(&database));
        Ok(Config {
            database,
            encryption: encryption(&secrets, has_database_url)?,
            bind,
            role: self.role,
            access: self.access(bind, key)?,
            hosts: self.hosts()?,
            signing_keys,
            signs_with_default_secret: secrets.webhook_secret == DEFAULT_SECRET,
            target_url: self.target(is_local_default, &addresses)?,
            addresses,
            dns_servers: dns::servers(set(self.dns_servers.as_deref()))?,
            egress_proxy: egress_proxy(&secrets)?,
            trust: self.trust()?,
            dispatch: self.dispatch()?,
            poll_interval: self.poll_interval()?,
            idle_interval: (self.idle_interval)
                .map(|interval| seconds_within("IDLE_INTERVAL", interval, &IDLE_SECONDS))
                .transpose()?,
            http_timeout,
            retry,
            retry_after_max,
            delivery_age_max,
            disable_after: self.disable_after.duration(),
            in_flight_max,
            lane_in_flight_max,
            breaker: self.breaker()?,
            retention,
            clients: self.clients()?,
            request_body_max: within(
                "REQUEST_BODY_MAX",
                self.request_body_max,
                &REQUEST_BODY_BYTES,
            )?,
            batch_body_max: within("BATCH_BODY_MAX", self.batch_body_max, &REQUEST_BODY_BYTES)?,
            response_body_max: within(
                "RESPONSE_BODY_MAX",
                self.response_body_max,
                &RESPONSE_BODY_BYTES,
            )?,
            cms: self.cms(secrets.payload_api_key.as_deref())?.map(Box::new),
            cms_log_age_max: self.cms_log_age_max(retention.history)?,
            shutdown_grace: self.shutdown_grace.duration(),
            warnings,
        })
    }

    /// The address to serve on: `BIND`, else `PORT` on all addresses, else the default.
    pub fn bind(&self) -> Result<SocketAddr, ConfigError> {
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

    /// The authorities of `EXTRA_CA_CERTS`, beside those of the machine.
    pub fn trust(&self) -> Result<Trust, ConfigError> {
        match &self.extra_ca_certs {
            Some(file) if !file.as_os_str().is_empty() => {
                Trust::with_file(file).map_err(|error| bad("EXTRA_CA_CERTS", error.to_string()))
            }
            _ => Ok(Trust::default()),
        }
    }

    fn access(&self, bind: SocketAddr, key: Option<&str>) -> Result<Access, ConfigError> {
        match key {
            Some(_) if self.allow_unauthenticated => Err(ConfigError::KeyAndNoKey),
            Some(key) => Ok(Access::Key(AdminKey::new(key))),
            None if self.allow_unauthenticated => Ok(Access::Anybody),
            None if bind.ip().is_loopback() => Ok(Access::LoopbackOnly),
            // A worker serves only its health and its metrics, but those are nobody's business.
            None => Err(ConfigError::Open(bind)),
        }
    }

    fn hosts(&self) -> Result<HostNames, ConfigError> {
        let list = self.allowed_hosts.as_deref().unwrap_or_default();
        HostNames::parse(list).map_err(|error| bad("ALLOWED_HOSTS", error))
    }

    fn dispatch(&self) -> Result<DispatchBounds, ConfigError> {
        let wait = seconds_within("DISPATCH_WAIT", self.dispatch_wait, &DISPATCH_WAIT_SECONDS)?;
        Ok(DispatchBounds {
            inline_max: within("DISPATCH_INLINE_MAX", self.dispatch_inline_max, &DISPATCH_INLINE)?,
            wait,
        })
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
        addresses.vet_target(&target).map_err(|error| bad("TARGET_URL", error))?;
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
            RetryPolicyError::Base | RetryPolicyError::Delay | RetryPolicyError::Delays => {
                bad("BACKOFF_BASE_SECONDS", error)
            }
        })
    }

    fn http_timeout(&self) -> Result<Duration, ConfigError> {
        seconds_within("HTTP_TIMEOUT", self.http_timeout, &HTTP_TIMEOUT_SECONDS)
    }

    fn poll_interval(&self) -> Result<Duration, ConfigError> {
        let interval = self.worker_poll_interval;
        seconds_within("WORKER_POLL_INTERVAL", interval, &WORKER_POLL_SECONDS)
    }

    fn retention(&self, age_max: Duration) -> Result<Retention, ConfigError> {
        let history = self.retention_days.duration();
        let payload = self.payload_retention_days.map_or(history, Days::duration);
        // A day more, since whole days are dropped.
        let least = age_max + Duration::from_hours(24);
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

fn encryption(secrets: &Secrets, is_required: bool) -> Result<Option<SealingKeys>, ConfigError> {
    match secrets.encryption_key.as_deref() {
        Some(list) => encryption::keys(list).map(Some),
        None if is_required => Err(ConfigError::NoEncryptionKey),
        None => Ok(None),
    }
}

fn egress_proxy(secrets: &Secrets) -> Result<Option<EgressProxy>, ConfigError> {
    let proxy = secrets.egress_proxy.as_deref().map(EgressProxy::parse).transpose();
    proxy.map_err(|error| bad("EGRESS_PROXY", error.to_string()))
}

/// The keys, and warnings about their secrets.
fn signing_keys(secrets: &Secrets) -> Result<(Keys, Vec<String>), ConfigError> {
    let own = &secrets.webhook_secret;
    let key = SigningKey::from_secret(own).map_err(|error| bad("WEBHOOK_SECRET", error))?;
    let (named, warnings) = signing::keys(&secrets.signing_keys, own)?;
    Ok((Keys { own: SigningKeys::single(key), named }, warnings))
}

fn warnings(secrets: &Secrets, of_keys: Vec<String>) -> Vec<String> {
    let own = signing::base64_warning("WEBHOOK_SECRET", &secrets.webhook_secret);
    own.into_iter().chain(of_keys).collect()
}

pub(super) fn within(
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

pub(super) fn seconds_within(
    variable: &'static str,
    seconds: Seconds,
    range: &std::ops::RangeInclusive<f64>,
) -> Result<Duration, ConfigError> {
    if range.contains(&seconds.0) {
        Ok(seconds.duration())
    } else {
        Err(bad(variable, format!("must be {} to {} seconds", range.start(), range.end())))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    #[command(args_override_self = true)]
    struct Flags {
        #[command(flatten)]
        settings: Settings,
    }

    pub(in crate::config) fn check(flags: &[&str]) -> Result<Config, ConfigError> {
        let flags = ["test", "--data-dir=/nowhere", "--database-url=", "--encryption-key="]
            .iter()
            .chain(flags);
        Flags::try_parse_from(flags).unwrap().settings.check()
    }

    #[track_caller]
    pub(in crate::config) fn refused(flags: &[&str], variables: &[&str]) {
        let message = check(flags).unwrap_err().to_string();
        for variable in variables {
            assert!(message.contains(variable), "{variable}: {message}");
        }
    }

    #[test]
    fn half_a_service_needs_a_database_that_both_halves_can_open() {
        for role in ["api", "worker"] {
            refused(&[&format!("--role={role}")], &[&format!("ROLE={role}"), "DATABASE_URL"]);
            let url = "--database-url=postgres://u@h/d";
            let key = format!("--encryption-key={}", "0".repeat(64));
            check(&[&format!("--role={role}"), url, &key]).unwrap();
        }
        check(&["--role=all"]).unwrap();
    }

    #[test]
    fn a_database_that_is_not_private_needs_a_key() {
        let command = "openssl rand -base64 32";
        for role in ["all", "api", "worker"] {
            let url = ["--database-url=postgres://u@h/d", &format!("--role={role}")];
            refused(&url, &["ENCRYPTION_KEY", "DATABASE_URL", command]);
            refused(&[url[0], url[1], "--encryption-key= "], &["ENCRYPTION_KEY", command]);
            let key = format!("--encryption-key={}", "0".repeat(64));
            assert!(check(&[url[0], url[1], &key]).unwrap().encryption.is_some());
        }
        assert!(check(&[]).unwrap().encryption.is_none());
        refused(&["--encryption-key=hunter2"], &["ENCRYPTION_KEY"]);
    }

    #[test]
    fn the_poll_neither_spins_nor_strands() {
        for seconds in ["0.000001", "0.049", "60.1", "86400"] {
            refused(&[&format!("--worker-poll-interval={seconds}")], &["WORKER_POLL_INTERVAL"]);
        }
        for seconds in ["0.05", "60"] {
            check(&[&format!("--worker-poll-interval={seconds}")]).unwrap();
        }
    }

    #[test]
    fn allowed_hosts_are_host_names() {
        for good in ["", "hooks.example.com, dispatcher", "[::1],10.0.0.1"] {
            check(&[&format!("--allowed-hosts={good}")]).unwrap();
        }
        for bad in ["https://a.example", "a.example:8000", "*.a.example"] {
            refused(&[&format!("--allowed-hosts={bad}")], &["ALLOWED_HOSTS", bad]);
        }
    }

    #[test]
    fn name_servers_are_addresses() {
        let servers = |list: &str| check(&[&format!("--dns-servers={list}")]).unwrap().dns_servers;
        let of = |list: &[&str]| list.iter().map(|one| one.parse().unwrap()).collect::<Vec<_>>();
        assert_eq!(servers(" "), of(&[]));
        assert_eq!(
            servers("9.9.9.9, 127.0.0.1:5353,2620:fe::fe,[::1]:5353"),
            of(&["9.9.9.9:53", "127.0.0.1:5353", "[2620:fe::fe]:53", "[::1]:5353"])
        );
        let nine = ["9.9.9.9"; 9].join(",");
        for wrong in ["dns.example", "9.9.9.9,", "9.9.9.9:0", "9.9.9.9:x", &nine] {
            refused(&[&format!("--dns-servers={wrong}")], &["DNS_SERVERS"]);
        }
    }

    #[test]
    fn egress_proxy_of_another_kind_is_refused() {
        let socks = ["--egress-proxy=socks5://user:s3cret@a:1"];
        refused(&socks, &["EGRESS_PROXY", "http://proxy.example"]);
    }

    #[test]
    fn missing_file_of_authorities_is_refused() {
        refused(&["--extra-ca-certs=/nowhere/ca.pem"], &["EXTRA_CA_CERTS", "/nowhere/ca.pem"]);
        assert!(check(&["--extra-ca-certs="]).is_ok());
    }

    #[test]
    fn no_receiver_can_make_a_delivery_expire() {
        let both = ["RETRY_AFTER_MAX", "DELIVERY_AGE_MAX"];
        refused(&["--retry-after-max=864000"], &both);
        check(&["--retry-after-max=863999"]).unwrap();
    }

    #[test]
    fn a_secret_that_only_looks_like_base64_is_warned_of() {
        let of = |bytes: usize| format!("whsec_{}", STANDARD.encode(vec![7; bytes]));
        let cases = [
            ("text".to_owned(), false),
            (of(23), true),
            (of(24), false),
            (of(64), false),
            (of(65), true),
            ("whsec_hunter2".to_owned(), true),
        ];
        for (secret, is_warned_of) in cases {
            let config = check(&[&format!("--webhook-secret={secret}")]).unwrap();
            assert_eq!(config.warnings.len(), usize::from(is_warned_of), "{secret}");
            assert!(config.warnings.iter().all(|text| text.contains("WEBHOOK_SECRET")));
            assert!(config.warnings.iter().all(|text| !text.contains(&secret)), "it was shown");
        }
    }
}
