//! Who is alive. A process beats every second; one that cannot stops sending long before others
//! take it for dead (see `sweeper`).

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::{
    domain::pacing::Members,
    store::{Store, StoreError, dispatchers::DispatcherId},
};

/// The time between two heartbeats.
pub const BEAT_INTERVAL: Duration = Duration::from_secs(1);
/// Without a heartbeat for this long, by the monotonic clock, a process starts no request.
pub const FENCED_AFTER: Duration = Duration::from_secs(5);
/// Without a heartbeat for this long, by the database's clock, a process is dead.
pub const DEAD_AFTER: Duration = Duration::from_secs(8);
/// A beat that takes longer has failed; the next one uses another connection.
const BEAT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long after its registration a process takes no part of what is divided among all: who has not
/// heard of it by then sends nothing.
const JOINED_AFTER: Duration = FENCED_AFTER;

// A fenced process has stopped starting requests before it can count as dead.
const _: () = assert!(FENCED_AFTER.as_millis() < DEAD_AFTER.as_millis());

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
        let (began, before) = (Instant::now(), SystemTime::now());
        let beat = timeout(BEAT_TIMEOUT, store.beat(owner)).await;
        match beat {
            Ok(Ok(beat)) if beat.is_registered => {
                shared.clock.sample(beat.database_time, before, SystemTime::now());
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
                    tracing::info!("heartbeats succeed again; sending goes on");
                    is_fenced = false;
                    shared.handover.wake_starter();
                    shared.handover.wake_claimer();
                }
            }
            Ok(Ok(_)) => {
                shared.steady_beats.store(0, Ordering::Relaxed);
                if let Some(new) = reborn(&shared, &store, owner).await {
                    (owner, last_beat, joined) = (new, began, Instant::now());
                }
            }
            Ok(Err(_)) | Err(_) => {
                shared.steady_beats.store(0, Ordering::Relaxed);
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
            () = tokio::time::sleep(BEAT_INTERVAL.saturating_sub(began.elapsed())) => {}
        }
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
