//! Group commit without a timer: all that waits is written by one statement, and while that
//! commits, the next batch gathers. At rest a batch is one event; under load it is hundreds.

use std::{
    collections::{HashSet, VecDeque},
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::{
    Ingest, Intake, Rejected, Waiting,
    batch::{self, Answer, Routed, SUBMISSIONS_MAX, applications_of},
    channel, gather,
    intake::{log_accepted, owned},
};
use crate::{
    domain::{EventId, Submission},
    store::{
        Store, StoreError,
        events::{NewEvent, Stored, StoredBatch},
        queue::{Claim, Release},
    },
    telemetry,
};

/// How often one batch is routed anew because an application changed meanwhile.
const ROUTING_ROUNDS_MAX: usize = 5;
/// How long a batch holds out while Postgres is away, a restart for instance, before its callers
/// are told so.
const OUTAGE_PATIENCE: Duration = Duration::from_secs(5);
/// The pause before a batch is tried again; it doubles up to the second value.
const OUTAGE_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How many submissions of one batch are waited for alone because a transaction that publishes from
/// SQL holds their idempotency keys; the rest of the batch is told to come back later.
const HELD_KEYS_MAX: usize = 4;

/// Writes batches. One a process: a second one would halve the batches and gain nothing.
#[derive(Debug)]
pub struct Batcher {
    waiting: mpsc::Receiver<Waiting>,
    store: Store,
    intake: Intake,
    is_in_outage: bool,
    /// Deliveries to be given back once the callers are answered: their lanes were paused.
    paused: Vec<(Claim, Duration)>,
}

/// What storing some events came to.
enum Outcome {
    /// The database's word for each of them.
    Committed(Vec<Stored>),
    /// An application was changed since.
    StaleRouting,
    /// The answer to a commit was lost, and these were found stored.
    FoundStored(HashSet<EventId>),
}

impl Batcher {
    /// A batcher, and the way in to it.
    pub fn new(store: Store, intake: Intake) -> (Ingest, Self) {
        let (ingest, waiting) = channel();
        let batcher = Self { waiting, store, intake, is_in_outage: false, paused: Vec::new() };
        (ingest, batcher)
    }

    /// Works until every [`Ingest`] is dropped and all that they left is answered.
    pub async fn run(mut self) {
        let mut gathered = Vec::with_capacity(SUBMISSIONS_MAX);
        let mut backlog = VecDeque::new();
        loop {
            if backlog.is_empty() {
                if !gather(&mut self.waiting, &mut gathered, SUBMISSIONS_MAX).await {
                    return;
                }
                // Whoever hung up was answered nothing, and need not be stored.
                backlog.extend(gathered.drain(..).filter(|waiting| !waiting.answer.is_closed()));
            }
            let batch = batch::cut(&mut backlog);
            if !batch.is_empty() {
                self.commit(batch).await;
            }
        }
    }

    /// Stores a batch and answers all of it.
    async fn commit(&mut self, batch: Vec<Waiting>) {
        // The rooms of their bytes are given up when all of them are answered.
        let (mut answers, mut rooms, mut submissions) = (Vec::new(), Vec::new(), Vec::new());
        for Waiting { submission, answer, room } in batch {
            answers.push(answer);
            rooms.push(room);
            submissions.push(submission);
        }
        let started = Instant::now();
        let results = self.accept(&submissions).await;
        telemetry::batch_committed(submissions.len(), started.elapsed());
        for (answer, result) in answers.into_iter().zip(results) {
            // A caller that has hung up meanwhile is not an error.
            let _ = answer.send(result.into());
        }
        let paused = std::mem::take(&mut self.paused);
        self.intake.handover.release_paused(&self.store, paused).await;
    }

    /// Stores submissions, each on its own if they cannot be stored together.
    async fn accept(&mut self, submissions: &[Submission]) -> Vec<Answer> {
        let mut answers: Vec<Option<Answer>> = vec![None; submissions.len()];
        let (leaders, followers) = batch::split_repeats(submissions);
        let mut routed = self.route(submissions, &leaders).await;
        for group in batch::groups(&leaders, &routed) {
            match self.store(submissions, &group, &mut routed, &mut answers).await {
                Ok(()) => {}
                // One bad event must not fail the others: each is tried alone.
                Err(error) if group.len() > 1 && error.is_of_some() => {
                    telemetry::statement_failed(&error, "a batch is tried one by one");
                    self.store_each(submissions, group, &mut routed, &mut answers).await;
                }
                Err(error) => fill(&mut answers, &group, rejected(&error)),
            }
        }
        batch::answer_repeats(submissions, &followers, answers)
    }

    /// Stores submissions one by one.
    async fn store_each(
        &mut self,
        submissions: &[Submission],
        indexes: Vec<usize>,
        routed: &mut [Option<Routed>],
        answers: &mut [Option<Answer>],
    ) {
        let mut held = 0;
        for index in indexes {
            if held == HELD_KEYS_MAX {
                fill(answers, &[index], Rejected::Busy);
                continue;
            }
            if let Err(error) = self.store(submissions, &[index], routed, answers).await {
                held += usize::from(matches!(error, StoreError::KeyHeld));
                fill(answers, &[index], rejected(&error));
            }
        }
    }

    /// Routes what can be routed from memory. An application that could not be read is tried again
    /// when its events are stored.
    async fn route(
        &mut self,
        submissions: &[Submission],
        indexes: &[usize],
    ) -> Vec<Option<Routed>> {
        let applications = applications_of(submissions, indexes);
        if let Err(error) = self.intake.routes.learn(&self.store, &applications).await {
            tracing::debug!(%error, "routes could not be read; storing will find out");
        }
        let mut routed: Vec<Option<Routed>> = vec![None; submissions.len()];
        for &index in indexes {
            routed[index] = self.intake.route(&submissions[index]);
        }
        routed
    }

    /// Stores the submissions at `indexes` in one transaction and fills their answers.
    async fn store(
        &mut self,
        submissions: &[Submission],
        indexes: &[usize],
        routed: &mut [Option<Routed>],
        answers: &mut [Option<Answer>],
    ) -> Result<(), StoreError> {
        let mut pending = indexes.to_vec();
        for _ in 0..ROUTING_ROUNDS_MAX {
            let applications = applications_of(submissions, &pending);
            self.intake.routes.learn(&self.store, &applications).await?;
            pending.retain(|&index| {
                let is_known = self.intake.routes.known(submissions[index].application).is_some();
                if !is_known {
                    answers[index] = Some(Answer::No(Rejected::NoApplication));
                }
                is_known
            });
            if pending.is_empty() {
                return Ok(());
            }
            let events = self.prepare(submissions, &pending, routed);
            match self.store_through_outage(&events).await {
                Ok(Outcome::Committed(stored)) => {
                    for ((&index, event), stored) in pending.iter().zip(&events).zip(&stored) {
                        if *stored == Stored::New {
                            log_accepted(event.event_id);
                        }
                        answers[index] = Some(Answer::of(event.event_id, *stored));
                    }
                    self.paused.extend(self.intake.settle(events, &stored));
                    return Ok(());
                }
                Ok(Outcome::StaleRouting) => {
                    self.intake.abandon(&events);
                    self.intake.routes.forget(applications);
                }
                Ok(Outcome::FoundStored(found)) => {
                    for (&index, event) in pending.iter().zip(&events) {
                        if found.contains(&event.event_id) {
                            log_accepted(event.event_id);
                            answers[index] = Some(Answer::Yes(event.event_id));
                        }
                    }
                    self.release(&events).await;
                    // What was not found was no new event: its key was known. It goes again.
                    pending.retain(|&index| answers[index].is_none());
                }
                Err(error) => {
                    self.intake.abandon(&events);
                    if !matches!(error, StoreError::NoPartition) {
                        return Err(error);
                    }
                    self.store.make_partitions().await?;
                }
            }
            if pending.is_empty() {
                return Ok(());
            }
        }
        Err(StoreError::TimedOut)
    }

    /// Gives ids, and asks for room to send at once. What was routed is used up: a batch that has
    /// to be stored again is routed anew.
    fn prepare<'a>(
        &self,
        submissions: &'a [Submission],
        indexes: &[usize],
        routed: &mut [Option<Routed>],
    ) -> Vec<NewEvent<'a>> {
        let unix_ms = self.intake.clock.unix_ms();
        let event = |&index: &usize| {
            let submission = &submissions[index];
            let routed = routed[index]
                .take()
                .or_else(|| self.intake.route(submission))
                .expect("submissions of unknown applications were taken out");
            let event_id = EventId::new(unix_ms, rand::random());
            self.intake.prepare(event_id, submission, routed)
        };
        indexes.iter().map(event).collect()
    }

    /// Stores events; while Postgres is away it looks whether they were stored, and tries again.
    async fn store_through_outage(
        &mut self,
        events: &[NewEvent<'_>],
    ) -> Result<Outcome, StoreError> {
        let ids: Vec<EventId> = events.iter().map(|event| event.event_id).collect();
        // Once callers were told that the database is away, the next ones need not wait as well: one
        // attempt may meet a dead connection, and the second one opens another.
        let patience = if self.is_in_outage { OUTAGE_PAUSE.0 } else { OUTAGE_PATIENCE };
        let give_up_at = Instant::now() + patience;
        let mut pause = OUTAGE_PAUSE.0;
        let mut is_unclear = false;
        let mut was_repeat = false;
        loop {
            let result = if is_unclear {
                match self.store.existing_events(&ids).await {
                    Ok(found) if !found.is_empty() => Ok(Outcome::FoundStored(found)),
                    Ok(_) => self.store_once(events).await,
                    Err(error) => Err(error),
                }
            } else {
                self.store_once(events).await
            };
            // An earlier try of ours may still be running. It may hold the key, and with new ids for a new
            // routing its events would be stored twice.
            let result = match result {
                Ok(Outcome::StaleRouting) | Err(StoreError::KeyHeld) if is_unclear => {
                    Err(StoreError::TimedOut)
                }
                result => result,
            };
            match result {
                // Our own earlier try has just been committed after all; it is found next.
                Err(error) if is_unclear && error.is_repeat() && !was_repeat => was_repeat = true,
                // Whoever holds it may hold it for long: the others must not wait for that.
                Err(StoreError::KeyHeld) => return Err(StoreError::KeyHeld),
                Err(error) if error.is_outage() => {
                    is_unclear = true;
                    if Instant::now() >= give_up_at {
                        self.is_in_outage = true;
                        return Err(error);
                    }
                    telemetry::statement_failed(&error, "events wait for the database");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(OUTAGE_PAUSE.1);
                }
                other => {
                    self.is_in_outage = false;
                    return other;
                }
            }
        }
    }

    async fn store_once(&self, events: &[NewEvent<'_>]) -> Result<Outcome, StoreError> {
        let asked_at = Instant::now();
        Ok(match self.store.store_events(events).await? {
            StoredBatch::Committed(stored) => {
                self.intake.confirm(events, &stored, asked_at);
                Outcome::Committed(stored)
            }
            StoredBatch::StaleRouting => Outcome::StaleRouting,
        })
    }

    /// Gives events back that were stored by a commit whose answer was lost: by now this process
    /// may have been taken for dead, so they are claimed anew rather than sent.
    async fn release(&self, events: &[NewEvent<'_>]) {
        self.intake.abandon(events);
        let claims: Vec<_> =
            owned(events).map(|(_, delivery, token)| (delivery.delivery_id, token)).collect();
        if let Err(error) = self.store.release(&claims, Release::Now).await {
            tracing::debug!(%error, "left to the reconciliation");
        }
        let lanes = events.iter().flat_map(|event| {
            event.deliveries.iter().map(|one| (one.lane, event.submission.application))
        });
        self.intake.handover.leave_in_queue(lanes);
    }
}

/// What a submission is answered that could not be stored, even alone.
fn rejected(error: &StoreError) -> Rejected {
    match error {
        StoreError::KeyHeld => Rejected::Busy,
        error if error.is_outage() => Rejected::Unavailable,
        error => {
            tracing::error!(%error, "an event was refused by the database");
            Rejected::Refused
        }
    }
}

fn fill(answers: &mut [Option<Answer>], indexes: &[usize], rejected: Rejected) {
    for &index in indexes {
        answers[index].get_or_insert(Answer::No(rejected));
    }
}
