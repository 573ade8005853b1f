//! The database's clock, as this process sees it: its own clock and a sampled offset.
//!
//! Ids, signed timestamps and the times of attempts follow it. Decisions about leases and due
//! times do not: those are made by Postgres, with the clock itself.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::SystemTime,
};

use chrono::{DateTime, Utc};

/// Cheap to clone; all clones share the offset.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    offset_us: Arc<AtomicI64>,
    latest_us: Arc<AtomicI64>,
}

/// A sample may set the clock back by less than this without any reader seeing it.
const STEP_BACK_MAX_US: i64 = 1_000_000;

impl Clock {
    /// Takes a sample: the database's time, read between the local times `before` and `after`.
    pub fn sample(&self, database_time: DateTime<Utc>, before: SystemTime, after: SystemTime) {
        let round_trip = after.duration_since(before).unwrap_or_default();
        let middle = DateTime::<Utc>::from(before + round_trip / 2);
        let offset = database_time.signed_duration_since(middle);
        let offset_us = offset.num_microseconds().unwrap_or_default();
        self.offset_us.store(offset_us, Ordering::Relaxed);
    }

    /// The time.
    pub fn now(&self) -> DateTime<Utc> {
        let local = DateTime::<Utc>::from(SystemTime::now()).timestamp_micros();
        let now_us = local + self.offset_us.load(Ordering::Relaxed);
        // Ids sort by this: a new sample that is some milliseconds behind must not reorder them.
        let latest_us = self.latest_us.fetch_max(now_us, Ordering::Relaxed);
        let steps_back = now_us < latest_us && latest_us - now_us < STEP_BACK_MAX_US;
        let us = if steps_back { latest_us } else { now_us };
        DateTime::from_timestamp_micros(us).unwrap_or_default()
    }

    /// The time in milliseconds since the Unix epoch, for ids.
    pub fn unix_ms(&self) -> u64 {
        u64::try_from(self.now().timestamp_millis()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_offset_is_taken_from_the_middle_of_the_round_trip() {
        let clock = Clock::default();
        let before = SystemTime::now();
        let after = before + Duration::from_secs(2);
        let database_time = DateTime::<Utc>::from(before) + chrono::Duration::seconds(3_601);
        clock.sample(database_time, before, after);
        assert_eq!(clock.offset_us.load(Ordering::Relaxed), 3_600_000_000);
        let ahead = clock.now().signed_duration_since(DateTime::<Utc>::from(SystemTime::now()));
        assert!((3_599..=3_600).contains(&ahead.num_seconds()));
    }
}
