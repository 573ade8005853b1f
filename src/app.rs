//! The service: everything joined. Used unchanged by `main` and by the tests.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context;
use sqlx::postgres::PgConnectOptions;
use tokio::{net::TcpListener, runtime::Runtime, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    clock::Clock,
    config::{Config, Database, Role},
    delivery::{Client, client::ClientSettings, resolver::system_resolver},
    domain::pacing::Limits,
    embedded_postgres::{self, EmbeddedPostgres},
    http::{self, ApiState},
    ingest::{Batcher, Handover},
    store::Store,
    telemetry,
    worker::{Stores, Worker, WorkerSettings},
};

/// Connections for reading, and for claiming and keeping house. The batcher and the recorder have
/// one each: a pool hands its connections out in turn, and ten backends that take turns keep none
/// of their caches warm.
const API_CONNECTIONS_MAX: u32 = 8;
const WORKER_CONNECTIONS_MAX: u32 = 6;
/// How long the start waits for a database that is starting itself.
const DATABASE_WAIT: Duration = Duration::from_secs(30);
/// Deliveries of one lane, deliveries in all, and payload bytes that one process holds in memory.
const LANE_HELD_MAX: usize = 8_192;
const HELD_MAX: usize = 65_536;
const HELD_BYTES_MAX: usize = 256 * 1024 * 1024;
/// How often the database's clock is sampled by a process that sends no heartbeat.
const CLOCK_INTERVAL: Duration = Duration::from_secs(5);
/// How long batches under way may still commit at the end.
const INGEST_END_TIMEOUT: Duration = Duration::from_secs(10);

/// The service, bound to its address and ready to run.
pub struct App {
    config: Config,
    listener: TcpListener,
    store: Store,
    /// The batcher's own.
    ingest_store: Store,
    clock: Clock,
    handover: Arc<Handover>,
    worker: Option<(Worker, Runtime)>,
    embedded: Option<EmbeddedPostgres>,
}

impl App {
    /// Starts or finds the database, brings the schema up to date, takes the address, and starts
    /// sending. Requests are answered from [`Self::run`] on.
    pub async fn bind(config: Config) -> anyhow::Result<Self> {
        // First of all: the address may be taken, and then nothing else should have happened.
        let listener = TcpListener::bind(config.bind)
            .await
            .with_context(|| format!("BIND: {} cannot be listened on", config.bind))?;
        let (options, embedded) = database(&config.database).await?;
        match Self::start(config, listener, options, embedded.is_some()).await {
            Ok(app) => Ok(Self { embedded, ..app }),
            Err(error) => {
                if let Some(embedded) = embedded {
                    embedded.stop().await.context("the private Postgres did not stop")?;
                }
                Err(error)
            }
        }
    }

    async fn start(
        config: Config,
        listener: TcpListener,
        options: PgConnectOptions,
        is_alone: bool,
    ) -> anyhow::Result<Self> {
        let store = Store::connect_lazy(options.clone(), API_CONNECTIONS_MAX);
        let ingest_store = Store::connect_lazy(options.clone(), 1);
        let clock = Clock::default();
        wait_for_database(&store, &clock).await?;
        store.migrate().await?;
        store.make_partitions().await.context("the days of the history could not be made")?;
        if is_alone {
            // The lock on the data folder proves it: whoever is registered is dead. So what they
            // held is released now, and not after some seconds of silence.
            store.unregister_all_dispatchers().await?;
            while store.release_orphans(5_000).await?.released > 0 {}
        }
        let handover = Arc::new(Handover::new(Limits {
            lane_in_flight_max: config.lane_in_flight_max,
            lane_held_max: LANE_HELD_MAX.max(config.lane_in_flight_max),
            in_flight_max: config.in_flight_max,
            held_max: HELD_MAX.max(config.in_flight_max),
            held_bytes_max: HELD_BYTES_MAX,
        }));
        let worker = match config.role {
            Role::Api => None,
            Role::All | Role::Worker => {
                Some(start_worker(&config, options, &clock, &handover).await?)
            }
        };
        Ok(Self { config, listener, store, ingest_store, clock, handover, worker, embedded: None })
    }

    /// The address that it listens on.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The configuration that it runs with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Serves until `stop`, and then ends in order: no new requests, batches commit, requests to
    /// receivers finish, results are written, claims are given back, the private Postgres stops.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let Self { config, listener, store, ingest_store, clock, handover, worker, embedded } =
            self;
        let tasks = TaskTracker::new();
        let (ingest, batcher) = Batcher::new(ingest_store.clone(), clock.clone(), handover.clone());
        let batching = tasks.spawn(batcher.run());
        tasks.spawn(fold_metrics(stop.clone()));
        if worker.is_none() {
            tasks.spawn(sample_clock(store.clone(), clock, stop.clone()));
            tasks.spawn(tell_workers(store.clone(), handover.clone(), stop.clone()));
        }
        let state = ApiState::new(http::Api {
            store: store.clone(),
            ingest,
            handover,
            access: config.access.clone(),
            target_url: config.target_url.clone(),
            addresses: config.addresses.clone(),
            body_bytes_max: config.request_body_max,
            accepts_events: config.role != Role::Worker,
        });
        // One grace for both halves: Docker kills ten seconds after it has asked.
        let began_to_stop = {
            let router = http::router(state);
            let grace = config.shutdown_grace;
            let stopped_at = tasks.spawn({
                let stop = stop.clone();
                async move {
                    stop.cancelled().await;
                    Instant::now()
                }
            });
            http::server::serve(listener, router, stop, grace).await;
            stopped_at.await?
        };
        finish_batches(batching).await;
        if let Some((worker, runtime)) = worker {
            let grace = config.shutdown_grace.saturating_sub(began_to_stop.elapsed());
            runtime.spawn(worker.drain(grace)).await?;
            runtime.shutdown_background();
        }
        ingest_store.close().await;
        store.close().await;
        if let Some(embedded) = embedded {
            embedded.stop().await.context("the private Postgres did not stop")?;
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// Finds the database, or starts it.
async fn database(
    database: &Database,
) -> anyhow::Result<(PgConnectOptions, Option<EmbeddedPostgres>)> {
    match database {
        Database::External(options) => Ok((options.as_ref().clone(), None)),
        Database::Private { data_dir, path } => {
            let options = embedded_postgres::Options {
                data_dir: data_dir.clone(),
                path: path.clone(),
                extra_settings: Vec::new(),
            };
            let embedded = EmbeddedPostgres::start(options).await?;
            Ok((embedded.connect_options(), Some(embedded)))
        }
    }
}

/// Starts the sending half on a runtime of its own, so that neither half can starve the other: a
/// flood of requests leaves the senders their threads, and slow receivers leave accepting its own.
async fn start_worker(
    config: &Config,
    options: PgConnectOptions,
    clock: &Clock,
    handover: &Arc<Handover>,
) -> anyhow::Result<(Worker, Runtime)> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads_per_half())
        .thread_name("send")
        .enable_all()
        .build()
        .context("the sending threads could not be started")?;
    let settings = WorkerSettings {
        poll_interval: config.poll_interval,
        http_timeout: config.http_timeout,
        retry: config.retry.clone(),
        delivery_age_max: config.delivery_age_max,
        retention: config.retention,
    };
    let client = ClientSettings {
        addresses: config.addresses.clone(),
        response_body_max: config.response_body_max,
        retry_after_max: config.retry_after_max,
        idle_per_host_max: config.lane_in_flight_max,
    };
    let (clock, handover, keys) = (clock.clone(), handover.clone(), config.signing_keys.clone());
    // Connections belong to the runtime that opened them, so the store is made there too.
    let started = runtime
        .spawn(async move {
            let client = Client::new(client, &system_resolver())?;
            let stores = Stores {
                recorder: Store::connect_lazy(options.clone(), 1),
                others: Store::connect_lazy(options, WORKER_CONNECTIONS_MAX),
            };
            anyhow::Ok(Worker::start(stores, clock, handover, client, keys, settings).await?)
        })
        .await?;
    match started {
        Ok(worker) => Ok((worker, runtime)),
        Err(error) => {
            runtime.shutdown_background();
            Err(error)
        }
    }
}

/// Half of the processors for each half of the service.
pub fn threads_per_half() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().div_ceil(2))
}

/// Waits for a database that is starting, and takes the first sample of its clock.
async fn wait_for_database(store: &Store, clock: &Clock) -> anyhow::Result<()> {
    let give_up_at = Instant::now() + DATABASE_WAIT;
    loop {
        let before = SystemTime::now();
        match store.database_time().await {
            Ok(time) => {
                clock.sample(time, before, SystemTime::now());
                return Ok(());
            }
            Err(error) if error.is_outage() && Instant::now() < give_up_at => {
                tracing::warn!(%error, "waiting for the database");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(error) => return Err(error).context("DATABASE_URL"),
        }
    }
}

/// Keeps the clock of a process that sends no heartbeats.
async fn sample_clock(store: Store, clock: Clock, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(CLOCK_INTERVAL) => {}
        }
        let before = SystemTime::now();
        if let Ok(time) = store.database_time().await {
            clock.sample(time, before, SystemTime::now());
        }
    }
}

/// Keeps the metrics from growing.
async fn fold_metrics(stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(telemetry::FOLD_INTERVAL) => telemetry::fold_metrics(),
        }
    }
}

/// Wakes the workers elsewhere, at most every [`TELL_INTERVAL`].
async fn tell_workers(store: Store, handover: Arc<Handover>, stop: CancellationToken) {
    const TELL_INTERVAL: Duration = Duration::from_millis(20);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = handover.others_to_tell() => {}
        }
        if let Err(error) = store.notify_due().await {
            tracing::debug!(%error, "workers were not told; their poll finds the work");
        }
        tokio::time::sleep(TELL_INTERVAL).await;
    }
}

/// Waits until all that was submitted is answered.
async fn finish_batches(batching: JoinHandle<()>) {
    if tokio::time::timeout(INGEST_END_TIMEOUT, batching).await.is_err() {
        tracing::warn!("a batch could not be committed in time; its callers were not answered");
    }
}
