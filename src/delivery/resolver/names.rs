//! The name servers, search domains and hosts file that are in force now.
//!
//! `/etc/resolv.conf` and `/etc/hosts` change while the service runs: a laptop changes networks, a VPN
//! connects, a container is attached to another network. Both are read again within seconds.

use std::{
    fs::{self, File},
    io::{self, Read},
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hickory_resolver::{
    Hosts, TokioResolver,
    config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::runtime::TokioRuntimeProvider,
    proto::{
        op::Query,
        rr::{Name, RecordType, domain::usage::LOCALHOST},
    },
    system_conf::parse_resolv_conf,
};

/// Time for one round over the name servers, and rounds after the first one.
const QUERY_TIMEOUT: Duration = Duration::from_secs(3);
const QUERY_RETRIES: usize = 1;
/// The longest time for which an answer is cached, whatever it says.
const ANSWER_AGE_MAX: Duration = Duration::from_secs(60);
/// The longest time for which the answer that there is no address is cached.
const NEGATIVE_AGE_MAX: Duration = Duration::from_secs(5);
/// Time between two looks at the files of the system.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Search domains that are tried.
const SEARCH_MAX: usize = 8;
/// Sizes up to which the files are read.
const RESOLV_CONF_BYTES_MAX: u64 = 64 * 1024;
const HOSTS_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Files that configure the system's own resolver.
#[derive(Debug, Clone)]
pub struct SystemFiles {
    /// `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// `/etc/hosts`.
    pub hosts: PathBuf,
    /// The port of the name servers, which `resolv.conf` cannot name.
    pub port: u16,
}

impl Default for SystemFiles {
    fn default() -> Self {
        Self { resolv_conf: "/etc/resolv.conf".into(), hosts: "/etc/hosts".into(), port: 53 }
    }
}

/// Resolves names by the configuration that is in force. Asynchronous.
pub struct Resolver {
    /// The name servers of the settings, which win over those of the system.
    servers: Vec<SocketAddr>,
    files: SystemFiles,
    current: Mutex<Current>,
}

struct Current {
    names: Arc<Names>,
    resolv_conf: Option<Version>,
    hosts: Option<Version>,
    looked_at: Instant,
}

/// One state of the configuration.
pub(super) struct Names {
    pub dns: TokioResolver,
    search: Vec<Name>,
    /// Dots from which on a name is tried as it is before it is tried in the search domains.
    ndots: usize,
    hosts: Arc<Hosts>,
}

/// Metadata that differs when a file was written or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Version {
    /// The version of the file that a path leads to; `None` if there is none.
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

impl Resolver {
    /// A resolver that asks these name servers, or with none of them the system's. Without a readable
    /// configuration of the system it knows the hosts file only, as a container without network needs.
    pub fn new(servers: &[SocketAddr]) -> Arc<Self> {
        Self::with_files(servers, SystemFiles::default())
    }

    /// The same with other files than those of the system.
    pub fn with_files(servers: &[SocketAddr], files: SystemFiles) -> Arc<Self> {
        // The versions before the contents: a change in between is seen at the next look.
        let resolv_conf = Version::of(&files.resolv_conf);
        let hosts = Version::of(&files.hosts);
        let (dns, search, ndots) = if servers.is_empty() {
            system_dns(&files).unwrap_or_else(|error| {
                tracing::warn!(
                    event = "dns_configuration_unreadable", file = %files.resolv_conf.display(), %error,
                    "no DNS configuration could be read; only the hosts file is used"
                );
                dns(ResolverConfig::from_name_servers(Vec::new()), ResolverOpts::default())
            })
        } else {
            let servers = servers.iter().map(|server| name_server(*server)).collect();
            dns(ResolverConfig::from_name_servers(servers), ResolverOpts::default())
        };
        let names = Names { dns, search, ndots, hosts: Arc::new(read_hosts(&files.hosts)) };
        let current =
            Current { names: Arc::new(names), resolv_conf, hosts, looked_at: Instant::now() };
        Arc::new(Self { servers: servers.to_vec(), files, current: Mutex::new(current) })
    }

    /// The configuration in force, after a look at the files if the last one is a second ago.
    pub(super) fn current(&self) -> Arc<Names> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.looked_at.elapsed() >= LOOK_EVERY {
            self.look(&mut current);
            current.looked_at = Instant::now();
        }
        current.names.clone()
    }

    fn look(&self, current: &mut Current) {
        let hosts = Version::of(&self.files.hosts);
        if hosts != current.hosts {
            current.hosts = hosts;
            let hosts = Arc::new(read_hosts(&self.files.hosts));
            current.names = Arc::new(Names { hosts, ..current.names.shared() });
            tracing::info!(event = "hosts_file_reloaded", "read the hosts file again");
        }
        let resolv_conf = Version::of(&self.files.resolv_conf);
        if self.servers.is_empty() && resolv_conf != current.resolv_conf {
            current.resolv_conf = resolv_conf;
            let file = self.files.resolv_conf.display();
            match system_dns(&self.files) {
                Ok((dns, search, ndots)) => {
                    let hosts = current.names.hosts.clone();
                    current.names = Arc::new(Names { dns, search, ndots, hosts });
                    tracing::info!(
                        event = "dns_configuration_reloaded", %file, "read the DNS configuration again"
                    );
                }
                // It may be written just now. The next change is seen too.
                Err(error) => tracing::warn!(
                    event = "dns_configuration_unreadable", %file, %error,
                    "the changed DNS configuration could not be read; the previous one stays in force"
                ),
            }
        }
    }
}

impl Names {
    fn shared(&self) -> Self {
        let Self { dns, search, ndots, hosts } = self;
        Self { dns: dns.clone(), search: search.clone(), ndots: *ndots, hosts: hosts.clone() }
    }

    /// The addresses that the hosts file has for a name. Where it has any, no name server is asked.
    pub fn in_hosts_file(&self, name: &Name) -> impl Iterator<Item = IpAddr> {
        let families = [RecordType::A, RecordType::AAAA];
        let found = families
            .map(|family| self.hosts.lookup_static_host(&Query::query(name.clone(), family)));
        found.into_iter().flatten().flat_map(|lookup| {
            let addresses = lookup.answers().iter().filter_map(|record| record.data.ip_addr());
            addresses.collect::<Vec<_>>()
        })
    }

    /// The full names that a name can mean, in the order in which they are asked for.
    pub fn candidates(&self, name: &Name) -> Vec<Name> {
        let mut full = name.clone();
        full.set_fqdn(true);
        if name.is_fqdn() || LOCALHOST.zone_of(&full) {
            return vec![full];
        }
        // `ndots` counts the dots within a name, of which it has one less than labels.
        let is_full_first = usize::from(name.num_labels()) > self.ndots;
        let below = self.search.iter().filter_map(|domain| {
            let mut below = name.clone().append_domain(domain).ok()?;
            below.set_fqdn(true);
            Some(below)
        });
        let mut names: Vec<_> = below.collect();
        names.insert(if is_full_first { 0 } else { names.len() }, full);
        names
    }
}

/// A host of a URL as a name of DNS. Underscores are fine: Compose and others make such names.
pub(super) fn parse(host: &str) -> Option<Name> {
    Name::from_ascii(host).ok()
}

/// A resolver, its search domains, and its `ndots`.
type Dns = (TokioResolver, Vec<Name>, usize);

/// The configuration of the system's `resolv.conf`.
fn system_dns(files: &SystemFiles) -> io::Result<Dns> {
    let text = read(&files.resolv_conf, RESOLV_CONF_BYTES_MAX)?;
    let (config, options) = parse_resolv_conf(text).map_err(io::Error::other)?;
    let servers = config.name_servers().iter();
    let servers = servers.map(|server| name_server(SocketAddr::new(server.ip, files.port)));
    let (domain, search) = (config.domain().cloned(), config.search().to_vec());
    Ok(dns(ResolverConfig::from_parts(domain, search, servers.collect()), options))
}

fn dns(config: ResolverConfig, mut options: ResolverOpts) -> Dns {
    let mut search: Vec<Name> = Vec::new();
    for domain in config.domain().into_iter().chain(config.search()) {
        if search.len() < SEARCH_MAX && !search.contains(domain) {
            search.push(domain.clone());
        }
    }
    let ndots = options.ndots;
    options.timeout = QUERY_TIMEOUT;
    options.attempts = QUERY_RETRIES;
    options.positive_max_ttl = Some(ANSWER_AGE_MAX);
    options.negative_max_ttl = Some(NEGATIVE_AGE_MAX);
    options.use_hosts_file = ResolveHosts::Never;
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    let dns = builder.build().expect("a resolver without TLS has nothing to load");
    (dns, search, ndots)
}

fn name_server(server: SocketAddr) -> NameServerConfig {
    let mut config = NameServerConfig::udp_and_tcp(server.ip());
    for connection in &mut config.connections {
        connection.port = server.port();
    }
    config
}

/// The hosts file, as far as it can be read.
fn read_hosts(path: &Path) -> Hosts {
    let mut hosts = Hosts::default();
    let read = read(path, HOSTS_BYTES_MAX).and_then(|text| hosts.read_hosts_conf(&text[..]));
    if let Err(error) = read
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(
            event = "hosts_file_unreadable", file = %path.display(), %error,
            "the hosts file could not be read"
        );
    }
    hosts
}

fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}
