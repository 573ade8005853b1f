//! The queue against real Postgres: claims, fences, leases, batches.

mod fences;
mod leases;
mod plans;
mod rates;

use std::time::Duration;

use sqlx::PgPool;
use webhook_dispatcher::{
    domain::{
        DeliveryId, DeliveryState, ErrorClass, EventId, IdempotencyKey, LaneId, Payload, Run,
        Submission, TargetUrl,
        ids::{AttemptId, DEFAULT_APPLICATION},
        outcome::Failure,
        pacing::LaneQuota,
        subscription::Method,
    },
    store::{
        Store,
        dispatchers::DispatcherId,
        events::{NewEvent, Stored, StoredBatch},
        queue::{AttemptRecord, ClaimToken, ClaimedRow, Finished, Next, Recorded, Release},
    },
};

use crate::support::{TestDatabase, stored};

const AGE_MAX: Duration = Duration::from_secs(86_400);
const TARGET: &str = "http://127.0.0.1:9/hook";

struct Bench {
    store: Store,
    me: DispatcherId,
}

impl Bench {
    async fn new() -> Self {
        let store = TestDatabase::new().await.store();
        let me = store.register_dispatcher().await.unwrap();
        Self { store, me }
    }

    fn pool(&self) -> &PgPool {
        self.store.pool()
    }

    /// Stores an event with one delivery.
    async fn insert(&self, owner: Option<DispatcherId>) -> DeliveryId {
        let submission = submission(None);
        let event = event(&submission, owner);
        let id = event.deliveries[0].delivery_id;
        let stored = self.store.store_events(&[event]).await.unwrap();
        assert_eq!(stored, StoredBatch::Committed(vec![Stored::New]));
        id
    }

    /// Claims from the one lane.
    async fn claim(&self, owner: DispatcherId, quota: usize) -> Vec<ClaimedRow> {
        let plan = [LaneQuota {
            lane: lane(),
            quota,
            mark: None,
            taken_until: Duration::ZERO,
            limit_revision: 1,
        }];
        self.store.claim_due(owner, &plan, AGE_MAX).await.unwrap()
    }

    async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(self.pool()).await.unwrap()
    }

    /// How many have died so, after so many attempts.
    async fn dead(&self, reason: &str, attempt_count: i32) -> i64 {
        sqlx::query_scalar(
            "select count(*) from delivery
             where state = 'dead' and reason = $1 and attempt_count = $2",
        )
        .bind(reason)
        .bind(attempt_count)
        .fetch_one(self.pool())
        .await
        .unwrap()
    }

    async fn queued(&self) -> i64 {
        self.count("select count(*) from delivery_queue").await
    }
}

fn lane() -> LaneId {
    TargetUrl::parse(TARGET).unwrap().lane(DEFAULT_APPLICATION)
}

fn submission(key: Option<&str>) -> Submission {
    let target = TargetUrl::parse(TARGET).unwrap();
    Submission {
        payload: Payload::from_json("{\"a\": 1}".into()).unwrap(),
        idempotency_key: key.map(|key| IdempotencyKey::parse(key).unwrap()),
        ..stored::submission(&target)
    }
}

fn event(submission: &Submission, owner: Option<DispatcherId>) -> NewEvent<'_> {
    let unix_ms = u64::try_from(chrono::Utc::now().timestamp_millis()).unwrap();
    let event_id = EventId::new(unix_ms, rand::random());
    let delivery = stored::delivery(event_id, TargetUrl::parse(TARGET).unwrap(), owner);
    NewEvent { event_id, submission, routing_version: 1, deliveries: vec![delivery] }
}

fn finished(id: DeliveryId, token: ClaimToken, next: Next) -> Finished {
    let failure = match next {
        Next::End { reason: None, .. } => None,
        _ => Some(Failure::new(ErrorClass::Timeout, "no answer")),
    };
    let response = failure.is_none().then(|| webhook_dispatcher::domain::attempt::Response {
        status: 200,
        headers: "a: b".to_owned(),
        body: "ok".into(),
        is_truncated: false,
    });
    Finished {
        delivery_id: id,
        token,
        lane: lane(),
        application: DEFAULT_APPLICATION,
        subscription: None,
        event_type: None,
        run: Run::Schedule,
        next,
        attempt: Some(AttemptRecord {
            request_method: Method::Post,
            attempt_id: AttemptId::new(1, rand::random()),
            scheduled_at: chrono::Utc::now(),
            started_at: chrono::Utc::now(),
            duration: Duration::from_millis(5),
            request_url: TARGET.to_owned(),
            request_headers: "c: d".to_owned(),
            response,
            failure,
        }),
        slot_bytes: None,
    }
}

fn delivered() -> Next {
    Next::End { state: DeliveryState::Delivered, reason: None }
}

fn dead() -> Next {
    Next::End { state: DeliveryState::Dead, reason: Some(ErrorClass::Timeout) }
}

fn only(mut rows: Vec<ClaimedRow>) -> ClaimedRow {
    assert_eq!(rows.len(), 1);
    rows.remove(0)
}

const COUNTED: Recorded = Recorded { counted: 1, late: 0 };
const LATE: Recorded = Recorded { counted: 0, late: 1 };

#[tokio::test]
async fn a_born_claimed_delivery_ends_without_a_claim() {
    let bench = Bench::new().await;
    let id = bench.insert(Some(bench.me)).await;
    assert!(bench.claim(bench.me, 10).await.is_empty(), "it is nobody's to claim");
    let token = ClaimToken { owner: bench.me, number: 1 };
    let recorded = bench.store.record(&[finished(id, token, delivered())]).await.unwrap();
    assert_eq!(recorded, COUNTED);
    assert_eq!(bench.queued().await, 0);
    assert_eq!(
        bench
            .count("select count(*) from delivery where state = 'delivered' and attempt_count = 1")
            .await,
        1
    );
    assert_eq!(bench.count("select count(*) from attempt where not is_late").await, 1);
}

#[tokio::test]
async fn a_retry_is_due_after_its_delay_and_counts_its_attempts() {
    let bench = Bench::new().await;
    let id = bench.insert(None).await;
    let row = only(bench.claim(bench.me, 10).await);
    let retry = Next::RetryAfter(Duration::from_secs(3_600));
    let result = finished(id, row.token(bench.me), retry);
    assert_eq!(bench.store.record(&[result]).await.unwrap(), COUNTED);
    assert!(bench.claim(bench.me, 10).await.is_empty(), "not due for an hour");
    let due_in: i64 = bench
        .count("select round(extract(epoch from due_at - now()))::bigint from delivery_queue")
        .await;
    assert!((3_590..=3_600).contains(&due_in), "{due_in}");

    sqlx::query("update delivery_queue set due_at = now()").execute(bench.pool()).await.unwrap();
    let again = only(bench.claim(bench.me, 10).await);
    assert_eq!(again.token(bench.me).number, 2);
    let result = finished(id, again.token(bench.me), dead());
    assert_eq!(bench.store.record(&[result]).await.unwrap(), COUNTED);
    assert_eq!(bench.dead("timeout", 2).await, 1);
}

#[tokio::test]
async fn a_claim_does_not_wait_for_a_row_that_another_holds() {
    let bench = Bench::new().await;
    let held = bench.insert(None).await;
    let free = bench.insert(None).await;
    let mut other = bench.pool().begin().await.unwrap();
    sqlx::query("select from delivery_queue where delivery_id = $1 for update")
        .bind(held.uuid())
        .execute(&mut *other)
        .await
        .unwrap();

    let claim = bench.claim(bench.me, 10);
    let rows = tokio::time::timeout(Duration::from_secs(10), claim).await.expect("must not wait");
    assert_eq!(only(rows).delivery_id(), free);
}

#[tokio::test]
async fn a_claim_takes_the_oldest_first_and_no_more_than_its_quota() {
    let bench = Bench::new().await;
    let mut ids = Vec::new();
    for age in [1, 3, 2] {
        let id = bench.insert(None).await;
        sqlx::query("update delivery_queue set due_at = now() - make_interval(mins => $2) where delivery_id = $1")
            .bind(id.uuid())
            .bind(age)
            .execute(bench.pool())
            .await
            .unwrap();
        ids.push(id);
    }
    let rows = bench.claim(bench.me, 2).await;
    let claimed: Vec<_> = rows.iter().map(ClaimedRow::delivery_id).collect();
    assert_eq!(claimed, [ids[1], ids[2]]);
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_is_found_by_its_ids() {
    let bench = Bench::new().await;
    let submission = submission(None);
    let (first, second) = (event(&submission, Some(bench.me)), event(&submission, None));
    let ids = [first.event_id, second.event_id];
    let batch = [first];
    bench.store.store_events(&batch).await.unwrap();
    let found = bench.store.existing_events(&ids).await.unwrap();
    assert_eq!(found.into_iter().collect::<Vec<_>>(), [ids[0]]);
    // Sent again under the same ids it is refused as a whole, by name.
    let error = bench.store.store_events(&batch).await.unwrap_err();
    assert!(error.is_repeat(), "{error}");
    assert_eq!(bench.queued().await, 1);
}

#[tokio::test]
async fn what_a_process_owns_can_be_compared_with_what_it_knows() {
    let bench = Bench::new().await;
    let born = bench.insert(Some(bench.me)).await;
    bench.insert(None).await;
    let claimed = only(bench.claim(bench.me, 10).await);
    let mut pages = bench.store.queue_pages().await.unwrap();
    let mut owned: Vec<_> = bench
        .store
        .owned_rows(bench.me, &mut pages)
        .await
        .unwrap()
        .iter()
        .map(|row| (row.delivery_id(), row.claim_number))
        .collect();
    assert!(pages.is_empty());
    owned.sort_unstable();
    assert_eq!(owned, [(born, 1), (claimed.delivery_id(), 1)]);
}

#[tokio::test]
async fn events_routed_at_an_old_version_are_not_stored() {
    let bench = Bench::new().await;
    let submission = submission(Some("key"));
    let stale = NewEvent { routing_version: 0, ..event(&submission, None) };
    let stored = bench.store.store_events(&[stale]).await.unwrap();
    assert_eq!(stored, StoredBatch::StaleRouting);
    for table in [
        "select count(*) from event",
        "select count(*) from event_payload",
        "select count(*) from delivery_queue",
        "select count(*) from idempotency_key",
    ] {
        assert_eq!(bench.count(table).await, 0, "{table}");
    }
}

#[tokio::test]
async fn a_key_stands_for_one_submission() {
    let bench = Bench::new().await;
    let submitted = submission(Some("key"));
    let first = event(&submitted, None);
    let first_id = first.event_id;
    let stored = bench.store.store_events(&[first]).await.unwrap();
    assert_eq!(stored, StoredBatch::Committed(vec![Stored::New]));

    let mut other = submitted.clone();
    other.payload = Payload::from_json("2".into()).unwrap();
    let unkeyed = submission(None);
    let batch = [event(&submitted, None), event(&unkeyed, None)];
    let stored = bench.store.store_events(&batch).await.unwrap();
    assert_eq!(stored, StoredBatch::Committed(vec![Stored::Repeat(first_id), Stored::New]));
    let stored = bench.store.store_events(&[event(&other, None)]).await.unwrap();
    let fingerprint = submitted.fingerprint();
    let reused = Stored::KeyReused { fingerprint, event_id: first_id };
    assert_eq!(stored, StoredBatch::Committed(vec![reused]));
    assert_eq!(bench.count("select count(*) from event").await, 2);

    // A day later it is free again, whether or not it was cleaned away.
    sqlx::query("update idempotency_key set created_at = now() - interval '25 hours'")
        .execute(bench.pool())
        .await
        .unwrap();
    let stored = bench.store.store_events(&[event(&other, None)]).await.unwrap();
    assert_eq!(stored, StoredBatch::Committed(vec![Stored::New]));
    assert_eq!(bench.store.forget_idempotency_keys(10).await.unwrap(), 0);
    sqlx::query("update idempotency_key set created_at = now() - interval '25 hours'")
        .execute(bench.pool())
        .await
        .unwrap();
    assert_eq!(bench.store.forget_idempotency_keys(10).await.unwrap(), 1);
}

#[tokio::test]
async fn what_is_too_old_is_claimed_as_expired() {
    let bench = Bench::new().await;
    bench.insert(None).await;
    sqlx::query("update delivery_queue set created_at = now() - interval '2 days'")
        .execute(bench.pool())
        .await
        .unwrap();
    assert!(only(bench.claim(bench.me, 10).await).is_expired);
}

#[tokio::test]
async fn heads_name_each_lane_once_with_its_first_due_time() {
    let bench = Bench::new().await;
    for _ in 0..3 {
        bench.insert(None).await;
    }
    bench.insert(Some(bench.me)).await;
    sqlx::query(
        "update delivery_queue set lane_id = gen_random_uuid(), due_at = now() + interval '1 h'
         where delivery_id = (select delivery_id from delivery_queue where owner is null limit 1)",
    )
    .execute(bench.pool())
    .await
    .unwrap();
    let heads = bench.store.lane_heads(bench.me, None, 100).await.unwrap();
    assert_eq!(heads.len(), 2);
    let ours = heads.iter().find(|head| head.lane() == lane()).unwrap();
    assert!(ours.due_in_ms <= 0);
    let other = heads.iter().find(|head| head.lane() != lane()).unwrap();
    assert!((3_500_000..=3_600_000).contains(&other.due_in_ms));
    let first_page = bench.store.lane_heads(bench.me, None, 1).await.unwrap();
    let rest = bench.store.lane_heads(bench.me, Some(first_page[0].lane()), 100).await.unwrap();
    assert_eq!((first_page.len(), rest.len()), (1, 1));
}

/// The planner's choice is what keeps claims cheap beside a backlog: there must be no other index
/// by due time, and the claim must use the one there is.
#[tokio::test]
async fn the_queue_has_one_index_by_due_time_and_the_claim_uses_it() {
    let bench = Bench::new().await;
    let indexes: Vec<String> = sqlx::query_scalar(
        "select indexname::text from pg_indexes where tablename = 'delivery_queue' order by 1",
    )
    .fetch_all(bench.pool())
    .await
    .unwrap();
    assert_eq!(indexes, ["delivery_queue_pkey", "delivery_ready"]);

    // A backlog of one lane that dominates the statistics.
    sqlx::query(
        "insert into delivery_queue (delivery_id, event_id, application_id, lane_id, target_url, payload_bytes)
         select gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), $1, 'http://a/', 1
         from generate_series(1, 50000)",
    )
    .bind(lane().uuid())
    .execute(bench.pool())
    .await
    .unwrap();
    sqlx::query("analyze delivery_queue").execute(bench.pool()).await.unwrap();
    let plan: Vec<String> = sqlx::query_scalar(
        "explain select q.ctid from unnest(array_fill(gen_random_uuid(), array[50])) as w(lane_id)
         cross join lateral (
             select ctid from delivery_queue q
             where q.lane_id = w.lane_id and q.owner is null and q.due_at <= now()
             order by q.lane_id, q.due_at limit 10 for update skip locked
         ) as q",
    )
    .fetch_all(bench.pool())
    .await
    .unwrap();
    let plan = plan.join("\n");
    assert!(plan.contains("delivery_ready"), "{plan}");
    assert!(!plan.contains("Seq Scan"), "{plan}");
}

/// The queue is vacuumed when it is nearly empty, so the planner believes that it has one row.
/// Recording must stay a look-up by key all the same.
#[tokio::test]
async fn recording_looks_rows_up_whatever_the_statistics_say() {
    let bench = Bench::new().await;
    sqlx::query("vacuum analyze delivery_queue").execute(bench.pool()).await.unwrap();
    // More than the five executions after which a generic plan may be made, on a table of one page,
    // where reading all of it seems cheapest: the plan is kept.
    for _ in 0..8 {
        let id = bench.insert(Some(bench.me)).await;
        let token = ClaimToken { owner: bench.me, number: 1 };
        bench.store.record(&[finished(id, token, delivered())]).await.unwrap();
    }
    sqlx::query(
        "insert into delivery_queue (delivery_id, event_id, application_id, lane_id, target_url, payload_bytes, owner, claim_number)
         select gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 'http://a/', 1, $1, 1
         from generate_series(1, 5000)",
    )
    .bind(bench.me)
    .execute(bench.pool())
    .await
    .unwrap();
    let id = bench.insert(Some(bench.me)).await;
    let mut connection = bench.pool().acquire().await.unwrap();
    let before: i64 = scans(&mut connection).await;
    let token = ClaimToken { owner: bench.me, number: 1 };
    // More than the five executions after which a generic plan may be taken.
    for _ in 0..10 {
        bench.store.record(&[finished(id, token, delivered())]).await.unwrap();
    }
    let after = scans(&mut connection).await;
    assert_eq!(after - before, 0, "sequential scans of the queue");
}

async fn scans(connection: &mut sqlx::PgConnection) -> i64 {
    // Statistics of other sessions arrive when those say so; this asks for it.
    sqlx::query("select pg_stat_force_next_flush()").execute(&mut *connection).await.ok();
    tokio::time::sleep(Duration::from_millis(1_100)).await; // the flush interval of the others
    sqlx::query_scalar("select seq_scan from pg_stat_user_tables where relname = 'delivery_queue'")
        .fetch_one(connection)
        .await
        .unwrap()
}
