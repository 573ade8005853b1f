//! Claims of processes that are gone.

use webhook_dispatcher::store::owned::INTERRUPTIONS_MAX;

use super::*;

#[tokio::test]
async fn stopped_heartbeats_are_removed_and_their_rows_released() {
    let bench = Bench::new().await;
    let dead = bench.store.register_dispatcher().await.unwrap();
    let of_dead = bench.insert(Some(dead)).await;
    let of_living = bench.insert(Some(bench.me)).await;
    let beats = bench.store.beat(bench.me).await.unwrap().beats();
    let stopped: Vec<_> = beats.iter().copied().filter(|(id, _)| *id == dead.get()).collect();
    bench.store.beat(dead).await.unwrap();
    assert_eq!(bench.store.bury_dispatchers(&stopped).await.unwrap(), [], "it has beaten since");
    let beats = bench.store.beat(bench.me).await.unwrap().beats();
    let stopped: Vec<_> = beats.iter().copied().filter(|(id, _)| *id == dead.get()).collect();
    assert_eq!(bench.store.bury_dispatchers(&stopped).await.unwrap(), [dead]);
    let orphans = bench.store.release_all_orphans().await.unwrap();
    assert_eq!((orphans.released, orphans.buried), (1, 0));
    let row = only(bench.claim(bench.me, 10).await);
    assert_eq!(row.delivery_id(), of_dead);
    assert_ne!(row.delivery_id(), of_living);
    assert!(!bench.store.beat(dead).await.unwrap().is_registered, "the dead learn of it");
    assert!(bench.store.beat(bench.me).await.unwrap().is_registered);
}

#[tokio::test]
async fn too_many_lost_leases_in_a_row_are_the_end() {
    let bench = Bench::new().await;
    bench.insert(None).await;
    for lost in 1..=INTERRUPTIONS_MAX {
        let process = bench.store.register_dispatcher().await.unwrap();
        only(bench.claim(process, 10).await);
        bench.store.unregister_dispatcher(process).await.unwrap();
        let orphans = bench.store.release_all_orphans().await.unwrap();
        let is_last = lost == INTERRUPTIONS_MAX;
        assert_eq!((orphans.released, orphans.buried), (i64::from(!is_last), i64::from(is_last)));
    }
    assert_eq!(bench.dead("interrupted", 0).await, 1);
    assert_eq!(bench.queued().await, 0);
}

#[tokio::test]
async fn a_recorded_attempt_ends_a_row_of_lost_leases() {
    let bench = Bench::new().await;
    let id = bench.insert(None).await;
    sqlx::query("update delivery_queue set interruption_count = 19")
        .execute(bench.pool())
        .await
        .unwrap();
    let token = only(bench.claim(bench.me, 10).await).token(bench.me);
    let retry = Next::RetryAfter(Duration::ZERO);
    bench.store.record(&[finished(id, token, retry)]).await.unwrap();
    assert_eq!(bench.count("select interruption_count::bigint from delivery_queue").await, 0);
}

/// Catches: a part that is passed although it has more orphans than one statement takes; one that is not
/// come to; and others' rows in what a process owns.
#[tokio::test]
async fn a_long_queue_is_looked_through_part_by_part() {
    let bench = Bench::new().await;
    bench.insert(None).await;
    // Four to a page of 8 kB, so three parts of 250 pages. In the first those of a dead process are more
    // than one statement takes, and in the second there are none.
    sqlx::query(
        "insert into delivery_queue
         select copy.*
         from delivery_queue q, generate_series(1, 2500) as n,
              lateral jsonb_populate_record(q, jsonb_build_object(
                  'delivery_id', gen_random_uuid(),
                  'target_url', repeat('x', 1800),
                  'claim_number', 1,
                  'owner', case when n <= 125 or n > 2475 then -1 when n in (900, 1500) then $1 end
              )) as copy",
    )
    .bind(bench.me)
    .execute(bench.pool())
    .await
    .unwrap();
    let mut pages = bench.store.queue_pages().await.unwrap();
    let mut owned = Vec::new();
    while !pages.is_empty() {
        owned.push(bench.store.owned_rows(bench.me, &mut pages).await.unwrap().len());
    }
    assert_eq!(owned, [1, 1, 0]);
    let mut pages = bench.store.queue_pages().await.unwrap();
    let mut released = Vec::new();
    while !pages.is_empty() {
        released.push(bench.store.release_orphans(&mut pages).await.unwrap().released);
    }
    assert_eq!(released, [50, 50, 25, 0, 25]);
    assert_eq!(bench.count("select count(*) from delivery_queue where owner = -1").await, 0);
    assert_eq!(bench.count("select count(*) from delivery_queue where owner is not null").await, 2);
}
