//! Lanes whose owners bound them: so many requests at a time, over all processes, and so many in a
//! time.
//!
//! A number of requests at a time is divided among the processes that live, by themselves: each knows
//! the others, and how the lane ranks them. A lane with a rate is one process's alone, the first in
//! that ranking; so the times that the database gives its deliveries are kept where they are spent.
//! A delivery begins at its time, and not nearer to the one before than the rate allows, however late
//! that one was. What is too late has lost its time and is given back.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use super::{Held, Lanes, lane::Lane};
use crate::domain::{LaneId, LaneLimit};

/// The processes that send, and which of them this one is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Members {
    /// `None`: the others do not know of this one yet, so it takes nothing of what is divided.
    me: Option<i32>,
    all: Vec<i32>,
}

impl Members {
    /// One that others may not know of yet.
    pub fn joining() -> Self {
        Self { me: None, all: Vec::new() }
    }

    /// One among these.
    pub fn of(me: i32, mut all: Vec<i32>) -> Self {
        if !all.contains(&me) {
            all.push(me);
        }
        all.sort_unstable();
        Self { me: Some(me), all }
    }

    /// Whether this process is the one that a lane ranks first. Not while it joins: another may be.
    pub(super) fn is_first(&self, lane: LaneId) -> bool {
        self.rank(lane) == Some(0)
    }

    /// Rendezvous hashing: where one comes or goes, no other's rank changes towards a third.
    fn rank(&self, lane: LaneId) -> Option<usize> {
        let me = self.me?;
        let own = (weight(lane, me), me);
        Some(self.all.iter().filter(|&&one| (weight(lane, one), one) > own).count())
    }

    /// How many requests at a time this process may have of a lane.
    pub(super) fn share(&self, lane: LaneId, limit: &LaneLimit) -> usize {
        if !limit.bounds() {
            return usize::MAX;
        }
        let Some(rank) = self.rank(lane) else { return 0 };
        let whole = limit.max_in_flight.map_or(usize::MAX, |most| most as usize);
        if limit.pace.is_some() {
            return if rank == 0 { whole } else { 0 };
        }
        let count = self.all.len();
        whole / count + usize::from(rank < whole % count)
    }
}

/// What a process weighs for a lane; the same everywhere (the finalizer of SplitMix64).
fn weight(lane: LaneId, process: i32) -> u64 {
    let (high, low) = lane.uuid().as_u64_pair();
    let mut mixed = u64::from(process.unsigned_abs());
    for part in [high, low] {
        mixed = (mixed ^ part).wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
    }
    mixed
}

/// Whether a request of a lane with a rate may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// Now, and with that the next one may no sooner than a step later.
    Now,
    /// Not before then.
    At(Instant),
    /// Not any more: its time is lost.
    Late,
}

/// Lanes that wait for the time of their next delivery.
#[derive(Debug, Default)]
pub(super) struct Alarms(BTreeSet<(Instant, LaneId)>);

impl Alarms {
    pub fn next(&self) -> Option<Instant> {
        self.0.first().map(|&(at, _)| at)
    }

    fn set<T>(&mut self, lane: &mut Lane<T>, id: LaneId, at: Option<Instant>) {
        if lane.alarm == at {
            return;
        }
        if let Some(before) = lane.alarm {
            self.0.remove(&(before, id));
        }
        lane.alarm = at;
        if let Some(at) = at {
            self.0.insert((at, id));
        }
    }
}

impl<T: Held> Lane<T> {
    /// When the next one may begin of a lane with a rate; `None` if there is none, or if it has no
    /// time, or none that it could keep: it is given back when its turn comes.
    fn next_time(&self) -> Option<Instant> {
        let (front, pace) = (self.queued.front()?, self.limit.pace?);
        let own = front.time()?;
        let at = self.earliest().map_or(own, |earliest| own.max(earliest));
        Some(at).filter(|&at| at <= own + pace.slack)
    }

    /// Before when none may begin of a lane with a rate.
    fn earliest(&self) -> Option<Instant> {
        self.next_at?.checked_sub(self.limit.tolerance())
    }

    /// How far ahead the times are taken that are known here: the next ones come after it.
    pub(super) fn taken_until(&self, now: Instant) -> Duration {
        let Some(pace) = self.limit.pace else { return Duration::ZERO };
        let ahead = self.next_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        let waiting = u32::try_from(self.queued.len()).unwrap_or(u32::MAX);
        ahead + pace.step.saturating_mul(waiting)
    }
}

impl<T: Held> Lanes<T> {
    /// Says what a lane's owner bounds, unless something later is known of that.
    pub fn set_limit(&mut self, id: LaneId, limit: &LaneLimit, now: Instant) {
        let Some(lane) = self.by_id.get_mut(&id) else { return };
        if limit.revision <= lane.limit.revision {
            return;
        }
        let had_pace = lane.limit.pace.is_some();
        lane.limit = *limit;
        match limit.pace {
            None => {
                self.alarms.set(lane, id, None);
                lane.next_at = None;
            }
            Some(pace) => {
                // What a slower rate has spent does not hold up a faster one.
                lane.next_at = lane.next_at.map(|at| at.min(now + pace.ahead_max()));
                if !had_pace {
                    // What waits has no time.
                    lane.turn = None;
                }
            }
        }
        self.set_share(id);
    }

    /// Says which processes there are; tells whether that is news.
    pub fn set_members(&mut self, members: Members) -> bool {
        if self.members == members {
            return false;
        }
        self.members = members;
        let is_meant = |lane: &Lane<T>| lane.limit.bounds() || lane.open_until.is_some();
        let meant = self.by_id.iter().filter(|(_, lane)| is_meant(lane));
        let meant: Vec<LaneId> = meant.map(|(&id, _)| id).collect();
        for id in meant {
            self.set_share(id);
        }
        true
    }

    fn set_share(&mut self, id: LaneId) {
        let spare = self.spare();
        let Some(lane) = self.by_id.get_mut(&id) else { return };
        lane.share = self.members.share(id, &lane.limit);
        if lane.limit.bounds() {
            let target = if lane.share == 0 { 0 } else { lane.target(&self.limits, spare) };
            let kept = target.saturating_sub(lane.in_flight + lane.reserved);
            let astray = self.take_queued(id, kept);
            self.astray.extend(astray);
        }
        self.offer(id);
        self.reindex(id);
    }

    /// Asks, when all is ready, whether a request may begin that was started, by the rate of its lane:
    /// what came between may have kept it.
    pub fn begin(&mut self, id: LaneId, time: Option<Instant>, now: Instant) -> Begin {
        let Some(lane) = self.by_id.get_mut(&id) else { return Begin::Now };
        let Some(pace) = lane.limit.pace else { return Begin::Now };
        if time.is_none_or(|time| time + pace.slack < now) {
            return Begin::Late;
        }
        let next_at = lane.next_at.unwrap_or(now);
        match next_at.checked_sub(pace.tolerance) {
            Some(earliest) if time.is_some_and(|time| time + pace.slack < earliest) => Begin::Late,
            Some(earliest) if now < earliest => Begin::At(earliest),
            _ => {
                lane.next_at = Some(next_at.max(now) + pace.step);
                // Whoever waits, waits for longer now.
                self.offer(id);
                Begin::Now
            }
        }
    }

    /// Whether something is to be given back.
    pub fn has_astray(&self) -> bool {
        !self.astray.is_empty()
    }

    /// Takes what is in memory and not to be sent from here, or not now: it goes back to the database.
    pub fn take_astray(&mut self) -> Vec<T> {
        std::mem::take(&mut self.astray)
    }

    /// Gives a lane with a rate its turn when its next time comes.
    pub(super) fn offer_in_time(&mut self, id: LaneId, is_free: bool) {
        let Some(lane) = self.by_id.get_mut(&id) else { return };
        let waits = is_free && lane.turn.is_none();
        let at = if waits { lane.next_time() } else { None };
        let has_none = waits && at.is_none() && !lane.queued.is_empty();
        self.alarms.set(lane, id, at);
        if has_none {
            self.give_turn(id);
        }
    }

    /// Gives their turns to the lanes whose times have come.
    pub(super) fn wake_timed(&mut self, now: Instant) {
        while let Some(&(at, id)) = self.alarms.0.first().filter(|&&(at, _)| at <= now) {
            self.alarms.0.remove(&(at, id));
            let Some(lane) = self.by_id.get_mut(&id) else { continue };
            lane.alarm = None;
            if lane.turn.is_none() && !lane.queued.is_empty() {
                self.give_turn(id);
            }
        }
    }

    /// Whether the next of a lane may begin by its rate, now that it is its turn. What is too late, or
    /// has no time, goes astray.
    pub(super) fn is_in_time(&mut self, id: LaneId, now: Instant) -> bool {
        let Some(lane) = self.by_id.get_mut(&id) else { return false };
        let Some(pace) = lane.limit.pace else { return true };
        let from = lane.earliest().map_or(now, |earliest| earliest.max(now));
        let is_lost = |one: &T| one.time().is_none_or(|at| at + pace.slack < from);
        let lost = lane.queued.iter().take_while(|one| is_lost(one)).count();
        if lost > 0 {
            let astray: Vec<T> = lane.queued.drain(..lost).collect();
            lane.mark = None;
            self.let_go(id, astray.len(), astray.iter().map(Held::bytes).sum());
            self.astray.extend(astray);
            self.reindex(id);
        }
        let next = self.by_id.get(&id).and_then(Lane::next_time);
        if next.is_some_and(|at| at <= now) {
            return true;
        }
        self.offer(id);
        false
    }
}
