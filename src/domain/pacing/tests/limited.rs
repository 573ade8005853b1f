//! What the owner of a lane bounds.

use super::*;

const PACE: Pace =
    Pace { step: Duration::from_millis(100), tolerance: Duration::ZERO, slack: SECOND };

impl Bench {
    /// Pushes deliveries of a lane as a claim would, with times so many milliseconds from now.
    fn claim_at(&mut self, n: u128, times_ms: &[u32]) {
        self.due(n);
        let taken = times_ms.len();
        // With one more it had not all that there is.
        let plan = self.lanes.plan_claim(self.now, 1, taken + 1);
        let [part] = &plan[..] else { panic!("{plan:?}") };
        assert_eq!(part.quota, taken + 1);
        let got = Claimed { taken, bytes: 10 * taken, ..Claimed::default() };
        self.lanes.settle_claim(part, &got, self.now);
        for &ms in times_ms {
            let time = Some(self.now + ms * MS);
            self.lanes.push(Delivery(lane(n), time), self.now).unwrap();
        }
    }

    /// A proven lane with a rate.
    fn paced(pace: Pace) -> Self {
        let mut bench = Self::new();
        bench.prove(1);
        bench.limit(1, None, Some(pace));
        bench
    }

    fn next_ms(&self) -> Option<u128> {
        Some(self.lanes.next_start()?.saturating_duration_since(self.now).as_millis())
    }

    /// Starts what can be started then; tells how many.
    fn start_after(&mut self, ms: u32) -> usize {
        self.now += ms * MS;
        self.start().len()
    }
}

/// Catches: shares that do not add up, by which more than the bound go out, or less; a lane of which
/// two processes think that it is theirs.
#[test]
fn shares_add_up_to_the_bound_in_every_company() {
    let mut firsts = [0; 3];
    for n in 0..60 {
        for all in [vec![7], vec![7, 9], vec![3, 7, 9], vec![1, 3, 7, 9, 12]] {
            let share =
                |limit: &LaneLimit, me: i32| Members::of(me, all.clone()).share(lane(n), limit);
            for most in [1, 2, 5, 16] {
                let limit = LaneLimit { revision: 1, max_in_flight: Some(most), pace: None };
                let shares: Vec<_> = all.iter().map(|&me| share(&limit, me)).collect();
                assert_eq!(shares.iter().sum::<usize>(), most as usize, "{all:?}");
                assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1);
                let paced = LaneLimit { pace: Some(PACE), ..limit };
                let mut shares: Vec<_> = all.iter().map(|&me| share(&paced, me)).collect();
                let first = shares.iter().position(|&share| share > 0).unwrap();
                if all.len() == 3 && most == 1 {
                    firsts[first] += 1;
                }
                assert_eq!(shares.remove(first), most as usize);
                assert!(shares.iter().all(|&share| share == 0), "{shares:?}");
            }
        }
    }
    assert!(firsts.iter().all(|&count| count > 5), "{firsts:?}");
    let bound = LaneLimit { revision: 1, max_in_flight: Some(9), pace: None };
    assert_eq!(Members::joining().share(lane(1), &bound), 0);
    assert_eq!(Members::joining().share(lane(1), &LaneLimit::default()), usize::MAX);
}

/// Catches: a lane that is another process's and is sent, born claimed, or claimed all the same; what
/// waits for it when it goes elsewhere and stays in memory for ever.
#[test]
fn what_is_another_process_s_is_given_back() {
    let mut bench = Bench::new();
    bench.prove(1);
    assert_eq!(bench.fill(1, 5), 5);
    bench.cap(1, Some(1));
    assert_eq!(bench.start().len(), 1);
    // One of these two has the one request.
    let (me, other) = (1, 2);
    let is_mine = Members::of(me, vec![me, other])
        .share(lane(1), &LaneLimit { revision: 1, max_in_flight: Some(1), pace: None })
        > 0;
    let me = if is_mine { other } else { me };
    bench.lanes.set_members(Members::of(me, vec![1, 2]));
    assert_eq!(bench.lanes.take_astray().len(), 4);
    assert_eq!(bench.fill(1, 1), 0, "is not born claimed");
    bench.due(1);
    assert!(bench.lanes.plan_claim(bench.now, 9, 9).is_empty() && !bench.lanes.waits(lane(1)));
    bench.finish(1, Verdict::Healthy);
    bench.lanes.set_members(Members::of(me, Vec::new()));
    assert_eq!((bench.fill(1, 3), bench.start().len()), (3, 1), "it is alone");
}

/// Catches: a rate that is not kept at the start of sending, but only where times are given; deliveries
/// that are born claimed past it.
#[test]
fn a_delivery_begins_at_its_time_and_not_near_to_the_one_before() {
    let mut bench = Bench::paced(PACE);
    assert_eq!(bench.fill(1, 1), 0, "is not born claimed");
    bench.claim_at(1, &[0, 100, 200, 300]);
    assert_eq!((bench.start().len(), bench.next_ms()), (1, Some(100)));
    assert_eq!(bench.start_after(99), 0);
    // Late by thirty: so is the next one.
    assert_eq!((bench.start_after(31), bench.next_ms()), (1, Some(100)));
    assert_eq!(bench.start_after(70), 0, "its time, and near to the one before");
    assert_eq!((bench.start_after(30), bench.next_ms()), (1, Some(100)));
    assert_eq!((bench.start_after(100), bench.next_ms()), (1, None));
    // The next times come after those that are spent, not when the claim likes.
    bench.due(1);
    let [part] = &bench.lanes.plan_claim(bench.now, 1, 1)[..] else { panic!() };
    assert_eq!(part.taken_until, 100 * MS);
}

#[test]
fn a_burst_may_be_ahead_and_makes_up_for_what_was_late() {
    let mut bench = Bench::paced(Pace { tolerance: 200 * MS, ..PACE });
    bench.claim_at(1, &[0, 0, 0, 100, 200]);
    assert_eq!((bench.start().len(), bench.next_ms()), (3, Some(100)));
    assert_eq!((bench.start_after(150), bench.next_ms()), (1, Some(50)));
    assert_eq!(bench.start_after(50), 1);
}

/// Catches: what is sent long after its time, when another process has taken later ones; a delivery
/// without a time that is stuck.
#[test]
fn what_has_missed_its_time_or_has_none_is_given_back() {
    let mut bench = Bench::paced(PACE);
    bench.claim_at(1, &[0, 100, 1_500]);
    bench.now += 1_101 * MS;
    assert_eq!((bench.start().len(), bench.lanes.take_astray().len()), (0, 2));
    assert_eq!(bench.next_ms(), Some(399));
    bench.limit(1, None, None);
    assert_eq!(bench.start().len(), 1, "without a rate it has to wait for nothing");
    assert_eq!(bench.fill(1, 2), 2);
    bench.limit(1, None, Some(PACE));
    assert_eq!((bench.start().len(), bench.lanes.take_astray().len()), (0, 2));
    assert_eq!((bench.next_ms(), bench.lanes.held()), (None, 1));
}

/// Catches: requests that wait for what they need, and then begin all at once.
#[test]
fn what_was_started_still_has_to_wait_for_what_began_meanwhile() {
    let mut bench = Bench::paced(PACE);
    bench.claim_at(1, &[0, 100]);
    let time = Some(bench.now);
    let started = |bench: &mut Bench| bench.lanes.start_next(bench.now).is_some();
    assert!(started(&mut bench));
    bench.now += 150 * MS;
    assert!(started(&mut bench), "the first one has not begun yet");
    assert_eq!(bench.lanes.begin(lane(1), time, bench.now), Begin::Now);
    let later = bench.now + 100 * MS;
    assert_eq!(bench.lanes.begin(lane(1), time, bench.now), Begin::At(later));
    assert_eq!(bench.lanes.begin(lane(1), time, later), Begin::Now);
    assert_eq!(bench.lanes.begin(lane(1), time, later + SECOND), Begin::Late);
    // The rate is another one now: what would have to wait until tomorrow does not wait here.
    let slower = Pace { step: 86_400 * SECOND, ..PACE };
    bench.limit(1, None, Some(slower));
    let time = Some(later + 100 * MS);
    assert_eq!(bench.lanes.begin(lane(1), time, later + 100 * MS), Begin::Now);
    assert_eq!(bench.lanes.begin(lane(1), time, later + 100 * MS), Begin::Late);
    // And what waited for that does not hold up a faster one.
    bench.limit(1, None, Some(PACE));
    let now = bench.now;
    assert_eq!(bench.lanes.begin(lane(1), Some(now), now), Begin::At(now + 100 * MS));
    assert_eq!(bench.lanes.begin(lane(2), None, later), Begin::Now, "has no rate");
}

/// Catches: deliveries that stay in memory for a time that is far away; a process that asks for more
/// times over and over while it is ahead of those that there are; one that keeps in memory what others
/// could send.
#[test]
fn what_cannot_be_sent_soon_is_left_in_the_database() {
    let mut bench = Bench::paced(PACE);
    bench.claim_at(1, &[0, 100, 200]);
    assert_eq!(bench.start().len(), 1);
    bench.limit(1, None, Some(Pace { step: 86_400 * SECOND, ..PACE }));
    bench.now += 100 * MS;
    assert_eq!(bench.start().len(), 1, "the next one by the rate that was");
    bench.now += 100 * MS;
    assert_eq!((bench.start().len(), bench.lanes.take_astray().len()), (0, 1));
    // Spent a tenth of a second ago; asked for half a horizon ahead.
    let ahead = (86_400 * SECOND).checked_sub(HORIZON / 2 + 100 * MS).unwrap();
    bench.lanes.note_later(lane(1), of(lane(1)), bench.now, bench.now);
    assert_eq!(bench.lanes.next_due(bench.now), Some(bench.now + ahead));

    let mut bench = Bench::new();
    bench.prove(1);
    assert_eq!(bench.fill(1, 20), 20);
    bench.cap(1, Some(2));
    assert_eq!((bench.lanes.take_astray().len(), bench.start().len()), (12, 2));
    assert_eq!(bench.fill(1, 5), 0, "four round trips of two are there");
}

#[test]
fn an_older_revision_changes_nothing() {
    let mut bench = Bench::new();
    bench.prove(1);
    bench.cap(1, Some(2));
    let older = LaneLimit { revision: bench.revision - 1, max_in_flight: None, pace: None };
    bench.lanes.set_limit(lane(1), &older, bench.now);
    bench.fill(1, 5);
    assert_eq!(bench.start().len(), 2);
}
