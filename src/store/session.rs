//! One session of Postgres, and the policy for its failures.
//!
//! - A session that has failed in a way that ends it, or that makes it useless, is never used again.
//! - A statement that never reached the server, or that changes nothing, is repeated once on a new
//!   session. The caller does not notice.
//! - A read that gets no answer on an old session is given up early and repeated on a new one.

use std::{
    fmt, io,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt, StreamExt, TryStreamExt, future::BoxFuture, stream, stream::BoxStream,
};
use sqlx::{
    AssertSqlSafe, Connection, Describe, Either, Error, Execute, Executor, PgConnection, Postgres,
    SqlSafeStr, SqlStr,
    postgres::{PgDatabaseError, PgQueryResult, PgRow, PgSeverity, PgStatement, PgTypeInfo},
};

use super::{
    connector::{Connector, SESSION_LOCAL},
    statement::Statement,
};

/// Time since the last answer after which a copy of each statement is kept, to repeat it. A busier
/// session keeps copies of reads only: its writes are large, and their callers can repeat them.
const BUSY_WITHIN: Duration = Duration::from_millis(100);
/// Maximum wait for the answer to a read on a session that has been used before. Then the read is
/// repeated on a new session.
const READ_TIMEOUT: Duration = Duration::from_secs(4);
/// A statement that was given up after this long makes its session unusable: the network may have
/// swallowed it.
const SILENT_AFTER: Duration = Duration::from_millis(1_500);
/// Age up to which a session is kept although it cannot do the work: a new one would be the same.
/// Bounds the number of sessions that a server without write access has to open.
const NEW_WITHIN: Duration = Duration::from_secs(2);
/// SQLSTATE of a statement that writes in a session that must not.
const READ_ONLY: &str = "25006";
/// SQLSTATE of a file that the server cannot find, and the source file of Postgres that loads
/// libraries: its errors have several codes, and their text depends on the language of the server.
const UNDEFINED_FILE: &str = "58P01";
const LIBRARY_LOADER: &str = "dfmgr.c";
/// Errors that end the session and prove that the statement had no effect: the administrator has ended
/// it, the server starts or stops, or the session was idle for too long.
const WITHOUT_EFFECT: [&str; 4] = ["57P01", "57P03", "57P05", "25P03"];
/// Other errors that end the session: the server has crashed, and everything about connections.
const CRASH: &str = "57P02";
const CONNECTION_CLASS: &str = "08";

/// A session. Statements run on it as on a connection of sqlx.
pub(super) struct Session {
    connection: PgConnection,
    connector: Connector,
    doubt: Arc<Doubt>,
    opened_at: Instant,
    /// The last time that the server answered.
    answered_at: Instant,
    /// Whether a statement has run since the session was opened.
    is_used: bool,
    /// Whether another session can take its place.
    repeats: bool,
    state: State,
    /// The start of the statement under way, or of one that was given up in the middle.
    under_way_since: Option<Instant>,
}

/// The transaction of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    InTransaction,
    /// A transaction was given up and must be rolled back before anything else runs.
    RollbackDue,
    /// The session must not be used again.
    Lost,
}

impl Session {
    /// Opens a session that reports its loss to `doubt`.
    pub async fn open(connector: &Connector, doubt: Arc<Doubt>) -> Result<Self, Error> {
        // Boxed: it is rare, and would make the future of every statement 30 KiB larger.
        let connection = Box::pin(connector.connect()).await?;
        let now = Instant::now();
        Ok(Self {
            connection,
            connector: connector.clone(),
            doubt,
            opened_at: now,
            answered_at: now,
            is_used: false,
            repeats: true,
            state: State::Idle,
            under_way_since: None,
        })
    }

    /// The same, without repeating anything on another session: for locks and settings of its own.
    pub fn without_repeats(self) -> Self {
        Self { repeats: false, ..self }
    }

    /// The time since it was opened.
    pub fn age(&self) -> Duration {
        self.opened_at.elapsed()
    }

    /// The last time that the server answered.
    pub fn answered_at(&self) -> Instant {
        self.answered_at
    }

    /// Whether nothing is under way, so that it can be used again at once.
    pub fn is_clean(&self) -> bool {
        self.state == State::Idle && self.under_way_since.is_none()
    }

    /// Whether it must not be used again.
    pub fn is_lost(&self) -> bool {
        let is_silent = self.under_way_since.is_some_and(|since| since.elapsed() >= SILENT_AFTER);
        self.state == State::Lost || is_silent
    }

    /// Brings a session back into use within `timeout`: waits for the end of what was given up, rolls
    /// back, and checks that the server answers. One round trip. A session that does not answer is
    /// lost.
    pub async fn check(&mut self, timeout: Duration) -> Result<(), Error> {
        let check = async {
            match self.state {
                State::Idle => self.connection.ping().await,
                State::InTransaction | State::RollbackDue => {
                    self.connection.execute("rollback").await.map(|_| ())
                }
                State::Lost => Err(ended()),
            }
        };
        let checked = within(timeout, check).await;
        match &checked {
            Ok(()) => {
                (self.state, self.under_way_since) = (State::Idle, None);
                self.answered_at = Instant::now();
            }
            Err(error) => self.lose(error, has_timed_out(error)),
        }
        checked
    }

    /// Begins a transaction. It is rolled back unless it is committed.
    pub async fn begin(&mut self) -> Result<Transaction<'_>, Error> {
        self.begin_with("begin").await
    }

    /// Begins a transaction with a statement of its own.
    pub async fn begin_with(&mut self, begin: &'static str) -> Result<Transaction<'_>, Error> {
        let sql = if self.connector.is_pooled() {
            AssertSqlSafe(format!("{begin}; {SESSION_LOCAL}")).into_sql_str()
        } else {
            begin.into_sql_str()
        };
        self.run(Statement { begins: true, sql, ..Statement::plain("begin") }).await?;
        Ok(Transaction(self))
    }

    /// Closes it in order.
    pub async fn close(self) -> Result<(), Error> {
        self.connection.close().await
    }

    /// Runs a statement, on a new session if this one turns out to be dead.
    async fn run(&mut self, statement: Statement) -> Result<Answer, Error> {
        if self.state == State::RollbackDue {
            self.check(SILENT_AFTER).await?;
        }
        let is_harmless = statement.is_harmless();
        // On a new session it would fail again, and in a transaction it does not stand alone.
        let may_repeat = self.repeats && self.is_used && self.state == State::Idle;
        let keeps_copy = may_repeat && (is_harmless || self.answered_at.elapsed() > BUSY_WITHIN);
        let copy = keeps_copy.then(|| statement.clone());
        let answered = if may_repeat && is_harmless {
            within(READ_TIMEOUT, self.send(statement)).await
        } else {
            self.send(statement).await
        };
        match (self.settle(answered), copy) {
            (Err(error), Some(copy))
                if self.is_lost() && (is_harmless || had_no_effect(&error)) =>
            {
                tracing::debug!(%error, "a session was lost; its statement is repeated on a new one");
                *self = Self::open(&self.connector, self.doubt.clone()).await?;
                let answered = self.send(copy).await;
                self.settle(answered)
            }
            (answered, _) => answered,
        }
    }

    async fn send(&mut self, statement: Statement) -> Result<Answer, Error> {
        let begins = statement.begins;
        self.under_way_since = Some(Instant::now());
        match self.state {
            State::Lost => return Err(ended()),
            // Should its answer not be waited for, the transaction may be open all the same.
            State::Idle if begins => self.state = State::RollbackDue,
            _ => {}
        }
        self.is_used = true;
        if self.connector.is_pooled() {
            return self.send_through_pooler(statement).await;
        }
        let answer = self.connection.fetch_many(statement).try_collect().await?;
        if begins {
            self.state = State::InTransaction;
        }
        Ok(answer)
    }

    /// Sends a statement through a pooler in transaction mode.
    ///
    /// A statement with arguments takes two round trips, one to parse it and one to run it, which
    /// reach the same session in a transaction only. Nothing is prepared under a name: the session is
    /// another client's after the transaction, and keeps such names.
    async fn send_through_pooler(&mut self, statement: Statement) -> Result<Answer, Error> {
        let begins = statement.begins;
        let is_alone = self.state == State::Idle && statement.arguments.is_some();
        let statement = Statement { is_persistent: false, ..statement };
        if is_alone {
            self.state = State::RollbackDue;
            let begin = AssertSqlSafe(format!("begin; {SESSION_LOCAL}"));
            self.connection.execute(begin).await?;
        }
        let answer: Result<Answer, Error> =
            self.connection.fetch_many(statement).try_collect().await;
        if is_alone {
            let end = if answer.is_ok() { "commit" } else { "rollback" };
            match self.connection.execute(end).await {
                Ok(_) => self.state = State::Idle,
                Err(error) if answer.is_ok() => return Err(error),
                // Rolled back before anything else runs, unless the session has ended.
                Err(_) => {}
            }
        }
        if begins && answer.is_ok() {
            self.state = State::InTransaction;
        }
        answer
    }

    /// Notes an answer that was waited for.
    fn settle(&mut self, answered: Result<Answer, Error>) -> Result<Answer, Error> {
        self.under_way_since = None;
        match &answered {
            // A read that takes long may be slow for a reason of its own: a round trip on the other
            // sessions will show whether the network is silent.
            Err(error) if self.is_ended_by(error) => self.lose(error, false),
            _ => self.answered_at = Instant::now(),
        }
        answered
    }

    fn lose(&mut self, error: &Error, is_silent: bool) {
        self.state = State::Lost;
        self.doubt.raise(is_silent || code(error).as_deref() == Some(READ_ONLY));
    }

    /// Whether an error ends this session, or shows that it is of no use.
    fn is_ended_by(&self, error: &Error) -> bool {
        match failure(error) {
            Failure::Ended { .. } => true,
            Failure::Useless => self.age() > NEW_WITHIN,
            Failure::Statement => false,
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("state", &self.state).finish_non_exhaustive()
    }
}

/// A transaction. Dropped without a commit, it is rolled back before the session is used again.
pub(super) struct Transaction<'s>(&'s mut Session);

impl Transaction<'_> {
    /// Commits.
    pub async fn commit(self) -> Result<(), Error> {
        self.0.run(Statement::plain("commit")).await?;
        self.0.state = State::Idle;
        Ok(())
    }

    /// Rolls back, and waits for it.
    pub async fn rollback(self) -> Result<(), Error> {
        self.0.run(Statement::plain("rollback")).await?;
        self.0.state = State::Idle;
        Ok(())
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if self.0.state == State::InTransaction {
            self.0.state = State::RollbackDue;
        }
    }
}

impl Deref for Transaction<'_> {
    type Target = Session;

    fn deref(&self) -> &Session {
        self.0
    }
}

impl DerefMut for Transaction<'_> {
    fn deref_mut(&mut self) -> &mut Session {
        self.0
    }
}

/// The doubt that one lost session casts on the other sessions of its pool.
#[derive(Debug, Default)]
pub(super) struct Doubt(Mutex<Doubted>);

#[derive(Debug, Default)]
struct Doubted {
    /// A session was lost then.
    at: Option<Instant>,
    /// A session was lost then for a reason that all sessions share, which a round trip may not show:
    /// it was silent, or read-only.
    of_all_at: Option<Instant>,
}

/// What a pool has to do with a session that has not been used for a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Advice {
    Use,
    Check,
    Discard,
}

impl Doubt {
    fn raise(&self, is_of_all: bool) {
        let now = Some(Instant::now());
        let mut doubted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        doubted.at = now;
        if is_of_all {
            doubted.of_all_at = now;
        }
    }

    /// Says what to do with a session whose server has answered last at `answered_at`.
    pub fn advice(&self, answered_at: Instant) -> Advice {
        let doubted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_older = |at: Option<Instant>| at.is_some_and(|at| answered_at < at);
        if is_older(doubted.of_all_at) {
            Advice::Discard
        } else if is_older(doubted.at) {
            Advice::Check
        } else {
            Advice::Use
        }
    }
}

type Answer = Vec<Either<PgQueryResult, PgRow>>;

/// An error, by what it says about its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    /// The session has ended. Without an effect: the statement has changed nothing, for sure.
    Ended { without_effect: bool },
    /// The session goes on, and cannot do the work; another one may. The statement has changed nothing.
    Useless,
    /// It is about the statement.
    Statement,
}

fn failure(error: &Error) -> Failure {
    let Error::Database(refusal) = error else {
        return match error {
            // A part of it may have been sent, but never its end, without which nothing is committed.
            Error::Io(error) => {
                Failure::Ended { without_effect: error.kind() == io::ErrorKind::BrokenPipe }
            }
            Error::Tls(_) | Error::Protocol(_) | Error::WorkerCrashed => {
                Failure::Ended { without_effect: false }
            }
            _ => Failure::Statement,
        };
    };
    let code = refusal.code().unwrap_or_default();
    let refusal = refusal.try_downcast_ref::<PgDatabaseError>();
    let is_fatal = refusal
        .is_some_and(|refusal| matches!(refusal.severity(), PgSeverity::Fatal | PgSeverity::Panic));
    if WITHOUT_EFFECT.contains(&code.as_ref()) {
        Failure::Ended { without_effect: true }
    } else if is_fatal || code == CRASH || code.starts_with(CONNECTION_CLASS) {
        Failure::Ended { without_effect: false }
    } else if code == READ_ONLY || is_of_library(error) {
        Failure::Useless
    } else {
        Failure::Statement
    }
}

/// Whether the server could not load a library, as after its package was replaced under it.
pub(super) fn is_of_library(error: &Error) -> bool {
    let Error::Database(refusal) = error else { return false };
    let refusal = refusal.try_downcast_ref::<PgDatabaseError>();
    refusal.is_some_and(|one| one.code() == UNDEFINED_FILE || one.file() == Some(LIBRARY_LOADER))
}

/// Whether no answer came in time.
pub(super) fn has_timed_out(error: &Error) -> bool {
    matches!(error, Error::Io(error) if error.kind() == io::ErrorKind::TimedOut)
}

fn had_no_effect(error: &Error) -> bool {
    matches!(failure(error), Failure::Ended { without_effect: true } | Failure::Useless)
}

fn code(error: &Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}

fn ended() -> Error {
    Error::Protocol("the session has ended".to_owned())
}

/// Waits for an answer for so long.
async fn within<T>(
    timeout: Duration,
    answer: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::time::timeout(timeout, answer).await.unwrap_or_else(|_| {
        let reason = format!("no answer within {} s", timeout.as_secs_f64());
        Err(Error::Io(io::Error::new(io::ErrorKind::TimedOut, reason)))
    })
}

/// Reads the whole answer to a statement before any of it is handed on.
impl<'s> Executor<'s> for &'s mut Session {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, Error>>
    where
        's: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        async move {
            let answer = self.run(Statement::new(query)?).await?;
            Ok::<_, Error>(stream::iter(answer.into_iter().map(Ok)))
        }
        .into_stream()
        .try_flatten()
        .boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        's: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        async move {
            let answer = self.run(Statement::new(query)?).await?;
            Ok(answer.into_iter().find_map(Either::right))
        }
        .boxed()
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        's: 'e,
    {
        self.connection.prepare_with(sql, parameters)
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
    where
        's: 'e,
    {
        self.connection.describe(sql)
    }
}
