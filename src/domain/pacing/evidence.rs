//! Evidence that a receiver is down: failures since its last answer, compared with its share of
//! successes before. A receiver that fails at random fails often in a row by chance, and is not down.

/// Weight of an attempt that failed without an answer: no connection, or a timeout.
pub const UNANSWERED: u16 = 4;
/// Weight of an attempt that was answered with an error.
pub const ANSWERED: u16 = 1;
/// The history covers about this many attempts by weight; older ones fade.
const HISTORY_MAX: u16 = 128;
/// The smallest share of successes that is expected of a receiver, one in this many.
const SHARE_MIN: u32 = 50;
/// The receiver counts as down when its share of successes made this many likely and none came: by
/// chance that happens once in some ten thousand times.
const MISSED_WHEN_DOWN: u32 = 9;
/// The same for a receiver that only counts as doubtful.
const MISSED_WHEN_DOUBTFUL: u32 = 5;
/// Half-open: the number of probes at a time after the first pauses, and after later ones.
const PROBES: [usize; 4] = [2, 4, 8, 8];
const PROBES_LATER: usize = 4;
/// Half-open: the most probes at a time of a receiver that seldom succeeds.
const PROBES_MAX: usize = 32;

/// Attempts of one lane, weighed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Evidence {
    good: u16,
    /// Failures before the last success.
    bad: u16,
    /// Failures since.
    since: u16,
}

impl Evidence {
    /// Notes an answer that shows the receiver to be up.
    pub fn answered(&mut self) {
        // The failures of an outage say nothing about the share of successes between outages.
        self.fail_before(self.since.min(self.needed()));
        self.since = 0;
        self.good += 1;
        self.fade();
    }

    /// Notes a failure.
    pub fn failed(&mut self, weight: u16) {
        self.since = self.since.saturating_add(weight);
    }

    /// Notes a failure of an attempt that began before the last success.
    pub fn fail_before(&mut self, weight: u16) {
        self.bad = self.bad.saturating_add(weight);
        self.fade();
    }

    fn fade(&mut self) {
        while self.good.saturating_add(self.bad) > HISTORY_MAX {
            // A single success is remembered, rounded up.
            self.good = self.good.div_ceil(2);
            self.bad /= 2;
        }
    }

    /// Number of attempts by weight among which one success is likely; `None` if there was none yet.
    fn attempts_per_success(self) -> Option<u32> {
        let (good, bad) = (u32::from(self.good), u32::from(self.bad));
        (good > 0).then(|| (good + bad).div_ceil(good).min(SHARE_MIN))
    }

    /// Failures by weight after which the receiver counts as down, if it has succeeded before.
    fn needed(self) -> u16 {
        let needed = self.attempts_per_success().unwrap_or(1) * MISSED_WHEN_DOWN;
        u16::try_from(needed).unwrap_or(u16::MAX)
    }

    fn has_missed(self, successes: u32) -> bool {
        self.attempts_per_success().is_none_or(|each| u32::from(self.since) >= each * successes)
    }

    /// Returns whether the receiver seems to be down. `failures_min` is the least number of failures without
    /// an answer.
    pub fn is_down(self, failures_min: u16) -> bool {
        let is_enough = match self.good {
            0 => self.since >= failures_min.saturating_mul(UNANSWERED),
            _ => true,
        };
        is_enough && self.has_missed(MISSED_WHEN_DOWN)
    }

    /// Returns whether the receiver may be down, or has not succeeded yet.
    pub fn is_doubtful(self) -> bool {
        self.has_missed(MISSED_WHEN_DOUBTFUL)
    }

    /// Returns whether failures are usual for a receiver that is up: over a tenth of its attempts.
    pub fn is_flaky(self) -> bool {
        self.good > 0 && u32::from(self.bad) * 9 > u32::from(self.good)
    }

    /// Number of probes to send at a time after this many openings in a row.
    pub fn probes(self, openings: usize) -> usize {
        let usual = PROBES.get(openings.saturating_sub(1)).copied().unwrap_or(PROBES_LATER);
        let likely = self.attempts_per_success().map_or(0, |each| 2 * each as usize);
        usual.max(likely).min(PROBES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(good: usize, bad: usize) -> Evidence {
        let mut evidence = Evidence::default();
        let (mut left, mut owed) = (bad, 0);
        for _ in 0..good {
            owed += bad;
            for _ in 0..(owed / good).min(left) {
                evidence.failed(ANSWERED);
                left -= 1;
            }
            owed %= good.max(1);
            evidence.answered();
        }
        evidence
    }

    #[track_caller]
    fn check(mut evidence: Evidence, weight: u16, expected: usize) {
        let mut failures = 0;
        while !evidence.is_down(5) {
            evidence.failed(weight);
            failures += 1;
        }
        assert_eq!(failures, expected, "{evidence:?}");
    }

    #[test]
    fn failures_until_a_receiver_is_down_depend_on_its_share_of_successes() {
        check(evidence(100, 0), ANSWERED, 9);
        check(evidence(100, 0), UNANSWERED, 3);
        check(evidence(50, 50), ANSWERED, 18);
        check(evidence(10, 90), ANSWERED, 90);
        check(evidence(1, 1_000), ANSWERED, 9 * 10);
        // Nothing is known of a new one.
        check(evidence(0, 0), ANSWERED, 20);
        check(evidence(0, 0), UNANSWERED, 5);
    }

    #[test]
    fn history_fades_and_an_outage_is_not_part_of_it() {
        let mut evidence = evidence(100, 0);
        (0..60_000).for_each(|_| evidence.failed(UNANSWERED));
        evidence.answered();
        assert!(!evidence.is_flaky(), "{evidence:?}");
        for _ in 0..40 {
            (0..9).for_each(|_| evidence.failed(ANSWERED));
            evidence.answered();
        }
        assert!(evidence.is_flaky() && (14..=22).contains(&evidence.probes(1)), "{evidence:?}");
        assert_eq!([1, 2, 3, 4, 5, 99].map(|n| Evidence::default().probes(n)), [2, 4, 8, 8, 4, 4]);
    }
}
