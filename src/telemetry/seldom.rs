//! Log lines that others can cause as often as they like.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// What may be logged once in a while only, since somebody else decides how often it happens.
#[derive(Debug)]
pub struct Seldom {
    interval: Duration,
    /// The next time, in ms since the first.
    next_ms: AtomicU64,
    began: LazyLock<Instant>,
}

impl Seldom {
    /// At most once in so long.
    pub const fn each(interval: Duration) -> Self {
        Self { interval, next_ms: AtomicU64::new(0), began: LazyLock::new(Instant::now) }
    }

    /// Whether it is time again; told once.
    pub fn is_time(&self) -> bool {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let (now, interval) = (ms(self.began.elapsed()), ms(self.interval));
        let next = self.next_ms.load(Ordering::Relaxed);
        // One of those who come at a time.
        now >= next
            && self
                .next_ms
                .compare_exchange(next, now + interval, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_time_once_in_an_interval() {
        let seldom = Seldom::each(Duration::from_secs(3_600));
        assert_eq!([seldom.is_time(), seldom.is_time(), seldom.is_time()], [true, false, false]);
        let always = Seldom::each(Duration::ZERO);
        assert_eq!([always.is_time(), always.is_time()], [true, true]);
    }
}
