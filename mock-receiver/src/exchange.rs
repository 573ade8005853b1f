//! One request to `/webhook` or to a receiver on request, from the arrival of its head to its end.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::http::Method;
use axum::http::request::Parts;
use bytes::Bytes;

use crate::body::{self, BodyError};
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
    method: Method,
    path: Arc<str>,
    webhook_id: Option<Arc<str>>,
    /// As counted here; known once [`Self::count_attempt`] was asked.
    attempt: Option<u32>,
    verdict: Verdict,
    /// How the request has ended if the exchange is dropped now.
    ending_when_dropped: Ending,
}

impl Exchange {
    /// Takes a request whole: reads its body and checks its signatures. If the body cannot be
    /// taken, the exchange has ended.
    pub(crate) async fn receive(
        shared: Arc<Shared>,
        parts: &Parts,
        body: Body,
    ) -> Result<Self, BodyError> {
        let mut exchange = Self::begin(shared, parts);
        let shared = Arc::clone(&exchange.shared);
        let limits = &shared.limits;
        match body::read(body, limits.body_bytes, limits.body_read).await {
            Ok(body) => {
                exchange.verdict = match shared.verifier.verify(&parts.headers, &body, now_unix_s())
                {
                    Ok(()) => Verdict::Good,
                    Err(error) => Verdict::Bad(error),
                };
                let (number, verdict) = (exchange.number, exchange.verdict);
                shared.change(|ledger| ledger.body_arrived(number, body, verdict));
                Ok(exchange)
            }
            Err(error) => {
                exchange.end(Ending::Refused(error.status()));
                Err(error)
            }
        }
    }

    fn begin(shared: Arc<Shared>, parts: &Parts) -> Self {
        let begun_at = Instant::now();
        let path: Arc<str> = parts.uri.to_string().into();
        let received = Received {
            number: 0, // set by the record
            arrived_at: SystemTime::now(),
            arrived_at_monotonic: begun_at,
            method: parts.method.clone(),
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
            method: parts.method.clone(),
            path,
            webhook_id,
            attempt: None,
            verdict: Verdict::Unchecked,
            ending_when_dropped: Ending::Abandoned,
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The header `webhook-id`, also of a request that is badly signed.
    pub(crate) fn webhook_id(&self) -> Option<&Arc<str>> {
        self.webhook_id.as_ref()
    }

    /// Whether the signatures were good.
    pub(crate) fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Counts an attempt, if the request is well signed. Returns its webhook-id and how many
    /// attempts there now were with that id.
    pub(crate) fn count_attempt(&mut self) -> Option<(Arc<str>, u32)> {
        let webhook_id = self.webhook_id.clone().filter(|_| self.verdict.is_good())?;
        let attempt = self.shared.change(|ledger| ledger.count_attempt(&webhook_id));
        self.attempt = Some(attempt);
        Some((webhook_id, attempt))
    }

    /// What the client gets is decided, but goes on until the exchange is dropped.
    pub(crate) fn will_end(&mut self, ending: Ending) {
        self.shared.change(|ledger| ledger.will_end(self.number, &ending));
        self.ending_when_dropped = ending;
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
            method = self.method.as_str(),
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

fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
