//! Deleted and disabled subscriptions: what waits for them is cancelled, or parked, in portions.

use uuid::Uuid;

use super::{
    Store, StoreError, bounded,
    ending::{from_parked, from_queue, taken_end, told_to_cms},
    time::settled_now,
};
use crate::domain::SubscriptionId;

/// A subscription for which something may still wait in the queue.
#[derive(Debug, sqlx::FromRow)]
pub struct Draining {
    subscription_id: Uuid,
    /// It is deleted, not only disabled.
    pub is_deleted: bool,
}

impl Draining {
    /// The subscription.
    pub fn id(&self) -> SubscriptionId {
        SubscriptionId::from_uuid(self.subscription_id)
    }
}

impl Store {
    /// Ends up to `rows_max` deliveries that wait for a deleted subscription as `cancelled`, and up to
    /// as many that are parked for it; tells how many. What is claimed is left to whoever claimed it.
    pub async fn cancel_waiting(
        &self,
        subscription: SubscriptionId,
        rows_max: i64,
    ) -> Result<i64, StoreError> {
        self.ended_portion_of(CANCEL_WAITING, subscription, rows_max).await
    }

    /// Ends up to `rows_max` deliveries that are parked for a subscription as `cancelled`, whether or
    /// not it is deleted: its owner does not want them any more. Tells how many.
    pub async fn cancel_parked(
        &self,
        subscription: SubscriptionId,
        rows_max: i64,
    ) -> Result<i64, StoreError> {
        self.ended_portion_of(CANCEL_PARKED, subscription, rows_max).await
    }

    /// Moves up to `rows_max` deliveries of a subscription by a statement of these two parameters and the
    /// time, which tells how many there were.
    pub(super) async fn portion_of(
        &self,
        statement: &'static str,
        subscription: SubscriptionId,
        rows_max: i64,
    ) -> Result<i64, StoreError> {
        bounded(async {
            Ok(sqlx::query_scalar(statement)
                .bind(subscription.uuid())
                .bind(rows_max)
                .bind(self.times().expected)
                .fetch_one(&self.pool)
                .await?)
        })
        .await
    }

    /// The same by a statement that ends them, whose third parameter says of whom the CMS is told.
    async fn ended_portion_of(
        &self,
        statement: &'static str,
        subscription: SubscriptionId,
        rows_max: i64,
    ) -> Result<i64, StoreError> {
        bounded(async {
            Ok(sqlx::query_scalar(statement)
                .bind(subscription.uuid())
                .bind(rows_max)
                .bind(self.cms())
                .fetch_one(&self.pool)
                .await?)
        })
        .await
    }

    /// Lists up to `rows_max` subscriptions that were deleted or disabled, and for which something
    /// may still wait.
    pub async fn draining_subscriptions(&self, rows_max: i64) -> Result<Vec<Draining>, StoreError> {
        bounded(async {
            Ok(sqlx::query_as(
                "select subscription_id, deleted_at is not null as is_deleted from subscription
                 where drains_since is not null
                 order by drains_since limit $1",
            )
            .bind(rows_max)
            .fetch_all(&self.pool)
            .await?)
        })
        .await
    }

    /// Notes that nothing waits any more for a subscription that was deleted or disabled more than an
    /// hour ago: by then whoever had a delivery of it claimed, or routed one by what it knew before,
    /// is done.
    pub async fn mark_drained(&self, subscription: SubscriptionId) -> Result<(), StoreError> {
        bounded(async {
            sqlx::query(concat!(
                "update subscription set drains_since = null
                 where subscription_id = $1 and drains_since < ",
                settled_now!("$2"),
                " - interval '1 hour'",
            ))
            .bind(subscription.uuid())
            .bind(self.times().settled)
            .execute(&self.pool)
            .await?;
            Ok(())
        })
        .await
    }
}

// By the lane, whose claimable rows are one range of the queue's index by due time.
const CANCEL_WAITING: &str = concat!(
    "with gone as (
        select subscription_id from subscription
        where subscription_id = $1 and deleted_at is not null
    ),
    waiting as (
        select q.ctid as place
        from gone cross join lateral (
            select ctid from delivery_queue
            where lane_id = gone.subscription_id and owner is null
            order by lane_id, due_at limit $2
            for update skip locked
        ) as q
    ),
    parked as (
        select p.ctid as place
        from gone cross join lateral (
            select ctid from delivery_parked where subscription_id = gone.subscription_id
            order by delivery_id limit $2
            for update skip locked
        ) as p
    ),
    left_queue as (
        delete from delivery_queue q using waiting
        where q.ctid = waiting.place and q.owner is null
        ",
    from_queue!(),
    "
    ),
    left_parked as (
        delete from delivery_parked p using parked
        where p.ctid = parked.place
        ",
    from_parked!(),
    "
    ),
    taken as (select * from left_queue union all select * from left_parked),
    ",
    taken_end!("cancelled", "cancelled", "$3"),
    " select count(*) from taken"
);

const CANCEL_PARKED: &str = concat!(
    "with parked as (
        select ctid as place from delivery_parked where subscription_id = $1
        order by delivery_id limit $2
        for update skip locked
    ),
    taken as (
        delete from delivery_parked p using parked
        where p.ctid = parked.place
        ",
    from_parked!(),
    "
    ),
    ",
    taken_end!("cancelled", "cancelled", "$3"),
    " select count(*) from taken"
);
