//! The steps of replays over what has ended.
//!
//! A step is one transaction: it takes the replay's row, puts some deliveries into the queue, and
//! moves the cursor past them. So a delivery is queued by a replay exactly once, whatever crashes
//! and however many processes make steps. When the next one may be made stands in the same row, so
//! the rate holds for all of them together.

use sqlx::{Postgres, QueryBuilder};
use uuid::Uuid;

use super::{
    Store, StoreError, bounded,
    queue::interval,
    replays::{COLUMNS, ReplayFilter, ReplayRow},
    runs::{claims_passed_over, last_claim_of},
    session::Session,
    time::{Times, is_step_due, ordered_now, push_ordered_now, push_step_due},
};
use crate::domain::{
    ApplicationId, LaneId, ReplayId,
    replay::{STEP_SPAN, rows_of_step},
};

/// How many rows of the history one step looks at.
const SCANNED_PER_STEP: i64 = 1_000;
/// How many deliveries may be due in a lane before replays wait for it.
pub const DUE_IN_LANE_MAX: i64 = 1_000;
/// How long a replay waits then, in seconds, before it looks again.
const HELD_UP_S: f64 = 1.0;
/// How many deliveries, and how many events, a dry run counts exactly.
pub const COUNTED_MAX: i64 = 10_000;
/// How many rows of the history, and how many events, a dry run looks at.
const COUNT_SCANNED_MAX: i64 = 100_000;

/// What a step came to.
#[derive(Debug)]
pub struct Step {
    /// How many deliveries it put into the queue.
    pub queued: u64,
    /// Where they wait.
    pub lanes: Vec<LaneId>,
    /// The replay as it is now.
    pub replay: ReplayRow,
}

#[derive(sqlx::FromRow)]
struct Stepped {
    queued: i64,
    lanes: Vec<Uuid>,
    #[sqlx(flatten)]
    replay: ReplayRow,
}

/// What a replay would do.
#[derive(Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct ReplayCount {
    /// Deliveries that the filter means.
    pub matched: i64,
    /// Those of them that would be queued.
    pub queued: i64,
    /// Those that are in the queue already.
    pub in_progress: i64,
    /// Those whose payload is not kept any more.
    pub payload_gone: i64,
    /// Those whose subscription is deleted.
    pub subscription_deleted: i64,
    /// Those whose subscription is disabled.
    pub subscription_disabled: i64,
    /// Whether these are all.
    pub is_exact: bool,
}

impl Store {
    /// Up to `rows_max` replays that are running, and whether the next step of each is due; those first
    /// that wait the longest.
    pub async fn running_replays(
        &self,
        rows_max: i64,
    ) -> Result<Vec<(ReplayId, bool)>, StoreError> {
        bounded(async {
            let running: Vec<(Uuid, bool)> = sqlx::query_as(concat!(
                "select replay_id, ",
                is_step_due!("$2"),
                " from replay where state = 'running' order by next_step_at limit $1",
            ))
            .bind(rows_max)
            .bind(self.times().expected)
            .fetch_all(&self.pool)
            .await?;
            Ok(running.into_iter().map(|(id, is_due)| (ReplayId::from_uuid(id), is_due)).collect())
        })
        .await
    }

    /// Makes the next step of a replay over what has ended; `None` if it has none that is due, or
    /// another process makes it. One that has looked at all of it is told as it is.
    pub async fn step_replay(&self, id: ReplayId) -> Result<Option<Step>, StoreError> {
        bounded(async {
            let mut connection = self.pool.acquire().await?;
            let mut transaction = connection.begin().await?;
            let Some(replay) = take(&mut transaction, id, self.times()).await? else {
                transaction.commit().await?;
                return Ok(None);
            };
            if replay.has_all_ended {
                return Ok(Some(Step { queued: 0, lanes: Vec::new(), replay }));
            }
            let stepped: Stepped = step_over_ended(&replay, self.times())
                .build_query_as()
                .fetch_one(&mut *transaction)
                .await?;
            transaction.commit().await?;
            let Stepped { queued, lanes, replay } = stepped;
            let lanes = lanes.into_iter().map(LaneId::from_uuid).collect();
            Ok(Some(Step { queued: queued.unsigned_abs(), lanes, replay }))
        })
        .await
    }

    /// Counts what a replay that is made now would do with what has ended.
    pub async fn count_replay(
        &self,
        application: ApplicationId,
        filter: &ReplayFilter,
        unix_ms: u64,
    ) -> Result<ReplayCount, StoreError> {
        bounded(async {
            let mut query = QueryBuilder::<Postgres>::new("with ");
            let range = filter.range(unix_ms);
            push_scanned(&mut query, application, filter, range, COUNT_SCANNED_MAX);
            query.push(", matched as materialized (select * from scanned where true");
            push_filters(&mut query, application, filter);
            query.push(" order by delivery_id limit ").push_bind(COUNTED_MAX);
            query.push("), taken as (select * from matched), ").push(JUDGED).push(COUNT);
            query.push_bind(COUNTED_MAX).push(" and (select count(*) from scanned) < ");
            query.push_bind(COUNT_SCANNED_MAX).push(" as is_exact from counted");
            Ok(query.build_query_as().fetch_one(&self.pool).await?)
        })
        .await
    }
}

/// Takes a replay whose step is due, until the end of the transaction. That of a deleted application
/// is cancelled.
pub(super) async fn take(
    connection: &mut Session,
    id: ReplayId,
    times: Times,
) -> Result<Option<ReplayRow>, StoreError> {
    let mut query = QueryBuilder::<Postgres>::new("select ");
    query.push(COLUMNS).push(
        " from replay r join application a using (application_id)
          where a.deleted_at is null and r.state = 'running' and r.replay_id = ",
    );
    query.push_bind(id.uuid()).push(" and ");
    push_step_due(&mut query, times);
    query.push(" for update of r skip locked");
    let taken: Option<ReplayRow> = query.build_query_as().fetch_optional(&mut *connection).await?;
    if taken.is_none() {
        sqlx::query(
            "update replay r set state = 'cancelled', ended_at = now(), updated_at = now()
             from application a
             where r.replay_id = $1 and r.state = 'running' and a.application_id = r.application_id
               and a.deleted_at is not null",
        )
        .bind(id.uuid())
        .execute(connection)
        .await?;
    }
    Ok(taken)
}

/// When the next step may be made, after so many deliveries: as the rate says, where what was missed
/// of it is made up for within bounds only. `$waits` says whether a lane is full.
pub(super) fn push_next_step_at(
    query: &mut QueryBuilder<Postgres>,
    per_second: u16,
    (queued, waits): (&str, &str),
    times: Times,
) {
    query.push("case when ").push(waits).push(" then ");
    push_ordered_now(query, times);
    query.push(" + interval '1 second' * ").push_bind(HELD_UP_S).push(" else greatest(case when ");
    // One that is far ahead was left by a clock that was wrong.
    query.push("r.next_step_at < now() + interval '1 hour' then r.next_step_at end, ");
    push_ordered_now(query, times);
    query.push(" - ").push_bind(interval(STEP_SPAN));
    query.push(") + interval '1 second' * (").push(queued);
    query.push(")::float8 / ").push_bind(f64::from(per_second)).push(" end");
}

/// Everything of a step but taking the row.
fn step_over_ended(replay: &ReplayRow, times: Times) -> QueryBuilder<Postgres> {
    let (filter, rows) = (replay.filter(), i64::from(rows_of_step(replay.per_second())));
    let range = (replay.delivery_cursor, replay.until_id);
    let mut query = QueryBuilder::<Postgres>::new("with clock as materialized (select ");
    push_ordered_now(&mut query, times);
    query.push(" as now), ");
    push_scanned(&mut query, replay.application(), &filter, range, SCANNED_PER_STEP);
    query.push(", matched as materialized (select * from scanned where ended_at <= ");
    query.push_bind(replay.created_at);
    push_filters(&mut query, replay.application(), &filter);
    query.push(" order by delivery_id limit ").push_bind(rows).push("), ");
    query.push(CROWDED.0).push_bind(DUE_IN_LANE_MAX);
    query.push(CROWDED.1).push_bind(DUE_IN_LANE_MAX).push("), ");
    query.push(TAKEN).push(JUDGED).push(QUEUED).push_bind(claims_passed_over());
    query.push(SUMMED.0).push_bind(rows).push(SUMMED.1).push_bind(rows);
    query.push(" and scanned < ").push_bind(SCANNED_PER_STEP).push(ADVANCE);
    push_next_step_at(&mut query, replay.per_second(), ("step.queued", "step.waits"), times);
    query.push(" from step where r.replay_id = ").push_bind(replay.id().uuid());
    query.push(" returning step.queued, array(select distinct lane_id from queued) as lanes, ");
    query.push(COLUMNS);
    query
}

/// The rows that are looked at, oldest first: a bounded range of the one index that fits.
fn push_scanned(
    query: &mut QueryBuilder<Postgres>,
    application: ApplicationId,
    filter: &ReplayFilter,
    (after, until): (Uuid, Uuid),
    rows_max: i64,
) {
    query.push(
        "scanned as materialized (
             select application_id, delivery_id, event_id, lane_id, subscription_id, event_type,
                    target_url, state, reason, attempt_count, last_status, ended_at
             from delivery where ",
    );
    if let Some(subscription) = filter.subscription {
        // Nothing of the application here, or the planner may walk through all that it has.
        query.push("subscription_id = ").push_bind(subscription.uuid());
    } else {
        query.push("application_id = ").push_bind(application.uuid());
        if filter.is_of_undelivered() {
            query.push(" and state <> 'delivered'");
        }
    }
    query.push(" and delivery_id > ").push_bind(after);
    query.push(" and delivery_id < ").push_bind(until);
    query.push(" order by delivery_id limit ").push_bind(rows_max).push(")");
}

/// What the index does not answer.
fn push_filters(
    query: &mut QueryBuilder<Postgres>,
    application: ApplicationId,
    filter: &ReplayFilter,
) {
    query.push(" and application_id = ").push_bind(application.uuid());
    if !filter.states.is_empty() {
        let states: Vec<_> = filter.states.iter().map(|state| state.as_str()).collect();
        query.push(" and state = any(").push_bind(states).push(")");
    }
    if let Some(event) = filter.event {
        query.push(" and event_id = ").push_bind(event.uuid());
    }
    if let Some(event_type) = &filter.event_type {
        query.push(" and event_type = ").push_bind(event_type.clone());
    }
    if let Some(status) = filter.response_status {
        query.push(" and last_status = ").push_bind(status);
    }
    if let Some(class) = filter.error_class {
        query.push(" and reason = ").push_bind(class.as_str());
    }
}

/// The lanes in which as much is due as may be. The planner believes that the queue is empty; by the
/// lane it can only walk the index by due time, and so far.
const CROWDED: (&str, &str) = (
    "crowded as materialized (
        select lane.lane_id from (select distinct lane_id from matched) as lane
        cross join lateral (
            select count(*) as count from (
                select from delivery_queue q
                where q.lane_id = lane.lane_id and q.owner is null
                  and q.due_at <= (select now from clock)
                order by q.lane_id, q.due_at limit ",
    ") as up_to_max
        ) as due
        where due.count >= ",
);

/// Up to the first that would go to a crowded lane.
const TAKEN: &str = "
    first_held_up as materialized (
        select delivery_id from matched where lane_id in (select lane_id from crowded)
        order by delivery_id limit 1
    ),
    taken as materialized (
        select * from matched
        where not exists (select from first_held_up)
           or delivery_id < (select delivery_id from first_held_up)
    ), ";

/// Which of them can be sent again. Rows are looked up one by one: see `record.rs`.
const JUDGED: &str = "
    judged as materialized (
        select taken.*, payload.bytes,
               case when taken.subscription_id is not null and subscription.is_active is null
                    then 'subscription_deleted'
                    when not subscription.is_active then 'subscription_disabled'
                    when payload.bytes is null then 'payload_gone' end as obstacle
        from taken
        left join lateral (
            select r.is_active
            from subscription s join subscription_revision r using (subscription_id, revision)
            where s.subscription_id = taken.subscription_id and s.deleted_at is null
            offset 0
        ) as subscription on true
        left join lateral (
            select octet_length(p.payload) as bytes from event_payload p
            where p.event_id = taken.event_id
            offset 0
        ) as payload on true
    )";

/// As `REVIVE` does of one (see `runs.rs`); what is in the queue already stays there as it is.
const QUEUED: &str = concat!(
    ",
    queued as (
        insert into delivery_queue (delivery_id, event_id, application_id, lane_id, subscription_id,
                                    target_url, payload_bytes, run, prior_count, created_at, due_at,
                                    claim_number)
        select j.delivery_id, j.event_id, j.application_id, j.lane_id, j.subscription_id,
               j.target_url, j.bytes, 'replay', j.attempt_count, clock.now,
               clock.now + (row_number() over (order by j.delivery_id))::float8
                           * interval '1 microsecond',
               ",
    last_claim_of!("j.delivery_id"),
    " + "
);

const SUMMED: (&str, &str) = (
    "
        from judged j cross join clock where j.obstacle is null
        order by j.delivery_id
        on conflict (delivery_id) do nothing
        returning lane_id
    ),
    counted as materialized (
        select (select count(*) from scanned) as scanned,
               (select count(*) from matched) as matched,
               (select count(*) from queued) as queued,
               exists (select from first_held_up) as waits,
               (select delivery_id from scanned order by delivery_id desc limit 1) as last_scanned,
               (select delivery_id from matched order by delivery_id desc limit 1) as last_matched,
               (select delivery_id from taken order by delivery_id desc limit 1) as last_taken,
               count(*) as taken,
               count(*) filter (where obstacle = 'payload_gone') as payload_gone,
               count(*) filter (where obstacle = 'subscription_deleted') as deleted,
               count(*) filter (where obstacle = 'subscription_disabled') as disabled
        from judged
    ),
    step as materialized (
        select *,
               case when waits then last_taken
                    when matched = ",
    " then last_matched
                    else last_scanned end as reached,
               not waits and matched < ",
);

const ADVANCE: &str = " as is_done from counted
    )
    update replay r
    set matched_count = matched_count + step.taken,
        queued_count = queued_count + step.queued,
        in_progress_count = in_progress_count + step.taken - step.queued - step.payload_gone
                            - step.deleted - step.disabled,
        payload_gone_count = payload_gone_count + step.payload_gone,
        subscription_deleted_count = subscription_deleted_count + step.deleted,
        subscription_disabled_count = subscription_disabled_count + step.disabled,
        delivery_cursor = coalesce(step.reached, delivery_cursor),
        has_all_ended = step.is_done,
        is_held_up = step.waits,
        state = case when step.is_done and not include_unrouted then 'completed' else state end,
        ended_at = case when step.is_done and not include_unrouted then now() end,
        updated_at = now(),
        next_step_at = ";

const COUNT: &str = ",
    standing as materialized (
        select case when judged.obstacle is not null then judged.obstacle
                    when row.is_queued then 'in_progress' else 'none' end as obstacle
        from judged
        left join lateral (
            select true as is_queued from delivery_queue q
            where q.delivery_id = judged.delivery_id
            offset 0
        ) as row on true
    ),
    counted as (
        select count(*) as matched,
               count(*) filter (where obstacle = 'none') as queued,
               count(*) filter (where obstacle = 'in_progress') as in_progress,
               count(*) filter (where obstacle = 'payload_gone') as payload_gone,
               count(*) filter (where obstacle = 'subscription_deleted') as subscription_deleted,
               count(*) filter (where obstacle = 'subscription_disabled') as subscription_disabled
        from standing
    )
    select counted.*, matched < ";
