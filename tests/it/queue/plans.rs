//! Statements whose plans are kept: made anew each time, they would take longer than what they do.

use webhook_dispatcher::{domain::ids::DEFAULT_APPLICATION, store::Store};

use super::{Bench, delivered, finished, lane, only};
use crate::support::TestDatabase;

/// Postgres weighs the plan that it keeps only after five others.
const RUNS: usize = 8;

/// Catches: a claim of few lanes, or a record of few results, that is planned anew each time; and what
/// is read between them.
#[tokio::test]
async fn what_is_done_for_few_keeps_its_plan() {
    let database = TestDatabase::new().await;
    let store = Store::connect_lazy(database.options.clone(), 1);
    let me = store.register_dispatcher().await.unwrap();
    let bench = Bench { store, me };
    for _ in 0..RUNS {
        let id = bench.insert(None).await;
        let token = only(bench.claim(me, 1).await).token(me);
        bench.store.record(&[finished(id, token, delivered())]).await.unwrap();
        bench.store.next_due(me, &[(lane(), None)]).await.unwrap();
        bench.store.changes_since(&[(DEFAULT_APPLICATION, 1)], 200).await.unwrap();
    }
    let mut plans = bench.store.prepared_statements().await.unwrap();
    plans.retain(|(_, custom, _)| *custom > 4);
    let words = [
        "for no key update skip locked",
        "as r(delivery_id, owner, claim_number",
        "as lanes(lane_id, mark)",
        "a.routing_version <>",
    ];
    for word in words {
        let (_, made, kept) = plans.iter().find(|(text, ..)| text.contains(word)).unwrap();
        assert_eq!((*made, *kept), (5, 3), "{word}");
    }
}

/// Catches: the first claims after a start, which wait until Postgres has planned each of their
/// statements some times.
#[tokio::test]
async fn what_a_claim_takes_is_planned_before_the_first() {
    let database = TestDatabase::new().await;
    let store = Store::connect_lazy(database.options.clone(), 1);
    store.prepare_to_claim().await.unwrap();
    let plans = store.prepared_statements().await.unwrap();
    let words = [
        "for no key update skip locked",
        "from event_payload",
        "a.routing_version <>",
        "on w.application_id = s.application_id",
        "join signing_key",
        "with recursive head",
        "as lanes(lane_id, mark)",
    ];
    for word in words {
        let (_, custom, generic) = plans.iter().find(|(text, ..)| text.contains(word)).expect(word);
        assert_eq!(custom + generic, 6, "{word}");
    }
}
