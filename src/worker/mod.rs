//! From a claim to its recorded result.
//!
//! ```text
//!   handover ──► starter ──► executor (one task a request) ──► recorder ──► Postgres
//!      ▲                                                                       │
//!      └────────────── claimer ◄── wake-up · timer · poll ◄── due again ◄──────┘
//! ```
//!
//! Beside them the heartbeat says that this process is alive, the sweeper gives back what dead ones
//! held, and maintenance makes and drops the days of the history.

mod claimer;
mod executor;
mod heartbeat;
mod maintenance;
mod recorder;
mod wakeups;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64},
    },
    time::Duration,
};

use tokio::sync::{Notify, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    clock::Clock,
    delivery::Client,
    domain::{RetryPolicy, signature::SigningKeys},
    ingest::Handover,
    store::{
        Store, StoreError,
        partitions::Retention,
        queue::{ClaimToken, Finished},
    },
};

pub use heartbeat::{BEAT_INTERVAL, DEAD_AFTER, FENCED_AFTER};

/// How many results may wait for the recorder. When it lags, requests end but free no slot.
const RESULTS_WAITING_MAX: usize = 8_192;
/// How long results may still be written after the last request has ended.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// How deliveries are made.
#[derive(Debug, Clone)]
pub struct WorkerSettings {
    /// The longest time without looking into the queue.
    pub poll_interval: Duration,
    /// The deadline over one exchange.
    pub http_timeout: Duration,
    /// When failed deliveries are tried again.
    pub retry: RetryPolicy,
    /// An older delivery is not sent any more.
    pub delivery_age_max: Duration,
    /// How long the history is kept.
    pub retention: Retention,
}

/// The worker's connections.
#[derive(Debug)]
pub struct Stores {
    /// The recorder's own: its one statement runs on one warm backend.
    pub recorder: Store,
    /// Everybody else's.
    pub others: Store,
}

/// What all parts of the worker use.
struct Shared {
    store: Store,
    clock: Clock,
    handover: Arc<Handover>,
    client: Client,
    keys: SigningKeys,
    settings: WorkerSettings,
    results: mpsc::Sender<Finished>,
    /// The requests under way.
    requests: TaskTracker,
    /// No new work: set first at the end.
    stop: CancellationToken,
    /// Give up requests under way: set when the grace is over.
    abort: CancellationToken,
    /// Heartbeats that succeeded in a row, the last one included.
    steady_beats: AtomicU32,
    /// How many processes are registered, this one included.
    dispatchers: AtomicU64,
    /// The queue should be looked through now: something came that names no lane.
    look_now: Notify,
}

/// The sending half of the service. Made on the runtime that it is to work on.
pub struct Worker {
    shared: Arc<Shared>,
    /// Claimer, starter, wake-ups, maintenance: all that ends at `stop`.
    loops: TaskTracker,
    /// Ends last, since it is what keeps our claims ours.
    heartbeat: tokio::task::JoinHandle<()>,
    heartbeat_stop: CancellationToken,
    recorder: tokio::task::JoinHandle<()>,
    recorder_give_up: CancellationToken,
}

impl Worker {
    /// Registers this process and starts everything.
    pub async fn start(
        stores: Stores,
        clock: Clock,
        handover: Arc<Handover>,
        client: Client,
        keys: SigningKeys,
        settings: WorkerSettings,
    ) -> Result<Self, StoreError> {
        let Stores { recorder: recorder_store, others: store } = stores;
        let owner = store.register_dispatcher().await?;
        tracing::info!(dispatcher = owner.get(), "registered");
        handover.set_owner(Some(owner));
        let (results, finished) = mpsc::channel(RESULTS_WAITING_MAX);
        let shared = Arc::new(Shared {
            store,
            clock,
            handover,
            client,
            keys,
            settings,
            results,
            requests: TaskTracker::new(),
            stop: CancellationToken::new(),
            abort: CancellationToken::new(),
            steady_beats: AtomicU32::new(0),
            dispatchers: AtomicU64::new(1),
            look_now: Notify::new(),
        });

        let loops = TaskTracker::new();
        loops.spawn(claimer::run(shared.clone()));
        loops.spawn(executor::run(shared.clone()));
        loops.spawn(heartbeat::sweep(shared.clone()));
        loops.spawn(maintenance::run(shared.clone()));
        loops.spawn(wakeups::listen(shared.clone()));
        loops.spawn(wakeups::tell_others(shared.clone()));
        loops.close();

        // These two outlive `stop`, each with an end of its own; they are joined in `drain`.
        let keepers = TaskTracker::new();
        let heartbeat_stop = CancellationToken::new();
        let heartbeat =
            keepers.spawn(heartbeat::run(shared.clone(), owner, heartbeat_stop.clone()));
        let recorder_give_up = CancellationToken::new();
        let recorder = keepers.spawn(recorder::run(
            recorder_store,
            shared.handover.clone(),
            finished,
            recorder_give_up.clone(),
        ));
        Ok(Self { shared, loops, heartbeat, heartbeat_stop, recorder, recorder_give_up })
    }

    /// Stops claiming, lets requests under way finish for `grace`, records what came of them,
    /// gives the rest back uncounted, and leaves the register.
    pub async fn drain(self, grace: Duration) {
        let Self { shared, loops, heartbeat, heartbeat_stop, recorder, recorder_give_up } = self;
        shared.stop.cancel();
        loops.wait().await;
        // What waits in memory was not begun: others may have it at once.
        let queued: Vec<_> = shared.handover.lanes().drain_queued();
        let queued: Vec<_> = queued.into_iter().map(|c| (c.delivery_id, c.token)).collect();
        give_back(&shared, &queued).await;

        shared.requests.close();
        if tokio::time::timeout(grace, shared.requests.wait()).await.is_err() {
            tracing::warn!(
                in_flight = shared.handover.lanes().in_flight(),
                "the grace is over; what is in flight is given back"
            );
            shared.abort.cancel();
            shared.requests.wait().await;
        }

        let (store, handover) = (shared.store.clone(), shared.handover.clone());
        heartbeat_stop.cancel();
        let _ = heartbeat.await;
        // The last sender is in `shared`; the recorder ends when it has written what it has.
        let owner = handover.owner();
        handover.set_owner(None);
        drop(shared);
        let recorder_end = tokio::time::timeout(FLUSH_TIMEOUT, recorder).await;
        if recorder_end.is_err() {
            tracing::warn!("results could not be written in time; their deliveries are sent again");
            recorder_give_up.cancel();
        }
        // Now only claims without a result are held.
        let unfinished = handover.all_held();
        release_all(&store, &unfinished).await;
        if let Some(owner) = owner
            && let Err(error) = store.unregister_dispatcher(owner).await
        {
            tracing::warn!(%error, "left in the register; others will find this process dead");
        }
    }
}

async fn give_back(shared: &Shared, claims: &[(crate::domain::DeliveryId, ClaimToken)]) {
    release_all(&shared.store, claims).await;
    shared.handover.forget_all(claims.iter().map(|(id, _)| *id));
}

/// Gives claims back in bounded statements.
async fn release_all(store: &Store, claims: &[(crate::domain::DeliveryId, ClaimToken)]) {
    const ROWS_MAX: usize = 5_000;
    for chunk in claims.chunks(ROWS_MAX) {
        match store.release(chunk, Duration::ZERO).await {
            Ok(released) => tracing::info!(released, "claims given back"),
            Err(error) => {
                tracing::warn!(%error, "claims not given back; they return with the lease's end");
                return;
            }
        }
    }
}
