//! Erasures, and payloads that an application keeps for less time than the instance: steps of what is
//! due, whoever asked for it. The store holds how far each got, so any process may make the next step.

use std::{sync::Arc, time::Duration};

use super::Shared;
use crate::store::StoreError;

/// The time between two looks for erasures.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Steps of one look.
const STEPS_PER_LOOK: usize = 1_000;
/// The time between two rounds over the applications that keep payloads for less time.
const RETENTION_INTERVAL: Duration = Duration::from_secs(60);
/// Applications of one round, and steps for each.
const APPLICATIONS_PER_ROUND: i64 = 100_000;
const STEPS_PER_APPLICATION: usize = 1_000;

/// Makes steps until the end.
pub async fn run(shared: Arc<Shared>) {
    tokio::select! {
        () = shared.stop.cancelled() => {}
        () = erasures(&shared) => {}
        () = retention(&shared) => {}
    }
}

async fn erasures(shared: &Shared) {
    loop {
        if let Err(error) = look(shared).await {
            crate::telemetry::statement_failed(&error, "erasures stand still for now");
        }
        shared.handover.rest(LOOK_INTERVAL).await;
    }
}

async fn look(shared: &Shared) -> Result<(), StoreError> {
    for _ in 0..STEPS_PER_LOOK {
        let Some(erasure) = shared.store.step_erasure().await? else { break };
        shared.handover.idle().wake();
        if erasure.is_done() {
            tracing::info!(
                erasure = %erasure.id(),
                application = %erasure.application(),
                scope = erasure.scope,
                events = erasure.event_count,
                payloads = erasure.payload_count,
                attempts = erasure.attempt_count,
                deliveries_cancelled = erasure.cancelled_count,
                idempotency_keys = erasure.idempotency_key_count,
                "an erasure is done"
            );
        }
    }
    Ok(())
}

async fn retention(shared: &Shared) {
    loop {
        if let Err(error) = round(shared).await {
            crate::telemetry::statement_failed(
                &error,
                "payloads that are kept for less time were not dropped",
            );
        }
        shared.handover.rest(RETENTION_INTERVAL).await;
    }
}

async fn round(shared: &Shared) -> Result<(), StoreError> {
    let store = &shared.store;
    for application in store.applications_with_retention(APPLICATIONS_PER_ROUND).await? {
        let (mut payloads, mut expired) = (0, 0);
        for _ in 0..STEPS_PER_APPLICATION {
            let dropped = store.step_payload_retention(application).await?;
            payloads += dropped.payloads;
            expired += dropped.expired;
            if dropped.is_done {
                break;
            }
        }
        if payloads > 0 {
            tracing::info!(%application, payloads, expired, "payloads were dropped after their time");
        }
    }
    Ok(())
}
