//! What a process owns, read page by page of the queue.

use std::ops::Range;

use uuid::Uuid;

use super::{Store, StoreError, bounded, dispatchers::DispatcherId};
use crate::domain::DeliveryId;

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

impl Store {
    /// How many pages the queue has now.
    pub async fn queue_pages(&self) -> Result<i64, StoreError> {
        bounded(async {
            Ok(sqlx::query_scalar(
                "select pg_relation_size('delivery_queue') / current_setting('block_size')::bigint",
            )
            .fetch_one(&self.pool)
            .await?)
        })
        .await
    }

    /// Lists what a process owns in some pages of the queue, to be compared with what it knows of. There
    /// is no index by owner, which every delivery would have to pay for: the pages are read. A row that
    /// is changed meanwhile may move to pages that were read before.
    pub async fn owned_rows(
        &self,
        owner: DispatcherId,
        pages: Range<i64>,
    ) -> Result<Vec<OwnedRow>, StoreError> {
        bounded(async {
            Ok(sqlx::query_as(
                "select delivery_id, claim_number from delivery_queue
                 where owner = $1 and ctid >= $2::text::tid and ctid < $3::text::tid",
            )
            .bind(owner)
            .bind(format!("({},0)", pages.start))
            .bind(format!("({},0)", pages.end))
            .fetch_all(&self.pool)
            .await?)
        })
        .await
    }
}
