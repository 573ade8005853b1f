//! Heartbeats. A process beats every second; one that cannot stops sending long before others find
//! that its heartbeat has stopped (see `sweeper`).

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::{
    domain::{liveness::EXPIRED_AFTER, pacing::Members},
    store::{Store, StoreError, dispatchers::DispatcherId},
};

/// The time between two heartbeats.
pub const BEAT_INTERVAL: Duration = Duration::from_secs(1);
/// Without a heartbeat for this long, by the monotonic clock, a process starts no request.
pub const FENCED_AFTER: Duration = Duration::from_secs(5);
/// A beat that takes longer has failed; the next one uses another connection.
const BEAT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long after its registration a process takes no part of what is divided among all: who has not
/// heard of it by then sends nothing.
const JOINED_AFTER: Duration = FENCED_AFTER;

// A fenced process has stopped starting requests before it can count as expired.
const _: () = assert!(FENCED_AFTER.as_millis() < EXPIRED_AFTER.as_millis());

/// Beats until it is told to stop.
pub async fn run(
    shared: Arc<Shared>,
    store: Store,
    mut owner: DispatcherId,
    stop: CancellationToken,
) {
    let mut last_beat = Instant::now();
    let mut joined = last_beat;
    let mut is_fenced = false;
    while !stop.is_cancelled() {
        let began = Instant::now();
        let beat = timeout(BEAT_TIMEOUT, store.beat(owner)).await;
        match beat {
            Ok(Ok(beat)) if beat.is_registered => {
                let ended = Instant::now();
                shared.clock.sample(beat.database_time, (began, ended));
                shared.peers().observe(&beat.beats(), ended);
                let count = beat.dispatchers.len().try_into().unwrap_or(u64::MAX);
                shared.dispatchers.store(count, Ordering::Relaxed);
                // One that is alone has nobody who must hear of it first.
                if count <= 1 || joined.elapsed() >= JOINED_AFTER {
                    let members = Members::of(owner.get(), beat.dispatchers);
                    if shared.handover.set_members(members) {
                        // What was another process's may be ours.
                        shared.look_now.notify_one();
                    }
                }
                shared.steady_beats.fetch_add(1, Ordering::Relaxed);
                last_beat = began;
                let was_idle = shared.handover.owner().is_none();
                shared.handover.confirm_owner(owner, began + FENCED_AFTER);
                if was_idle {
                    if std::mem::take(&mut is_fenced) {
                        tracing::info!("heartbeats succeed again; sending goes on");
                    }
                    shared.handover.wake_starter();
                    shared.handover.wake_claimer();
                }
            }
            Ok(Ok(_)) => {
                shared.unsettle();
                if let Some(new) = reborn(&shared, &store, owner).await {
                    (owner, last_beat, joined) = (new, began, Instant::now());
                }
            }
            Ok(Err(_)) | Err(_) => {
                shared.unsettle();
                // The handover has fenced itself by then; this only says so.
                if last_beat.elapsed() >= FENCED_AFTER && !is_fenced {
                    tracing::warn!(
                        "no heartbeat for {} s; nothing is sent until one",
                        FENCED_AFTER.as_secs()
                    );
                    is_fenced = true;
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = pause(&shared, BEAT_INTERVAL.saturating_sub(began.elapsed())) => {}
        }
    }
}

/// The pause before the next heartbeat. One that rests, and is alone, holds nothing that a heartbeat
/// keeps; it beats before it claims again.
async fn pause(shared: &Shared, usual: Duration) {
    if shared.dispatchers.load(Ordering::Relaxed) <= 1 {
        shared.handover.rest(usual).await;
    } else {
        tokio::time::sleep(usual).await;
    }
}

/// This process was taken for dead. What it held is with others: it forgets all that has not
/// begun, and goes on under a new id. Results of what is under way will be late, and kept as such.
async fn reborn(shared: &Shared, store: &Store, old: DispatcherId) -> Option<DispatcherId> {
    tracing::warn!(dispatcher = old.get(), "taken for dead by another process");
    shared.handover.clear_owner();
    let lost = shared.handover.lanes().drain_queued();
    shared.handover.forget_all(lost.into_iter().map(|claim| (claim.delivery_id, claim.token)));
    let began = Instant::now();
    let registered = timeout(BEAT_TIMEOUT, store.register_dispatcher()).await;
    match registered.unwrap_or(Err(StoreError::TimedOut)) {
        Ok(new) => {
            tracing::info!(dispatcher = new.get(), "registered again");
            shared.handover.set_members(Members::joining());
            shared.handover.confirm_owner(new, began + FENCED_AFTER);
            shared.handover.wake_starter();
            shared.handover.wake_claimer();
            Some(new)
        }
        Err(error) => {
            crate::telemetry::statement_failed(&error, "could not register again yet");
            None
        }
    }
}
