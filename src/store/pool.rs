//! The pool, with bounds that sqlx does not set.
//!
//! sqlx tests every connection that comes back, by a round trip that may take as long as the kernel
//! keeps trying, some 15 minutes, and the connection's place is taken meanwhile: one that the
//! network has swallowed would block a pool of one. No hook can prevent it, since `after_release`
//! runs before that test and not instead of it. So whatever is lent here is given back under a
//! deadline, beyond which it is closed and its place is free. That costs no further round trip.

use std::{
    ops::{Deref, DerefMut},
    time::Duration,
};

use futures_util::{
    FutureExt, StreamExt, TryStreamExt, future::BoxFuture, stream, stream::BoxStream,
};
use sqlx::{
    Describe, Either, Error, Execute, Executor, PgConnection, PgPool, Postgres, SqlStr,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions, PgQueryResult, PgRow, PgStatement, PgTypeInfo},
};

/// How long a caller waits for a connection. Longer than a return may take.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may take to come back before it is closed.
const RETURN_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the end waits for the connections that are lent. Longer than a return may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// What each connection begins with.
const SESSION: &str = "set enable_seqscan = off; set jit = off; \
                       set max_parallel_workers_per_gather = 0";

/// A pool. Statements run on it as on sqlx' own.
#[derive(Debug, Clone)]
pub(super) struct Pool(PgPool);

impl Pool {
    /// Connects when first used.
    pub fn connect_lazy(options: PgConnectOptions, connections_max: u32) -> Self {
        let pool = PgPoolOptions::new()
            .max_connections(connections_max)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .idle_timeout(Duration::from_mins(10))
            // A round trip before each statement would double the cost of the short ones. A broken
            // connection shows at its first use, and every caller here can repeat.
            .test_before_acquire(false)
            // A plan that is made while a table has one page reads all of it, since that is cheaper
            // then, and it is kept when the table has thousands. Look-ups by key are what is meant
            // everywhere; what has no index is read as before, only that its cost looks enormous, and
            // so worth a compilation of a tenth of a second, and workers that take 6 ms to begin.
            // Nothing but speed depends on these, so a pooler that gives this session to others does
            // no harm.
            .after_connect(|connection, _| {
                Box::pin(async move {
                    connection.execute(SESSION).await?;
                    Ok(())
                })
            })
            .connect_lazy_with(options);
        Self(pool)
    }

    /// sqlx' own pool, for what needs that very type. What it lends comes back without a bound.
    pub fn unbounded(&self) -> &PgPool {
        &self.0
    }

    /// A pool for one connection that is kept for good, so that it takes no place here.
    pub fn apart(&self) -> PgPool {
        PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .max_lifetime(None)
            .idle_timeout(None)
            .connect_lazy_with((*self.0.connect_options()).clone())
    }

    /// Lends a connection.
    pub async fn acquire(&self) -> Result<Lent, Error> {
        Ok(Lent(self.0.acquire().await?))
    }

    /// Closes every connection, after the statements under way, or without them if they hang.
    pub async fn close(&self) {
        if tokio::time::timeout(CLOSE_TIMEOUT, self.0.close()).await.is_err() {
            tracing::warn!("connections to the database were still in use at the end");
        }
    }
}

/// A connection on loan.
pub(super) struct Lent(PoolConnection<Postgres>);

impl Deref for Lent {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.0
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.0
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // Taken out at once, so that sqlx' own `drop` finds nothing to give back.
        let returned = self.0.return_to_pool();
        // Tracked by nobody: whoever closes the pool waits for it, and nothing is lost with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                // Dropping what hangs closes the connection and frees its place.
                if tokio::time::timeout(RETURN_TIMEOUT, returned).await.is_err() {
                    tracing::warn!("a connection to the database hangs; it was given up");
                }
            });
        }
    }
}

/// Reads all that a statement answers before any of it is handed on.
impl<'p> Executor<'p> for &'_ Pool {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let pool = self.clone();
        async move {
            let mut connection = pool.acquire().await?;
            let all: Vec<_> = connection.fetch_many(query).try_collect().await?;
            Ok::<_, Error>(stream::iter(all.into_iter().map(Ok)))
        }
        .into_stream()
        .try_flatten()
        .boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let pool = self.clone();
        async move { pool.acquire().await?.fetch_optional(query).await }.boxed()
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'p: 'e,
    {
        let pool = self.clone();
        async move { pool.acquire().await?.prepare_with(sql, parameters).await }.boxed()
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
    where
        'p: 'e,
    {
        let pool = self.clone();
        async move { pool.acquire().await?.describe(sql).await }.boxed()
    }
}
