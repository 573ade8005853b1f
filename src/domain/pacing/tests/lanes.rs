//! What a lane may have, and what follows from how it answers.

use super::*;

#[test]
fn a_lane_begins_with_one_request_and_widens_while_it_has_more() {
    let mut bench = Bench::new();
    assert_eq!(bench.fill(1, 30), 20, "what waits for the first answer, and no more");
    assert_eq!(bench.start(), [1]);
    bench.finish(1, Verdict::Healthy);
    assert_eq!(bench.start(), [1, 1], "two");
    bench.finish(1, Verdict::Healthy);
    assert_eq!(bench.start(), [1, 1, 1], "four");
    // Nothing waits: it is as wide as it was.
    let mut idle = Bench::new();
    for _ in 0..9 {
        idle.pass(1, Verdict::Healthy);
    }
    assert_eq!(idle.width(1), 1);
}

#[test]
fn a_slot_is_free_when_its_result_is_recorded() {
    let mut bench = Bench::new();
    bench.fill(1, 1);
    bench.cap(1, Some(1));
    bench.fill(1, 4);
    bench.start();
    bench.conclude(1, Verdict::Healthy);
    assert!(bench.start().is_empty());
    bench.lanes.free(lane(1), 10);
    assert_eq!(bench.start(), [1]);
}

#[test]
fn who_answers_gets_what_nobody_uses_even_if_it_fails() {
    let mut bench = Bench::new();
    bench.fill(1, 9);
    bench.start();
    bench.finish(1, Verdict::Failing);
    bench.later(MS);
    assert_eq!(bench.start().len(), 4, "an eighth of what the suspects may have");
    bench.fill(2, 9);
    bench.start();
    bench.finish(2, Verdict::Failing);
    assert_eq!((bench.width(1), bench.width(2)), (2, 2));
    // Not if it hangs.
    assert!(bench.finish(1, Verdict::Hung) > 0);
    assert_eq!((bench.width(1), bench.width(2)), (1, 2));
}

#[test]
fn applications_take_turns_and_then_lanes() {
    let mut bench = Bench::new();
    for n in [1, 2, 3, 101] {
        bench.prove(n);
    }
    for n in [1, 2, 3, 101] {
        bench.fill(n, 2);
    }
    assert_eq!(bench.start(), [1, 101, 2, 101, 3, 1, 2, 3]);
}

#[test]
fn what_is_free_bounds_what_one_lane_and_one_application_hold() {
    let mut bench = Bench::within(Limits { lane_held_max: 1_000, ..LIMITS });
    for n in (1..60).chain([101]) {
        bench.prove(n);
    }
    assert_eq!(bench.fill(1, 1_000), 100, "as much as is free");
    for n in 2..60 {
        bench.fill(n, 1_000);
    }
    assert_eq!(bench.lanes.held(), 160, "four fifths are one application's");
    assert_eq!(bench.fill(101, 1_000), 20, "there is room for another");
}

#[test]
fn new_deliveries_do_not_overtake_what_is_due() {
    let mut bench = Bench::new();
    bench.due(1);
    assert_eq!((bench.fill(1, 1), bench.fill(2, 1)), (0, 1));
    let later = bench.now + 60 * SECOND;
    bench.lanes.note_due(lane(3), of(lane(3)), later);
    assert_eq!(bench.fill(3, 1), 1, "a retry that is not due holds nobody up");
    bench.now = later;
    assert_eq!(bench.fill(3, 1), 0);
}

#[test]
fn a_lane_that_fails_is_suspect_and_not_born_claimed() {
    let mut bench = Bench::new();
    bench.pass(1, Verdict::Failing);
    assert_eq!((bench.class(1), bench.fill(1, 1)), (Class::Suspect, 0));
    // One that was proven may fail four times, or twice without an answer.
    bench.pass(2, Verdict::Healthy);
    for failures in 1..=5 {
        bench.later(MS);
        bench.pass(2, Verdict::Failing);
        assert_eq!(bench.class(2) == Class::Suspect, failures == 5);
    }
}

#[test]
fn a_quiet_or_hanging_lane_gives_back_what_waits() {
    for verdict in [Verdict::Paused(9 * SECOND), Verdict::Hung] {
        let mut bench = Bench::new();
        bench.fill(1, 5);
        bench.start();
        assert_eq!(bench.finish(1, verdict), 4);
        assert_eq!((bench.lanes.in_flight(), bench.lanes.held(), bench.fill(1, 1)), (0, 0, 0));
    }
}

#[test]
fn a_request_that_takes_a_second_makes_its_lane_suspect_while_it_is_under_way() {
    let mut bench = Bench::new();
    bench.prove(1);
    bench.fill(1, 20);
    assert_eq!(bench.start().len(), 8);
    assert_eq!(bench.lanes.look_at_slow(bench.now + 999 * MS).returned.len(), 0);
    let used = |bench: &Bench| Class::ALL.map(|class| bench.lanes.in_flight_of(class));
    assert_eq!(used(&bench), [8, 0, 0]);
    bench.later(SECOND);
    assert_eq!(bench.lanes.look_at_slow(bench.now).returned.len(), 12, "what waits goes back");
    assert_eq!((used(&bench), bench.class(1)), ([0, 0, 8], Class::Suspect));
    // It answers after all, slowly: it goes on, as one of the slow.
    bench.finish(1, Verdict::Healthy);
    assert_eq!((bench.class(1), bench.fill(1, 9)), (Class::Suspect, 0), "it is full");
    for _ in 0..7 {
        bench.finish(1, Verdict::Healthy);
    }
    assert!(bench.fill(1, 20) > 1);
    bench.start();
    bench.later(MS);
    bench.finish(1, Verdict::Healthy);
    assert_eq!(bench.class(1), Class::Proven, "quick again");
}

#[test]
fn the_unproven_and_the_suspect_leave_slots_to_the_proven() {
    let mut bench = Bench::new();
    for n in 1..=60 {
        bench.prove(n);
    }
    for n in 101..=160 {
        bench.fill(n, 1);
    }
    // A quarter is the share of the unproven, and four fifths of it one application's.
    assert_eq!(bench.start().len(), 13);
    bench.later(SECOND);
    bench.lanes.look_at_slow(bench.now);
    assert_eq!(bench.start().len(), 13, "those that hang are suspect now");
    bench.later(SECOND);
    bench.lanes.look_at_slow(bench.now);
    bench.start();
    bench.later(SECOND);
    bench.lanes.look_at_slow(bench.now);
    bench.start();
    let total = bench.lanes.in_flight();
    assert!(total <= 48, "{total}: a quarter is left");
    for n in 1..=60 {
        bench.fill(n, 1);
    }
    assert!(bench.start().len() >= 16 - 4, "to the proven");
}

#[test]
fn the_proven_leave_slots_in_which_a_lane_can_be_proven() {
    let mut bench = Bench::new();
    for n in 1..=20 {
        bench.prove(n);
    }
    for n in 1..=20 {
        bench.fill(n, 20);
    }
    assert_eq!(bench.start().len(), 60, "64, but for a sixteenth");
    for n in 101..=110 {
        bench.fill(n, 1);
    }
    assert_eq!(bench.start().len(), 4);
}

#[test]
fn one_application_leaves_others_something_of_each_class() {
    let mut bench = Bench::new();
    for n in 1..=60 {
        bench.fill(n, 1);
    }
    assert_eq!(bench.start().len(), 13);
    bench.fill(101, 1);
    assert_eq!(bench.start(), [101]);
}

#[test]
fn the_breaker_opens_after_failures_in_a_row_and_closes_by_a_probe() {
    let mut bench = Bench::new();
    bench.due(1);
    let fail = |bench: &mut Bench| {
        assert_eq!(bench.plan(), [(1, bench.width(1))]);
        let part = LaneQuota {
            lane: lane(1),
            quota: bench.width(1),
            mark: None,
            taken_until: Duration::ZERO,
            limit_revision: 0,
        };
        let got = Claimed { taken: 1, left: 0, bytes: 10, last_due: None };
        bench.lanes.settle_claim(&part, &got, bench.now);
        bench.due(1);
        bench.lanes.push(Delivery(lane(1), None), bench.now).unwrap();
        assert_eq!(bench.start(), [1]);
        bench.later(MS);
        bench.finish(1, Verdict::Unreachable);
        bench.later(20 * MS);
    };
    (0..5).for_each(|_| fail(&mut bench));
    for (pause, probes) in [(1, 2), (2, 4), (4, 8), (8, 8), (16, 4), (32, 4), (60, 4), (60, 4)] {
        // Until the pause is over nothing is claimed.
        assert!(bench.plan().is_empty());
        let due = bench.lanes.next_due(bench.now).unwrap();
        assert_eq!(due + 20 * MS, bench.now + pause * SECOND);
        assert_eq!(bench.fill(1, 1), 0);
        bench.now = due;
        assert_eq!(bench.width(1), probes);
        fail(&mut bench);
    }
    let news = bench.lanes.take_news(bench.now, 9);
    assert_eq!((news.len(), news[0].failures), (1, 13));
    assert!(news[0].open_for.is_some() && bench.lanes.take_news(bench.now, 9).is_empty());

    bench.now = bench.lanes.next_due(bench.now).unwrap();
    bench.plan();
    let part = LaneQuota {
        lane: lane(1),
        quota: 4,
        mark: None,
        taken_until: Duration::ZERO,
        limit_revision: 0,
    };
    let got = Claimed { taken: 1, left: 0, bytes: 10, last_due: None };
    bench.lanes.settle_claim(&part, &got, bench.now);
    bench.lanes.push(Delivery(lane(1), None), bench.now).unwrap();
    bench.start();
    bench.due(1);
    bench.finish(1, Verdict::Healthy);
    assert_eq!((bench.class(1), bench.width(1)), (Class::Proven, 2), "and slowly on");
    assert_eq!(bench.lanes.take_news(bench.now, 9)[0].failures, 0);
}

#[test]
fn the_longest_pause_is_that_whatever_the_dice_say() {
    let mut lane = Lane::<Delivery>::new(of(lane(1)));
    let mut now = Instant::now();
    for _ in 0..20 {
        now += SECOND;
        lane.conclude(Verdict::Unreachable, now, now + MS, 1.0, (&LIMITS, true));
    }
    assert_eq!(lane.open_until, Some(now + MS + 60 * SECOND));
}

#[test]
fn what_was_quiet_begins_with_one_and_doubles_with_each_round() {
    let quiet: [fn(&mut Bench); 4] = [
        |bench| {
            bench.finish(1, Verdict::Paused(SECOND));
            // What was under way shows how it was before.
            bench.finish_all(1, Verdict::Healthy);
        },
        |bench| {
            for _ in 0..5 {
                bench.later(MS);
                let began = bench.now;
                bench.lanes.change(lane(1), |lane| {
                    lane.conclude(Verdict::Unreachable, began, began, 0.5, (&LIMITS, true))
                });
            }
            bench.finish_all(1, Verdict::Unsent);
        },
        |bench| {
            bench.finish_all(1, Verdict::Unsent);
            let open_for = Some(SECOND);
            let (lane, application) = (lane(1), of(lane(1)));
            let health = Health { lane, application, failures: 5, open_for, paused_for: None };
            bench.lanes.learn(&health, bench.now);
        },
        // Another process was asked for quiet.
        |bench| {
            let (lane, application) = (lane(1), of(lane(1)));
            let paused_for = Some(SECOND);
            let health = Health { lane, application, failures: 0, open_for: None, paused_for };
            bench.lanes.learn(&health, bench.now);
            bench.finish_all(1, Verdict::Healthy);
        },
    ];
    for (n, go_quiet) in quiet.into_iter().enumerate() {
        for first in [Verdict::Healthy, Verdict::Refused] {
            let mut bench = Bench::new();
            bench.prove(1);
            bench.fill(1, 20);
            assert_eq!(bench.start().len(), 8);
            bench.later(MS);
            go_quiet(&mut bench);
            bench.later(2 * SECOND);
            bench.lanes.drain_queued();
            bench.due(1);
            // Two probes of an open breaker, and one request after a pause that was asked for.
            let expected = if n == 1 { [2, 3, 6, 8] } else { [1, 2, 4, 8] };
            assert_eq!(bench.width(1), expected[0], "{n} {first:?}");
            let mut widths = Vec::new();
            for _ in 0..4 {
                bench.take(1);
                assert_eq!(bench.start().len(), bench.width(1));
                widths.push(bench.width(1));
                bench.later(MS);
                bench.finish_all(1, first);
                bench.lanes.drain_queued();
                bench.later(200 * MS);
            }
            assert_eq!(widths, expected, "{n} {first:?}");
        }
    }
}

#[test]
fn who_answers_slowly_and_asks_for_quiet_begins_with_one() {
    let mut bench = Bench::new();
    bench.prove(1);
    bench.fill(1, 20);
    assert_eq!(bench.start().len(), 8);
    bench.later(SECOND);
    bench.lanes.look_at_slow(bench.now);
    (0..7).for_each(|_| assert_eq!(bench.finish(1, Verdict::Healthy), 0));
    assert!(bench.width(1) > 2, "slow, and taking it");
    bench.finish(1, Verdict::Paused(SECOND));
    bench.later(SECOND);
    bench.due(1);
    bench.take(1);
    assert_eq!(bench.start(), [1]);
    bench.later(MS);
    bench.finish(1, Verdict::Healthy);
    assert_eq!(bench.width(1), 2);
}

/// Catches: a breaker that opens before its lane counts as suspect, so that all that it had goes at
/// once after one probe.
#[test]
fn a_breaker_that_opens_at_the_first_failure_starts_slowly_too() {
    let breaker = Breaker { failures: 1, ..LIMITS.breaker };
    let mut bench = Bench::within(Limits { breaker, ..LIMITS });
    bench.pass(1, Verdict::Unreachable);
    assert_eq!(bench.class(1), Class::Suspect);
    bench.later(2 * SECOND);
    assert_eq!(bench.fill(1, 1), 0, "nothing is born claimed");
    bench.due(1);
    assert_eq!(bench.plan(), [(1, 2)], "two probes");
}

#[test]
fn of_several_processes_the_first_of_a_lane_probes_it() {
    let planned = |me: i32| {
        let mut bench = Bench::new();
        bench.lanes.set_members(Members::of(me, vec![1, 2, 3]));
        let (lane, application) = (lane(1), of(lane(1)));
        let open_for = Some(SECOND);
        let health = Health { lane, application, failures: 5, open_for, paused_for: None };
        bench.lanes.learn(&health, bench.now);
        bench.due(1);
        bench.later(SECOND);
        let first = bench.plan().len();
        bench.later(29 * SECOND);
        let before = bench.plan().len();
        bench.later(SECOND);
        let after = bench.plan().len();
        assert_eq!(first + before + after, 1);
        assert_eq!(before, 0);
        first
    };
    assert_eq!([1, 2, 3].map(planned).iter().sum::<usize>(), 1);

    // The same is heard again every while: it is over since it was over.
    let mut bench = Bench::new();
    bench.lanes.set_members(Members::of(1, vec![1, 2, 3, 4, 5, 6, 7, 8]));
    let strange = (1..).map(lane).take(99).find(|&id| !bench.lanes.members.is_first(id)).unwrap();
    let application = of(strange);
    let mut health = Health {
        lane: strange,
        application,
        failures: 5,
        open_for: Some(SECOND),
        paused_for: None,
    };
    bench.lanes.learn(&health, bench.now);
    bench.lanes.note_due(strange, application, bench.now);
    health.open_for = Some(Duration::ZERO);
    for _ in 0..15 {
        bench.later(2 * SECOND);
        bench.lanes.learn(&health, bench.now);
        assert!(bench.plan().is_empty());
    }
    bench.later(SECOND);
    assert_eq!(bench.plan().len(), 1);

    let mut bench = Bench::new();
    bench.lanes.set_members(Members::joining());
    let (lane, application) = (lane(1), of(lane(1)));
    let health =
        Health { lane, application, failures: 5, open_for: Some(SECOND), paused_for: None };
    bench.lanes.learn(&health, bench.now);
    bench.due(1);
    bench.later(2 * SECOND);
    assert!(bench.plan().is_empty(), "others may be first");
    bench.lanes.set_members(Members::of(1, vec![1]));
    bench.later(200 * MS);
    assert_eq!(bench.plan(), [(1, 1)]);
}

#[test]
fn who_refuses_is_there_and_its_breaker_stays_closed() {
    let mut bench = Bench::new();
    bench.pass(1, Verdict::Healthy);
    for _ in 0..9 {
        bench.later(MS);
        bench.pass(1, Verdict::Refused);
    }
    assert_eq!((bench.class(1), bench.lanes.by_id[&lane(1)].failures), (Class::Proven, 0));
    bench.pass(2, Verdict::Refused);
    assert_eq!((bench.class(2), bench.fill(2, 1)), (Class::Suspect, 0), "it has taken nothing yet");
}

#[test]
fn what_was_not_sent_says_nothing_of_the_receiver() {
    let mut bench = Bench::new();
    for _ in 0..9 {
        bench.later(MS);
        bench.pass(1, Verdict::Unsent);
    }
    assert_eq!((bench.class(1), bench.lanes.by_id[&lane(1)].failures), (Class::Unproven, 0));
}

#[test]
fn failures_at_the_same_time_count_once() {
    let mut bench = Bench::new();
    bench.prove(1);
    bench.later(MS);
    bench.fill(1, 20);
    assert_eq!(bench.start().len(), 8);
    for _ in 0..8 {
        bench.finish(1, Verdict::Failing);
    }
    assert_eq!((bench.class(1), bench.width(1)), (Class::Proven, 4));
}

#[test]
fn a_failure_is_refuted_by_a_later_success() {
    let mut bench = Bench::new();
    bench.prove(1);
    bench.fill(1, 20);
    bench.start();
    bench.later(MS);
    bench.finish(1, Verdict::Healthy);
    assert_eq!(bench.finish(1, Verdict::Hung), 0, "it hung for one request only");
    bench.later(MS);
    let before = bench.under_way.len();
    bench.start();
    bench.later(MS);
    bench.under_way.drain(..before);
    assert!(bench.finish(1, Verdict::Hung) > 0);
}

#[test]
fn what_one_knows_of_a_lane_another_can_learn() {
    let mut bench = Bench::new();
    let health = Health {
        lane: lane(1),
        application: of(lane(1)),
        failures: 7,
        open_for: Some(9 * SECOND),
        paused_for: None,
    };
    bench.fill(1, 2);
    assert_eq!(bench.lanes.learn(&health, bench.now).len(), 2, "what waits goes back");
    assert_eq!((bench.class(1), bench.fill(1, 1)), (Class::Suspect, 0));
    bench.due(1);
    assert_eq!(bench.lanes.next_due(bench.now), Some(bench.now + 9 * SECOND));
    // Elsewhere the probe went well: here, too, one goes first.
    let well = Health { failures: 0, open_for: None, ..health };
    bench.lanes.learn(&well, bench.now);
    assert_eq!(bench.plan(), [(1, 1)]);
    // And of one that is well nothing has to be remembered.
    bench.lanes.learn(&Health { lane: lane(2), ..well }, bench.now);
    assert!(!bench.lanes.by_id.contains_key(&lane(2)));
}

#[test]
fn when_slots_are_short_requests_of_suspects_are_cut() {
    let limits = Limits { in_flight_max: 8, ..LIMITS };
    let mut bench = Bench::within(limits);
    for n in 1..=8 {
        bench.prove(n);
    }
    for n in 1..=8 {
        bench.fill(n, 1);
    }
    assert_eq!(bench.start().len(), 7);
    bench.later(SECOND);
    let is_cut = bench.lanes.look_at_slow(bench.now).has_cut;
    assert!(!is_cut, "not before they had some time");
    bench.later(4 * SECOND);
    let is_cut = bench.lanes.look_at_slow(bench.now).has_cut;
    assert!(is_cut && bench.under_way.iter().all(|(_, slot)| bench.lanes.is_cut(*slot)));
    assert!(!bench.lanes.look_at_slow(bench.now).has_cut, "once");
}

#[test]
fn a_lane_that_went_quiet_takes_nothing_until_the_end() {
    let mut bench = Bench::new();
    bench.fill(1, 1);
    assert!(bench.lanes.reserve(lane(1), (of(lane(1)), None), 10, bench.now));
    bench.start();
    bench.finish(1, Verdict::Paused(9 * SECOND));
    let (_, left) = bench.lanes.push(Delivery(lane(1), None), bench.now).unwrap_err();
    assert_eq!((left, bench.lanes.held()), (9 * SECOND, 0));
}

#[test]
fn a_cap_bounds_a_lane_whatever_it_deserves() {
    let mut bench = Bench::new();
    bench.prove(1);
    bench.cap(1, Some(3));
    bench.fill(1, 20);
    assert_eq!(bench.start().len(), 3);
    bench.cap(1, None);
    assert_eq!(bench.start().len(), 5);
}

#[test]
fn idle_lanes_are_forgotten_in_time() {
    let mut bench = Bench::new();
    bench.fill(1, 1);
    bench.start();
    bench.now += MEMORY;
    bench.lanes.forget_idle(bench.now);
    assert_eq!(bench.lanes.by_id.len(), 1, "in flight");
    bench.finish(1, Verdict::Failing);
    bench.lanes.forget_idle(bench.now);
    assert_eq!(bench.lanes.by_id.len(), 1, "how it answered is remembered");
    bench.lanes.forget_idle(bench.now + MEMORY);
    assert!(bench.lanes.by_id.is_empty());
    assert_eq!(Class::ALL.map(|class| bench.lanes.lanes_of(class)), [0; 3]);
}
