//! Buries processes that are dead, and gives back what they held. Only a process that is steady itself
//! may bury others.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{Shared, heartbeat::BEAT_INTERVAL};
use crate::store::{
    StoreError,
    owned::{Orphans, PART_PAUSE, Pages},
};

/// After an outage of Postgres every heartbeat is old; so many of its own in a row must have
/// succeeded before a process judges others.
const STEADY_BEATS_MIN: u32 = 3;
/// How often rows without a living owner are looked for, even if nobody died: a process may have
/// inserted some after it was buried, or buried another and died. Nine times what a look that found none
/// took, if that is longer, but no longer than the second value.
const ORPHANS_INTERVAL: (Duration, Duration) = (Duration::from_secs(10), Duration::from_mins(1));
/// The time that one part of a look counts at most: one that took longer has waited for the database,
/// and says nothing of the length of the queue.
pub const PART_TIME_MAX: Duration = Duration::from_millis(50);

struct Sweeper {
    shared: Arc<Shared>,
    next_burial: Instant,
    next_look: Instant,
    last_look: Instant,
    /// The pages of the queue that the look under way has not come to.
    pages: Pages,
    /// What it has found so far, and how long it took to find nothing.
    found: Orphans,
    took: Duration,
    /// Another one must follow: what a process held that died meanwhile may lie in pages that this one
    /// has passed.
    looks_again: bool,
}

/// Buries and gives back, until the end.
pub async fn run(shared: Arc<Shared>) {
    let now = Instant::now();
    let mut sweeper = Sweeper {
        shared,
        next_burial: now + BEAT_INTERVAL,
        next_look: now + ORPHANS_INTERVAL.0,
        last_look: now,
        pages: Pages::DONE,
        found: Orphans::default(),
        took: Duration::ZERO,
        looks_again: false,
    };
    loop {
        let next = sweeper.next_burial.min(sweeper.next_look);
        tokio::select! {
            () = sweeper.shared.stop.cancelled() => return,
            () = tokio::time::sleep_until(next.into()) => {}
        }
        if sweeper.next_burial <= Instant::now() {
            sweeper.bury().await;
            sweeper.next_burial = Instant::now() + BEAT_INTERVAL;
        }
        if sweeper.next_look <= Instant::now() {
            sweeper.look().await;
        }
    }
}

impl Sweeper {
    fn is_steady(&self) -> bool {
        self.shared.steady_beats.load(Ordering::Relaxed) >= STEADY_BEATS_MIN
    }

    async fn bury(&mut self) {
        if !self.is_steady() {
            return;
        }
        // While the clock is in question, only what was seen to stop counts.
        let clock = &self.shared.clock;
        let trusted_us = clock.alarm().is_none().then(|| clock.now().timestamp_micros());
        let stopped = self.shared.peers().expired(trusted_us);
        if stopped.is_empty() {
            return;
        }
        match self.shared.store.bury_dispatchers(&stopped).await {
            Ok(buried) if buried.is_empty() => {}
            Ok(buried) => {
                for dead in buried {
                    tracing::warn!(
                        dispatcher = dead.get(),
                        "a process died; its claims are released"
                    );
                }
                self.looks_again = !self.pages.is_empty();
                self.next_look = Instant::now();
            }
            Err(error) => tracing::debug!(%error, "the dead could not be looked for"),
        }
    }

    /// Gives back what processes that are gone held in the next part of the queue, and says when the
    /// next one is.
    async fn look(&mut self) {
        let rests = self.pages.is_empty()
            && self.shared.handover.resting().is_some_and(|rest| self.last_look.elapsed() < rest);
        if rests || !self.is_steady() {
            self.next_look = Instant::now() + BEAT_INTERVAL;
            return;
        }
        self.last_look = Instant::now();
        let pause = match self.look_at_part().await {
            Ok(took) if !self.pages.is_empty() => took.max(PART_PAUSE),
            Ok(_) => {
                let found_none = self.found.is_empty();
                self.tell();
                if std::mem::take(&mut self.looks_again) {
                    PART_PAUSE
                } else if found_none {
                    (self.took * 9).clamp(ORPHANS_INTERVAL.0, ORPHANS_INTERVAL.1)
                } else {
                    ORPHANS_INTERVAL.0
                }
            }
            Err(error) => {
                crate::telemetry::statement_failed(
                    &error,
                    "deliveries of dead processes could not be looked for",
                );
                self.tell();
                // Should only this part fail, the others must not wait for it; the next look tries again.
                self.pages.skip();
                ORPHANS_INTERVAL.0
            }
        };
        self.next_look = Instant::now() + pause;
    }

    /// Tells how long it took.
    async fn look_at_part(&mut self) -> Result<Duration, StoreError> {
        let store = &self.shared.store;
        if self.pages.is_empty() {
            self.pages = store.queue_pages().await?;
            self.took = Duration::ZERO;
        }
        let began = Instant::now();
        let orphans = store.release_orphans(&mut self.pages).await?;
        let took = began.elapsed();
        if orphans.is_empty() {
            self.took += took.min(PART_TIME_MAX);
        }
        self.found.add(orphans);
        Ok(took)
    }

    fn tell(&mut self) {
        let Orphans { released, buried } = std::mem::take(&mut self.found);
        if released + buried > 0 {
            tracing::warn!(released, buried, "deliveries of dead processes were given back");
            // They may lie below a low-water mark, and name no lane.
            self.shared.look_now.notify_one();
        }
    }
}
