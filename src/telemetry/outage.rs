//! The log of an outage of the database. Every part of the service fails again and again then.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::store::StoreError;

/// The shortest time between two warnings about a database that is away.
const WARNING_INTERVAL: Duration = Duration::from_mins(1);

static WARNINGS: LogThrottle = LogThrottle::new(WARNING_INTERVAL);

/// Logs a statement that failed, and what does not happen because of it. While the database is away
/// that is one line a minute, with the number of the lines that were left out since the one before.
pub fn statement_failed(error: &StoreError, consequence: &'static str) {
    if !error.is_outage() {
        tracing::warn!(%error, "{consequence}");
    } else if let Some(suppressed) = WARNINGS.admit(Instant::now()) {
        tracing::warn!(event = "database_unavailable", %error, suppressed, "{consequence}");
    } else {
        tracing::debug!(event = "database_unavailable", %error, "{consequence}");
    }
}

/// Lets one line pass in an interval, and counts the others.
struct LogThrottle {
    interval: Duration,
    state: Mutex<State>,
}

struct State {
    admitted_at: Option<Instant>,
    suppressed: u64,
}

impl LogThrottle {
    const fn new(interval: Duration) -> Self {
        Self { interval, state: Mutex::new(State { admitted_at: None, suppressed: 0 }) }
    }

    /// The number of lines that were left out since the last one that passed, if this one passes.
    fn admit(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.admitted_at.is_some_and(|at| now.duration_since(at) < self.interval) {
            state.suppressed += 1;
            return None;
        }
        state.admitted_at = Some(now);
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_throttle_admits_one_line_an_interval_with_the_count_of_the_others() {
        let throttle = LogThrottle::new(Duration::from_secs(60));
        let start = Instant::now();
        let admit = |seconds| throttle.admit(start + Duration::from_secs(seconds));
        assert_eq!(admit(0), Some(0));
        assert_eq!(admit(1), None);
        assert_eq!(admit(59), None);
        assert_eq!(admit(60), Some(2));
        assert_eq!(admit(61), None);
        assert_eq!(admit(200), Some(1));
    }
}
