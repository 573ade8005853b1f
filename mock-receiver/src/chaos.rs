//! What will go wrong with which attempt.
//!
//! The plan of an attempt is a hash of the seed, the webhook-id and the attempt's number, so it
//! depends neither on the order in which requests arrive nor on what else arrives.

use std::time::Duration;

use axum::http::StatusCode;
use sha2::{Digest, Sha256};

use crate::settings::Settings;

/// Decides what happens to each attempt.
#[derive(Debug, Clone)]
pub struct Chaos {
    seed: u64,
    hang_rate: f64,
    failure_rate: f64,
    delay_max: Duration,
}

/// What happens to one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// The request is held without an answer.
    Hang,
    /// The request is answered.
    Answer {
        /// How long to wait before the answer.
        delay: Duration,
        /// 200, or a failure.
        status: StatusCode,
    },
}

impl Chaos {
    /// The rates of `settings` with this seed; the seed in the settings is not looked at.
    pub fn new(settings: &Settings, seed: u64) -> Self {
        Self {
            seed,
            hang_rate: settings.hang_rate,
            failure_rate: settings.failure_rate,
            delay_max: settings.delay_max,
        }
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The plan for the `attempt`-th request (from 1) with this webhook-id. The same for ever.
    pub fn plan(&self, webhook_id: &str, attempt: u32) -> Plan {
        // What has a fixed length comes first, so no two inputs look alike.
        let hash = Sha256::new()
            .chain_update(self.seed.to_be_bytes())
            .chain_update(attempt.to_be_bytes())
            .chain_update(webhook_id)
            .finalize();
        // Independent bytes for independent questions.
        if fraction([hash[0], hash[1], hash[2], hash[3]]) < self.hang_rate {
            return Plan::Hang;
        }
        let delay = self.delay_max.mul_f64(fraction([hash[4], hash[5], hash[6], hash[7]]));
        let is_failure = fraction([hash[8], hash[9], hash[10], hash[11]]) < self.failure_rate;
        let status = if is_failure { failure(hash[12]) } else { StatusCode::OK };
        Plan::Answer { delay, status }
    }
}

/// Reads four bytes as a number in `0.0..1.0`.
fn fraction(bytes: [u8; 4]) -> f64 {
    f64::from(u32::from_be_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}

/// What is answered instead of 200: mostly what a broken or overloaded service says. Never 410,
/// which would disable a subscription for good.
fn failure(byte: u8) -> StatusCode {
    match byte % 16 {
        0..=6 => StatusCode::INTERNAL_SERVER_ERROR,
        7..=12 => StatusCode::SERVICE_UNAVAILABLE,
        13 => StatusCode::BAD_GATEWAY,
        14 => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::TOO_MANY_REQUESTS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chaos(seed: u64) -> Chaos {
        Chaos::new(&Settings::default(), seed)
    }

    /// Shows a plan as `hang`, or as the status and the delay in milliseconds.
    fn show(plan: Plan) -> String {
        match plan {
            Plan::Hang => "hang".to_owned(),
            Plan::Answer { delay, status } => format!("{} {}", status.as_u16(), delay.as_millis()),
        }
    }

    /// The expected values were computed apart, with Python's hashlib.
    #[test]
    fn plans_stay_the_same_for_ever() {
        let check = |seed, webhook_id, attempt, expected| {
            assert_eq!(show(chaos(seed).plan(webhook_id, attempt)), expected);
        };
        check(7, "evt_a", 1, "200 123");
        check(7, "evt_a", 2, "500 1003");
        check(7, "evt_a", 3, "503 2142");
        check(7, "evt_a", 7, "hang");
        check(7, "evt_a", 13, "504 4871");
        check(7, "evt_a", 17, "429 4137");
        check(7, "evt_b", 1, "200 4330");
        check(8, "evt_a", 1, "200 680");
    }

    /// Exact, since all of it follows from the seed; Python counted the same.
    #[test]
    fn rates_are_kept() {
        let mut counts = std::collections::BTreeMap::<String, u32>::new();
        for number in 0..10_000 {
            let plan = show(chaos(7).plan(&format!("evt_{number}"), 1));
            let kind = plan.split(' ').next().unwrap_or_default().to_owned();
            *counts.entry(kind).or_default() += 1;
        }
        let counts: Vec<_> = counts.iter().map(|(kind, n)| (kind.as_str(), *n)).collect();
        assert_eq!(
            counts,
            [
                ("200", 2735),
                ("429", 419),
                ("500", 2861),
                ("502", 385),
                ("503", 2419),
                ("504", 390),
                ("hang", 791),
            ]
        );
    }

    #[test]
    fn rates_of_0_and_1_are_never_and_always() {
        let calm = Chaos::new(&Settings::calm(), 7);
        let failing = Chaos::new(&Settings { failure_rate: 1.0, ..Settings::calm() }, 7);
        let hanging = Chaos::new(&Settings { hang_rate: 1.0, ..Settings::calm() }, 7);
        for attempt in 1..1_000 {
            assert_eq!(show(calm.plan("evt_a", attempt)), "200 0");
            assert_ne!(show(failing.plan("evt_a", attempt)), "200 0");
            assert_eq!(hanging.plan("evt_a", attempt), Plan::Hang);
        }
    }
}
