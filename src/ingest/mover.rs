//! The way in for what is published from SQL: a batch of rows of the outbox becomes events in the
//! transaction that deletes the rows.
//!
//! Rows are looked for by the clock: a NOTIFY in the publisher's transaction would put the commits of
//! all publishers one behind the other.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

mod pending;

use self::pending::PendingChecks;
use super::{
    Catalogue, CatalogueError, CheckError, Fit, Intake,
    batch::{DELIVERIES_MAX, PAYLOAD_BYTES_MAX, Routed, SUBMISSIONS_MAX},
    catalogue::told,
    intake::log_accepted,
};
use crate::{
    domain::{
        EventType, IdempotencyKey, Payload, Subject, Submission, Upstream,
        event::{EventError, Metadata, Route},
    },
    store::{
        Store, StoreError,
        events::Stored,
        outbox::{Mark, Move, Outbox, OutboxRow, Place, Portion},
    },
    telemetry,
};

/// The time between two looks while there is nothing. The greater part of what an event that is
/// published from SQL waits, half of it on average.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// The pause after a failure; it doubles up to the second value.
const FAILURE_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// After so many batches a round begins anew where the mark is, so that a row that came late, of a
/// transaction that had begun early, waits for no more than these.
const BATCHES_PER_ROUND_MAX: usize = 64;
/// A mark is relied on for so long. What is looked for without one is everything that there is, which
/// finds also what no mark can know of: rows of a primary that lost transactions when it took over.
const MARK_AGE_MAX: Duration = Duration::from_secs(30);
/// How often one batch is routed anew because an application changed meanwhile.
const ROUTING_ROUNDS_MAX: usize = 5;

/// Why an event of no application is put aside: there was one when it was published.
const NO_APPLICATION: &str = "its application is deleted";

/// Moves what is published from SQL. One a process.
pub struct Mover {
    /// Its own: it is kept for the transactions that move.
    store: Store,
    /// For all that is read meanwhile.
    reading: Store,
    intake: Intake,
    catalogue: Catalogue,
    mark: Mark,
    marked_at: Instant,
    /// The look before, until which nothing may be left by now.
    earlier: Option<Mark>,
    /// So many rows are moved one by one, since a batch of them was refused.
    alone: usize,
    /// Checks of payloads that took longer than a batch waits for them.
    pending: PendingChecks,
}

/// What a batch came to.
enum Batch {
    /// Where the next one goes on.
    Next(Place),
    /// Nothing was left.
    Last,
}

impl Mover {
    /// A mover that has not looked yet. `store` is for it alone.
    pub fn new(store: Store, reading: Store, intake: Intake, catalogue: Catalogue) -> Self {
        Self {
            store,
            reading,
            intake,
            catalogue,
            mark: Mark::default(),
            marked_at: Instant::now(),
            earlier: None,
            alone: 0,
            pending: PendingChecks::default(),
        }
    }

    /// Works until `stop`, and then ends with the batch that is under way.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut pause = FAILURE_PAUSE.0;
        let mut is_failing = false;
        while !stop.is_cancelled() {
            let wait = match self.round(&stop).await {
                Ok(is_done) => {
                    (pause, is_failing) = (FAILURE_PAUSE.0, false);
                    if is_done { None } else { Some(Duration::ZERO) }
                }
                Err(error) => {
                    // Every second of an outage would be a line.
                    if !std::mem::replace(&mut is_failing, true) {
                        telemetry::statement_failed(&error, "what is published from SQL waits");
                    }
                    // After a fail-over transactions may be counted from elsewhere.
                    self.forget_mark();
                    let wait = pause;
                    pause = (pause * 2).min(FAILURE_PAUSE.1);
                    Some(wait)
                }
            };
            let pausing = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => self.intake.handover.rest(LOOK_INTERVAL).await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = pausing => {}
            }
        }
    }

    fn forget_mark(&mut self) {
        (self.mark, self.earlier, self.marked_at) = (Mark::default(), None, Instant::now());
    }

    /// Looks what there is, and moves it; `false` if there may be more.
    async fn round(&mut self, stop: &CancellationToken) -> Result<bool, StoreError> {
        if self.marked_at.elapsed() > MARK_AGE_MAX {
            self.forget_mark();
        }
        let look = self.store.look_at_outbox(&self.mark, self.earlier.as_ref()).await?;
        telemetry::outbox_waits(look.waits_for_seconds);
        let earlier = self.earlier.replace(look.here.clone());
        if look.is_empty {
            self.mark = look.here;
            return Ok(true);
        }
        self.intake.handover.idle().wake();
        // What the look before saw is moved by now, by whomever: only committed rows are gone.
        if let Some(earlier) = earlier.filter(|_| look.is_all_newer) {
            self.mark = earlier;
        }
        let mut outbox = self.store.outbox().await?;
        let mut after = Place::default();
        for _ in 0..BATCHES_PER_ROUND_MAX {
            if stop.is_cancelled() {
                return Ok(false);
            }
            match self.batch(&mut outbox, after).await? {
                Batch::Next(place) => after = place,
                Batch::Last => return Ok(true),
            }
        }
        Ok(false)
    }

    /// Moves the next rows.
    async fn batch(&mut self, outbox: &mut Outbox, after: Place) -> Result<Batch, StoreError> {
        let passed_over = self.pending.applications();
        let rows_max = if self.alone > 0 { 1 } else { SUBMISSIONS_MAX };
        self.alone = self.alone.saturating_sub(1);
        for _ in 0..ROUTING_ROUNDS_MAX {
            let mut moving = outbox.begin().await?;
            let taken = moving.take(&self.mark, after, portion(rows_max), &passed_over).await?;
            let Some(last) = taken.last else { return Ok(Batch::Last) };
            let plan = self.plan(&taken.rows).await?;
            let next = match taken.rows.get(..plan.rows_count) {
                Some([.., last]) if plan.rows_count < taken.rows.len() => Batch::Next(last.place),
                _ if taken.is_all => Batch::Last,
                _ => Batch::Next(last),
            };
            match self.store(moving, &plan).await {
                Ok(true) => return Ok(next),
                Ok(false) => {
                    let applications = plan.events.iter().map(|one| one.submission.application);
                    self.intake.routes.forget(applications);
                }
                Err(StoreError::NoPartition) => {
                    let ids: Vec<_> = plan.events.iter().map(|one| one.row.event_id()).collect();
                    self.reading.make_partitions_of(&ids).await?;
                }
                Err(error) if error.is_outage() => return Err(error),
                Err(error) if let [row] = taken.rows.as_slice() => {
                    let reason = format!("the database refused the event: {error}");
                    self.refuse(outbox, after, row, reason).await?;
                    return Ok(next);
                }
                // One bad row must not hold up the others: each is tried alone.
                Err(error) => {
                    let rows = taken.rows.len();
                    telemetry::statement_failed(&error, "events from SQL are moved one by one");
                    self.alone = rows;
                    return Ok(Batch::Next(after));
                }
            }
        }
        Err(StoreError::TimedOut)
    }

    /// Says of each row what becomes of it, up to where they make too many deliveries together.
    async fn plan<'r>(&mut self, rows: &'r [OutboxRow]) -> Result<Plan<'r>, StoreError> {
        let wait_until = tokio::time::Instant::now() + pending::BATCH_WAIT;
        let mut submissions = Vec::with_capacity(rows.len());
        for row in rows {
            submissions.push(self.submission(row, wait_until).await?);
        }
        let of_sound = submissions.iter().flatten().flatten();
        let of_sound = of_sound.map(|submission| submission.application);
        let applications: BTreeSet<_> = of_sound.collect();
        let applications: Vec<_> = applications.into_iter().collect();
        self.intake.routes.learn(&self.reading, &applications).await?;
        let mut plan = Plan { events: Vec::new(), refused: Vec::new(), rows_count: 0 };
        let mut deliveries = 0;
        for (row, submission) in rows.iter().zip(submissions) {
            let Some(submission) = submission else {
                // Its payload is still being checked: it stays, and is taken again later.
                plan.rows_count += 1;
                continue;
            };
            let routed = submission.and_then(|submission| {
                let routed = self.intake.route(&submission);
                let routed = routed.ok_or_else(|| NO_APPLICATION.to_owned())?;
                Ok((submission, routed))
            });
            match routed {
                Ok((submission, routed)) => {
                    deliveries += routed.destinations.len();
                    if deliveries > DELIVERIES_MAX && !plan.events.is_empty() {
                        break;
                    }
                    plan.events.push(PlannedEvent { row, submission, routed });
                }
                Err(reason) => plan.refused.push((row, reason)),
            }
            plan.rows_count += 1;
        }
        Ok(plan)
    }

    /// The submission that a row is, or why it is none; `None` while its payload is being checked. What
    /// the function has checked is checked again, as everywhere where a value is made.
    async fn submission(
        &mut self,
        row: &OutboxRow,
        wait_until: tokio::time::Instant,
    ) -> Result<Option<Result<Submission, String>>, StoreError> {
        let submission = match submission(row) {
            Ok(submission) => submission,
            Err((field, error)) => return Ok(Some(Err(format!("`{field}` {error}")))),
        };
        let Some(event_type) = submission.event_type.clone() else {
            return Ok(Some(Ok(submission)));
        };
        if event_type.is_operators() {
            return Ok(Some(Ok(submission)));
        }
        let application = submission.application;
        let check = || {
            let (catalogue, store) = (self.catalogue.clone(), self.reading.clone());
            let (event_type, payload) = (event_type.clone(), submission.payload.clone());
            async move { catalogue.fit(&store, application, &event_type, &payload).await }
        };
        let fit = self.pending.fit(row.event_id(), application, wait_until, check).await;
        Ok(Some(match fit {
            None | Some(Err(CatalogueError::Check(CheckError::Busy | CheckError::TimedOut))) => {
                return Ok(None);
            }
            // A type that has left the catalogue since was in it when the event was published.
            Some(Ok(Fit::Good | Fit::Unknown)) => Ok(submission),
            Some(Ok(Fit::Faults(faults))) => Err(format!(
                "`payload` is not what the schema of `{}` asks for: {}",
                event_type.as_str(),
                told(&faults)
            )),
            Some(Err(CatalogueError::Store(error))) => return Err(error),
            Some(Err(CatalogueError::NoApplication)) => Err(NO_APPLICATION.to_owned()),
            Some(Err(error @ (CatalogueError::Broken | CatalogueError::Check(_)))) => {
                Err(error.to_string())
            }
        }))
    }

    /// Stores what is planned; `false` if an application was changed since.
    async fn store(&self, mut moving: Move<'_>, plan: &Plan<'_>) -> Result<bool, StoreError> {
        let started = Instant::now();
        let mut events = Vec::with_capacity(plan.events.len());
        for PlannedEvent { row, submission, routed } in &plan.events {
            events.push(self.intake.prepare(row.event_id(), submission, routed.clone()));
        }
        let rows: Vec<_> = plan.events.iter().map(|one| one.row).collect();
        let stored = async {
            if !events.is_empty()
                && !moving.store(&rows, &events.iter().collect::<Vec<_>>()).await?
            {
                return Ok(false);
            }
            if !plan.refused.is_empty() {
                moving.refuse(&plan.refused).await?;
            }
            moving.commit().await?;
            Ok(true)
        };
        let stored = stored.await;
        if !matches!(stored, Ok(true)) {
            // If it was committed after all, the reconciliation finds what is ours and unknown.
            self.intake.abandon(&events);
            return stored;
        }
        for event in &events {
            log_accepted(event.event_id);
        }
        for (row, reason) in &plan.refused {
            log_refused(row, reason);
        }
        if !events.is_empty() {
            telemetry::batch_committed(events.len(), started.elapsed());
            telemetry::outbox_moved(events.len());
        }
        let all_new = vec![Stored::New; events.len()];
        self.intake.confirm(&events, &all_new, started);
        let paused = self.intake.settle(events, &all_new);
        self.intake.handover.release_paused(&self.reading, paused).await;
        Ok(true)
    }

    /// Puts the row aside that is next after a place.
    async fn refuse(
        &self,
        outbox: &mut Outbox,
        after: Place,
        row: &OutboxRow,
        reason: String,
    ) -> Result<(), StoreError> {
        let mut moving = outbox.begin().await?;
        let taken = moving.take(&self.mark, after, portion(1), &[]).await?;
        // Another process may have been faster.
        let Some(taken) = taken.rows.first().filter(|taken| taken.event_id() == row.event_id())
        else {
            return Ok(());
        };
        moving.refuse(&[(taken, reason.clone())]).await?;
        moving.commit().await?;
        log_refused(row, &reason);
        Ok(())
    }
}

/// What becomes of some rows.
struct Plan<'r> {
    events: Vec<PlannedEvent<'r>>,
    /// Each with the reason.
    refused: Vec<(&'r OutboxRow, String)>,
    /// How many rows it is about: the first of those that were given.
    rows_count: usize,
}

struct PlannedEvent<'r> {
    row: &'r OutboxRow,
    submission: Submission,
    routed: Routed,
}

fn portion(rows_max: usize) -> Portion {
    let bigint = |count: usize| i64::try_from(count).expect("bounds are far below i64::MAX");
    Portion { rows_max: bigint(rows_max), bytes_max: bigint(PAYLOAD_BYTES_MAX) }
}

/// A row as a submission, or the field that is no such field and why.
fn submission(row: &OutboxRow) -> Result<Submission, (&'static str, EventError)> {
    let of = |field| move |error| (field, error);
    let subject = row.subject.as_deref().map(Subject::parse).transpose();
    let metadata = row.metadata.as_deref().map(Metadata::from_json).transpose();
    Ok(Submission {
        application: row.application,
        event_type: Some(EventType::parse(&row.event_type).map_err(of("type"))?),
        payload: Payload::from_json(row.payload.clone()).map_err(of("payload"))?,
        route: Route::Subscriptions,
        subject: subject.map_err(of("subject"))?,
        metadata: metadata.map_err(of("metadata"))?,
        // It stands for the event already; what was taken as one is one.
        idempotency_key: row
            .idempotency_key
            .as_deref()
            .and_then(|key| IdempotencyKey::parse(key).ok()),
        upstream: Upstream::default(),
    })
}

fn log_refused(row: &OutboxRow, reason: &str) {
    telemetry::outbox_refused();
    tracing::warn!(event = %row.event_id(), reason, "an event from SQL was refused");
}
