//! Lanes: who may be sent to now, and how much of each backlog this process may hold.
//!
//! A state machine without clock, dice, database or tasks. It answers four questions:
//! - may this new delivery be born claimed ([`Lanes::reserve`])?
//! - which lanes should the next claim name, and how many rows of each ([`Lanes::plan_claim`])?
//! - what is sent next ([`Lanes::start_next`])?
//! - what follows from a result ([`Lanes::conclude`], [`Lanes::free`]), and from its absence
//!   ([`Lanes::look_at_slow`])?
//!
//! What keeps a lane from harming others:
//! - A lane is *unproven* until it has answered, *proven* while it answers well and quickly, else
//!   *suspect*; a request that takes a second makes its lane suspect while it is still under way. The
//!   unproven and the suspect have a share of the slots each, and leave a quarter of all to the proven
//!   (`slots`).
//! - A lane begins with one request at a time, and gets more as it answers and has more (`lane`). After
//!   failures one after the other its breaker opens: nothing is sent, claimed or counted as an attempt,
//!   but for one probe after each pause.
//! - Where lanes wait, the applications take turns, and within each its lanes (`rings`).
//! - What one lane, or one application, may hold is a multiple of what is free: so there is always
//!   something free for who has nothing.
//! - Unproven and suspect lanes are claimed from, and suspects sent to, in sips (`sips`).
//!
//! What protects a receiver is what its owner bounds: requests at a time, and a rate (`limited`).

mod claims;
mod evidence;
mod lane;
mod limited;
mod outage;
mod rings;
mod sips;
mod slots;
#[cfg(test)]
mod tests;
mod urls;
mod words;

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    time::{Duration, Instant},
};

use self::{
    claims::Claims,
    lane::{Lane, Wait},
    limited::Alarms,
    outage::Outage,
    rings::Ring,
    sips::Sips,
    slots::{APPLICATION_FACTOR, Slots},
    urls::Urls,
};
pub use self::{
    claims::{Claimed, HORIZON, LaneQuota},
    lane::Class,
    limited::{Begin, Members},
    slots::Slot,
    words::{Breaker, Health, Held, Limits, Looked, Verdict},
};
use super::{ApplicationId, LaneId, LaneLimit};

/// How many lanes are remembered. Beyond it new ones are neither born claimed nor noted as due;
/// the database remembers their work, and the next discovery finds it.
const LANES_MAX: usize = 100_000;
/// How many deliveries of a lane may wait in memory for its first answer.
const UNPROVEN_HELD_MAX: usize = 1_024;
/// Only what is due within this is noted; the database remembers the rest, and the discovery finds
/// it in time. Otherwise every lane with a retry in some hours would be remembered until then.
pub const DUE_HORIZON: Duration = Duration::from_secs(60);
/// How long a lane is remembered for how it answered.
const MEMORY: Duration = Duration::from_mins(10);

/// What one application holds.
#[derive(Debug, Clone, Copy, Default)]
struct Share {
    held: usize,
    bytes: usize,
}

/// All lanes that this process has to do with.
#[derive(Debug)]
pub struct Lanes<T> {
    limits: Limits,
    by_id: HashMap<LaneId, Lane<T>>,
    slots: Slots,
    /// Lanes with something to start and a free slot of their own, each once.
    startable: [Ring; Class::COUNT],
    claims: Claims,
    sips: Sips,
    /// Lanes of each class.
    count_of: [usize; Class::COUNT],
    /// What they hold.
    bytes_of: [usize; Class::COUNT],
    applications: HashMap<ApplicationId, Share>,
    held: usize,
    held_bytes: usize,
    /// Lanes of which others should know something new.
    news: HashSet<LaneId>,
    members: Members,
    alarms: Alarms,
    outage: Outage,
    urls: Urls,
    /// Deliveries that belong to the lane of their URL, with that lane.
    misplaced: Vec<(T, LaneId)>,
    /// What is not to be sent from here, or not now.
    astray: Vec<T>,
}

impl<T: Held> Lanes<T> {
    /// No lanes yet, in a process that is alone.
    pub fn new(limits: Limits) -> Self {
        Self {
            slots: Slots::new(limits.in_flight_max),
            limits,
            by_id: HashMap::new(),
            startable: Class::ALL.map(Ring::of),
            claims: Claims::default(),
            sips: Sips::default(),
            count_of: [0; Class::COUNT],
            bytes_of: [0; Class::COUNT],
            applications: HashMap::new(),
            held: 0,
            held_bytes: 0,
            news: HashSet::new(),
            members: Members::of(0, Vec::new()),
            alarms: Alarms::default(),
            outage: Outage::default(),
            urls: Urls::default(),
            misplaced: Vec::new(),
            astray: Vec::new(),
        }
    }

    /// Asks for room for a new delivery, so that it may be born claimed. A lane that is quiet,
    /// suspect, full, or has work due in the database gets none: new events do not overtake old
    /// ones. Nor does one with a rate, whose times are given by claims. What is granted must end in
    /// [`Self::push`] or [`Self::give_back`]. `limit` is what the lane's owner bounds, if it has one.
    pub fn reserve(
        &mut self,
        id: LaneId,
        (application, limit): (ApplicationId, Option<&LaneLimit>),
        bytes: usize,
        now: Instant,
    ) -> bool {
        let free = self.limits.held_max.saturating_sub(self.held);
        let free_bytes = self.limits.held_bytes_max.saturating_sub(self.held_bytes);
        let own = self.applications.get(&application).copied().unwrap_or_default();
        if free == 0
            || bytes > free_bytes
            || own.held >= free * APPLICATION_FACTOR
            || own.bytes > free_bytes.saturating_mul(APPLICATION_FACTOR)
        {
            return false;
        }
        let spare = self.spare();
        let limits = self.limits;
        if self.lane(id, application).is_none() {
            return false;
        }
        if let Some(limit) = limit {
            self.set_limit(id, limit, now);
        }
        let Some(lane) = self.by_id.get_mut(&id) else { return false };
        let room = match lane.class {
            _ if lane.share == 0 || lane.limit.pace.is_some() => 0,
            // What one process cannot send soon is left to the others.
            Class::Proven if lane.limit.bounds() => lane.target(&limits, spare),
            Class::Proven => limits.lane_held_max,
            Class::Unproven => UNPROVEN_HELD_MAX.min(limits.lane_held_max),
            Class::Suspect if lane.answers_slowly => lane.width(&limits, spare),
            Class::Suspect => 0,
        };
        let is_free = !lane.is_claiming
            && !lane.is_quiet(now)
            && lane.due.is_none_or(|due| now < due)
            && lane.held() < room.min(free)
            && lane.bytes <= free_bytes;
        if is_free {
            lane.reserved += 1;
            self.hold(id, 1, bytes);
        }
        is_free
    }

    /// Returns room that was reserved and is not needed.
    pub fn give_back(&mut self, id: LaneId, bytes: usize) {
        self.let_go(id, 0, bytes);
        self.release_reserved(id, 1);
    }

    /// Turns a reservation into a delivery that waits to be started. A lane that is quiet since
    /// takes none: the delivery is returned, with the rest of the pause, and its room is free. One of
    /// which this process has no share goes astray.
    pub fn push(&mut self, delivery: T, now: Instant) -> Result<(), (T, Duration)> {
        let id = delivery.lane();
        let quiet = self.by_id.get(&id).and_then(Lane::quiet_until);
        if let Some(left) = quiet.and_then(|until| until.checked_duration_since(now))
            && !left.is_zero()
        {
            self.give_back(id, delivery.bytes());
            return Err((delivery, left));
        }
        if self.by_id.get(&id).is_some_and(|lane| lane.share == 0) {
            self.give_back(id, delivery.bytes());
            self.astray.push(delivery);
            return Ok(());
        }
        if let Some(url) = self.place(&delivery, now) {
            self.give_back(id, delivery.bytes());
            self.misplaced.push((delivery, url));
            return Ok(());
        }
        if let Some(lane) = self.by_id.get_mut(&id) {
            lane.reserved -= 1;
            lane.queued.push_back(delivery);
        }
        self.offer(id);
        Ok(())
    }

    /// Takes the next delivery to send, if there is a slot for it.
    pub fn start_next(&mut self, now: Instant) -> Option<(T, Slot)> {
        self.wake_timed(now);
        self.sips.look();
        for class in Class::ALL {
            while self.slots.has_room(class)
                && !self.startable[class as usize].is_empty()
                && self.sips.may_begin(class, now)
            {
                let (slots, spare) = (&self.slots, self.spare());
                let next = self.startable[class as usize]
                    .pop(|application| slots.has_room_for(class, application));
                let Some((id, turn)) = next else { break };
                let Some(lane) = self.by_id.get_mut(&id).filter(|lane| lane.turn == Some(turn))
                else {
                    continue;
                };
                lane.turn = None;
                // It may have less than when it got its turn.
                if lane.in_flight >= lane.width(&self.limits, spare)
                    || !self.has_room_in_group(id)
                    || !self.is_in_time(id, now)
                {
                    continue;
                }
                let Some(lane) = self.by_id.get_mut(&id) else { continue };
                // A lane whose waiting deliveries were given back meanwhile is still in the ring.
                let Some(delivery) = lane.queued.pop_front() else { continue };
                lane.in_flight += 1;
                self.slots.charge(class, lane.application, 1);
                self.begin_in_group(id);
                let slot = self.slots.begin(id, now);
                self.sips.begin(class, now);
                self.offer(id);
                return Some((delivery, slot));
            }
        }
        None
    }

    /// Notes what an attempt says about its lane; its slot stays taken until [`Self::free`]. Returns
    /// what waits in memory for a lane that is now quiet, or hangs: it goes back to the database,
    /// where waiting costs nothing. A failure says nothing about a lane that has had a success since
    /// the attempt began. `jitter` is a number between 0 and 1.
    pub fn conclude(
        &mut self,
        slot: Slot,
        id: LaneId,
        verdict: Verdict,
        now: Instant,
        jitter: f64,
    ) -> Vec<T> {
        let Some(began) = self.slots.end(slot) else { return Vec::new() };
        if verdict.is_answer() {
            self.outage.answered();
        }
        let (is_calm, limits) = (self.is_calm(), self.limits);
        let before = self.by_id.get(&id).map(|lane| (lane.class, lane.source));
        let Some((class, source)) = before else { return Vec::new() };
        let conclude =
            |lane: &mut Lane<T>| lane.conclude(verdict, began, now, jitter, (&limits, is_calm));
        let Some(change) = self.change(id, conclude) else { return Vec::new() };
        if verdict == Verdict::Healthy {
            self.sips.answered(class, source);
        } else {
            self.sips.failed(class);
        }
        if change.is_news {
            self.news.insert(id);
        }
        let returned = if change.gives_back { self.take_queued(id, 0) } else { Vec::new() };
        self.offer(id);
        self.reindex(id);
        returned
    }

    /// Notes a failure without an answer of a host, given as a hash, before its attempt is concluded.
    /// Returns whether no receiver answers at present: then the fault is this service's.
    pub fn note_unanswered(&mut self, id: LaneId, host: u64, now: Instant) -> bool {
        let success = self.by_id.get(&id).and_then(|lane| lane.last_success);
        let answered_lately = success.is_some_and(|at| now < at + MEMORY);
        self.outage.unanswered(host, answered_lately, now)
    }

    /// Notes a failure by a fault of this service; returns for how long such faults have lasted.
    pub fn note_own_fault(&mut self, id: LaneId, now: Instant) -> Duration {
        let Some(lane) = self.by_id.get_mut(&id) else { return Duration::ZERO };
        now.saturating_duration_since(*lane.own_fault_since.get_or_insert(now))
    }

    /// Returns whether no receiver answers at present.
    pub fn has_outage(&self) -> bool {
        self.outage.is_on()
    }

    /// Looks at requests that take long: their lanes are suspect from then on. Returns what such
    /// lanes have in memory and cannot send soon. While slots are short, requests of suspects that
    /// have taken their time are cut: see [`Self::is_cut`].
    pub fn look_at_slow(&mut self, now: Instant) -> Looked<T> {
        let (mut returned, mut has_demoted) = (Vec::new(), false);
        while let Some(id) = self.slots.next_slow(now) {
            let Some(before) = self.by_id.get(&id).map(|lane| lane.class) else { continue };
            if before == Class::Suspect {
                continue;
            }
            self.change(id, Lane::hang);
            has_demoted = true;
            self.sips.failed(before);
            let spare = self.spare();
            let lane = &self.by_id[&id];
            let kept = lane.width(&self.limits, spare).saturating_sub(lane.in_flight);
            returned.extend(self.take_queued(id, kept));
            self.offer(id);
            self.reindex(id);
        }
        let lanes = &self.by_id;
        let may_be_cut = |id| {
            lanes.get(&id).is_none_or(|lane| lane.class == Class::Suspect && !lane.answers_slowly)
        };
        let has_cut = self.slots.cut(now, may_be_cut) > 0;
        Looked { returned, has_demoted, has_cut }
    }

    /// Whether a request is to be given up, since others need its slot: a timeout before its time.
    pub fn is_cut(&self, slot: Slot) -> bool {
        self.slots.is_cut(slot)
    }

    /// Frees the slot of a delivery that was started: its result is recorded. Until then it counts
    /// as in flight, so that a crash repeats no more than the slots there are.
    pub fn free(&mut self, id: LaneId, bytes: usize) {
        self.let_go(id, 1, bytes);
        let Some(lane) = self.by_id.get_mut(&id) else { return };
        lane.in_flight -= 1;
        self.slots.charge(lane.class, lane.application, -1);
        self.end_in_group(id);
        self.offer(id);
        self.reindex(id);
    }

    /// Ends a request that was started and is not sent. Its slot stays taken until [`Self::free`].
    pub fn end(&mut self, slot: Slot) {
        self.slots.end(slot);
    }

    /// The same, and frees the slot.
    pub fn abandon(&mut self, slot: Slot, id: LaneId, bytes: usize) {
        self.slots.end(slot);
        self.free(id, bytes);
    }

    /// Takes everything that waits in memory, to be returned to the database.
    pub fn drain_queued(&mut self) -> Vec<T> {
        let lanes: Vec<LaneId> = self.by_id.keys().copied().collect();
        let mut drained = self.take_astray();
        drained.extend(self.take_misplaced().into_iter().map(|(delivery, _)| delivery));
        for id in lanes {
            drained.extend(self.take_queued(id, 0));
            self.reindex(id);
        }
        drained
    }

    /// Takes what others should know of lanes: at most so many, those that fail, are quiet, or no
    /// longer do.
    pub fn take_news(&mut self, now: Instant, lanes_max: usize) -> Vec<Health> {
        let ids: Vec<LaneId> = self.news.iter().copied().take(lanes_max).collect();
        ids.into_iter()
            .filter_map(|id| {
                self.news.remove(&id);
                let lane = self.by_id.get(&id)?;
                let left =
                    |until: Option<Instant>| until.map(|at| at.saturating_duration_since(now));
                Some(Health {
                    lane: id,
                    application: lane.application,
                    failures: lane.failures,
                    open_for: left(lane.open_until),
                    paused_for: left(lane.paused_until).filter(|left| !left.is_zero()),
                })
            })
            .collect()
    }

    /// Says again that others should know of these lanes: they could not be told.
    pub fn keep_news(&mut self, lanes: impl IntoIterator<Item = LaneId>) {
        self.news.extend(lanes);
    }

    /// Takes what another process, or an earlier life of this one, knew of a lane. Returns what waits
    /// in memory for one that is quiet by that.
    pub fn learn(&mut self, health: &Health, now: Instant) -> Vec<T> {
        let at = |after: Option<Duration>| after.map(|after| now + after);
        let id = health.lane;
        let is_fine =
            health.failures == 0 && health.open_for.is_none() && health.paused_for.is_none();
        // What is to be told of it here is newer.
        if (is_fine && !self.by_id.contains_key(&id)) || self.news.contains(&id) {
            return Vec::new();
        }
        if self.lane(id, health.application).is_none() {
            return Vec::new();
        }
        self.change(id, |lane| {
            let until = (at(health.open_for), at(health.paused_for));
            lane.learn(health.failures, until, now);
        });
        let is_quiet = self.by_id[&id].is_quiet(now);
        let returned = if is_quiet { self.take_queued(id, 0) } else { Vec::new() };
        self.offer(id);
        self.reindex(id);
        returned
    }

    /// Drops what is known of idle lanes, but for how they answered not long ago.
    pub fn forget_idle(&mut self, now: Instant) {
        self.urls.forget(now);
        let count_of = &mut self.count_of;
        let is_crowded = self.by_id.len() > LANES_MAX / 2;
        self.by_id.retain(|_, lane| {
            let is_recent = |at: Option<Instant>| at.is_some_and(|at| now < at + MEMORY);
            let is_kept = lane.held() > 0
                || lane.due.is_some()
                || lane.is_claiming
                || lane.is_quiet(now)
                || !lane.group.is_idle()
                || lane.next_at.is_some_and(|at| now < at)
                || (!is_crowded && is_recent(lane.last_success))
                || is_recent(lane.open_until)
                || is_recent(lane.last_failure);
            if !is_kept {
                count_of[lane.class as usize] -= 1;
            }
            is_kept
        });
    }

    /// When [`Self::start_next`] may have more than now: the next time of a lane with a rate, or the
    /// next sip.
    pub fn next_start(&self) -> Option<Instant> {
        self.sips.awaited().into_iter().chain(self.alarms.next()).min()
    }

    /// Requests under way, and results that are not recorded yet.
    pub fn in_flight(&self) -> usize {
        self.slots.total()
    }

    /// The same of a class.
    pub fn in_flight_of(&self, class: Class) -> usize {
        self.slots.used(class)
    }

    /// Lanes that are known, of a class.
    pub fn lanes_of(&self, class: Class) -> usize {
        self.count_of[class as usize]
    }

    /// Deliveries in memory: reserved, queued and in flight.
    pub fn held(&self) -> usize {
        self.held
    }

    /// How many more payload bytes may be held.
    pub fn free_bytes(&self) -> usize {
        self.limits.held_bytes_max.saturating_sub(self.held_bytes)
    }

    /// What each suspect lane may have at a time of what the suspects do not use.
    fn spare(&self) -> usize {
        let lanes = self.count_of[Class::Suspect as usize].max(1);
        self.slots.share(Class::Suspect) / 8 / lanes
    }

    /// Whether the suspects leave half of their share.
    fn is_calm(&self) -> bool {
        self.slots.used(Class::Suspect) < self.slots.share(Class::Suspect) / 2
    }

    /// A lane, made if it is not known; `None` if there are too many.
    fn lane(&mut self, id: LaneId, application: ApplicationId) -> Option<&mut Lane<T>> {
        let is_full = self.by_id.len() >= LANES_MAX;
        match self.by_id.entry(id) {
            Entry::Occupied(lane) => Some(lane.into_mut()),
            Entry::Vacant(_) if is_full => None,
            Entry::Vacant(vacant) => {
                self.count_of[Class::Unproven as usize] += 1;
                Some(vacant.insert(Lane::new(application)))
            }
        }
    }

    /// Changes a lane, and moves what it has to the class that it is in afterwards.
    fn change<R>(&mut self, id: LaneId, change: impl FnOnce(&mut Lane<T>) -> R) -> Option<R> {
        let lane = self.by_id.get_mut(&id)?;
        let before = lane.class;
        let result = change(lane);
        let after = lane.class;
        if before != after {
            let count = isize::try_from(lane.in_flight).unwrap_or(isize::MAX);
            self.slots.charge(before, lane.application, -count);
            self.slots.charge(after, lane.application, count);
            self.bytes_of[before as usize] -= lane.bytes;
            self.bytes_of[after as usize] += lane.bytes;
            self.count_of[before as usize] -= 1;
            self.count_of[after as usize] += 1;
            // Its turns were among others.
            lane.turn = None;
            if let Wait::Turn(_, since) = lane.wait {
                lane.wait = Wait::No;
                self.claims.wait_until(&mut lane.wait, id, Some(since));
            }
        }
        Some(result)
    }

    fn hold(&mut self, id: LaneId, count: usize, bytes: usize) {
        self.held += count;
        self.held_bytes += bytes;
        if let Some(lane) = self.by_id.get_mut(&id) {
            lane.bytes += bytes;
            self.bytes_of[lane.class as usize] += bytes;
            let own = self.applications.entry(lane.application).or_default();
            own.held += count;
            own.bytes += bytes;
        }
    }

    fn let_go(&mut self, id: LaneId, count: usize, bytes: usize) {
        self.held -= count;
        self.held_bytes -= bytes;
        if let Some(lane) = self.by_id.get_mut(&id) {
            lane.bytes -= bytes;
            self.bytes_of[lane.class as usize] -= bytes;
            let own = self.applications.entry(lane.application).or_default();
            own.held -= count;
            own.bytes -= bytes;
            if own.held == 0 {
                self.applications.remove(&lane.application);
            }
        }
    }

    /// Takes what waits in memory, but for the first `kept`.
    fn take_queued(&mut self, id: LaneId, kept: usize) -> Vec<T> {
        let Some(lane) = self.by_id.get_mut(&id) else { return Vec::new() };
        let kept = kept.min(lane.queued.len());
        let taken: Vec<T> = lane.queued.drain(kept..).collect();
        if !taken.is_empty() {
            // They are due as long ago as they were.
            lane.mark = None;
            self.let_go(id, taken.len(), taken.iter().map(Held::bytes).sum());
        }
        taken
    }

    fn release_reserved(&mut self, id: LaneId, count: usize) {
        self.let_go(id, count, 0);
        if let Some(lane) = self.by_id.get_mut(&id) {
            lane.reserved -= count;
        }
        self.reindex(id);
    }

    /// Gives a lane its turn if it has something to start, and may.
    fn offer(&mut self, id: LaneId) {
        let spare = self.spare();
        let Some(lane) = self.by_id.get_mut(&id) else { return };
        let is_free = lane.in_flight < lane.width(&self.limits, spare);
        if lane.limit.pace.is_some() {
            self.offer_in_time(id, is_free);
        } else if lane.turn.is_none() && !lane.queued.is_empty() && is_free {
            self.give_turn(id);
        }
    }

    fn give_turn(&mut self, id: LaneId) {
        let Some(lane) = self.by_id.get_mut(&id) else { return };
        let ring = &mut self.startable[lane.class as usize];
        lane.turn = Some(ring.push(lane.application, id));
    }
}
