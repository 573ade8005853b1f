//! The counts, and what is remembered of each webhook-id.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;

use axum::http::StatusCode;
use bytes::Bytes;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::record::{Answer, Received, Record, Verdict};

/// How many webhook-ids are remembered. The oldest are forgotten; one that comes again afterwards
/// counts as new.
pub const IDS_MAX: usize = 1_000_000;

/// How many webhook-ids `/fail-first` counts the attempts of. The oldest are forgotten; one that
/// comes again afterwards fails anew.
pub const FAIL_FIRST_IDS_MAX: usize = 100_000;

/// How many requests came to `/webhook` and to the receivers on request, and how they ended.
///
/// Each request is in exactly one of `unique`, `repeated`, `badly_signed`, `failed_on_purpose`,
/// `hung_on_purpose`, `on_request`, `refused` and `abandoned` once it has ended; those that hang by
/// chance are in `hung_on_purpose` from the start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// All requests.
    pub requests: u64,
    /// Distinct webhook-ids that were answered 2xx.
    pub unique: u64,
    /// 2xx answers beyond the first for a webhook-id.
    pub repeated: u64,
    /// Answered 401 and not processed.
    pub badly_signed: u64,
    /// Answered with a failure by chance.
    pub failed_on_purpose: u64,
    /// Held without an answer by chance.
    pub hung_on_purpose: u64,
    /// Got what their path asks for, whatever that is. No other count tells whether that was a
    /// delivery: these routes are for trying things, and must not blur what came to `/webhook`.
    pub on_request: u64,
    /// Body too large, too slow or cut off; or a path or a query that asks for nothing possible.
    pub refused: u64,
    /// The client hung up, or the receiver was stopped, before the answer was due.
    pub abandoned: u64,
    /// Not yet ended; includes those that hang now.
    pub in_progress: u64,
    /// Webhook-ids that no longer count as seen, since there were more than [`IDS_MAX`].
    pub ids_forgotten: u64,
    /// Requests that no longer are in the record.
    pub record_forgotten: u64,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Answered 200.
    Delivered { webhook_id: Arc<str> },
    /// Answered 401.
    BadlySigned,
    /// Answered with this failure, by chance.
    FailedOnPurpose(StatusCode),
    /// Got what its path asks for.
    OnRequest(Answer),
    /// Answered with this failure, since it could not be taken as it is.
    Refused(StatusCode),
    /// Not answered, by chance. [`Ledger::will_end`] came before.
    Hung,
    /// Not answered, since nobody waited for it.
    Abandoned,
}

/// All that a receiver remembers.
pub(crate) struct Ledger {
    stats: Stats,
    ids: Recent<Arc<str>, Seen>,
    /// Attempts at `/fail-first`. The key is a hash, for anybody may send ids as long as a head.
    fail_first: Recent<[u8; 32], u32>,
    record: Record,
}

impl Ending {
    pub(crate) fn answer(&self) -> Answer {
        match self {
            Self::Delivered { .. } => Answer::Status(StatusCode::OK),
            Self::BadlySigned => Answer::Status(StatusCode::UNAUTHORIZED),
            Self::FailedOnPurpose(status) | Self::Refused(status) => Answer::Status(*status),
            Self::OnRequest(answer) => *answer,
            Self::Hung => Answer::Hang,
            Self::Abandoned => Answer::Abandoned,
        }
    }
}

impl Ledger {
    pub(crate) fn new(record: Record, ids_max: usize) -> Self {
        Self {
            stats: Stats::default(),
            ids: Recent::new(ids_max),
            fail_first: Recent::new(FAIL_FIRST_IDS_MAX),
            record,
        }
    }

    /// A request's headers have arrived. Returns its number.
    pub(crate) fn begin(&mut self, received: Received) -> u64 {
        self.stats.requests += 1;
        self.stats.in_progress += 1;
        self.record.push(received)
    }

    /// The body has arrived, and the signatures have been checked.
    pub(crate) fn body_arrived(&mut self, number: u64, body: Bytes, verdict: Verdict) {
        self.record.update(number, |entry| {
            entry.body = body;
            entry.verdict = verdict;
        });
    }

    /// Counts a well signed request to `/webhook`. Returns how many there were with this
    /// webhook-id.
    pub(crate) fn count_attempt(&mut self, webhook_id: &Arc<str>) -> u32 {
        let seen = self.ids.remember(webhook_id);
        seen.attempts = seen.attempts.saturating_add(1);
        seen.attempts
    }

    /// Counts a request to `/fail-first/{failures}`. Returns how many there were to that path with
    /// this webhook-id.
    pub(crate) fn count_fail_first(&mut self, failures: u32, webhook_id: &str) -> u32 {
        let hash = Sha256::new().chain_update(failures.to_be_bytes()).chain_update(webhook_id);
        let attempts = self.fail_first.remember(&hash.finalize().into());
        *attempts = attempts.saturating_add(1);
        *attempts
    }

    /// What the client gets is decided, but goes on for a while.
    pub(crate) fn will_end(&mut self, number: u64, ending: &Ending) {
        if *ending == Ending::Hung {
            self.stats.hung_on_purpose += 1;
        }
        self.record.update(number, |entry| entry.answer = ending.answer());
    }

    /// The request has ended.
    pub(crate) fn end(&mut self, number: u64, ending: &Ending) {
        self.stats.in_progress -= 1;
        self.record.update(number, |entry| entry.answer = ending.answer());
        let count = match ending {
            Ending::Delivered { webhook_id } => {
                let seen = self.ids.remember(webhook_id);
                let is_first = !std::mem::replace(&mut seen.is_delivered, true);
                if is_first { &mut self.stats.unique } else { &mut self.stats.repeated }
            }
            Ending::BadlySigned => &mut self.stats.badly_signed,
            Ending::FailedOnPurpose(_) => &mut self.stats.failed_on_purpose,
            Ending::OnRequest(_) => &mut self.stats.on_request,
            Ending::Refused(_) => &mut self.stats.refused,
            Ending::Abandoned => &mut self.stats.abandoned,
            Ending::Hung => return, // counted by `will_end`
        };
        *count += 1;
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            ids_forgotten: self.ids.forgotten,
            record_forgotten: self.record.forgotten(),
            ..self.stats.clone()
        }
    }

    pub(crate) fn record(&self) -> Vec<Received> {
        self.record.to_vec()
    }
}

/// What is known of the latest keys, a bounded number of them.
struct Recent<K, V> {
    seen: HashMap<K, V>,
    /// The keys of `seen`, oldest first.
    order: VecDeque<K>,
    forgotten: u64,
    capacity: usize,
}

/// What is known of a webhook-id.
#[derive(Default)]
struct Seen {
    /// Well signed requests.
    attempts: u32,
    /// Whether one of them was answered 2xx.
    is_delivered: bool,
}

impl<K: Clone + Eq + Hash, V: Default> Recent<K, V> {
    fn new(capacity: usize) -> Self {
        Self { seen: HashMap::new(), order: VecDeque::new(), forgotten: 0, capacity }
    }

    /// What is known of this key, which is known from now on.
    fn remember(&mut self, key: &K) -> &mut V {
        if !self.seen.contains_key(key) {
            if self.capacity <= self.order.len()
                && let Some(oldest) = self.order.pop_front()
            {
                self.seen.remove(&oldest);
                self.forgotten += 1;
            }
            self.order.push_back(key.clone());
        }
        self.seen.entry(key.clone()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::arrived;

    fn ledger(ids_max: usize) -> Ledger {
        Ledger::new(Record::new(100, usize::MAX), ids_max)
    }

    fn deliver(ledger: &mut Ledger, webhook_id: &str) {
        let number = ledger.begin(arrived("/webhook"));
        ledger.end(number, &Ending::Delivered { webhook_id: webhook_id.into() });
    }

    #[test]
    fn the_second_delivery_of_an_id_is_a_repetition() {
        let mut ledger = ledger(10);
        for webhook_id in ["evt_a", "evt_b", "evt_a", "evt_a"] {
            deliver(&mut ledger, webhook_id);
        }
        let stats = ledger.stats();
        assert_eq!((stats.unique, stats.repeated, stats.in_progress), (2, 2, 0));
    }

    #[test]
    fn attempts_are_counted_for_each_id_apart() {
        let mut ledger = ledger(10);
        let (a, b) = (Arc::from("evt_a"), Arc::from("evt_b"));
        let attempts = [&a, &b, &a, &a].map(|id| ledger.count_attempt(id));
        assert_eq!(attempts, [1, 1, 2, 3]);
    }

    #[test]
    fn attempts_that_fail_first_are_counted_for_each_path_and_id_apart() {
        let mut ledger = ledger(10);
        let calls = [(2, "evt_a"), (2, "evt_b"), (2, "evt_a"), (3, "evt_a"), (2, "evt_a")];
        let attempts = calls.map(|(failures, id)| ledger.count_fail_first(failures, id));
        assert_eq!(attempts, [1, 1, 2, 1, 3]);
    }

    #[test]
    fn only_so_many_attempts_that_fail_first_are_remembered() {
        let mut ledger = ledger(10);
        for number in 0..=FAIL_FIRST_IDS_MAX {
            ledger.count_fail_first(1, &format!("evt_{number}"));
        }
        assert_eq!(ledger.fail_first.seen.len(), FAIL_FIRST_IDS_MAX);
        assert_eq!(ledger.count_fail_first(1, "evt_0"), 1, "the oldest was forgotten");
        assert_eq!(ledger.count_fail_first(1, "evt_2"), 2, "the others were not");
    }

    #[test]
    fn only_so_many_ids_are_remembered() {
        let mut ledger = ledger(2);
        for webhook_id in ["evt_a", "evt_b", "evt_c", "evt_c", "evt_a"] {
            deliver(&mut ledger, webhook_id);
        }
        let stats = ledger.stats();
        // evt_a was forgotten for evt_c, then evt_b for evt_a.
        assert_eq!((stats.unique, stats.repeated, stats.ids_forgotten), (4, 1, 2));
        assert_eq!((ledger.ids.seen.len(), ledger.ids.order.len()), (2, 2));
    }

    #[test]
    fn each_ending_is_counted_once_and_recorded() {
        let mut ledger = ledger(10);
        let endings = [
            Ending::Delivered { webhook_id: "evt_a".into() },
            Ending::Delivered { webhook_id: "evt_a".into() },
            Ending::BadlySigned,
            Ending::FailedOnPurpose(StatusCode::BAD_GATEWAY),
            Ending::OnRequest(Answer::Reset),
            Ending::Refused(StatusCode::PAYLOAD_TOO_LARGE),
            Ending::Abandoned,
            Ending::Hung,
        ];
        for ending in &endings {
            let number = ledger.begin(arrived("/webhook"));
            assert_eq!(ledger.stats().in_progress, 1);
            if *ending == Ending::Hung {
                ledger.will_end(number, ending);
            }
            ledger.end(number, ending);
        }
        let expected = Stats {
            requests: 8,
            unique: 1,
            repeated: 1,
            badly_signed: 1,
            failed_on_purpose: 1,
            hung_on_purpose: 1,
            on_request: 1,
            refused: 1,
            abandoned: 1,
            ..Stats::default()
        };
        assert_eq!(ledger.stats(), expected);
        let answers: Vec<_> =
            ledger.record().iter().map(|entry| entry.answer.to_string()).collect();
        assert_eq!(answers, ["200", "200", "401", "502", "reset", "413", "abandoned", "hang"]);
    }
}
