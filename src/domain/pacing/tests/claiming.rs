//! Which lanes a claim names, and what it brings.

use chrono::{DateTime, Utc};

use super::{
    super::claims::{MARK_AGE_MAX, MARK_SLACK},
    *,
};

#[test]
fn a_quiet_lane_is_claimed_from_when_that_ends() {
    let mut bench = Bench::new();
    bench.fill(1, 1);
    bench.start();
    bench.finish(1, Verdict::Paused(9 * SECOND));
    bench.due(1);
    assert!(bench.plan().is_empty());
    let end = bench.now + 9 * SECOND;
    assert_eq!(bench.lanes.next_due(bench.now), Some(end));
    bench.now = end;
    assert_eq!(bench.plan(), [(1, 1)]);
}

#[test]
fn claims_take_turns_rather_than_by_age() {
    let mut bench = Bench::new();
    for n in [1, 2, 3, 101] {
        bench.prove(n);
    }
    for n in [1, 2, 3] {
        bench.due(n);
    }
    bench.later(SECOND);
    bench.due(101);
    // 32 rows for four lanes; the one of another application is second, though due last.
    assert_eq!(bench.plan(), [(1, 8), (101, 8), (2, 8), (3, 8)]);
    assert!(bench.plan().is_empty(), "claims are under way");
}

#[test]
fn the_unproven_and_the_suspect_are_claimed_from_in_sips() {
    let mut bench = Bench::sipping();
    for n in 1..=40 {
        bench.due(n);
    }
    let first = bench.plan();
    assert_eq!((first.len(), first[0].1), (4, 1), "four lanes, a row each");
    assert!(bench.plan().is_empty());
    assert_eq!(bench.lanes.next_due(bench.now), Some(bench.now + 100 * MS), "a young process");
    bench.prove(100);
    bench.due(100);
    assert_eq!(bench.plan(), [(100, 20)], "the proven wait for no sip");
    bench.later(100 * MS);
    let plan = bench.lanes.plan_claim(bench.now, 16, 32);
    assert_eq!(plan.len(), 4, "the answer of one that was born claimed makes them no larger");
    let got = Claimed { taken: 1, bytes: 10, ..Claimed::default() };
    bench.lanes.settle_claim(&plan[0], &got, bench.now);
    bench.lanes.push(Delivery(plan[0].lane, None), bench.now).unwrap();
    let [of_the_sip] = bench.start()[..] else { panic!("nothing else waits") };
    bench.finish(of_the_sip, Verdict::Healthy);
    bench.later(1_899 * MS);
    assert_eq!(bench.plan().len(), 6, "five, and the one of the sip that has answered well");
    assert_eq!(
        bench.lanes.next_due(bench.now),
        Some(bench.now + 100 * MS),
        "the last of its youth"
    );
    bench.later(100 * MS);
    assert_eq!(bench.plan().len(), 5);
    assert_eq!(bench.lanes.next_due(bench.now), Some(bench.now + 20 * MS), "from then on");
}

#[test]
fn requests_of_suspects_begin_in_sips() {
    let mut bench = Bench::sipping();
    for n in 1..=10 {
        bench.fill(n, 2);
    }
    assert_eq!(bench.start().len(), 10, "who is new waits for no sip");
    bench.finish(1, Verdict::Healthy);
    for n in 2..=10 {
        bench.finish(n, Verdict::Failing);
    }
    assert_eq!(bench.start(), [1, 2, 3, 4, 5], "nor who is proven, and four suspects are one");
    assert_eq!(bench.lanes.next_start(), Some(bench.now + 10 * MS));
    bench.later(10 * MS);
    assert_eq!(bench.start(), [6, 7, 8, 9]);
    bench.later(10 * MS);
    assert_eq!(bench.start(), [10]);
    assert_eq!(bench.lanes.next_start(), None, "nobody waits");
}

#[test]
fn suspects_that_answer_are_sent_to_in_larger_sips() {
    let mut bench = Bench::sipping();
    for n in 1..=10 {
        bench.fill(n, 2);
    }
    bench.start();
    for n in 1..=10 {
        bench.finish(n, Verdict::Failing);
    }
    assert_eq!(bench.start(), [1, 2, 3, 4]);
    bench.finish(1, Verdict::Healthy);
    bench.later(10 * MS);
    assert_eq!(bench.start(), [5, 6, 7, 8, 9], "though none was claimed from");
}

#[test]
fn a_full_lane_is_planned_again_when_it_has_room() {
    let mut bench = Bench::new();
    bench.prove(1);
    bench.fill(1, 20);
    bench.due(1);
    assert!(!bench.lanes.waits(lane(1)));
    for left in (10..20).rev() {
        bench.start();
        bench.finish(1, Verdict::Healthy);
        assert_eq!(
            bench.lanes.waits(lane(1)),
            left == 10,
            "a claim of single rows is not worth it"
        );
    }
}

#[test]
fn what_a_claim_brought_decides_whether_there_is_more() {
    let mut bench = Bench::new();
    bench.prove(1);
    let due: DateTime<Utc> = DateTime::UNIX_EPOCH + chrono::Duration::days(1);
    bench.due(1);
    let now = bench.now;
    let plan = bench.lanes.plan_claim(now, 9, 2);
    assert_eq!((plan[0].quota, plan[0].mark), (2, None));
    let full = Claimed { taken: 2, left: 0, bytes: 20, last_due: Some(due) };
    assert!(!bench.lanes.settle_claim(&plan[0], &full, now));
    bench.lanes.push(Delivery(lane(1), None), now).unwrap();
    bench.lanes.push(Delivery(lane(1), None), now).unwrap();
    assert!(bench.lanes.waits(lane(1)), "a full claim: there may be more");

    let plan = bench.lanes.plan_claim(now, 9, 9);
    assert_eq!(plan[0].mark, Some(due - MARK_SLACK));
    assert!(bench.lanes.settle_claim(&plan[0], &Claimed::default(), now));
    assert!(!bench.lanes.waits(lane(1)), "exhausted");
    assert_eq!(bench.lanes.held(), 2);

    bench.due(1);
    let later = now + MARK_AGE_MAX;
    assert_eq!(bench.lanes.plan_claim(later, 9, 9)[0].mark, None, "marks grow old");
}

#[test]
fn an_abandoned_claim_leaves_its_lanes_due() {
    let mut bench = Bench::new();
    bench.due(1);
    let plan = bench.lanes.plan_claim(bench.now, 9, 9);
    bench.lanes.abandon_claim(&plan[0], bench.now);
    assert!(bench.lanes.waits(lane(1)));
    assert_eq!(bench.lanes.held(), 0);
}

#[test]
fn what_becomes_due_during_a_claim_is_not_forgotten() {
    let mut bench = Bench::new();
    bench.due(1);
    let plan = bench.lanes.plan_claim(bench.now, 9, 9);
    bench.later(5 * MS);
    bench.due(1);
    assert!(!bench.lanes.waits(lane(1)), "not while the claim is under way");
    assert_eq!(bench.fill(1, 1), 0, "nor may new deliveries overtake it");
    assert!(bench.lanes.settle_claim(&plan[0], &Claimed::default(), bench.now));
    assert!(bench.lanes.waits(lane(1)));
}

#[test]
fn rows_that_did_not_fit_stay_due() {
    let mut bench = Bench::new();
    bench.prove(1);
    bench.due(1);
    let plan = bench.lanes.plan_claim(bench.now, 9, 2);
    let got = Claimed { taken: 1, left: 1, bytes: 3_000, last_due: Some(DateTime::UNIX_EPOCH) };
    assert!(!bench.lanes.settle_claim(&plan[0], &got, bench.now));
    assert_eq!((bench.lanes.free_bytes(), bench.lanes.held()), (1_000, 1));
    let plan = bench.lanes.plan_claim(bench.now, 9, 9);
    assert_eq!(plan[0].mark, None, "they lie below any mark");
}
