//! Waiting in a loop, with growing pauses and a line in the log now and then.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// In all, also while Postgres says that it recovers: 4 GB of log on a slow disk take minutes.
const RECOVERY_WAIT_MAX: Duration = Duration::from_mins(15);
/// Between two looks while something is waited for.
pub(super) const LOOK_AGAIN_AFTER_MIN: Duration = Duration::from_millis(20);
const LOOK_AGAIN_AFTER_MAX: Duration = Duration::from_millis(250);
/// Between two lines that say what is waited for.
const REPORT_AFTER: Duration = Duration::from_secs(10);

/// How long a loop has waited, and its pauses: growing, and telling at times what is waited for.
pub(super) struct Wait {
    pub(super) begun: Instant,
    /// When Postgres last said that it is busy starting or stopping.
    heard: Instant,
    reported: Instant,
    pause: Duration,
}

impl Wait {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self { begun: now, heard: now, reported: now, pause: LOOK_AGAIN_AFTER_MIN }
    }

    pub(super) fn heard_of_it(&mut self) {
        self.heard = Instant::now();
    }

    /// Whether to go on: it has not been silent for too long, and all in all not too long either.
    pub(super) fn is_bearable(&self, silence_max: Duration) -> bool {
        self.heard.elapsed() < silence_max && self.begun.elapsed() < RECOVERY_WAIT_MAX
    }

    pub(super) async fn pause(&mut self, says: &str) {
        if REPORT_AFTER < self.reported.elapsed() {
            self.reported = Instant::now();
            tracing::info!(says, "waiting for the private Postgres");
        }
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LOOK_AGAIN_AFTER_MAX);
    }
}
