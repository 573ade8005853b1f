//! What the owner of a subscription bounds: requests at a time, and requests in a time.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The most requests at a time that a subscription can name.
pub const MAX_IN_FLIGHT_MAX: i32 = 10_000;
/// The most requests in a time, and in a burst, that a rate can name.
pub const RATE_COUNT_MAX: u32 = 100_000;
/// The bounds of that time, in seconds.
pub const RATE_SECONDS: std::ops::RangeInclusive<f64> = 1.0..=86_400.0;

/// The bounds of how late a request may begin after its time.
const SLACK: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// A rate as it is written in JSON, by callers and in the database alike.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// So many requests …
    pub count: u32,
    /// … in so many seconds, spread evenly.
    pub per_seconds: f64,
    /// So many may begin at once after a pause.
    #[serde(default = "one")]
    pub burst: u32,
}

fn one() -> u32 {
    1
}

/// Why there is no such rate. Completes "`rate_limit` …".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RateLimitError {
    /// Zero, or over [`RATE_COUNT_MAX`].
    #[error("must have a `count` of 1 to {RATE_COUNT_MAX}")]
    Count,
    /// Outside of [`RATE_SECONDS`].
    #[error("must have `per_seconds` of 1 to 86400")]
    Seconds,
    /// Zero, or over [`RATE_COUNT_MAX`].
    #[error("must have a `burst` of 1 to {RATE_COUNT_MAX}")]
    Burst,
}

impl RateLimit {
    /// When requests may begin by it.
    pub fn pace(&self) -> Result<Pace, RateLimitError> {
        let is_count = |count| (1..=RATE_COUNT_MAX).contains(&count);
        if !is_count(self.count) {
            return Err(RateLimitError::Count);
        }
        if !RATE_SECONDS.contains(&self.per_seconds) {
            return Err(RateLimitError::Seconds);
        }
        if !is_count(self.burst) {
            return Err(RateLimitError::Burst);
        }
        // Rounded up: rather less than more.
        let per_us = u64::try_from(Duration::from_secs_f64(self.per_seconds).as_micros());
        let step_us = per_us.unwrap_or(u64::MAX).div_ceil(self.count.into());
        let step = Duration::from_micros(step_us);
        let tolerance = step * (self.burst - 1);
        Ok(Pace { step, tolerance, slack: step.clamp(SLACK.0, SLACK.1) })
    }
}

/// When requests to a lane may begin: a generic cell rate algorithm (GCRA; ITU-T I.371). The requests
/// have times, each a step after the one before; a request may begin earlier than its time by the
/// tolerance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// From one request to the next, at least a microsecond.
    pub step: Duration,
    /// What bursts may be ahead.
    pub tolerance: Duration,
    /// How late after its time a request may begin; later the time is lost, and another one is taken.
    pub slack: Duration,
}

impl Pace {
    /// How far ahead the next time can be at most, after requests at this pace.
    pub fn ahead_max(&self) -> Duration {
        self.step + self.tolerance
    }
}

/// What a revision of a subscription says about its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LaneLimit {
    /// The revision, from 1: a later one counts.
    pub revision: i32,
    /// Requests at a time, over all processes.
    pub max_in_flight: Option<u32>,
    /// When they may begin.
    pub pace: Option<Pace>,
}

impl LaneLimit {
    /// How much earlier than its time a request may begin.
    pub fn tolerance(&self) -> Duration {
        self.pace.map_or(Duration::ZERO, |pace| pace.tolerance)
    }

    /// Whether it bounds anything.
    pub fn bounds(&self) -> bool {
        self.max_in_flight.is_some() || self.pace.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Pace, RateLimitError> {
        serde_json::from_str::<RateLimit>(json).unwrap().pace()
    }

    /// Catches: a step that is rounded down, by which more would go out than is allowed.
    #[test]
    fn a_rate_is_a_step_and_a_tolerance() {
        let pace = read(r#"{"count": 3, "per_seconds": 1, "burst": 4}"#).unwrap();
        assert_eq!(pace.step, Duration::from_micros(333_334));
        assert_eq!(pace.tolerance, 3 * pace.step);
        assert_eq!(pace.slack, pace.step);
        let slow = read(r#"{"count": 1, "per_seconds": 86400}"#).unwrap();
        assert_eq!((slow.tolerance, slow.slack), (Duration::ZERO, Duration::from_secs(5)));
        let quick = read(r#"{"count": 100000, "per_seconds": 1}"#).unwrap();
        assert_eq!(quick.slack, Duration::from_millis(250));
    }

    #[test]
    fn rates_that_are_none_are_refused() {
        use RateLimitError::{Burst, Count, Seconds};
        for (json, error) in [
            (r#"{"count": 0, "per_seconds": 1}"#, Count),
            (r#"{"count": 100001, "per_seconds": 1}"#, Count),
            (r#"{"count": 1, "per_seconds": 0.5}"#, Seconds),
            (r#"{"count": 1, "per_seconds": 86401}"#, Seconds),
            (r#"{"count": 1, "per_seconds": 1, "burst": 0}"#, Burst),
        ] {
            assert_eq!(read(json), Err(error), "{json}");
        }
        for json in [r#"{"count": 1}"#, r#"{"count": 1.5, "per_seconds": 1}"#, "5", "[1, 2, 3, 4]"]
        {
            assert!(serde_json::from_str::<RateLimit>(json).is_err(), "{json}");
        }
        let unknown = r#"{"count": 1, "per_seconds": 1, "per": 2}"#;
        assert!(serde_json::from_str::<RateLimit>(unknown).is_err());
    }
}
