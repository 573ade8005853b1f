//! An outage of this service's own network: no receiver answers any more, whatever its host. Failures
//! without an answer say nothing about a receiver then.

use std::time::{Duration, Instant};

/// An outage takes failures of this many hosts that answered not long ago, or of this many at all,
/// and no answer of any receiver in between.
const HOSTS_THAT_ANSWERED: usize = 5;
const HOSTS: usize = 20;
/// The failures must lie within this time.
const WINDOW: Duration = Duration::from_secs(60);
/// An outage lasts while [`HOSTS_THAT_ANSWERED`] hosts have failed within this time: twice the longest
/// delay between two attempts of a delivery meanwhile.
const LASTING: Duration = Duration::from_secs(600);

/// Hosts that failed without an answer since any receiver answered.
#[derive(Debug, Default)]
pub struct Outage {
    failed: Vec<Failed>,
    /// It lasts until any receiver answers, or few hosts are left that are called in vain.
    is_on: bool,
}

#[derive(Debug)]
struct Failed {
    host: u64,
    answered_lately: bool,
    at: Instant,
}

impl Outage {
    /// Notes a failure without an answer; returns whether it belongs to an outage.
    pub fn unanswered(&mut self, host: u64, answered_lately: bool, now: Instant) -> bool {
        let window = if self.is_on { LASTING } else { WINDOW };
        self.failed.retain(|one| now < one.at + window && one.host != host);
        if self.failed.len() >= HOSTS {
            self.failed.remove(0);
        }
        self.failed.push(Failed { host, answered_lately, at: now });
        let that_answered = self.failed.iter().filter(|one| one.answered_lately).count();
        self.is_on = if self.is_on {
            self.failed.len() >= HOSTS_THAT_ANSWERED
        } else {
            that_answered >= HOSTS_THAT_ANSWERED || self.failed.len() >= HOSTS
        };
        self.is_on
    }

    /// Notes an answer of any receiver.
    pub fn answered(&mut self) {
        self.failed.clear();
        self.is_on = false;
    }

    /// Returns whether it lasts.
    pub fn is_on(&self) -> bool {
        self.is_on
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outage_takes_many_hosts_and_no_answer_of_any() {
        let now = Instant::now();
        let mut outage = Outage::default();
        let fail = |outage: &mut Outage, hosts: std::ops::Range<u64>, lately, at| {
            hosts.map(|host| outage.unanswered(host, lately, at)).filter(|is_on| *is_on).count()
        };
        assert_eq!(fail(&mut outage, 0..4, true, now), 0);
        assert_eq!(fail(&mut outage, 0..4, true, now), 0, "the same hosts again");
        assert_eq!(fail(&mut outage, 4..9, true, now + WINDOW), 1, "the first four are too old");
        assert_eq!(fail(&mut outage, 0..1, true, now + 9 * WINDOW), 1, "it lasts");
        let later = now + WINDOW + LASTING;
        assert_eq!(fail(&mut outage, 0..1, true, later), 0, "this host alone is called in vain");
        assert_eq!(fail(&mut outage, 0..1, true, later + WINDOW), 0);
        outage.answered();
        assert_eq!(fail(&mut outage, 0..4, true, now), 0);
        outage.answered();
        assert_eq!(fail(&mut outage, 4..8, true, now), 0, "somebody answered in between");
        outage.answered();
        assert_eq!(fail(&mut outage, 0..19, false, now), 0, "receivers that were down before");
        assert_eq!(fail(&mut outage, 19..20, false, now), 1);
        assert!(outage.is_on());
    }
}
