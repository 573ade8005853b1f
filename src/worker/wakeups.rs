//! Wake-ups between processes. All of this is a convenience: the poll finds everything, later.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::{
    ingest::Handover,
    store::{Store, StoreError},
};

/// The shortest time between two notifications.
const TELL_INTERVAL: Duration = Duration::from_millis(20);
/// The first pause before a lost listener is made again; it doubles up to the second value.
const RECONNECT_PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Hears of work that other processes left in the queue.
pub async fn listen(shared: Arc<Shared>) {
    let mut pause = RECONNECT_PAUSE.0;
    while !shared.stop.is_cancelled() {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            result = hear(&shared, &mut pause) => {
                if let Err(error) = result {
                    tracing::debug!(%error, "the listener was lost; the poll goes on");
                }
            }
        }
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(RECONNECT_PAUSE.1),
        }
    }
}

async fn hear(shared: &Shared, pause: &mut Duration) -> Result<(), StoreError> {
    let mut listener = shared.store.listen_due().await?;
    *pause = RECONNECT_PAUSE.0;
    // Whatever was said while nobody listened.
    shared.look_now.notify_one();
    loop {
        listener.heard(shared.handover.idle().interval()).await?;
        shared.handover.idle().wake();
        shared.look_now.notify_one();
    }
}

/// Tells other processes that work was left in the queue, unless this one `is_alone`.
pub async fn tell_others(
    store: &Store,
    handover: &Handover,
    stop: &CancellationToken,
    is_alone: impl Fn() -> bool,
) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = handover.others_to_tell() => {}
        }
        if !is_alone()
            && let Err(error) = store.notify_due().await
        {
            tracing::debug!(%error, "others were not told; their poll finds the work");
        }
        tokio::time::sleep(TELL_INTERVAL).await;
    }
}
