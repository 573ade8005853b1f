//! One claim: build, send, decide, hand to the recorder. Panics become outcomes.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use futures_util::FutureExt;

use super::{Shared, give_back};
use crate::{
    delivery::{Exchange, Outgoing, request},
    domain::{
        AttemptId, Decision, DeliveryState, ErrorClass, LaneId, Outcome,
        outcome::Failure,
        pacing::{Held, Verdict},
    },
    store::queue::{AttemptRecord, Claim, Finished, Next, Release},
    telemetry,
};

/// Starts whatever can be started, whenever something can, until the end.
pub async fn run(shared: Arc<Shared>) {
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = shared.handover.startable() => start_ready(&shared),
        }
    }
}

/// Starts requests while there are free slots and claims to send.
fn start_ready(shared: &Arc<Shared>) {
    while !shared.stop.is_cancelled() {
        // Fenced: what waits stays where it is until the heartbeat decides about it.
        let Some(owner) = shared.handover.owner() else { return };
        let Some(claim) = shared.handover.lanes().start_next() else { return };
        if claim.token.owner == owner {
            // Boxed, or its four kibibytes would be moved from hand to hand until the runtime has it.
            shared.requests.spawn(Box::pin(execute(shared.clone(), claim)));
        } else {
            // Claimed under an id that was buried since: another process has it.
            shared.handover.forget(claim.delivery_id, claim.token);
            shared.handover.lanes().free(claim.lane, claim.bytes());
        }
    }
}

async fn execute(shared: Arc<Shared>, claim: Claim) {
    let (lane, began) = (claim.lane, Instant::now());
    let result = tokio::select! {
        biased;
        result = AssertUnwindSafe(attempt(&shared, &claim)).catch_unwind() => result,
        // The claim stays held, and is given back with the others that have no result.
        () = shared.abort.cancelled() => return,
    };
    let (exchange, headers, started_at) = result.unwrap_or_else(|_| {
        tracing::error!(delivery = %claim.delivery_id, "an attempt panicked");
        let failure = Failure::new(ErrorClass::Internal, "the dispatcher failed; see its log");
        (failed(failure), String::new(), shared.clock.now())
    });
    let (finished, verdict) = conclude(&shared, claim, exchange, headers, started_at);
    let returned = shared.handover.conclude(lane, verdict, began);
    tokio::select! {
        _ = shared.results.send(finished) => {}
        () = shared.abort.cancelled() => return,
    }
    if returned.is_empty() {
        return;
    }
    // What is not returned is still held, and given back at the end. Boxed: it is rare, and would
    // make every request larger.
    tokio::select! {
        () = Box::pin(return_queued(&shared, lane, returned, verdict)) => {}
        () = shared.abort.cancelled() => {}
    }
}

/// Builds, signs and sends. Tells what came of it, the header lines as sent, and when it began.
async fn attempt(shared: &Shared, claim: &Claim) -> (Exchange, String, DateTime<Utc>) {
    let started_at = shared.clock.now();
    let attempt = request::Attempt {
        event_id: claim.event_id,
        event_type: claim.event_type.as_deref(),
        delivery_id: claim.delivery_id,
        number: claim.attempt_count + 1,
        at: started_at,
        span_id: rand::random(),
        target: &claim.target,
        body: &claim.payload,
    };
    tracing::debug!(
        event = %claim.event_id, delivery = %claim.delivery_id, attempt = attempt.number, "sending"
    );
    match Outgoing::signed(&attempt, &shared.keys) {
        Ok(outgoing) => {
            let headers = request::header_lines(&outgoing.headers);
            let exchange = shared.client.exchange(outgoing, shared.settings.http_timeout).await;
            (exchange, headers, started_at)
        }
        Err(error) => {
            let failure = Failure::new(ErrorClass::Signing, error.to_string());
            (failed(failure), String::new(), started_at)
        }
    }
}

fn failed(failure: Failure) -> Exchange {
    Exchange { duration: Duration::ZERO, response: None, outcome: Outcome::failed(failure) }
}

/// Decides what follows, and lays out what is recorded.
fn conclude(
    shared: &Shared,
    claim: Claim,
    exchange: Exchange,
    request_headers: String,
    started_at: DateTime<Utc>,
) -> (Finished, Verdict) {
    let number = claim.attempt_count + 1;
    let Exchange { duration, response, outcome } = exchange;
    let failure = outcome.failure().cloned();
    let verdict = verdict(&outcome);
    let status = response.as_ref().map(|r| r.status);
    let class = failure.as_ref().map(|f| f.class);
    telemetry::attempted(class, duration);
    let decision = shared.settings.retry.decide(number, outcome, rand::random());
    let next = match decision {
        Decision::Finish => {
            tracing::debug!(
                event = %claim.event_id, delivery = %claim.delivery_id, attempt = number,
                status, duration_ms = duration.as_millis(), "delivered"
            );
            Next::End { state: DeliveryState::Delivered, reason: None }
        }
        Decision::Retry { after } => {
            tracing::info!(
                event = %claim.event_id, delivery = %claim.delivery_id, attempt = number,
                class = class.map(ErrorClass::as_str), status,
                retry_in_s = after.as_secs_f64(), "attempt failed; will be tried again"
            );
            Next::RetryAfter(after)
        }
        Decision::Bury { failure } => {
            tracing::warn!(
                event = %claim.event_id, delivery = %claim.delivery_id, attempt = number,
                class = failure.class.as_str(), status, "attempt failed; the delivery is dead"
            );
            Next::End { state: DeliveryState::Dead, reason: Some(failure.class) }
        }
    };
    telemetry::concluded(&next);
    let attempt = AttemptRecord {
        attempt_id: AttemptId::new(shared.clock.unix_ms(), rand::random()),
        scheduled_at: claim.scheduled_at,
        started_at,
        duration,
        request_url: claim.target.as_str().to_owned(),
        request_headers,
        response,
        failure,
    };
    let finished = Finished {
        delivery_id: claim.delivery_id,
        token: claim.token,
        lane: claim.lane,
        event_type: claim.event_type,
        next,
        attempt: Some(attempt),
        slot_bytes: Some(claim.payload.len()),
    };
    (finished, verdict)
}

/// What an outcome says about the receiver as such.
fn verdict(outcome: &Outcome) -> Verdict {
    match outcome {
        Outcome::Delivered => Verdict::Healthy,
        Outcome::Transient { retry_after: Some(pause), is_throttled: true, .. } => {
            Verdict::Paused(*pause)
        }
        Outcome::Transient { failure, .. } if failure.class == ErrorClass::Timeout => Verdict::Hung,
        Outcome::Transient { .. } | Outcome::Permanent { .. } => Verdict::Failing,
    }
}

/// Gives back what waited in memory for a lane that is paused or hangs.
async fn return_queued(shared: &Shared, lane: LaneId, claims: Vec<Claim>, verdict: Verdict) {
    let (pause, when) = match verdict {
        Verdict::Paused(pause) => (pause, Release::After(pause)),
        _ => (Duration::ZERO, Release::InPlace),
    };
    tracing::info!(%lane, claims = claims.len(), pause_s = pause.as_secs(), "lane held back");
    let claims: Vec<_> = claims.into_iter().map(|c| (c.delivery_id, c.token)).collect();
    give_back(shared, &claims, when).await;
    shared.handover.note_due(lane, pause);
}
