//! The address of the database: hosts in the order in which they are tried, and the session that
//! counts.
//!
//! It is parsed again at each connect, so that a password that was changed in a file (the URL's own,
//! or that of `PGPASSFILE`) is used from the next connection on.

use std::{
    fmt,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use sqlx::postgres::PgConnectOptions;
use url::form_urlencoded;

/// Maximum number of hosts of an address.
const HOSTS_MAX: usize = 16;
/// Time to connect to one host and to log in: where there is one, and where others can be tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const CONNECT_TIMEOUT_OF_SEVERAL: Duration = Duration::from_secs(2);
/// Bounds of `connect_timeout`, in seconds. The lower one is libpq's.
const CONNECT_SECONDS: std::ops::RangeInclusive<u64> = 2..=60;
/// Maximum size of a file that holds an address, in bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Parameters that sqlx reads. All others are ignored, and named in a warning.
const KNOWN: &[&str] = &[
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "hostaddr",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

/// Sessions that count, libpq's `target_session_attrs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionAttrs {
    /// Every session.
    Any,
    /// Sessions that can write.
    ReadWrite,
    /// Sessions of a server that is not in recovery.
    Primary,
}

/// The address of a database.
#[derive(Clone)]
pub struct DatabaseAddress {
    /// How to connect to each host, in the order in which they are tried. Never empty.
    pub(super) hosts: Vec<PgConnectOptions>,
    /// The sessions that count.
    pub(super) attrs: SessionAttrs,
    /// Time to connect to one host and to log in.
    pub(super) connect_timeout: Duration,
    /// Whether the address says that it is a pooler's: `pgbouncer=true`.
    pub says_pooler: bool,
    /// Names of parameters that have no effect.
    pub ignored: Vec<String>,
}

/// The address is not usable. No message holds a value of it, which may be a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not a URL of Postgres.
    #[error("must look like postgres://user:password@host:5432/database")]
    Form,
    /// A list of hosts with an empty one, or with too many.
    #[error("must name 1 to {HOSTS_MAX} hosts, separated by commas, none of them empty")]
    Hosts,
    /// Ports that do not fit the hosts.
    #[error("`port` must be one port, or as many as there are hosts, separated by commas")]
    Ports,
    /// A list of hosts beside a single numeric address.
    #[error("`hostaddr` must not be combined with several hosts")]
    HostAddress,
    /// A session that cannot write.
    #[error(
        "`target_session_attrs` must be `read-write`, `primary` or `any`: the service always writes"
    )]
    SessionAttrs,
    /// A wait outside of its bounds.
    #[error(
        "`connect_timeout` must be {} to {} seconds", CONNECT_SECONDS.start(), CONNECT_SECONDS.end()
    )]
    ConnectTimeout,
    /// A setting of the session that a pooler does not pass on.
    #[error(
        "`options` cannot be used behind a pooler: use `alter role … set …` in the database instead"
    )]
    Options,
    /// The file cannot be read.
    #[error("the file {} cannot be read: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why, as the system says.
        reason: std::io::ErrorKind,
    },
    /// Reading was aborted.
    #[error("the address was not read")]
    Unread,
}

impl DatabaseAddress {
    /// Reads an address: `postgres://user:password@host1:5432,host2:5432/database?…`, as libpq does.
    pub fn parse(url: &str) -> Result<Self, AddressError> {
        let (scheme, rest) = url.split_once("://").ok_or(AddressError::Form)?;
        if !matches!(scheme, "postgres" | "postgresql") {
            return Err(AddressError::Form);
        }
        let rest = rest.split('#').next().unwrap_or_default();
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = match authority.rsplit_once('@') {
            Some((user, hosts)) => (format!("{user}@"), hosts),
            None => (String::new(), authority),
        };
        let parameters = Parameters::read(query)?;
        let hosts = parameters.hosts(hosts)?;
        if hosts.len() > 1 && parameters.kept.iter().any(|(key, _)| key == "hostaddr") {
            return Err(AddressError::HostAddress);
        }
        let parse = |host: &Host| {
            let mut query = form_urlencoded::Serializer::new(String::new());
            query.extend_pairs(&parameters.kept);
            let authority = match host {
                Host::InAuthority(text) => text,
                Host::InQuery { name, port } => {
                    // A placeholder: a URL with a user must have a host.
                    query.append_pair("host", name);
                    if let Some(port) = port {
                        query.append_pair("port", port);
                    }
                    "localhost"
                }
            };
            let url = format!("{scheme}://{user}{authority}/{path}?{}", query.finish());
            // The parser's message may quote the URL with a password.
            PgConnectOptions::from_str(&url).map_err(|_| AddressError::Form)
        };
        let hosts = hosts.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        let is_single = hosts.len() == 1;
        Ok(Self {
            attrs: parameters.attrs.unwrap_or(if is_single {
                SessionAttrs::Any
            } else {
                SessionAttrs::ReadWrite
            }),
            connect_timeout: parameters.connect_timeout.unwrap_or(if is_single {
                CONNECT_TIMEOUT
            } else {
                CONNECT_TIMEOUT_OF_SEVERAL
            }),
            says_pooler: parameters.says_pooler,
            ignored: parameters.ignored,
            hosts,
        })
    }

    /// The same address, if a pooler passes on all that it asks for.
    pub fn through_pooler(self) -> Result<Self, AddressError> {
        let has_options = self.hosts.iter().any(|host| host.get_options().is_some());
        if has_options { Err(AddressError::Options) } else { Ok(self) }
    }
}

impl From<PgConnectOptions> for DatabaseAddress {
    fn from(host: PgConnectOptions) -> Self {
        Self {
            hosts: vec![host],
            attrs: SessionAttrs::Any,
            connect_timeout: CONNECT_TIMEOUT,
            says_pooler: false,
            ignored: Vec::new(),
        }
    }
}

impl fmt::Debug for DatabaseAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseAddress").field("attrs", &self.attrs).finish_non_exhaustive()
    }
}

/// Where an address is read from, at each connect.
#[derive(Clone)]
pub enum AddressSource {
    /// An address that does not change.
    Fixed(Arc<DatabaseAddress>),
    /// A URL. Its password may stand in the file of `PGPASSFILE`.
    Url(Arc<str>),
    /// A file that holds a URL.
    File(Arc<Path>),
}

impl AddressSource {
    /// Reads the address. Blocks for as long as its file does.
    pub fn read(&self) -> Result<DatabaseAddress, AddressError> {
        match self {
            Self::Fixed(address) => Ok(address.as_ref().clone()),
            Self::Url(url) => DatabaseAddress::parse(url),
            Self::File(path) => {
                let failed = |reason| AddressError::File { path: path.to_path_buf(), reason };
                let file = File::open(path).map_err(|error| failed(error.kind()))?;
                let mut url = String::new();
                let read = file.take(FILE_BYTES_MAX).read_to_string(&mut url);
                read.map_err(|error| failed(error.kind()))?;
                DatabaseAddress::parse(url.trim())
            }
        }
    }
}

impl fmt::Debug for AddressSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Fixed(_) | Self::Url(_) => f.write_str("(hidden)"),
        }
    }
}

/// The ways to a database.
#[derive(Debug, Clone)]
pub struct DatabaseAccess {
    /// For all ordinary statements. A pooler in transaction mode if there is a direct way as well.
    pub main: AddressSource,
    /// Around the pooler, for work that needs a session of its own.
    pub direct: Option<AddressSource>,
}

impl From<PgConnectOptions> for DatabaseAccess {
    fn from(options: PgConnectOptions) -> Self {
        let address = Arc::new(DatabaseAddress::from(options));
        Self { main: AddressSource::Fixed(address), direct: None }
    }
}

/// A host, as it is put into a URL of its own.
enum Host {
    /// `host` or `host:port`.
    InAuthority(String),
    /// From the parameters `host` and `port`.
    InQuery { name: String, port: Option<String> },
}

/// The parameters of an address.
#[derive(Default)]
struct Parameters {
    kept: Vec<(String, String)>,
    host: Option<String>,
    port: Option<String>,
    attrs: Option<SessionAttrs>,
    connect_timeout: Option<Duration>,
    says_pooler: bool,
    ignored: Vec<String>,
}

impl Parameters {
    fn read(query: &str) -> Result<Self, AddressError> {
        let mut read = Self::default();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "host" => read.host = Some(value.into_owned()),
                "port" => read.port = Some(value.into_owned()),
                "target_session_attrs" => {
                    read.attrs = Some(match &*value {
                        "any" => SessionAttrs::Any,
                        "read-write" => SessionAttrs::ReadWrite,
                        "primary" => SessionAttrs::Primary,
                        _ => return Err(AddressError::SessionAttrs),
                    });
                }
                "connect_timeout" => {
                    let seconds = value.parse().ok().filter(|s| CONNECT_SECONDS.contains(s));
                    let seconds = seconds.ok_or(AddressError::ConnectTimeout)?;
                    read.connect_timeout = Some(Duration::from_secs(seconds));
                }
                // As Prisma and platforms with a pooler write it.
                "pgbouncer" => read.says_pooler = &*value == "true",
                known if KNOWN.contains(&known) || known.starts_with("options[") => {
                    read.kept.push((key.into_owned(), value.into_owned()));
                }
                _ => read.ignored.push(key.into_owned()),
            }
        }
        Ok(read)
    }

    /// The hosts: those of the parameter `host`, else those in front of the path.
    fn hosts(&self, authority: &str) -> Result<Vec<Host>, AddressError> {
        let ports: Vec<&str> =
            self.port.as_deref().map_or(Vec::new(), |list| list.split(',').collect());
        if ports.iter().any(|port| port.parse::<u16>().map_or(true, |port| port == 0)) {
            return Err(AddressError::Ports);
        }
        let names: Vec<&str> = match &self.host {
            Some(list) => list.split(',').collect(),
            None => authority.split(',').collect(),
        };
        let is_list = names.len() > 1;
        if names.len() > HOSTS_MAX || is_list && names.iter().any(|name| name.is_empty()) {
            return Err(AddressError::Hosts);
        }
        if ports.len() > 1 && ports.len() != names.len() {
            return Err(AddressError::Ports);
        }
        let port = |index: usize| ports.get(index).or(ports.first()).map(|port| (*port).to_owned());
        let host = |(index, name): (usize, &&str)| match &self.host {
            Some(_) => Host::InQuery { name: (*name).to_owned(), port: port(index) },
            // A port of the parameter wins, as with a single host.
            None => match (port(index), name.rsplit_once(':')) {
                (None, _) => Host::InAuthority((*name).to_owned()),
                (Some(port), Some((host, digits)))
                    if digits.bytes().all(|b| b.is_ascii_digit()) =>
                {
                    Host::InAuthority(format!("{host}:{port}"))
                }
                (Some(port), _) => Host::InAuthority(format!("{name}:{port}")),
            },
        };
        Ok(names.iter().enumerate().map(host).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hosts and ports of an address.
    fn hosts(url: &str) -> Vec<(String, u16)> {
        let address = DatabaseAddress::parse(url).unwrap();
        let host = |host: &PgConnectOptions| match host.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => host.get_host().to_owned(),
        };
        address.hosts.iter().map(|one| (host(one), one.get_port())).collect()
    }

    fn pairs(list: &[(&str, u16)]) -> Vec<(String, u16)> {
        list.iter().map(|(host, port)| ((*host).to_owned(), *port)).collect()
    }

    #[test]
    fn hosts_and_ports_are_read_as_libpq_reads_them() {
        let cases: &[(&str, &[(&str, u16)])] = &[
            ("postgres://u:p@h/d", &[("h", 5432)]),
            ("postgresql://u:p@h:6/d", &[("h", 6)]),
            ("postgres://h/d", &[("h", 5432)]),
            ("postgres://u:p@h1:5431,h2:5432/d", &[("h1", 5431), ("h2", 5432)]),
            ("postgres://u:p%40,@h1,[::1]:7/d", &[("h1", 5432), ("[::1]", 7)]),
            ("postgres://u@%2Frun%2Fpg,h2:6/d", &[("/run/pg", 5432), ("h2", 6)]),
            ("postgres://u@h1,h2/d?port=6", &[("h1", 6), ("h2", 6)]),
            ("postgres://u@/d?host=h1,h2&port=6,7", &[("h1", 6), ("h2", 7)]),
            ("postgres://u@/d?host=/run/pg,h2", &[("/run/pg", 5432), ("h2", 5432)]),
            ("postgres://u@x/d?host=h1", &[("h1", 5432)]),
        ];
        for (url, expected) in cases {
            assert_eq!(hosts(url), pairs(expected), "{url}");
        }
    }

    #[test]
    fn other_parts_of_an_address_hold_for_each_host() {
        let url = "postgres://us%2Fer:p%40ss@h1,h2:7/data?sslmode=disable&options=-cx.y%3D1";
        let address = DatabaseAddress::parse(url).unwrap();
        for host in &address.hosts {
            assert_eq!(host.get_username(), "us/er");
            assert_eq!(host.get_database(), Some("data"));
            assert_eq!(host.get_options(), Some("-cx.y=1"));
            assert!(matches!(host.get_ssl_mode(), sqlx::postgres::PgSslMode::Disable));
        }
        assert_eq!(address.through_pooler().unwrap_err(), AddressError::Options);
    }

    #[test]
    fn sessions_must_write_where_there_are_several_hosts() {
        let attrs = |url: &str| DatabaseAddress::parse(url).map(|address| address.attrs);
        assert_eq!(attrs("postgres://h/d"), Ok(SessionAttrs::Any));
        assert_eq!(attrs("postgres://h,i/d"), Ok(SessionAttrs::ReadWrite));
        let with = |value: &str| attrs(&format!("postgres://h/d?target_session_attrs={value}"));
        assert_eq!(with("read-write"), Ok(SessionAttrs::ReadWrite));
        assert_eq!(with("primary"), Ok(SessionAttrs::Primary));
        assert_eq!(with("any"), Ok(SessionAttrs::Any));
        for useless in ["standby", "prefer-standby", "read-only", ""] {
            assert_eq!(with(useless), Err(AddressError::SessionAttrs), "{useless}");
        }
    }

    #[test]
    fn unusable_addresses_are_refused_without_their_values() {
        let error = |url: &str| DatabaseAddress::parse(url).unwrap_err();
        for (url, expected) in [
            ("mysql://u:s3cret@h/d", AddressError::Form),
            ("host=h password=s3cret", AddressError::Form),
            ("postgres://u:s3cret@h:port/d", AddressError::Form),
            ("postgres://h1,,h2/d", AddressError::Hosts),
            ("postgres://h1,/d", AddressError::Hosts),
            ("postgres://h/d?host=h1,h2,h3&port=1,2", AddressError::Ports),
            ("postgres://h/d?port=x", AddressError::Ports),
            ("postgres://h,i/d?hostaddr=127.0.0.1", AddressError::HostAddress),
            ("postgres://h/d?connect_timeout=0", AddressError::ConnectTimeout),
            ("postgres://h/d?connect_timeout=61", AddressError::ConnectTimeout),
        ] {
            assert_eq!(error(url), expected, "{url}");
            assert!(!error(url).to_string().contains("s3cret"));
        }
        let many = format!("postgres://{}/d", vec!["h"; HOSTS_MAX + 1].join(","));
        assert_eq!(error(&many), AddressError::Hosts);
    }

    #[test]
    fn parameters_without_effect_are_named() {
        let url =
            "postgres://h/d?schema=public&channel_binding=require&sslmode=require&pgbouncer=true";
        let address = DatabaseAddress::parse(url).unwrap();
        assert_eq!(address.ignored, ["schema", "channel_binding"]);
        assert!(address.says_pooler);
    }
}
