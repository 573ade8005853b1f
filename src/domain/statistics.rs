//! What was done for a lane, counted: outcomes, and how long attempts took.

use std::time::Duration;

use chrono::{DateTime, Utc};

/// How many ranges of durations are told apart. Each reaches √2 times as far as the one before, from
/// a millisecond to the longest deadline; so a quantile is at most a fifth off.
pub const RANGES: usize = 40;

/// How many attempts took how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Durations([u32; RANGES]);

impl Default for Durations {
    fn default() -> Self {
        Self([0; RANGES])
    }
}

/// Up to how many milliseconds a range reaches.
fn upper_ms(range: usize) -> f64 {
    let half_powers = u32::try_from(range).map_or(f64::MAX, f64::from);
    (half_powers / 2.0).exp2()
}

impl Durations {
    /// Those that were stored: what is missing is zero, what is beyond belongs to the last range.
    pub fn from_counts(counts: &[i32]) -> Self {
        let mut durations = Self::default();
        for (range, count) in counts.iter().enumerate() {
            let kept = &mut durations.0[range.min(RANGES - 1)];
            *kept = kept.saturating_add(count.unsigned_abs());
        }
        durations
    }

    /// How many there are in each range.
    pub fn counts(&self) -> &[u32; RANGES] {
        &self.0
    }

    /// One more.
    pub fn add(&mut self, duration: Duration) {
        let ms = duration.as_secs_f64() * 1_000.0;
        let range = (0..RANGES).find(|range| ms <= upper_ms(*range)).unwrap_or(RANGES - 1);
        self.0[range] = self.0[range].saturating_add(1);
    }

    /// Those of another, too.
    pub fn merge(&mut self, other: &Self) {
        for (own, others) in self.0.iter_mut().zip(other.0) {
            *own = own.saturating_add(others);
        }
    }

    /// How many milliseconds this share of them (0 to 1) took at most; `None` if there are none.
    /// Within a range it is as if they were spread evenly.
    pub fn quantile_ms(&self, share: f64) -> Option<f64> {
        let total: u64 = self.0.iter().map(|count| u64::from(*count)).sum();
        if total == 0 {
            return None;
        }
        let as_f64 = |count: u64| u32::try_from(count).map_or(f64::from(u32::MAX), f64::from);
        let wanted = as_f64(total) * share.clamp(0.0, 1.0);
        let mut below = 0.0;
        for (range, count) in self.0.iter().enumerate() {
            let count = f64::from(*count);
            if count > 0.0 && below + count >= wanted {
                let low = if range == 0 { 0.0 } else { upper_ms(range - 1) };
                let part = ((wanted - below) / count).clamp(0.0, 1.0);
                return Some(low + (upper_ms(range) - low) * part);
            }
            below += count;
        }
        Some(upper_ms(RANGES - 1))
    }
}

/// What an attempt failed of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastFailure {
    /// When it began.
    pub at: DateTime<Utc>,
    /// An error class.
    pub class: &'static str,
    /// The same for people.
    pub message: String,
    /// What the receiver answered, if it did.
    pub status: Option<u16>,
}

/// What was done for a lane in a minute.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Attempts.
    pub attempts: u32,
    /// Attempts that failed.
    pub failed: u32,
    /// Deliveries that ended as `delivered`.
    pub delivered: u32,
    /// Deliveries that died.
    pub dead: u32,
    /// Deliveries that were cancelled.
    pub cancelled: u32,
    /// How long the attempts took.
    pub durations: Durations,
    /// When the first of them failed.
    pub first_failed_at: Option<DateTime<Utc>>,
    /// The latest failure.
    pub last_failure: Option<LastFailure>,
    /// When the receiver last said 2xx.
    pub last_delivered_at: Option<DateTime<Utc>>,
}

impl Counts {
    /// An attempt.
    pub fn add_attempt(
        &mut self,
        at: DateTime<Utc>,
        duration: Duration,
        failure: Option<LastFailure>,
    ) {
        self.attempts = self.attempts.saturating_add(1);
        self.durations.add(duration);
        if failure.is_some() {
            self.failed = self.failed.saturating_add(1);
            self.first_failed_at = Some(self.first_failed_at.map_or(at, |first| first.min(at)));
            self.keep_latest(failure);
        } else {
            self.last_delivered_at = self.last_delivered_at.max(Some(at));
        }
    }

    /// Those of another, too.
    pub fn merge(&mut self, other: Self) {
        self.attempts = self.attempts.saturating_add(other.attempts);
        self.failed = self.failed.saturating_add(other.failed);
        self.delivered = self.delivered.saturating_add(other.delivered);
        self.dead = self.dead.saturating_add(other.dead);
        self.cancelled = self.cancelled.saturating_add(other.cancelled);
        self.durations.merge(&other.durations);
        self.first_failed_at = match (self.first_failed_at, other.first_failed_at) {
            (Some(one), Some(another)) => Some(one.min(another)),
            (one, another) => one.or(another),
        };
        self.last_delivered_at = self.last_delivered_at.max(other.last_delivered_at);
        self.keep_latest(other.last_failure);
    }

    fn keep_latest(&mut self, failure: Option<LastFailure>) {
        let at = |failure: &Option<LastFailure>| failure.as_ref().map(|failure| failure.at);
        if at(&failure) >= at(&self.last_failure) {
            self.last_failure = failure;
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        Utc.timestamp_opt(second, 0).unwrap()
    }

    fn failure(second: i64) -> LastFailure {
        LastFailure { at: at(second), class: "timeout", message: second.to_string(), status: None }
    }

    #[test]
    fn the_ranges_reach_from_a_millisecond_beyond_the_longest_deadline() {
        assert!((upper_ms(0) - 1.0).abs() < f64::EPSILON);
        assert!(upper_ms(RANGES - 1) > 300_000.0);
        assert_eq!(Durations::default().quantile_ms(0.5), None);
    }

    #[test]
    fn merging_keeps_the_first_and_the_latest() {
        let mut one = Counts::default();
        one.add_attempt(at(5), Duration::from_millis(5), Some(failure(5)));
        one.add_attempt(at(9), Duration::from_millis(5), None);
        let mut other = Counts { dead: 1, ..Counts::default() };
        other.add_attempt(at(7), Duration::from_millis(5), Some(failure(7)));
        other.add_attempt(at(3), Duration::from_millis(5), Some(failure(3)));
        one.merge(other);
        assert_eq!((one.attempts, one.failed, one.dead), (4, 3, 1));
        assert_eq!((one.first_failed_at, one.last_delivered_at), (Some(at(3)), Some(at(9))));
        assert_eq!(one.last_failure, Some(failure(7)));
        let mut stored = Durations::from_counts(&[1; RANGES + 2]);
        stored.merge(&one.durations);
        assert_eq!(stored.counts().iter().sum::<u32>(), 46);
    }

    proptest! {
        #[test]
        fn a_quantile_is_at_most_a_fifth_off(
            mut all in prop::collection::vec(2_u32..300_000, 1..200),
            share in 0.0..1.0_f64,
        ) {
            let mut durations = Durations::default();
            for ms in &all {
                durations.add(Duration::from_millis(u64::from(*ms)));
            }
            all.sort_unstable();
            let found = durations.quantile_ms(share).unwrap();
            // The range of the value that stands there, and those beside it.
            let is_reached = |place: &usize| {
                f64::from(u32::try_from(place + 1).unwrap())
                    >= f64::from(u32::try_from(all.len()).unwrap()) * share
            };
            let place = (0..all.len()).find(is_reached).unwrap();
            let exact = f64::from(all[place]);
            prop_assert!(found <= exact * 1.4143 && found >= exact / 1.4143, "{found} {exact}");
        }
    }
}
