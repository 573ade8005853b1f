//! Rest of a process that has nothing to do: its periodic statements are made more rarely.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

/// How long nothing has to happen before a process rests.
pub const IDLE_AFTER: Duration = Duration::from_secs(5);

/// Whether there is something to do, and the pauses between looks.
#[derive(Debug)]
pub struct Idle {
    /// Longest pause between two statements of a kind; `None`: the process never rests.
    interval: Option<Duration>,
    base: Instant,
    /// When there was something to do, in milliseconds since `base`.
    active_ms: AtomicU64,
    woken: Notify,
}

impl Idle {
    /// Rests after [`IDLE_AFTER`], if there is an interval.
    pub fn new(interval: Option<Duration>) -> Self {
        Self { interval, base: Instant::now(), active_ms: AtomicU64::new(0), woken: Notify::new() }
    }

    /// The pause between looks of a process that rests, if it ever does.
    pub fn interval(&self) -> Option<Duration> {
        self.interval
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.base.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn is_idle_since(&self, active_ms: u64) -> bool {
        u128::from(self.now_ms().saturating_sub(active_ms)) >= IDLE_AFTER.as_millis()
    }

    /// Notes that there is something to do, and ends the rest.
    pub fn wake(&self) {
        if self.interval.is_none() {
            return;
        }
        let before = self.active_ms.swap(self.now_ms(), Ordering::AcqRel);
        if self.is_idle_since(before) {
            self.woken.notify_waiters();
        }
    }

    /// The pause between looks of a process that rests; `None`: it does not.
    pub fn resting(&self) -> Option<Duration> {
        self.interval.filter(|_| self.is_idle_since(self.active_ms.load(Ordering::Acquire)))
    }

    /// Sleeps for `pause`; while the process rests, for longer, until it is woken.
    pub async fn sleep(&self, pause: Duration) {
        tokio::time::sleep(pause).await;
        let woken = self.woken.notified();
        if let Some(interval) = self.resting() {
            tokio::select! {
                () = woken => {}
                () = tokio::time::sleep(interval.saturating_sub(pause)) => {}
            }
        }
    }

    /// Resolves when the rest ends.
    pub async fn woken(&self) {
        self.woken.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long_ago() -> Instant {
        Instant::now().checked_sub(2 * IDLE_AFTER).unwrap()
    }

    #[test]
    fn process_without_the_setting_never_rests() {
        let idle = Idle { base: long_ago(), ..Idle::new(None) };
        assert_eq!(idle.resting(), None);
    }

    #[test]
    fn rest_begins_after_a_while_and_ends_with_work() {
        let interval = Duration::from_secs(60);
        let idle = Idle { base: long_ago(), ..Idle::new(Some(interval)) };
        assert_eq!(idle.resting(), Some(interval));
        idle.wake();
        assert_eq!(idle.resting(), None);
    }

    #[tokio::test]
    async fn sleeper_is_woken() {
        let interval = Duration::from_secs(3_600);
        let idle = Idle { base: long_ago(), ..Idle::new(Some(interval)) };
        let (mut slept, began) = (std::pin::pin!(idle.sleep(Duration::ZERO)), Instant::now());
        tokio::select! {
            () = &mut slept => panic!("it rests"),
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
        idle.wake();
        slept.await;
        assert!(began.elapsed() < interval);
    }
}
