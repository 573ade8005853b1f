//! Claims what is due: retries, overflow, released work, other processes' leftovers.
//!
//! Waits for a wake-up, the next due time that is known, or the poll, whichever is first. Never
//! claims more than the lanes have room for. The same task reconciles what the database says we own
//! with what we know of, so that no claim can be under way meanwhile.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Shared, recorder::expired};
use crate::{
    domain::{EventId, LaneId, pacing::LaneQuota},
    store::{
        StoreError,
        dispatchers::DispatcherId,
        queue::{Claim, ClaimToken, ClaimedRow},
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
/// Lanes of one page when the queue is looked through, and pages of one look. What is beyond is
/// seen by the next look, which goes on where this one ended.
const LANES_PER_PAGE: i64 = 200;
const PAGES_PER_LOOK: usize = 10;
/// The time between two comparisons of what we own with what we know.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(5);
/// The first pause after a failed round; it doubles up to the second value.
const OUTAGE_PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

struct Claimer {
    shared: Arc<Shared>,
    /// Where the last look through the queue ended; `None` begins anew.
    cursor: Option<LaneId>,
    next_look: Instant,
    next_reconciliation: Instant,
    outage_pause: Duration,
}

/// Claims until the end.
pub async fn run(shared: Arc<Shared>) {
    let now = Instant::now();
    let mut claimer = Claimer {
        shared,
        cursor: None,
        next_look: now,
        next_reconciliation: now + RECONCILE_INTERVAL,
        outage_pause: OUTAGE_PAUSE.0,
    };
    while claimer.wait().await {
        let pause = match claimer.round().await {
            Ok(()) => {
                claimer.outage_pause = OUTAGE_PAUSE.0;
                ROUND_PAUSE
            }
            Err(error) => {
                tracing::warn!(%error, "claiming waits for the database");
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
            Some(_) => self.shared.handover.lanes().next_due(),
            None => None,
        };
        let scheduled = self.next_look.min(self.next_reconciliation);
        let until = due.map_or(scheduled, |due| due.min(scheduled));
        tokio::select! {
            biased;
            () = self.shared.stop.cancelled() => return false,
            () = self.shared.look_now.notified() => {
                (self.next_look, self.cursor) = (Instant::now(), None);
            }
            () = self.shared.handover.claimable() => {}
            () = tokio::time::sleep_until(until.into()) => {}
        }
        true
    }

    async fn round(&mut self) -> Result<(), StoreError> {
        // Whoever is fenced does not claim; the heartbeat wakes us when that ends.
        let Some(owner) = self.shared.handover.owner() else {
            self.next_look = Instant::now() + self.shared.settings.poll_interval;
            self.next_reconciliation = self.next_look.max(self.next_reconciliation);
            return Ok(());
        };
        if self.next_look <= Instant::now() {
            self.look().await?;
            self.next_look = Instant::now() + self.shared.settings.poll_interval;
        }
        if self.next_reconciliation <= Instant::now() {
            self.reconcile(owner).await?;
            self.next_reconciliation = Instant::now() + RECONCILE_INTERVAL;
        }
        self.claim(owner).await
    }

    /// Looks through the queue for lanes with work, due or to come.
    async fn look(&mut self) -> Result<(), StoreError> {
        for _ in 0..PAGES_PER_LOOK {
            let heads = self.shared.store.lane_heads(self.cursor, LANES_PER_PAGE).await?;
            let now = Instant::now();
            let mut lanes = self.shared.handover.lanes();
            for head in &heads {
                let due_in = Duration::from_millis(head.due_in_ms.max(0).unsigned_abs());
                lanes.note_due(head.lane(), now + due_in);
            }
            drop(lanes);
            let is_last = heads.len() < usize::try_from(LANES_PER_PAGE).unwrap_or(usize::MAX);
            self.cursor = heads.last().filter(|_| !is_last).map(|head| head.lane());
            if is_last {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Claims until nothing more is due, or there is no room.
    async fn claim(&mut self, owner: DispatcherId) -> Result<(), StoreError> {
        while !self.shared.stop.is_cancelled() {
            let plan = self.shared.handover.lanes().plan_claim(
                Instant::now(),
                LANES_PER_CLAIM,
                ROWS_PER_CLAIM,
            );
            if plan.is_empty() {
                return Ok(());
            }
            let age_max = self.shared.settings.delivery_age_max;
            let rows = match self.shared.store.claim_due(owner, &plan, age_max).await {
                Ok(rows) => rows,
                Err(error) => {
                    // If rows were claimed all the same, the reconciliation finds them.
                    let mut lanes = self.shared.handover.lanes();
                    plan.iter().for_each(|part| lanes.abandon_claim(part));
                    return Err(error);
                }
            };
            telemetry::claimed(rows.len());
            self.settle(&plan, &rows, owner);
            self.take(rows, owner).await?;
        }
        Ok(())
    }

    /// Tells the lanes what each got.
    fn settle(&self, plan: &[LaneQuota], rows: &[ClaimedRow], owner: DispatcherId) {
        #[derive(Default)]
        struct Got {
            rows: usize,
            bytes: usize,
            last_due: Option<chrono::DateTime<chrono::Utc>>,
        }
        let mut got: HashMap<LaneId, Got> = HashMap::new();
        for row in rows {
            self.shared.handover.hold(row.delivery_id(), row.token(owner));
            let lane = got.entry(row.lane()).or_default();
            lane.rows += 1;
            lane.bytes += row.payload_bytes();
            lane.last_due = lane.last_due.max(Some(row.due_at()));
        }
        let now = Instant::now();
        let mut lanes = self.shared.handover.lanes();
        for part in plan {
            let Got { rows, bytes, last_due } = got.remove(&part.lane).unwrap_or_default();
            lanes.settle_claim(part, rows, bytes, last_due, now);
        }
    }

    /// Reads the payloads of claimed rows, in portions, and hands the claims to the starter.
    async fn take(&self, rows: Vec<ClaimedRow>, owner: DispatcherId) -> Result<(), StoreError> {
        let (expired_rows, rows): (Vec<_>, Vec<_>) =
            rows.into_iter().partition(|row| row.is_expired);
        self.bury(expired_rows, owner).await;
        let mut rest = rows.into_iter().peekable();
        while rest.peek().is_some() {
            let (mut portion, mut bytes) = (Vec::new(), 0);
            while let Some(row) = rest.next_if(|row| {
                portion.is_empty() || bytes + row.payload_bytes() <= PAYLOAD_BYTES_PER_READ
            }) {
                bytes += row.payload_bytes();
                portion.push(row);
            }
            if let Err(error) = self.take_portion(portion, owner).await {
                self.put_back(rest.collect());
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
        let payloads: HashMap<_, _> = match self.shared.store.payloads(&events).await {
            Ok(payloads) => payloads.into_iter().collect(),
            Err(error) => {
                self.put_back(rows);
                return Err(error);
            }
        };
        let (mut claims, mut unsendable): (Vec<Claim>, Vec<ClaimedRow>) = (Vec::new(), Vec::new());
        for row in rows {
            match payloads.get(&row.event_id()) {
                Some(payload) => match row.into_claim(owner, payload.clone()) {
                    Ok(claim) => claims.push(claim),
                    Err(row) => unsendable.push(row),
                },
                None => unsendable.push(row),
            }
        }
        self.bury(unsendable, owner).await;
        self.shared.handover.hand_over(claims);
        Ok(())
    }

    /// Ends deliveries that are too old to be sent, or whose payload is gone.
    async fn bury(&self, rows: Vec<ClaimedRow>, owner: DispatcherId) {
        for row in rows {
            self.shared.handover.lanes().give_back(row.lane(), row.payload_bytes());
            // The recorder ends after us, so it still listens.
            let _ = self.shared.results.send(expired(&row, owner)).await;
        }
    }

    /// Loses track of rows that could not be taken; the reconciliation releases them.
    fn put_back(&self, rows: Vec<ClaimedRow>) {
        for row in rows {
            self.shared.handover.take_back(row.delivery_id(), row.lane(), row.payload_bytes());
        }
    }

    /// Releases rows that the database says are ours and that we do not know: commits and claims
    /// whose answer was lost.
    async fn reconcile(&self, owner: DispatcherId) -> Result<(), StoreError> {
        let rows = self.shared.store.owned_rows(owner).await?;
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
        let released = self.shared.store.release(&unknown, Duration::ZERO).await?;
        if released > 0 {
            tracing::warn!(released, "claims that were lost track of were released");
            self.shared.look_now.notify_one();
        }
        Ok(())
    }
}
