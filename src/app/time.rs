//! Samples of the database's clock: the first one, and those of a process that sends no heartbeats.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    ingest::Handover,
    store::{Store, StoreError},
};

/// Time between two samples.
const INTERVAL: Duration = Duration::from_secs(5);

/// Takes the first sample, and compares it with the newest time that the database knows.
pub async fn start(store: &Store, clock: &Clock) -> Result<(), StoreError> {
    let newest = store.newest_known_time().await?;
    let began = Instant::now();
    let time = store.database_time().await?;
    clock.start(time, newest, (began, Instant::now()));
    Ok(())
}

/// Samples until `stop`.
pub async fn sample(store: Store, clock: Clock, handover: Arc<Handover>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = handover.rest(INTERVAL) => {}
        }
        let began = Instant::now();
        if let Ok(time) = store.database_time().await {
            clock.sample(time, (began, Instant::now()));
        }
    }
}
