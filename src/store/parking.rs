//! Parking: what waits for a disabled subscription stands apart from the queue, which stays small.
//!
//! Nothing has to be remembered for it to come back: whoever sweeps looks which subscriptions have
//! something parked, and what they say now. So a delivery that was routed by what an enabling has
//! just overtaken goes on all the same.

use std::time::Duration;

use uuid::Uuid;

use super::{
    Store, StoreError, bounded,
    dispatchers::DispatcherId,
    ending::{from_parked, taken_die, taken_end, told, told_to_cms},
    queue::{Finished, interval},
    time::{ordered_now, settled_now},
};
use crate::domain::{ApplicationId, LaneId, SubscriptionId};

/// The columns that move between the queue and `delivery_parked`.
macro_rules! moved_columns {
    () => {
        "delivery_id, event_id, application_id, subscription_id, target_url, payload_bytes,
         created_at, claim_number, attempt_count, prior_count"
    };
}

/// Parks what was `taken` from the queue, and tells how many there were. Of what had ended before, and
/// was sent again, nothing is left: it is what it was.
macro_rules! taken_are_parked {
    () => {
        concat!(
            "parked as (
                insert into delivery_parked (",
            moved_columns!(),
            ", due_at)
                select ",
            moved_columns!(),
            ", coalesce(resume_at, due_at)
                from taken where coalesce(run, 'retry') = 'retry'
            )
            select count(*) from taken"
        )
    };
}

/// A subscription for which something is parked.
#[derive(Debug, sqlx::FromRow)]
pub struct ParkedSubscription {
    subscription_id: Uuid,
    application_id: Uuid,
    /// It is enabled again, since so many seconds; `None`: it is still disabled, or deleted.
    pub active_s: Option<f64>,
    /// It is deleted.
    pub is_deleted: bool,
}

impl ParkedSubscription {
    /// The subscription.
    pub fn id(&self) -> SubscriptionId {
        SubscriptionId::from_uuid(self.subscription_id)
    }

    /// Its lane, and whose that is.
    pub fn lane(&self) -> (LaneId, ApplicationId) {
        (self.id().lane(), ApplicationId::from_uuid(self.application_id))
    }
}

impl Store {
    /// Parks claimed deliveries whose subscriptions are disabled; tells how many of these claims this
    /// process still held. Of those that had ended before, and were sent again, nothing is left: they
    /// are what they were.
    pub(super) async fn park(&self, finished: &[&Finished]) -> Result<u64, StoreError> {
        let ids: Vec<Uuid> = finished.iter().map(|one| one.delivery_id.uuid()).collect();
        let owners: Vec<DispatcherId> = finished.iter().map(|one| one.token.owner).collect();
        let numbers: Vec<i32> = finished.iter().map(|one| one.token.number).collect();
        bounded(async {
            let parked: i64 = sqlx::query_scalar(PARK_CLAIMED)
                .bind(ids)
                .bind(owners)
                .bind(numbers)
                .fetch_one(&self.pool)
                .await?;
            Ok(parked.unsigned_abs())
        })
        .await
    }

    /// Parks up to `rows_max` deliveries that wait in the queue for a subscription that is disabled;
    /// tells how many. What is claimed is left to whoever claimed it.
    pub async fn park_waiting(
        &self,
        subscription: SubscriptionId,
        rows_max: i64,
    ) -> Result<i64, StoreError> {
        self.portion_of(PARK_WAITING, subscription, rows_max).await
    }

    /// Lists up to `rows_max` subscriptions after `after` for which something is parked.
    pub async fn parked_subscriptions(
        &self,
        after: Option<SubscriptionId>,
        rows_max: i64,
    ) -> Result<Vec<ParkedSubscription>, StoreError> {
        bounded(async {
            Ok(sqlx::query_as(PARKED_SUBSCRIPTIONS)
                .bind(after.map_or(Uuid::nil(), SubscriptionId::uuid))
                .bind(rows_max)
                .bind(self.times().expected)
                .fetch_all(&self.pool)
                .await?)
        })
        .await
    }

    /// Puts parked deliveries of an active subscription back into the queue, oldest first, so many
    /// that no more than `rows_max` of it wait there; tells how many.
    pub async fn unpark(
        &self,
        subscription: SubscriptionId,
        rows_max: i64,
    ) -> Result<i64, StoreError> {
        self.portion_of(UNPARK, subscription, rows_max).await
    }

    /// Ends up to `rows_max` parked deliveries that are older than a delivery may be as `expired`;
    /// tells how many.
    pub async fn expire_parked(&self, age_max: Duration, rows_max: i64) -> Result<i64, StoreError> {
        bounded(async {
            Ok(sqlx::query_scalar(EXPIRE_PARKED)
                .bind(interval(age_max))
                .bind(rows_max)
                .bind(self.cms())
                .bind(self.times().settled)
                .fetch_one(&self.pool)
                .await?)
        })
        .await
    }
}

const PARK_CLAIMED: &str = concat!(
    "with held as materialized (
        select row.place, c.owner, c.number
        from unnest($1::uuid[], $2::int[], $3::int[]) as c(delivery_id, owner, number)
        cross join lateral (
            select ctid as place from delivery_queue where delivery_id = c.delivery_id offset 0
        ) as row
    ),
    taken as (
        delete from delivery_queue q using held
        where q.ctid = held.place and q.owner = held.owner and q.claim_number = held.number
        returning q.*
    ),
    ",
    taken_are_parked!()
);

// By the lane, whose claimable rows are one range of the queue's index by due time.
const PARK_WAITING: &str = concat!(
    "with disabled as (
        select s.subscription_id, $3::timestamptz as now from subscription s
        join subscription_revision r using (subscription_id, revision)
        where s.subscription_id = $1 and s.deleted_at is null and not r.is_active
    ),
    waiting as (
        select q.ctid as place
        from disabled cross join lateral (
            select ctid from delivery_queue
            where lane_id = disabled.subscription_id and owner is null
            order by lane_id, due_at limit $2
            for update skip locked
        ) as q
    ),
    taken as (
        delete from delivery_queue q using waiting
        where q.ctid = waiting.place and q.owner is null
        returning q.*
    ),
    ",
    taken_are_parked!()
);

const PARKED_SUBSCRIPTIONS: &str = concat!(
    "with recursive parked as (
        (
            select subscription_id, application_id from delivery_parked where subscription_id > $1
            order by subscription_id limit 1
        )
        union all
        select next.subscription_id, next.application_id
        from parked cross join lateral (
            select subscription_id, application_id from delivery_parked p
            where p.subscription_id > parked.subscription_id
            order by subscription_id limit 1
        ) as next
    ),
    page as (select subscription_id, application_id from parked limit $2)
    select page.subscription_id, page.application_id, coalesce(s.deleted_at is not null, true) as is_deleted,
           case when s.deleted_at is null and r.is_active
                -- One that was changed in the future was changed while the clock was wrong.
                then abs(extract(epoch from ",
    ordered_now!("$3"),
    " - s.updated_at))::float8 end as active_s
    from page
    left join subscription s using (subscription_id)
    left join subscription_revision r using (subscription_id, revision)"
);

// What is due already is due in the order in which it was made.
const UNPARK: &str = concat!(
    "with active as (
        select s.subscription_id from subscription s
        join subscription_revision r using (subscription_id, revision)
        where s.subscription_id = $1 and s.deleted_at is null and r.is_active
    ),
    waiting as (
        select count(*) as count from (
            select from delivery_queue where lane_id = $1 and owner is null
            order by lane_id, due_at limit $2
        ) as up_to_max
    ),
    leaving as (
        select p.ctid as place
        from active cross join lateral (
            select ctid from delivery_parked where subscription_id = active.subscription_id
            order by delivery_id limit (select greatest($2 - count, 0) from waiting)
            for update skip locked
        ) as p
    ),
    taken as (
        delete from delivery_parked p using leaving where p.ctid = leaving.place
        returning p.*
    ),
    queued as (
        insert into delivery_queue (",
    moved_columns!(),
    ", lane_id, due_at)
        select ",
    moved_columns!(),
    ", subscription_id,
               greatest(due_at, ",
    ordered_now!("$3"),
    " + (row_number() over (order by delivery_id))::float8
                                        * interval '1 microsecond')
        from taken
    )
    select count(*) from taken"
);

const EXPIRE_PARKED: &str = concat!(
    "with old as (
        select ctid as place from delivery_parked
        where created_at < ",
    settled_now!("$4"),
    " - $1
        order by delivery_id limit $2
        for update skip locked
    ),
    taken as (
        delete from delivery_parked p using old where p.ctid = old.place ",
    from_parked!(),
    "
    ),
    ",
    taken_die!("expired", "$3"),
    " select count(*) from taken"
);
