//! Logs, and every metric, each name declared once.

use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{
    domain::ErrorClass,
    store::queue::{Next, Recorded},
};

const BATCH_EVENTS: &str = "dispatcher_ingest_batch_events";
const BATCH_SECONDS: &str = "dispatcher_ingest_batch_seconds";
const EVENTS: &str = "dispatcher_events_total";
const BORN_CLAIMED: &str = "dispatcher_deliveries_born_claimed_total";
const LEFT_IN_QUEUE: &str = "dispatcher_deliveries_left_in_queue_total";
const CLAIMED: &str = "dispatcher_deliveries_claimed_total";
const ATTEMPTS: &str = "dispatcher_attempts_total";
const ATTEMPT_SECONDS: &str = "dispatcher_attempt_seconds";
const CONCLUDED: &str = "dispatcher_deliveries_concluded_total";
const LATE: &str = "dispatcher_late_results_total";
const IN_FLIGHT: &str = "dispatcher_requests_in_flight";
const HELD: &str = "dispatcher_deliveries_held";

/// Upper bounds of the buckets of durations, in seconds.
const SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Upper bounds of the buckets of batch sizes, in events.
const EVENTS_PER_BATCH: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Sends log lines to the standard error. `filter` is a directive list of `tracing`. A second call
/// in the same process changes nothing.
pub fn start_logging(filter: &str, format: LogFormat) {
    let filter = EnvFilter::builder().parse_lossy(filter);
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let _ = match format {
        LogFormat::Text => registry.with(layer.with_ansi(is_terminal)).try_init(),
        LogFormat::Json => registry.with(layer.json()).try_init(),
    };
}

/// Starts collecting metrics; the handle renders them. `None` if another service in this process
/// collects them already.
pub fn start_metrics() -> Option<PrometheusHandle> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)
        .and_then(|b| {
            b.set_buckets_for_metric(Matcher::Full(BATCH_EVENTS.to_owned()), EVENTS_PER_BATCH)
        })
        .ok()?
        .install_recorder()
        .ok()?;
    describe_histogram!(BATCH_EVENTS, "Events of one accepting transaction");
    describe_histogram!(BATCH_SECONDS, "Time from a batch's begin to its commit");
    describe_counter!(EVENTS, "Events by what became of their submission");
    describe_counter!(BORN_CLAIMED, "Deliveries sent straight from memory");
    describe_counter!(LEFT_IN_QUEUE, "New deliveries left for a claim");
    describe_counter!(CLAIMED, "Deliveries claimed from the queue");
    describe_counter!(ATTEMPTS, "Attempts by outcome: delivered, or a class of error");
    describe_histogram!(ATTEMPT_SECONDS, "Time of one exchange");
    describe_counter!(CONCLUDED, "Attempts by what followed: delivered, dead or retry");
    describe_counter!(LATE, "Results that came after their claim was lost");
    describe_gauge!(IN_FLIGHT, "Requests under way");
    describe_gauge!(HELD, "Deliveries that this process holds in memory");
    Some(handle)
}

/// A batch was stored, or not.
pub fn batch_committed(events: usize, took: Duration) {
    #[expect(clippy::cast_precision_loss, reason = "at most some hundreds")]
    histogram!(BATCH_EVENTS).record(events as f64);
    histogram!(BATCH_SECONDS).record(took.as_secs_f64());
}

/// A submission was answered: `accepted`, or why not.
pub fn submitted(result: &'static str) {
    counter!(EVENTS, "result" => result).increment(1);
}

/// Deliveries were handed over after their commit.
pub fn born_claimed(count: usize) {
    counter!(BORN_CLAIMED).increment(count as u64);
}

/// Deliveries were stored without an owner.
pub fn left_in_queue(count: usize) {
    counter!(LEFT_IN_QUEUE).increment(count as u64);
}

/// Deliveries were claimed.
pub fn claimed(count: usize) {
    counter!(CLAIMED).increment(count as u64);
}

/// An exchange ended.
pub fn attempted(class: Option<ErrorClass>, took: Duration) {
    let outcome = class.map_or("delivered", ErrorClass::as_str);
    counter!(ATTEMPTS, "outcome" => outcome).increment(1);
    histogram!(ATTEMPT_SECONDS).record(took.as_secs_f64());
}

/// It was decided what follows from an attempt.
pub fn concluded(next: &Next) {
    let next = match next {
        Next::End { state, .. } => state.as_str(),
        Next::RetryAfter(_) => "retry",
    };
    counter!(CONCLUDED, "next" => next).increment(1);
}

/// Results were written.
pub fn recorded(recorded: Recorded) {
    if recorded.late > 0 {
        counter!(LATE).increment(recorded.late as u64);
    }
}

/// How much this process holds, read when metrics are rendered.
pub fn load(in_flight: usize, held: usize) {
    #[expect(clippy::cast_precision_loss, reason = "at most some thousands")]
    {
        gauge!(IN_FLIGHT).set(in_flight as f64);
        gauge!(HELD).set(held as f64);
    }
}

/// Raises the limit of open files as far as it goes: every request under way is a socket, and the
/// usual default of 1,024 is below our own limits. Warns if it stays too low.
pub fn raise_open_files(in_flight_max: usize) {
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
}
