//! Counts what is recorded, by lane and minute, and adds it to the database every second or so: what
//! a crash takes are the figures of that second, and no deliveries. A subscription of which nothing
//! but failures was recorded for long is disabled here.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use chrono::{DateTime, SubsecRound, Timelike, Utc};
use uuid::Uuid;

use super::{Shared, disable};
use crate::{
    domain::{
        ApplicationId, DeliveryState, SubscriptionId,
        outcome::Fault,
        routing::{Place, Snapshot},
        statistics::{Counts, LastFailure},
        subscription::DisabledBecause,
    },
    store::{
        Store, StoreError,
        queue::{AttemptRecord, Finished, Next},
        statistics::PeriodOfLane,
    },
};

/// The time between two writes: of what is one, since with more lanes it is written in portions.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// How many minutes of lanes one statement writes, and then hours, and the time between two of them:
/// five hundred a second, and not at one blow, which others would feel.
const MINUTES_PER_STATEMENT: usize = 100;
const PORTION_PAUSE: Duration = Duration::from_millis(200);
/// How many minutes of lanes may wait for a database that is away; beyond that none are added.
const MINUTES_WAITING_MAX: usize = 100_000;
/// How often it is asked for how long a subscription has failed: so many times in the time that it
/// may, within these bounds.
const ASKS_PER_PATIENCE: u32 = 20;
const ASK_INTERVAL: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(600));
/// How many subscriptions are asked about after a portion, the others after the next ones.
const ASKS_PER_PORTION: usize = 20;
/// How many subscriptions it is remembered of when they were asked about, or that they are to be.
const ASKED_MAX: usize = 100_000;

/// What was recorded and is not written yet.
#[derive(Debug, Default)]
pub struct Statistics(Mutex<Waiting>);

/// The minute of a lane, or of an application.
type Key = (Uuid, DateTime<Utc>);

#[derive(Debug, Default)]
struct Waiting {
    counted: HashMap<Key, Entry>,
    /// What was counted before and is written first.
    next: Vec<(Key, Entry)>,
}

#[derive(Debug, Default)]
struct Entry {
    counts: Counts,
    /// Of a subscription's lane.
    subscription: Option<(ApplicationId, SubscriptionId)>,
}

/// What came of writing a portion.
#[derive(Debug, Default)]
pub struct Portion {
    /// There is more to be written at once.
    pub has_more: bool,
    /// Subscriptions of which nothing but failures was written.
    pub failing: Vec<(ApplicationId, SubscriptionId)>,
}

impl Statistics {
    /// Counts results that were recorded.
    pub fn count(&self, batch: &[Finished], now: DateTime<Utc>) {
        let minute = minute_of(now);
        let mut waiting = self.waiting();
        for one in batch {
            for lane in [one.lane.uuid(), one.application.uuid()] {
                let is_full = waiting.len() >= MINUTES_WAITING_MAX;
                if is_full && !waiting.counted.contains_key(&(lane, minute)) {
                    continue;
                }
                let entry = waiting.counted.entry((lane, minute)).or_default();
                count_into(&mut entry.counts, one);
                if lane == one.lane.uuid() {
                    entry.subscription = one.subscription.map(|id| (one.application, id));
                }
            }
        }
    }

    /// Writes what was counted, until that fails.
    pub async fn write_all(&self, store: &Store) {
        while self.write_portion(store).await.has_more {}
    }

    /// Writes a portion of what was counted: all that was before anything that came later.
    pub async fn write_portion(&self, store: &Store) -> Portion {
        let portion = self.waiting().take(MINUTES_PER_STATEMENT);
        if portion.is_empty() {
            return Portion::default();
        }
        let (mut minutes, mut failing) = (Vec::new(), Vec::new());
        for ((lane, minute), entry) in portion {
            if entry.counts.failed > 0 && entry.counts.last_delivered_at.is_none() {
                failing.extend(entry.subscription);
            }
            minutes.push(PeriodOfLane { lane, begins_at: minute, counts: entry.counts });
        }
        if let Err(error) = store.add_statistics(&mut minutes).await {
            crate::telemetry::statement_failed(&error, "statistics were not written");
            // What the database refuses as such, it would refuse again.
            if error.is_outage() {
                self.waiting().put_back(minutes);
            }
            return Portion::default();
        }
        Portion { has_more: !self.waiting().next.is_empty(), failing }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn len(&self) -> usize {
        self.counted.len() + self.next.len()
    }

    fn take(&mut self, count_max: usize) -> Vec<(Key, Entry)> {
        if self.next.is_empty() {
            self.next = self.counted.drain().collect();
        }
        self.next.split_off(self.next.len().saturating_sub(count_max))
    }

    /// What could not be written, back among what is counted.
    fn put_back(&mut self, minutes: Vec<PeriodOfLane>) {
        for one in minutes {
            let entry = self.counted.entry((one.lane, one.begins_at)).or_default();
            entry.counts.merge(one.counts);
        }
    }
}

fn minute_of(at: DateTime<Utc>) -> DateTime<Utc> {
    at.trunc_subsecs(0).with_second(0).unwrap_or(at)
}

fn count_into(counts: &mut Counts, one: &Finished) {
    // A fault of this service counts neither for nor against the receiver.
    let is_own_fault = |attempt: &&AttemptRecord| {
        attempt.failure.as_ref().is_some_and(|failure| failure.fault == Fault::Service)
    };
    if let Some(attempt) = one.attempt.as_ref().filter(|attempt| !is_own_fault(attempt)) {
        let failure = attempt.failure.as_ref().map(|failure| LastFailure {
            at: attempt.started_at,
            class: failure.class.as_str(),
            message: failure.message.clone(),
            status: attempt.response.as_ref().map(|response| response.status),
        });
        counts.add_attempt(attempt.started_at, attempt.duration, failure);
    }
    let ended = match one.next {
        Next::End { state: DeliveryState::Delivered, .. } => &mut counts.delivered,
        Next::End { state: DeliveryState::Cancelled, .. } => &mut counts.cancelled,
        Next::End { .. } => &mut counts.dead,
        Next::RetryAfter(_) | Next::Postpone(_) | Next::Resume | Next::Park => return,
    };
    *ended = ended.saturating_add(1);
}

/// Writes until the end.
pub async fn run(shared: Arc<Shared>) {
    tokio::select! {
        () = shared.stop.cancelled() => {}
        () = writes(&shared) => {}
    }
}

async fn writes(shared: &Shared) {
    let mut asks = Asks::default();
    loop {
        let portion = shared.statistics.write_portion(&shared.store).await;
        asks.note(shared, portion.failing);
        let next = asks.next();
        // Else each would ask for its application by itself.
        let applications = next.iter().map(|&(application, _)| application);
        shared.routes.prepare(&shared.store, applications).await;
        for (application, id) in next {
            if let Err(error) = look_after(shared, &mut asks, application, id).await {
                tracing::debug!(%error, subscription = %id, "asked about at its next failure");
            }
        }
        let pause = if portion.has_more { PORTION_PAUSE } else { WRITE_INTERVAL };
        tokio::time::sleep(pause).await;
    }
}

/// Of which failing subscriptions it is asked, for how long they have failed.
#[derive(Debug, Default)]
struct Asks {
    /// When they were asked about.
    asked: HashMap<SubscriptionId, Instant>,
    /// Those to be asked about, each once.
    waiting: VecDeque<(ApplicationId, SubscriptionId)>,
    waits: HashSet<SubscriptionId>,
}

impl Asks {
    /// Notes subscriptions that fail, unless they were asked about lately.
    fn note(&mut self, shared: &Shared, failing: Vec<(ApplicationId, SubscriptionId)>) {
        if self.asked.len() >= ASKED_MAX {
            self.asked.retain(|_, at| at.elapsed() < ASK_INTERVAL.1);
        }
        for (application, id) in failing {
            let known = shared.routes.known(application);
            let is_due = known.is_none_or(|snapshot| {
                patience(shared, &snapshot, id).is_some_and(|patience| self.is_due(id, patience))
            });
            if is_due && self.waiting.len() < ASKED_MAX && self.waits.insert(id) {
                self.waiting.push_back((application, id));
            }
        }
    }

    /// Takes those that are next.
    fn next(&mut self) -> Vec<(ApplicationId, SubscriptionId)> {
        let count = self.waiting.len().min(ASKS_PER_PORTION);
        let next: Vec<_> = self.waiting.drain(..count).collect();
        for (_, id) in &next {
            self.waits.remove(id);
        }
        next
    }

    fn is_due(&self, id: SubscriptionId, patience: Duration) -> bool {
        let pause = (patience / ASKS_PER_PATIENCE).clamp(ASK_INTERVAL.0, ASK_INTERVAL.1);
        self.asked.len() < ASKED_MAX && self.asked.get(&id).is_none_or(|at| at.elapsed() >= pause)
    }
}

/// For how long a subscription may do nothing but fail, if there is a bound.
fn patience(shared: &Shared, snapshot: &Snapshot, id: SubscriptionId) -> Option<Duration> {
    let Some(Place::Subscription(subscription)) = snapshot.subscription(id) else { return None };
    let patience = subscription.disable_after.or(shared.settings.disable_after);
    patience.filter(|patience| !patience.is_zero())
}

/// Disables a subscription of which nothing but failures was recorded for as long as it may.
async fn look_after(
    shared: &Shared,
    asks: &mut Asks,
    application: ApplicationId,
    id: SubscriptionId,
) -> Result<(), StoreError> {
    let Some(snapshot) = shared.routes.fresh(&shared.store, application).await? else {
        return Ok(());
    };
    let Some(Place::Subscription(subscription)) = snapshot.subscription(id) else { return Ok(()) };
    let Some(patience) = patience(shared, &snapshot, id) else { return Ok(()) };
    if !asks.is_due(id, patience) {
        return Ok(());
    }
    asks.asked.insert(id, Instant::now());
    let failing_for = shared.store.failing_for(id).await?;
    if failing_for.is_none_or(|failing_for| failing_for < patience) {
        return Ok(());
    }
    disable(shared, application, subscription, DisabledBecause::Failing).await
}
