//! The queue: claim, record, release. The heart; read it first.
//!
//! - A delivery belongs to the process whose id stands in `owner`; null means that it may be
//!   claimed. What is accepted may be *born claimed*: inserted with an owner (see
//!   [`super::events`]), and sent from memory without any claim.
//! - A claim is one short statement. No transaction and no row lock is open while HTTP is spoken.
//! - A result counts only if owner *and* claim number are still those of the claim. A result that
//!   comes late, or twice after an unclear commit, finds no row and changes nothing.
//! - A lease ends when its process has not beaten for some seconds by the database's clock; then
//!   [`Store::release_orphans`] gives its rows back.

use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::{DateTime, TimeZone, Utc};
use sqlx::postgres::types::PgInterval;
use uuid::Uuid;

pub use super::claim::{
    AttemptRecord, Claim, ClaimToken, ClaimedRow, Finished, Next, Recorded, Release,
};
use super::{
    PLANS, Store, StoreError,
    claim::LimitColumns,
    dispatchers::DispatcherId,
    prompt,
    time::{ordered_now, settled_now},
};
use crate::domain::{
    ApplicationId, DeliveryId, EventId, LaneId, LaneLimit,
    pacing::{HORIZON, LaneQuota},
};

/// A lane that has work in the database.
#[derive(Debug, sqlx::FromRow)]
pub struct LaneHead {
    lane_id: Uuid,
    application_id: Uuid,
    /// Milliseconds until its first delivery is due, and may be claimed by its rate; negative if it is
    /// overdue.
    pub due_in_ms: i64,
    #[sqlx(flatten)]
    limit: LimitColumns,
}

impl LaneHead {
    /// The lane.
    pub fn lane(&self) -> LaneId {
        LaneId::from_uuid(self.lane_id)
    }

    /// Its application.
    pub fn application(&self) -> ApplicationId {
        ApplicationId::from_uuid(self.application_id)
    }

    /// What its owner bounds; `None` if nothing is known of that.
    pub fn limit(&self) -> Option<LaneLimit> {
        self.limit.limit()
    }

    /// How long until its first delivery is due.
    pub fn due_in(&self) -> Duration {
        Duration::from_millis(self.due_in_ms.max(0).unsigned_abs())
    }
}

impl Store {
    /// Claims what is due in the planned lanes, at most the quota of each, and of lanes with a rate
    /// what may begin within [`HORIZON`]: their rows get their times, which are spent with the commit.
    /// Nothing of lanes whose limit is not known here. Rows that another transaction holds are skipped,
    /// never waited for, and so are the times of a lane.
    pub async fn claim_due(
        &self,
        owner: DispatcherId,
        plan: &[LaneQuota],
        age_max: Duration,
    ) -> Result<Vec<ClaimedRow>, StoreError> {
        let lanes: Vec<Uuid> = plan.iter().map(|part| part.lane.uuid()).collect();
        let quotas: Vec<i32> =
            plan.iter().map(|part| i32::try_from(part.quota).unwrap_or(i32::MAX)).collect();
        let marks: Vec<DateTime<Utc>> =
            plan.iter().map(|part| part.mark.unwrap_or_else(beginning_of_time)).collect();
        let taken_us: Vec<i64> = plan.iter().map(|part| micros(part.taken_until)).collect();
        let revisions: Vec<i32> = plan.iter().map(|part| part.limit_revision).collect();
        let times = self.times();
        prompt(&self.pace, async {
            let mut rows: Vec<ClaimedRow> = sqlx::query_as(CLAIM_DUE)
                .bind(lanes)
                .bind(quotas)
                .bind(marks)
                .bind(owner)
                .bind(interval(age_max))
                .bind(taken_us)
                .bind(micros(HORIZON))
                .bind(revisions)
                .bind(times.expected)
                .bind(times.settled)
                .fetch_all(&self.pool)
                .await?;
            ClaimedRow::set_times(&mut rows, Instant::now());
            Ok(rows)
        })
        .await
    }

    /// Opens the connection and has Postgres plan what claiming takes, so that the first claims after a
    /// start do not wait for that, and nobody else for them. Changes nothing.
    pub async fn prepare_to_claim(&self) -> Result<(), StoreError> {
        let nobody = DispatcherId::from_raw(0);
        for _ in 0..PLANS {
            self.claim_due(nobody, &[], Duration::ZERO).await?;
            self.payloads(&[]).await?;
            self.prepare_changes().await?;
            self.lane_heads(nobody, None, 1).await?;
            self.next_due(nobody, &[]).await?;
        }
        Ok(())
    }

    /// Reads payloads. An event whose payload is gone is missing from the answer.
    pub async fn payloads(&self, events: &[EventId]) -> Result<Vec<(EventId, Bytes)>, StoreError> {
        prompt(&self.pace, async {
            let ids: Vec<Uuid> = events.iter().map(|id| id.uuid()).collect();
            let rows: Vec<(Uuid, Vec<u8>)> = sqlx::query_as(
                "select event_id, payload from event_payload where event_id = any($1)",
            )
            .bind(ids)
            .fetch_all(&self.pool)
            .await?;
            Ok(rows
                .into_iter()
                .map(|(id, payload)| (EventId::from_uuid(id), payload.into()))
                .collect())
        })
        .await
    }

    /// Lists the lanes after `after` that have claimable work, each with the time of its first row:
    /// a loose index scan, whose cost grows with the lanes and not with their backlogs.
    pub async fn lane_heads(
        &self,
        owner: DispatcherId,
        after: Option<LaneId>,
        lanes_max: i64,
    ) -> Result<Vec<LaneHead>, StoreError> {
        prompt(&self.pace, async {
            Ok(sqlx::query_as(LANE_HEADS)
                .bind(after.map_or(Uuid::nil(), LaneId::uuid))
                .bind(lanes_max)
                .bind(owner)
                .bind(micros(HORIZON / 2))
                .bind(self.times().expected)
                .fetch_all(&self.pool)
                .await?)
        })
        .await
    }

    /// Tells when the first row of each of these lanes is due for this process, not looking below its
    /// mark; of a lane with a rate also when its next time is near.
    pub async fn next_due(
        &self,
        owner: DispatcherId,
        lanes: &[(LaneId, Option<DateTime<Utc>>)],
    ) -> Result<Vec<LaneHead>, StoreError> {
        let ids: Vec<Uuid> = lanes.iter().map(|(lane, _)| lane.uuid()).collect();
        let marks: Vec<DateTime<Utc>> =
            lanes.iter().map(|(_, mark)| mark.unwrap_or_else(beginning_of_time)).collect();
        prompt(&self.pace, async {
            Ok(sqlx::query_as(NEXT_DUE)
                .bind(ids)
                .bind(marks)
                .bind(owner)
                .bind(micros(HORIZON / 2))
                .bind(self.times().expected)
                .fetch_all(&self.pool)
                .await?)
        })
        .await
    }

    /// Gives claims back without counting an attempt, each to this lane, in its place there.
    pub async fn release_to(
        &self,
        claims: &[(DeliveryId, ClaimToken, LaneId)],
    ) -> Result<u64, StoreError> {
        let ids: Vec<Uuid> = claims.iter().map(|(id, ..)| id.uuid()).collect();
        let owners: Vec<DispatcherId> = claims.iter().map(|(_, token, _)| token.owner).collect();
        let numbers: Vec<i32> = claims.iter().map(|(_, token, _)| token.number).collect();
        let lanes: Vec<Uuid> = claims.iter().map(|(.., lane)| lane.uuid()).collect();
        prompt(&self.pace, async {
            let released = sqlx::query(
                "update delivery_queue q set owner = null, lane_id = r.lane_id
                 from (
                     select row.place, r.owner, r.number, r.lane_id
                     from unnest($1::uuid[], $2::int[], $3::int[], $4::uuid[])
                         as r(delivery_id, owner, number, lane_id)
                     cross join lateral (
                         select ctid as place from delivery_queue
                         where delivery_id = r.delivery_id offset 0
                     ) as row
                     offset 0
                 ) as r
                 where q.ctid = r.place and q.owner = r.owner and q.claim_number = r.number",
            )
            .bind(ids)
            .bind(owners)
            .bind(numbers)
            .bind(lanes)
            .execute(&self.pool)
            .await?;
            Ok(released.rows_affected())
        })
        .await
    }

    /// Gives claims back without counting an attempt. Tells how many of them this process still
    /// held.
    pub async fn release(
        &self,
        claims: &[(DeliveryId, ClaimToken)],
        when: Release,
    ) -> Result<u64, StoreError> {
        let delay = match when {
            Release::InPlace => None,
            Release::Now => Some(Duration::ZERO),
            Release::After(delay) => Some(delay),
        };
        let ids: Vec<Uuid> = claims.iter().map(|(id, _)| id.uuid()).collect();
        let owners: Vec<DispatcherId> = claims.iter().map(|(_, token)| token.owner).collect();
        let numbers: Vec<i32> = claims.iter().map(|(_, token)| token.number).collect();
        prompt(&self.pace, async {
            let released = sqlx::query(concat!(
                "update delivery_queue q
                 set owner = null, due_at = coalesce(",
                ordered_now!("$5"),
                " + $4, q.due_at)
                 from (
                     select row.place, r.owner, r.number
                     from unnest($1::uuid[], $2::int[], $3::int[]) as r(delivery_id, owner, number)
                     cross join lateral (
                         select ctid as place from delivery_queue
                         where delivery_id = r.delivery_id offset 0
                     ) as row
                     offset 0
                 ) as r
                 where q.ctid = r.place and q.owner = r.owner and q.claim_number = r.number",
            ))
            .bind(ids)
            .bind(owners)
            .bind(numbers)
            .bind(delay.map(interval))
            .bind(self.times().expected)
            .execute(&self.pool)
            .await?;
            Ok(released.rows_affected())
        })
        .await
    }
}

/// The next time of a lane with a rate (`l`) that the process may take. Who did not take the last one
/// keeps the distance by which that may have been late, and a quarter of a second for the way here.
///
/// One that is further ahead than a burst and [`HORIZON`] explain was left by a clock that was wrong:
/// then the burst counts as spent.
macro_rules! next_time {
    ($owner:literal, $now:expr) => {
        concat!(
            "(case when l.next_at > ",
            $now,
            " + (l.tolerance_us + l.step_us) * interval '1 microsecond' + interval '5 seconds'
             then ",
            $now,
            " + l.tolerance_us * interval '1 microsecond'
             else l.next_at + case when l.taken_by is distinct from ",
            $owner,
            " then (l.slack_us + 250000) * interval '1 microsecond' else interval '0' end end)"
        )
    };
}

// As in `record`: the planner believes that the queue has one row, so rows are found by key or by
// place, never by a join. Behind `select` it cannot count the lanes: it would find a plan made for
// few of them cheaper than the one that it has, and make it anew for each claim, which takes longer
// than to claim.
const CLAIM_DUE: &str = concat!(
    "with clock as materialized (select ",
    ordered_now!("$9"),
    " as now, ",
    settled_now!("$10"),
    " as settled),
    wanted as materialized (
        select * from unnest(
            (select $1::uuid[]), (select $2::int[]), (select $3::timestamptz[]),
            (select $6::bigint[]), (select $8::int[])
        ) as w(lane_id, quota, mark, taken_us, limit_revision)
    ),
    limits as materialized (
        select l.lane_id, l.revision, l.max_in_flight, l.step_us, l.tolerance_us, l.slack_us,
               wanted.taken_us, wanted.limit_revision >= l.revision as is_known
        from wanted
        cross join lateral (
            select * from lane_limit l where l.lane_id = wanted.lane_id offset 0
        ) as l
    ),
    paced as materialized (
        select l.*, first.at,
               greatest(0, floor(
                   (extract(epoch from (select now from clock) - first.at) * 1000000
                    + l.tolerance_us + $7) / l.step_us
               ) + 1)::bigint as room
        from limits
        cross join lateral (
            select *, ctid as place from lane_limit l
            where l.lane_id = limits.lane_id and l.step_us is not null
            for no key update skip locked
        ) as l
        cross join lateral (
            select greatest(",
    next_time!("$4", "(select now from clock)"),
    ", (select now from clock) + limits.taken_us * interval '1 microsecond') as at
        ) as first
        where limits.is_known and limits.step_us is not null
    ),
    due as (
        select head.place
        from wanted
        left join limits on limits.lane_id = wanted.lane_id
        left join paced on paced.lane_id = wanted.lane_id
        cross join lateral (
            select q.ctid as place
            from delivery_queue q
            where q.lane_id = wanted.lane_id and q.owner is null
              and q.due_at <= (select now from clock) and q.due_at >= wanted.mark
            order by q.lane_id, q.due_at
            limit case when limits.lane_id is null then wanted.quota
                       when not limits.is_known then 0
                       when limits.step_us is null then wanted.quota
                       else least(wanted.quota, coalesce(paced.room, 0)) end
            for update skip locked
        ) as head
    ),
    claimed as (
        update delivery_queue q
        set owner = $4, claim_number = q.claim_number + 1
        from due
        where q.ctid = due.place
        returning q.delivery_id, q.claim_number, q.event_id, q.application_id, q.lane_id,
                  q.subscription_id, q.target_url, q.run, q.attempt_count, q.prior_count, q.due_at,
                  q.payload_bytes,
                  q.created_at < (select settled from clock) - $5 as is_expired
    ),
    spent as (
        update lane_limit l
        set next_at = paced.at + claims.number * paced.step_us * interval '1 microsecond',
            taken_by = $4
        from paced
        join (
            select lane_id, count(*) as number from claimed where not is_expired group by lane_id
        ) as claims using (lane_id)
        where l.ctid = paced.place
    )
    select claimed.*, event.type as event_type, event.metadata as event_metadata,
           event.hops as event_hops, event.traceparent as event_traceparent,
           target.method as target_method, target.sealed_headers as target_headers,
           target.signing_key as target_key, target.retry as target_retry,
           limits.revision as limit_revision, limits.max_in_flight, paced.step_us,
           paced.tolerance_us, paced.slack_us,
           (extract(epoch from paced.at - (select now from clock)) * 1000000)::bigint - paced.tolerance_us
               as first_in_us
    from claimed
    left join limits on limits.lane_id = claimed.lane_id
    left join paced on paced.lane_id = claimed.lane_id
    left join lateral (
        select e.type, case when claimed.subscription_id is not null then e.metadata end as metadata,
               e.route, e.hops, e.traceparent
        from event e
        where e.application_id = claimed.application_id and e.event_id = claimed.event_id
        offset 0
    ) as event on true
    left join lateral (
        select t.method, t.sealed_headers, t.signing_key, t.retry
        from delivery_target t
        where event.route = 'targets' and t.delivery_id = claimed.delivery_id
        offset 0
    ) as target on true
    order by claimed.lane_id, claimed.due_at"
);

/// What bounds the lane of `$lane`, if anything does, as `l`; with `may_at`, when its next time is
/// near for the process `$owner`: `$ahead` microseconds before.
macro_rules! limit_of {
    ($lane:literal, $owner:literal, $ahead:literal, $now:expr) => {
        concat!(
            "left join lateral (
                select l.revision as limit_revision, l.max_in_flight, l.step_us, l.tolerance_us,
                       l.slack_us,
                       case when l.step_us is not null then ",
            next_time!($owner, $now),
            " - (l.tolerance_us + ",
            $ahead,
            ") * interval '1 microsecond' end as may_at
                from lane_limit l where l.lane_id = ",
            $lane,
            " offset 0
            ) as l on true "
        )
    };
}

/// The time at which a row is looked at, not that at which its statement began.
macro_rules! clock_now {
    ($expected:literal) => {
        concat!("(", ordered_now!($expected), " + (clock_timestamp() - now()))")
    };
}

const LANE_HEADS: &str = concat!(
    "with recursive head as (
        (
            select lane_id, application_id, due_at from delivery_queue
            where owner is null and lane_id > $1
            order by lane_id, due_at limit 1
        )
        union all
        select next.lane_id, next.application_id, next.due_at
        from head cross join lateral (
            select lane_id, application_id, due_at from delivery_queue
            where owner is null and lane_id > head.lane_id
            order by lane_id, due_at limit 1
        ) as next
    ),
    page as (select * from head limit $2)
    select page.lane_id, page.application_id, l.*,
           ceil(extract(epoch from greatest(page.due_at, l.may_at) - ",
    clock_now!("$5"),
    ") * 1000)::bigint as due_in_ms
    from page ",
    limit_of!("page.lane_id", "$3", "$4", clock_now!("$5")),
    "order by page.lane_id"
);

const NEXT_DUE: &str = concat!(
    "select lanes.lane_id, head.application_id, l.*,
           ceil(extract(epoch from greatest(head.due_at, l.may_at) - ",
    clock_now!("$5"),
    ") * 1000)::bigint as due_in_ms
    from unnest((select $1::uuid[]), (select $2::timestamptz[])) as lanes(lane_id, mark)
    cross join lateral (
        select application_id, due_at from delivery_queue q
        where q.lane_id = lanes.lane_id and q.owner is null and q.due_at >= lanes.mark
        order by q.lane_id, q.due_at limit 1
    ) as head ",
    limit_of!("lanes.lane_id", "$3", "$4", clock_now!("$5"))
);

/// A duration as Postgres takes it.
pub(super) fn interval(duration: Duration) -> PgInterval {
    PgInterval { months: 0, days: 0, microseconds: micros(duration) }
}

/// A duration in microseconds.
pub(super) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn beginning_of_time() -> DateTime<Utc> {
    Utc.timestamp_nanos(0)
}
