//! Deliveries at somebody's word: sent at once, sent again after their end, or cancelled.
//!
//! One that has ended gets a row in the queue beside its row of the history, which stays what it is
//! until the delivery is delivered after all.

use uuid::Uuid;

use super::{
    Store, StoreError, bounded,
    ending::{from_parked, from_queue, taken_end, told, told_to_cms},
    owned::INTERRUPTIONS_MAX,
    queue::Finished,
    record::{Columns, result_rows},
    time::ordered_now,
};
use crate::domain::{ApplicationId, DeliveryId, LaneId};

/// What became of the wish to send a delivery at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retried {
    /// It is due now.
    Due(LaneId),
    /// It is being sent.
    InFlight,
    /// It waits for its subscription, which is disabled.
    Parked,
    /// Its subscription is deleted.
    SubscriptionDeleted,
    /// Its payload was dropped.
    PayloadGone,
    /// There is no such delivery in this application.
    NotFound,
}

/// What became of the wish to cancel a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// It is cancelled; or, if it had ended before, it is not sent again.
    Done,
    /// It is being sent.
    InFlight,
    /// It has ended.
    Ended,
    /// There is no such delivery in this application.
    NotFound,
}

#[derive(sqlx::FromRow)]
#[expect(clippy::struct_excessive_bools, reason = "columns of one row")]
struct Standing {
    is_queued: bool,
    is_claimed: bool,
    is_parked: bool,
    is_ended: bool,
    has_payload: bool,
    is_disabled: bool,
    is_deleted: bool,
}

impl Store {
    /// Makes a delivery due now: a pending one, which goes on by its schedule if that fails, or one
    /// that has ended, which gets one attempt.
    pub async fn retry_delivery(
        &self,
        application: ApplicationId,
        id: DeliveryId,
    ) -> Result<Retried, StoreError> {
        bounded(async {
            let hurried: Option<Uuid> = sqlx::query_scalar(HURRY)
                .bind(application.uuid())
                .bind(id.uuid())
                .bind(self.times().expected)
                .fetch_optional(&self.pool)
                .await?;
            if let Some(lane) = hurried {
                return Ok(Retried::Due(LaneId::from_uuid(lane)));
            }
            let revived: Option<Uuid> = sqlx::query_scalar(REVIVE)
                .bind(application.uuid())
                .bind(id.uuid())
                .bind(claims_passed_over())
                .bind(self.times().expected)
                .fetch_optional(&self.pool)
                .await?;
            if let Some(lane) = revived {
                return Ok(Retried::Due(LaneId::from_uuid(lane)));
            }
            // Told from a later look: what has moved in between is as good as in flight.
            let Some(standing) = self.standing(application, id).await? else {
                return Ok(Retried::NotFound);
            };
            Ok(match standing {
                Standing { is_queued: true, .. } => Retried::InFlight,
                Standing { is_deleted: true, .. } => Retried::SubscriptionDeleted,
                Standing { is_parked: true, .. } | Standing { is_disabled: true, .. } => {
                    Retried::Parked
                }
                Standing { has_payload: false, .. } => Retried::PayloadGone,
                Standing { .. } => Retried::InFlight,
            })
        })
        .await
    }

    /// Cancels a delivery that waits, in the queue or parked.
    pub async fn cancel_delivery(
        &self,
        application: ApplicationId,
        id: DeliveryId,
    ) -> Result<Cancelled, StoreError> {
        bounded(async {
            let taken: i64 = sqlx::query_scalar(CANCEL)
                .bind(application.uuid())
                .bind(id.uuid())
                .bind(self.cms())
                .fetch_one(&self.pool)
                .await?;
            if taken > 0 {
                return Ok(Cancelled::Done);
            }
            Ok(match self.standing(application, id).await? {
                None => Cancelled::NotFound,
                Some(standing) if standing.is_ended && !standing.is_claimed => Cancelled::Ended,
                Some(_) => Cancelled::InFlight,
            })
        })
        .await
    }

    async fn standing(
        &self,
        application: ApplicationId,
        id: DeliveryId,
    ) -> Result<Option<Standing>, StoreError> {
        let standing: Standing = sqlx::query_as(STANDING)
            .bind(application.uuid())
            .bind(id.uuid())
            .fetch_one(&self.pool)
            .await?;
        let is_there = standing.is_queued || standing.is_parked || standing.is_ended;
        Ok(is_there.then_some(standing))
    }

    /// Records the results of deliveries that were sent at somebody's word; tells how many counted.
    pub(super) async fn record_runs(&self, finished: &[&Finished]) -> Result<usize, StoreError> {
        let record = if self.cms().is_some() { RECORD_RUNS_FOR_CMS } else { RECORD_RUNS };
        bounded(async {
            let mut query = Columns::of(finished.iter().copied()).bind(sqlx::query_scalar(record));
            query = query.bind(self.times().expected);
            if let Some(cms) = self.cms() {
                query = query.bind(cms);
            }
            let counted: i64 = query.fetch_one(&self.pool).await?;
            Ok(usize::try_from(counted).unwrap_or_default())
        })
        .await
    }
}

const HURRY: &str = concat!(
    "update delivery_queue
    set due_at = ",
    ordered_now!("$3"),
    ",
        run = coalesce(run, 'retry'),
        resume_at = case when coalesce(run, 'retry') = 'retry' then coalesce(resume_at, due_at) end
    where application_id = $1 and delivery_id = $2 and owner is null
    returning lane_id"
);

/// How far the claims of a delivery that is sent again are above its attempts: a claim's number is that
/// of its attempt, and those of leases that were lost left none.
pub(super) fn claims_passed_over() -> i32 {
    i32::from(INTERRUPTIONS_MAX) + 1
}

/// The number of the last claim of a delivery that left an attempt.
macro_rules! last_claim_of {
    ($delivery_id:literal) => {
        concat!(
            "coalesce((select max(a.claim_number) from attempt a where a.delivery_id = ",
            $delivery_id,
            "), 0)"
        )
    };
}
pub(super) use last_claim_of;

const REVIVE: &str = concat!(
    "insert into delivery_queue (delivery_id, event_id, application_id, lane_id, subscription_id,
                                target_url, payload_bytes, run, claim_number, prior_count,
                                created_at, due_at)
    select d.delivery_id, d.event_id, d.application_id, d.lane_id, d.subscription_id, d.target_url,
           octet_length(p.payload), 'once',
           ",
    last_claim_of!("d.delivery_id"),
    " + $3, d.attempt_count, ",
    ordered_now!("$4"),
    ", ",
    ordered_now!("$4"),
    "
    from delivery d
    join event_payload p on p.event_id = d.event_id
    where d.application_id = $1 and d.delivery_id = $2
      and (d.subscription_id is null or exists (
          select from subscription s join subscription_revision r using (subscription_id, revision)
          where s.subscription_id = d.subscription_id and s.deleted_at is null and r.is_active
      ))
    on conflict (delivery_id) do nothing
    returning lane_id"
);

const CANCEL: &str = concat!(
    "with left_queue as (
        delete from delivery_queue q
        where q.application_id = $1 and q.delivery_id = $2 and q.owner is null ",
    from_queue!(),
    "
    ),
    left_parked as (
        delete from delivery_parked p where p.application_id = $1 and p.delivery_id = $2 ",
    from_parked!(),
    "
    ),
    taken as (select * from left_queue union all select * from left_parked),
    ",
    taken_end!("cancelled", "cancelled", "$3"),
    " select count(*) from taken"
);

const STANDING: &str = "
    select q.delivery_id is not null as is_queued,
           coalesce(q.owner is not null, false) as is_claimed,
           p.delivery_id is not null as is_parked,
           d.delivery_id is not null as is_ended,
           exists (
               select from event_payload
               where event_id = coalesce(q.event_id, p.event_id, d.event_id)
           ) as has_payload,
           coalesce(s.deleted_at is not null, false) as is_deleted,
           coalesce(not r.is_active, false) as is_disabled
    from (select $2::uuid as id) as asked
    left join delivery_queue q on q.delivery_id = asked.id and q.application_id = $1
    left join delivery_parked p on p.delivery_id = asked.id and p.application_id = $1
    left join delivery d on d.delivery_id = asked.id and d.application_id = $1
    left join subscription s
        on s.subscription_id = coalesce(q.subscription_id, p.subscription_id, d.subscription_id)
    left join subscription_revision r
        on r.subscription_id = s.subscription_id and r.revision = s.revision";

macro_rules! record_runs {
    ($($telling:expr)?) => {
        concat!(
    result_rows!(),
    ",
    held as materialized (
        select result.*, row.place
        from result cross join lateral (
            select q.ctid as place from delivery_queue q
            where q.delivery_id = result.delivery_id
              and q.owner = result.owner and q.claim_number = result.claim_number
            offset 0
        ) as row
    ),
    ended as (
        delete from delivery_queue q using held r
        where q.ctid = r.place and q.owner = r.owner and q.claim_number = r.claim_number
          and r.state is not null
        returning q.event_id, q.application_id, q.lane_id, q.subscription_id, q.target_url, q.run,
                  q.prior_count + q.attempt_count as attempts_before, q.created_at, r.*
    ),
    resumed as (
        update delivery_queue q
        set owner = null, due_at = q.resume_at, run = null, resume_at = null,
            prior_count = q.prior_count + 1, interruption_count = 0
        from held r
        where q.ctid = r.place and q.owner = r.owner and q.claim_number = r.claim_number
          and r.state is null and q.run = 'retry'
        returning 'retry' as run, r.*
    ),
    rescheduled as (
        update delivery_queue q
        set owner = null, due_at = ",
    ordered_now!("$21"),
    " + abs(r.retry_us) * interval '1 microsecond',
            attempt_count = q.attempt_count + case when r.retry_us < 0 then 0 else 1 end,
            prior_count = q.prior_count + case when r.retry_us < 0 then 1 else 0 end,
            interruption_count = 0
        from held r
        where q.ctid = r.place and q.owner = r.owner and q.claim_number = r.claim_number
          and r.state is null and q.run is distinct from 'retry'
        returning q.run, r.*
    ),
    history as (
        insert into delivery (delivery_id, event_id, application_id, lane_id, subscription_id,
                              event_type, target_url, state, reason, attempt_count, last_status,
                              created_at)
        select delivery_id, event_id, application_id, lane_id, subscription_id, event_type,
               target_url, state, reason,
               attempts_before + case when attempt_id is null then 0 else 1 end,
               response_status, created_at
        from ended where coalesce(run, 'retry') = 'retry'
        returning *
    ),
    ",
    told!("death", "webhook.delivery.dead", "select * from history where state = 'dead'"),
    ",
    revised as (
        update delivery d
        set state = case when e.state = 'delivered' then 'delivered' else d.state end,
            reason = case when e.state = 'delivered' then null else d.reason end,
            ended_at = case when e.state = 'delivered' and d.state <> 'delivered' then now()
                            else d.ended_at end,
            attempt_count = e.attempts_before + case when e.attempt_id is null then 0 else 1 end,
            last_status = case when e.attempt_id is null then d.last_status
                               else e.response_status end
        from (
            select ended.*, former.state as former_state, former.reason as former_reason
            from ended cross join lateral (
                select state, reason from delivery d
                where d.application_id = ended.application_id and d.delivery_id = ended.delivery_id
                offset 0
            ) as former
            where ended.run in ('once', 'replay')
        ) as e
        where d.application_id = e.application_id and d.delivery_id = e.delivery_id
        returning d.*, e.former_state, e.former_reason
    ),
    ",
    told!(
        "recovery",
        "webhook.delivery.recovered",
        "select application_id, delivery_id, event_id, event_type, subscription_id, target_url,
                former_reason as reason, attempt_count, last_status, created_at
         from revised where state = 'delivered' and former_state = 'dead'"
    ),
    ",
    counted as (
        select run, delivery_id, claim_number, attempt_id, scheduled_at, started_at, duration_ms,
               request_method, request_url, request_headers, response_status, response_headers,
               response_body, response_truncated, error_class, error_message
        from ended
        union all
        select run, delivery_id, claim_number, attempt_id, scheduled_at, started_at, duration_ms,
               request_method, request_url, request_headers, response_status, response_headers,
               response_body, response_truncated, error_class, error_message
        from resumed
        union all
        select run, delivery_id, claim_number, attempt_id, scheduled_at, started_at, duration_ms,
               request_method, request_url, request_headers, response_status, response_headers,
               response_body, response_truncated, error_class, error_message
        from rescheduled
    ),
    kept as (
        insert into attempt (run, delivery_id, claim_number, attempt_id, scheduled_at, started_at,
                             duration_ms, request_method, request_url, request_headers,
                             response_status, response_headers, response_body, response_truncated,
                             error_class, error_message, is_late)
        select counted.*, false from counted where attempt_id is not null
    )",
            $(",", $telling,)?
            "
    select count(*) from counted"
        )
    };
}

const RECORD_RUNS: &str = record_runs!();

/// The same where the CMS is told.
const RECORD_RUNS_FOR_CMS: &str = record_runs!(told_to_cms!(
    "select application_id, event_id from history
     union all
     select application_id, event_id from revised",
    "$22"
));
