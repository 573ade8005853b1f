//! Opens connections to Postgres. Every connection of the service is opened here.
//!
//! The address is read again at each connect, and its hosts are tried in order, from the one that
//! worked last on: a fail-over is found by the next connect.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Error, Executor, PgConnection, PgPool, Row,
    postgres::{PgConnectOptions, PgPoolOptions, PgSslMode},
};

use super::{
    address::{AddressError, AddressSource, DatabaseAccess, DatabaseAddress, SessionAttrs},
    session::has_timed_out,
};

/// Maximum time for a connection of the listener, which its pool opens.
const LISTENER_TIMEOUT: Duration = Duration::from_secs(5);

/// Settings of every session.
///
/// A plan that is made while a table has one page reads all of it, since that is cheaper then, and
/// it is kept when the table has thousands. Look-ups by key are meant everywhere; what has no index
/// is read as before, only that its cost looks enormous, and so worth a compilation of a tenth of a
/// second, and workers that take 6 ms to begin. Nothing but speed depends on these.
///
/// Where the network swallows a session, the server ends it: a transaction would keep its locks until
/// then. Over a Unix socket the settings of TCP mean nothing.
const SESSION: &str = "set enable_seqscan = off; set jit = off; \
                       set max_parallel_workers_per_gather = 0; \
                       set idle_in_transaction_session_timeout = '10s'; \
                       set tcp_user_timeout = '10s'; set tcp_keepalives_idle = 5; \
                       set tcp_keepalives_interval = 2; set tcp_keepalives_count = 3";
/// The same behind a pooler, whose sessions are other clients' a moment later.
pub(super) const SESSION_LOCAL: &str = "set local enable_seqscan = off; set local jit = off; \
                                        set local max_parallel_workers_per_gather = 0; \
                                        set local idle_in_transaction_session_timeout = '10s'";

/// The question whether a session counts.
const SESSION_ATTRS: &str = "select pg_is_in_recovery() as is_standby, \
                             current_setting('transaction_read_only') = 'on' as is_read_only";

/// SQLSTATE of a login that the server does not allow in this way, such as over TLS.
const INVALID_AUTHORIZATION: &str = "28000";

/// Number of looks for a pooler. It may serve other clients with the backends meanwhile.
const POOLER_CHECKS: usize = 3;

/// Two connections share the backends of a pooler, and the settings do not say so.
#[derive(Debug, thiserror::Error)]
#[error("two connections share one session")]
pub(super) struct PoolerBetween;

/// Servers answer, and none of their sessions counts.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotWritable(String);

/// Opens connections to the database of the settings. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Connector {
    main: Arc<Way>,
    direct: Option<Arc<Way>>,
}

/// A way to the database.
#[derive(Debug)]
struct Way {
    source: AddressSource,
    /// The host that is tried first: the last one that worked.
    first: AtomicUsize,
    /// Whether a connection without TLS has been warned of.
    has_warned: AtomicBool,
    /// Whether it was found that no pooler in transaction mode is in between, where there must be
    /// none.
    is_checked: AtomicBool,
}

impl Connector {
    /// Whether a pooler in transaction mode stands between: the session of one transaction may be
    /// another one than that of the next, and belongs to other clients in between.
    pub fn is_pooled(&self) -> bool {
        self.direct.is_some()
    }

    /// The way to sessions of our own, around the pooler if there is one.
    #[must_use]
    pub fn direct(&self) -> Self {
        Self { main: self.direct.as_ref().unwrap_or(&self.main).clone(), direct: None }
    }

    /// A connection, with the settings of a session where the session is ours.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] of the kind `TimedOut` where no host answered within the `connect_timeout`.
    pub async fn connect(&self) -> Result<PgConnection, Error> {
        self.main.connect(self.is_pooled()).await.map(|(connection, _)| connection)
    }

    /// A pool of sqlx for one connection, for `PgListener`, which takes nothing else. Its host is one
    /// that has just worked.
    pub(super) async fn listener_pool(&self) -> Result<PgPool, Error> {
        let (connection, options) = self.main.connect(self.is_pooled()).await?;
        connection.close().await?;
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(LISTENER_TIMEOUT)
            .max_lifetime(None)
            .idle_timeout(None);
        Ok(pool.connect_lazy_with(options))
    }

    /// A pool of sqlx, for the statements of tests. Connects when first used.
    pub(super) fn test_pool(&self, connections_max: usize) -> PgPool {
        let options =
            PgPoolOptions::new().max_connections(u32::try_from(connections_max).unwrap_or(1));
        let address = self.direct().main.source.read().expect("the address of a test is valid");
        options.connect_lazy_with(address.hosts[0].clone())
    }
}

impl From<DatabaseAccess> for Connector {
    fn from(access: DatabaseAccess) -> Self {
        let way = |source| {
            // Addresses that do not come from the settings are those of a Postgres of our own.
            let is_ours = matches!(source, AddressSource::Fixed(_));
            Arc::new(Way {
                source,
                first: AtomicUsize::new(0),
                has_warned: AtomicBool::new(false),
                is_checked: AtomicBool::new(is_ours),
            })
        };
        Self { main: way(access.main), direct: access.direct.map(way) }
    }
}

impl From<PgConnectOptions> for Connector {
    fn from(options: PgConnectOptions) -> Self {
        DatabaseAccess::from(options).into()
    }
}

impl Way {
    /// A connection to the first host with a session that counts, and the options that it took.
    async fn connect(&self, is_pooled: bool) -> Result<(PgConnection, PgConnectOptions), Error> {
        let address = self.read().await.map_err(|error| Error::Configuration(error.into()))?;
        let count = address.hosts.len();
        let first = self.first.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        for index in (0..count).map(|offset| (first + offset) % count) {
            // Beforehand: where the caller gives up on a silent host, the next call begins with another.
            self.first.store((index + 1) % count, Ordering::Relaxed);
            match self.open(&address, &address.hosts[index], is_pooled).await {
                Ok(opened) => {
                    self.first.store(index, Ordering::Relaxed);
                    return Ok(opened);
                }
                Err(error) => failures.push((name(&address.hosts[index]), error)),
            }
        }
        Err(join(failures))
    }

    /// Reads the address. A file may be slow.
    async fn read(&self) -> Result<DatabaseAddress, AddressError> {
        if let AddressSource::Fixed(address) = &self.source {
            return Ok(address.as_ref().clone());
        }
        let source = self.source.clone();
        let reading = tokio::task::spawn_blocking(move || source.read());
        reading.await.unwrap_or(Err(AddressError::Unread))
    }

    /// A connection to one host, within the `connect_timeout`.
    async fn open(
        &self,
        address: &DatabaseAddress,
        host: &PgConnectOptions,
        is_pooled: bool,
    ) -> Result<(PgConnection, PgConnectOptions), Error> {
        let open = async {
            // Not all poolers know the parameter, and values are binary here.
            let options =
                host.clone().application_name("webhook-dispatcher").extra_float_digits(None);
            let (mut connection, options) = self.log_in(options).await?;
            if !is_pooled && !self.is_checked.load(Ordering::Relaxed) {
                // Before any setting, which a pooler would hand to other clients.
                check_for_pooler(&mut connection, options.connect().await?).await?;
                self.is_checked.store(true, Ordering::Relaxed);
            }
            let attrs = (address.attrs != SessionAttrs::Any).then_some(SESSION_ATTRS);
            let settings = (!is_pooled).then_some(SESSION);
            let statements: Vec<_> = settings.into_iter().chain(attrs).collect();
            if !statements.is_empty() {
                // One message, so one round trip, and one session of a pooler.
                let sql = AssertSqlSafe(statements.join("; "));
                let row = connection.fetch_optional(sqlx::raw_sql(sql)).await?;
                if let Some(row) = row {
                    check(address.attrs, row.try_get("is_standby")?, row.try_get("is_read_only")?)?;
                }
            }
            Ok((connection, options))
        };
        let timeout = address.connect_timeout;
        tokio::time::timeout(timeout, open).await.unwrap_or_else(|_| {
            let reason = format!("no connection within {} s", timeout.as_secs());
            Err(Error::Io(io::Error::new(io::ErrorKind::TimedOut, reason)))
        })
    }

    /// Logs in. With `sslmode=prefer`, the default, a server whose TLS cannot be used is tried again
    /// without, as libpq does.
    async fn log_in(
        &self,
        options: PgConnectOptions,
    ) -> Result<(PgConnection, PgConnectOptions), Error> {
        let error = match options.connect().await {
            Ok(connection) => return Ok((connection, options)),
            Err(error) => error,
        };
        let is_refusal =
            error.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref()
                == Some(INVALID_AUTHORIZATION);
        let is_preferred = matches!(options.get_ssl_mode(), PgSslMode::Prefer);
        if !is_preferred || !(is_refusal || is_of_tls(&error)) {
            return Err(with_advice(error));
        }
        let plain = options.ssl_mode(PgSslMode::Disable);
        match plain.connect().await {
            Ok(connection) => {
                if !self.has_warned.swap(true, Ordering::Relaxed) {
                    let error = with_advice(error);
                    tracing::warn!(
                        event = "database_without_tls",
                        %error,
                        "connected to the database without TLS, which it offers and which failed; \
                         `sslmode=disable` in DATABASE_URL skips the attempt"
                    );
                }
                Ok((connection, plain))
            }
            Err(_) => Err(with_advice(error)),
        }
    }
}

/// Finds a pooler in transaction mode: two connections then share one backend, or one connection has
/// several, one after the other.
async fn check_for_pooler(first: &mut PgConnection, mut second: PgConnection) -> Result<(), Error> {
    for _ in 0..POOLER_CHECKS {
        let before = backend(first).await?;
        second.execute("begin").await?;
        // If they share the only backend, the first would wait for it from here on.
        let is_pooled = before == backend(&mut second).await? || before != backend(first).await?;
        second.execute("rollback").await?;
        if is_pooled {
            return Err(Error::Configuration(PoolerBetween.into()));
        }
    }
    second.close().await
}

/// Number of the backend that serves a connection at this moment.
async fn backend(connection: &mut PgConnection) -> Result<i32, Error> {
    // Not prepared: the next statement may be another backend's.
    let row = connection.fetch_one(sqlx::raw_sql("select pg_backend_pid() as backend")).await?;
    row.try_get("backend")
}

/// Whether a session counts.
fn check(attrs: SessionAttrs, is_standby: bool, is_read_only: bool) -> Result<(), Error> {
    let reason = match attrs {
        SessionAttrs::ReadWrite if is_read_only => "the session is read-only",
        SessionAttrs::Primary if is_standby => "the server is a standby",
        _ => return Ok(()),
    };
    Err(not_writable(reason.to_owned()))
}

/// Whether an error may come from a failed TLS handshake. Some servers just hang up.
fn is_of_tls(error: &Error) -> bool {
    match error {
        Error::Tls(_) => true,
        Error::Io(error) => matches!(
            error.kind(),
            io::ErrorKind::InvalidData
                | io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe
        ),
        _ => false,
    }
}

/// The same error, with the remedy where the certificate is of a kind that TLS here does not know.
fn with_advice(error: Error) -> Error {
    let tls = match &error {
        Error::Io(error) => error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()),
        Error::Tls(error) => error.downcast_ref::<rustls::Error>(),
        _ => None,
    };
    let Some(tls) = tls else { return error };
    // The name is that of an error of a library below rustls.
    let advice = if format!("{tls:?}").contains("UnsupportedCertVersion") {
        "the certificate of the database is X.509 version 1, which is not supported: issue a \
         certificate of version 3, or set `sslmode=disable` in DATABASE_URL"
            .to_owned()
    } else {
        format!("{}; `sslmode` in DATABASE_URL says what is required", crate::tls::explain(tls))
    };
    Error::Tls(advice.into())
}

/// A host, as an error names it.
fn name(host: &PgConnectOptions) -> String {
    match host.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", host.get_host(), host.get_port()),
    }
}

/// One error of the failures of all hosts: an answer of a server before all others, since it has a
/// code.
fn join(mut failures: Vec<(String, Error)>) -> Error {
    if failures.len() == 1 {
        return failures.remove(0).1;
    }
    let answer = failures.iter().position(|(_, error)| matches!(error, Error::Database(_)));
    if let Some(index) = answer {
        return failures.remove(index).1;
    }
    let is_not_writable = failures.iter().any(|(_, error)| is_read_only(error));
    let kind = if failures.iter().all(|(_, error)| has_timed_out(error)) {
        io::ErrorKind::TimedOut
    } else {
        io::ErrorKind::Other
    };
    let texts: Vec<_> = failures.iter().map(|(host, error)| format!("{host}: {error}")).collect();
    let text = texts.join("; ");
    if is_not_writable { not_writable(text) } else { Error::Io(io::Error::new(kind, text)) }
}

fn not_writable(reason: String) -> Error {
    Error::Io(io::Error::other(NotWritable(reason)))
}

/// Whether no host with a session that can write was found, and a server has answered.
pub(super) fn is_read_only(error: &Error) -> bool {
    let Error::Io(error) = error else { return false };
    error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<NotWritable>)
}
