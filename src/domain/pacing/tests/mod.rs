use std::time::{Duration, Instant};

use uuid::Uuid;

use super::*;
use crate::domain::{LaneLimit, Pace};

mod claiming;
mod flaky;
mod lanes;
mod life;
mod limited;
mod urls;

#[derive(Debug, PartialEq, Eq)]
struct Delivery(LaneId, Option<Instant>);

impl Held for Delivery {
    fn lane(&self) -> LaneId {
        self.0
    }

    fn bytes(&self) -> usize {
        10
    }

    fn time(&self) -> Option<Instant> {
        self.1
    }
}

/// Lanes from 100 on are of another application.
fn of(lane: LaneId) -> ApplicationId {
    ApplicationId::from_uuid(Uuid::from_u128(1 + lane.uuid().as_u128() / 100))
}

const LIMITS: Limits = Limits {
    lane_in_flight_max: 8,
    lane_held_max: 20,
    in_flight_max: 64,
    held_max: 200,
    held_bytes_max: 4_000,
    breaker: Breaker { failures: 5, pause_max: Duration::from_secs(60) },
};
const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn lane(n: u128) -> LaneId {
    LaneId::from_uuid(Uuid::from_u128(n))
}

struct Bench {
    lanes: Lanes<Delivery>,
    now: Instant,
    under_way: Vec<(LaneId, Slot)>,
    revision: i32,
    sips: bool,
}

impl Bench {
    fn new() -> Self {
        Self::within(LIMITS)
    }

    fn within(limits: Limits) -> Self {
        let (mut lanes, now) = (Lanes::new(limits), Instant::now());
        lanes.sips = Sips::wide(now);
        Self { lanes, now, under_way: Vec::new(), revision: 0, sips: false }
    }

    /// Where requests begin in sips, as they do, in a young process.
    fn sipping() -> Self {
        let mut bench = Self { sips: true, ..Self::new() };
        bench.lanes.sips = Sips::default();
        bench
    }

    /// Reserves and pushes as many as are granted.
    fn fill(&mut self, n: u128, count: usize) -> usize {
        let id = lane(n);
        let granted =
            (0..count).filter(|_| self.lanes.reserve(id, (of(id), None), 10, self.now)).count();
        (0..granted).for_each(|_| self.lanes.push(Delivery(id, None), self.now).unwrap());
        granted
    }

    /// Starts what can be started; tells of which lanes.
    fn start(&mut self) -> Vec<u128> {
        if !self.sips {
            self.lanes.sips = Sips::wide(self.now);
        }
        let mut started = Vec::new();
        while let Some((delivery, slot)) = self.lanes.start_next(self.now) {
            let (id, time) = (delivery.0, delivery.1);
            assert_eq!(self.lanes.begin(id, time, self.now), Begin::Now);
            self.under_way.push((id, slot));
            started.push(delivery.0.uuid().as_u128());
        }
        started
    }

    /// Says how many requests at a time a lane may have in all.
    fn cap(&mut self, n: u128, max_in_flight: Option<u32>) {
        self.limit(n, max_in_flight, None);
    }

    /// The same, and at what rate.
    fn limit(&mut self, n: u128, max_in_flight: Option<u32>, pace: Option<Pace>) {
        self.revision += 1;
        let limit = LaneLimit { revision: self.revision, max_in_flight, pace };
        self.lanes.set_limit(lane(n), &limit, self.now);
    }

    fn conclude(&mut self, n: u128, verdict: Verdict) -> usize {
        let at = self.under_way.iter().position(|(id, _)| *id == lane(n)).unwrap();
        let (id, slot) = self.under_way.remove(at);
        self.lanes.conclude(slot, id, verdict, self.now, 0.5).len()
    }

    /// Ends an attempt and records it; tells how many go back to the database.
    fn finish(&mut self, n: u128, verdict: Verdict) -> usize {
        let returned = self.conclude(n, verdict);
        self.lanes.free(lane(n), 10);
        returned
    }

    /// Ends all that is under way to a lane; of what waits nothing goes back.
    fn finish_all(&mut self, n: u128, verdict: Verdict) {
        while self.under_way.iter().any(|(id, _)| *id == lane(n)) {
            assert_eq!(self.finish(n, verdict), 0);
        }
    }

    /// One delivery from beginning to end.
    fn pass(&mut self, n: u128, verdict: Verdict) -> usize {
        assert_eq!(self.fill(n, 1), 1);
        assert_eq!(self.start(), [n]);
        self.finish(n, verdict)
    }

    /// Makes a lane proven and wide.
    fn prove(&mut self, n: u128) {
        self.pass(n, Verdict::Healthy);
        let wide = |bench: &Self| bench.class(n) == Class::Proven && bench.width(n) >= 8;
        while !wide(self) {
            self.fill(n, 20);
            self.start();
            self.finish(n, Verdict::Healthy);
        }
        while self.under_way.iter().any(|(id, _)| *id == lane(n)) {
            self.finish(n, Verdict::Healthy);
            self.start();
        }
    }

    fn class(&self, n: u128) -> Class {
        self.lanes.by_id[&lane(n)].class
    }

    fn width(&self, n: u128) -> usize {
        self.lanes.by_id[&lane(n)].width(&LIMITS, self.lanes.spare())
    }

    /// Claims what one lane may have, as if there were enough of it; takes what is pushed.
    fn take(&mut self, n: u128) {
        let plan = self.lanes.plan_claim(self.now, 16, 32);
        assert_eq!(plan.len(), 1);
        for part in plan {
            assert_eq!(part.lane, lane(n));
            let bytes = 10 * part.quota;
            let got = Claimed { taken: part.quota, left: 0, bytes, last_due: None };
            self.lanes.settle_claim(&part, &got, self.now);
            (0..part.quota)
                .for_each(|_| self.lanes.push(Delivery(part.lane, None), self.now).unwrap());
        }
    }

    fn due(&mut self, n: u128) {
        self.lanes.note_due(lane(n), of(lane(n)), self.now);
    }

    fn plan(&mut self) -> Vec<(u128, usize)> {
        let plan = self.lanes.plan_claim(self.now, 16, 32);
        plan.iter().map(|part| (part.lane.uuid().as_u128(), part.quota)).collect()
    }

    fn later(&mut self, by: Duration) {
        self.now += by;
    }
}
