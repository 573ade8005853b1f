//! Receivers that fail at random, and receivers that are down, in virtual time: the lanes with the
//! retry schedule, compared with the schedule alone.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap},
};

use super::*;
use crate::domain::RetryPolicy;

/// Limits of the defaults.
const DEFAULTS: Limits = Limits {
    lane_in_flight_max: 128,
    lane_held_max: 16_384,
    in_flight_max: 4_096,
    held_max: 65_536,
    held_bytes_max: 256 << 20,
    breaker: Breaker { failures: 5, pause_max: Duration::from_secs(60) },
};
/// Time that a claim and the record of a result take.
const CLAIM: Duration = Duration::from_millis(3);
/// Time that a receiver takes to answer, and after which a request without an answer times out.
const ANSWER: Duration = Duration::from_millis(20);
const TIMEOUT: Duration = Duration::from_secs(15);
/// Events of one run.
const EVENTS: u32 = 3_000;

/// Behaviour of a receiver.
#[derive(Debug, Clone, Copy)]
enum Receiver {
    /// Answers 500 to this share of attempts.
    Flaky(f64),
    /// Refuses the connection of this share of attempts.
    Refusing(f64),
    /// Never answers.
    Hung,
    /// Answers 500 to every attempt in this range of seconds, and 200 before and after.
    DownBetween(u64, u64),
}

/// One delivery.
#[derive(Debug, Clone, Copy)]
struct Row {
    lane: LaneId,
    event: u32,
    attempt: u32,
    due: Instant,
}

impl Held for Row {
    fn lane(&self) -> LaneId {
        self.lane
    }

    fn bytes(&self) -> usize {
        10
    }

    fn time(&self) -> Option<Instant> {
        None
    }
}

#[derive(Debug)]
enum Happening {
    Post(Row),
    Answer(Row, Slot, Verdict),
    Claimed(Vec<LaneQuota>),
    Look,
    Nothing,
}

/// Random numbers of one attempt: of its result, and of the delay after it. The same in every run.
fn random_of(event: u32, attempt: u32) -> (f64, f64) {
    // SplitMix64.
    let mut mixed = (u64::from(event) << 32) + u64::from(attempt);
    for _ in 0..2 {
        mixed = mixed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
    }
    let share = |bits: u64| {
        f64::from(u32::try_from(bits & 0xffff_ffff).unwrap()) / (f64::from(u32::MAX) + 1.0)
    };
    (share(mixed), share(mixed >> 32))
}

fn policy() -> RetryPolicy {
    RetryPolicy::exponential(30, SECOND, 4 * SECOND).unwrap()
}

struct Simulation {
    lanes: Lanes<Row>,
    start: Instant,
    now: Instant,
    happenings: BinaryHeap<Reverse<(Instant, usize)>>,
    what: Vec<Happening>,
    queue: HashMap<LaneId, BTreeMap<(Instant, u32), Row>>,
    receivers: HashMap<LaneId, Receiver>,
    is_claiming: bool,
    /// The next timer.
    wake: Option<Instant>,
    /// Attempts of each lane.
    attempts: HashMap<LaneId, usize>,
    /// Time from the post of each event to its delivery, by lane.
    delivered: HashMap<LaneId, Vec<Duration>>,
    posted: HashMap<u32, Instant>,
}

impl Simulation {
    fn new() -> Self {
        let now = Instant::now();
        let mut simulation = Self {
            lanes: Lanes::new(DEFAULTS),
            start: now,
            now,
            happenings: BinaryHeap::new(),
            what: Vec::new(),
            queue: HashMap::new(),
            receivers: HashMap::new(),
            is_claiming: false,
            wake: None,
            attempts: HashMap::new(),
            delivered: HashMap::new(),
            posted: HashMap::new(),
        };
        simulation.at(now, Happening::Look);
        simulation
    }

    fn at(&mut self, at: Instant, what: Happening) {
        self.happenings.push(Reverse((at, self.what.len())));
        self.what.push(what);
    }

    /// Posts events to a receiver, this many a second.
    fn post(&mut self, n: u128, receiver: Receiver, events: std::ops::Range<u32>, per_s: u32) {
        self.receivers.insert(lane(n), receiver);
        for (nth, event) in (0..).zip(events) {
            let due = self.start + SECOND * nth / per_s;
            self.posted.insert(event, due);
            self.at(due, Happening::Post(Row { lane: lane(n), event, attempt: 1, due }));
        }
    }

    fn wait_in_queue(&mut self, row: Row) {
        self.queue.entry(row.lane).or_default().insert((row.due, row.event), row);
        if row.due <= self.now + DUE_HORIZON {
            self.lanes.note_due(row.lane, of(row.lane), row.due);
        }
    }

    /// Runs until all is delivered or dead, or until this many seconds have passed.
    fn run(&mut self, seconds: u64) {
        let end = self.start + Duration::from_secs(seconds);
        while let Some(Reverse((at, number))) = self.happenings.pop() {
            if at > end {
                break;
            }
            self.now = self.now.max(at);
            match std::mem::replace(&mut self.what[number], Happening::Nothing) {
                Happening::Post(row) => self.accept(row),
                Happening::Answer(row, slot, verdict) => self.conclude(row, slot, verdict),
                Happening::Claimed(plan) => self.take(plan),
                Happening::Look => {
                    for row in self.lanes.look_at_slow(self.now).returned {
                        self.wait_in_queue(row);
                    }
                    if self.lanes.held() > 0
                        || self.queue.values().any(|rows| !rows.is_empty())
                        || self.now < self.start + 10 * SECOND
                    {
                        self.at(self.now + 20 * MS, Happening::Look);
                    }
                }
                Happening::Nothing => {}
            }
            self.go_on();
        }
    }

    fn accept(&mut self, row: Row) {
        if self.lanes.reserve(row.lane, (of(row.lane), None), 10, self.now) {
            if let Err((row, _)) = self.lanes.push(row, self.now) {
                self.wait_in_queue(row);
            }
        } else {
            self.wait_in_queue(row);
        }
    }

    /// Starts and claims what can be, and sets a timer for what can be later.
    fn go_on(&mut self) {
        while let Some((row, slot)) = self.lanes.start_next(self.now) {
            *self.attempts.entry(row.lane).or_default() += 1;
            let (result, _) = random_of(row.event, row.attempt);
            let (verdict, takes) = match self.receivers[&row.lane] {
                Receiver::Flaky(share) if result < share => (Verdict::Failing, ANSWER),
                Receiver::Refusing(share) if result < share => (Verdict::Unreachable, MS),
                Receiver::DownBetween(from, to)
                    if (from..to).contains(&(self.now - self.start).as_secs()) =>
                {
                    (Verdict::Failing, ANSWER)
                }
                Receiver::Hung => (Verdict::Hung, TIMEOUT),
                Receiver::Flaky(_) | Receiver::Refusing(_) | Receiver::DownBetween(..) => {
                    (Verdict::Healthy, ANSWER)
                }
            };
            self.at(self.now + takes, Happening::Answer(row, slot, verdict));
        }
        let due = self.lanes.next_due(self.now);
        if !self.is_claiming && due.is_some_and(|due| due <= self.now) {
            let plan = self.lanes.plan_claim(self.now, 256, 500);
            self.is_claiming = !plan.is_empty();
            if self.is_claiming {
                self.at(self.now + CLAIM, Happening::Claimed(plan));
            }
        }
        let due = self.lanes.next_due(self.now).filter(|_| !self.is_claiming);
        let next = due.into_iter().chain(self.lanes.next_start()).min();
        let is_set = next >= self.wake && self.wake > Some(self.now);
        if let Some(next) = next.filter(|&next| !is_set && next > self.now) {
            self.wake = Some(next);
            self.at(next, Happening::Nothing);
        }
    }

    fn take(&mut self, plan: Vec<LaneQuota>) {
        self.is_claiming = false;
        for part in plan {
            let rows = self.queue.entry(part.lane).or_default();
            let due = rows.range(..=(self.now, u32::MAX)).map(|(&key, _)| key);
            let due: Vec<_> = due.take(part.quota).collect();
            let claimed: Vec<Row> = due.iter().filter_map(|key| rows.remove(key)).collect();
            let next = rows.keys().next().map(|&(due, _)| due);
            let taken = claimed.len();
            let got = Claimed { taken, left: 0, bytes: 10 * taken, last_due: None };
            if self.lanes.settle_claim(&part, &got, self.now)
                && let Some(next) = next.filter(|&next| next <= self.now + DUE_HORIZON)
            {
                self.lanes.note_due(part.lane, of(part.lane), next);
            }
            for row in claimed {
                if let Err((row, _)) = self.lanes.push(row, self.now) {
                    self.wait_in_queue(row);
                }
            }
        }
    }

    fn conclude(&mut self, row: Row, slot: Slot, verdict: Verdict) {
        let (_, jitter) = random_of(row.event, row.attempt);
        let returned = self.lanes.conclude(slot, row.lane, verdict, self.now, jitter);
        self.lanes.free(row.lane, 10);
        for row in returned {
            self.wait_in_queue(row);
        }
        if verdict == Verdict::Healthy {
            let took = self.now - self.posted[&row.event];
            self.delivered.entry(row.lane).or_default().push(took);
        } else if row.attempt < 30 {
            let due = self.now + policy().delay(row.attempt, jitter);
            self.wait_in_queue(Row { attempt: row.attempt + 1, due, ..row });
        }
    }

    /// Quantiles of the times to delivery, in seconds.
    fn quantiles(&self, n: u128) -> [f64; 3] {
        quantiles(self.delivered.get(&lane(n)).cloned().unwrap_or_default())
    }
}

fn quantiles(mut times: Vec<Duration>) -> [f64; 3] {
    times.sort_unstable();
    [50, 95, 99].map(|percent| {
        let at = times.len() * percent / 100;
        times.get(at.min(times.len().saturating_sub(1))).map_or(f64::NAN, Duration::as_secs_f64)
    })
}

/// Times to delivery by the schedule alone.
fn schedule(share: f64, takes: Duration) -> [f64; 3] {
    let times = (0..EVENTS).filter_map(|event| {
        let mut time = Duration::ZERO;
        for attempt in 1..=30 {
            let (result, jitter) = random_of(event, attempt);
            if result >= share {
                return Some(time + ANSWER);
            }
            time += takes + policy().delay(attempt, jitter);
        }
        None
    });
    quantiles(times.collect())
}

#[track_caller]
fn check(receiver: Receiver, per_s: u32, simulation: &Simulation) {
    let (share, takes) = match receiver {
        Receiver::Flaky(share) => (share, ANSWER),
        Receiver::Refusing(share) => (share, MS),
        Receiver::Hung | Receiver::DownBetween(..) => unreachable!("has no schedule"),
    };
    let (alone, [p50, p95, p99]) = (schedule(share, takes), simulation.quantiles(1));
    assert!(
        p95 <= 1.25 * alone[1] && p99 <= 1.25 * alone[2],
        "{receiver:?}, {per_s} events/s: {p50:.1} {p95:.1} {p99:.1} s; alone: {alone:.1?} s"
    );
}

#[test]
fn flaky_receiver_is_served_on_its_retry_schedule() {
    let flaky = [0.3, 0.5, 0.7, 0.9].map(|share| (Receiver::Flaky(share), 300));
    let refusing = [0.5, 0.7].map(|share| (Receiver::Refusing(share), 300));
    let others = [(Receiver::Flaky(0.7), 20), (Receiver::Flaky(0.9), 3_000)];
    for (receiver, per_s) in flaky.into_iter().chain(refusing).chain(others) {
        let mut simulation = Simulation::new();
        simulation.post(1, receiver, 0..EVENTS, per_s);
        simulation.run(3_600);
        check(receiver, per_s, &simulation);
    }
}

#[test]
fn receiver_that_is_down_gets_few_attempts() {
    for (receiver, most) in
        [(Receiver::Flaky(1.0), 250), (Receiver::Refusing(1.0), 100), (Receiver::Hung, 40)]
    {
        let mut simulation = Simulation::new();
        simulation.post(1, receiver, 0..EVENTS, 300);
        simulation.run(600);
        let attempts = simulation.attempts[&lane(1)];
        assert!(attempts <= most, "{receiver:?}: {attempts} attempts");
    }
}

/// An outage opens the breaker, and the end of the outage closes it.
#[test]
fn outage_of_a_healthy_receiver_costs_few_attempts_and_ends_soon() {
    let mut simulation = Simulation::new();
    simulation.post(1, Receiver::DownBetween(30, 60), 0..EVENTS, 50);
    simulation.run(3_600);
    let attempts = simulation.attempts[&lane(1)];
    assert!(attempts <= EVENTS as usize + 150, "{attempts} attempts");
    assert_eq!(simulation.delivered[&lane(1)].len(), EVENTS as usize);
    let [_, _, p99] = simulation.quantiles(1);
    assert!(p99 <= 70.0, "{p99} s");
}

/// Hung receivers narrow themselves, and not a receiver that fails at random and answers.
#[test]
fn flaky_receiver_beside_hung_ones_keeps_its_pace() {
    for share in [0.5, 0.9] {
        let mut simulation = Simulation::new();
        simulation.post(1, Receiver::Flaky(share), 0..EVENTS, 300);
        for n in 0..1_000_u32 {
            let first = EVENTS + 3 * n;
            simulation.post(1_000 + u128::from(n), Receiver::Hung, first..first + 3, 1);
        }
        simulation.run(600);
        check(Receiver::Flaky(share), 300, &simulation);
    }
}
