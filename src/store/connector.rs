//! Opens connections to Postgres. Every connection of the service is opened here.

use std::{fmt, sync::Arc, time::Duration};

use sqlx::{
    ConnectOptions, Error, Executor, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

/// Maximum time to open one connection: TCP, TLS, authentication and the settings of the session.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Settings of every session.
///
/// A plan that is made while a table has one page reads all of it, since that is cheaper then, and
/// it is kept when the table has thousands. Look-ups by key are meant everywhere; what has no index
/// is read as before, only that its cost looks enormous, and so worth a compilation of a tenth of a
/// second, and workers that take 6 ms to begin. Nothing but speed depends on these, so a pooler that
/// gives this session to others does no harm.
const SESSION: &str = "set enable_seqscan = off; set jit = off; \
                       set max_parallel_workers_per_gather = 0";

/// Opens connections to the database of the settings. Cheap to clone.
#[derive(Clone)]
pub struct Connector(Arc<PgConnectOptions>);

impl Connector {
    /// A connection with the settings of a session. Takes at most [`CONNECT_TIMEOUT`].
    ///
    /// # Errors
    ///
    /// [`Error::Io`] of the kind `TimedOut` after that time.
    pub async fn connect(&self) -> Result<PgConnection, Error> {
        let connect = async {
            let mut connection = self.0.connect().await?;
            connection.execute(SESSION).await?;
            Ok(connection)
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connect).await.unwrap_or_else(|_| {
            let reason = format!("no connection within {} s", CONNECT_TIMEOUT.as_secs());
            Err(Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, reason)))
        })
    }

    /// A pool of sqlx for one connection, for `PgListener`, which takes nothing else. Connects when
    /// first used.
    pub(super) async fn listener_pool(&self) -> Result<PgPool, Error> {
        let options = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(CONNECT_TIMEOUT)
            .max_lifetime(None)
            .idle_timeout(None);
        Ok(options.connect_lazy_with(self.0.as_ref().clone()))
    }

    /// A pool of sqlx, for the statements of tests. Connects when first used.
    pub(super) fn test_pool(&self, connections_max: usize) -> PgPool {
        let options =
            PgPoolOptions::new().max_connections(u32::try_from(connections_max).unwrap_or(1));
        options.connect_lazy_with(self.0.as_ref().clone())
    }
}

impl From<PgConnectOptions> for Connector {
    fn from(options: PgConnectOptions) -> Self {
        Self(Arc::new(options.application_name("webhook-dispatcher")))
    }
}

/// Without the options: they contain the password.
impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}
