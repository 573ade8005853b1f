//! Finds out whether a postmaster serves a cluster, and asks it for a connection.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, test_kill_process};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{ConnectOptions, Connection, Executor, Row};
use tokio::time::timeout;

use super::cluster::USER;

/// The port only names the socket's file; the folder is ours alone.
pub(super) const PORT: u16 = 5432;

/// A stopped postmaster accepts a connection and then says nothing.
const ANSWER_AFTER_MAX: Duration = Duration::from_secs(10);

/// A postmaster fills its lock file right after making it, so an older blank one has no owner.
const BLANK_FILE_AGE_MIN: Duration = Duration::from_secs(5);

/// "The database system is starting up", "… is shutting down", "… in recovery mode".
const CANNOT_CONNECT_NOW: &str = "57P03";
/// A postmaster that is full serves others; that passes.
const TOO_MANY_CONNECTIONS: &str = "53300";

/// Who serves a cluster.
pub(super) enum Postmaster {
    /// Nobody. `stale_pid` is what a `postmaster.pid` that was left behind says.
    Gone { stale_pid: Option<i32> },
    /// It lives and takes no connection; `is_working` if it says that it is starting or stopping.
    Unready { pid: i32, says: String, is_working: bool },
    /// It serves this cluster: it said so over this connection.
    Serving { connection: Box<PgConnection>, socket_dir: PathBuf },
}

/// What came of one try to connect.
pub(super) enum Answer {
    Ready(Box<PgConnection>),
    /// It is starting, recovering or shutting down.
    NotYet(String),
    /// Nobody listens, or not in time.
    Silent(String),
    /// It does not know us. Waiting will not help.
    Refused(sqlx::Error),
}

/// Looks for the postmaster of `cluster`, which listens in `socket_dir` unless it says otherwise.
///
/// A pid may have been given to another program since, so a connection is the only proof. If nobody
/// answers and the system does not tell what the pid is, `is_patient` decides: it is waited for, or
/// taken for another program.
pub(super) async fn look(cluster: &Path, socket_dir: &Path, is_patient: bool) -> Postmaster {
    let Some(file) = PidFile::read(cluster) else { return Postmaster::Gone { stale_pid: None } };
    let pid = file.pid;
    let socket_dir = file.socket_dir.unwrap_or_else(|| socket_dir.to_owned());
    match connect(&socket_dir).await {
        Answer::Ready(mut connection) => match serves(&mut connection, cluster).await {
            Ok(true) => Postmaster::Serving { connection, socket_dir },
            // The file came with a copy of another cluster.
            Ok(false) => Postmaster::Gone { stale_pid: Some(pid) },
            Err(cause) => Postmaster::Unready { pid, says: cause.to_string(), is_working: false },
        },
        Answer::NotYet(says) => Postmaster::Unready { pid, says, is_working: true },
        Answer::Refused(cause) => {
            Postmaster::Unready { pid, says: cause.to_string(), is_working: false }
        }
        Answer::Silent(says) => match is_postmaster(pid, cluster) {
            Some(true) => Postmaster::Unready { pid, says, is_working: false },
            None if is_patient => Postmaster::Unready { pid, says, is_working: false },
            Some(false) | None => Postmaster::Gone { stale_pid: Some(pid) },
        },
    }
}

/// Connects to the database that every cluster has.
pub(super) async fn connect(socket_dir: &Path) -> Answer {
    let options = options(socket_dir, "postgres").disable_statement_logging();
    let Ok(answer) = timeout(ANSWER_AFTER_MAX, PgConnection::connect_with(&options)).await else {
        return Answer::Silent("it does not answer".to_owned());
    };
    match answer {
        Ok(connection) => Answer::Ready(Box::new(connection)),
        Err(sqlx::Error::Database(error)) => match error.code().as_deref() {
            Some(CANNOT_CONNECT_NOW | TOO_MANY_CONNECTIONS) => {
                Answer::NotYet(error.message().to_owned())
            }
            _ => Answer::Refused(sqlx::Error::Database(error)),
        },
        Err(error) => Answer::Silent(error.to_string()),
    }
}

/// How to reach a database over the socket, whatever `PGHOST` and its like say.
pub(super) fn options(socket_dir: &Path, database: &str) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .socket(socket_dir)
        .port(PORT)
        .username(USER)
        .database(database)
        .ssl_mode(PgSslMode::Disable)
}

/// Whether the server behind the connection works on this very folder.
async fn serves(connection: &mut PgConnection, cluster: &Path) -> Result<bool, sqlx::Error> {
    let row = connection.fetch_one("show data_directory").await?;
    let theirs: String = row.try_get(0)?;
    let id = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    match (id(Path::new(&theirs)), id(cluster)) {
        (Ok(theirs), Ok(ours)) => Ok(theirs == ours),
        _ => Ok(false),
    }
}

/// Whether the process runs on this cluster; `None` if the system does not tell.
pub(super) fn is_postmaster(pid: i32, cluster: &Path) -> Option<bool> {
    let Some(process) = Pid::from_raw(pid) else { return Some(false) };
    if test_kill_process(process) == Err(rustix::io::Errno::SRCH) {
        return Some(false);
    }
    // Linux. Empty for a process that has ended and was not waited for.
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let cluster = cluster.as_os_str().as_encoded_bytes();
    Some(arguments.split(|byte| *byte == 0).any(|argument| argument == cluster))
}

/// Whether any process runs on this cluster. Without `/proc` the answer is always no.
pub(super) fn is_served(cluster: &Path) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else { return false };
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.into_iter().any(|pid: i32| is_postmaster(pid, cluster) == Some(true))
}

/// The lock file beside the socket.
pub(super) fn socket_lock(socket_dir: &Path) -> PathBuf {
    socket_dir.join(format!(".s.PGSQL.{PORT}.lock"))
}

/// Whether a lock file holds nothing but blanks or zero bytes, and has for a while: a postmaster that
/// is just starting makes the file first and fills it then.
pub(super) fn is_blank_and_old(file: &Path) -> bool {
    let is_blank = fs::read(file)
        .is_ok_and(|bytes| bytes.iter().all(|byte| *byte == 0 || byte.is_ascii_whitespace()));
    let modified = fs::metadata(file).and_then(|found| found.modified());
    let age = modified.ok().and_then(|modified| modified.elapsed().ok());
    is_blank && age.is_none_or(|age| age >= BLANK_FILE_AGE_MIN)
}

/// What `postmaster.pid` says. It comes in parts: the later fields while the postmaster starts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PidFile {
    pub(super) pid: i32,
    socket_dir: Option<PathBuf>,
    /// Starting, which includes recovery: it has the cluster for itself and listens.
    pub(super) is_starting: bool,
    /// Ready for connections.
    pub(super) is_ready: bool,
}

impl PidFile {
    /// `None` if there is none, or none that makes sense (Postgres itself then says what to do).
    pub(super) fn read(cluster: &Path) -> Option<Self> {
        let path = cluster.join("postmaster.pid");
        match fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => None,
            Err(cause) => {
                tracing::warn!(path = %path.display(), %cause, "cannot be read");
                None
            }
        }
    }

    /// The lines: pid, data folder, start time, port, socket folder, address, shared memory, state.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let pid: i32 = lines.next()?.trim().parse().ok()?;
        let socket_dir = lines.nth(3).filter(|line| !line.is_empty()).map(PathBuf::from);
        let state = lines.nth(2).unwrap_or_default().trim();
        let (is_starting, is_ready) = (state == "starting", state == "ready");
        (0 < pid).then_some(Self { pid, socket_dir, is_starting, is_ready })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<(i32, Option<&str>, bool, bool)>) {
        let expected = expected.map(|(pid, dir, is_starting, is_ready)| PidFile {
            pid,
            socket_dir: dir.map(PathBuf::from),
            is_starting,
            is_ready,
        });
        assert_eq!(PidFile::parse(text), expected);
    }

    #[test]
    fn a_pid_file_names_the_pid_the_socket_folder_and_the_state() {
        let dir = Some("/d/my run");
        let begin = "1234\n/d/postgres\n1700000000\n5432\n/d/my run\n\n  5432001  7\n";
        check(&format!("{begin}starting\n"), Some((1234, dir, true, false)));
        check(&format!("{begin}ready   \n"), Some((1234, dir, false, true)));
        check(&format!("{begin}stopping\n"), Some((1234, dir, false, false)));
    }

    #[test]
    fn a_pid_file_that_is_being_written_lacks_the_later_lines() {
        let begin = "1234\n/d/postgres\n1700000000\n5432\n";
        check(begin, Some((1234, None, false, false)));
        check(&format!("{begin}\n\n"), Some((1234, None, false, false)));
        check(&format!("{begin}/d/run\n"), Some((1234, Some("/d/run"), false, false)));
    }

    #[test]
    fn nonsense_is_no_pid_file() {
        check("", None);
        check("\n", None);
        check("0\n", None);
        // Of a standalone backend.
        check("-5\n", None);
    }

    #[test]
    fn a_process_of_another_program_is_no_postmaster() {
        let own = i32::try_from(std::process::id()).unwrap();
        let expected = cfg!(target_os = "linux").then_some(false);
        assert_eq!(is_postmaster(own, Path::new("/d/postgres")), expected);
        assert_eq!(is_postmaster(i32::MAX, Path::new("/d/postgres")), Some(false));
    }
}
