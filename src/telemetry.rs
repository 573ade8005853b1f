//! Logs, and every metric, each name declared once.

mod outage;
mod refusal;
mod seldom;

use std::{sync::LazyLock, time::Duration};

use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{
    EnvFilter, filter::filter_fn, layer::SubscriberExt, util::SubscriberInitExt,
};

use crate::{
    domain::{DeliveryState, ErrorClass},
    store::{
        cms_log::Standing,
        queue::{Next, Recorded},
    },
};

const BATCH_EVENTS: &str = "dispatcher_ingest_batch_events";
const BATCH_SECONDS: &str = "dispatcher_ingest_batch_seconds";
const EVENTS: &str = "dispatcher_events_total";
const ASTRAY: &str = "dispatcher_deliveries_astray_total";
const BORN_CLAIMED: &str = "dispatcher_deliveries_born_claimed_total";
const LEFT_IN_QUEUE: &str = "dispatcher_deliveries_left_in_queue_total";
const CLAIMED: &str = "dispatcher_deliveries_claimed_total";
const REPLAYED: &str = "dispatcher_deliveries_replayed_total";
const ATTEMPTS: &str = "dispatcher_attempts_total";
const ATTEMPT_SECONDS: &str = "dispatcher_attempt_seconds";
const CONCLUDED: &str = "dispatcher_deliveries_concluded_total";
const LATE: &str = "dispatcher_late_results_total";
const IN_FLIGHT: &str = "dispatcher_requests_in_flight";
const HELD: &str = "dispatcher_deliveries_held";
const OUTBOX_MOVED: &str = "dispatcher_outbox_moved_total";
const OUTBOX_REFUSED: &str = "dispatcher_outbox_refused_total";
const CMS_LOG_ROWS: &str = "dispatcher_cms_log_rows";
const CMS_LOG_WAITS: &str = "dispatcher_cms_log_oldest_seconds";
const CMS_LOG_AGAIN: &str = "dispatcher_cms_log_again";
const CMS_LOG_DOCUMENTS: &str = "dispatcher_cms_log_documents_total";
const CMS_LOG_FAILURES: &str = "dispatcher_cms_log_failures_total";
const CMS_LOG_DROPPED: &str = "dispatcher_cms_log_dropped_total";
const OUTBOX_WAITS: &str = "dispatcher_outbox_oldest_seconds";
const HTTP_CONNECTIONS: &str = "dispatcher_http_connections";
const HTTP_REFUSALS: &str = "dispatcher_http_refusals_total";
const CMS_LOOKS: &str = "dispatcher_cms_looks_total";
const CMS_REFUSED: &str = "dispatcher_cms_documents_refused";
const CLOCK_JUMP: &str = "dispatcher_database_clock_jump_seconds";
const CLOCK_JUMPS: &str = "dispatcher_database_clock_jumps_total";
const CLOCK_OFFSET: &str = "dispatcher_database_clock_offset_seconds";

/// Upper bounds of the buckets of durations, in seconds.
const SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Upper bounds of the buckets of batch sizes, in events.
const EVENTS_PER_BATCH: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

pub use outage::statement_failed;
pub use refusal::Refusal;
pub use seldom::Seldom;

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged of others unless somebody asks for more: of MCP no slip of a client's.
const QUIET: &str = "rmcp=error";
/// Libraries that log whole messages, payloads and credentials included, below warnings. Whatever
/// RUST_LOG says, these lines are not written.
const TALKATIVE: [&str; 1] = ["rmcp"];

/// Whether a log line may be written at all.
fn may_be_logged(metadata: &tracing::Metadata<'_>) -> bool {
    let is_of = |library: &str| {
        metadata
            .target()
            .strip_prefix(library)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    *metadata.level() <= tracing::Level::WARN || !TALKATIVE.iter().any(|library| is_of(library))
}

/// Sends log lines to the standard error. `filter` is a directive list of `tracing`. A second call
/// in the same process changes nothing.
pub fn start_logging(filter: &str, format: LogFormat) {
    let filter = EnvFilter::builder().parse_lossy(format!("{QUIET},{filter}"));
    let registry = tracing_subscriber::registry().with(filter).with(filter_fn(may_be_logged));
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let _ = match format {
        LogFormat::Text => registry.with(layer.with_ansi(is_terminal)).try_init(),
        LogFormat::Json => registry.with(layer.json()).try_init(),
    };
}

/// Collects for the whole process, from the first use on.
static PROMETHEUS: LazyLock<PrometheusHandle> = LazyLock::new(|| {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)
        .and_then(|builder| {
            builder.set_buckets_for_metric(Matcher::Full(BATCH_EVENTS.to_owned()), EVENTS_PER_BATCH)
        })
        .expect("the buckets are not empty")
        .install_recorder()
        .expect("nothing else in this process collects metrics")
});

/// Every metric, looked up once: a look-up by name costs more than the count itself.
struct Metrics {
    batch_events: Histogram,
    batch_seconds: Histogram,
    accepted: Counter,
    rejected: Counter,
    astray: Counter,
    born_claimed: Counter,
    left_in_queue: Counter,
    claimed: Counter,
    replayed: Counter,
    routed_again: Counter,
    delivered: Counter,
    /// By class, in the order of [`ErrorClass::ALL`].
    failed: [Counter; ErrorClass::ALL.len()],
    attempt_seconds: Histogram,
    ended_delivered: Counter,
    ended_dead: Counter,
    ended_cancelled: Counter,
    retried: Counter,
    late: Counter,
    in_flight: Gauge,
    held: Gauge,
    outbox_moved: Counter,
    outbox_refused: Counter,
    outbox_waits: Gauge,
    cms_log_rows: Gauge,
    cms_log_waits: Gauge,
    cms_log_again: Gauge,
    cms_log_created: Counter,
    cms_log_updated: Counter,
    /// By class, in the order of [`CMS_FAILURES`].
    cms_log_failed: [Counter; CMS_FAILURES.len()],
    cms_log_too_old: Counter,
    cms_log_gone: Counter,
    clock_jump: Gauge,
    clock_jumps: Counter,
    clock_offset: Gauge,
    http_connections: Gauge,
    /// In the order of [`Refusal::ALL`].
    http_refused: [Counter; Refusal::ALL.len()],
}

/// How telling the CMS fails: an event's document is refused, or a request fails.
const CMS_FAILURES: [&str; 5] = ["refused", "status", "unreachable", "unclear", "nonsense"];

static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    LazyLock::force(&PROMETHEUS);
    describe_histogram!(BATCH_EVENTS, "Events of one accepting transaction");
    describe_histogram!(BATCH_SECONDS, "Time from a batch's begin to its commit");
    describe_counter!(EVENTS, "Submissions by result: accepted or rejected");
    describe_counter!(BORN_CLAIMED, "Deliveries sent straight from memory");
    describe_counter!(ASTRAY, "Deliveries released unsent: a limit makes them another process's");
    describe_counter!(LEFT_IN_QUEUE, "New deliveries left for a claim");
    describe_counter!(CLAIMED, "Deliveries claimed from the queue");
    describe_counter!(
        REPLAYED,
        "Deliveries queued by replays, of what had ended or of events that were unrouted"
    );
    describe_counter!(ATTEMPTS, "Attempts by outcome: delivered, or a class of error");
    describe_histogram!(ATTEMPT_SECONDS, "Time of one exchange");
    describe_counter!(CONCLUDED, "Attempts by what followed: delivered, dead, cancelled or retry");
    describe_counter!(LATE, "Results that came after their claim was lost");
    describe_gauge!(IN_FLIGHT, "Requests under way");
    describe_gauge!(HELD, "Deliveries that this process holds in memory");
    describe_counter!(OUTBOX_MOVED, "Events from SQL that were moved to all others");
    describe_counter!(OUTBOX_REFUSED, "Events from SQL that were put aside");
    describe_counter!(CMS_LOOKS, "Looks at all subscriptions of the CMS, by what came of them");
    describe_gauge!(CMS_REFUSED, "Documents that the last look of this process refused");
    describe_gauge!(OUTBOX_WAITS, "Age of the oldest event from SQL that was seen waiting");
    describe_gauge!(HTTP_CONNECTIONS, "Connections of clients");
    describe_counter!(HTTP_REFUSALS, "Requests and connections refused or cut off, by reason");
    describe_cms_log();
    describe_gauge!(CLOCK_JUMP, "Jump of the database's clock that is in question; 0: none");
    describe_counter!(CLOCK_JUMPS, "Jumps of the database's clock");
    describe_gauge!(CLOCK_OFFSET, "Database's clock less that of this machine");
    Metrics {
        batch_events: histogram!(BATCH_EVENTS),
        batch_seconds: histogram!(BATCH_SECONDS),
        accepted: counter!(EVENTS, "result" => "accepted"),
        rejected: counter!(EVENTS, "result" => "rejected"),
        astray: counter!(ASTRAY),
        born_claimed: counter!(BORN_CLAIMED),
        left_in_queue: counter!(LEFT_IN_QUEUE),
        claimed: counter!(CLAIMED),
        replayed: counter!(REPLAYED, "of" => "ended"),
        routed_again: counter!(REPLAYED, "of" => "unrouted"),
        delivered: counter!(ATTEMPTS, "outcome" => "delivered"),
        failed: ErrorClass::ALL.map(|class| counter!(ATTEMPTS, "outcome" => class.as_str())),
        attempt_seconds: histogram!(ATTEMPT_SECONDS),
        ended_delivered: counter!(CONCLUDED, "next" => "delivered"),
        ended_dead: counter!(CONCLUDED, "next" => "dead"),
        ended_cancelled: counter!(CONCLUDED, "next" => "cancelled"),
        retried: counter!(CONCLUDED, "next" => "retry"),
        late: counter!(LATE),
        in_flight: gauge!(IN_FLIGHT),
        held: gauge!(HELD),
        outbox_moved: counter!(OUTBOX_MOVED),
        outbox_refused: counter!(OUTBOX_REFUSED),
        outbox_waits: gauge!(OUTBOX_WAITS),
        cms_log_rows: gauge!(CMS_LOG_ROWS),
        cms_log_waits: gauge!(CMS_LOG_WAITS),
        cms_log_again: gauge!(CMS_LOG_AGAIN),
        cms_log_created: counter!(CMS_LOG_DOCUMENTS, "result" => "created"),
        cms_log_updated: counter!(CMS_LOG_DOCUMENTS, "result" => "updated"),
        cms_log_failed: CMS_FAILURES.map(|class| counter!(CMS_LOG_FAILURES, "class" => class)),
        cms_log_too_old: counter!(CMS_LOG_DROPPED, "because" => "age"),
        cms_log_gone: counter!(CMS_LOG_DROPPED, "because" => "gone"),
        clock_jump: gauge!(CLOCK_JUMP),
        clock_jumps: counter!(CLOCK_JUMPS),
        clock_offset: gauge!(CLOCK_OFFSET),
        http_connections: gauge!(HTTP_CONNECTIONS),
        http_refused: Refusal::ALL.map(|one| counter!(HTTP_REFUSALS, "reason" => one.as_str())),
    }
});

fn describe_cms_log() {
    describe_gauge!(CMS_LOG_ROWS, "Results that the CMS is to be told of, at most");
    describe_gauge!(CMS_LOG_WAITS, "Age of the oldest result that the CMS is to be told of");
    describe_gauge!(CMS_LOG_AGAIN, "Events that the CMS is told of again later");
    describe_counter!(CMS_LOG_DOCUMENTS, "Documents written to the CMS: created or updated");
    describe_counter!(CMS_LOG_FAILURES, "What the CMS did not do, by class");
    describe_counter!(CMS_LOG_DROPPED, "What the CMS is not told of any more: its age, or gone");
}

/// How often [`fold_metrics`] must be called.
pub const FOLD_INTERVAL: Duration = Duration::from_secs(5);

/// Folds the samples of the histograms into their buckets; without it they would grow for ever.
pub fn fold_metrics() {
    PROMETHEUS.run_upkeep();
}

/// All metrics in the text format of Prometheus.
pub fn render_metrics() -> String {
    PROMETHEUS.render()
}

/// A batch was stored, or not.
pub fn batch_committed(events: usize, took: Duration) {
    METRICS.batch_events.record(u32::try_from(events).unwrap_or(u32::MAX));
    METRICS.batch_seconds.record(took);
}

/// A submission was answered.
pub fn submitted(is_accepted: bool) {
    if is_accepted { &METRICS.accepted } else { &METRICS.rejected }.increment(1);
}

/// Deliveries were handed over after their commit.
pub fn born_claimed(count: usize) {
    METRICS.born_claimed.increment(count as u64);
}

/// Deliveries in memory were given back: another process sees to their lane, or they missed the time
/// that a rate gave them.
pub fn went_astray(count: usize) {
    METRICS.astray.increment(count as u64);
}

/// Deliveries were stored without an owner.
pub fn left_in_queue(count: usize) {
    METRICS.left_in_queue.increment(count as u64);
}

/// Deliveries were claimed.
pub fn claimed(count: usize) {
    METRICS.claimed.increment(count as u64);
}

/// A replay queued deliveries that had ended.
pub fn replayed(count: u64) {
    METRICS.replayed.increment(count);
}

/// A replay made deliveries of events that had reached nobody.
pub fn routed_again(count: u64) {
    METRICS.routed_again.increment(count);
}

/// All subscriptions of the CMS were looked at, or why not: a closed set of names.
pub fn cms_looked(outcome: &'static str) {
    counter!(CMS_LOOKS, "outcome" => outcome).increment(1);
}

/// So many documents were refused.
pub fn cms_refused(documents: usize) {
    gauge!(CMS_REFUSED).set(f64::from(u32::try_from(documents).unwrap_or(u32::MAX)));
}

/// An exchange ended.
pub fn attempted(class: Option<ErrorClass>, took: Duration) {
    match class {
        None => &METRICS.delivered,
        Some(class) => &METRICS.failed[class as usize],
    }
    .increment(1);
    METRICS.attempt_seconds.record(took);
}

/// It was decided what follows from an attempt.
pub fn concluded(next: &Next) {
    match next {
        // Moved aside, and counted when it ends.
        Next::Park => return,
        Next::RetryAfter(_) | Next::Postpone(_) | Next::Resume => &METRICS.retried,
        Next::End { state: DeliveryState::Delivered, .. } => &METRICS.ended_delivered,
        Next::End { state: DeliveryState::Cancelled, .. } => &METRICS.ended_cancelled,
        Next::End { .. } => &METRICS.ended_dead,
    }
    .increment(1);
}

/// Results were written.
pub fn recorded(recorded: Recorded) {
    METRICS.late.increment(recorded.late as u64);
}

/// A client is connected, until this is dropped.
pub fn connected() -> Connected {
    METRICS.http_connections.increment(1.0);
    Connected(())
}

/// See [`connected`].
#[derive(Debug)]
pub struct Connected(());

impl Drop for Connected {
    fn drop(&mut self) {
        METRICS.http_connections.decrement(1.0);
    }
}

/// A client was refused, or cut off.
pub fn refused(refusal: Refusal) {
    METRICS.http_refused[refusal as usize].increment(1);
}

/// How much this process holds, told when metrics are rendered.
pub fn load(in_flight: usize, held: usize) {
    METRICS.in_flight.set(u32::try_from(in_flight).unwrap_or(u32::MAX));
    METRICS.held.set(u32::try_from(held).unwrap_or(u32::MAX));
}

/// Events from SQL were stored.
pub fn outbox_moved(count: usize) {
    METRICS.outbox_moved.increment(count as u64);
}

/// An event from SQL was put aside.
pub fn outbox_refused() {
    METRICS.outbox_refused.increment(1);
}

/// How long the oldest event from SQL waits, as of the last look.
pub fn outbox_waits(seconds: f64) {
    METRICS.outbox_waits.set(seconds);
}

/// Jump of the database's clock that is in question, in seconds.
pub fn clock_jump(seconds: f64) {
    METRICS.clock_jump.set(seconds);
}

/// The database's clock has jumped.
pub fn clock_jumped() {
    METRICS.clock_jumps.increment(1);
}

/// Database's clock less that of this machine, in seconds.
pub fn clock_offset(seconds: f64) {
    METRICS.clock_offset.set(seconds);
}

/// What waits to be told to the CMS, as of the last look.
pub fn cms_log_waits(standing: Standing) {
    METRICS.cms_log_rows.set(u32::try_from(standing.rows).unwrap_or(u32::MAX));
    METRICS.cms_log_waits.set(standing.oldest_seconds);
    METRICS.cms_log_again.set(u32::try_from(standing.again).unwrap_or(u32::MAX));
}

/// A document was written to the CMS.
pub fn cms_log_told(is_new: bool) {
    if is_new { &METRICS.cms_log_created } else { &METRICS.cms_log_updated }.increment(1);
}

/// The CMS did not do what it was asked for; `class` is one of its errors', or `refused`.
pub fn cms_log_failed(class: &str) {
    if let Some(index) = CMS_FAILURES.iter().position(|known| *known == class) {
        METRICS.cms_log_failed[index].increment(1);
    }
}

/// What the CMS was to be told of has waited for too long.
pub fn cms_log_too_old(count: u64) {
    METRICS.cms_log_too_old.increment(count);
}

/// What the CMS was to be told of is gone.
pub fn cms_log_gone(count: usize) {
    METRICS.cms_log_gone.increment(count as u64);
}

/// Raises the limit of open files as far as it goes: every request under way and every client is a
/// socket, and the usual default of 1,024 is below our own limits. Tells how many clients there may
/// be then: half of what can be open, so that what is sent and what Postgres is asked find files
/// whatever clients do. Warns if that is less than is asked for.
pub fn raise_open_files(in_flight_max: usize, connections_max: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if setrlimit(Resource::Nofile, raised).is_err() {
        tracing::debug!("the limit of open files could not be raised");
    }
    let current = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if current < 2 * in_flight_max as u64 {
        tracing::warn!(
            open_files = current,
            in_flight_max,
            "the limit of open files is low for IN_FLIGHT_MAX: connections may fail"
        );
    }
    let affordable = usize::try_from(current / 2).unwrap_or(usize::MAX);
    if affordable < connections_max {
        tracing::warn!(
            open_files = current,
            connections_max = affordable,
            "the limit of open files is low for CONNECTIONS_MAX: half of it counts instead"
        );
    }
    affordable.min(connections_max)
}
