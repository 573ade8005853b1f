//! Housekeeping in bounded portions: days of the history, old idempotency keys, idle lanes, idle
//! connections.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::Shared;
use crate::store::StoreError;

/// The time between two rounds.
const ROUND_INTERVAL: Duration = Duration::from_secs(60);
/// The time between two looks at the partitions. They are made days ahead.
const PARTITIONS_INTERVAL: Duration = Duration::from_secs(3_600);
/// Idempotency keys deleted by one statement, and statements of one round.
const KEYS_PER_DELETE: i64 = 5_000;
const DELETES_PER_ROUND: usize = 200;

/// The time between two looks at the connections that rest.
const CONNECTIONS_INTERVAL: Duration = Duration::from_secs(5);

/// Keeps house until the end.
pub async fn run(shared: Arc<Shared>) {
    tokio::select! {
        () = shared.stop.cancelled() => {}
        () = rounds(&shared) => {}
        () = close_idle_connections(&shared) => {}
    }
}

async fn close_idle_connections(shared: &Shared) {
    loop {
        tokio::time::sleep(CONNECTIONS_INTERVAL).await;
        shared.client.close_idle();
    }
}

async fn rounds(shared: &Shared) {
    let mut partitions_at = Instant::now();
    loop {
        if partitions_at <= Instant::now() {
            match partitions(shared).await {
                Ok(()) => partitions_at = Instant::now() + PARTITIONS_INTERVAL,
                // Tried again at the next round: a lock was not to be had, or Postgres is away.
                Err(error) => tracing::warn!(%error, "partitions were not looked after"),
            }
        }
        if let Err(error) = forget_keys(shared).await {
            tracing::warn!(%error, "old idempotency keys were not deleted");
        }
        shared.handover.lanes().forget_idle(Instant::now());
        tokio::time::sleep(ROUND_INTERVAL).await;
    }
}

async fn partitions(shared: &Shared) -> Result<(), StoreError> {
    for name in shared.store.make_partitions().await? {
        tracing::info!(name, "partition made");
    }
    for name in shared.store.drop_partitions(shared.settings.retention).await? {
        tracing::info!(name, "partition dropped");
    }
    Ok(())
}

async fn forget_keys(shared: &Shared) -> Result<(), StoreError> {
    for _ in 0..DELETES_PER_ROUND {
        let deleted = shared.store.forget_idempotency_keys(KEYS_PER_DELETE).await?;
        if i64::try_from(deleted).unwrap_or(0) < KEYS_PER_DELETE {
            break;
        }
    }
    Ok(())
}
