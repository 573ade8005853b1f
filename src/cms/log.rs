//! Tells the CMS what became of events: one document for each, created when the first of its targets
//! has ended, and brought up to date when another one has.
//!
//! What is to be told waits in the database ([`crate::store::cms_log`]). A step takes the next events,
//! asks the CMS once which documents it has of them, and creates or changes each. What it cannot do
//! stays in the queue, and is tried again after a pause; a document that is refused stands aside, so that
//! the others go on.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use chrono::SecondsFormat;
use futures_util::{StreamExt, stream::FuturesUnordered};
use http::StatusCode;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Cms, CmsError, DocumentId, Query};
use crate::{
    domain::EventId,
    store::{
        StoreError,
        cms_log::{Again, Due, EventLog},
    },
    telemetry,
};

/// The time between two looks while there is nothing to tell.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Events of one step: their ids stand in one URL.
const EVENTS_PER_STEP: usize = 100;
/// Targets of one document: the first ones. With more it also says how many there are.
const TARGETS_MAX: usize = 1_000;
/// Requests under way at a time.
const REQUESTS_MAX: usize = 8;
/// The pause after a failure of the CMS; it doubles up to the second value.
const FAILURE_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// When a refused document is tried again; it doubles up to the second value. `PAYLOAD_LOG_AGE_MAX`
/// ends that, after about 24 tries a day.
const REFUSED_PAUSE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(3_600));
/// A request that was given up may still come through, and overtake a newer one: its event is told once
/// more after so long.
const CERTAIN_AFTER: Duration = Duration::from_secs(120);
/// A step has the time of so many requests, and a lease lasts for one more, and this.
const STEP_REQUESTS: u32 = 3;
const LEASE_MARGIN: Duration = Duration::from_secs(5);
/// After so many steps in a row in which the CMS read well and wrote nothing, it is taken to be about
/// the documents.
const STUCK_STEPS_MAX: u32 = 5;
/// How long giving the lease up may take at the end.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

/// Tells until `stop`.
pub async fn run(cms: &Cms, collection: &str, stop: &CancellationToken) {
    let mut teller = Teller {
        cms,
        collection,
        owner: Uuid::from_bytes(rand::random()),
        pause: FAILURE_PAUSE.0,
        is_failing: false,
        stuck_steps: 0,
    };
    while !stop.is_cancelled() {
        let wait = match teller.look(stop).await {
            Ok(Went::On) => Duration::ZERO,
            Ok(Went::Idle) => LOOK_INTERVAL,
            Ok(Went::Wrong(error)) => teller.failed(&error),
            Err(error) => teller.failed(&error),
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
    // Whoever comes next need not wait for the lease's end.
    let left = tokio::time::timeout(LEAVE_TIMEOUT, cms.store.leave_cms_log(teller.owner)).await;
    if !matches!(left, Ok(Ok(()))) {
        tracing::debug!("the lease on the log of the CMS runs out by itself");
    }
}

struct Teller<'a> {
    cms: &'a Cms,
    collection: &'a str,
    owner: Uuid,
    /// The next pause after a failure.
    pause: Duration,
    is_failing: bool,
    stuck_steps: u32,
}

/// How a look went.
enum Went {
    /// There may be more.
    On,
    /// There is nothing to do, or another process does it.
    Idle,
    /// The CMS fails.
    Wrong(CmsError),
}

/// What became of a document.
type Told = Result<Written, CmsError>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    Created,
    Updated,
}

/// Whom an error is laid at the door of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Document,
    Cms,
    /// One cannot tell.
    Either,
}

impl Teller<'_> {
    async fn look(&mut self, stop: &CancellationToken) -> Result<Went, StoreError> {
        let store = &self.cms.store;
        let standing = store.cms_log_standing().await?;
        telemetry::cms_log_waits(standing);
        if standing.rows == 0 && !standing.is_again_due {
            return Ok(Went::Idle);
        }
        let (began, request) = (Instant::now(), self.cms.settings.timeout);
        let lease = request * (STEP_REQUESTS + 1) + LEASE_MARGIN;
        if !store.lease_cms_log(self.owner, lease).await? {
            return Ok(Went::Idle);
        }
        let due = store.next_of_cms_log(EVENTS_PER_STEP).await?;
        let targets_max = i64::try_from(TARGETS_MAX).unwrap_or(i64::MAX);
        let logs = store.event_logs(&due, targets_max).await?;
        let told = self.tell(&logs, began + request * STEP_REQUESTS, stop).await;
        let told = match told {
            Ok(told) => told,
            Err(error) => {
                self.stuck_steps = 0;
                return Ok(Went::Wrong(error));
            }
        };
        let (done, again, error) = self.weigh(due, &logs, told);
        store.note_cms_log(&done, &again).await?;
        if let Some(error) = error {
            return Ok(Went::Wrong(error));
        }
        if std::mem::take(&mut self.is_failing) {
            tracing::info!("the CMS is told again");
        }
        self.pause = FAILURE_PAUSE.0;
        Ok(Went::On)
    }

    /// Writes the documents of these events, and starts nothing after a failure that is not certainly
    /// the document's, nor after `stop`. An error if the CMS does not say which it has. What was not
    /// begun is missing from the answer; what was given up at `deadline` is unclear.
    async fn tell(
        &self,
        logs: &[EventLog],
        deadline: Instant,
        stop: &CancellationToken,
    ) -> Result<HashMap<EventId, Told>, CmsError> {
        if logs.is_empty() {
            return Ok(HashMap::new());
        }
        let known = self.find(logs.iter().map(|log| log.event)).await?;
        let (mut waiting, mut under_way) = (logs.iter(), FuturesUnordered::new());
        let (mut begun, mut told) = (Vec::new(), HashMap::new());
        let mut goes_on = true;
        loop {
            goes_on &= !stop.is_cancelled() && Instant::now() < deadline;
            while goes_on
                && under_way.len() < REQUESTS_MAX
                && let Some(log) = waiting.next()
            {
                begun.push(log.event);
                under_way.push(self.write(log, known.get(&log.event.to_string())));
            }
            let next = tokio::time::timeout_at(deadline.into(), under_way.next()).await;
            let Ok(Some((event, outcome))) = next else { break };
            goes_on &= !outcome.as_ref().is_err_and(|error| fault(error) != Fault::Document);
            told.insert(event, outcome);
        }
        for event in begun {
            told.entry(event).or_insert_with(|| {
                Err(CmsError::Unclear("the time for this step was over".to_owned()))
            });
        }
        Ok(told)
    }

    /// The ids of the documents that there are of events, by the events' ids.
    async fn find(
        &self,
        events: impl Iterator<Item = EventId>,
    ) -> Result<HashMap<String, DocumentId>, CmsError> {
        let ids: Vec<String> = events.map(|event| event.to_string()).collect();
        let query = Query::all()
            .matching("dispatchId", "in", &ids.join(","))
            .select("dispatchId")
            .sort("createdAt")
            // There is one of each where the field is unique, as it has to be.
            .limit(10 * EVENTS_PER_STEP);
        let page = self.cms.client.list(self.collection, &query).await?;
        let mut known = HashMap::new();
        for document in page.documents {
            if let Some(id) = document.fields.get("dispatchId").and_then(Value::as_str) {
                known.entry(id.to_owned()).or_insert(document.id);
            }
        }
        Ok(known)
    }

    /// Changes the document of an event, or creates it.
    async fn write(&self, log: &EventLog, known: Option<&DocumentId>) -> (EventId, Told) {
        (log.event, self.try_to_write(log, known).await)
    }

    async fn try_to_write(&self, log: &EventLog, known: Option<&DocumentId>) -> Told {
        let (client, fields) = (&self.cms.client, document(log));
        let id = if let Some(id) = known {
            id.clone()
        } else {
            match client.create(self.collection, &fields).await {
                Ok(_) => return Ok(Written::Created),
                // It may be there by now: a request that was given up has come through.
                Err(error) if fault(&error) == Fault::Document => {
                    let found = self.find(std::iter::once(log.event)).await?;
                    let id = found.into_values().next();
                    id.ok_or(error)?
                }
                Err(error) => return Err(error),
            }
        };
        client.update(self.collection, &id, &fields).await.map(|_| Written::Updated)
    }

    /// What follows from what became of the documents: what is done, what is told again, and the error
    /// for which there is to be a pause.
    fn weigh(
        &mut self,
        due: Vec<Due>,
        logs: &[EventLog],
        mut told: HashMap<EventId, Told>,
    ) -> (Vec<Due>, Vec<Again>, Option<CmsError>) {
        let there: HashSet<EventId> = logs.iter().map(|log| log.event).collect();
        let has_written = told.values().any(Result::is_ok);
        let could_be_either = |error: &CmsError| fault(error) == Fault::Either;
        let is_stuck = !has_written
            && told.values().filter_map(|told| told.as_ref().err()).any(could_be_either);
        self.stuck_steps = if is_stuck { self.stuck_steps + 1 } else { 0 };
        let is_of_documents = has_written || self.stuck_steps > STUCK_STEPS_MAX;
        if self.stuck_steps > STUCK_STEPS_MAX {
            self.stuck_steps = 0;
        }
        let (mut done, mut again) = (Vec::new(), Vec::new());
        let (mut failure, mut refusals, mut gone) = (None, Vec::new(), 0);
        for one in due {
            let Some(outcome) = told.remove(&one.event) else {
                if !there.contains(&one.event) {
                    gone += 1;
                    done.push(one);
                }
                continue;
            };
            let error = match outcome {
                Ok(written) => {
                    telemetry::cms_log_told(written == Written::Created);
                    done.push(one);
                    continue;
                }
                Err(error) => error,
            };
            let is_refused = match fault(&error) {
                Fault::Document => true,
                Fault::Either => is_of_documents,
                Fault::Cms => false,
            };
            let after = if is_refused {
                Some(refused_pause(one.tries))
            } else {
                is_unclear(&error).then_some(CERTAIN_AFTER)
            };
            again.extend(after.map(|after| Again {
                event: one.event,
                application: one.application,
                tries: one.tries.unwrap_or(0).saturating_add(1),
                after,
            }));
            if is_refused {
                telemetry::cms_log_failed("refused");
                refusals.push((one.event, error));
                done.push(one);
            } else {
                telemetry::cms_log_failed(error.class());
                failure.get_or_insert(error);
            }
        }
        if let Some((event, error)) = refusals.first() {
            let count = refusals.len();
            tracing::warn!(%event, %error, count, "the CMS refuses documents; they are tried again later");
        }
        if gone > 0 {
            telemetry::cms_log_gone(gone);
            tracing::warn!(events = gone, "the CMS is never told of these: they are gone");
        }
        (done, again, failure)
    }

    /// Notes a failure, and tells how long to wait.
    fn failed(&mut self, error: &(dyn std::error::Error + Send + Sync)) -> Duration {
        // Every minute of an outage would be a line.
        if !std::mem::replace(&mut self.is_failing, true) {
            tracing::warn!(%error, "the CMS is not told of results for now");
        }
        let wait = self.pause.mul_f64(rand::random_range(0.75..1.0));
        self.pause = (self.pause * 2).min(FAILURE_PAUSE.1);
        wait
    }
}

fn fault(error: &CmsError) -> Fault {
    match error {
        CmsError::Status { status, .. } => match *status {
            // Not found are documents that somebody has just deleted: the collection was read before.
            StatusCode::BAD_REQUEST
            | StatusCode::NOT_FOUND
            | StatusCode::CONFLICT
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNPROCESSABLE_ENTITY => Fault::Document,
            StatusCode::INTERNAL_SERVER_ERROR => Fault::Either,
            _ => Fault::Cms,
        },
        CmsError::Unclear(_) | CmsError::Nonsense(_) => Fault::Either,
        CmsError::Unreachable(_) => Fault::Cms,
    }
}

/// Whether the request may still come through.
fn is_unclear(error: &CmsError) -> bool {
    matches!(error, CmsError::Unclear(_) | CmsError::Nonsense(_))
}

fn refused_pause(tries: Option<i32>) -> Duration {
    let doublings = u32::try_from(tries.unwrap_or(0)).unwrap_or(0).min(16);
    (REFUSED_PAUSE.0 * 2_u32.pow(doublings)).min(REFUSED_PAUSE.1)
}

/// The document of an event, as far as it has come.
fn document(log: &EventLog) -> Value {
    let targets: Vec<Value> = log
        .targets
        .iter()
        .map(|target| {
            let mut fields = json!({
                "url": target.url,
                "status": target.status(),
                "code": target.response_status,
                "durationMs": target.duration_ms,
            });
            if let Some((class, message)) = target.error() {
                fields["error"] = format!("{class}: {message}").into();
            }
            fields
        })
        .collect();
    let mut document = json!({
        "dispatchId": log.event,
        "event": log.event_type,
        "targets": targets,
        "createdAt": log.created_at.to_rfc3339_opts(SecondsFormat::Millis, true),
    });
    if usize::try_from(log.target_count).unwrap_or(usize::MAX) > log.targets.len() {
        document["targetCount"] = log.target_count.into();
    }
    document
}
