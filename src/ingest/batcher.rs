//! Group commit without a timer: all that waits is written by one statement, and while that
//! commits, the next batch gathers. At rest a batch is one event; under load it is hundreds.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::{
    Handover, Ingest, Rejected, Routes, Waiting,
    batch::{self, Answer, Routed, SUBMISSIONS_MAX, applications_of},
    channel, gather,
};
use crate::{
    clock::Clock,
    domain::{
        DeliveryId, EventId, Run, Submission,
        routing::{Destination, route},
    },
    store::{
        Store, StoreError,
        events::{NewDelivery, NewEvent, Stored, StoredBatch},
        queue::{Claim, ClaimToken, Release},
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

/// Writes batches. One a process: a second one would halve the batches and gain nothing.
#[derive(Debug)]
pub struct Batcher {
    waiting: mpsc::Receiver<Waiting>,
    store: Store,
    clock: Clock,
    handover: Arc<Handover>,
    routes: Arc<Routes>,
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
    pub fn new(
        store: Store,
        clock: Clock,
        handover: Arc<Handover>,
        routes: Arc<Routes>,
    ) -> (Ingest, Self) {
        let (ingest, waiting) = channel();
        (
            ingest,
            Self {
                waiting,
                store,
                clock,
                handover,
                routes,
                is_in_outage: false,
                paused: Vec::new(),
            },
        )
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
        self.handover.release_paused(&self.store, paused).await;
    }

    /// Stores submissions, each on its own if they cannot be stored together.
    async fn accept(&mut self, submissions: &[Submission]) -> Vec<Answer> {
        let mut answers: Vec<Option<Answer>> = vec![None; submissions.len()];
        let (leaders, followers) = batch::split_repeats(submissions);
        let mut routed = self.route(submissions, &leaders).await;
        for group in batch::groups(&leaders, &routed) {
            match self.store(submissions, &group, &mut routed, &mut answers).await {
                Ok(()) => {}
                Err(error) if error.is_outage() => {
                    fill(&mut answers, &group, Rejected::Unavailable);
                }
                Err(error) if group.len() == 1 => {
                    tracing::error!(%error, "an event was refused by the database");
                    fill(&mut answers, &group, Rejected::Refused);
                }
                // One bad event must not fail the others: each is tried alone.
                Err(error) => {
                    tracing::warn!(%error, events = group.len(), "a batch is tried one by one");
                    for index in group {
                        let stored =
                            self.store(submissions, &[index], &mut routed, &mut answers).await;
                        if let Err(error) = stored {
                            tracing::error!(%error, "an event was refused by the database");
                            let is_outage = error.is_outage();
                            let answer =
                                if is_outage { Rejected::Unavailable } else { Rejected::Refused };
                            fill(&mut answers, &[index], answer);
                        }
                    }
                }
            }
        }
        batch::answer_repeats(submissions, &followers, answers)
    }

    /// Routes what can be routed from memory. An application that could not be read is tried again
    /// when its events are stored.
    async fn route(
        &mut self,
        submissions: &[Submission],
        indexes: &[usize],
    ) -> Vec<Option<Routed>> {
        let applications = applications_of(submissions, indexes);
        if let Err(error) = self.routes.learn(&self.store, &applications).await {
            tracing::debug!(%error, "routes could not be read; storing will find out");
        }
        let mut routed: Vec<Option<Routed>> = vec![None; submissions.len()];
        for &index in indexes {
            routed[index] = self.route_one(&submissions[index]);
        }
        routed
    }

    fn route_one(&self, submission: &Submission) -> Option<Routed> {
        let snapshot = self.routes.known(submission.application)?;
        let destinations = route(&snapshot, submission);
        Some(Routed { version: snapshot.version, destinations })
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
            self.routes.learn(&self.store, &applications).await?;
            pending.retain(|&index| {
                let is_known = self.routes.known(submissions[index].application).is_some();
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
                    self.paused.extend(self.settle(events, &stored));
                    return Ok(());
                }
                Ok(Outcome::StaleRouting) => {
                    self.abandon(&events);
                    self.routes.forget(applications);
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
                    self.abandon(&events);
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
        let unix_ms = self.clock.unix_ms();
        let event = |&index: &usize| {
            let submission = &submissions[index];
            let Routed { version, destinations } = routed[index]
                .take()
                .or_else(|| self.route_one(submission))
                .expect("submissions of unknown applications were taken out");
            let event_id = EventId::new(unix_ms, rand::random());
            let bytes = submission.payload.bytes().len();
            let deliveries = destinations.into_iter().enumerate().map(|(ordinal, destination)| {
                let delivery_id = DeliveryId::of_event(event_id, ordinal);
                let Destination { lane, subscription, target, is_parked } = destination;
                let owner =
                    if is_parked { None } else { self.handover.reserve(delivery_id, lane, bytes) };
                NewDelivery { delivery_id, lane, subscription, target, owner, is_parked }
            });
            let deliveries = deliveries.collect();
            NewEvent { event_id, submission, routing_version: version, deliveries }
        };
        indexes.iter().map(event).collect()
    }

    /// Stores events; while Postgres is away it looks whether they were stored, and tries again.
    async fn store_through_outage(
        &mut self,
        events: &[NewEvent<'_>],
    ) -> Result<Outcome, StoreError> {
        let ids: Vec<EventId> = events.iter().map(|event| event.event_id).collect();
        // Once callers were told that the database is away, the next ones need not wait as well.
        let patience = if self.is_in_outage { Duration::ZERO } else { OUTAGE_PATIENCE };
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
            match result {
                // Our own earlier try has just been committed after all; it is found next.
                Err(error) if is_unclear && error.is_repeat() && !was_repeat => was_repeat = true,
                Err(error) if error.is_outage() => {
                    is_unclear = true;
                    if Instant::now() >= give_up_at {
                        self.is_in_outage = true;
                        return Err(error);
                    }
                    tracing::warn!(%error, "events wait for the database");
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
        Ok(match self.store.store_events(events).await? {
            StoredBatch::Committed(stored) => Outcome::Committed(stored),
            StoredBatch::StaleRouting => Outcome::StaleRouting,
        })
    }

    /// After the commit: what is ours goes to the sender, what is not waits in the queue.
    /// Returns deliveries whose lane was paused meanwhile; they are to be given back.
    fn settle(&self, events: Vec<NewEvent<'_>>, stored: &[Stored]) -> Vec<(Claim, Duration)> {
        let mut claims = Vec::with_capacity(events.len());
        let mut left_in_queue = Vec::new();
        for (event, stored) in events.into_iter().zip(stored) {
            let payload = event.submission.payload.bytes();
            // All deliveries of an event share it.
            let metadata: Option<Arc<str>> =
                event.submission.metadata.as_ref().map(|metadata| metadata.as_str().into());
            for delivery in event.deliveries {
                match (stored, delivery.owner) {
                    (Stored::New, Some(owner)) => claims.push(Claim {
                        delivery_id: delivery.delivery_id,
                        token: ClaimToken { owner, number: 1 },
                        event_id: event.event_id,
                        event_type: event
                            .submission
                            .event_type
                            .as_ref()
                            .map(|name| name.as_str().to_owned()),
                        application: event.submission.application,
                        lane: delivery.lane,
                        subscription: delivery.subscription,
                        target: delivery.target,
                        payload: payload.clone(),
                        metadata: delivery.subscription.and(metadata.clone()),
                        run: Run::Schedule,
                        attempt_count: 0,
                        prior_count: 0,
                        scheduled_at: self.clock.now(),
                    }),
                    (Stored::New, None) if !delivery.is_parked => left_in_queue.push(delivery.lane),
                    (_, Some(owner)) => {
                        let token = ClaimToken { owner, number: 1 };
                        let bytes = payload.len();
                        self.handover.take_back(delivery.delivery_id, token, delivery.lane, bytes);
                    }
                    (_, None) => {}
                }
            }
        }
        telemetry::born_claimed(claims.len());
        let refused = self.handover.hand_over(claims);
        if !left_in_queue.is_empty() {
            telemetry::left_in_queue(left_in_queue.len());
            left_in_queue.sort_unstable();
            left_in_queue.dedup();
            self.handover.leave_in_queue(left_in_queue);
        }
        refused
    }

    /// Returns the room of events that were not stored. If they were stored after all, unknown to
    /// us, the reconciliation finds rows that we own and do not know, and releases them.
    fn abandon(&self, events: &[NewEvent<'_>]) {
        for (event, delivery, token) in owned(events) {
            let bytes = event.submission.payload.bytes().len();
            self.handover.take_back(delivery.delivery_id, token, delivery.lane, bytes);
        }
    }

    /// Gives events back that were stored by a commit whose answer was lost: by now this process
    /// may have been taken for dead, so they are claimed anew rather than sent.
    async fn release(&self, events: &[NewEvent<'_>]) {
        self.abandon(events);
        let claims: Vec<_> =
            owned(events).map(|(_, delivery, token)| (delivery.delivery_id, token)).collect();
        if let Err(error) = self.store.release(&claims, Release::Now).await {
            tracing::debug!(%error, "left to the reconciliation");
        }
        let lanes = events.iter().flat_map(|event| &event.deliveries).map(|d| d.lane);
        self.handover.leave_in_queue(lanes);
    }
}

/// The deliveries that were to be sent from here, each with its claim.
fn owned<'a>(
    events: &'a [NewEvent<'_>],
) -> impl Iterator<Item = (&'a NewEvent<'a>, &'a NewDelivery, ClaimToken)> {
    events.iter().flat_map(|event| {
        event.deliveries.iter().filter_map(move |delivery| {
            Some((event, delivery, ClaimToken { owner: delivery.owner?, number: 1 }))
        })
    })
}

/// With this line the log of one event begins. Before it is handed over, so that it comes first.
fn log_accepted(event_id: EventId) {
    tracing::debug!(event = %event_id, "accepted");
}

fn fill(answers: &mut [Option<Answer>], indexes: &[usize], rejected: Rejected) {
    for &index in indexes {
        answers[index].get_or_insert(Answer::No(rejected));
    }
}
