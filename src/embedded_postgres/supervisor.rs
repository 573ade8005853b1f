//! Keeps the private Postgres running: starts it again when it has ended, and restarts it when its
//! programs were upgraded underneath it.

use std::path::Path;
use std::time::SystemTime;

use tokio::time::{Duration, Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::server::EmbeddedPostgres;

/// Between two checks of a Postgres that runs. A check is a system call or two.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// Between two failed restarts: doubled each time up to the maximum.
const RESTART_PAUSE_MIN: Duration = Duration::from_millis(500);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long a replaced `postgres` program must stay unchanged before the restart, since a package
/// manager replaces the files of a package one after the other.
const UPGRADE_SETTLE_TIME: Duration = Duration::from_secs(3);

/// Identity of a program file: a package upgrade changes at least one of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Build {
    modified: SystemTime,
    length: u64,
}

impl EmbeddedPostgres {
    /// Checks Postgres until `stop` is cancelled, and returns it then, running or not.
    ///
    /// Postgres that has ended is started again, as often as it takes: with a pause of at most 30 s
    /// between two failures. Postgres whose program file was replaced by a package upgrade is
    /// restarted, since its new sessions would load libraries of another build (SQLSTATE 58P01, or
    /// "undefined symbol"). A restart cuts the connections; callers see an outage of about a second.
    pub async fn supervise(mut self, stop: CancellationToken) -> Self {
        let mut upgrade: Option<(Build, Instant)> = None;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return self,
                () = sleep(CHECK_INTERVAL) => {}
            }
            if !self.is_running() {
                tracing::error!(
                    event = "embedded_postgres_ended",
                    "the private Postgres has ended; starting it again"
                );
            } else if self.is_upgraded(&mut upgrade) {
                tracing::warn!(
                    event = "embedded_postgres_upgraded",
                    "the programs of the private Postgres were replaced; restarting it"
                );
            } else {
                continue;
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return self,
                () = self.restart() => upgrade = None,
            }
        }
    }

    /// Stops what runs, and starts it; tries until it runs.
    async fn restart(&mut self) {
        let mut pause = RESTART_PAUSE_MIN;
        loop {
            let begun = Instant::now();
            let restarted = async {
                if self.is_running() {
                    self.shut_down().await?;
                }
                self.start_again().await
            };
            match restarted.await {
                Ok(()) => {
                    let elapsed_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                    tracing::info!(
                        event = "embedded_postgres_restarted",
                        elapsed_ms,
                        "the private Postgres runs again"
                    );
                    return;
                }
                Err(error) => {
                    tracing::error!(event = "embedded_postgres_restart_failed", %error, retry_in = ?pause, "the private Postgres could not be started again");
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(RESTART_PAUSE_MAX);
        }
    }

    /// Whether the program on the disk is another one than the one that runs, and has settled.
    fn is_upgraded(&self, seen: &mut Option<(Build, Instant)>) -> bool {
        let program = self.program("postgres");
        let is_replaced = self.postmaster_pid().is_some_and(runs_a_deleted_program);
        let Some(build) = is_replaced.then(|| build_of(&program)).flatten() else {
            *seen = None;
            return false;
        };
        match seen {
            Some((known, since)) if *known == build => since.elapsed() >= UPGRADE_SETTLE_TIME,
            _ => {
                *seen = Some((build, Instant::now()));
                false
            }
        }
    }
}

fn build_of(program: &Path) -> Option<Build> {
    let found = std::fs::metadata(program).ok()?;
    Some(Build { modified: found.modified().ok()?, length: found.len() })
}

/// Whether the program file of a process was deleted or replaced since the process started. Linux
/// says so in `/proc`; elsewhere the answer is always no.
fn runs_a_deleted_program(pid: i32) -> bool {
    const MARK: &[u8] = b" (deleted)";
    std::fs::read_link(format!("/proc/{pid}/exe"))
        .is_ok_and(|program| program.as_os_str().as_encoded_bytes().ends_with(MARK))
}
