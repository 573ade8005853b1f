//! Judgement of the database's clock by a monotonic clock.
//!
//! All times are microseconds: those of the database since the Unix epoch, those of the monotonic
//! clock since any fixed moment. A difference between the two is an *offset*.

use std::time::Duration;

/// Difference that a round trip, a slow statement or a disciplined clock may make. More is a jump.
pub const TOLERANCE: Duration = Duration::from_secs(5);
/// How long a jump lasts until it is taken for the time.
pub const HELD_AFTER: Duration = Duration::from_mins(10);
/// Gap before a start that is taken for a pause of the service. A longer one may be a clock that was
/// wrong.
pub const STOPPED_MAX: Duration = Duration::from_hours(1);

/// One reading of the database's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// The database's clock.
    pub database_us: i64,
    /// The monotonic clock halfway through the round trip.
    pub monotonic_us: i64,
    /// Half of the round trip: the reading is off by this at most.
    pub uncertainty_us: i64,
}

impl Reading {
    fn offset(self) -> i64 {
        self.database_us.saturating_sub(self.monotonic_us)
    }
}

/// A difference that the monotonic clock does not explain, and that has not lasted long enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doubt {
    /// How far the database's clock is ahead of the expected time; negative: behind.
    pub ahead_us: i64,
    /// When it was first seen, by the monotonic clock.
    pub since_us: i64,
    /// It was there at the start of this process.
    pub is_from_start: bool,
}

/// Result of a reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing new.
    Same,
    /// A jump, or another one.
    Jumped(Doubt),
    /// The clock agrees with the expected time again.
    WentBack,
    /// The jump has lasted, and is the time now.
    Accepted,
}

/// State of the judgement.
#[derive(Debug, Clone, Copy, Default)]
pub struct Witness {
    /// Offset of the time that this process goes by; `None` before the first reading.
    offset_us: Option<i64>,
    doubt: Option<Doubt>,
    /// Offset of the newest time that the database knew at the start, while the start is in doubt.
    evidence_us: Option<i64>,
}

#[expect(clippy::cast_possible_truncation, reason = "292,000 years of microseconds fit")]
const fn us(duration: Duration) -> i64 {
    duration.as_micros() as i64
}

/// Whether a time can follow the newest known one, after a pause of the service.
fn follows(gap_us: i64) -> bool {
    (-us(TOLERANCE)..=us(STOPPED_MAX)).contains(&gap_us)
}

impl Witness {
    /// Takes the first reading. `evidence_us` is the newest time that the database knew before, if it
    /// knew any, and `host_us` the clock of this machine.
    pub fn start(&mut self, reading: Reading, evidence_us: Option<i64>, host_us: i64) -> Verdict {
        *self = Self { offset_us: Some(reading.offset()), doubt: None, evidence_us: None };
        let Some(evidence_us) = evidence_us else { return Verdict::Same };
        let gap_us = reading.database_us.saturating_sub(evidence_us);
        if follows(gap_us) {
            return Verdict::Same;
        }
        if follows(host_us.saturating_sub(evidence_us)) {
            // Two witnesses against one.
            self.offset_us = Some(host_us.saturating_sub(reading.monotonic_us));
            return self.observe(reading, HELD_AFTER);
        }
        self.evidence_us = Some(evidence_us.saturating_sub(reading.monotonic_us));
        self.doubt_start(reading, gap_us)
    }

    /// Takes a further reading. A jump is accepted once it has lasted for `held_after`.
    pub fn observe(&mut self, reading: Reading, held_after: Duration) -> Verdict {
        let Some(offset_us) = self.offset_us else { return self.start(reading, None, 0) };
        let has_lasted =
            |doubt: &Doubt| reading.monotonic_us.saturating_sub(doubt.since_us) >= us(held_after);
        if let Some(evidence_us) = self.evidence_us {
            // Nothing here is known well enough to hold it against the database.
            let had_jumped = (reading.offset() - offset_us).abs() > limit(reading);
            self.offset_us = Some(nearest(offset_us, reading));
            let gap_us = reading.offset().saturating_sub(evidence_us);
            if follows(gap_us) {
                return self.settle(Verdict::WentBack);
            }
            if had_jumped {
                return self.doubt_start(reading, gap_us);
            }
            if self.doubt.as_ref().is_none_or(has_lasted) {
                return self.settle(Verdict::Accepted);
            }
            return Verdict::Same;
        }
        let ahead_us = reading.offset().saturating_sub(offset_us);
        if ahead_us.abs() <= limit(reading) {
            self.offset_us = Some(nearest(offset_us, reading));
            return if self.doubt.is_some() {
                self.settle(Verdict::WentBack)
            } else {
                Verdict::Same
            };
        }
        match self.doubt {
            Some(doubt) if (ahead_us - doubt.ahead_us).abs() <= limit(reading) => {
                if !has_lasted(&doubt) {
                    return Verdict::Same;
                }
                self.offset_us = Some(reading.offset());
                self.settle(Verdict::Accepted)
            }
            _ => {
                let doubt =
                    Doubt { ahead_us, since_us: reading.monotonic_us, is_from_start: false };
                self.doubt = Some(doubt);
                Verdict::Jumped(doubt)
            }
        }
    }

    /// The jump in question, if there is one.
    pub fn doubt(&self) -> Option<Doubt> {
        self.doubt
    }

    /// Offset of the time that orders work; `None` before the first reading.
    pub fn offset_us(&self) -> Option<i64> {
        self.offset_us
    }

    /// Offset of the time by which things may end for good: never later than any witness says.
    pub fn settled_offset_us(&self) -> Option<i64> {
        Some(self.offset_us?.min(self.evidence_us.unwrap_or(i64::MAX)))
    }

    fn doubt_start(&mut self, reading: Reading, ahead_us: i64) -> Verdict {
        let doubt = Doubt { ahead_us, since_us: reading.monotonic_us, is_from_start: true };
        self.doubt = Some(doubt);
        Verdict::Jumped(doubt)
    }

    fn settle(&mut self, verdict: Verdict) -> Verdict {
        (self.doubt, self.evidence_us) = (None, None);
        verdict
    }
}

fn limit(reading: Reading) -> i64 {
    us(TOLERANCE) + reading.uncertainty_us
}

/// The offset nearest to a known one that a reading allows: a slow round trip moves nothing.
fn nearest(offset_us: i64, reading: Reading) -> i64 {
    let (middle, half) = (reading.offset(), reading.uncertainty_us);
    offset_us.clamp(middle.saturating_sub(half), middle.saturating_add(half))
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: i64 = 1_000_000;
    const HOUR: i64 = 3_600 * S;
    const T: i64 = 1_800_000_000 * S;

    fn at(monotonic_us: i64, database_us: i64) -> Reading {
        Reading { database_us, monotonic_us, uncertainty_us: 1_000 }
    }

    fn started() -> Witness {
        let mut witness = Witness::default();
        assert_eq!(witness.start(at(0, T), Some(T - S), T), Verdict::Same);
        witness
    }

    fn expected(witness: &Witness, monotonic_us: i64) -> i64 {
        witness.offset_us().unwrap() + monotonic_us
    }

    #[test]
    fn small_differences_move_the_time_and_slow_readings_do_not() {
        let mut witness = started();
        assert_eq!(witness.observe(at(S, T + S + 4 * S), HELD_AFTER), Verdict::Same);
        assert_eq!(expected(&witness, S), T + 5 * S - 1_000);
        let slow = Reading { database_us: T + 20 * S, monotonic_us: 10 * S, uncertainty_us: 8 * S };
        assert_eq!(witness.observe(slow, HELD_AFTER), Verdict::Same);
        assert_eq!(expected(&witness, S), T + 5 * S - 1_000);
    }

    #[test]
    fn jump_is_in_doubt_until_it_goes_back() {
        for jump in [-HOUR, 40 * 24 * HOUR] {
            let mut witness = started();
            let verdict = witness.observe(at(S, T + S + jump), HELD_AFTER);
            assert!(matches!(verdict, Verdict::Jumped(doubt) if doubt.ahead_us == jump));
            assert_eq!(witness.observe(at(2 * S, T + 2 * S + jump), HELD_AFTER), Verdict::Same);
            assert_eq!(expected(&witness, 9 * S), T + 9 * S, "the time goes on as before");
            assert_eq!(witness.settled_offset_us(), witness.offset_us());
            assert_eq!(witness.observe(at(3 * S, T + 3 * S), HELD_AFTER), Verdict::WentBack);
            assert_eq!(witness.doubt(), None);
        }
    }

    #[test]
    fn jump_that_lasts_is_the_time_and_another_one_begins_anew() {
        let mut witness = started();
        witness.observe(at(S, T + HOUR), HELD_AFTER);
        let again = witness.observe(at(500 * S, T + 2 * HOUR), HELD_AFTER);
        assert!(matches!(again, Verdict::Jumped(_)));
        assert_eq!(witness.observe(at(700 * S, T + 2 * HOUR + 200 * S), HELD_AFTER), Verdict::Same);
        let held = at(1_100 * S, T + 2 * HOUR + 600 * S);
        assert_eq!(witness.observe(held, HELD_AFTER), Verdict::Accepted);
        assert_eq!(expected(&witness, 1_100 * S), held.database_us);
    }

    #[test]
    fn start_goes_by_two_of_three_witnesses() {
        // The host agrees with what the database knew: the database's clock has jumped.
        let mut witness = Witness::default();
        let verdict = witness.start(at(0, T + 40 * 24 * HOUR), Some(T), T + S);
        assert!(matches!(verdict, Verdict::Jumped(doubt) if !doubt.is_from_start));
        assert_eq!(expected(&witness, 0), T + S);
        assert_eq!(witness.observe(at(9 * S, T + 10 * S), HELD_AFTER), Verdict::WentBack);
        // The host agrees with the database: the service was off, or both clocks are wrong.
        let mut witness = Witness::default();
        let verdict = witness.start(at(0, T + 40 * HOUR), Some(T), T + 40 * HOUR);
        assert!(matches!(verdict, Verdict::Jumped(doubt) if doubt.is_from_start));
        assert_eq!(expected(&witness, 0), T + 40 * HOUR, "what is new has the time of now");
        assert_eq!(witness.settled_offset_us(), Some(T), "nothing ends by it");
        let held = at(600 * S, T + 40 * HOUR + 600 * S);
        assert_eq!(witness.observe(held, HELD_AFTER), Verdict::Accepted);
        assert_eq!(witness.settled_offset_us(), witness.offset_us());
    }

    #[test]
    fn start_in_doubt_follows_a_clock_that_goes_back() {
        let mut witness = Witness::default();
        witness.start(at(0, T + 40 * HOUR), Some(T), T + 40 * HOUR);
        assert_eq!(witness.observe(at(9 * S, T + 9 * S), HELD_AFTER), Verdict::WentBack);
        assert!((expected(&witness, 9 * S) - T - 9 * S).abs() <= 1_000, "as near as it was read");
    }

    #[test]
    fn pause_of_the_service_and_an_empty_database_are_no_doubt() {
        let mut witness = Witness::default();
        assert_eq!(witness.start(at(0, T), Some(T - HOUR), 0), Verdict::Same);
        assert_eq!(witness.start(at(0, T), None, 0), Verdict::Same);
        assert_eq!(witness.start(at(0, T), Some(T + 3 * S), 0), Verdict::Same);
        assert!(matches!(witness.start(at(0, T), Some(T + 9 * S), 0), Verdict::Jumped(_)));
    }
}
