//! Lanes: who may be sent to now, and how much of each backlog this process may hold.
//!
//! A state machine without clock, database or tasks. It answers four questions:
//! - may this new delivery be born claimed ([`Lanes::reserve`])?
//! - which lanes should the next claim name, and how many rows of each ([`Lanes::plan_claim`])?
//! - what is sent next ([`Lanes::start_next`])?
//! - what follows from a result ([`Lanes::finish`])?
//!
//! Fairness comes from three bounds, all counted before anything is claimed. A lane holds at most
//! so many deliveries in memory and has at most so many in flight; the ready lanes take turns. So
//! a lane whose receiver hangs keeps its own few slots busy, and its backlog stays in the database.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};

use super::ids::LaneId;

/// The bounds. Every number counts deliveries, but for the bytes.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Requests under way to one lane.
    pub lane_in_flight_max: usize,
    /// Deliveries of one lane that one process holds: reserved, queued and in flight.
    pub lane_held_max: usize,
    /// Requests under way in all. A waiting request costs some 40 KiB.
    pub in_flight_max: usize,
    /// Deliveries held in all.
    pub held_max: usize,
    /// Payload bytes held in all.
    pub held_bytes_max: usize,
}

/// How many lanes are remembered. Beyond it new ones are neither born claimed nor noted as due;
/// the database remembers their work, and the next discovery finds it.
const LANES_MAX: usize = 100_000;
/// Below the last due time that a claim returned, this much is read again by the next claim:
/// another transaction may commit later with an earlier `now()`.
const MARK_SLACK: chrono::Duration = chrono::Duration::seconds(5);
/// After this long a low-water mark is forgotten, so that a row below it (skipped because it was
/// locked, say) waits no longer than this.
const MARK_AGE_MAX: Duration = Duration::from_secs(10);

/// What a delivery in memory has to tell.
pub trait Held {
    /// Its lane.
    fn lane(&self) -> LaneId;
    /// How many payload bytes it holds.
    fn bytes(&self) -> usize;
}

/// What one finished attempt says about its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The receiver took it.
    Healthy,
    /// The attempt failed. New events queue in the database until one succeeds.
    Failing,
    /// The receiver asked for quiet for this long.
    Paused(Duration),
}

/// One lane's part of a claim.
#[derive(Debug, Clone, PartialEq)]
pub struct LaneQuota {
    /// The lane.
    pub lane: LaneId,
    /// How many rows may be claimed. They are reserved until [`Lanes::settle_claim`].
    pub quota: usize,
    /// Rows due before this were claimed already: the index entries that they left are not walked
    /// again. `None` reads from the beginning.
    pub mark: Option<DateTime<Utc>>,
}

#[derive(Debug)]
struct Lane<T> {
    in_flight: usize,
    /// Room promised to deliveries that are being inserted or claimed.
    reserved: usize,
    queued: VecDeque<T>,
    /// When this lane's work in the database is due, as far as is known.
    due: Option<Instant>,
    paused_until: Option<Instant>,
    is_failing: bool,
    is_in_ring: bool,
    /// This lane's entry in `Lanes::due`.
    indexed: Option<Instant>,
    mark: Option<(DateTime<Utc>, Instant)>,
}

/// All lanes that this process has to do with.
#[derive(Debug)]
pub struct Lanes<T> {
    limits: Limits,
    lanes: HashMap<LaneId, Lane<T>>,
    /// Lanes with something to start and a free slot, each once.
    ring: VecDeque<LaneId>,
    /// Lanes with work in the database that have room for it, by the time when it is due.
    due: BTreeSet<(Instant, LaneId)>,
    in_flight: usize,
    held: usize,
    held_bytes: usize,
}

impl<T> Default for Lane<T> {
    fn default() -> Self {
        Self {
            in_flight: 0,
            reserved: 0,
            queued: VecDeque::new(),
            due: None,
            paused_until: None,
            is_failing: false,
            is_in_ring: false,
            indexed: None,
            mark: None,
        }
    }
}

impl<T> Lane<T> {
    fn held(&self) -> usize {
        self.reserved + self.queued.len() + self.in_flight
    }

    fn is_paused(&self, now: Instant) -> bool {
        self.paused_until.is_some_and(|until| now < until)
    }
}

impl<T: Held> Lanes<T> {
    /// No lanes yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            lanes: HashMap::new(),
            ring: VecDeque::new(),
            due: BTreeSet::new(),
            in_flight: 0,
            held: 0,
            held_bytes: 0,
        }
    }

    /// Asks for room for a new delivery, so that it may be born claimed. A lane that is paused,
    /// failing, full, or has work due in the database gets none: new events do not overtake old
    /// ones. What is granted must end in [`Self::push`] or [`Self::give_back`].
    pub fn reserve(&mut self, id: LaneId, bytes: usize, now: Instant) -> bool {
        if self.held >= self.limits.held_max
            || self.held_bytes + bytes > self.limits.held_bytes_max
            || (self.lanes.len() >= LANES_MAX && !self.lanes.contains_key(&id))
        {
            return false;
        }
        let lane = self.lanes.entry(id).or_default();
        let is_free = !lane.is_failing
            && !lane.is_paused(now)
            && lane.due.is_none_or(|due| now < due)
            && lane.held() < self.limits.lane_held_max;
        if is_free {
            lane.reserved += 1;
            self.held += 1;
            self.held_bytes += bytes;
        }
        is_free
    }

    /// Returns room that was reserved and is not needed.
    pub fn give_back(&mut self, id: LaneId, bytes: usize) {
        self.held_bytes -= bytes;
        self.release_reserved(id, 1);
    }

    /// Turns a reservation into a delivery that waits to be started.
    pub fn push(&mut self, job: T) {
        let id = job.lane();
        let lane = self.lanes.entry(id).or_default();
        lane.reserved -= 1;
        lane.queued.push_back(job);
        self.offer(id);
    }

    /// Takes the next delivery to send, if a slot is free. The lanes take turns.
    pub fn start_next(&mut self) -> Option<T> {
        if self.in_flight >= self.limits.in_flight_max {
            return None;
        }
        let id = self.ring.pop_front()?;
        let lane = self.lanes.get_mut(&id)?;
        lane.is_in_ring = false;
        let job = lane.queued.pop_front()?;
        lane.in_flight += 1;
        self.in_flight += 1;
        self.offer(id);
        Some(job)
    }

    /// Notes the end of an attempt. Returns the deliveries of a lane that has just been paused:
    /// they go back to the database, where waiting costs nothing.
    pub fn finish(&mut self, id: LaneId, bytes: usize, verdict: Verdict, now: Instant) -> Vec<T> {
        let Some(lane) = self.lanes.get_mut(&id) else { return Vec::new() };
        lane.in_flight -= 1;
        self.in_flight -= 1;
        self.held -= 1;
        self.held_bytes -= bytes;
        lane.is_failing = verdict != Verdict::Healthy;
        let mut returned = Vec::new();
        if let Verdict::Paused(pause) = verdict {
            lane.paused_until = lane.paused_until.max(Some(now + pause));
            returned = lane.queued.drain(..).collect();
            self.held -= returned.len();
            self.held_bytes -= returned.iter().map(Held::bytes).sum::<usize>();
        }
        self.offer(id);
        self.reindex(id);
        returned
    }

    /// Drops a delivery that was started but must not be sent: the claim is not ours any more.
    pub fn forget_started(&mut self, id: LaneId, bytes: usize) {
        self.in_flight -= 1;
        self.held -= 1;
        self.held_bytes -= bytes;
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.in_flight -= 1;
        }
        self.offer(id);
        self.reindex(id);
    }

    /// Notes that a lane has, or will have, work in the database.
    pub fn note_due(&mut self, id: LaneId, due: Instant) {
        if self.lanes.len() >= LANES_MAX && !self.lanes.contains_key(&id) {
            return;
        }
        let lane = self.lanes.entry(id).or_default();
        if lane.due.is_none_or(|known| due < known) {
            lane.due = Some(due);
            self.reindex(id);
        }
    }

    /// When the next claim would find something that there is room for, as far as is known.
    pub fn next_due(&self) -> Option<Instant> {
        let has_room =
            self.held < self.limits.held_max && self.held_bytes < self.limits.held_bytes_max;
        self.due.first().filter(|_| has_room).map(|&(due, _)| due)
    }

    /// Names the lanes whose work is due and how many rows of each to claim, and reserves them.
    pub fn plan_claim(
        &mut self,
        now: Instant,
        lanes_max: usize,
        rows_max: usize,
    ) -> Vec<LaneQuota> {
        let mut free = rows_max.min(self.limits.held_max.saturating_sub(self.held));
        if self.held_bytes >= self.limits.held_bytes_max {
            free = 0;
        }
        let mut plan = Vec::new();
        while free > 0 && plan.len() < lanes_max {
            let Some(&(due, id)) = self.due.first().filter(|&&(due, _)| due <= now) else { break };
            self.due.remove(&(due, id));
            let Some(lane) = self.lanes.get_mut(&id) else { continue };
            lane.indexed = None;
            // Enough for some round trips of the receiver, so that a backlog drains without pause.
            let window = (4 * self.limits.lane_in_flight_max).min(self.limits.lane_held_max);
            let quota = window.saturating_sub(lane.held()).min(free);
            if quota == 0 {
                continue;
            }
            lane.reserved += quota;
            self.held += quota;
            free -= quota;
            lane.mark = lane.mark.filter(|&(_, set_at)| now < set_at + MARK_AGE_MAX);
            plan.push(LaneQuota { lane: id, quota, mark: lane.mark.map(|(mark, _)| mark) });
        }
        plan
    }

    /// Notes what a claim brought: `claimed` rows of a lane, the latest of them due at `last_due`.
    /// They are pushed afterwards; the rest of the quota is returned.
    pub fn settle_claim(
        &mut self,
        planned: &LaneQuota,
        claimed: usize,
        bytes: usize,
        last_due: Option<DateTime<Utc>>,
        now: Instant,
    ) {
        self.held_bytes += bytes;
        if let Some(lane) = self.lanes.get_mut(&planned.lane) {
            if let Some(last_due) = last_due {
                let set_at = lane.mark.map_or(now, |(_, set_at)| set_at);
                lane.mark = Some((last_due - MARK_SLACK, set_at));
            }
            if claimed < planned.quota {
                // The backlog is exhausted. What is due later is found again by the discovery.
                lane.due = None;
            }
        }
        self.release_reserved(planned.lane, planned.quota - claimed);
    }

    /// Puts a lane whose claim failed back as due.
    pub fn abandon_claim(&mut self, planned: &LaneQuota) {
        self.release_reserved(planned.lane, planned.quota);
    }

    /// Takes everything that waits in memory, to be returned to the database.
    pub fn drain_queued(&mut self) -> Vec<T> {
        self.ring.clear();
        let mut drained = Vec::new();
        for lane in self.lanes.values_mut() {
            lane.is_in_ring = false;
            drained.extend(lane.queued.drain(..));
        }
        self.held -= drained.len();
        self.held_bytes -= drained.iter().map(Held::bytes).sum::<usize>();
        drained
    }

    /// Drops what is known of idle lanes. A failing lane is forgotten too: its next event is the
    /// probe that says how it is.
    pub fn forget_idle(&mut self, now: Instant) {
        self.lanes.retain(|_, lane| lane.held() > 0 || lane.due.is_some() || lane.is_paused(now));
    }

    /// Requests under way.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Deliveries in memory: reserved, queued and in flight.
    pub fn held(&self) -> usize {
        self.held
    }

    fn release_reserved(&mut self, id: LaneId, count: usize) {
        self.held -= count;
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.reserved -= count;
        }
        self.reindex(id);
    }

    /// Puts a lane into the ring if it has something to start and a free slot.
    fn offer(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        if !lane.is_in_ring
            && !lane.queued.is_empty()
            && lane.in_flight < self.limits.lane_in_flight_max
        {
            lane.is_in_ring = true;
            self.ring.push_back(id);
        }
    }

    /// Brings `due` up to date: a lane is in it while it has work in the database and room for at
    /// least half a window, so that claims are not made of single rows.
    fn reindex(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let has_room = lane.held() <= 2 * self.limits.lane_in_flight_max;
        let wanted = lane
            .due
            .filter(|_| has_room)
            .map(|due| lane.paused_until.map_or(due, |until| due.max(until)));
        if lane.indexed != wanted {
            if let Some(old) = lane.indexed {
                self.due.remove(&(old, id));
            }
            if let Some(new) = wanted {
                self.due.insert((new, id));
            }
            lane.indexed = wanted;
        }
    }
}
