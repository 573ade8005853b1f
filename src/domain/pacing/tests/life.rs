//! Whatever happens.

use proptest::prelude::*;

use super::*;

/// One step of a random life.
#[derive(Debug, Clone)]
enum Step {
    Reserve(u128),
    GiveBack,
    Push,
    Start,
    Finish(usize, Verdict),
    Look,
    Wait(u64),
    Due(u128),
    Claim(usize),
    Learn(u128, u16),
    Limit(u128, Option<u32>, bool),
    Members(i32),
    Drain,
}

fn any_lane() -> impl Strategy<Value = u128> {
    prop_oneof![0_u128..4, 100_u128..102]
}

fn step() -> impl Strategy<Value = Step> {
    let verdict = prop_oneof![
        4 => Just(Verdict::Healthy),
        2 => Just(Verdict::Failing),
        1 => Just(Verdict::Unreachable),
        1 => Just(Verdict::Refused),
        1 => Just(Verdict::Unsent),
        1 => Just(Verdict::Hung),
        1 => Just(Verdict::Paused(Duration::from_secs(1))),
    ];
    prop_oneof![
        8 => any_lane().prop_map(Step::Reserve),
        1 => Just(Step::GiveBack),
        6 => Just(Step::Push),
        6 => Just(Step::Start),
        6 => (any::<usize>(), verdict).prop_map(|(n, verdict)| Step::Finish(n, verdict)),
        1 => Just(Step::Look),
        2 => (1_u64..700).prop_map(Step::Wait),
        2 => any_lane().prop_map(Step::Due),
        2 => (0_usize..5).prop_map(Step::Claim),
        1 => (any_lane(), 0_u16..7).prop_map(|(n, failures)| Step::Learn(n, failures)),
        1 => (any_lane(), prop::option::of(1_u32..4), any::<bool>())
            .prop_map(|(n, most, is_paced)| Step::Limit(n, most, is_paced)),
        1 => (0..4).prop_map(Step::Members),
        1 => Just(Step::Drain),
    ]
}

proptest! {
    /// Whatever happens, the bounds hold, nothing is counted twice, and nothing is forgotten.
    #[test]
    fn counts_and_bounds_hold(steps in prop::collection::vec(step(), 1..400)) {
        let limits = Limits {
            lane_in_flight_max: 2,
            lane_held_max: 5,
            in_flight_max: 6,
            held_max: 20,
            held_bytes_max: 150,
            ..LIMITS
        };
        let mut bench = Bench::within(limits);
        let mut reserved = Vec::new();
        let mut queued = 0;
        for step in steps {
            let now = bench.now;
            match step {
                Step::Reserve(n) => {
                    if bench.lanes.reserve(lane(n), (of(lane(n)), None), 10, now) {
                        reserved.push(lane(n));
                    }
                }
                Step::GiveBack => {
                    if let Some(id) = reserved.pop() {
                        bench.lanes.give_back(id, 10);
                    }
                }
                Step::Push => {
                    if let Some(id) = reserved.pop()
                        && bench.lanes.push(Delivery(id, None), now).is_ok()
                    {
                        queued += 1;
                    }
                }
                Step::Start => queued -= bench.start().len(),
                Step::Finish(n, verdict) if !bench.under_way.is_empty() => {
                    let (id, _) = bench.under_way[n % bench.under_way.len()];
                    queued -= bench.finish(id.uuid().as_u128(), verdict);
                }
                Step::Finish(..) => {}
                Step::Look => queued -= bench.lanes.look_at_slow(now).returned.len(),
                Step::Wait(ms) => bench.later(Duration::from_millis(ms)),
                Step::Due(n) => bench.due(n),
                Step::Claim(rows) => {
                    for part in bench.lanes.plan_claim(now, 3, 7) {
                        let taken = rows.min(part.quota);
                        let got = Claimed { taken, bytes: 10 * taken, ..Claimed::default() };
                        bench.lanes.settle_claim(&part, &got, now);
                        let time = |n: usize| now + MS * 9 * u32::try_from(n).unwrap();
                        let pushed = (0..taken).filter(|&n| {
                            bench.lanes.push(Delivery(part.lane, Some(time(n))), now).is_ok()
                        });
                        queued += pushed.count();
                    }
                }
                Step::Learn(n, failures) => {
                    let open_for = (failures >= 5).then_some(SECOND);
                    let (lane, application) = (lane(n), of(lane(n)));
                    let health =
                        Health { lane, application, failures, open_for, paused_for: None };
                    queued -= bench.lanes.learn(&health, now).len();
                }
                Step::Limit(n, most, is_paced) => {
                    let pace = Pace { step: 9 * MS, tolerance: 20 * MS, slack: 100 * MS };
                    bench.limit(n, most, is_paced.then_some(pace));
                }
                Step::Members(0) => {
                    bench.lanes.set_members(Members::joining());
                }
                Step::Members(others) => {
                    bench.lanes.set_members(Members::of(1, (1..=others).collect()));
                }
                Step::Drain => queued -= bench.lanes.drain_queued().len(),
            }
            queued -= bench.lanes.take_astray().len();
            let lanes = &bench.lanes;
            prop_assert_eq!(lanes.held(), reserved.len() + queued + bench.under_way.len());
            prop_assert_eq!(lanes.in_flight(), bench.under_way.len());
            prop_assert_eq!(lanes.held_bytes, 10 * lanes.held());
            prop_assert!(lanes.in_flight() <= limits.in_flight_max);
            prop_assert!(lanes.held() <= limits.held_max);
            for class in Class::ALL {
                let of_class = || lanes.by_id.values().filter(|lane| lane.class == class);
                let in_flight: usize = of_class().map(|lane| lane.in_flight).sum();
                prop_assert_eq!(lanes.in_flight_of(class), in_flight);
                prop_assert_eq!(lanes.lanes_of(class), of_class().count());
                let bytes: usize = of_class().map(|lane| lane.bytes).sum();
                prop_assert_eq!(lanes.bytes_of[class as usize], bytes);
            }
            let shares: usize = lanes.applications.values().map(|share| share.held).sum();
            prop_assert_eq!(shares, lanes.held());
            for (id, one) in &lanes.by_id {
                prop_assert!(one.in_flight <= limits.lane_in_flight_max);
                // Whatever is due and has room will be planned: nothing waits for a restart.
                if one.due.is_some() && one.held() == 0 && !one.is_claiming {
                    prop_assert!(lanes.waits(*id));
                }
            }
        }
        // Nothing is stuck: as slots become free, all that waits is started.
        bench.later(Duration::from_secs(3_600));
        loop {
            queued -= bench.start().len() + bench.lanes.take_astray().len();
            let Some((id, _)) = bench.under_way.last().copied() else { break };
            queued -= bench.finish(id.uuid().as_u128(), Verdict::Healthy);
        }
        prop_assert_eq!(queued, 0);
    }
}
