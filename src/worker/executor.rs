//! One claim: build, send, decide, hand to the recorder. Panics become outcomes.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use futures_util::FutureExt;

use super::{
    Shared, disable, give_back,
    plan::{Plan, Way, plan},
};
use crate::{
    delivery::{Exchange, request},
    domain::{
        ApplicationId, AttemptId, Decision, DeliveryState, ErrorClass, Outcome, Run, Subscription,
        TargetUrl,
        outcome::{Failure, Fault},
        pacing::{Held, Slot, Verdict},
        retry::own_fault_delay,
        subscription::DisabledBecause,
    },
    store::queue::{AttemptRecord, Claim, Finished, Next, Release},
    telemetry,
};

/// What a receiver answers that wants nothing any more (RFC 9110).
const GONE: u16 = 410;
/// How often it is tried to disable a subscription for one such answer.
const DISABLE_TRIES: usize = 5;

/// The time between two looks at requests that take long.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Starts whatever can be started, whenever something can, until the end.
pub async fn run(shared: Arc<Shared>) {
    loop {
        // Who is fenced is woken when that ends.
        let next = shared.handover.owner().and_then(|_| shared.handover.lanes().next_start());
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = shared.handover.startable() => {}
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now).into()),
                if next.is_some() => {}
        }
        start_ready(&shared);
        shared.handover.release_astray(&shared.store).await;
    }
}

/// Looks at requests that take long, until the end: their lanes are suspect before they have timed
/// out.
pub async fn watch(shared: Arc<Shared>) {
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
        let returned = shared.handover.look_at_slow();
        if !returned.is_empty() {
            return_queued(&shared, returned, Verdict::Hung).await;
        }
    }
}

/// Starts requests while there are free slots and claims to send.
fn start_ready(shared: &Arc<Shared>) {
    while !shared.stop.is_cancelled() {
        // Fenced: what waits stays where it is until the heartbeat decides about it.
        let Some(owner) = shared.handover.owner() else { return };
        let Some((claim, slot)) = shared.handover.lanes().start_next(Instant::now()) else {
            return;
        };
        if claim.token.owner == owner {
            // Boxed, or its four kibibytes would be moved from hand to hand until the runtime has it.
            shared.requests.spawn(Box::pin(execute(shared.clone(), claim, slot)));
        } else {
            // Claimed under an id that was buried since: another process has it.
            shared.handover.forget(claim.delivery_id, claim.token);
            shared.handover.lanes().abandon(slot, claim.lane, claim.bytes());
        }
    }
}

async fn execute(shared: Arc<Shared>, claim: Claim, slot: Slot) {
    let way = tokio::select! {
        biased;
        plan = plan(&shared, &claim) => match plan {
            Plan::Send(way) => way,
            Plan::Wait(pause) => return postpone(&shared, claim, slot, pause).await,
            Plan::Park => return park(&shared, claim, slot).await,
            Plan::Cancel => return cancel(&shared, claim, slot).await,
        },
        // The claim stays held, and is given back with the others that have no result.
        () = shared.abort.cancelled() => return,
    };
    if let Some(subscription) = way.subscription()
        && (claim.is_limited || subscription.limit.bounds())
    {
        shared.handover.set_limit(claim.lane, &subscription.limit);
        let in_time = tokio::select! {
            biased;
            in_time = shared.handover.begin(claim.lane, claim.time) => in_time,
            () = shared.abort.cancelled() => return,
        };
        if !in_time {
            return miss(&shared, claim, slot).await;
        }
    }
    // It may have waited for long: by now others may take this process for dead.
    if shared.handover.owner() != Some(claim.token.owner) {
        shared.handover.forget(claim.delivery_id, claim.token);
        return shared.handover.lanes().abandon(slot, claim.lane, claim.bytes());
    }
    let (lane, url) = (claim.lane, claim.url());
    let started_at = shared.clock.now();
    let result = tokio::select! {
        biased;
        result = AssertUnwindSafe(attempt(&shared, &claim, &way, slot, started_at)).catch_unwind()
            => result,
        () = shared.abort.cancelled() => return,
    };
    let (exchange, headers) = result.unwrap_or_else(|_| {
        tracing::error!(delivery = %claim.delivery_id, "an attempt panicked");
        let failure = Failure::new(ErrorClass::Internal, "the dispatcher failed; see its log");
        (failed(failure), String::new())
    });
    let class = exchange.outcome.failure().map(|failure| failure.class);
    if class == Some(ErrorClass::Timeout) {
        tokio::select! {
            biased;
            () = shared.endings.turn() => {}
            () = shared.abort.cancelled() => return,
        }
    }
    let gone = exchange.response.as_ref().filter(|response| response.status == GONE);
    let gone = gone.and_then(|_| way.subscription()).map(|it| (claim.application, it.clone()));
    let (finished, verdict) = conclude(&shared, claim, &way, exchange, headers, started_at);
    let returned = shared.handover.conclude(slot, lane, url, verdict);
    tokio::select! {
        _ = shared.results.send(finished) => {}
        () = shared.abort.cancelled() => return,
    }
    if returned.is_empty() && gone.is_none() {
        return;
    }
    // What is not returned is still held, and given back at the end. Boxed: it is rare, and would
    // make every request larger.
    let rest = Box::pin(async {
        if let Some((application, subscription)) = gone {
            disable_gone(&shared, application, &subscription).await;
        }
        if !returned.is_empty() {
            return_queued(&shared, returned, verdict).await;
        }
    });
    tokio::select! {
        () = rest => {}
        () = shared.abort.cancelled() => {}
    }
}

/// Disables a subscription whose receiver says that it is gone. If the database is away for long, the
/// next such answer does it.
async fn disable_gone(shared: &Shared, application: ApplicationId, subscription: &Subscription) {
    for _ in 0..DISABLE_TRIES {
        match disable(shared, application, subscription, DisabledBecause::Gone).await {
            Ok(()) => return,
            Err(error) => {
                telemetry::statement_failed(&error, "not disabled yet");
                tokio::time::sleep(super::OUTAGE_PAUSE).await;
            }
        }
    }
}

/// Builds, signs and sends. Tells what came of it, and the header lines as sent.
async fn attempt(
    shared: &Shared,
    claim: &Claim,
    way: &Way,
    slot: Slot,
    started_at: DateTime<Utc>,
) -> (Exchange, String) {
    tracing::debug!(
        event = %claim.event_id, delivery = %claim.delivery_id, attempt = claim.number(),
        "sending"
    );
    match way.request(shared, claim, started_at) {
        Ok(outgoing) => {
            let headers = request::header_lines(&outgoing.headers);
            let again = || way.request(shared, claim, started_at).ok();
            let (timeout, cut) = (way.timeout(shared), shared.handover.cut(slot));
            let exchange = shared.client.exchange(outgoing, again, timeout, cut).await;
            (exchange, headers)
        }
        Err(error) => {
            let failure = Failure::new(ErrorClass::Signing, error.to_string());
            (failed(failure), String::new())
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
    way: &Way,
    exchange: Exchange,
    request_headers: String,
    started_at: DateTime<Utc>,
) -> (Finished, Verdict) {
    let Exchange { duration, response, mut outcome } = exchange;
    let target = way.target(&claim);
    if let Some(failure) = outcome.failure_mut()
        && failure.fault == Fault::Receiver
        && is_unanswered(failure.class)
        && shared.handover.note_unanswered(claim.lane, host_of(target))
    {
        failure.fault = Fault::Service;
    }
    let failure = outcome.failure().cloned();
    let status = response.as_ref().map(|r| r.status);
    let verdict = verdict(&outcome, status);
    let class = failure.as_ref().map(|f| f.class);
    telemetry::attempted(class, duration);
    let next = next(shared, &claim, way, outcome);
    log(&claim, status, duration, &next, class);
    telemetry::concluded(&next);
    let attempt = AttemptRecord {
        attempt_id: AttemptId::new(shared.clock.unix_ms(), rand::random()),
        scheduled_at: claim.scheduled_at,
        started_at,
        duration,
        request_method: way.method(),
        request_url: way.target(&claim).as_str().to_owned(),
        request_headers,
        response,
        failure,
    };
    let finished = Finished {
        delivery_id: claim.delivery_id,
        token: claim.token,
        lane: claim.lane,
        application: claim.application,
        subscription: claim.subscription,
        event_type: claim.event_type,
        run: claim.run,
        next,
        attempt: Some(attempt),
        slot_bytes: Some(claim.held_bytes),
    };
    (finished, verdict)
}

/// Failures without anything of an answer: they may say as much of this service's network.
fn is_unanswered(class: ErrorClass) -> bool {
    use ErrorClass::{Connect, Dns, Timeout, Tls};
    matches!(class, Dns | Connect | Tls | Timeout)
}

/// A hash of the target's host.
fn host_of(target: &TargetUrl) -> u64 {
    let mut hasher = DefaultHasher::new();
    target.url().host_str().hash(&mut hasher);
    hasher.finish()
}

/// What follows from an outcome: what the policy says, unless it was sent at somebody's word.
fn next(shared: &Shared, claim: &Claim, way: &Way, outcome: Outcome) -> Next {
    let failed = outcome.failure().map(|failure| failure.class);
    let is_own_fault = outcome.failure().is_some_and(|failure| failure.fault == Fault::Service);
    match (claim.run, failed) {
        (Run::Retry, Some(_)) => return Next::Resume,
        (Run::Once, Some(class)) => {
            return Next::End { state: DeliveryState::Dead, reason: Some(class) };
        }
        (Run::Schedule | Run::Replay, _) | (_, None) => {}
    }
    if is_own_fault && !way.is_single_attempt() {
        let lasting = shared.handover.note_own_fault(claim.lane);
        return Next::Postpone(own_fault_delay(lasting, rand::random()));
    }
    match way.retry(shared).decide(claim.attempt_count + 1, outcome, rand::random()) {
        Decision::Finish => Next::End { state: DeliveryState::Delivered, reason: None },
        Decision::Retry { after } => Next::RetryAfter(after),
        Decision::Bury { failure } => {
            Next::End { state: DeliveryState::Dead, reason: Some(failure.class) }
        }
    }
}

fn log(
    claim: &Claim,
    status: Option<u16>,
    duration: Duration,
    next: &Next,
    class: Option<ErrorClass>,
) {
    let (event, delivery, attempt) = (claim.event_id, claim.delivery_id, claim.number());
    let class = class.map(ErrorClass::as_str);
    match next {
        Next::RetryAfter(after) => tracing::info!(
            %event, %delivery, attempt, class, status, retry_in_s = after.as_secs_f64(),
            "attempt failed; will be tried again"
        ),
        Next::Postpone(after) => tracing::warn!(
            %event, %delivery, attempt, class, retry_in_s = after.as_secs_f64(),
            "attempt failed by a fault of this service; it is not counted"
        ),
        Next::End { state: DeliveryState::Delivered, .. } => tracing::debug!(
            %event, %delivery, attempt, status, duration_ms = duration.as_millis(), "delivered"
        ),
        Next::End { .. } if claim.run == Run::Schedule => tracing::warn!(
            %event, %delivery, attempt, class, status, "attempt failed; the delivery is dead"
        ),
        Next::End { .. } | Next::Resume | Next::Park => tracing::info!(
            %event, %delivery, attempt, class, status,
            "attempt failed, made by hand; the delivery is what it was"
        ),
    }
}

/// Gives back a claim that has missed the time that its lane's rate gave it. It is no attempt.
async fn miss(shared: &Shared, claim: Claim, slot: Slot) {
    let (lane, bytes) = (claim.lane, claim.bytes());
    shared.handover.release_unsent(&shared.store, vec![claim]).await;
    shared.handover.lanes().end(slot);
    shared.handover.free([(lane, bytes)]);
}

/// Gives back a claim that cannot be sent at present. It is no attempt.
async fn postpone(shared: &Shared, claim: Claim, slot: Slot, pause: Duration) {
    let (lane, application, bytes) = (claim.lane, claim.application, claim.bytes());
    give_back(shared, &[(claim.delivery_id, claim.token)], Release::After(pause)).await;
    shared.handover.lanes().end(slot);
    shared.handover.free([(lane, bytes)]);
    shared.handover.note_due(lane, application, pause);
}

/// Ends a delivery whose subscription, or application, is gone.
async fn cancel(shared: &Shared, claim: Claim, slot: Slot) {
    tracing::info!(
        event = %claim.event_id, delivery = %claim.delivery_id,
        "cancelled: its subscription is deleted"
    );
    let reason = Some(ErrorClass::Cancelled);
    unsent(shared, claim, slot, Next::End { state: DeliveryState::Cancelled, reason }).await;
}

/// Sets a delivery aside whose subscription is disabled.
async fn park(shared: &Shared, claim: Claim, slot: Slot) {
    tracing::debug!(
        event = %claim.event_id, delivery = %claim.delivery_id,
        "parked: its subscription is disabled"
    );
    unsent(shared, claim, slot, Next::Park).await;
}

async fn unsent(shared: &Shared, claim: Claim, slot: Slot, next: Next) {
    shared.handover.lanes().end(slot);
    let finished = Finished {
        delivery_id: claim.delivery_id,
        token: claim.token,
        lane: claim.lane,
        application: claim.application,
        subscription: claim.subscription,
        event_type: claim.event_type,
        run: claim.run,
        next,
        attempt: None,
        slot_bytes: Some(claim.held_bytes),
    };
    telemetry::concluded(&finished.next);
    // The recorder ends after us, so it still listens.
    let _ = shared.results.send(finished).await;
}

/// What an outcome says about the receiver as such.
fn verdict(outcome: &Outcome, status: Option<u16>) -> Verdict {
    match outcome {
        Outcome::Delivered => Verdict::Healthy,
        Outcome::Transient { failure, .. } | Outcome::Permanent { failure }
            if failure.fault == Fault::Service =>
        {
            Verdict::Unsent
        }
        Outcome::Transient { retry_after: Some(pause), is_throttled: true, .. } => {
            Verdict::Paused(*pause)
        }
        Outcome::Transient { failure, .. } if failure.class == ErrorClass::Timeout => Verdict::Hung,
        // It answers well, and refuses this event.
        Outcome::Permanent { failure } if failure.class == ErrorClass::Loop => Verdict::Refused,
        Outcome::Transient { failure, .. } | Outcome::Permanent { failure }
            if failure.class == ErrorClass::HttpStatus
                && status.is_some_and(|status| (400..500).contains(&status)) =>
        {
            Verdict::Refused
        }
        Outcome::Transient { failure, .. } | Outcome::Permanent { failure } => {
            match failure.class {
                ErrorClass::Dns | ErrorClass::Connect | ErrorClass::Tls => Verdict::Unreachable,
                _ => Verdict::Failing,
            }
        }
    }
}

/// Gives back what waited in memory for lanes that are quiet or hang.
pub async fn return_queued(shared: &Shared, claims: Vec<Claim>, verdict: Verdict) {
    let (pause, when) = match verdict {
        Verdict::Paused(pause) => (pause, Release::After(pause)),
        _ => (Duration::ZERO, Release::InPlace),
    };
    let mut lanes: Vec<_> = claims.iter().map(|claim| (claim.lane, claim.application)).collect();
    lanes.dedup();
    tracing::info!(
        lane = ?lanes.first().map(|(lane, _)| lane), lanes = lanes.len(), claims = claims.len(),
        pause_s = pause.as_secs(), "held back"
    );
    let claims: Vec<_> = claims.into_iter().map(|c| (c.delivery_id, c.token)).collect();
    give_back(shared, &claims, when).await;
    for (lane, application) in lanes {
        shared.handover.note_due(lane, application, pause);
    }
}
