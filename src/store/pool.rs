//! The pool of sessions.
//!
//! - The session that was used last is lent first, so that one of them stays warm.
//! - A session that has been at rest for a second is checked before it is lent, by one round trip with
//!   a deadline. A busy one costs none.
//! - A session that comes back in the middle of something is cleaned in the background, with a
//!   deadline; its place is taken meanwhile.
//! - A lost session is closed and its place is free. The other sessions of the pool are then checked
//!   or discarded before their next use (see [`Doubt`]).

use std::{
    ops::{Deref, DerefMut},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use deadpool::managed::{self, Manager, Metrics, Object, PoolError, QueueMode, RecycleResult};
use futures_util::{
    FutureExt, StreamExt, TryStreamExt, future::BoxFuture, stream, stream::BoxStream,
};
use sqlx::{
    Describe, Either, Error, Execute, Executor, Postgres, SqlStr,
    postgres::{PgQueryResult, PgRow, PgStatement, PgTypeInfo},
};

use super::{
    connector::Connector,
    session::{Advice, Doubt, Session},
};

/// Maximum wait for a session. Longer than the return of one may take.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time for the return of a session that was given up in the middle of something.
const RETURN_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum wait for the sessions that are lent when the pool is closed. Longer than a return may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);
/// Time at rest after which a session is checked before it is lent, and the deadline of the check.
const CHECK_AFTER: Duration = Duration::from_secs(1);
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum age of a session: what its backend has cached does not grow for ever.
const AGE_MAX: Duration = Duration::from_mins(30);
/// Maximum time at rest of a session, and the time between two looks for such sessions.
const REST_MAX: Duration = Duration::from_mins(10);
const REAP_INTERVAL: Duration = Duration::from_mins(1);
/// Time between two tries to open a session while the server takes no more of them.
const FULL_PAUSE: Duration = Duration::from_millis(50);
/// SQLSTATE of "too many connections": for the server, the database or the role.
const TOO_MANY_CONNECTIONS: &str = "53300";

/// A pool. Statements run on it as on a connection of sqlx.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    sessions: managed::Pool<Sessions>,
    reaper: Arc<Reaper>,
}

/// Opens the sessions of a pool, and decides which of them may be lent again.
#[derive(Debug)]
struct Sessions {
    connector: Connector,
    doubt: Arc<Doubt>,
}

/// The time of the last look for sessions that have been at rest for long.
#[derive(Debug)]
struct Reaper {
    began: Instant,
    /// In seconds since then.
    looked_at: AtomicU64,
}

impl Manager for Sessions {
    type Type = Session;
    type Error = Error;

    async fn create(&self) -> Result<Session, Error> {
        Session::open(&self.connector, self.doubt.clone()).await
    }

    async fn recycle(&self, session: &mut Session, _: &Metrics) -> RecycleResult<Error> {
        if session.age() > AGE_MAX {
            return Err(managed::RecycleError::message("too old"));
        }
        let answered_at = session.answered_at();
        match self.doubt.advice(answered_at) {
            Advice::Discard => Err(managed::RecycleError::message("in doubt")),
            Advice::Use if answered_at.elapsed() < CHECK_AFTER => Ok(()),
            Advice::Use | Advice::Check => Ok(session.check(CHECK_TIMEOUT).await?),
        }
    }
}

impl Pool {
    /// A pool of at most `sessions_max`. The first one is opened when it is needed.
    pub fn new(connector: Connector, sessions_max: u32) -> Self {
        let sessions = Sessions { connector, doubt: Arc::default() };
        let sessions = managed::Pool::builder(sessions)
            .max_size(sessions_max as usize)
            .queue_mode(QueueMode::Lifo)
            .build()
            .expect("only time-outs need a runtime");
        let reaper = Reaper { began: Instant::now(), looked_at: AtomicU64::new(0) };
        Self { sessions, reaper: Arc::new(reaper) }
    }

    /// The way to the database.
    pub fn connector(&self) -> &Connector {
        &self.sessions.manager().connector
    }

    /// The maximum number of sessions.
    pub fn sessions_max(&self) -> usize {
        self.sessions.status().max_size
    }

    /// Lends a session. While the server takes no more of them, it waits for one to come back.
    pub async fn acquire(&self) -> Result<PooledSession, Error> {
        self.reap();
        let get = async {
            loop {
                match self.sessions.get().await {
                    Ok(session) => return Ok(PooledSession(Some(session))),
                    Err(PoolError::Backend(error)) if is_full(&error) && !self.is_empty() => {
                        tokio::time::sleep(FULL_PAUSE).await;
                    }
                    Err(PoolError::Backend(error)) => return Err(error),
                    Err(_) => return Err(Error::PoolClosed),
                }
            }
        };
        tokio::time::timeout(ACQUIRE_TIMEOUT, get).await.unwrap_or(Err(Error::PoolTimedOut))
    }

    /// Closes every session, after the statements under way, or without them if they hang.
    pub async fn close(&self) {
        self.sessions.close();
        let ended = async {
            while !self.is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(CLOSE_TIMEOUT, ended).await.is_err() {
            tracing::warn!("connections to the database were still in use at the end");
        }
    }

    fn is_empty(&self) -> bool {
        self.sessions.status().size == 0
    }

    /// Closes the sessions that have been at rest for long, once in a while.
    fn reap(&self) {
        let now = self.reaper.began.elapsed().as_secs();
        let looked_at = self.reaper.looked_at.load(Ordering::Relaxed);
        if now < looked_at + REAP_INTERVAL.as_secs() {
            return;
        }
        self.reaper.looked_at.store(now, Ordering::Relaxed);
        drop(self.sessions.retain(|session, _| session.answered_at().elapsed() < REST_MAX));
    }
}

fn is_full(error: &Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.as_deref() == Some(TOO_MANY_CONNECTIONS)
}

/// A session on loan.
pub(super) struct PooledSession(Option<Object<Sessions>>);

impl Deref for PooledSession {
    type Target = Session;

    fn deref(&self) -> &Session {
        self.0.as_ref().expect("there until it is dropped")
    }
}

impl DerefMut for PooledSession {
    fn deref_mut(&mut self) -> &mut Session {
        self.0.as_mut().expect("there until it is dropped")
    }
}

impl Drop for PooledSession {
    fn drop(&mut self) {
        let Some(mut session) = self.0.take() else { return };
        if session.is_lost() {
            drop(Object::take(session));
        } else if !session.is_clean() {
            // Tracked by nobody: its end is awaited by whoever closes the pool, and nothing is lost
            // with it.
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(async move {
                    if let Err(error) = session.check(RETURN_TIMEOUT).await {
                        tracing::debug!(%error, "a session was given up and closed");
                        drop(Object::take(session));
                    }
                });
            } else {
                drop(Object::take(session));
            }
        }
    }
}

/// Reads the whole answer to a statement before any of it is handed on.
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
            let mut session = pool.acquire().await?;
            let all: Vec<_> = session.fetch_many(query).try_collect().await?;
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
