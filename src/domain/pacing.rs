//! Lanes: who may be sent to now, and how much of each backlog this process may hold.
//!
//! A state machine without clock, database or tasks. It answers four questions:
//! - may this new delivery be born claimed ([`Lanes::reserve`])?
//! - which lanes should the next claim name, and how many rows of each ([`Lanes::plan_claim`])?
//! - what is sent next ([`Lanes::start_next`])?
//! - what follows from a result ([`Lanes::conclude`], [`Lanes::free`])?
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
    /// Requests under way to one lane, and results of it that are not recorded yet.
    pub lane_in_flight_max: usize,
    /// Deliveries of one lane that one process holds: reserved, queued and in flight.
    pub lane_held_max: usize,
    /// The same in all. A waiting request costs some 40 KiB.
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
/// Only what is due within this is noted; the database remembers the rest, and the discovery finds
/// it in time. Otherwise every lane with a retry in some hours would be remembered until then.
pub const DUE_HORIZON: Duration = Duration::from_secs(60);
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
    /// The attempt ran out of time. What waits in memory returns to the database as well: at this
    /// pace it would be held for long.
    Hung,
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

/// What a claim brought of one lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Claimed {
    /// Rows that are to be pushed.
    pub taken: usize,
    /// Rows that were claimed and given back, since their payloads would not fit.
    pub left: usize,
    /// Payload bytes of the rows that are to be pushed.
    pub bytes: usize,
    /// When the latest of the rows was due.
    pub last_due: Option<DateTime<Utc>>,
}

#[derive(Debug)]
struct Lane<T> {
    in_flight: usize,
    /// Room promised to deliveries that are being inserted or claimed.
    reserved: usize,
    queued: VecDeque<T>,
    /// When this lane's work in the database is due, as far as is known.
    due: Option<Instant>,
    /// A claim that names this lane is under way; what is noted as due meanwhile is kept for after.
    is_claiming: bool,
    paused_until: Option<Instant>,
    is_failing: bool,
    last_success: Option<Instant>,
    is_in_ring: bool,
    /// This lane's entry in `Lanes::due`.
    indexed: Option<Instant>,
    mark: Option<(DateTime<Utc>, Instant)>,
}

/// All lanes that this process has to do with.
#[derive(Debug)]
pub struct Lanes<T> {
    limits: Limits,
    by_id: HashMap<LaneId, Lane<T>>,
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
            is_claiming: false,
            paused_until: None,
            is_failing: false,
            last_success: None,
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

    /// How many deliveries a claim may fill the lane up to: enough for some round trips of the
    /// receiver, so that a backlog drains without a break; of a failing one only what is sent now.
    fn window(&self, limits: &Limits) -> usize {
        let round_trips = if self.is_failing { 1 } else { 4 };
        (round_trips * limits.lane_in_flight_max).min(limits.lane_held_max)
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
            by_id: HashMap::new(),
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
            || (self.by_id.len() >= LANES_MAX && !self.by_id.contains_key(&id))
        {
            return false;
        }
        let lane = self.by_id.entry(id).or_default();
        let is_free = !lane.is_failing
            && !lane.is_claiming
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

    /// Turns a reservation into a delivery that waits to be started. A lane that was paused since
    /// takes none: the delivery is returned, with the rest of the pause, and its room is free.
    pub fn push(&mut self, delivery: T, now: Instant) -> Result<(), (T, Duration)> {
        let id = delivery.lane();
        let lane = self.by_id.entry(id).or_default();
        if let Some(left) = lane.paused_until.and_then(|until| until.checked_duration_since(now))
            && !left.is_zero()
        {
            self.give_back(id, delivery.bytes());
            return Err((delivery, left));
        }
        lane.reserved -= 1;
        lane.queued.push_back(delivery);
        self.offer(id);
        Ok(())
    }

    /// Takes the next delivery to send, if a slot is free. The lanes take turns.
    pub fn start_next(&mut self) -> Option<T> {
        if self.in_flight >= self.limits.in_flight_max {
            return None;
        }
        while let Some(id) = self.ring.pop_front() {
            let Some(lane) = self.by_id.get_mut(&id) else { continue };
            lane.is_in_ring = false;
            // A lane whose waiting deliveries were given back meanwhile is still in the ring.
            let Some(delivery) = lane.queued.pop_front() else { continue };
            lane.in_flight += 1;
            self.in_flight += 1;
            self.offer(id);
            return Some(delivery);
        }
        None
    }

    /// Notes what an attempt says about its lane; its slot stays taken until [`Self::free`]. Returns
    /// what waits in memory for a lane that is now paused, or hangs: it goes back to the database,
    /// where waiting costs nothing. A failure says nothing about a lane that has had a success since
    /// the failed attempt `began`.
    pub fn conclude(
        &mut self,
        id: LaneId,
        verdict: Verdict,
        began: Instant,
        now: Instant,
    ) -> Vec<T> {
        let Some(lane) = self.by_id.get_mut(&id) else { return Vec::new() };
        let is_refuted = lane.last_success.is_some_and(|success| began <= success);
        let mut returned = Vec::new();
        match verdict {
            Verdict::Healthy => {
                lane.is_failing = false;
                lane.last_success = Some(now);
            }
            Verdict::Failing | Verdict::Hung if is_refuted => {}
            Verdict::Failing => lane.is_failing = true,
            Verdict::Hung | Verdict::Paused(_) => {
                lane.is_failing = true;
                returned = lane.queued.drain(..).collect();
                // They are due as long ago as they were.
                lane.mark = None;
            }
        }
        if let Verdict::Paused(pause) = verdict {
            lane.paused_until = lane.paused_until.max(Some(now + pause));
        }
        if !returned.is_empty() {
            self.held -= returned.len();
            self.held_bytes -= returned.iter().map(Held::bytes).sum::<usize>();
        }
        self.reindex(id);
        returned
    }

    /// Frees the slot of a delivery that was started: its result is recorded. Until then it counts
    /// as in flight, so that a crash repeats no more than the slots there are.
    pub fn free(&mut self, id: LaneId, bytes: usize) {
        self.in_flight -= 1;
        self.held -= 1;
        self.held_bytes -= bytes;
        if let Some(lane) = self.by_id.get_mut(&id) {
            lane.in_flight -= 1;
        }
        self.offer(id);
        self.reindex(id);
    }

    /// Notes that a lane has, or will have, work in the database.
    pub fn note_due(&mut self, id: LaneId, due: Instant) {
        if self.by_id.len() >= LANES_MAX && !self.by_id.contains_key(&id) {
            return;
        }
        let lane = self.by_id.entry(id).or_default();
        if lane.due.is_none_or(|known| due < known) {
            lane.due = Some(due);
        }
        self.reindex(id);
    }

    /// When the next claim would find something that there is room for, as far as is known.
    pub fn next_due(&self) -> Option<Instant> {
        self.due.first().filter(|_| self.has_room()).map(|&(due, _)| due)
    }

    /// Names the lanes whose work is due and how many rows of each to claim, and reserves them.
    pub fn plan_claim(
        &mut self,
        now: Instant,
        lanes_max: usize,
        rows_max: usize,
    ) -> Vec<LaneQuota> {
        let mut free = rows_max.min(self.limits.held_max.saturating_sub(self.held));
        if !self.has_room() {
            free = 0;
        }
        let mut plan = Vec::new();
        while free > 0 && plan.len() < lanes_max {
            let Some(&(due, id)) = self.due.first().filter(|&&(due, _)| due <= now) else { break };
            self.due.remove(&(due, id));
            let Some(lane) = self.by_id.get_mut(&id) else { continue };
            lane.indexed = None;
            let quota = lane.window(&self.limits).saturating_sub(lane.held()).min(free);
            if quota == 0 {
                continue;
            }
            lane.due = None;
            lane.is_claiming = true;
            lane.reserved += quota;
            self.held += quota;
            free -= quota;
            lane.mark = lane.mark.filter(|&(_, set_at)| now < set_at + MARK_AGE_MAX);
            plan.push(LaneQuota { lane: id, quota, mark: lane.mark.map(|(mark, _)| mark) });
        }
        plan
    }

    /// Notes what a claim brought. What was taken is pushed afterwards; the rest of the quota is
    /// returned. Tells whether the lane has nothing more that is due now; then it should be asked
    /// when it will have.
    pub fn settle_claim(&mut self, planned: &LaneQuota, got: &Claimed, now: Instant) -> bool {
        self.held_bytes += got.bytes;
        let is_exhausted = got.taken + got.left < planned.quota;
        if let Some(lane) = self.by_id.get_mut(&planned.lane) {
            lane.is_claiming = false;
            if got.left > 0 {
                lane.mark = None;
            } else if let Some(last_due) = got.last_due {
                let set_at = lane.mark.map_or(now, |(_, set_at)| set_at);
                lane.mark = Some((last_due - MARK_SLACK, set_at));
            }
            if !is_exhausted {
                lane.due = Some(lane.due.map_or(now, |due| due.min(now)));
            }
        }
        self.release_reserved(planned.lane, planned.quota - got.taken);
        is_exhausted
    }

    /// Puts a lane whose claim failed back as due.
    pub fn abandon_claim(&mut self, planned: &LaneQuota, now: Instant) {
        if let Some(lane) = self.by_id.get_mut(&planned.lane) {
            lane.is_claiming = false;
            lane.due = Some(lane.due.map_or(now, |due| due.min(now)));
        }
        self.release_reserved(planned.lane, planned.quota);
    }

    /// How many more payload bytes may be held.
    pub fn free_bytes(&self) -> usize {
        self.limits.held_bytes_max.saturating_sub(self.held_bytes)
    }

    /// Takes everything that waits in memory, to be returned to the database.
    pub fn drain_queued(&mut self) -> Vec<T> {
        self.ring.clear();
        let mut drained = Vec::new();
        for lane in self.by_id.values_mut() {
            lane.is_in_ring = false;
            drained.extend(lane.queued.drain(..));
        }
        self.held -= drained.len();
        self.held_bytes -= drained.iter().map(Held::bytes).sum::<usize>();
        let lanes: Vec<LaneId> = self.by_id.keys().copied().collect();
        for id in lanes {
            self.reindex(id);
        }
        drained
    }

    /// Drops what is known of idle lanes. A failing lane is forgotten too: its next event is the
    /// probe that says how it is.
    pub fn forget_idle(&mut self, now: Instant) {
        self.by_id.retain(|_, lane| {
            lane.held() > 0 || lane.due.is_some() || lane.is_claiming || lane.is_paused(now)
        });
    }

    /// Requests under way, and results that are not recorded yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Deliveries in memory: reserved, queued and in flight.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Whether a claim is worth it. At the bound in bytes most rows of one would have to be given
    /// back, so it waits until an eighth is free.
    fn has_room(&self) -> bool {
        self.held < self.limits.held_max
            && self.held_bytes <= self.limits.held_bytes_max - self.limits.held_bytes_max / 8
    }

    fn release_reserved(&mut self, id: LaneId, count: usize) {
        self.held -= count;
        if let Some(lane) = self.by_id.get_mut(&id) {
            lane.reserved -= count;
        }
        self.reindex(id);
    }

    /// Puts a lane into the ring if it has something to start and a free slot.
    fn offer(&mut self, id: LaneId) {
        let Some(lane) = self.by_id.get_mut(&id) else { return };
        if !lane.is_in_ring
            && !lane.queued.is_empty()
            && lane.in_flight < self.limits.lane_in_flight_max
        {
            lane.is_in_ring = true;
            self.ring.push_back(id);
        }
    }

    /// Brings `due` up to date: a lane is in it while it has work in the database, no claim under
    /// way, and room for at least half a window, so that claims are not made of single rows.
    fn reindex(&mut self, id: LaneId) {
        let Some(lane) = self.by_id.get_mut(&id) else { return };
        let has_room = lane.held() <= lane.window(&self.limits) / 2;
        let wanted = lane
            .due
            .filter(|_| has_room && !lane.is_claiming)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    #[derive(Debug, PartialEq, Eq)]
    struct Delivery(LaneId);

    impl Held for Delivery {
        fn lane(&self) -> LaneId {
            self.0
        }

        fn bytes(&self) -> usize {
            10
        }
    }

    const LIMITS: Limits = Limits {
        lane_in_flight_max: 2,
        lane_held_max: 5,
        in_flight_max: 4,
        held_max: 20,
        held_bytes_max: 150,
    };

    fn lane(n: u128) -> LaneId {
        LaneId::from_uuid(Uuid::from_u128(n))
    }

    fn lanes() -> (Lanes<Delivery>, Instant) {
        (Lanes::new(LIMITS), Instant::now())
    }

    /// Reserves and pushes as many as are granted.
    fn fill(lanes: &mut Lanes<Delivery>, id: LaneId, count: usize, now: Instant) -> usize {
        let granted = (0..count).filter(|_| lanes.reserve(id, 10, now)).count();
        (0..granted).for_each(|_| lanes.push(Delivery(id), now).unwrap());
        granted
    }

    /// Ends an attempt and records it.
    fn finish(
        lanes: &mut Lanes<Delivery>,
        id: LaneId,
        verdict: Verdict,
        began: Instant,
        now: Instant,
    ) -> Vec<Delivery> {
        let returned = lanes.conclude(id, verdict, began, now);
        lanes.free(id, 10);
        returned
    }

    fn start_all(lanes: &mut Lanes<Delivery>) -> Vec<LaneId> {
        std::iter::from_fn(|| lanes.start_next()).map(|delivery| delivery.0).collect()
    }

    #[test]
    fn a_lane_is_born_claimed_up_to_its_bound() {
        let (mut lanes, now) = lanes();
        assert_eq!(fill(&mut lanes, lane(1), 9, now), 5);
        assert_eq!(start_all(&mut lanes), [lane(1), lane(1)]);
        assert_eq!((lanes.in_flight(), lanes.held()), (2, 5));
    }

    #[test]
    fn all_lanes_together_have_bounds_in_rows_and_in_bytes() {
        let (mut lanes, now) = lanes();
        let granted: usize = (0..9).map(|n| fill(&mut lanes, lane(n), 9, now)).sum();
        assert_eq!(granted, 15, "150 bytes, 10 each");
        assert_eq!(start_all(&mut lanes).len(), 4, "slots of all lanes");
        assert!(lanes.start_next().is_none());
    }

    #[test]
    fn a_slot_is_free_when_its_result_is_recorded() {
        let (mut lanes, now) = lanes();
        fill(&mut lanes, lane(1), 5, now);
        start_all(&mut lanes);
        lanes.conclude(lane(1), Verdict::Healthy, now, now);
        assert!(lanes.start_next().is_none());
        lanes.free(lane(1), 10);
        assert!(lanes.start_next().is_some());
    }

    #[test]
    fn lanes_take_turns() {
        let (mut lanes, now) = lanes();
        fill(&mut lanes, lane(1), 5, now);
        fill(&mut lanes, lane(2), 5, now);
        assert_eq!(start_all(&mut lanes), [lane(1), lane(2), lane(1), lane(2)]);
        finish(&mut lanes, lane(2), Verdict::Healthy, now, now);
        assert_eq!(start_all(&mut lanes), [lane(2)], "a slot goes to who has room");
    }

    #[test]
    fn new_deliveries_do_not_overtake_what_is_due() {
        let (mut lanes, now) = lanes();
        lanes.note_due(lane(1), now);
        assert!(!lanes.reserve(lane(1), 10, now));
        assert!(lanes.reserve(lane(2), 10, now));
        let later = now + Duration::from_secs(60);
        lanes.note_due(lane(3), later);
        assert!(lanes.reserve(lane(3), 10, now), "a retry that is not due holds nobody up");
        assert!(!lanes.reserve(lane(3), 10, later));
    }

    #[test]
    fn a_failing_lane_is_not_born_claimed_until_it_succeeds() {
        let (mut lanes, now) = lanes();
        fill(&mut lanes, lane(1), 2, now);
        start_all(&mut lanes);
        assert!(finish(&mut lanes, lane(1), Verdict::Failing, now, now).is_empty());
        assert!(!lanes.reserve(lane(1), 10, now));
        finish(&mut lanes, lane(1), Verdict::Healthy, now, now);
        assert!(lanes.reserve(lane(1), 10, now));
    }

    #[test]
    fn a_paused_or_hanging_lane_gives_back_what_waits() {
        for verdict in [Verdict::Paused(Duration::from_secs(9)), Verdict::Hung] {
            let (mut lanes, now) = lanes();
            fill(&mut lanes, lane(1), 5, now);
            start_all(&mut lanes);
            assert_eq!(finish(&mut lanes, lane(1), verdict, now, now).len(), 3);
            assert_eq!((lanes.in_flight(), lanes.held()), (1, 1));
            assert!(!lanes.reserve(lane(1), 10, now));
        }
    }

    #[test]
    fn a_paused_lane_is_claimed_from_when_the_pause_ends() {
        let (mut lanes, now) = lanes();
        fill(&mut lanes, lane(1), 1, now);
        start_all(&mut lanes);
        finish(&mut lanes, lane(1), Verdict::Paused(Duration::from_secs(9)), now, now);
        lanes.note_due(lane(1), now);
        assert!(lanes.plan_claim(now, 9, 9).is_empty());
        let end = now + Duration::from_secs(9);
        assert_eq!(lanes.next_due(), Some(end));
        assert_eq!(lanes.plan_claim(end, 9, 9).len(), 1);
    }

    #[test]
    fn claims_are_planned_for_due_lanes_within_their_room() {
        let (mut lanes, now) = lanes();
        fill(&mut lanes, lane(1), 2, now);
        for n in 1..=3 {
            lanes.note_due(lane(n), now);
        }
        lanes.note_due(lane(4), now + Duration::from_secs(1));
        let plan = lanes.plan_claim(now, 9, 9);
        let quotas: Vec<_> = plan.iter().map(|part| (part.lane, part.quota)).collect();
        // Each lane has room for five; nine in all.
        assert_eq!(quotas, [(lane(1), 3), (lane(2), 5), (lane(3), 1)]);
        assert!(lanes.plan_claim(now, 9, 9).iter().all(|part| part.lane == lane(3)), "reserved");
    }

    #[test]
    fn a_full_lane_is_planned_again_when_it_has_room() {
        let (mut lanes, now) = lanes();
        fill(&mut lanes, lane(1), 5, now);
        lanes.note_due(lane(1), now);
        assert_eq!(lanes.next_due(), None);
        for _ in 0..2 {
            start_all(&mut lanes);
            finish(&mut lanes, lane(1), Verdict::Healthy, now, now);
            assert_eq!(lanes.next_due(), None, "a claim of single rows is not worth it");
        }
        finish(&mut lanes, lane(1), Verdict::Healthy, now, now);
        assert_eq!(lanes.next_due(), Some(now), "room for half a window");
    }

    #[test]
    fn what_a_claim_brought_decides_whether_there_is_more() {
        let (mut lanes, now) = lanes();
        let due: DateTime<Utc> = DateTime::UNIX_EPOCH + chrono::Duration::days(1);
        lanes.note_due(lane(1), now);
        let plan = lanes.plan_claim(now, 9, 2);
        assert_eq!((plan[0].quota, plan[0].mark), (2, None));
        let full = Claimed { taken: 2, left: 0, bytes: 20, last_due: Some(due) };
        assert!(!lanes.settle_claim(&plan[0], &full, now));
        lanes.push(Delivery(lane(1)), now).unwrap();
        lanes.push(Delivery(lane(1)), now).unwrap();
        assert_eq!(lanes.next_due(), Some(now), "a full claim: there may be more");

        let plan = lanes.plan_claim(now, 9, 9);
        assert_eq!(plan[0].mark, Some(due - MARK_SLACK));
        assert!(lanes.settle_claim(&plan[0], &Claimed::default(), now));
        assert_eq!(lanes.next_due(), None, "exhausted");
        assert_eq!(lanes.held(), 2);

        lanes.note_due(lane(1), now);
        let later = now + MARK_AGE_MAX;
        assert_eq!(lanes.plan_claim(later, 9, 9)[0].mark, None, "marks grow old");
    }

    #[test]
    fn an_abandoned_claim_leaves_its_lanes_due() {
        let (mut lanes, now) = lanes();
        lanes.note_due(lane(1), now);
        let plan = lanes.plan_claim(now, 9, 9);
        lanes.abandon_claim(&plan[0], now);
        assert_eq!((lanes.next_due(), lanes.held()), (Some(now), 0));
    }

    #[test]
    fn what_becomes_due_during_a_claim_is_not_forgotten() {
        let (mut lanes, now) = lanes();
        lanes.note_due(lane(1), now);
        let plan = lanes.plan_claim(now, 9, 9);
        let later = now + Duration::from_millis(5);
        lanes.note_due(lane(1), later);
        assert_eq!(lanes.next_due(), None, "not while the claim is under way");
        assert!(!lanes.reserve(lane(1), 10, now), "nor may new deliveries overtake it");
        assert!(lanes.settle_claim(&plan[0], &Claimed::default(), now));
        assert_eq!(lanes.next_due(), Some(later));
    }

    #[test]
    fn rows_that_did_not_fit_stay_due() {
        let (mut lanes, now) = lanes();
        lanes.note_due(lane(1), now);
        let plan = lanes.plan_claim(now, 9, 2);
        let got = Claimed { taken: 1, left: 1, bytes: 100, last_due: Some(DateTime::UNIX_EPOCH) };
        assert!(!lanes.settle_claim(&plan[0], &got, now));
        assert_eq!((lanes.free_bytes(), lanes.held()), (50, 1));
        assert_eq!(lanes.plan_claim(now, 9, 9)[0].mark, None, "they lie below any mark");
    }

    #[test]
    fn a_lane_that_was_paused_takes_nothing_until_the_end() {
        let (mut lanes, now) = lanes();
        fill(&mut lanes, lane(1), 1, now);
        assert!(lanes.reserve(lane(1), 10, now));
        start_all(&mut lanes);
        let pause = Duration::from_secs(9);
        finish(&mut lanes, lane(1), Verdict::Paused(pause), now, now);
        let (_, left) = lanes.push(Delivery(lane(1)), now).unwrap_err();
        assert_eq!((left, lanes.held()), (pause, 0));
    }

    #[test]
    fn a_failure_is_refuted_by_a_later_success() {
        let (mut lanes, now) = lanes();
        let later = now + Duration::from_secs(1);
        fill(&mut lanes, lane(1), 5, now);
        start_all(&mut lanes);
        finish(&mut lanes, lane(1), Verdict::Healthy, now, later);
        assert!(finish(&mut lanes, lane(1), Verdict::Hung, now, later).is_empty());
        assert!(lanes.reserve(lane(1), 10, later), "it hung for one request only");
        start_all(&mut lanes);
        let after = later + Duration::from_secs(1);
        assert_eq!(finish(&mut lanes, lane(1), Verdict::Hung, after, after).len(), 1);
    }

    #[test]
    fn a_failing_lane_is_claimed_for_its_free_slots_only() {
        let (mut lanes, now) = lanes();
        fill(&mut lanes, lane(1), 1, now);
        start_all(&mut lanes);
        finish(&mut lanes, lane(1), Verdict::Failing, now, now);
        lanes.note_due(lane(1), now);
        assert_eq!(lanes.plan_claim(now, 9, 9)[0].quota, LIMITS.lane_in_flight_max);
    }

    #[test]
    fn idle_lanes_are_forgotten() {
        let (mut lanes, now) = lanes();
        fill(&mut lanes, lane(1), 1, now);
        start_all(&mut lanes);
        lanes.forget_idle(now);
        assert_eq!(lanes.by_id.len(), 1, "in flight");
        finish(&mut lanes, lane(1), Verdict::Failing, now, now);
        lanes.forget_idle(now);
        assert!(lanes.by_id.is_empty());
    }

    /// One step of a random life.
    #[derive(Debug, Clone)]
    enum Step {
        Reserve(u128),
        GiveBack,
        Push,
        Start,
        Finish(Verdict),
        Due(u128),
        Claim(usize),
        Drain,
    }

    fn step() -> impl Strategy<Value = Step> {
        let verdict = prop_oneof![
            Just(Verdict::Healthy),
            Just(Verdict::Failing),
            Just(Verdict::Hung),
            Just(Verdict::Paused(Duration::from_secs(1))),
        ];
        prop_oneof![
            8 => (0_u128..4).prop_map(Step::Reserve),
            1 => Just(Step::GiveBack),
            6 => Just(Step::Push),
            6 => Just(Step::Start),
            6 => verdict.prop_map(Step::Finish),
            2 => (0_u128..4).prop_map(Step::Due),
            2 => (0_usize..5).prop_map(Step::Claim),
            1 => Just(Step::Drain),
        ]
    }

    proptest! {
        /// Whatever happens, the bounds hold, nothing is counted twice, and nothing is forgotten.
        #[test]
        fn counts_and_bounds_hold(steps in prop::collection::vec(step(), 1..400)) {
            let (mut lanes, start) = lanes();
            let (mut reserved, mut started) = (Vec::new(), Vec::new());
            let mut queued = 0;
            for (n, step) in steps.into_iter().enumerate() {
                let now = start + Duration::from_millis(100 * n as u64);
                match step {
                    Step::Reserve(id) => {
                        if lanes.reserve(lane(id), 10, now) {
                            reserved.push(lane(id));
                        }
                    }
                    Step::GiveBack => {
                        if let Some(id) = reserved.pop() {
                            lanes.give_back(id, 10);
                        }
                    }
                    Step::Push => {
                        if let Some(id) = reserved.pop()
                            && lanes.push(Delivery(id), now).is_ok()
                        {
                            queued += 1;
                        }
                    }
                    Step::Start => {
                        if let Some(delivery) = lanes.start_next() {
                            started.push(delivery.0);
                            queued -= 1;
                        }
                    }
                    Step::Finish(verdict) => {
                        if let Some(id) = started.pop() {
                            queued -= finish(&mut lanes, id, verdict, now, now).len();
                        }
                    }
                    Step::Due(id) => lanes.note_due(lane(id), now),
                    Step::Claim(rows) => {
                        for part in lanes.plan_claim(now, 3, 7) {
                            let taken = rows.min(part.quota);
                            let bytes = 10 * taken;
                            let got = Claimed { taken, bytes, ..Claimed::default() };
                            lanes.settle_claim(&part, &got, now);
                            let pushed = (0..taken)
                                .filter(|_| lanes.push(Delivery(part.lane), now).is_ok());
                            queued += pushed.count();
                        }
                    }
                    Step::Drain => queued -= lanes.drain_queued().len(),
                }
                prop_assert_eq!(lanes.in_flight(), started.len());
                prop_assert_eq!(lanes.held(), reserved.len() + queued + started.len());
                prop_assert_eq!(lanes.held_bytes, 10 * lanes.held());
                prop_assert!(lanes.in_flight() <= LIMITS.in_flight_max);
                prop_assert!(lanes.held() <= LIMITS.held_max);
                for (id, of_lane) in &lanes.by_id {
                    // Whatever is due and has room will be planned: nothing waits for a restart.
                    if of_lane.due.is_some() && of_lane.held() == 0 && !of_lane.is_claiming {
                        prop_assert!(lanes.due.iter().any(|(_, due)| due == id));
                    }
                }
                for id in 0..4 {
                    let in_flight = started.iter().filter(|&&s| s == lane(id)).count();
                    prop_assert!(in_flight <= LIMITS.lane_in_flight_max);
                }
            }
            // Nothing is stuck: as slots become free, all that waits is started.
            let now = start + Duration::from_secs(3_600);
            loop {
                while let Some(delivery) = lanes.start_next() {
                    started.push(delivery.0);
                    queued -= 1;
                }
                let Some(id) = started.pop() else { break };
                queued -= finish(&mut lanes, id, Verdict::Healthy, now, now).len();
            }
            prop_assert_eq!(queued, 0);
        }
    }
}
