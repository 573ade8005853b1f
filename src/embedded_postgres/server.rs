//! Starts, adopts and stops the private Postgres.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, Executor};
use tokio::process::Child;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::binaries::Binaries;
use super::cluster;
use super::data_dir::{self, DataDir};
use super::error::EmbeddedPostgresError;
use super::log;
use super::postmaster::{self, Answer, PidFile, Postmaster};
use super::settings;
use super::wait::{LOOK_AGAIN_AFTER_MIN, Wait};

/// The service's database. Its name is written out in two statements below, too.
const DATABASE: &str = "webhook_dispatcher";

/// For a Postgres that we started and that does not say that it is on its way.
const READY_WAIT_MAX: Duration = Duration::from_mins(1);
/// For processes of the last Postgres to end, which keep a new one from starting. A postmaster whose
/// `postmaster.pid` was deleted notices within a minute, and ends.
const BUSY_WAIT_MAX: Duration = Duration::from_secs(90);
/// For a Postgres that we started to write its `postmaster.pid`.
const PID_FILE_WAIT_MAX: Duration = Duration::from_secs(10);
/// For a live process that may or may not be the last postmaster to answer.
const UNKNOWN_WAIT_MAX: Duration = Duration::from_secs(10);
/// For the checkpoint of a fast shutdown. What it does not write is recovered at the next start.
const FAST_STOP_WAIT_SECONDS: u64 = 30;
const IMMEDIATE_STOP_WAIT_SECONDS: u64 = 10;

/// What Postgres says while something of the last one still runs on the same cluster.
const BUSY_PHRASES: [&str; 3] = [
    "pre-existing shared memory block",
    "\" already exists", // lock file "postmaster.pid" already exists
    "\" is empty",       // lock file "postmaster.pid" is empty: another one is just starting
];

/// How to start the private Postgres.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder for everything. Made if it is missing.
    pub data_dir: PathBuf,
    /// The value of `PATH`, where the programs are looked for first.
    pub path: Option<OsString>,
    /// Names and values of Postgres settings that go before ours, for tests.
    pub extra_settings: Vec<(String, String)>,
}

/// A private Postgres that runs. [`EmbeddedPostgres::stop`] ends it; dropping it does not.
#[derive(Debug)]
pub struct EmbeddedPostgres {
    /// Holds the lock: no other service uses the folder while this lives.
    data_dir: DataDir,
    binaries: Binaries,
    socket_dir: PathBuf,
    /// `None` if an earlier service started it.
    child: Option<Child>,
    /// For each start of it, see [`Options`].
    extra_settings: Vec<(String, String)>,
    /// `PATH`, for the next look for the programs.
    search_path: Option<OsString>,
}

impl EmbeddedPostgres {
    /// Makes the cluster if there is none, starts Postgres on it or goes on with the one that runs,
    /// and makes the service's database if it is missing.
    ///
    /// Cancelling it leaves behind at most an unfinished initdb (removed at the next start) or a
    /// Postgres that runs (adopted at the next start).
    pub async fn start(options: Options) -> Result<Self, EmbeddedPostgresError> {
        Self::start_until(options, &CancellationToken::new()).await
    }

    /// The same, unless `stop` is cancelled before Postgres is ready: then a Postgres that this call
    /// has started is stopped, and the result is [`EmbeddedPostgresError::Cancelled`].
    pub async fn start_until(
        options: Options,
        stop: &CancellationToken,
    ) -> Result<Self, EmbeddedPostgresError> {
        let data_dir = DataDir::open(&options.data_dir).await?;
        let cluster = data_dir.cluster();
        let version = cluster::version(&cluster)?;
        let binaries = Binaries::find(
            options.path.as_deref(),
            version.map(|version| (cluster.as_path(), version)),
            &data_dir.account,
        )
        .await?;
        tracing::debug!(bin_dir = %binaries.dir.display(), version = binaries.version, "found");

        cluster::remove_unfinished(&data_dir.path);
        if version.is_none() {
            tracing::info!(cluster = %cluster.display(), "making a private Postgres");
            cluster::make(&data_dir, &binaries).await?;
        }
        cluster::give(&cluster, &data_dir.account)?;

        let socket_dir = data_dir.make_socket_dir()?;
        let extra_settings = options.extra_settings;
        let search_path = options.path;
        let mut server =
            Self { data_dir, binaries, socket_dir, child: None, extra_settings, search_path };
        let is_ready = tokio::select! {
            biased;
            () = stop.cancelled() => false,
            ready = server.make_ready() => ready.map(|()| true)?,
        };
        if !is_ready {
            if server.child.is_some() {
                server.shut_down().await?;
            }
            return Err(EmbeddedPostgresError::Cancelled);
        }
        let (cluster, adopted) = (server.data_dir.cluster(), server.was_adopted());
        tracing::info!(cluster = %cluster.display(), adopted, "the private Postgres is ready");
        Ok(server)
    }

    /// Finds the programs again, since an upgrade may have moved them, and starts Postgres on the
    /// cluster, which serves nobody now.
    pub(super) async fn start_again(&mut self) -> Result<(), EmbeddedPostgresError> {
        let cluster = self.data_dir.cluster();
        let version = cluster::version(&cluster)?;
        self.binaries = Binaries::find(
            self.search_path.as_deref(),
            version.map(|version| (cluster.as_path(), version)),
            &self.data_dir.account,
        )
        .await?;
        self.child = None;
        self.socket_dir = self.data_dir.make_socket_dir()?;
        self.make_ready().await
    }

    /// Starts Postgres or goes on with the one that runs, and makes the database if it is missing.
    async fn make_ready(&mut self) -> Result<(), EmbeddedPostgresError> {
        let mut connection = self.adopt_or_launch().await?;
        create_database(&mut connection).await.map_err(EmbeddedPostgresError::Database)?;
        if let Err(cause) = connection.close().await {
            tracing::debug!(%cause, "the first connection did not close well");
        }
        Ok(())
    }

    /// How to connect to the Postgres of a service that runs on `data_dir`, which this changes
    /// nothing of. Waits for one that is only starting.
    pub async fn attach(data_dir: &Path) -> Result<PgConnectOptions, EmbeddedPostgresError> {
        let (cluster, socket_dir) = data_dir::places_of(data_dir)?;
        let mut wait = Wait::new();
        loop {
            let (pid, says) = match postmaster::look(&cluster, &socket_dir, true).await {
                Postmaster::Serving { connection, socket_dir } => {
                    if let Err(cause) = connection.close().await {
                        tracing::debug!(%cause, "a first connection did not close well");
                    }
                    return Ok(postmaster::options(&socket_dir, DATABASE));
                }
                Postmaster::Unready { pid, says, is_working } => {
                    if is_working {
                        wait.heard_of_it();
                    }
                    (Some(pid), says)
                }
                Postmaster::Gone { stale_pid } => (stale_pid, "it does not run".to_owned()),
            };
            if !wait.is_bearable(READY_WAIT_MAX) {
                return Err(EmbeddedPostgresError::NotServing { cluster, pid, says });
            }
            wait.pause(&says).await;
        }
    }

    /// How to connect to the service's database.
    pub fn connect_options(&self) -> PgConnectOptions {
        postmaster::options(&self.socket_dir, DATABASE)
    }

    /// Whether Postgres ran already, started by a service that did not stop it.
    pub fn was_adopted(&self) -> bool {
        self.child.is_none()
    }

    /// The folder of the socket; the port is 5432.
    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// The folder of the Postgres programs in use.
    pub fn bin_dir(&self) -> &Path {
        &self.binaries.dir
    }

    /// `DATA_DIR`, absolute and free of links.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir.path
    }

    /// Stops Postgres, adopted or not, and returns when it has ended. Open connections are cut.
    ///
    /// That Postgres ended by itself before is not an error.
    pub async fn stop(mut self) -> Result<(), EmbeddedPostgresError> {
        if self.has_ended().await {
            let log = self.data_dir.log();
            tracing::warn!(log = %log.display(), "the private Postgres had ended by itself");
        } else {
            self.shut_down().await?;
            tracing::info!("the private Postgres has stopped");
        }
        self.data_dir.remove_socket_dir(&self.socket_dir);
        Ok(())
    }

    /// Waits for what an earlier Postgres left behind to become usable or to go away.
    async fn adopt_or_launch(&mut self) -> Result<Box<PgConnection>, EmbeddedPostgresError> {
        let cluster = self.data_dir.cluster();
        let mut wait = Wait::new();
        loop {
            let is_patient = wait.begun.elapsed() < UNKNOWN_WAIT_MAX;
            match postmaster::look(&cluster, &self.socket_dir, is_patient).await {
                Postmaster::Serving { connection, socket_dir } => {
                    self.socket_dir = socket_dir;
                    return Ok(connection);
                }
                Postmaster::Unready { pid, says, is_working } => {
                    if is_working {
                        wait.heard_of_it();
                    }
                    if !wait.is_bearable(BUSY_WAIT_MAX) {
                        return Err(EmbeddedPostgresError::Unreachable {
                            pid,
                            cluster,
                            reason: says,
                        });
                    }
                    wait.pause(&says).await;
                }
                Postmaster::Gone { stale_pid } => {
                    self.remove_blank_lock_files();
                    match self.launch(stale_pid).await {
                        Err(EmbeddedPostgresError::Exited { tail, .. })
                            if is_busy(&tail) && wait.is_bearable(BUSY_WAIT_MAX) =>
                        {
                            wait.pause(&tail).await;
                        }
                        Err(lost @ EmbeddedPostgresError::PidFileLost { .. })
                            if wait.is_bearable(BUSY_WAIT_MAX) =>
                        {
                            wait.pause(&lost.to_string()).await;
                        }
                        launched => return launched,
                    }
                }
            }
        }
    }

    /// Starts a postmaster and waits until it takes connections.
    async fn launch(
        &mut self,
        stale_pid: Option<i32>,
    ) -> Result<Box<PgConnection>, EmbeddedPostgresError> {
        let account = &self.data_dir.account;
        let (log, log_begin) = log::open(&self.data_dir.log(), account)?;
        let copy =
            log.try_clone().map_err(EmbeddedPostgresError::file("open", &self.data_dir.log()))?;
        let cluster = self.data_dir.cluster();
        let postgres = self.binaries.program("postgres");
        let mut command = account.command(&postgres);
        command
            .args(settings::arguments(&cluster, &self.socket_dir, &self.extra_settings))
            .current_dir(&cluster)
            .stdout(Stdio::from(log))
            .stderr(Stdio::from(copy))
            // Ctrl-C in the terminal must not reach it before the service has drained.
            .process_group(0)
            // It outlives us, to be adopted, unless it is stopped.
            .kill_on_drop(false);
        if let Some(pid) = stale_pid {
            // After a crash the pid in postmaster.pid may name another program by now, and Postgres
            // would take that for a postmaster. `pg_ctl` uses this variable to tell it of a pid that
            // is none. The file stays, and with it Postgres' own look for processes of the cluster.
            command.env("PG_GRANDPARENT_PID", pid.to_string());
        }
        let child = command.spawn().map_err(|cause| account.cannot_run(&postgres, cause))?;
        self.child = Some(child);
        let ready = self.wait_until_ready(log_begin).await;
        if ready.is_err() {
            if !self.has_ended().await
                && let Err(cause) = self.shut_down().await
            {
                tracing::warn!(%cause, "a Postgres that was not ready in time goes on");
            }
            self.child = None;
        }
        ready
    }

    async fn wait_until_ready(
        &mut self,
        log_begin: u64,
    ) -> Result<Box<PgConnection>, EmbeddedPostgresError> {
        let cluster = self.data_dir.cluster();
        let log = self.data_dir.log();
        let mut wait = Wait::new();
        let mut last = "it has not begun to listen".to_owned();
        let mut has_written = false;
        while wait.is_bearable(READY_WAIT_MAX) {
            let Some(child) = &mut self.child else { break };
            let ended = child.try_wait().map_err(EmbeddedPostgresError::file("wait for", &log))?;
            if let Some(status) = ended {
                let tail = log::tail(&log, log_begin);
                return Err(EmbeddedPostgresError::Exited { status, log, tail });
            }
            // Only what our child itself wrote: if a postmaster that lost its `postmaster.pid` still
            // serves the cluster, our child ends in a moment and who answers is the other one.
            let own_file = || file_of(&cluster, child);
            let file = own_file();
            // A postmaster deletes the file when it ends, without a look at whose it is by then.
            let is_lost = file.is_none() && (has_written || !wait.is_bearable(PID_FILE_WAIT_MAX));
            if is_lost {
                return Err(EmbeddedPostgresError::PidFileLost { cluster });
            }
            has_written = file.is_some();
            match file {
                Some(file) if file.is_ready => match postmaster::connect(&self.socket_dir).await {
                    Answer::Ready(_) if own_file().is_none() => {}
                    Answer::Ready(connection) => return Ok(connection),
                    Answer::Refused(cause) => return Err(EmbeddedPostgresError::Database(cause)),
                    Answer::Silent(says) | Answer::NotYet(says) => last = says,
                },
                Some(file) if file.is_starting => {
                    wait.heard_of_it();
                    "it is starting up or recovers".clone_into(&mut last);
                }
                _ => {}
            }
            wait.pause(&last).await;
        }
        let tail = log::tail(&log, log_begin);
        Err(EmbeddedPostgresError::NotReady { waited: wait.begun.elapsed(), last, log, tail })
    }

    /// The postmaster's pid, as far as is known without asking Postgres.
    pub(super) fn postmaster_pid(&self) -> Option<i32> {
        match &self.child {
            Some(child) => child.id().and_then(|pid| i32::try_from(pid).ok()),
            None => PidFile::read(&self.data_dir.cluster()).map(|file| file.pid),
        }
    }

    /// Whether the postmaster lives, by a look that costs next to nothing.
    pub(super) fn is_running(&mut self) -> bool {
        if let Some(child) = &mut self.child {
            return matches!(child.try_wait(), Ok(None));
        }
        let cluster = self.data_dir.cluster();
        PidFile::read(&cluster)
            .is_some_and(|file| postmaster::is_postmaster(file.pid, &cluster) != Some(false))
    }

    /// A program of the Postgres in use.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.binaries.program(name)
    }

    /// Removes lock files that a power cut has left without a pid: Postgres itself refuses to start
    /// beside one. Only with no postmaster on the cluster; `DATA_DIR/lock` keeps other services out.
    fn remove_blank_lock_files(&self) {
        let cluster = self.data_dir.cluster();
        if postmaster::is_served(&cluster) {
            return;
        }
        for file in [cluster.join("postmaster.pid"), postmaster::socket_lock(&self.socket_dir)] {
            if !postmaster::is_blank_and_old(&file) {
                continue;
            }
            match std::fs::remove_file(&file) {
                Ok(()) => {
                    let file = file.display();
                    tracing::warn!(event = "blank_lock_file_removed", %file, "removed a lock file that names no process");
                }
                Err(cause) => tracing::warn!(file = %file.display(), %cause, "cannot be removed"),
            }
        }
    }

    async fn has_ended(&mut self) -> bool {
        if let Some(child) = &mut self.child {
            return matches!(child.try_wait(), Ok(Some(_)));
        }
        let cluster = self.data_dir.cluster();
        // A pid that now names another program must not be signalled.
        let found = postmaster::look(&cluster, &self.socket_dir, false).await;
        matches!(found, Postmaster::Gone { .. })
    }

    /// Fast, with a checkpoint; if that takes too long at once, and the next start recovers. So does it
    /// after a child that has lost its `postmaster.pid`, by which alone `pg_ctl` finds it.
    pub(super) async fn shut_down(&mut self) -> Result<(), EmbeddedPostgresError> {
        let cluster = self.data_dir.cluster();
        let lost = self.child.as_ref().filter(|child| file_of(&cluster, child).is_none());
        let output = match lost.and_then(pid_of) {
            Some(pid) => kill_process(pid, Signal::QUIT)
                .err()
                .map_or_else(String::new, |cause| cause.to_string()),
            None => self.stop_by_pg_ctl(&cluster).await?,
        };
        let end = async {
            while !self.has_ended().await {
                sleep(LOOK_AGAIN_AFTER_MIN).await;
            }
        };
        // The file goes a moment before the process does.
        timeout(Duration::from_secs(IMMEDIATE_STOP_WAIT_SECONDS), end)
            .await
            .map_err(|_| EmbeddedPostgresError::Stop { cluster, output })
    }

    /// Tells what `pg_ctl` last said that did not succeed.
    async fn stop_by_pg_ctl(&self, cluster: &Path) -> Result<String, EmbeddedPostgresError> {
        let account = &self.data_dir.account;
        let pg_ctl = self.binaries.program("pg_ctl");
        let mut output = String::new();
        for (mode, seconds) in
            [("fast", FAST_STOP_WAIT_SECONDS), ("immediate", IMMEDIATE_STOP_WAIT_SECONDS)]
        {
            let answer = account
                .command(&pg_ctl)
                .current_dir(cluster)
                .arg("stop")
                .arg("-D")
                .arg(cluster)
                .args(["-m", mode, "-w", "-t", &seconds.to_string()])
                .output()
                .await
                .map_err(|cause| account.cannot_run(&pg_ctl, cause))?;
            if answer.status.success() {
                break;
            }
            tracing::warn!(mode, "the private Postgres did not stop in time");
            output = log::last_lines(&String::from_utf8_lossy(&answer.stderr));
        }
        Ok(output)
    }
}

/// `None`: it has ended, and was waited for.
fn pid_of(child: &Child) -> Option<Pid> {
    child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw)
}

/// What `postmaster.pid` says, if our child wrote it.
fn file_of(cluster: &Path, child: &Child) -> Option<PidFile> {
    PidFile::read(cluster).filter(|file| Pid::from_raw(file.pid) == pid_of(child))
}

/// Whether Postgres ended because something of the last one still runs.
fn is_busy(tail: &str) -> bool {
    BUSY_PHRASES.iter().any(|phrase| tail.contains(phrase))
}

async fn create_database(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let exists = "select 1 from pg_database where datname = 'webhook_dispatcher'";
    if connection.fetch_optional(exists).await?.is_none() {
        // `template0` is never in use, which would make it fail.
        connection.execute("create database webhook_dispatcher template template0").await?;
    }
    Ok(())
}
