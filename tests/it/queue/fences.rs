//! Results of those who have no claim any more, and of batches.

use super::*;

#[tokio::test]
async fn the_fence_asks_for_the_owner() {
    let bench = Bench::new().await;
    let other = bench.store.register_dispatcher().await.unwrap();
    let id = bench.insert(None).await;
    let row = only(bench.claim(other, 10).await);
    // The same claim number, another process.
    let forged = ClaimToken { owner: bench.me, ..row.token(other) };
    for next in [delivered(), Next::RetryAfter(Duration::ZERO)] {
        assert_eq!(bench.store.record(&[finished(id, forged, next)]).await.unwrap(), LATE);
    }
    assert_eq!(bench.queued().await, 1);
    assert_eq!(bench.store.release(&[(id, forged)], Release::Now).await.unwrap(), 0);
    assert_eq!(
        bench.count("select owner::bigint from delivery_queue").await,
        i64::from(other.get())
    );
}

#[tokio::test]
async fn the_fence_asks_for_the_claim_number() {
    let bench = Bench::new().await;
    let id = bench.insert(None).await;
    let first = only(bench.claim(bench.me, 10).await).token(bench.me);
    // Given back, and claimed again by the very same process.
    assert_eq!(bench.store.release(&[(id, first)], Release::Now).await.unwrap(), 1);
    let second = only(bench.claim(bench.me, 10).await).token(bench.me);
    assert_eq!(bench.store.record(&[finished(id, first, dead())]).await.unwrap(), LATE);
    assert_eq!(bench.store.release(&[(id, first)], Release::Now).await.unwrap(), 0);
    assert_eq!(bench.store.record(&[finished(id, second, delivered())]).await.unwrap(), COUNTED);
    assert_eq!(bench.count("select count(*) from delivery where state = 'delivered'").await, 1);
}

#[tokio::test]
async fn a_late_result_is_kept_and_changes_nothing() {
    let bench = Bench::new().await;
    let id = bench.insert(None).await;
    let first = only(bench.claim(bench.me, 10).await).token(bench.me);
    bench.store.unregister_dispatcher(bench.me).await.unwrap();
    bench.store.release_all_orphans().await.unwrap();
    let other = bench.store.register_dispatcher().await.unwrap();
    let second = only(bench.claim(other, 10).await).token(other);

    assert_eq!(bench.store.record(&[finished(id, first, delivered())]).await.unwrap(), LATE);
    assert_eq!(bench.queued().await, 1, "the second claim still stands");
    assert_eq!(bench.count("select count(*) from attempt where is_late").await, 1);
    assert_eq!(bench.store.record(&[finished(id, second, dead())]).await.unwrap(), COUNTED);
    assert_eq!(bench.count("select count(*) from delivery where state = 'dead'").await, 1);
    assert_eq!(bench.count("select count(*) from attempt").await, 2);
}

#[tokio::test]
async fn a_result_that_is_sent_twice_counts_once() {
    let bench = Bench::new().await;
    let id = bench.insert(Some(bench.me)).await;
    let token = ClaimToken { owner: bench.me, number: 1 };
    let result = finished(id, token, delivered());
    assert_eq!(bench.store.record(std::slice::from_ref(&result)).await.unwrap(), COUNTED);
    assert_eq!(bench.store.record(&[result]).await.unwrap(), LATE);
    assert_eq!(bench.count("select count(*) from delivery").await, 1);
    assert_eq!(bench.count("select count(*) from attempt where not is_late").await, 1);
    assert_eq!(bench.count("select count(*) from attempt where is_late").await, 0);

    // A retry that is sent twice must not be put off twice.
    let id = bench.insert(Some(bench.me)).await;
    let result = finished(id, token, Next::RetryAfter(Duration::from_secs(60)));
    assert_eq!(bench.store.record(std::slice::from_ref(&result)).await.unwrap(), COUNTED);
    assert_eq!(bench.store.record(&[result]).await.unwrap(), LATE);
    assert_eq!(bench.count("select attempt_count::bigint from delivery_queue").await, 1);
}

#[tokio::test]
async fn a_batch_mixes_outcomes() {
    let bench = Bench::new().await;
    let token = ClaimToken { owner: bench.me, number: 1 };
    let mut results = Vec::new();
    for next in [delivered(), dead(), Next::RetryAfter(Duration::from_secs(9))] {
        results.push(finished(bench.insert(Some(bench.me)).await, token, next));
    }
    let lost = ClaimToken { owner: bench.me, number: 7 };
    results.push(finished(bench.insert(Some(bench.me)).await, lost, delivered()));
    let recorded = bench.store.record(&results).await.unwrap();
    assert_eq!(recorded, Recorded { counted: 3, late: 1 });
    assert_eq!(bench.queued().await, 2);
    assert_eq!(bench.count("select count(*) from delivery").await, 2);
    assert_eq!(bench.count("select count(*) from attempt where not is_late").await, 3);
    assert_eq!(bench.count("select count(*) from attempt where is_late").await, 1);
}
