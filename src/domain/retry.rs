//! Whether and when a delivery is tried again. Dice come in, a delay goes out.

use std::time::Duration;

use super::outcome::{Failure, Outcome};

/// How far a delay may be moved off its nominal value, both ways.
const JITTER_SHARE: f64 = 0.25;

/// Shortest and longest delay after an attempt that failed by a fault of this service.
const OWN_FAULT_DELAY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// How many attempts a policy may ask for.
pub const ATTEMPTS_MAX: u32 = 1_000;

/// How many delays an explicit schedule may name.
pub const DELAYS_MAX: usize = 100;

/// Why a policy was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RetryPolicyError {
    /// No attempts, or over [`ATTEMPTS_MAX`].
    #[error("the number of attempts must be 1 to {ATTEMPTS_MAX}")]
    Attempts,
    /// No delays, or over [`DELAYS_MAX`].
    #[error("there must be 1 to {DELAYS_MAX} delays")]
    Delays,
    /// Negative, or beyond all measure.
    #[error("a delay must be a number of seconds, zero or more")]
    Delay,
    /// A base of zero, or over the maximum.
    #[error("the first delay must be above zero and at most the longest delay")]
    Base,
}

/// When a failed delivery is tried again.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    attempts_max: u32,
    delays: Delays,
}

#[derive(Debug, Clone, PartialEq)]
enum Delays {
    /// `base × 2^(n−1)` after the n-th attempt, moved by up to ±25 %, and then held to the longest.
    Exponential { base: Duration, longest: Duration },
    /// The n-th after the n-th attempt, to the second: whoever names them means them.
    Named(Vec<Duration>),
}

/// What becomes of a delivery after an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It is delivered.
    Finish,
    /// It is due again after this delay, which the database adds to its own clock.
    Retry {
        /// The delay.
        after: Duration,
    },
    /// It is dead.
    Bury {
        /// The failure that it died of.
        failure: Failure,
    },
}

impl RetryPolicy {
    /// A policy of exponential back-off.
    pub fn exponential(
        attempts_max: u32,
        base: Duration,
        delay_max: Duration,
    ) -> Result<Self, RetryPolicyError> {
        if !(1..=ATTEMPTS_MAX).contains(&attempts_max) {
            return Err(RetryPolicyError::Attempts);
        }
        if base.is_zero() || delay_max < base {
            return Err(RetryPolicyError::Base);
        }
        Ok(Self { attempts_max, delays: Delays::Exponential { base, longest: delay_max } })
    }

    /// One attempt, and no more.
    pub fn once() -> Self {
        Self { attempts_max: 1, delays: Delays::Named(Vec::new()) }
    }

    /// A policy of named delays: one attempt more than there are delays.
    pub fn schedule(delays: Vec<Duration>) -> Result<Self, RetryPolicyError> {
        if !(1..=DELAYS_MAX).contains(&delays.len()) {
            return Err(RetryPolicyError::Delays);
        }
        let attempts_max = u32::try_from(delays.len() + 1).map_err(|_| RetryPolicyError::Delays)?;
        Ok(Self { attempts_max, delays: Delays::Named(delays) })
    }

    /// Decides from what happened. `attempt` counts from 1; `jitter` is in `0.0..1.0`.
    pub fn decide(&self, attempt: u32, outcome: Outcome, jitter: f64) -> Decision {
        match outcome {
            Outcome::Delivered => Decision::Finish,
            Outcome::Permanent { failure } => Decision::Bury { failure },
            Outcome::Transient { failure, .. } if self.attempts_max <= attempt => {
                Decision::Bury { failure }
            }
            Outcome::Transient { retry_after, .. } => {
                let delay = self.delay(attempt, jitter);
                // A receiver may ask for more patience than we planned, never for less.
                Decision::Retry { after: retry_after.map_or(delay, |wait| wait.max(delay)) }
            }
        }
    }

    /// The delay after the `attempt`-th attempt (from 1); `jitter` is in `0.0..1.0`.
    pub fn delay(&self, attempt: u32, jitter: f64) -> Duration {
        match &self.delays {
            Delays::Exponential { base, longest } => {
                let factor = 1.0 + JITTER_SHARE * (2.0 * jitter - 1.0);
                nominal(attempt, *base, *longest).mul_f64(factor).min(*longest)
            }
            Delays::Named(delays) => {
                let index = usize::try_from(attempt.saturating_sub(1)).unwrap_or(usize::MAX);
                delays.get(index).or(delays.last()).copied().unwrap_or_default()
            }
        }
    }

    /// The longest time from the first attempt to the last, each attempt taking `attempt_max`.
    pub fn horizon(&self, attempt_max: Duration) -> Duration {
        // The jitter that makes it longest.
        let delays = (1..self.attempts_max).map(|n| self.delay(n, 1.0));
        delays.fold(attempt_max, |sum, delay| sum.saturating_add(delay).saturating_add(attempt_max))
    }
}

/// Delay after an attempt that failed by a fault of this service and is not counted: as long as such
/// faults of its lane have lasted, so that it doubles. `jitter` is in `0.0..1.0`.
pub fn own_fault_delay(lasting: Duration, jitter: f64) -> Duration {
    let (first, longest) = OWN_FAULT_DELAY;
    let factor = 1.0 + JITTER_SHARE * (2.0 * jitter - 1.0);
    lasting.clamp(first, longest).mul_f64(factor).min(longest)
}

fn nominal(attempt: u32, base: Duration, longest: Duration) -> Duration {
    // 2^63 times anything is above any maximum; the cap keeps the arithmetic in range.
    let doublings = attempt.saturating_sub(1).min(63);
    let seconds = base.as_secs_f64() * 2_f64.powi(doublings.cast_signed());
    // The margin keeps a jitter of −25 % from being lost below the clamp.
    Duration::from_secs_f64(seconds.min(longest.as_secs_f64() * 2.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::outcome::ErrorClass;

    fn policy() -> RetryPolicy {
        RetryPolicy::exponential(20, Duration::from_secs(2), Duration::from_secs(21_600)).unwrap()
    }

    fn transient(retry_after_s: Option<u64>) -> Outcome {
        Outcome::Transient {
            failure: Failure::new(ErrorClass::HttpStatus, "answered 503"),
            retry_after: retry_after_s.map(Duration::from_secs),
            is_throttled: false,
        }
    }

    #[track_caller]
    fn check(attempt: u32, outcome: Outcome, jitter: f64, expected: &str) {
        let got = match policy().decide(attempt, outcome, jitter) {
            Decision::Finish => "finish".to_owned(),
            Decision::Retry { after } => format!("retry in {}s", after.as_secs_f64()),
            Decision::Bury { failure } => format!("bury: {}", failure.class),
        };
        assert_eq!(got, expected);
    }

    #[test]
    fn decisions() {
        check(1, Outcome::Delivered, 0.5, "finish");
        check(20, Outcome::Delivered, 0.5, "finish");
        check(1, transient(None), 0.5, "retry in 2s");
        check(2, transient(None), 0.5, "retry in 4s");
        check(3, transient(None), 0.5, "retry in 8s");
        check(3, transient(None), 0.0, "retry in 6s");
        check(14, transient(None), 0.5, "retry in 16384s");
        check(15, transient(None), 0.5, "retry in 21600s");
        check(19, transient(None), 0.0, "retry in 21600s");
        check(20, transient(None), 0.5, "bury: http_status");
        check(1, transient(Some(60)), 0.5, "retry in 60s");
        check(10, transient(Some(60)), 0.5, "retry in 1024s");
        let gone = Outcome::Permanent { failure: Failure::new(ErrorClass::HttpStatus, "410") };
        check(1, gone, 0.5, "bury: http_status");
    }

    #[test]
    fn delay_after_a_fault_of_the_service_doubles_up_to_five_minutes() {
        let mut lasting = Duration::ZERO;
        let mut delays = Vec::new();
        for _ in 0..12 {
            let delay = own_fault_delay(lasting, 0.5);
            delays.push(delay.as_secs());
            lasting += delay;
        }
        assert_eq!(delays, [1, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(own_fault_delay(Duration::MAX, 1.0).as_secs(), 300);
    }

    #[test]
    fn impossible_policies_are_refused() {
        let second = Duration::from_secs(1);
        let policy = RetryPolicy::exponential;
        assert_eq!(policy(0, second, second), Err(RetryPolicyError::Attempts));
        assert_eq!(policy(1_001, second, second), Err(RetryPolicyError::Attempts));
        assert_eq!(policy(1, Duration::ZERO, second), Err(RetryPolicyError::Base));
        assert_eq!(policy(1, second * 2, second), Err(RetryPolicyError::Base));
    }

    #[test]
    fn the_default_horizon_is_below_two_days() {
        let hours = policy().horizon(Duration::from_secs(15)).as_secs() / 3_600;
        assert!((35..48).contains(&hours), "{hours}");
    }

    proptest! {
        #[test]
        fn delay_stays_inside_its_limits(attempt in 1_u32..2_000, jitter in 0.0_f64..1.0) {
            let delay = policy().delay(attempt, jitter);
            prop_assert!(Duration::from_millis(1_500) <= delay);
            prop_assert!(delay <= Duration::from_secs(21_600));
        }

        #[test]
        fn jitter_moves_a_delay_by_a_quarter_at_most(attempt in 1_u32..14, jitter in 0.0_f64..1.0) {
            let nominal = 2_f64.powi(attempt.cast_signed());
            let delay = policy().delay(attempt, jitter).as_secs_f64();
            prop_assert!((0.749 * nominal..1.251 * nominal).contains(&delay));
        }

        #[test]
        fn delays_add_up_to_less_than_the_horizon(
            attempts in 1_u32..60, base_ms in 1_u64..100_000, jitter in 0.0_f64..1.0,
        ) {
            let base = Duration::from_millis(base_ms);
            let policy = RetryPolicy::exponential(attempts, base, base * 1_000).unwrap();
            let sum: Duration = (1..attempts).map(|n| policy.delay(n, jitter)).sum();
            prop_assert!(sum <= policy.horizon(Duration::ZERO) + Duration::from_millis(1));
        }
    }
}
