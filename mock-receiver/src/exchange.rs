//! One request to a webhook route, from the arrival of its headers to its end.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use axum::http::request::Parts;
use bytes::Bytes;

use crate::ledger::Ending;
use crate::record::{Answer, Headers, Received, Verdict};
use crate::shared::Shared;

/// Counts, records and logs one request.
///
/// It ends when it is dropped. That also happens when the client hangs up, or the receiver is
/// stopped, while the request is delayed or held.
pub(crate) struct Exchange {
    shared: Arc<Shared>,
    /// Of the request, in the record.
    number: u64,
    begun_at: Instant,
    path: Arc<str>,
    webhook_id: Option<Arc<str>>,
    /// As counted here; known once the request has proved to be well signed.
    attempt: Option<u32>,
    verdict: Verdict,
    /// How the request has ended if the exchange is dropped now.
    ending_when_dropped: Ending,
}

impl Exchange {
    pub(crate) fn begin(shared: Arc<Shared>, parts: &Parts) -> Self {
        let begun_at = Instant::now();
        let path: Arc<str> = parts.uri.to_string().into();
        let received = Received {
            number: 0, // set by the record
            arrived_at: SystemTime::now(),
            arrived_at_monotonic: begun_at,
            path: Arc::clone(&path),
            headers: Headers::copy(&parts.headers),
            body: Bytes::new(),
            verdict: Verdict::Unchecked,
            answer: Answer::Pending,
        };
        let webhook_id = received.webhook_id().map(Arc::from);
        let number = shared.change(|ledger| ledger.begin(received));
        Self {
            shared,
            number,
            begun_at,
            path,
            webhook_id,
            attempt: None,
            verdict: Verdict::Unchecked,
            ending_when_dropped: Ending::Abandoned,
        }
    }

    /// Records the body and whether it is well signed. If so, returns its webhook-id and how many
    /// well signed requests there now were with that id.
    pub(crate) fn body_arrived(
        &mut self,
        body: Bytes,
        verdict: Verdict,
    ) -> Option<(Arc<str>, u32)> {
        self.verdict = verdict;
        let good_id = self.webhook_id.clone().filter(|_| verdict.is_good());
        self.attempt = self.shared.change(|ledger| {
            ledger.body_arrived(self.number, body, verdict);
            good_id.as_ref().map(|webhook_id| ledger.count_attempt(webhook_id))
        });
        good_id.zip(self.attempt)
    }

    /// The request is held without an answer from now on, until the exchange is dropped.
    pub(crate) fn hold(&mut self) {
        self.ending_when_dropped = Ending::Hung;
        self.shared.change(|ledger| ledger.hold(self.number));
    }

    /// The request is answered now.
    pub(crate) fn end(mut self, ending: Ending) {
        self.ending_when_dropped = ending;
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let ending = &self.ending_when_dropped;
        self.shared.change(|ledger| ledger.end(self.number, ending));
        tracing::info!(
            method = "POST",
            path = &*self.path,
            webhook_id = self.webhook_id.as_deref(),
            attempt = self.attempt,
            signature = %self.verdict,
            answer = %ending.answer(),
            after_ms = self.begun_at.elapsed().as_millis(),
            "request"
        );
    }
}
