//! What can go wrong with the private Postgres, and what the reader of the message can do about it.
//!
//! Causes are part of the message and not `source()`s: each message is whole by itself, and a caller
//! that prints the chain does not print them twice.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why the private Postgres could not be started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedPostgresError {
    /// No folder holds all programs in a usable version. `rejected` has a line for each near miss.
    #[error(
        "no PostgreSQL {version_min} or newer was found on this machine.\n\
         Install it:\n\
         \x20 Debian, Ubuntu: apt-get install postgresql\n\
         \x20 Fedora:         dnf install postgresql-server\n\
         \x20 Alpine:         apk add postgresql\n\
         \x20 macOS:          brew install postgresql@17\n\
         or set DATABASE_URL to a database that runs already.{rejected}"
    )]
    BinariesNotFound {
        /// The oldest major version that will do.
        version_min: u32,
        /// Folders that were looked at and why they will not do; empty or starting with a newline.
        rejected: String,
    },

    /// The service was stopped before Postgres was ready.
    #[error("stopped before the private Postgres was ready")]
    Cancelled,

    /// The cluster was made by a major version that is not installed.
    #[error(
        "the database in {cluster} was made by PostgreSQL {cluster_version}, but only {found} is \
         installed. Install PostgreSQL {cluster_version} (Debian: apt-get install \
         postgresql-{cluster_version}), convert the folder with pg_upgrade, or choose another \
         DATA_DIR"
    )]
    VersionMismatch {
        /// The folder of the cluster.
        cluster: PathBuf,
        /// Its `PG_VERSION`.
        cluster_version: u32,
        /// The versions that are installed, with their folders.
        found: String,
    },

    /// Another service holds `DATA_DIR/lock`.
    #[error("another webhook-dispatcher already uses DATA_DIR {data_dir} (pid {pid})")]
    AlreadyInUse {
        /// The folder both want.
        data_dir: PathBuf,
        /// What the other wrote into the lock file.
        pid: String,
    },

    /// `DATA_DIR/lock` could not be opened or locked for another reason than being held.
    #[error(
        "cannot lock {path}: {cause}. DATA_DIR must belong to the user that runs \
         webhook-dispatcher and lie on a file system with locks"
    )]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },

    /// Root must run Postgres as another account, and there is none.
    #[error(
        "Postgres refuses to run as root, and /etc/passwd has neither an account `postgres` nor \
         `nobody` to run it as. Start webhook-dispatcher as another user, or set DATABASE_URL"
    )]
    NoAccount,

    /// The account that is to run Postgres may not enter a folder on the way to `DATA_DIR`.
    #[error(
        "DATA_DIR {data_dir} cannot be used: Postgres does not run as root but as {account}, which \
         may not enter {blocked}. Set DATA_DIR to a folder outside of it, for example \
         /var/lib/webhook-dispatcher"
    )]
    NotEnterable {
        /// The folder asked for.
        data_dir: PathBuf,
        /// The first folder on the way to it that keeps the account out, and its mode.
        blocked: String,
        /// The account's name.
        account: String,
    },

    /// `DATA_DIR` is a path that Postgres or its socket cannot express.
    #[error("DATA_DIR {} cannot be used: {reason}", .data_dir.display())]
    UnusableDataDir {
        /// The folder asked for.
        data_dir: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// `DATA_DIR/postgres` is there but is no cluster.
    #[error(
        "{path} exists but holds no database (it has no PG_VERSION). Move it away, or choose \
         another DATA_DIR"
    )]
    NotACluster {
        /// The folder.
        path: PathBuf,
    },

    /// A folder that only our account may enter belongs to someone else, or is no folder.
    #[error(
        "{path} must be a folder of {account}, but {found}. Remove it, or choose another DATA_DIR"
    )]
    ForeignFolder {
        /// The folder.
        path: PathBuf,
        /// Who should own it.
        account: String,
        /// What it is instead.
        found: String,
    },

    /// `initdb` failed.
    #[error("initdb could not make a database in {path} ({status}):\n{output}")]
    Initdb {
        /// The temporary folder that it worked in.
        path: PathBuf,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The end of what it printed.
        output: String,
    },

    /// Postgres ended before it was ready.
    #[error("Postgres stopped during its start ({status}). The end of {log}:\n{tail}")]
    Exited {
        /// How it ended.
        status: std::process::ExitStatus,
        /// Its log file.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },

    /// Postgres runs but took no connection in time.
    #[error(
        "Postgres was not ready after {} s ({last}). The end of {log}:\n{tail}", .waited.as_secs()
    )]
    NotReady {
        /// How long we waited.
        waited: Duration,
        /// What the last try to connect said.
        last: String,
        /// Its log file.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },

    /// The `postmaster.pid` of a Postgres that was starting was deleted, again and again.
    #[error(
        "postmaster.pid was deleted from {cluster} while Postgres was starting there. Nothing but \
         Postgres may delete it: make sure that no other program does, and start again"
    )]
    PidFileLost {
        /// The folder of the cluster.
        cluster: PathBuf,
    },

    /// A postmaster of this cluster is alive and cannot be reached.
    #[error(
        "a Postgres (pid {pid}) already runs on {cluster} but cannot be used: {reason}. Stop it \
         (`kill -INT {pid}`) and start again"
    )]
    Unreachable {
        /// The pid in `postmaster.pid`.
        pid: i32,
        /// The folder of the cluster.
        cluster: PathBuf,
        /// What it answered, or that it did not.
        reason: String,
    },

    /// A service runs, and its Postgres takes no connection.
    #[error("the Postgres of {cluster} takes no connection: {says}{}", of_pid(*.pid))]
    NotServing {
        /// The folder of the cluster.
        cluster: PathBuf,
        /// The pid in `postmaster.pid`, if there is one.
        pid: Option<i32>,
        /// What it answered, or that it did not.
        says: String,
    },

    /// Postgres could be stopped neither fast nor at once.
    #[error("Postgres on {cluster} could not be stopped: {output}")]
    Stop {
        /// The folder of the cluster.
        cluster: PathBuf,
        /// What `pg_ctl` said.
        output: String,
    },

    /// A program could not be run.
    #[error("cannot run {program} as {account}: {cause}")]
    Run {
        /// The program.
        program: PathBuf,
        /// The account that was to run it.
        account: String,
        /// What the system said.
        cause: io::Error,
    },

    /// A file or folder could not be made, read or changed.
    #[error("cannot {action} {path}: {cause}")]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },

    /// Postgres runs but refused us, or a statement.
    #[error("the private Postgres refused what it was asked: {0}")]
    Database(sqlx::Error),
}

fn of_pid(pid: Option<i32>) -> String {
    pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}

impl EmbeddedPostgresError {
    /// For `map_err`: names what was tried and on which path.
    pub(super) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |cause| Self::File { action, path: path.to_owned(), cause }
    }
}
