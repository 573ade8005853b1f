//! Explicit targets. Their lane is an origin, which many receivers may share: an answer belongs to the
//! URL, and only the lack of an answer counts for the origin as well. A URL that seems to be down, that
//! hangs or that asked for a pause gets a lane of its own, to which its deliveries are moved; so they
//! never stand in front of those of its neighbours.
//!
//! Memory is bounded: failures are counted of [`URLS_MAX`] URLs, and a URL beyond is served by its
//! retry schedule alone.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use super::{
    Breaker, Held, LANES_MAX, Lanes, MEMORY, Slot, Verdict,
    evidence::{ANSWERED, Evidence, UNANSWERED},
    lane::Lane,
};
use crate::domain::LaneId;

/// URLs of which failures are counted.
const URLS_MAX: usize = 10_000;
/// URLs of one origin without answers that are tried at a time, each with one request.
const PROBED_URLS_MAX: usize = 8;

/// The longest pause between two probes of an origin that does not answer: URLs that were not tried yet
/// are what it is probed with.
pub const ORIGIN_PAUSE: Duration = Duration::from_secs(1);

/// The deliveries of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// Nothing was sent yet.
    #[default]
    Unknown,
    /// Those of a subscription.
    Subscription,
    /// Explicit targets of one origin.
    Origin,
    /// Those of one URL of this origin.
    Url(LaneId),
}

/// The lanes of its URLs, as the lane of an origin knows them.
#[derive(Debug, Default)]
pub struct Group {
    /// Requests under way.
    pub in_flight: usize,
    /// Lanes that could start a request if the origin had fewer under way.
    blocked: BTreeSet<LaneId>,
}

impl Group {
    pub fn is_idle(&self) -> bool {
        self.in_flight == 0 && self.blocked.is_empty()
    }
}

/// A URL without a lane of its own that has failed.
#[derive(Debug)]
struct Failing {
    /// Failures one after the other: of attempts that each began after the one before had failed.
    failures: u16,
    evidence: Evidence,
    last_failure: Instant,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Urls(HashMap<LaneId, Failing>);

impl Urls {
    /// Notes an answer that shows a URL to be up.
    fn answered(&mut self, url: LaneId) {
        if self.0.is_empty() {
            return;
        }
        if let Some(one) = self.0.get_mut(&url) {
            one.failures = 0;
            one.evidence.answered();
        }
    }

    /// Notes a failure; returns the evidence if the URL is down.
    fn failed(
        &mut self,
        url: LaneId,
        weight: u16,
        (began, now): (Instant, Instant),
        breaker: Breaker,
    ) -> Option<Evidence> {
        if self.0.len() >= URLS_MAX && !self.0.contains_key(&url) {
            return None;
        }
        let new = Failing { failures: 0, evidence: Evidence::default(), last_failure: now };
        let one = self.0.entry(url).or_insert(new);
        one.evidence.failed(weight);
        if one.failures == 0 || began > one.last_failure {
            one.failures = one.failures.saturating_add(1);
            one.last_failure = now;
        }
        let is_down = breaker.failures > 0
            && one.failures >= breaker.failures
            && one.evidence.is_down(breaker.failures);
        is_down.then_some(one.evidence)
    }

    /// Forgets those that have not failed for long.
    pub fn forget(&mut self, now: Instant) {
        self.0.retain(|_, one| now < one.last_failure + MEMORY);
    }
}

impl<T: Held> Lanes<T> {
    /// The lane for a new delivery to a URL: that of its origin, unless the URL has its own, or the
    /// origin has not answered lately. In that case one request to each URL shows which of them do.
    pub fn explicit_lane(&self, origin: LaneId, url: LaneId, now: Instant) -> LaneId {
        let is_probed = || {
            let lane = self.by_id.get(&origin);
            lane.is_some_and(|lane| lane.is_silent() && lane.group.in_flight < PROBED_URLS_MAX)
                && self.has_room_for_urls()
        };
        if self.is_apart(origin, url, now) || is_probed() { url } else { origin }
    }

    /// Returns whether a URL has a lane of its own that is in use.
    fn is_apart(&self, origin: LaneId, url: LaneId, now: Instant) -> bool {
        self.by_id.get(&url).is_some_and(|lane| {
            let has_work = lane.held() > 0 || lane.due.is_some();
            let is_held_back = lane.is_silent() || lane.is_quiet(now);
            has_work || is_held_back || (lane.failures > 0 && self.is_silent(origin))
        })
    }

    fn is_silent(&self, origin: LaneId) -> bool {
        self.by_id.get(&origin).is_some_and(Lane::is_silent)
    }

    /// Returns whether URLs may have more lanes: half of all lanes is left to others.
    fn has_room_for_urls(&self) -> bool {
        self.by_id.len() < LANES_MAX / 2
    }

    /// Notes to which kind the lane of a delivery belongs. Returns the lane of its URL if the delivery
    /// belongs there instead.
    pub(super) fn place(&mut self, delivery: &T, now: Instant) -> Option<LaneId> {
        let id = delivery.lane();
        let lane = self.by_id.get_mut(&id)?;
        if lane.kind == Kind::Unknown {
            lane.kind = match delivery.origin() {
                None => Kind::Subscription,
                Some(origin) if origin == id => Kind::Origin,
                Some(origin) => Kind::Url(origin),
            };
            if let (Kind::Url(origin), application) = (lane.kind, lane.application)
                && let Some(lane) = self.lane(origin, application)
            {
                lane.kind = Kind::Origin;
            }
        }
        if self.by_id[&id].kind != Kind::Origin {
            return None;
        }
        delivery.url().filter(|&url| self.is_apart(id, url, now))
    }

    /// Notes what an attempt at an explicit target says about its URL and its lane: see
    /// [`Self::conclude`].
    pub fn conclude_explicit(
        &mut self,
        slot: Slot,
        (id, url): (LaneId, LaneId),
        verdict: Verdict,
        now: Instant,
        jitter: f64,
    ) -> Vec<T> {
        let kind = self.by_id.get(&id).map(|lane| lane.kind);
        let began = self.slots.began(slot);
        if let (Some(Kind::Url(origin)), Some(began)) = (kind, began) {
            self.note_answer(origin, verdict, (began, now), jitter);
        }
        let (Some(Kind::Origin), Some(began)) = (kind, began) else {
            return self.conclude(slot, id, verdict, now, jitter);
        };
        self.note_url((id, url), verdict, (began, now), jitter);
        let of_origin = match verdict {
            Verdict::Failing | Verdict::Paused(_) => Verdict::Refused,
            other => other,
        };
        if verdict.is_answer() {
            self.outage.answered();
        }
        self.conclude(slot, id, of_origin, now, jitter)
    }

    /// An answer of one of its URLs shows that a silent origin is up, unless it keeps others waiting.
    fn note_answer(
        &mut self,
        origin: LaneId,
        verdict: Verdict,
        (began, now): (Instant, Instant),
        jitter: f64,
    ) {
        let waits = |lane: &Lane<T>| lane.is_silent() && lane.in_flight == 0;
        if !verdict.is_answer() || !self.by_id.get(&origin).is_some_and(waits) {
            return;
        }
        let (limits, is_calm) = (self.limits, self.is_calm());
        self.change(origin, |lane| {
            lane.conclude(Verdict::Refused, began, now, jitter, (&limits, is_calm))
        });
        self.news.insert(origin);
        self.offer(origin);
        self.reindex(origin);
    }

    fn note_url(
        &mut self,
        (id, url): (LaneId, LaneId),
        verdict: Verdict,
        (began, now): (Instant, Instant),
        jitter: f64,
    ) {
        let (limits, is_calm) = (self.limits, self.is_calm());
        if !self.by_id.contains_key(&url) {
            let weight = match verdict {
                Verdict::Healthy | Verdict::Refused => return self.urls.answered(url),
                Verdict::Unsent => return,
                Verdict::Paused(_) => {
                    return self.separate((id, url), verdict, (began, now), jitter);
                }
                Verdict::Failing => ANSWERED,
                Verdict::Unreachable | Verdict::Hung => UNANSWERED,
            };
            let down = self.urls.failed(url, weight, (began, now), limits.breaker);
            let is_silent = weight == UNANSWERED && self.is_silent(id);
            if down.is_some() || is_silent || verdict == Verdict::Hung {
                self.separate((id, url), verdict, (began, now), jitter);
                if let Some(evidence) = down {
                    self.change(url, |lane| lane.take_as_down(evidence, now, jitter, &limits));
                    self.news.insert(url);
                    self.reindex(url);
                }
            }
            return;
        }
        let conclude =
            |lane: &mut Lane<T>| lane.conclude(verdict, began, now, jitter, (&limits, is_calm));
        let Some(change) = self.change(url, conclude) else { return };
        if change.is_news {
            self.news.insert(url);
        }
        if change.gives_back {
            let returned = self.take_queued(url, 0);
            self.misplaced.extend(returned.into_iter().map(|delivery| (delivery, url)));
        }
        self.offer(url);
        self.reindex(url);
    }

    /// Gives a URL a lane of its own, and moves what waits in memory for it there.
    fn separate(
        &mut self,
        (id, url): (LaneId, LaneId),
        verdict: Verdict,
        (began, now): (Instant, Instant),
        jitter: f64,
    ) {
        let Some(application) = self.by_id.get(&id).map(|lane| lane.application) else { return };
        if !self.has_room_for_urls() || self.lane(url, application).is_none() {
            return;
        }
        self.urls.0.remove(&url);
        let (limits, is_calm) = (self.limits, self.is_calm());
        self.change(url, |lane| {
            lane.kind = Kind::Url(id);
            lane.conclude(verdict, began, now, jitter, (&limits, is_calm))
        });
        self.news.insert(url);
        self.reindex(url);
        let Some(lane) = self.by_id.get_mut(&id) else { return };
        let waits = lane.queued.len();
        let (apart, rest): (Vec<T>, _) =
            lane.queued.drain(..).partition(|delivery| delivery.url() == Some(url));
        lane.queued = rest.into();
        if waits > lane.queued.len() {
            self.let_go(id, apart.len(), apart.iter().map(Held::bytes).sum());
            self.misplaced.extend(apart.into_iter().map(|delivery| (delivery, url)));
        }
    }

    /// The lane of the origin that bounds a lane.
    fn origin_of(&self, id: LaneId) -> Option<LaneId> {
        match self.by_id.get(&id)?.kind {
            Kind::Url(origin) => Some(origin),
            Kind::Origin => Some(id),
            Kind::Unknown | Kind::Subscription => None,
        }
    }

    /// Returns whether a lane may start a request by the bound of its origin; if not, it gets its
    /// turn again when that has room.
    pub(super) fn has_room_in_group(&mut self, id: LaneId) -> bool {
        let Some(origin) = self.origin_of(id) else { return true };
        let Some(lane) = self.by_id.get_mut(&origin) else { return true };
        let has_room = lane.in_flight + lane.group.in_flight < self.limits.lane_in_flight_max;
        if !has_room {
            lane.group.blocked.insert(id);
        }
        has_room
    }

    /// Notes a request of a URL's lane that begins.
    pub(super) fn begin_in_group(&mut self, id: LaneId) {
        if let Some(origin) = self.origin_of(id).filter(|&origin| origin != id)
            && let Some(lane) = self.by_id.get_mut(&origin)
        {
            lane.group.in_flight += 1;
        }
    }

    /// Notes the end of a request of a lane, and gives its turn to one that waited for that.
    pub(super) fn end_in_group(&mut self, id: LaneId) {
        let Some(origin) = self.origin_of(id) else { return };
        let Some(lane) = self.by_id.get_mut(&origin) else { return };
        if origin != id {
            lane.group.in_flight = lane.group.in_flight.saturating_sub(1);
        }
        while let Some(blocked) =
            self.by_id.get_mut(&origin).and_then(|lane| lane.group.blocked.pop_first())
        {
            self.offer(blocked);
            if self.by_id.get(&blocked).is_some_and(|lane| lane.turn.is_some()) {
                break;
            }
        }
    }

    /// Returns whether something in memory belongs to another lane.
    pub fn has_misplaced(&self) -> bool {
        !self.misplaced.is_empty()
    }

    /// Takes what is in memory and belongs to another lane, with that lane.
    pub fn take_misplaced(&mut self) -> Vec<(T, LaneId)> {
        std::mem::take(&mut self.misplaced)
    }
}
