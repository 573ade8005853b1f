//! The settings as they are given: each a flag and an environment variable.

use std::{ffi::OsString, fmt, path::PathBuf, str::FromStr, time::Duration};

use clap::{
    Args, ValueEnum,
    builder::{OsStringValueParser, TypedValueParser},
};

use crate::telemetry::LogFormat;

/// The secret that nobody should keep.
pub(super) const DEFAULT_SECRET: &str = "change-me-in-production";

/// The settings as they are given. Each is a flag and an environment variable.
#[derive(Debug, Clone, Args)]
pub struct Settings {
    /// Connection string of Postgres, with one host or several. Without it a private Postgres is
    /// started from the installed binaries.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<Hidden>,
    /// File that holds DATABASE_URL; read again for each new connection.
    #[arg(long, env = "DATABASE_URL_FILE", value_parser = path())]
    pub database_url_file: Option<PathBuf>,
    /// Connection string of Postgres itself, where DATABASE_URL is that of a pooler in transaction
    /// mode; for migrations, LISTEN and maintenance.
    #[arg(long, env = "DATABASE_DIRECT_URL", hide_env_values = true)]
    pub database_direct_url: Option<Hidden>,
    /// File that holds DATABASE_DIRECT_URL; read again for each new connection.
    #[arg(long, env = "DATABASE_DIRECT_URL_FILE", value_parser = path())]
    pub database_direct_url_file: Option<PathBuf>,
    /// Where the private Postgres keeps its data [default: the user's data folder;
    /// /var/lib/webhook-dispatcher for root].
    #[arg(long, env = "DATA_DIR", value_parser = path())]
    pub data_dir: Option<PathBuf>,
    /// Address to serve on [default: 127.0.0.1:8000].
    #[arg(long, env = "BIND")]
    pub bind: Option<String>,
    /// Port to serve on, on all addresses; ignored if BIND is set.
    #[arg(long, env = "PORT")]
    pub port: Option<String>,
    /// What this process does. A half needs DATABASE_URL.
    #[arg(long, env = "ROLE", value_enum, default_value = "all")]
    pub role: Role,
    /// Secret that signs explicit targets: `whsec_…`, or any text.
    #[arg(long, env = "WEBHOOK_SECRET", hide_env_values = true)]
    pub webhook_secret: Option<Hidden>,
    /// File that holds WEBHOOK_SECRET.
    #[arg(long, env = "WEBHOOK_SECRET_FILE", value_parser = path())]
    pub webhook_secret_file: Option<PathBuf>,
    /// Keys that sign explicit targets of dispatches which name them, separated by commas: `id=secret`
    /// for the application `default`, `application/id=secret` for others (the application by its id or
    /// uid). Ids are letters, digits, `_`, `-` and `.`; secrets 8 to 256 bytes without a comma, `whsec_…`
    /// recommended.
    #[arg(long, env = "SIGNING_KEYS", hide_env_values = true)]
    pub signing_keys: Option<Hidden>,
    /// File that holds SIGNING_KEYS.
    #[arg(long, env = "SIGNING_KEYS_FILE", value_parser = path())]
    pub signing_keys_file: Option<PathBuf>,
    /// Keys that seal secrets in the database, separated by commas: the first seals, all open (1 to
    /// 8). Each is 32 bytes as base64 or hexadecimal digits [default without DATABASE_URL: one that
    /// is made and kept in DATA_DIR; otherwise it is required].
    #[arg(long, env = "ENCRYPTION_KEY", hide_env_values = true)]
    pub encryption_key: Option<Hidden>,
    /// File that holds ENCRYPTION_KEY.
    #[arg(long, env = "ENCRYPTION_KEY_FILE", value_parser = path())]
    pub encryption_key_file: Option<PathBuf>,
    /// Target of an event that names none [default in the local default:
    /// http://127.0.0.1:8080/webhook; otherwise none].
    #[arg(long, env = "TARGET_URL")]
    pub target_url: Option<String>,
    /// Key that callers must send. Without it the service answers only on loopback.
    #[arg(long, env = "ADMIN_API_KEY", hide_env_values = true)]
    pub admin_api_key: Option<Hidden>,
    /// File that holds ADMIN_API_KEY.
    #[arg(long, env = "ADMIN_API_KEY_FILE", value_parser = path())]
    pub admin_api_key_file: Option<PathBuf>,
    /// Serve without any key, to everybody who can connect.
    #[arg(long, env = "ALLOW_UNAUTHENTICATED", default_value = "false",
          action = clap::ArgAction::Set)]
    pub allow_unauthenticated: bool,
    /// Names that requests may address the service by (`Host`), separated by commas: host names and
    /// addresses, without ports. Without ADMIN_API_KEY other names are refused, but for `localhost` and
    /// addresses; with it only if this is set.
    #[arg(long, env = "ALLOWED_HOSTS")]
    pub allowed_hosts: Option<String>,
    /// Blocks that may be called although they are not public, and over http: a list of CIDRs
    /// [default in the local default: 127.0.0.0/8,::1/128; otherwise none].
    #[arg(long, env = "ALLOWED_TARGET_CIDRS")]
    pub allowed_target_cidrs: Option<String>,
    /// Whether targets outside ALLOWED_TARGET_CIDRS must be https [default: true; false in the
    /// local default].
    #[arg(long, env = "REQUIRE_HTTPS")]
    pub require_https: Option<bool>,
    /// Name servers that are asked for targets instead of the system's, separated by commas: each an
    /// address, with a port unless that is 53 (1 to 8).
    #[arg(long, env = "DNS_SERVERS")]
    pub dns_servers: Option<String>,
    /// HTTP proxy through which targets are called (CONNECT), as `http://user:password@host:port`; user
    /// and port may be left out. Addresses are resolved and checked here, and the proxy is given the
    /// address.
    #[arg(long, env = "EGRESS_PROXY", hide_env_values = true)]
    pub egress_proxy: Option<Hidden>,
    /// File that holds EGRESS_PROXY.
    #[arg(long, env = "EGRESS_PROXY_FILE", value_parser = path())]
    pub egress_proxy_file: Option<PathBuf>,
    /// PEM file of authorities that are trusted beside those of the system.
    #[arg(long, env = "EXTRA_CA_CERTS", value_parser = path())]
    pub extra_ca_certs: Option<PathBuf>,
    /// Targets of a dispatch up to which its answer waits for their results (0 to 100).
    #[arg(long, env = "DISPATCH_INLINE_MAX", default_value = "10")]
    pub dispatch_inline_max: usize,
    /// How long the answer of a dispatch waits for results, in seconds (0.05 to 300).
    #[arg(long, env = "DISPATCH_WAIT", default_value = "16")]
    pub dispatch_wait: Seconds,
    /// The longest time without looking into the queue, in seconds (0.05 to 60); a backstop, not the
    /// normal way to wake.
    #[arg(long, env = "WORKER_POLL_INTERVAL", default_value = "1.5")]
    pub worker_poll_interval: Seconds,
    /// Longest time between two statements of a kind while there is nothing to do, in seconds (2 to
    /// 3600) [default: none, so that an idle process looks as often as a busy one].
    #[arg(long, env = "IDLE_INTERVAL")]
    pub idle_interval: Option<Seconds>,
    /// Deadline over one whole exchange with a receiver, in seconds (0.1 to 300).
    #[arg(long, env = "HTTP_TIMEOUT", default_value = "15")]
    pub http_timeout: Seconds,
    /// Attempts until a delivery is dead (1 to 1000).
    #[arg(long, env = "MAX_ATTEMPTS", default_value = "20")]
    pub max_attempts: u32,
    /// Delay after the first attempt, in seconds; it doubles with each.
    #[arg(long, env = "BACKOFF_BASE_SECONDS", default_value = "2")]
    pub backoff_base_seconds: Seconds,
    /// Longest delay between two attempts, in seconds.
    #[arg(long, env = "BACKOFF_MAX_SECONDS", default_value = "21600")]
    pub backoff_max_seconds: Seconds,
    /// The longest that a receiver's `Retry-After` can make us wait, in seconds; below
    /// DELIVERY_AGE_MAX.
    #[arg(long, env = "RETRY_AFTER_MAX", default_value = "3600")]
    pub retry_after_max: Seconds,
    /// Age at which a delivery is given up whatever its attempts, in days.
    #[arg(long, env = "DELIVERY_AGE_MAX", default_value = "10")]
    pub delivery_age_max: Days,
    /// After how many days of nothing but failures a subscription is disabled; 0: never.
    #[arg(long, env = "DISABLE_AFTER", default_value = "5")]
    pub disable_after: DaysOrNever,
    /// Requests under way in all (2 to 100000).
    #[arg(long, env = "IN_FLIGHT_MAX", default_value = "4096")]
    pub in_flight_max: u32,
    /// Requests under way to one lane (a subscription, or an explicit target's origin), and results
    /// of it that are not recorded yet: what a crash can repeat of it. At most half of IN_FLIGHT_MAX.
    #[arg(long, env = "LANE_IN_FLIGHT_MAX", default_value = "128")]
    pub lane_in_flight_max: u32,
    /// Least number of failures in a row that opens the breaker of a lane (0: never; at most 1000);
    /// four times as many if each was answered with an error, and more if the receiver is known to
    /// fail at random. While it is open, only probes are sent.
    #[arg(long, env = "BREAKER_FAILURES", default_value = "5")]
    pub breaker_failures: u16,
    /// The longest pause between probes of an open breaker, in seconds (1 to 3600): the first is
    /// a second, and each is twice the one before.
    #[arg(long, env = "BREAKER_PAUSE_MAX", default_value = "60")]
    pub breaker_pause_max: Seconds,
    /// Days for which events, deliveries and attempts are kept.
    #[arg(long, env = "RETENTION_DAYS", default_value = "30")]
    pub retention_days: Days,
    /// Days for which payloads are kept [default: as RETENTION_DAYS].
    #[arg(long, env = "PAYLOAD_RETENTION_DAYS")]
    pub payload_retention_days: Option<Days>,
    /// Bytes that a request's body may have, and an event of a batch.
    #[arg(long, env = "REQUEST_BODY_MAX", default_value = "1048576")]
    pub request_body_max: usize,
    /// Bytes that the body of a batch may have; each event in it keeps to REQUEST_BODY_MAX.
    #[arg(long, env = "BATCH_BODY_MAX", default_value = "16777216")]
    pub batch_body_max: usize,
    /// Connections of clients that are served at a time (16 to 1000000); beyond it nothing is answered
    /// but 503, probes and metrics.
    #[arg(long, env = "CONNECTIONS_MAX", default_value = "10000")]
    pub connections_max: usize,
    /// How many of them one address may have, of IPv6 a /64 [default: half of CONNECTIONS_MAX].
    #[arg(long, env = "CLIENT_CONNECTIONS_MAX")]
    pub client_connections_max: Option<usize>,
    /// Requests that are read, served and answered at a time (16 to 1000000); beyond it callers get
    /// 503, before their bodies are read.
    #[arg(long, env = "REQUESTS_MAX", default_value = "8192")]
    pub requests_max: usize,
    /// Bytes of path, query and headers of a request (4096 to 262144).
    #[arg(long, env = "REQUEST_HEAD_MAX", default_value = "32768")]
    pub request_head_max: usize,
    /// Bytes of all bodies of requests that may be in memory together; what is beyond 16 KiB of each
    /// counts. Beyond it callers get 503.
    #[arg(long, env = "REQUEST_BODIES_MAX", default_value = "268435456")]
    pub request_bodies_max: usize,
    /// How long the head of a request may take to arrive, in seconds (0.1 to 300).
    #[arg(long, env = "REQUEST_HEAD_TIMEOUT", default_value = "10")]
    pub request_head_timeout: Seconds,
    /// How long the body of a request may take to arrive, in seconds (0.1 to 3600).
    #[arg(long, env = "REQUEST_BODY_TIMEOUT", default_value = "30")]
    pub request_body_timeout: Seconds,
    /// How long a connection may be there without a request, in seconds (0.1 to 3600); longer than a
    /// proxy in front keeps its own.
    #[arg(long, env = "KEEP_ALIVE_TIMEOUT", default_value = "75")]
    pub keep_alive_timeout: Seconds,
    /// How long a client may take to read its answer, in seconds (0.1 to 3600).
    #[arg(long, env = "ANSWER_TIMEOUT", default_value = "60")]
    pub answer_timeout: Seconds,
    /// Bytes of a receiver's answer that are read and kept.
    #[arg(long, env = "RESPONSE_BODY_MAX", default_value = "16384")]
    pub response_body_max: usize,
    /// How long requests under way may finish after SIGTERM, in seconds.
    #[arg(long, env = "SHUTDOWN_GRACE", default_value = "8")]
    pub shutdown_grace: Seconds,
    /// Where Payload CMS is, if it keeps subscriptions or the log: `https://cms.example.com`, or with a
    /// path where its API is not under `/api`.
    #[arg(long, env = "PAYLOAD_URL")]
    pub payload_url: Option<String>,
    /// Key to call it with. Needs PAYLOAD_URL.
    #[arg(long, env = "PAYLOAD_API_KEY", hide_env_values = true)]
    pub payload_api_key: Option<Hidden>,
    /// File that holds PAYLOAD_API_KEY.
    #[arg(long, env = "PAYLOAD_API_KEY_FILE", value_parser = path())]
    pub payload_api_key_file: Option<PathBuf>,
    /// The collection that the key's user is in.
    #[arg(long, env = "PAYLOAD_USERS", default_value = "users")]
    pub payload_users: String,
    /// The collection that subscriptions are kept in; empty: none are taken from there.
    #[arg(long, env = "PAYLOAD_SUBSCRIPTIONS", default_value = "webhookSubscriptions")]
    pub payload_subscriptions: String,
    /// The collection that results are told to; empty: none are told.
    #[arg(long, env = "PAYLOAD_DELIVERIES", default_value = "webhookDeliveries")]
    pub payload_deliveries: String,
    /// The application that both belong to: `default`, or its id or uid.
    #[arg(long, env = "PAYLOAD_APPLICATION", default_value = "default")]
    pub payload_application: String,
    /// The time between two looks for changed subscriptions, in seconds (1 to 3600).
    #[arg(long, env = "PAYLOAD_POLL_INTERVAL", default_value = "30")]
    pub payload_poll_interval: Seconds,
    /// Deadline over one request to Payload, in seconds (0.1 to 60).
    #[arg(long, env = "PAYLOAD_TIMEOUT", default_value = "10")]
    pub payload_timeout: Seconds,
    /// Days for which results wait for a Payload that is down; older ones are dropped from the queue,
    /// and stay in the log here.
    #[arg(long, env = "PAYLOAD_LOG_AGE_MAX", default_value = "7")]
    pub payload_log_age_max: Days,
    /// What is logged: directives such as `info` or `webhook_dispatcher=debug`.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub log: String,
    /// How it is logged.
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// Not settings: what the environment says about where things are.
    #[arg(skip)]
    pub surroundings: Surroundings,
}

/// Parser of a path that may be empty: platforms like to set a variable to nothing, and clap's own
/// parser of paths rejects that.
fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Accepts and sends.
    All,
    /// Accepts only.
    Api,
    /// Sends only.
    Worker,
}

/// A setting that is shown to nobody.
#[derive(Clone)]
pub struct Hidden(pub(super) String);

impl FromStr for Hidden {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// A duration given in seconds, with a fraction if need be.
#[derive(Debug, Clone, Copy)]
pub struct Seconds(pub(super) f64);

/// A duration given in days, with a fraction if need be.
#[derive(Debug, Clone, Copy)]
pub struct Days(f64);

/// No positive number, or one beyond a century.
#[derive(Debug, thiserror::Error)]
#[error("must be a number above zero, and below a hundred years")]
pub struct NoDuration;

const SECONDS_PER_DAY: f64 = 86_400.0;
const SECONDS_MAX: f64 = 36_500.0 * SECONDS_PER_DAY;

impl FromStr for Seconds {
    type Err = NoDuration;

    fn from_str(text: &str) -> Result<Self, NoDuration> {
        let seconds: f64 = text.trim().parse().map_err(|_| NoDuration)?;
        if seconds > 0.0 && seconds <= SECONDS_MAX { Ok(Self(seconds)) } else { Err(NoDuration) }
    }
}

impl FromStr for Days {
    type Err = NoDuration;

    fn from_str(text: &str) -> Result<Self, NoDuration> {
        let days: f64 = text.trim().parse().map_err(|_| NoDuration)?;
        Seconds::from_str(&(days * SECONDS_PER_DAY).to_string()).map(|s| Self(s.0))
    }
}

/// Days, or 0 for never.
#[derive(Debug, Clone, Copy)]
pub struct DaysOrNever(Option<Days>);

impl FromStr for DaysOrNever {
    type Err = NoDuration;

    fn from_str(text: &str) -> Result<Self, NoDuration> {
        match text.trim() {
            "0" => Ok(Self(None)),
            text => text.parse().map(|days| Self(Some(days))),
        }
    }
}

impl DaysOrNever {
    pub(super) fn duration(self) -> Option<Duration> {
        self.0.map(Days::duration)
    }
}

impl Seconds {
    pub(super) fn duration(self) -> Duration {
        Duration::from_secs_f64(self.0)
    }
}

impl Days {
    pub(super) fn duration(self) -> Duration {
        Duration::from_secs_f64(self.0)
    }
}

/// Where things are on this machine, as the environment says.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// `PATH`.
    pub path: Option<OsString>,
    /// `HOME`.
    pub home: Option<PathBuf>,
    /// `XDG_DATA_HOME`.
    pub xdg_data_home: Option<PathBuf>,
}

impl Surroundings {
    /// Reads the environment.
    pub fn from_env() -> Self {
        Self {
            path: std::env::var_os("PATH"),
            home: std::env::var_os("HOME").map(PathBuf::from),
            xdg_data_home: std::env::var_os("XDG_DATA_HOME").map(PathBuf::from),
        }
    }
}
