//! Lanes with a rate: what a claim takes of it.

use super::*;

/// Catches: a claim that takes more than the rate has times for; times that come back with what was
/// given back, or that a second process takes at once; a lane that is asked for over and over.
#[tokio::test]
async fn claims_spend_the_times_of_a_lane_with_a_rate() {
    const STEP: Duration = Duration::from_secs(20);
    let bench = Bench::new().await;
    let other = bench.store.register_dispatcher().await.unwrap();
    for sql in [
        "insert into subscription (subscription_id, application_id, revision, routing_version)
         select $1, application_id, 1, 1 from application limit 1",
        "insert into lane_limit (lane_id, revision, step_us, tolerance_us, slack_us)
         values ($1, 1, 20000000, 40000000, 5000000)",
    ] {
        sqlx::query(sql).bind(lane().uuid()).execute(bench.pool()).await.unwrap();
    }
    for _ in 0..6 {
        bench.insert(None).await;
    }
    let unknown = LaneQuota {
        lane: lane(),
        quota: 10,
        mark: None,
        taken_until: Duration::ZERO,
        limit_revision: 0,
    };
    assert!(bench.store.claim_due(bench.me, &[unknown], AGE_MAX).await.unwrap().is_empty());
    for heads in [
        bench.store.next_due(bench.me, &[(lane(), None)]).await.unwrap(),
        bench.store.lane_heads(bench.me, None, 10).await.unwrap(),
    ] {
        assert_eq!(heads[0].limit().unwrap().pace.unwrap().step, STEP);
        assert_eq!(heads[0].due_in(), Duration::ZERO);
    }
    let began = std::time::Instant::now();
    let burst = bench.claim(bench.me, 10).await;
    assert_eq!(burst.len(), 3);
    assert!(
        burst.iter().all(|row| (began..=std::time::Instant::now()).contains(&row.time().unwrap()))
    );
    let limit = burst[0].limit().unwrap();
    assert_eq!((limit.max_in_flight, limit.pace.unwrap().step), (None, STEP));
    let claims: Vec<_> = burst.iter().map(|row| (row.delivery_id(), row.token(bench.me))).collect();
    bench.store.release(&claims, Release::InPlace).await.unwrap();
    assert!(bench.claim(bench.me, 10).await.is_empty(), "spent");
    let due_in = async |owner| {
        bench.store.next_due(owner, &[(lane(), None)]).await.unwrap()[0].due_in().as_secs()
    };
    assert!((10..20).contains(&due_in(bench.me).await), "{}", due_in(bench.me).await);
    assert!((20..26).contains(&due_in(other).await), "{}", due_in(other).await);

    // What is too old to be sent takes none.
    let known = LaneQuota {
        lane: lane(),
        quota: 10,
        mark: None,
        taken_until: Duration::ZERO,
        limit_revision: 1,
    };
    sqlx::query("update lane_limit set next_at = now() + interval '40.1 seconds'")
        .execute(bench.pool())
        .await
        .unwrap();
    let old = bench.store.claim_due(bench.me, &[known], Duration::ZERO).await.unwrap();
    let old = only(old);
    assert!(old.is_expired && old.time().is_none());
    let claims = [(old.delivery_id(), old.token(bench.me))];
    bench.store.release(&claims, Release::InPlace).await.unwrap();

    // As if that time had passed.
    sqlx::query("update lane_limit set next_at = now() + interval '40.1 seconds'")
        .execute(bench.pool())
        .await
        .unwrap();
    assert!(bench.claim(other, 10).await.is_empty(), "it may have been late by the slack");
    let next = only(bench.claim(bench.me, 10).await);
    assert!(next.time().unwrap() > began);
    assert!(bench.claim(bench.me, 10).await.is_empty());
}
