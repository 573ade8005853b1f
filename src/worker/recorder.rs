//! Writes results in batches: what comes while one batch commits is the next batch.

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::statistics::Statistics;
use crate::{
    clock::Clock,
    domain::{DeliveryState, ErrorClass},
    ingest::{Handover, gather},
    store::{
        Store, StoreError,
        dispatchers::DispatcherId,
        queue::{ClaimedRow, Finished, Next},
    },
    telemetry,
};

/// Results of one statement.
const RESULTS_MAX: usize = 1_000;
/// Response bytes of one statement.
const RESPONSE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The first pause after a failed write; it doubles up to the second value.
const OUTAGE_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Writes until every sender is gone and all is written, or until it is told to give up.
pub async fn run(
    store: Store,
    handover: Arc<Handover>,
    (statistics, clock): (Arc<Statistics>, Clock),
    mut results: mpsc::Receiver<Finished>,
    give_up: CancellationToken,
) {
    let mut batch = Vec::with_capacity(RESULTS_MAX);
    loop {
        if !gather(&mut results, &mut batch, RESULTS_MAX).await {
            return;
        }
        while !batch.is_empty() {
            let rest = batch.split_off(portion(&batch));
            let written = tokio::select! {
                () = give_up.cancelled() => return,
                written = write(&store, &batch) => written,
            };
            if written {
                after_commit(&handover, &batch);
                statistics.count(&batch, clock.now());
            } else {
                // Lost track of: the reconciliation gives them back, and they are sent again.
                handover.forget_all(batch.iter().map(|one| (one.delivery_id, one.token)));
            }
            handover.free(batch.iter().filter_map(|one| Some((one.lane, one.slot_bytes?))));
            batch = rest;
        }
    }
}

/// How many of the first results fit into one statement.
fn portion(batch: &[Finished]) -> usize {
    let mut bytes = 0;
    let fitting = batch.iter().take_while(|one| {
        let response = one.attempt.as_ref().and_then(|attempt| attempt.response.as_ref());
        bytes += response.map_or(0, |r| r.body.len() + r.headers.len());
        bytes <= RESPONSE_BYTES_MAX
    });
    fitting.count().max(1)
}

/// Writes a batch, waiting out any outage; `false` if the database refuses a result as such.
async fn write(store: &Store, batch: &[Finished]) -> bool {
    let mut pause = OUTAGE_PAUSE.0;
    loop {
        match store.record(batch).await {
            Ok(recorded) => {
                telemetry::recorded(recorded);
                if recorded.late > 0 {
                    tracing::warn!(late = recorded.late, "results came after their claim was lost");
                }
                return true;
            }
            Err(error) if error.is_outage() => {
                telemetry::statement_failed(&error, "results wait for the database");
                tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.5))).await;
                pause = (pause * 2).min(OUTAGE_PAUSE.1);
            }
            Err(error) => return write_alone(store, batch, error).await,
        }
    }
}

/// One bad result must not hold up the others: each is written alone.
async fn write_alone(store: &Store, batch: &[Finished], error: StoreError) -> bool {
    if let [one] = batch {
        tracing::error!(%error, delivery = %one.delivery_id, "a result could not be recorded");
        // Sent again it would fail again, after having reached its receiver each time.
        let end = Next::End { state: DeliveryState::Dead, reason: Some(ErrorClass::Internal) };
        let bare = Finished {
            delivery_id: one.delivery_id,
            token: one.token,
            lane: one.lane,
            application: one.application,
            subscription: one.subscription,
            event_type: None,
            run: one.run,
            next: if one.next.is_delivered() { one.next.clone() } else { end },
            attempt: None,
            slot_bytes: None,
        };
        return write_bare(store, &bare).await;
    }
    tracing::error!(%error, results = batch.len(), "results are written one by one");
    for one in batch {
        Box::pin(write(store, std::slice::from_ref(one))).await;
    }
    true
}

/// Writes a result without its attempt, waiting out any outage.
async fn write_bare(store: &Store, bare: &Finished) -> bool {
    loop {
        match store.record(std::slice::from_ref(bare)).await {
            Err(error) if error.is_outage() => tokio::time::sleep(OUTAGE_PAUSE.1).await,
            written => return written.is_ok(),
        }
    }
}

/// Loses track of what is recorded, and sets timers for what is due again.
fn after_commit(handover: &Handover, batch: &[Finished]) {
    handover.forget_all(batch.iter().map(|one| (one.delivery_id, one.token)));
    handover.waiters().tell(batch.iter().map(|one| one.delivery_id));
    for one in batch {
        if let Next::RetryAfter(delay) | Next::Postpone(delay) = one.next {
            handover.note_due(one.lane, one.application, delay);
        }
    }
}

/// The end of a claimed delivery that is not sent.
pub fn unsent(row: &ClaimedRow, owner: DispatcherId, reason: ErrorClass) -> Finished {
    tracing::warn!(delivery = %row.delivery_id(), %reason, "not sent; the delivery is dead");
    Finished {
        delivery_id: row.delivery_id(),
        token: row.token(owner),
        lane: row.lane(),
        application: row.application(),
        subscription: row.subscription(),
        event_type: row.event_type().map(str::to_owned),
        run: row.run(),
        next: Next::End { state: DeliveryState::Dead, reason: Some(reason) },
        attempt: None,
        slot_bytes: None,
    }
}
