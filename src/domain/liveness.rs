//! Which other processes have expired, judged by whether their heartbeats change.
//!
//! The observer's monotonic clock decides; a heartbeat's value is compared with nothing but itself,
//! so a clock that was wrong when it was written keeps nothing alive, and expires nothing.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// A heartbeat that does not change for so long has stopped.
pub const EXPIRED_AFTER: Duration = Duration::from_secs(7);
/// Readings that are further apart do not tell whether nothing happened in between.
const READINGS_APART_MAX: Duration = Duration::from_millis(2_500);
/// Readings that must have seen the same heartbeat before its age counts.
const READINGS_MIN: u32 = 3;

/// A process's heartbeat, in microseconds since the Unix epoch.
pub type Beat = (i32, i64);

/// Heartbeats of all processes, as this one has seen them.
#[derive(Debug, Default)]
pub struct Peers {
    seen: HashMap<i32, Seen>,
    last_reading: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    beat_us: i64,
    since: Instant,
    readings: u32,
}

impl Peers {
    /// Takes a reading of all heartbeats.
    pub fn observe(&mut self, beats: &[Beat], now: Instant) {
        let is_gap = self
            .last_reading
            .is_none_or(|last| now.saturating_duration_since(last) > READINGS_APART_MAX);
        if is_gap {
            self.forget();
        }
        self.last_reading = Some(now);
        let mut seen = HashMap::with_capacity(beats.len());
        for &(id, beat_us) in beats {
            let known = self.seen.get(&id).filter(|known| known.beat_us == beat_us);
            let one = known.map_or(Seen { beat_us, since: now, readings: 1 }, |known| Seen {
                readings: known.readings.saturating_add(1),
                ..*known
            });
            seen.insert(id, one);
        }
        self.seen = seen;
    }

    /// Forgets everything: this process could not read, so others may have been unable to beat.
    pub fn forget(&mut self) {
        self.seen.clear();
        self.last_reading = None;
    }

    /// The processes whose heartbeats have stopped, with the last value of each, as of the last reading.
    /// `trusted_us` is the time if the clock is beyond doubt: then a heartbeat that is old already need
    /// not be watched for as long.
    pub fn expired(&self, trusted_us: Option<i64>) -> Vec<Beat> {
        let Some(last_reading) = self.last_reading else { return Vec::new() };
        let long_us = i64::try_from(EXPIRED_AFTER.as_micros()).unwrap_or(i64::MAX);
        let is_expired = |one: &Seen| {
            let is_old =
                trusted_us.is_some_and(|time_us| time_us.saturating_sub(one.beat_us) > long_us);
            last_reading.saturating_duration_since(one.since) >= EXPIRED_AFTER
                || (is_old && one.readings >= READINGS_MIN)
        };
        let expired = self.seen.iter().filter(|(_, one)| is_expired(one));
        let mut expired: Vec<Beat> = expired.map(|(&id, one)| (id, one.beat_us)).collect();
        expired.sort_unstable();
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: i64 = 1_000_000;
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn heartbeat_that_stops_expires_whatever_it_says() {
        for beat in [-3_600 * S, 0, 3_600 * S] {
            let (mut peers, start) = (Peers::default(), Instant::now());
            for second in 0..7_u32 {
                peers.observe(&[(1, beat), (2, i64::from(second))], start + SECOND * second);
                assert_eq!(peers.expired(None), []);
            }
            peers.observe(&[(1, beat), (2, 7)], start + 7 * SECOND);
            assert_eq!(peers.expired(None), [(1, beat)]);
        }
    }

    #[test]
    fn old_heartbeat_expires_after_three_readings_if_the_clock_is_trusted() {
        let (mut peers, start) = (Peers::default(), Instant::now());
        let beats = [(1, 0), (2, 95 * S)];
        for (second, expired) in [(0, vec![]), (1, vec![]), (2, vec![(1, 0)])] {
            peers.observe(&beats, start + SECOND * second);
            assert_eq!(peers.expired(Some(100 * S)), expired);
            assert_eq!(peers.expired(None), []);
        }
    }

    #[test]
    fn readings_that_failed_prove_nothing() {
        let (mut peers, start) = (Peers::default(), Instant::now());
        peers.observe(&[(1, 0)], start);
        assert_eq!(peers.expired(Some(99 * S)), [], "one reading says nothing, however long ago");
        peers.observe(&[(1, 0)], start + 8 * SECOND);
        assert_eq!(peers.expired(None), [], "nothing was read in between");
        peers.forget();
        peers.observe(&[(1, 0)], start + 9 * SECOND);
        assert_eq!(peers.expired(None), []);
    }
}
