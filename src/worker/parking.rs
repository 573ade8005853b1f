//! Parked deliveries: back into the queue once their subscriptions are enabled, oldest first and not
//! all at once; at their end when they are too old, or their subscriptions are deleted.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::Shared;
use crate::{
    domain::SubscriptionId,
    store::{StoreError, parking::ParkedSubscription},
};

/// The time between two sweeps.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Subscriptions of one page, and pages of one sweep; the next one goes on where it ended.
const SUBSCRIPTIONS_PER_PAGE: i64 = 200;
const PAGES_PER_SWEEP: usize = 10;
/// How long a subscription must be enabled before anything goes on: until then a process may still
/// know it as disabled, and would park it again.
const SETTLED_AFTER_S: f64 = 1.5;
/// How many of a subscription's deliveries may wait in the queue when parked ones are put there: so
/// many in the first second, twice as many with each further one, and at most.
const WAITING_AT_FIRST: f64 = 10.0;
const WAITING_MAX: f64 = 1_000.0;
/// Deliveries that one statement ends.
const ENDED_PER_STATEMENT: i64 = 1_000;
/// The time between two looks for those that are too old.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(60);
/// Statements of one such look.
const STATEMENTS_PER_EXPIRY: usize = 100;

/// Sweeps until the end.
pub async fn run(shared: Arc<Shared>) {
    tokio::select! {
        () = shared.stop.cancelled() => {}
        () = sweeps(&shared) => {}
    }
}

async fn sweeps(shared: &Shared) {
    let (mut cursor, mut expiry_at) = (None, Instant::now());
    loop {
        if let Err(error) = sweep(shared, &mut cursor).await {
            crate::telemetry::statement_failed(
                &error,
                "parked deliveries stay where they are for now",
            );
        }
        if expiry_at <= Instant::now() {
            match expire(shared).await {
                Ok(()) => expiry_at = Instant::now() + EXPIRY_INTERVAL,
                Err(error) => crate::telemetry::statement_failed(
                    &error,
                    "parked deliveries were not looked through",
                ),
            }
        }
        shared.handover.rest(SWEEP_INTERVAL).await;
    }
}

async fn sweep(shared: &Shared, cursor: &mut Option<SubscriptionId>) -> Result<(), StoreError> {
    for _ in 0..PAGES_PER_SWEEP {
        let page = shared.store.parked_subscriptions(*cursor, SUBSCRIPTIONS_PER_PAGE).await?;
        for one in &page {
            if one.is_deleted {
                shared.store.cancel_waiting(one.id(), ENDED_PER_STATEMENT).await?;
            } else if let Some(active_s) = one.active_s {
                unpark(shared, one, active_s).await?;
            }
        }
        let is_last = i64::try_from(page.len()).unwrap_or(i64::MAX) < SUBSCRIPTIONS_PER_PAGE;
        *cursor = page.last().filter(|_| !is_last).map(ParkedSubscription::id);
        if is_last {
            break;
        }
    }
    Ok(())
}

async fn unpark(
    shared: &Shared,
    one: &ParkedSubscription,
    active_s: f64,
) -> Result<(), StoreError> {
    let settled_s = active_s - SETTLED_AFTER_S;
    if settled_s < 0.0 {
        return Ok(());
    }
    let moved = shared.store.unpark(one.id(), waiting_max(settled_s)).await?;
    if moved > 0 {
        tracing::info!(subscription = %one.id(), moved, "parked deliveries go on");
        shared.handover.leave_in_queue([one.lane()]);
    }
    Ok(())
}

/// How many may wait in the queue, so long after the first could.
#[expect(clippy::cast_possible_truncation, reason = "far below the bounds of both types")]
fn waiting_max(settled_s: f64) -> i64 {
    (WAITING_AT_FIRST * settled_s.clamp(0.0, 60.0).exp2()).min(WAITING_MAX) as i64
}

async fn expire(shared: &Shared) -> Result<(), StoreError> {
    for _ in 0..STATEMENTS_PER_EXPIRY {
        let age_max = shared.settings.delivery_age_max;
        let ended = shared.store.expire_parked(age_max, ENDED_PER_STATEMENT).await?;
        if ended > 0 {
            tracing::warn!(ended, "parked deliveries were too old; they are dead");
        }
        if ended < ENDED_PER_STATEMENT {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_starts_gently_and_has_an_end() {
        let waiting = [-1.0, 0.0, 1.0, 2.0, 6.0, 7.0, 1e9].map(waiting_max);
        assert_eq!(waiting, [10, 10, 20, 40, 640, 1_000, 1_000]);
    }
}
