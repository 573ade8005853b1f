//! The service: everything joined. Used unchanged by `main` and by the tests.

mod database;
mod kept;
mod time;

use std::{
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use tokio::{
    net::TcpListener,
    runtime::{Handle, Runtime},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::database::{database, make_partitions, wait_for_database};
use crate::{
    clock::Clock,
    cms::{Cms, CmsSettings, subscriptions::Subscriptions},
    config::{Config, ConfigError, Role},
    delivery::{Client, client::ClientSettings, resolver::Resolver},
    domain::{pacing::Limits, sealing::SealingKeys},
    embedded_postgres::EmbeddedPostgres,
    http::{self, ApiState, BatchRoom, DispatchesUnderWay, Known, Limit, Targets, UnknownLookups},
    ingest::{Batcher, Catalogue, Handover, Intake, Mover, Routes},
    sealing,
    store::{Store, connector::Connector},
    telemetry,
    worker::{Stores, Worker, WorkerSettings, tell_others, watched},
};

/// Connections for reading, and for keeping house. The batcher, the mover, the recorder, the claimer,
/// the heartbeat, the listener and `/readyz` have one each: a backend that does one thing keeps its
/// caches warm, and waits for no other.
const API_CONNECTIONS_MAX: u32 = 7;
const WORKER_CONNECTIONS_MAX: u32 = 4;
/// Connections of what is done for the CMS, if there is one.
const CMS_CONNECTIONS_MAX: u32 = 2;
/// Deliveries of one lane, deliveries in all, and payload bytes that one process holds in memory.
const LANE_HELD_MAX: usize = 8_192;
const HELD_MAX: usize = 65_536;
const HELD_BYTES_MAX: usize = 256 * 1024 * 1024;
/// How long batches under way may still commit at the end.
const INGEST_END_TIMEOUT: Duration = Duration::from_secs(2);

/// The service, bound to its address and ready to run.
pub struct App {
    config: Config,
    listener: TcpListener,
    store: Store,
    /// The batcher's own.
    ingest_store: Store,
    /// The mover's own.
    outbox_store: Store,
    /// That of `/readyz`: a probe must not wait for those who read.
    probe_store: Store,
    sealing_keys: SealingKeys,
    clock: Clock,
    handover: Arc<Handover>,
    routes: Arc<Routes>,
    /// Cancelled when a part has ended that must not.
    failed: CancellationToken,
    worker: Option<(Worker, SendingRuntime)>,
    /// What is done for the CMS, by those who send.
    cms: Option<Box<Cms>>,
    /// What reads the subscriptions that the CMS keeps.
    kept: Option<Subscriptions>,
    embedded: Option<EmbeddedPostgres>,
}

impl App {
    /// Starts or finds the database, brings the schema up to date, takes the address, and starts
    /// sending. Requests are answered from [`Self::run`] on.
    pub async fn bind(config: Config) -> anyhow::Result<Self> {
        let app = Self::bind_until(config, &CancellationToken::new()).await?;
        Ok(app.expect("nothing cancels it"))
    }

    /// The same, unless `stop` is cancelled meanwhile: then `None`, and a private Postgres that was
    /// started is stopped.
    pub async fn bind_until(
        config: Config,
        stop: &CancellationToken,
    ) -> anyhow::Result<Option<Self>> {
        // The data folder first: a second service on it has the same address by default, and the
        // folder is what it must be told about.
        let Some((connector, embedded)) = database(&config.database, stop).await? else {
            return Ok(None);
        };
        let data_dir = embedded.as_ref().map(|embedded| embedded.data_dir().to_owned());
        let started = tokio::select! {
            biased;
            () = stop.cancelled() => Ok(None),
            started = Self::start(config, connector, data_dir.as_deref()) => started.map(Some),
        };
        match (started, embedded) {
            (Ok(Some(app)), embedded) => Ok(Some(Self { embedded, ..app })),
            (ended, embedded) => {
                if let Some(embedded) = embedded {
                    embedded.stop().await.context("the private Postgres did not stop")?;
                }
                ended
            }
        }
    }

    /// `data_dir` is that of the private Postgres, locked.
    async fn start(
        config: Config,
        connector: Connector,
        data_dir: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(config.bind)
            .await
            .with_context(|| format!("BIND: {} cannot be listened on", config.bind))?;
        let clock = Clock::default();
        let connect = |connections_max| {
            Store::connect_lazy(connector.clone(), connections_max).with_clock(&clock)
        };
        let store = telling(connect(API_CONNECTIONS_MAX), config.cms.as_deref());
        let (ingest_store, outbox_store, probe_store) = (connect(1), connect(1), connect(1));
        wait_for_database(&store).await?;
        store.migrate().await?;
        time::start(&store, &clock).await?;
        let sealing_keys = match (config.encryption.clone(), data_dir) {
            (keys, Some(data_dir)) => sealing::keys(&store, keys, data_dir).await?,
            (Some(keys), None) => keys,
            (None, None) => return Err(ConfigError::NoEncryptionKey.into()),
        };
        sealing::check(&store, &sealing_keys).await?;
        make_partitions(&store).await.context("the days of the history could not be made")?;
        if data_dir.is_some() {
            // The lock on the data folder proves it: whoever is registered is dead. So what they
            // held is released now, and not after some seconds of silence.
            store.unregister_all_dispatchers().await?;
            store.release_all_orphans().await?;
        }
        if config.role != Role::Worker {
            ingest_store.prepare_to_store().await?;
        }
        let limits = Limits {
            lane_in_flight_max: config.lane_in_flight_max,
            lane_held_max: LANE_HELD_MAX.max(config.lane_in_flight_max),
            in_flight_max: config.in_flight_max,
            held_max: HELD_MAX.max(config.in_flight_max),
            held_bytes_max: HELD_BYTES_MAX,
            breaker: config.breaker,
        };
        let handover = Arc::new(Handover::new(limits).with_idle(config.idle_interval));
        let routes = Arc::new(Routes::new(sealing_keys.clone()));
        let failed = CancellationToken::new();
        let cms = config.cms.clone().filter(|_| config.role != Role::Api);
        let cms = cms.map(|settings| {
            let store = connect(CMS_CONNECTIONS_MAX);
            let cms = Cms::new(*settings, store).map(Box::new);
            cms.context("PAYLOAD_URL (are CA certificates installed?)")
        });
        let cms = cms.transpose()?;
        let kept = kept::subscriptions(&config, &connector, &sealing_keys, &clock)?;
        let worker = match config.role {
            Role::Api => None,
            Role::All | Role::Worker => {
                let desk = (handover.clone(), routes.clone());
                Some(start_worker(&config, connector, &clock, desk, &failed).await?)
            }
        };
        Ok(Self {
            config,
            listener,
            store,
            ingest_store,
            outbox_store,
            probe_store,
            sealing_keys,
            clock,
            handover,
            routes,
            failed,
            worker,
            cms,
            kept,
            embedded: None,
        })
    }

    /// The address that it listens on.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The configuration that it runs with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What seals and opens the secrets of this database.
    pub fn sealing_keys(&self) -> &SealingKeys {
        &self.sealing_keys
    }

    /// Serves until `stop`, and then ends in order: nothing new is claimed or started, requests to
    /// us and to receivers finish within one grace, batches commit, results are written, claims are
    /// given back, the private Postgres stops. An error if a part of it failed.
    #[expect(clippy::too_many_lines, reason = "one order of starts and ends")]
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let Self {
            config,
            listener,
            store,
            ingest_store,
            outbox_store,
            probe_store,
            sealing_keys,
            clock,
            handover,
            routes,
            failed,
            worker,
            cms,
            kept,
            embedded,
        } = self;
        let tasks = TaskTracker::new();
        // It is supervised until the last connection is closed, also while the service drains.
        let drained = CancellationToken::new();
        let supervised = embedded.map(|it| tasks.spawn(it.supervise(drained.clone())));
        let intake =
            Intake { clock: clock.clone(), handover: handover.clone(), routes: routes.clone() };
        let catalogue = Catalogue::default();
        let (ingest, batcher) = Batcher::new(ingest_store.clone(), intake.clone());
        let batching = tasks.spawn(watched("batcher", batcher.run(), &stop, &failed));
        let moving = (config.role != Role::Worker).then(|| {
            let mover = Mover::new(outbox_store.clone(), store.clone(), intake, catalogue.clone());
            tasks.spawn(watched("mover", mover.run(stop.clone()), &stop, &failed))
        });
        tasks.spawn(handover.waiters().clone().look(store.clone(), stop.clone()));
        let telling = cms.map(|cms| tell(cms, &tasks, &stop, &failed));
        let cms_link = kept.map(|kept| kept::keep(&kept, config.role, &tasks, &stop, &failed));
        tasks.spawn(fold_metrics(stop.clone()));
        if worker.is_none() {
            let sampling =
                time::sample(store.clone(), clock.clone(), handover.clone(), stop.clone());
            tasks.spawn(sampling);
            tasks.spawn({
                let (store, handover, stop) = (store.clone(), handover.clone(), stop.clone());
                async move { tell_others(&store, &handover, &stop, || false).await }
            });
        }
        tasks.spawn(end_with_a_part(stop.clone(), failed.clone()));
        let timeout = config.clients.body_timeout;
        let limit = |setting, bytes_max| Limit { bytes_max, setting, timeout };
        let state = ApiState::new(http::Api {
            store: store.clone(),
            probe_store: probe_store.clone(),
            ingest,
            handover,
            access: config.access.clone(),
            hosts: config.hosts.clone(),
            known: Known::default(),
            unknown_lookups: UnknownLookups::default(),
            sealing: sealing_keys,
            subscription_bounds: kept::subscription_bounds(&config),
            catalogue,
            routes,
            clock: clock.clone(),
            targets: Targets {
                default: config.target_url.clone(),
                addresses: config.addresses.clone(),
            },
            dispatch: config.dispatch,
            dispatches: DispatchesUnderWay::default(),
            signing_keys: config.signing_keys.named.clone(),
            body_limit: limit("REQUEST_BODY_MAX", config.request_body_max),
            batch_limit: limit("BATCH_BODY_MAX", config.batch_body_max),
            batch_room: BatchRoom::default(),
            breaker: config.breaker,
            cms: cms_link,
            payload_days: config.retention.payload.as_secs() / 86_400,
            accepts_events: config.role != Role::Worker,
        });
        // One grace for both halves, from the same moment.
        let grace = config.shutdown_grace;
        let accepting = async {
            let routes = http::router(state);
            http::server::serve(listener, routes, config.clients, stop.clone(), grace).await;
            finish_batches(batching, moving, telling).await;
        };
        match worker {
            None => accepting.await,
            Some((worker, runtime)) => {
                let quiescing = runtime.handle().spawn({
                    let stop = stop.clone();
                    async move {
                        stop.cancelled().await;
                        worker.quiesce(Instant::now() + grace).await;
                        worker
                    }
                });
                let ((), worker) = tokio::join!(accepting, quiescing);
                runtime.handle().spawn(worker?.finish()).await?;
            }
        }
        ingest_store.close().await;
        outbox_store.close().await;
        probe_store.close().await;
        store.close().await;
        drained.cancel();
        if let Some(supervised) = supervised {
            supervised.await?.stop().await.context("the private Postgres did not stop")?;
        }
        anyhow::ensure!(!failed.is_cancelled(), "a part of the service failed; see the log");
        tracing::info!("stopped");
        Ok(())
    }
}

/// Starts the sending half on a runtime of its own, so that neither half can starve the other: a
/// flood of requests leaves the senders their threads, and slow receivers leave accepting its own.
async fn start_worker(
    config: &Config,
    connector: Connector,
    clock: &Clock,
    desk: (Arc<Handover>, Arc<Routes>),
    failed: &CancellationToken,
) -> anyhow::Result<(Worker, SendingRuntime)> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads_per_half())
        .thread_name("send")
        .enable_all()
        .build()
        .context("the sending threads could not be started")?;
    let runtime = SendingRuntime(Some(runtime));
    let settings = WorkerSettings {
        poll_interval: config.poll_interval,
        http_timeout: config.http_timeout,
        retry: config.retry.clone(),
        delivery_age_max: config.delivery_age_max,
        retention: config.retention,
        disable_after: config.disable_after,
        cms_log_age_max: config.cms_log_age_max,
    };
    if let Some(proxy) = &config.egress_proxy {
        tracing::info!(event = "egress_proxy", %proxy, "targets are called through a proxy");
    }
    let client = ClientSettings {
        addresses: config.addresses.clone(),
        response_body_max: config.response_body_max,
        retry_after_max: config.retry_after_max,
        trust: config.trust.clone(),
        proxy: config.egress_proxy.clone(),
        idle_per_host_max: config.lane_in_flight_max,
    };
    let (clock, keys, cms) = (clock.clone(), config.signing_keys.clone(), config.cms.clone());
    let dns_servers = config.dns_servers.clone();
    let failed = failed.clone();
    // Connections belong to the runtime that opened them, so the store is made there too.
    let started = runtime
        .handle()
        .spawn(async move {
            let client = Client::new(client, &Resolver::new(&dns_servers))?;
            let connect = |connections_max| {
                Store::connect_lazy(connector.clone(), connections_max).with_clock(&clock)
            };
            let stores = Stores {
                recorder: telling(connect(1), cms.as_deref()),
                claimer: connect(1),
                heartbeat: connect(1),
                others: telling(connect(WORKER_CONNECTIONS_MAX), cms.as_deref()),
            };
            let started = Worker::start(stores, clock, desk, client, keys, settings, &failed).await;
            anyhow::Ok(started?)
        })
        .await?;
    Ok((started?, runtime))
}

/// The threads of the sending half. Dropped inside another runtime, where it must not wait for them.
struct SendingRuntime(Option<Runtime>);

impl SendingRuntime {
    fn handle(&self) -> &Handle {
        self.0.as_ref().expect("there until it is dropped").handle()
    }
}

impl Drop for SendingRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Half of the processors for each half of the service.
pub fn threads_per_half() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().div_ceil(2))
}

/// A store whose statements have the CMS told of what ends, if it keeps the log.
fn telling(store: Store, cms: Option<&CmsSettings>) -> Store {
    match cms {
        Some(settings) if settings.deliveries.is_some() => {
            store.telling_cms_of(&settings.application)
        }
        _ => store,
    }
}

/// Ends the service if a part of it has ended that must not.
async fn end_with_a_part(stop: CancellationToken, failed: CancellationToken) {
    tokio::select! {
        () = failed.cancelled() => stop.cancel(),
        () = stop.cancelled() => {}
    }
}

/// Starts what is done for the CMS.
fn tell(
    cms: Box<Cms>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
    failed: &CancellationToken,
) -> JoinHandle<()> {
    let until = stop.clone();
    let work = async move {
        cms.run(until).await;
        cms.store.close().await;
    };
    tasks.spawn(watched("cms", work, stop, failed))
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

/// Waits until all that was submitted is answered, and what is being moved is moved. What is told to
/// the CMS has ended by then, or is told again.
async fn finish_batches(
    batching: JoinHandle<()>,
    moving: Option<JoinHandle<()>>,
    telling: Option<JoinHandle<()>>,
) {
    let give_up_at = tokio::time::Instant::now() + INGEST_END_TIMEOUT;
    if tokio::time::timeout_at(give_up_at, batching).await.is_err() {
        tracing::warn!("a batch could not be committed in time; its callers were not answered");
    }
    if let Some(moving) = moving
        && tokio::time::timeout_at(give_up_at, moving).await.is_err()
    {
        tracing::warn!("what is being moved from SQL could not be committed in time");
    }
    if let Some(telling) = telling
        && tokio::time::timeout_at(give_up_at, telling).await.is_err()
    {
        tracing::warn!("what is being told to the CMS could not be finished in time");
    }
}
