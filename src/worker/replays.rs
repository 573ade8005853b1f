//! Replays: steps of those that are due, whoever made them. The store holds the rate and how far each
//! got, so any process may make the next step, and goes on where one died.

use std::{sync::Arc, time::Duration};

use super::Shared;
use crate::{
    domain::{
        ApplicationId, DeliveryId, EventType, Payload, ReplayId, Subject, Submission, Upstream,
        event::{Metadata, Route},
        replay::rows_of_step,
        routing::{Destination, Snapshot, route},
    },
    store::{
        StoreError,
        replays::ReplayRow,
        rerouting::{LateDelivery, Rerouted, UnroutedRow},
    },
    telemetry,
};

/// The time between two looks while there are replays, and while there are none.
const BUSY_INTERVAL: Duration = Duration::from_millis(100);
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// Replays of one look, and steps of one of them: where a filter means little, a step queues nothing
/// and the next one is due at once.
const REPLAYS_PER_LOOK: i64 = 100;
const STEPS_PER_REPLAY: usize = 20;
/// The time between two looks for replays that may be forgotten, and how many one deletes.
const FORGET_INTERVAL: Duration = Duration::from_secs(600);
const FORGOTTEN_PER_LOOK: i64 = 1_000;

/// Makes steps until the end.
pub async fn run(shared: Arc<Shared>) {
    tokio::select! {
        () = shared.stop.cancelled() => {}
        () = looks(&shared) => {}
        () = forgetting(&shared) => {}
    }
}

async fn looks(shared: &Shared) {
    loop {
        let is_busy = match look(shared).await {
            Ok(is_busy) => is_busy,
            Err(error) => {
                telemetry::statement_failed(&error, "replays stand still for now");
                false
            }
        };
        if is_busy {
            shared.handover.idle().wake();
        }
        shared.handover.rest(if is_busy { BUSY_INTERVAL } else { IDLE_INTERVAL }).await;
    }
}

async fn forgetting(shared: &Shared) {
    let kept_for = shared.settings.retention.history;
    loop {
        if let Err(error) = shared.store.forget_replays(kept_for, FORGOTTEN_PER_LOOK).await {
            telemetry::statement_failed(&error, "old replays were not forgotten");
        }
        tokio::time::sleep(FORGET_INTERVAL).await;
    }
}

/// Tells whether the next look should be soon.
async fn look(shared: &Shared) -> Result<bool, StoreError> {
    let running = shared.store.running_replays(REPLAYS_PER_LOOK).await?;
    let mut is_busy = !running.is_empty();
    for &(id, _) in running.iter().filter(|(_, is_due)| *is_due) {
        // One that the database refuses must not hold up the others, nor be tried without a pause.
        match steps(shared, id).await {
            Err(error) if !error.is_outage() => {
                tracing::error!(%error, replay = %id, "a step of a replay failed");
                is_busy = false;
            }
            done => done?,
        }
    }
    Ok(is_busy)
}

async fn steps(shared: &Shared, id: ReplayId) -> Result<(), StoreError> {
    for _ in 0..STEPS_PER_REPLAY {
        let Some(step) = shared.store.step_replay(id).await? else { return Ok(()) };
        if step.queued > 0 {
            telemetry::replayed(step.queued);
            let application = step.replay.application();
            let lanes = step.lanes.into_iter().map(|lane| (lane, application));
            shared.handover.leave_in_queue(lanes);
        }
        let replay = step.replay;
        if replay.ended_at.is_none() && replay.has_all_ended {
            reroute(shared, &replay).await?;
        }
        if replay.ended_at.is_some() {
            tracing::info!(replay = %id, queued = replay.queued_count, "a replay is complete");
            return Ok(());
        }
    }
    Ok(())
}

/// A step over events that reached nobody.
async fn reroute(shared: &Shared, replay: &ReplayRow) -> Result<(), StoreError> {
    let application = replay.application();
    let mut unrouted = shared.store.unrouted_events(replay).await?;
    let Some(snapshot) = shared.routes.latest(&shared.store, application).await? else {
        return Ok(());
    };
    let (mut deliveries, mut count) = (Vec::new(), 0);
    for event in &unrouted.events {
        if deliveries.len() >= usize::from(rows_of_step(replay.per_second())) {
            break;
        }
        deliveries.extend(routed(&snapshot, application, event));
        count += 1;
    }
    unrouted.truncate(count);
    let stored = shared.store.reroute(replay, &unrouted, snapshot.version, &deliveries).await?;
    match stored {
        Rerouted::Stored(made) => {
            telemetry::routed_again(made);
            let queued = deliveries.iter().filter(|one| !one.is_parked);
            let lanes = queued.map(|one| (one.subscription.lane(), application));
            shared.handover.leave_in_queue(lanes);
        }
        Rerouted::Stale => shared.routes.forget([application]),
        Rerouted::HeldUp | Rerouted::Overtaken => {}
    }
    Ok(())
}

/// The deliveries of an event as subscriptions are now; none where its payload is not kept any more.
fn routed(
    snapshot: &Snapshot,
    application: ApplicationId,
    event: &UnroutedRow,
) -> Vec<LateDelivery> {
    let Some(payload) = &event.payload else { return Vec::new() };
    let payload_bytes = payload.len();
    // What was stored was checked.
    let Ok(payload) = Payload::from_json(payload.clone().into()) else { return Vec::new() };
    let submission = Submission {
        application,
        event_type: event.event_type.as_deref().and_then(|name| EventType::parse(name).ok()),
        payload,
        route: Route::Subscriptions,
        subject: event.subject.as_deref().and_then(|text| Subject::parse(text).ok()),
        metadata: event.metadata.as_deref().and_then(|json| Metadata::from_json(json).ok()),
        idempotency_key: None,
        // It makes no event: deliveries take it from theirs.
        upstream: Upstream::default(),
    };
    let event_id = event.event_id();
    let destinations = route(snapshot, &submission).into_iter().enumerate();
    let delivery = |(ordinal, destination): (usize, Destination)| {
        Some(LateDelivery {
            delivery_id: DeliveryId::of_event(event_id, ordinal),
            event_id,
            subscription: destination.subscription?,
            target: destination.target,
            payload_bytes,
            is_parked: destination.is_parked,
        })
    };
    destinations.filter_map(delivery).collect()
}
