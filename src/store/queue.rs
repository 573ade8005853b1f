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

use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, TimeZone, Utc};
use sqlx::postgres::types::PgInterval;
use uuid::Uuid;

use super::{Store, StoreError, bounded, dispatchers::DispatcherId};
use crate::domain::{
    ApplicationId, AttemptId, DeliveryId, DeliveryState, ErrorClass, EventId, LaneId, TargetUrl,
    attempt::Response,
    outcome::Failure,
    pacing::{Held, LaneQuota},
};

/// How many leases may be lost in a row before a delivery is dead.
pub const INTERRUPTIONS_MAX: i16 = 20;

/// What a result must carry to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClaimToken {
    /// The process that claimed.
    pub owner: DispatcherId,
    /// The claim's number within its delivery, from 1.
    pub number: i32,
}

/// A delivery that this process holds. Not `Clone`: recording it consumes it.
#[derive(Debug)]
pub struct Claim {
    /// Its id.
    pub delivery_id: DeliveryId,
    /// What a result must carry.
    pub token: ClaimToken,
    /// The event.
    pub event_id: EventId,
    /// The event's type, if told.
    pub event_type: Option<String>,
    /// The tenant.
    pub application: ApplicationId,
    /// What it shares its limits with.
    pub lane: LaneId,
    /// Where it goes.
    pub target: TargetUrl,
    /// The bytes to send.
    pub payload: Bytes,
    /// Attempts recorded before this one.
    pub attempt_count: u32,
    /// When it became due, by the database's clock.
    pub scheduled_at: DateTime<Utc>,
}

impl Held for Claim {
    fn lane(&self) -> LaneId {
        self.lane
    }

    fn bytes(&self) -> usize {
        self.payload.len()
    }
}

/// A row that has just been claimed; its payload is read apart, in portions.
#[derive(Debug, sqlx::FromRow)]
pub struct ClaimedRow {
    delivery_id: Uuid,
    claim_number: i32,
    event_id: Uuid,
    event_type: Option<String>,
    application_id: Uuid,
    lane_id: Uuid,
    target_url: String,
    attempt_count: i32,
    due_at: DateTime<Utc>,
    payload_bytes: i32,
    /// Older than a delivery may be: it must be buried, not sent.
    pub is_expired: bool,
}

impl ClaimedRow {
    /// The row's delivery.
    pub fn delivery_id(&self) -> DeliveryId {
        DeliveryId::from_uuid(self.delivery_id)
    }

    /// The row's event, whose payload must be read.
    pub fn event_id(&self) -> EventId {
        EventId::from_uuid(self.event_id)
    }

    /// The row's lane.
    pub fn lane(&self) -> LaneId {
        LaneId::from_uuid(self.lane_id)
    }

    /// Its event's type, if told.
    pub fn event_type(&self) -> Option<&str> {
        self.event_type.as_deref()
    }

    /// When it became due.
    pub fn due_at(&self) -> DateTime<Utc> {
        self.due_at
    }

    /// How many bytes its payload has.
    pub fn payload_bytes(&self) -> usize {
        usize::try_from(self.payload_bytes).unwrap_or_default()
    }

    /// What a result must carry.
    pub fn token(&self, owner: DispatcherId) -> ClaimToken {
        ClaimToken { owner, number: self.claim_number }
    }

    /// The claim, once its payload is there. `Err` gives the row back if its target cannot be read.
    pub fn into_claim(self, owner: DispatcherId, payload: Bytes) -> Result<Claim, Self> {
        let Ok(target) = TargetUrl::parse(&self.target_url) else { return Err(self) };
        Ok(Claim {
            delivery_id: self.delivery_id(),
            token: self.token(owner),
            event_id: self.event_id(),
            application: ApplicationId::from_uuid(self.application_id),
            lane: self.lane(),
            target,
            payload,
            attempt_count: self.attempt_count.unsigned_abs(),
            scheduled_at: self.due_at,
            event_type: self.event_type,
        })
    }
}

/// What follows from a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// The delivery has ended; `reason` unless it was delivered.
    End {
        /// `delivered`, `dead` or `cancelled`.
        state: DeliveryState,
        /// Why it was not delivered.
        reason: Option<ErrorClass>,
    },
    /// It is due again after this delay, which the database adds to its own clock.
    RetryAfter(Duration),
}

/// One exchange, as it is kept.
#[derive(Debug)]
pub struct AttemptRecord {
    /// Its id.
    pub attempt_id: AttemptId,
    /// When the delivery became due.
    pub scheduled_at: DateTime<Utc>,
    /// When it began, by the database's clock as sampled.
    pub started_at: DateTime<Utc>,
    /// How long it took.
    pub duration: Duration,
    /// The URL that was called.
    pub request_url: String,
    /// Header lines as sent, secrets redacted.
    pub request_headers: String,
    /// The answer, if there was one.
    pub response: Option<Response>,
    /// What went wrong; `None` if the receiver said 2xx.
    pub failure: Option<Failure>,
}

/// A finished claim. `attempt` is absent where none was made (an expired delivery).
#[derive(Debug)]
pub struct Finished {
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// What the claim's result must carry.
    pub token: ClaimToken,
    /// Its lane, for wake-ups.
    pub lane: LaneId,
    /// The event's type, for the history.
    pub event_type: Option<String>,
    /// What follows.
    pub next: Next,
    /// What happened.
    pub attempt: Option<AttemptRecord>,
}

/// What recording came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recorded {
    /// Results that counted.
    pub counted: usize,
    /// Results whose claim was lost, or that had been recorded before.
    pub late: usize,
}

/// A lane that has work in the database.
#[derive(Debug, sqlx::FromRow)]
pub struct LaneHead {
    lane_id: Uuid,
    /// Milliseconds until its first delivery is due; negative if it is overdue.
    pub due_in_ms: i64,
}

impl LaneHead {
    /// The lane.
    pub fn lane(&self) -> LaneId {
        LaneId::from_uuid(self.lane_id)
    }
}

/// A row that a process owns.
#[derive(Debug, sqlx::FromRow)]
pub struct OwnedRow {
    delivery_id: Uuid,
    /// The claim's number.
    pub claim_number: i32,
}

impl OwnedRow {
    /// The delivery.
    pub fn delivery_id(&self) -> DeliveryId {
        DeliveryId::from_uuid(self.delivery_id)
    }
}

/// What releasing the rows of dead processes came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub struct Orphans {
    /// Rows that may be claimed again.
    pub released: i64,
    /// Rows that died as `interrupted`.
    pub buried: i64,
}

impl Store {
    /// Claims what is due in the planned lanes, at most the quota of each. Rows that another
    /// transaction holds are skipped, never waited for.
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
        bounded(async {
            Ok(sqlx::query_as(CLAIM_DUE)
                .bind(lanes)
                .bind(quotas)
                .bind(marks)
                .bind(owner)
                .bind(interval(age_max))
                .fetch_all(&self.pool)
                .await?)
        })
        .await
    }

    /// Reads payloads. An event whose payload is gone is missing from the answer.
    pub async fn payloads(&self, events: &[EventId]) -> Result<Vec<(EventId, Bytes)>, StoreError> {
        bounded(async {
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
        after: Option<LaneId>,
        lanes_max: i64,
    ) -> Result<Vec<LaneHead>, StoreError> {
        bounded(async {
            Ok(sqlx::query_as(LANE_HEADS)
                .bind(after.map_or(Uuid::nil(), LaneId::uuid))
                .bind(lanes_max)
                .fetch_all(&self.pool)
                .await?)
        })
        .await
    }

    /// Gives claims back without counting an attempt; due again after `delay`. Tells how many of
    /// them this process still held.
    pub async fn release(
        &self,
        claims: &[(DeliveryId, ClaimToken)],
        delay: Duration,
    ) -> Result<u64, StoreError> {
        let ids: Vec<Uuid> = claims.iter().map(|(id, _)| id.uuid()).collect();
        let owners: Vec<DispatcherId> = claims.iter().map(|(_, token)| token.owner).collect();
        let numbers: Vec<i32> = claims.iter().map(|(_, token)| token.number).collect();
        bounded(async {
            let released = sqlx::query(
                "update delivery_queue q set owner = null, due_at = now() + $4
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
            )
            .bind(ids)
            .bind(owners)
            .bind(numbers)
            .bind(interval(delay))
            .execute(&self.pool)
            .await?;
            Ok(released.rows_affected())
        })
        .await
    }

    /// Gives up to `rows_max` rows back whose owner is no running process. Each counts as a lost
    /// lease; after [`INTERRUPTIONS_MAX`] in a row the delivery is dead.
    pub async fn release_orphans(&self, rows_max: i64) -> Result<Orphans, StoreError> {
        bounded(async {
            Ok(sqlx::query_as(RELEASE_ORPHANS)
                .bind(rows_max)
                .bind(INTERRUPTIONS_MAX)
                .fetch_one(&self.pool)
                .await?)
        })
        .await
    }

    /// Lists what a process owns, to be compared with what it knows of.
    pub async fn owned_rows(&self, owner: DispatcherId) -> Result<Vec<OwnedRow>, StoreError> {
        bounded(async {
            Ok(sqlx::query_as(
                "select delivery_id, claim_number from delivery_queue where owner = $1",
            )
            .bind(owner)
            .fetch_all(&self.pool)
            .await?)
        })
        .await
    }
}

// As in `record`: the planner believes that the queue has one row, so rows are found by key or by
// place, never by a join.
const CLAIM_DUE: &str = "
    with wanted as materialized (
        select * from unnest($1::uuid[], $2::int[], $3::timestamptz[]) as w(lane_id, quota, mark)
    ),
    due as (
        select head.place
        from wanted
        cross join lateral (
            select q.ctid as place
            from delivery_queue q
            where q.lane_id = wanted.lane_id and q.owner is null
              and q.due_at <= now() and q.due_at >= wanted.mark
            order by q.lane_id, q.due_at
            limit wanted.quota
            for update skip locked
        ) as head
    ),
    claimed as (
        update delivery_queue q
        set owner = $4, claim_number = q.claim_number + 1
        from due
        where q.ctid = due.place
        returning q.delivery_id, q.claim_number, q.event_id, q.application_id, q.lane_id,
                  q.target_url, q.attempt_count, q.due_at, q.payload_bytes,
                  q.created_at < now() - $5 as is_expired
    )
    select claimed.*,
           (
               select type from event e
               where e.application_id = claimed.application_id and e.event_id = claimed.event_id
           ) as event_type
    from claimed
    order by claimed.lane_id, claimed.due_at";

const LANE_HEADS: &str = "
    with recursive head as (
        (
            select lane_id, due_at from delivery_queue
            where owner is null and lane_id > $1
            order by lane_id, due_at limit 1
        )
        union all
        select next.lane_id, next.due_at
        from head cross join lateral (
            select lane_id, due_at from delivery_queue
            where owner is null and lane_id > head.lane_id
            order by lane_id, due_at limit 1
        ) as next
    )
    select lane_id, (extract(epoch from due_at - clock_timestamp()) * 1000)::bigint as due_in_ms
    from head limit $2";

const RELEASE_ORPHANS: &str = "
    with orphan as (
        select q.ctid as place, interruption_count + 1 as interruptions
        from delivery_queue q
        where owner is not null
          and not exists (select from dispatcher d where d.dispatcher_id = q.owner)
        limit $1
        for update skip locked
    ),
    released as (
        update delivery_queue q
        set owner = null, due_at = now(), interruption_count = orphan.interruptions
        from orphan
        where q.ctid = orphan.place and orphan.interruptions < $2
        returning q.delivery_id
    ),
    ended as (
        delete from delivery_queue q using orphan
        where q.ctid = orphan.place and orphan.interruptions >= $2
        returning q.*
    ),
    kept as (
        insert into delivery (delivery_id, event_id, application_id, lane_id, event_type,
                              target_url, state, reason, attempt_count, created_at)
        select ended.delivery_id, ended.event_id, ended.application_id, ended.lane_id,
               (
                   select type from event e
                   where e.application_id = ended.application_id and e.event_id = ended.event_id
               ),
               ended.target_url, 'dead', 'interrupted', ended.attempt_count, ended.created_at
        from ended
    )
    select (select count(*) from released) as released, (select count(*) from ended) as buried";

fn interval(duration: Duration) -> PgInterval {
    PgInterval {
        months: 0,
        days: 0,
        microseconds: i64::try_from(duration.as_micros()).unwrap_or(i64::MAX),
    }
}

fn beginning_of_time() -> DateTime<Utc> {
    Utc.timestamp_nanos(0)
}
