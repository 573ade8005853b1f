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
mod endings;
mod erasures;
mod executor;
mod health;
mod heartbeat;
mod maintenance;
mod parking;
mod plan;
mod recorder;
mod replays;
mod statistics;
mod sweeper;
mod wakeups;

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
    time::{timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{endings::Endings, statistics::Statistics};
use crate::{
    clock::Clock,
    delivery::Client,
    domain::{
        ApplicationId, DeliveryId, NamedKeys, RetryPolicy, Subscription, liveness::Peers,
        pacing::Members, signature::SigningKeys, subscription::DisabledBecause,
    },
    ingest::{Handover, Routes},
    store::{
        Store, StoreError,
        partitions::Retention,
        queue::{ClaimToken, Finished, Release},
    },
};

pub use heartbeat::{BEAT_INTERVAL, FENCED_AFTER};
pub use wakeups::tell_others;

/// How many results may wait for the recorder. Slots are freed when results are recorded, so only
/// an `IN_FLIGHT_MAX` above this makes it wait.
const RESULTS_WAITING_MAX: usize = 8_192;
/// How long the loops may take to notice the end, and queued claims to be given back.
const LOOPS_END_TIMEOUT: Duration = Duration::from_secs(2);
/// How long results may still be written after the last request has ended, and claims given back
/// after that. With the default grace both are over before Docker kills.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(900);
/// The pause between two questions to a database that is away.
const OUTAGE_PAUSE: Duration = Duration::from_millis(500);

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
    /// How long what the CMS is to be told of waits for it.
    pub cms_log_age_max: Duration,
    /// How long a subscription may fail before it is disabled; `None`: for ever.
    pub disable_after: Option<Duration>,
}

/// The worker's connections.
#[derive(Debug)]
pub struct Stores {
    /// The recorder's own: its one statement runs on one warm backend.
    pub recorder: Store,
    /// The claimer's own, for the same reason: on any of the others' connections a claim would be the
    /// first one of its backend for a while, and take ten times as long.
    pub claimer: Store,
    /// The heartbeat's own: it must not wait for statements that hang.
    pub heartbeat: Store,
    /// Everybody else's.
    pub others: Store,
}

/// The keys of the settings.
#[derive(Debug, Clone)]
pub struct Keys {
    /// What signs the explicit targets of `default`, unless a request names another key.
    pub own: SigningKeys,
    /// Those that requests can name.
    pub named: NamedKeys,
}

/// What all parts of the worker use.
struct Shared {
    store: Store,
    clock: Clock,
    handover: Arc<Handover>,
    routes: Arc<Routes>,
    client: Client,
    keys: Keys,
    settings: WorkerSettings,
    results: mpsc::Sender<Finished>,
    statistics: Arc<Statistics>,
    endings: Endings,
    /// The requests under way.
    requests: TaskTracker,
    /// No new work: set first at the end.
    stop: CancellationToken,
    /// Give up requests under way: set when the grace is over.
    abort: CancellationToken,
    /// Heartbeats that succeeded in a row, the last one included.
    steady_beats: AtomicU32,
    /// Heartbeats of all processes, as this one has seen them.
    peers: Mutex<Peers>,
    /// How many processes are registered, this one included.
    dispatchers: AtomicU64,
    /// The queue should be looked through now: something came that names no lane.
    look_now: Notify,
}

impl Shared {
    fn peers(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a heartbeat failed: until some have succeeded nothing is known of other processes.
    fn unsettle(&self) {
        self.steady_beats.store(0, Ordering::Relaxed);
        self.peers().forget();
    }
}

/// The sending half of the service. Made on the runtime that it is to work on.
pub struct Worker {
    shared: Arc<Shared>,
    /// Claimer, starter, wake-ups, maintenance, parking, replays, erasures: all that ends at `stop`.
    loops: TaskTracker,
    /// Ends last, since it is what keeps our claims ours.
    heartbeat: JoinHandle<()>,
    heartbeat_stop: CancellationToken,
    recorder: JoinHandle<()>,
    recorder_give_up: CancellationToken,
}

impl Worker {
    /// Registers this process and starts everything. `failed` is cancelled if a part ends that must
    /// not: then the service has to end as a whole, or it would keep claims that nobody works on.
    pub async fn start(
        stores: Stores,
        clock: Clock,
        (handover, routes): (Arc<Handover>, Arc<Routes>),
        client: Client,
        keys: Keys,
        settings: WorkerSettings,
        failed: &CancellationToken,
    ) -> Result<Self, StoreError> {
        let Stores { recorder: recorder_store, claimer: claimer_store, heartbeat, others: store } =
            stores;
        recorder_store.prepare_to_record().await?;
        claimer_store.prepare_to_claim().await?;
        let began = Instant::now();
        let owner = heartbeat.register_dispatcher().await?;
        tracing::info!(dispatcher = owner.get(), "registered");
        handover.set_members(Members::joining());
        handover.confirm_owner(owner, began + FENCED_AFTER);
        let (results, finished) = mpsc::channel(RESULTS_WAITING_MAX);
        let shared = Arc::new(Shared {
            store,
            clock,
            handover,
            routes,
            client,
            keys,
            settings,
            results,
            statistics: Arc::default(),
            endings: Endings::default(),
            requests: TaskTracker::new(),
            stop: CancellationToken::new(),
            abort: CancellationToken::new(),
            steady_beats: AtomicU32::new(0),
            peers: Mutex::default(),
            dispatchers: AtomicU64::new(1),
            look_now: Notify::new(),
        });

        // Before anything is sent: who hangs is left in peace from the beginning.
        let heard = health::at_start(&shared).await?;

        let (loops, stop) = (TaskTracker::new(), &shared.stop);
        loops.spawn(watched("claimer", claimer::run(shared.clone(), claimer_store), stop, failed));
        loops.spawn(watched("starter", executor::run(shared.clone()), stop, failed));
        loops.spawn(watched("watch", executor::watch(shared.clone()), stop, failed));
        loops.spawn(watched("health", health::run(shared.clone(), heard), stop, failed));
        loops.spawn(watched("sweeper", sweeper::run(shared.clone()), stop, failed));
        loops.spawn(watched("maintenance", maintenance::run(shared.clone()), stop, failed));
        loops.spawn(watched("statistics", statistics::run(shared.clone()), stop, failed));
        loops.spawn(watched("parking", parking::run(shared.clone()), stop, failed));
        loops.spawn(watched("replays", replays::run(shared.clone()), stop, failed));
        loops.spawn(watched("erasures", erasures::run(shared.clone()), stop, failed));
        loops.spawn(watched("listener", wakeups::listen(shared.clone()), stop, failed));
        loops.spawn(watched("notifier", tell_other_workers(shared.clone()), stop, failed));
        loops.close();

        // These two outlive `stop`, each with an end of its own; they are joined in `finish`.
        let keepers = TaskTracker::new();
        let heartbeat_stop = CancellationToken::new();
        let beating = heartbeat::run(shared.clone(), heartbeat, owner, heartbeat_stop.clone());
        let heartbeat = keepers.spawn(watched("heartbeat", beating, &heartbeat_stop, failed));
        let recorder_give_up = CancellationToken::new();
        let recording = recorder::run(
            recorder_store,
            shared.handover.clone(),
            (shared.statistics.clone(), shared.clock.clone()),
            finished,
            recorder_give_up.clone(),
        );
        let recorder = keepers.spawn(watched("recorder", recording, stop, failed));
        Ok(Self { shared, loops, heartbeat, heartbeat_stop, recorder, recorder_give_up })
    }

    /// Stops claiming and starting, and lets requests under way finish until `deadline`. New events
    /// are stored for others from now on.
    pub async fn quiesce(&self, deadline: Instant) {
        let shared = &self.shared;
        shared.handover.close();
        shared.stop.cancel();
        // A statement that hangs must not use up the grace of the requests.
        let _ = timeout(LOOPS_END_TIMEOUT, self.loops.wait()).await;
        // What waits in memory was not begun: others may have it at once.
        let queued = shared.handover.lanes().drain_queued();
        let queued: Vec<_> = queued.into_iter().map(|c| (c.delivery_id, c.token)).collect();
        let _ = timeout(LOOPS_END_TIMEOUT, give_back(shared, &queued, Release::Now)).await;

        shared.requests.close();
        if timeout_at(deadline.into(), shared.requests.wait()).await.is_err() {
            tracing::warn!(
                in_flight = shared.handover.lanes().in_flight(),
                "the grace is over; what is in flight is given back"
            );
            shared.abort.cancel();
            shared.requests.wait().await;
        }
    }

    /// Writes what results there are, gives every other claim back uncounted, and leaves the
    /// register. Called when nothing is accepted any more.
    pub async fn finish(self) {
        let Self { shared, heartbeat, heartbeat_stop, recorder, recorder_give_up, .. } = self;
        let (store, handover) = (shared.store.clone(), shared.handover.clone());
        let owner = handover.owner();
        heartbeat_stop.cancel();
        let _ = heartbeat.await;
        handover.clear_owner();
        let statistics = shared.statistics.clone();
        // The last sender is in here; the recorder ends when it has written what it has.
        drop(shared);
        if timeout(FLUSH_TIMEOUT, recorder).await.is_err() {
            tracing::warn!("results could not be written in time; their deliveries are sent again");
            recorder_give_up.cancel();
        }
        if timeout(FLUSH_TIMEOUT, statistics.write_all(&store)).await.is_err() {
            tracing::warn!("the last figures of the statistics are lost");
        }
        let leaving = async {
            release_all(&store, &handover.all_held(), Release::Now).await;
            if let Some(owner) = owner {
                store.unregister_dispatcher(owner).await?;
            }
            Ok::<_, StoreError>(())
        };
        match timeout(FLUSH_TIMEOUT, leaving).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                crate::telemetry::statement_failed(&error, "others will find this process dead");
            }
            Err(_) => tracing::warn!("left in the register; others will find this process dead"),
        }
    }
}

/// Tells other processes of work that was left in the queue, if there are any.
async fn tell_other_workers(shared: Arc<Shared>) {
    let is_alone = || shared.dispatchers.load(Ordering::Relaxed) <= 1;
    wakeups::tell_others(&shared.store, &shared.handover, &shared.stop, is_alone).await;
}

/// Runs a part that may end only after `end`; if it ends before, or panics, `failed` says so.
pub fn watched<W: Future<Output = ()> + Send>(
    part: &'static str,
    work: W,
    end: &CancellationToken,
    failed: &CancellationToken,
) -> impl Future<Output = ()> + Send + use<W> {
    let (end, failed) = (end.clone(), failed.clone());
    async move {
        let ended = AssertUnwindSafe(work).catch_unwind().await;
        if ended.is_err() || !end.is_cancelled() {
            tracing::error!(part, panicked = ended.is_err(), "a part of the service has ended");
            failed.cancel();
        }
    }
}

/// Disables a subscription because of what became of deliveries at the revision that is given; not if
/// it is at another one by now.
async fn disable(
    shared: &Shared,
    application: ApplicationId,
    subscription: &Subscription,
    because: DisabledBecause,
) -> Result<(), StoreError> {
    let (id, revision) = (subscription.id, subscription.revision);
    if shared.store.disable_subscription(application, id, revision, because).await? {
        tracing::warn!(subscription = %id, because = because.as_str(), "disabled");
        // What waits in memory for it is parked rather than sent.
        shared.routes.forget([application]);
    }
    Ok(())
}

async fn give_back(shared: &Shared, claims: &[(DeliveryId, ClaimToken)], when: Release) {
    release_all(&shared.store, claims, when).await;
    shared.handover.forget_all(claims.iter().copied());
}

/// Gives claims back in bounded statements.
async fn release_all(store: &Store, claims: &[(DeliveryId, ClaimToken)], when: Release) {
    const ROWS_MAX: usize = 5_000;
    for chunk in claims.chunks(ROWS_MAX) {
        match store.release(chunk, when).await {
            Ok(released) => tracing::debug!(released, "claims given back"),
            Err(error) => {
                crate::telemetry::statement_failed(
                    &error,
                    "claims not given back; they return with the lease's end",
                );
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_ends_early_or_panics_is_a_failure() {
        let check = async |work: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>, is_over| {
            let (end, failed) = (CancellationToken::new(), CancellationToken::new());
            if is_over {
                end.cancel();
            }
            watched("part", work, &end, &failed).await;
            failed.is_cancelled()
        };
        assert!(check(Box::pin(async {}), false).await);
        assert!(!check(Box::pin(async {}), true).await);
        assert!(check(Box::pin(async { panic!("on purpose") }), true).await);
    }
}
