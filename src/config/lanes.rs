//! How many requests may be under way, and when a lane is left in peace.

use super::{
    check::{ConfigError, seconds_within, within},
    settings::Settings,
};
use crate::domain::pacing::Breaker;

/// The bounds of `IN_FLIGHT_MAX`: one lane may have half of it, and at least one request.
const IN_FLIGHT: std::ops::RangeInclusive<usize> = 2..=100_000;
const LANE_IN_FLIGHT: std::ops::RangeInclusive<usize> = 1..=10_000;
/// The bounds of `BREAKER_FAILURES`, and of `BREAKER_PAUSE_MAX` in seconds.
const BREAKER_FAILURES: std::ops::RangeInclusive<usize> = 0..=1_000;
const BREAKER_PAUSE_SECONDS: std::ops::RangeInclusive<f64> = 1.0..=3_600.0;

impl Settings {
    /// `IN_FLIGHT_MAX` and `LANE_IN_FLIGHT_MAX`.
    pub(super) fn in_flight(&self) -> Result<(usize, usize), ConfigError> {
        let all = within("IN_FLIGHT_MAX", self.in_flight_max as usize, &IN_FLIGHT)?;
        let lane = self.lane_in_flight_max as usize;
        let lane = within("LANE_IN_FLIGHT_MAX", lane, &LANE_IN_FLIGHT)?;
        if lane > all / 2 { Err(ConfigError::Lane { lane, all }) } else { Ok((all, lane)) }
    }

    /// `BREAKER_FAILURES` and `BREAKER_PAUSE_MAX`.
    pub(super) fn breaker(&self) -> Result<Breaker, ConfigError> {
        within("BREAKER_FAILURES", self.breaker_failures.into(), &BREAKER_FAILURES)?;
        let pause_max = self.breaker_pause_max;
        let pause_max = seconds_within("BREAKER_PAUSE_MAX", pause_max, &BREAKER_PAUSE_SECONDS)?;
        Ok(Breaker { failures: self.breaker_failures, pause_max })
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::tests::{check, refused};

    #[test]
    fn one_lane_has_half_of_the_slots_at_most() {
        let both = ["LANE_IN_FLIGHT_MAX", "IN_FLIGHT_MAX (7)"];
        refused(&["--in-flight-max=7", "--lane-in-flight-max=4"], &both);
        let config = check(&["--in-flight-max=7", "--lane-in-flight-max=3"]).unwrap();
        assert_eq!((config.in_flight_max, config.lane_in_flight_max), (7, 3));
        check(&["--in-flight-max=2", "--lane-in-flight-max=1"]).unwrap();
        refused(&["--in-flight-max=1", "--lane-in-flight-max=1"], &["IN_FLIGHT_MAX"]);
        refused(&["--lane-in-flight-max=0"], &["LANE_IN_FLIGHT_MAX"]);
    }

    #[test]
    fn the_breaker_is_bounded() {
        refused(&["--breaker-failures=1001"], &["BREAKER_FAILURES"]);
        refused(&["--breaker-pause-max=0.5"], &["BREAKER_PAUSE_MAX"]);
        let breaker = check(&["--breaker-failures=0", "--breaker-pause-max=3600"]).unwrap().breaker;
        assert_eq!((breaker.failures, breaker.pause_max.as_secs()), (0, 3_600));
    }
}
