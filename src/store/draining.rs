//! Deleted subscriptions: what waits for them is cancelled, in portions.

use uuid::Uuid;

use super::{Store, StoreError, bounded};
use crate::domain::SubscriptionId;

impl Store {
    /// Ends up to `rows_max` deliveries that wait for a deleted subscription as `cancelled`; tells
    /// how many. What is claimed is left to whoever claimed it.
    pub async fn cancel_waiting(
        &self,
        subscription: SubscriptionId,
        rows_max: i64,
    ) -> Result<i64, StoreError> {
        bounded(async {
            Ok(sqlx::query_scalar(CANCEL_WAITING)
                .bind(subscription.uuid())
                .bind(rows_max)
                .fetch_one(&self.pool)
                .await?)
        })
        .await
    }

    /// Lists up to `rows_max` deleted subscriptions for which something may still wait.
    pub async fn undrained_subscriptions(
        &self,
        rows_max: i64,
    ) -> Result<Vec<SubscriptionId>, StoreError> {
        bounded(async {
            let ids: Vec<Uuid> = sqlx::query_scalar(
                "select subscription_id from subscription
                 where deleted_at is not null and drained_at is null
                 order by deleted_at limit $1",
            )
            .bind(rows_max)
            .fetch_all(&self.pool)
            .await?;
            Ok(ids.into_iter().map(SubscriptionId::from_uuid).collect())
        })
        .await
    }

    /// Notes that nothing waits any more for a subscription that was deleted more than an hour ago:
    /// by then whoever had a delivery of it claimed, or routed one by what it knew before, is done.
    pub async fn mark_drained(&self, subscription: SubscriptionId) -> Result<(), StoreError> {
        bounded(async {
            sqlx::query(
                "update subscription set drained_at = now()
                 where subscription_id = $1 and deleted_at < now() - interval '1 hour'",
            )
            .bind(subscription.uuid())
            .execute(&self.pool)
            .await?;
            Ok(())
        })
        .await
    }
}

// By the lane, whose claimable rows are one range of the queue's index by due time.
const CANCEL_WAITING: &str = "
    with gone as (
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
    ended as (
        delete from delivery_queue q using waiting
        where q.ctid = waiting.place and q.owner is null
        returning q.*
    ),
    kept as (
        insert into delivery (delivery_id, event_id, application_id, lane_id, subscription_id,
                              event_type, target_url, state, reason, attempt_count, created_at)
        select ended.delivery_id, ended.event_id, ended.application_id, ended.lane_id,
               ended.subscription_id,
               (
                   select type from event e
                   where e.application_id = ended.application_id and e.event_id = ended.event_id
               ),
               ended.target_url, 'cancelled', 'cancelled', ended.attempt_count, ended.created_at
        from ended
    )
    select count(*) from ended";
