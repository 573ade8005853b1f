//! Which lanes the next claim names.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};

use super::{
    Held, Lanes, Limits,
    lane::{Class, Lane, Source, Wait},
    rings::Ring,
};
use crate::domain::{ApplicationId, LaneId};

/// Below the last due time that a claim returned, this much is read again by the next claim:
/// another transaction may commit later with an earlier `now()`.
pub(super) const MARK_SLACK: chrono::Duration = chrono::Duration::seconds(5);
/// After this long a low-water mark is forgotten, so that a row below it (skipped because it was
/// locked, say) waits no longer than this.
pub(super) const MARK_AGE_MAX: Duration = Duration::from_secs(10);
/// How long after the end of an open breaker's pause a process probes that is not the one which the lane
/// ranks first: if that one has not been heard of by then, its probe may be lost. Longer than a probe
/// that hangs takes by default.
const PROBE_OF_OTHERS: Duration = Duration::from_secs(30);
/// The least time from a claim of a limited lane that brought nothing to the next.
const LIMITED_PAUSE: Duration = Duration::from_millis(20);
/// How far ahead claims take the times of a lane with a rate: enough that they come together, and few
/// enough that little is lost with a process. The next claim follows when half of it is over.
pub const HORIZON: Duration = Duration::from_millis(250);
/// Of what may be held, claims leave this part to what is born claimed: one of so many.
const LEFT_TO_THE_BORN: usize = 4;

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
    /// The times of a lane with a rate begin no earlier than this from now: those before are taken by
    /// what waits here.
    pub taken_until: Duration,
    /// Which revision of its limit is known. Of a lane that is limited by a later one nothing is
    /// claimed: it may be another process's.
    pub limit_revision: i32,
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

/// Lanes that wait to be claimed from.
#[derive(Debug)]
pub(super) struct Claims {
    /// Lanes with work in the database that have room for it, by the time when it is due.
    due: BTreeSet<(Instant, LaneId)>,
    /// Those that are due.
    ready: [Ring; Class::COUNT],
    next_sip: Option<Instant>,
}

impl Default for Claims {
    fn default() -> Self {
        let ready = Class::ALL.map(Ring::of);
        Self { due: BTreeSet::new(), ready, next_sip: None }
    }
}

impl Claims {
    /// Makes a lane wait until then, or not at all. One that has its turn since then keeps it.
    pub fn wait_until(&mut self, wait: &mut Wait, id: LaneId, at: Option<Instant>) {
        match (*wait, at) {
            (Wait::Turn(_, since), Some(at)) if at <= since => return,
            (Wait::Until(old), Some(at)) if old == at => return,
            (Wait::Until(old), _) => {
                self.due.remove(&(old, id));
            }
            _ => {}
        }
        *wait = match at {
            Some(at) => {
                self.due.insert((at, id));
                Wait::Until(at)
            }
            None => Wait::No,
        };
    }
}

impl<T> Lane<T> {
    /// How many deliveries a claim may fill the lane up to: enough for some round trips of the
    /// receiver, so that a backlog drains without a break; of others than the proven only what is
    /// sent now.
    pub(super) fn target(&self, limits: &Limits, spare: usize) -> usize {
        let round_trips = if self.class == Class::Proven { 4 } else { 1 };
        (round_trips * self.width(limits, spare)).min(limits.lane_held_max)
    }
}

impl<T: Held> Lanes<T> {
    /// Notes that a lane has, or will have, work in the database.
    pub fn note_due(&mut self, id: LaneId, application: ApplicationId, due: Instant) {
        let Some(lane) = self.lane(id, application).filter(|lane| lane.share > 0) else { return };
        if lane.due.is_none_or(|known| due < known) {
            lane.due = Some(due);
        }
        self.reindex(id);
    }

    /// Notes when a lane with a limit has work that may be claimed, after a claim that brought less than
    /// it might: not before its rate has times again, and not at once in any case.
    pub fn note_later(
        &mut self,
        id: LaneId,
        application: ApplicationId,
        due: Instant,
        now: Instant,
    ) {
        let Some(lane) = self.by_id.get(&id) else { return };
        let ahead = lane.taken_until(now).saturating_sub(lane.limit.tolerance() + HORIZON / 2);
        self.note_due(id, application, due.max(now + ahead.max(LIMITED_PAUSE)));
    }

    /// Has the next claim of a lane look at all that is due: what was given back lies below its mark.
    pub fn forget_mark(&mut self, id: LaneId) {
        if let Some(lane) = self.by_id.get_mut(&id) {
            lane.mark = None;
        }
    }

    /// When the next claim would find something that there is room for, as far as is known.
    pub fn next_due(&self, now: Instant) -> Option<Instant> {
        if !self.has_room() {
            return None;
        }
        let ready = Class::ALL.into_iter().filter_map(|class| {
            let is_ready = !self.claims.ready[class as usize].is_empty() && self.may_claim(class);
            is_ready.then(|| match class {
                Class::Proven => now,
                Class::Unproven | Class::Suspect => self.claims.next_sip.unwrap_or(now),
            })
        });
        let first = self.claims.due.first().map(|&(due, _)| due);
        ready.chain(first).min()
    }

    /// Names the lanes whose work is due and how many rows of each to claim, and reserves them.
    pub fn plan_claim(
        &mut self,
        now: Instant,
        lanes_max: usize,
        rows_max: usize,
    ) -> Vec<LaneQuota> {
        while let Some(&(due, id)) = self.claims.due.first().filter(|&&(due, _)| due <= now) {
            self.claims.due.remove(&(due, id));
            let Some(lane) = self.by_id.get_mut(&id) else { continue };
            let ring = &mut self.claims.ready[lane.class as usize];
            lane.wait = Wait::Turn(ring.push(lane.application, id), due);
        }
        if !self.has_room() {
            return Vec::new();
        }
        let free = self.claim_room();
        let mut plan = Vec::new();
        let mut rows = rows_max.min(free);
        // Every lane gets some, rather than the first ones all.
        let waiting = self.claims.ready[Class::Proven as usize].len().clamp(1, lanes_max);
        let each = (rows_max / waiting).max(1);
        self.plan_class(Class::Proven, now, each, (lanes_max, &mut rows), &mut plan);
        if self.claims.next_sip.is_none_or(|at| at <= now) {
            for class in [Class::Unproven, Class::Suspect] {
                let lanes = self.sips.size(class);
                self.plan_class(class, now, rows_max, (lanes, &mut rows), &mut plan);
            }
            self.claims.next_sip = Some(self.sips.next_claim(now));
        }
        plan
    }

    /// Plans lanes of one class.
    fn plan_class(
        &mut self,
        class: Class,
        now: Instant,
        each: usize,
        (lanes_max, rows): (usize, &mut usize),
        plan: &mut Vec<LaneQuota>,
    ) {
        let spare = self.spare();
        let mut planned = 0;
        while planned < lanes_max && *rows > 0 && self.may_claim(class) {
            let slots = &self.slots;
            let next = self.claims.ready[class as usize]
                .pop(|application| slots.has_room_for(class, application));
            let Some((id, turn)) = next else { break };
            let Some(lane) = self.by_id.get_mut(&id) else { continue };
            if !matches!(lane.wait, Wait::Turn(of, _) if of == turn) {
                continue;
            }
            lane.wait = Wait::No;
            let quota = lane.target(&self.limits, spare).saturating_sub(lane.held());
            let quota = quota.min(each).min(*rows);
            if quota == 0 {
                self.reindex(id);
                continue;
            }
            lane.due = None;
            lane.is_claiming = true;
            if class != Class::Proven {
                lane.source = Source::Sip;
            }
            lane.reserved += quota;
            lane.mark = lane.mark.filter(|&(_, set_at)| now < set_at + MARK_AGE_MAX);
            let (mark, taken_until) = (lane.mark.map(|(mark, _)| mark), lane.taken_until(now));
            let limit_revision = lane.limit.revision;
            plan.push(LaneQuota { lane: id, quota, mark, taken_until, limit_revision });
            *rows -= quota;
            planned += 1;
            self.hold(id, quota, 0);
        }
    }

    /// Notes what a claim brought. What was taken is pushed afterwards; the rest of the quota is
    /// returned. Tells whether the lane has nothing more that is due now; then it should be asked
    /// when it will have.
    pub fn settle_claim(&mut self, planned: &LaneQuota, got: &Claimed, now: Instant) -> bool {
        self.hold(planned.lane, 0, got.bytes);
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

    fn may_claim(&self, class: Class) -> bool {
        let bytes =
            self.bytes_of[Class::Unproven as usize] + self.bytes_of[Class::Suspect as usize];
        self.slots.may_claim(class)
            && (class == Class::Proven || bytes < self.limits.held_bytes_max / 2)
    }

    /// How many deliveries claims may add to those that are held.
    fn claim_room(&self) -> usize {
        let bound = self.limits.held_max - self.limits.held_max / LEFT_TO_THE_BORN;
        bound.saturating_sub(self.held)
    }

    /// Whether a claim is worth it. At the bound in bytes most rows of one would have to be given
    /// back, so it waits until an eighth is free.
    fn has_room(&self) -> bool {
        self.claim_room() > 0
            && self.held_bytes <= self.limits.held_bytes_max - self.limits.held_bytes_max / 8
    }

    /// Makes a lane wait to be claimed from while it has work in the database, no claim under way,
    /// and room for at least half of what it may have, so that claims are not made of single rows.
    pub(super) fn reindex(&mut self, id: LaneId) {
        let spare = self.spare();
        let Some(lane) = self.by_id.get_mut(&id) else { return };
        if lane.share == 0 {
            // Other processes see to it. Should it become this one's, the next look finds its work.
            lane.due = None;
        }
        let has_room = lane.held() <= lane.target(&self.limits, spare) / 2;
        let probe = lane
            .open_until
            .map(|at| if self.members.is_first(id) { at } else { at + PROBE_OF_OTHERS });
        let quiet = lane.paused_until.max(probe);
        let wanted = lane
            .due
            .filter(|_| has_room && !lane.is_claiming)
            .map(|due| quiet.map_or(due, |until| due.max(until)));
        self.claims.wait_until(&mut lane.wait, id, wanted);
    }

    /// Whether a lane waits to be claimed from.
    #[cfg(test)]
    pub(super) fn waits(&self, id: LaneId) -> bool {
        self.by_id.get(&id).is_some_and(|lane| lane.wait != Wait::No)
    }
}
