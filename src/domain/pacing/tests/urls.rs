//! Explicit targets: URLs of one origin.

use super::*;

/// A delivery to a URL of origin 1, in the lane of the origin or of the URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Explicit {
    lane: LaneId,
    url: LaneId,
}

impl Held for Explicit {
    fn lane(&self) -> LaneId {
        self.lane
    }

    fn bytes(&self) -> usize {
        10
    }

    fn time(&self) -> Option<Instant> {
        None
    }

    fn origin(&self) -> Option<LaneId> {
        Some(ORIGIN)
    }

    fn url(&self) -> Option<LaneId> {
        Some(self.url)
    }
}

const ORIGIN: LaneId = LaneId::from_uuid(Uuid::from_u128(1));
const BAD: u128 = 2;
const OTHER: u128 = 3;

struct Host {
    lanes: Lanes<Explicit>,
    now: Instant,
    under_way: Vec<(Explicit, Slot)>,
}

impl Host {
    fn new() -> Self {
        let limits = Limits { held_max: 4_000, held_bytes_max: 1 << 20, ..LIMITS };
        let (mut lanes, now) = (Lanes::new(limits), Instant::now());
        lanes.sips = Sips::wide(now);
        Self { lanes, now, under_way: Vec::new() }
    }

    /// Accepts a delivery in the lane that it belongs to; returns whether it may be sent at once.
    fn post(&mut self, url: u128) -> bool {
        let url = lane(url);
        let id = self.lanes.explicit_lane(ORIGIN, url, self.now);
        let is_granted = self.lanes.reserve(id, (of(ORIGIN), None), 10, self.now);
        if is_granted {
            self.lanes.push(Explicit { lane: id, url }, self.now).unwrap();
        }
        is_granted
    }

    /// Claims a delivery of the origin's lane, as if it had waited in the database; returns the lane
    /// that it is moved to.
    fn claim(&mut self, url: u128) -> Option<LaneId> {
        self.lanes.note_due(ORIGIN, of(ORIGIN), self.now);
        self.now += 30 * MS;
        for part in self.lanes.plan_claim(self.now, 9, 1) {
            let got = Claimed { taken: 1, bytes: 10, ..Claimed::default() };
            self.lanes.settle_claim(&part, &got, self.now);
            self.lanes.push(Explicit { lane: part.lane, url: lane(url) }, self.now).unwrap();
        }
        self.lanes.take_misplaced().pop().map(|(_, lane)| lane)
    }

    fn start(&mut self) -> usize {
        let before = self.under_way.len();
        self.now += 10 * MS;
        while let Some(started) = self.lanes.start_next(self.now) {
            self.under_way.push(started);
        }
        self.under_way.len() - before
    }

    /// Ends all requests under way.
    fn finish(&mut self, verdict: Verdict) {
        self.now += MS;
        for (one, slot) in std::mem::take(&mut self.under_way) {
            self.lanes.conclude_explicit(slot, (one.lane, one.url), verdict, self.now, 0.5);
            self.lanes.free(one.lane, 10);
        }
    }

    /// Fails so many attempts at a URL, claimed from the lane of the origin.
    fn fail(&mut self, url: u128, verdict: Verdict, times: usize) {
        for _ in 0..times {
            assert_eq!(self.claim(url), None);
            assert_eq!(self.start(), 1);
            self.finish(verdict);
        }
    }

    fn lane_of(&self, url: u128) -> LaneId {
        self.lanes.explicit_lane(ORIGIN, lane(url), self.now)
    }
}

#[test]
fn url_that_answers_with_errors_is_moved_out_of_the_lane_of_its_origin() {
    let mut host = Host::new();
    host.fail(BAD, Verdict::Failing, 20);
    assert!(host.lanes.by_id[&lane(BAD)].is_quiet(host.now), "its breaker is open");
    assert_eq!(host.claim(BAD), Some(lane(BAD)), "its backlog is moved");
    assert_eq!((host.lane_of(BAD), host.lane_of(OTHER)), (lane(BAD), ORIGIN));
    assert!(!host.lanes.by_id[&ORIGIN].is_silent());
    host.claim(OTHER);
    assert_eq!(host.start(), 1, "the neighbour is sent");
    host.finish(Verdict::Healthy);
    assert_eq!(host.lanes.by_id[&ORIGIN].class, Class::Proven);
    let news = host.lanes.take_news(host.now, 9);
    assert!(news.iter().any(|one| one.lane == lane(BAD) && one.open_for.is_some()), "{news:?}");
    assert!(news.iter().all(|one| one.lane != ORIGIN || one.open_for.is_none()), "{news:?}");
}

#[test]
fn pause_asked_for_by_one_url_holds_up_that_url_alone() {
    let mut host = Host::new();
    assert!(host.post(OTHER));
    host.start();
    host.finish(Verdict::Healthy);
    assert!(host.post(BAD) && host.post(BAD) && host.post(OTHER));
    assert_eq!(host.start(), 1);
    host.finish(Verdict::Paused(9 * SECOND));
    assert_eq!(host.lanes.take_misplaced().len(), 1, "what waited in memory for it");
    assert_eq!(host.start(), 1, "and what waited for the neighbour is sent");
    assert!(!host.post(BAD) && host.lane_of(BAD) == lane(BAD));
    host.finish(Verdict::Healthy);
    host.now += 10 * SECOND;
    assert_eq!(host.lane_of(BAD), lane(BAD), "one request comes first after the pause");
    assert_eq!((host.lane_of(OTHER), host.lanes.held()), (ORIGIN, 0));
}

/// A host that does not answer is probed with URLs that were not tried yet, without long pauses.
#[test]
fn silent_origin_lets_one_request_to_each_url_through() {
    let mut host = Host::new();
    host.fail(BAD, Verdict::Unreachable, 5);
    assert!(host.lanes.by_id[&ORIGIN].is_quiet(host.now), "nothing answers there");
    assert!(!host.post(BAD), "it was tried");
    assert!(host.post(OTHER) && host.post(OTHER + 1));
    assert_eq!(host.start(), 2, "and these were not");
    assert!(host.post(OTHER));
    assert_eq!(host.start(), 0, "one at a time");
    let open_until = host.lanes.by_id[&ORIGIN].open_until.unwrap();
    assert!(open_until <= host.now + 2 * SECOND, "its own pause stays short");
    host.finish(Verdict::Healthy);
    assert!(!host.lanes.by_id[&ORIGIN].is_silent(), "one of them answered");
}

#[test]
fn url_that_hangs_gets_a_lane_of_its_own_at_once() {
    let mut host = Host::new();
    host.fail(BAD, Verdict::Hung, 1);
    assert_eq!(host.claim(BAD), Some(lane(BAD)));
    assert_eq!(host.claim(OTHER), None);
    assert_eq!(host.start(), 1);
}

#[test]
fn lanes_of_one_origin_share_its_bound() {
    let mut host = Host::new();
    host.fail(BAD, Verdict::Hung, 1);
    // The origin is silent: each URL has a lane of its own, up to eight at a time.
    for url in 10..30 {
        host.post(url);
        host.start();
    }
    let in_flight = host.under_way.len();
    assert!(in_flight <= LIMITS.lane_in_flight_max, "{in_flight}");
    host.finish(Verdict::Healthy);
    assert!(host.lanes.by_id[&ORIGIN].group.is_idle());
    assert_eq!(host.lanes.in_flight(), 0);
}

#[test]
fn failing_urls_without_number_take_bounded_memory() {
    let mut host = Host::new();
    for url in 100..400 {
        host.fail(url, Verdict::Failing, 1);
    }
    assert_eq!(host.lanes.by_id.len(), 1, "a failure makes no lane");
}
