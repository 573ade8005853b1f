//! Counts what is recorded, by lane and minute, and adds it to the database every second or so: what
//! a crash takes are the figures of that second, and no deliveries. A subscription of which nothing
//! but failures was recorded for long is disabled here.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use chrono::{DateTime, SubsecRound, Timelike, Utc};
use uuid::Uuid;

use super::{Shared, disable};
use crate::{
    domain::{
        ApplicationId, DeliveryState, SubscriptionId,
        routing::Place,
        statistics::{Counts, LastFailure},
        subscription::DisabledBecause,
    },
    store::{
        Store, StoreError,
        queue::{Finished, Next},
        statistics::PeriodOfLane,
    },
};

/// The time between two writes, and how many minutes of lanes one statement writes, and then hours.
/// With more lanes it is written more rarely, so that at most so many are written a second.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);
const MINUTES_PER_STATEMENT: usize = 500;
/// How many minutes of lanes may wait for a database that is away; beyond that none are added.
const MINUTES_WAITING_MAX: usize = 100_000;
/// How often it is asked for how long a subscription has failed: so many times in the time that it
/// may, within these bounds.
const ASKS_PER_PATIENCE: u32 = 20;
const ASK_INTERVAL: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(600));
/// How many subscriptions it is remembered of when they were asked about.
const ASKED_MAX: usize = 100_000;

/// What was recorded and is not written yet.
#[derive(Debug, Default)]
pub struct Statistics(Mutex<HashMap<(Uuid, DateTime<Utc>), Entry>>);

#[derive(Debug, Default)]
struct Entry {
    counts: Counts,
    /// Of a subscription's lane.
    subscription: Option<(ApplicationId, SubscriptionId)>,
}

impl Statistics {
    /// Counts results that were recorded.
    pub fn count(&self, batch: &[Finished], now: DateTime<Utc>) {
        let minute = minute_of(now);
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for one in batch {
            for lane in [one.lane.uuid(), one.application.uuid()] {
                if entries.len() >= MINUTES_WAITING_MAX && !entries.contains_key(&(lane, minute)) {
                    continue;
                }
                let entry = entries.entry((lane, minute)).or_default();
                count_into(&mut entry.counts, one);
                if lane == one.lane.uuid() {
                    entry.subscription = one.subscription.map(|id| (one.application, id));
                }
            }
        }
    }

    /// Writes what was counted. Tells how much it was, and of which subscriptions nothing but
    /// failures.
    pub async fn write_all(&self, store: &Store) -> (usize, Vec<(ApplicationId, SubscriptionId)>) {
        let (mut minutes, mut failing) = (Vec::new(), Vec::new());
        for ((lane, minute), entry) in self.take() {
            if entry.counts.failed > 0 && entry.counts.last_delivered_at.is_none() {
                failing.extend(entry.subscription);
            }
            minutes.push(PeriodOfLane { lane, begins_at: minute, counts: entry.counts });
        }
        let written = minutes.len();
        while !minutes.is_empty() {
            let rest = minutes.split_off(minutes.len().min(MINUTES_PER_STATEMENT));
            if let Err(error) = store.add_statistics(&mut minutes).await {
                tracing::warn!(%error, "statistics were not written");
                // What the database refuses as such, it would refuse again.
                if error.is_outage() {
                    minutes.extend(rest);
                    self.put_back(minutes);
                }
                return (written, Vec::new());
            }
            minutes = rest;
        }
        (written, failing)
    }

    fn take(&self) -> Vec<((Uuid, DateTime<Utc>), Entry)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).drain().collect()
    }

    /// What could not be written, back among what is counted.
    fn put_back(&self, minutes: Vec<PeriodOfLane>) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for one in minutes {
            entries.entry((one.lane, one.begins_at)).or_default().counts.merge(one.counts);
        }
    }
}

fn minute_of(at: DateTime<Utc>) -> DateTime<Utc> {
    at.trunc_subsecs(0).with_second(0).unwrap_or(at)
}

fn count_into(counts: &mut Counts, one: &Finished) {
    if let Some(attempt) = &one.attempt {
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
        Next::RetryAfter(_) | Next::Resume | Next::Park => return,
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
    let mut asked = HashMap::new();
    loop {
        let (written, failing) = shared.statistics.write_all(&shared.store).await;
        asked.retain(|_, at: &mut Instant| at.elapsed() < ASK_INTERVAL.1);
        for (application, id) in failing {
            if let Err(error) = look_after(shared, &mut asked, application, id).await {
                tracing::debug!(%error, subscription = %id, "asked about at its next failure");
            }
        }
        let statements = u32::try_from(written / MINUTES_PER_STATEMENT).unwrap_or(u32::MAX);
        tokio::time::sleep(WRITE_INTERVAL * statements.max(1)).await;
    }
}

/// Disables a subscription of which nothing but failures was recorded for as long as it may.
async fn look_after(
    shared: &Shared,
    asked: &mut HashMap<SubscriptionId, Instant>,
    application: ApplicationId,
    id: SubscriptionId,
) -> Result<(), StoreError> {
    let Some(snapshot) = shared.routes.fresh(&shared.store, application).await? else {
        return Ok(());
    };
    let Some(Place::Subscription(subscription)) = snapshot.subscription(id) else { return Ok(()) };
    let patience = subscription.disable_after.or(shared.settings.disable_after);
    let Some(patience) = patience.filter(|patience| !patience.is_zero()) else { return Ok(()) };
    let pause = (patience / ASKS_PER_PATIENCE).clamp(ASK_INTERVAL.0, ASK_INTERVAL.1);
    if asked.get(&id).is_some_and(|at| at.elapsed() < pause) || asked.len() >= ASKED_MAX {
        return Ok(());
    }
    asked.insert(id, Instant::now());
    let failing_for = shared.store.failing_for(id).await?;
    if failing_for.is_none_or(|failing_for| failing_for < patience) {
        return Ok(());
    }
    disable(shared, application, subscription, DisabledBecause::Failing).await
}
