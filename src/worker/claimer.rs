//! Claims what is due: retries, overflow, released work, other processes' leftovers.
//!
//! Waits for a wake-up, the next due time that is known, or the poll, whichever is first. Never
//! claims more than the lanes have room for. The same task reconciles what the database says we own
//! with what we know of, so that no claim can be under way meanwhile.

use std::{
    collections::{HashMap, HashSet},
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};

use super::{Shared, recorder::unsent, sweeper::PART_TIME_MAX};
use crate::{
    domain::{
        ApplicationId, ErrorClass, EventId, LaneId,
        pacing::{Claimed, DUE_HORIZON, LaneQuota},
    },
    store::{
        Store, StoreError,
        dispatchers::DispatcherId,
        owned::{PART_PAUSE, Pages},
        queue::{Claim, ClaimToken, ClaimedRow, LaneHead, Release},
    },
    telemetry,
};

/// Lanes and rows of one claim.
const LANES_PER_CLAIM: usize = 256;
const ROWS_PER_CLAIM: usize = 500;
/// Payload bytes read by one statement. One payload may exceed it alone.
const PAYLOAD_BYTES_PER_READ: usize = 8 * 1024 * 1024;
/// The pause between two rounds, so that claims gather and do not come row by row.
const ROUND_PAUSE: Duration = Duration::from_millis(1);
/// How many lanes are read at a time when the queue is looked through, and the pause before the next
/// ones: so many take Postgres a millisecond, and all at once would hold up the others.
const LANES_PER_STEP: i64 = 50;
const STEP_PAUSE: Duration = Duration::from_millis(3);
/// The shortest time between two looks, however often something new is told of.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// The time between two comparisons of what we own with what we know.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(5);
/// A delivery that is due further ahead than this, and than `DELIVERY_AGE_MAX`, was left there by a
/// clock that was wrong; and how many of a lane one statement makes due.
const FAR_MIN: Duration = Duration::from_hours(240);
const ROWS_BROUGHT_MAX: i64 = 1_000;
/// The first pause after a failed round; it doubles up to the second value.
const OUTAGE_PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));

struct Claimer {
    shared: Arc<Shared>,
    /// Its own connection. What is told to the database beside claims goes by the shared ones.
    store: Store,
    /// Where the look through the queue that is under way has come to; `None` begins anew.
    cursor: Option<LaneId>,
    /// Another one was asked for meanwhile.
    looks_again: bool,
    last_look: Instant,
    next_look: Instant,
    next_reconciliation: Instant,
    /// The pages of the queue that the comparison under way has not come to.
    uncompared: Pages,
    outage_pause: Duration,
}

/// Claims until the end.
pub async fn run(shared: Arc<Shared>, store: Store) {
    let now = Instant::now();
    let mut claimer = Claimer {
        shared,
        store,
        cursor: None,
        looks_again: false,
        last_look: now,
        next_look: now,
        next_reconciliation: now + RECONCILE_INTERVAL,
        uncompared: Pages::DONE,
        outage_pause: OUTAGE_PAUSE.0,
    };
    while claimer.wait().await {
        let pause = match claimer.round().await {
            Ok(()) => {
                claimer.outage_pause = OUTAGE_PAUSE.0;
                ROUND_PAUSE
            }
            Err(error) => {
                telemetry::statement_failed(&error, "claiming waits for the database");
                // Jitter, so that a fleet does not come back as one.
                let pause = claimer.outage_pause.mul_f64(rand::random_range(0.5..1.5));
                claimer.outage_pause = (claimer.outage_pause * 2).min(OUTAGE_PAUSE.1);
                pause
            }
        };
        tokio::select! {
            () = claimer.shared.stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

impl Claimer {
    /// Waits until there is a reason to look; `false` at the end.
    async fn wait(&mut self) -> bool {
        let due = match self.shared.handover.owner() {
            None if self.shared.handover.resting().is_none() => None,
            _ => self.shared.handover.lanes().next_due(Instant::now()),
        };
        let scheduled = self.next_look.min(self.next_reconciliation);
        // One that rests looks more rarely, but sends in time what it knows of.
        let scheduled = match self.shared.handover.resting() {
            Some(rest) => scheduled.max(self.last_look + rest),
            None => scheduled,
        };
        let until = due.map_or(scheduled, |due| due.min(scheduled));
        tokio::select! {
            biased;
            () = self.shared.stop.cancelled() => return false,
            // One under way goes on: were it to begin anew each time, the lanes at the end would never
            // be seen.
            () = self.shared.look_now.notified() => {
                if self.cursor.is_some() {
                    self.looks_again = true;
                } else {
                    self.next_look = self.next_look.min(self.last_look + LOOK_PAUSE);
                }
            }
            () = self.shared.handover.claimable() => {}
            () = self.shared.handover.idle().woken() => {}
            () = tokio::time::sleep_until(until.into()) => {}
        }
        true
    }

    async fn round(&mut self) -> Result<(), StoreError> {
        // Whoever is fenced does not claim; the heartbeat wakes us when that ends.
        let Some(owner) = self.shared.handover.owner() else {
            if self.shared.handover.resting().is_some() {
                return self.look_at_rest().await;
            }
            self.next_look = Instant::now() + self.shared.settings.poll_interval;
            self.next_reconciliation = self.next_look.max(self.next_reconciliation);
            return Ok(());
        };
        if self.next_look <= Instant::now() {
            self.look(owner).await?;
            self.last_look = Instant::now();
            self.next_look = self.last_look
                + if self.cursor.is_some() {
                    STEP_PAUSE
                } else if mem::take(&mut self.looks_again) {
                    LOOK_PAUSE
                } else {
                    self.shared.settings.poll_interval
                };
        }
        self.claim(owner).await?;
        if self.next_reconciliation <= Instant::now() {
            let began = Instant::now();
            if let Err(error) = self.reconcile(owner).await {
                telemetry::statement_failed(
                    &error,
                    "what is owned could not be compared with what is known",
                );
                self.uncompared = Pages::DONE;
            }
            let is_done = self.uncompared.is_empty();
            let pause = if is_done { RECONCILE_INTERVAL } else { PART_PAUSE };
            // It comes to read the whole queue: the longer that takes, the rarer it is done. Not so
            // where it only waited for the database.
            let took = began.elapsed().min(PART_TIME_MAX);
            self.next_reconciliation = Instant::now() + pause + took * 9;
        }
        Ok(())
    }

    /// Looks while this process rests, without a heartbeat. If there is something to do the rest ends;
    /// the heartbeat that follows wakes this task again.
    async fn look_at_rest(&mut self) -> Result<(), StoreError> {
        if self.next_look <= Instant::now()
            && let Some(owner) = self.shared.handover.last_owner()
        {
            self.look(owner).await?;
            self.last_look = Instant::now();
            self.next_look = self.last_look + self.shared.settings.poll_interval;
        }
        let now = Instant::now();
        let is_due = self.shared.handover.lanes().next_due(now).is_some_and(|due| due <= now);
        if is_due || self.cursor.is_some() {
            self.shared.handover.idle().wake();
        }
        Ok(())
    }

    /// Looks at the next lanes of the queue that have work, due or to come.
    async fn look(&mut self, owner: DispatcherId) -> Result<(), StoreError> {
        let heads = self.store.lane_heads(owner, self.cursor, LANES_PER_STEP).await?;
        let far = self.shared.settings.delivery_age_max.max(FAR_MIN);
        let stranded: Vec<_> =
            heads.iter().filter(|head| head.due_in() > far).map(LaneHead::lane).collect();
        if !stranded.is_empty() {
            let brought = self.store.bring_forward(&stranded, far, ROWS_BROUGHT_MAX).await?;
            tracing::warn!(
                event = "deliveries_brought_forward",
                deliveries = brought,
                "deliveries were due further ahead than any retry; they are due now"
            );
            self.looks_again = true;
        }
        let now = Instant::now();
        let mut lanes = self.shared.handover.lanes();
        for head in heads.iter().filter(|head| head.due_in() <= DUE_HORIZON) {
            let (lane, application) = (head.lane(), head.application());
            lanes.note_due(lane, application, now + head.due_in());
            if let Some(limit) = head.limit() {
                lanes.set_limit(lane, &limit, now);
            }
        }
        let is_last = heads.len() < usize::try_from(LANES_PER_STEP).unwrap_or(usize::MAX);
        self.cursor = heads.last().filter(|_| !is_last).map(LaneHead::lane);
        Ok(())
    }

    /// Claims until nothing more is due, there is no room, or more lanes are to be looked at: those
    /// that are not known must not wait for those that are.
    async fn claim(&mut self, owner: DispatcherId) -> Result<(), StoreError> {
        // Not under an id that was fenced or buried meanwhile.
        while !self.shared.stop.is_cancelled() && self.shared.handover.owner() == Some(owner) {
            let plan = self.shared.handover.lanes().plan_claim(
                Instant::now(),
                LANES_PER_CLAIM,
                ROWS_PER_CLAIM,
            );
            if plan.is_empty() {
                return Ok(());
            }
            self.shared.handover.idle().wake();
            let age_max = self.shared.settings.delivery_age_max;
            let rows = match self.store.claim_due(owner, &plan, age_max).await {
                Ok(rows) => rows,
                Err(error) => {
                    // If rows were claimed all the same, the reconciliation finds them.
                    let now = Instant::now();
                    let mut lanes = self.shared.handover.lanes();
                    for part in &plan {
                        lanes.abandon_claim(part, now);
                    }
                    return Err(error);
                }
            };
            telemetry::claimed(rows.len());
            let (rows, left) = self.fitting(rows);
            let exhausted = self.settle(&plan, &rows, &left, owner);
            self.leave(left, owner).await;
            self.take(rows, owner).await?;
            self.ask_when_due(owner, &exhausted).await?;
            if self.next_look <= Instant::now() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Splits claimed rows into those whose payloads may be held, and the rest. One always may.
    fn fitting(&self, rows: Vec<ClaimedRow>) -> (Vec<ClaimedRow>, Vec<ClaimedRow>) {
        let free = self.shared.handover.lanes().free_bytes();
        let mut bytes = 0;
        let fitting = rows.iter().take_while(|row| {
            bytes += row.held_bytes();
            bytes <= free
        });
        let count = fitting.count().max(1).min(rows.len());
        let mut rows = rows;
        let left = rows.split_off(count);
        (rows, left)
    }

    /// Gives back rows that were claimed and cannot be held.
    async fn leave(&self, rows: Vec<ClaimedRow>, owner: DispatcherId) {
        if rows.is_empty() {
            return;
        }
        let claims: Vec<_> = rows.iter().map(|row| (row.delivery_id(), row.token(owner))).collect();
        if let Err(error) = self.shared.store.release(&claims, Release::InPlace).await {
            tracing::debug!(%error, "left to the reconciliation");
        }
    }

    /// Learns when lanes that have nothing more to claim will have, so that their next retry is
    /// sent in time and not at the next poll.
    async fn ask_when_due(
        &self,
        owner: DispatcherId,
        lanes: &[(LaneId, Option<DateTime<Utc>>)],
    ) -> Result<(), StoreError> {
        if lanes.is_empty() {
            return Ok(());
        }
        let heads = self.store.next_due(owner, lanes).await?;
        let now = Instant::now();
        let mut desk = self.shared.handover.lanes();
        for head in heads.iter().filter(|head| head.due_in() <= DUE_HORIZON) {
            let (lane, application, due) = (head.lane(), head.application(), now + head.due_in());
            match head.limit() {
                Some(limit) => {
                    desk.set_limit(lane, &limit, now);
                    desk.note_later(lane, application, due, now);
                }
                None => desk.note_due(lane, application, due),
            }
        }
        Ok(())
    }

    /// Tells the lanes what each got; returns those that have nothing more that is due now, each
    /// with its mark.
    fn settle(
        &self,
        plan: &[LaneQuota],
        rows: &[ClaimedRow],
        left: &[ClaimedRow],
        owner: DispatcherId,
    ) -> Vec<(LaneId, Option<DateTime<Utc>>)> {
        let mut got: HashMap<LaneId, Claimed> = HashMap::new();
        for row in rows {
            self.shared.handover.hold(row.delivery_id(), row.token(owner));
            let lane = got.entry(row.lane()).or_default();
            lane.taken += 1;
            lane.bytes += row.held_bytes();
            lane.last_due = lane.last_due.max(Some(row.due_at()));
        }
        for row in left {
            got.entry(row.lane()).or_default().left += 1;
        }
        let now = Instant::now();
        let mut lanes = self.shared.handover.lanes();
        for row in rows {
            if let Some(limit) = row.limit() {
                lanes.set_limit(row.lane(), &limit, now);
            }
        }
        // What is too old takes no time of a rate: there may be more that does.
        let expired: HashMap<LaneId, ApplicationId> = rows
            .iter()
            .filter(|row| row.is_expired)
            .map(|row| (row.lane(), row.application()))
            .collect();
        plan.iter()
            .filter_map(|part| {
                let got = got.get(&part.lane).copied().unwrap_or_default();
                let mut is_exhausted = lanes.settle_claim(part, &got, now);
                if is_exhausted && let Some(application) = expired.get(&part.lane) {
                    lanes.note_due(part.lane, *application, now);
                    is_exhausted = false;
                }
                is_exhausted.then_some((part.lane, part.mark))
            })
            .collect()
    }

    /// Reads the payloads of claimed rows, in portions, and hands the claims to the starter.
    async fn take(&self, rows: Vec<ClaimedRow>, owner: DispatcherId) -> Result<(), StoreError> {
        let (expired, rows): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.is_expired);
        self.bury(expired, owner, ErrorClass::Expired).await;
        let mut rest = rows.into_iter().peekable();
        while rest.peek().is_some() {
            let (mut portion, mut bytes) = (Vec::new(), 0);
            while let Some(row) = rest.next_if(|row| {
                portion.is_empty() || bytes + row.held_bytes() <= PAYLOAD_BYTES_PER_READ
            }) {
                bytes += row.held_bytes();
                portion.push(row);
            }
            if let Err(error) = self.take_portion(portion, owner).await {
                self.put_back(rest.collect(), owner);
                return Err(error);
            }
        }
        Ok(())
    }

    async fn take_portion(
        &self,
        rows: Vec<ClaimedRow>,
        owner: DispatcherId,
    ) -> Result<(), StoreError> {
        let mut events: Vec<EventId> = rows.iter().map(ClaimedRow::event_id).collect();
        events.sort_unstable();
        events.dedup();
        let payloads: HashMap<_, _> = match self.store.payloads(&events).await {
            Ok(payloads) => payloads.into_iter().collect(),
            Err(error) => {
                self.put_back(rows, owner);
                return Err(error);
            }
        };
        // Else each would ask for its application by itself.
        let applications: HashSet<ApplicationId> =
            rows.iter().map(ClaimedRow::application).collect();
        self.shared.routes.prepare(&self.store, applications).await;
        let keys = self.shared.routes.sealing();
        let (mut claims, mut unsendable): (Vec<Claim>, Vec<ClaimedRow>) = (Vec::new(), Vec::new());
        for row in rows {
            match payloads.get(&row.event_id()) {
                Some(payload) => match row.into_claim(owner, payload.clone(), keys) {
                    Ok(claim) => claims.push(claim),
                    Err(row) => unsendable.push(row),
                },
                None => unsendable.push(row),
            }
        }
        self.bury(unsendable, owner, ErrorClass::Internal).await;
        let refused = self.shared.handover.hand_over(claims);
        self.shared.handover.release_paused(&self.shared.store, refused).await;
        Ok(())
    }

    /// Ends deliveries that are too old to be sent, or cannot be: the payload is gone, or the target
    /// is one that an older version took.
    async fn bury(&self, rows: Vec<ClaimedRow>, owner: DispatcherId, reason: ErrorClass) {
        for row in rows {
            self.shared.handover.lanes().give_back(row.lane(), row.held_bytes());
            // The recorder ends after us, so it still listens.
            let _ = self.shared.results.send(unsent(&row, owner, reason)).await;
        }
    }

    /// Loses track of rows that could not be taken; the reconciliation releases them.
    fn put_back(&self, rows: Vec<ClaimedRow>, owner: DispatcherId) {
        for row in rows {
            let (id, token) = (row.delivery_id(), row.token(owner));
            self.shared.handover.take_back(id, token, row.lane(), row.held_bytes());
        }
    }

    /// Releases rows that the database says are ours and that we do not know: commits and claims
    /// whose answer was lost. Of the next pages of the queue: a row that moves out of them meanwhile is
    /// found the next time.
    async fn reconcile(&mut self, owner: DispatcherId) -> Result<(), StoreError> {
        if self.uncompared.is_empty() {
            self.uncompared = self.store.queue_pages().await?;
        }
        let rows = self.store.owned_rows(owner, &mut self.uncompared).await?;
        let unknown: Vec<_> = rows
            .into_iter()
            .filter_map(|row| {
                let token = ClaimToken { owner, number: row.claim_number };
                let id = row.delivery_id();
                (!self.shared.handover.holds(id, token)).then_some((id, token))
            })
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        // Most of them were recorded since the rows were read; the fence leaves those alone.
        let released = self.shared.store.release(&unknown, Release::Now).await?;
        if released > 0 {
            tracing::warn!(released, "claims that were lost track of were released");
            self.shared.look_now.notify_one();
        }
        Ok(())
    }
}
