//! What is known of a subscription beside its statistics: what waits for it, and what was changed.

use chrono::{DateTime, Utc};
use sqlx::FromRow;

use super::{Store, StoreError, bounded, subscriptions::SettingsRow};
use crate::domain::{ApplicationId, SubscriptionId};

/// How many deliveries are counted, of each kind.
pub const COUNTED_MAX: i64 = 10_000;

/// What waits for a subscription: at most [`COUNTED_MAX`] of each are counted.
#[derive(Debug, FromRow)]
pub struct Waiting {
    /// In the queue, and not being sent.
    pub queued: i64,
    /// Aside, until it is enabled.
    pub parked: i64,
}

/// A revision of a subscription.
#[derive(Debug, FromRow)]
pub struct RevisionRow {
    /// Its number.
    pub revision: i32,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// What it says.
    #[sqlx(flatten)]
    pub settings: SettingsRow,
}

impl Store {
    /// Counts what waits for a subscription of an application.
    pub async fn waiting(
        &self,
        application: ApplicationId,
        subscription: SubscriptionId,
    ) -> Result<Waiting, StoreError> {
        bounded(async {
            Ok(sqlx::query_as(
                "select (select count(*) from (
                             select 1 from delivery_queue
                             where lane_id = $1 and owner is null and application_id = $2
                             limit $3
                         ) as counted) as queued,
                        (select count(*) from (
                             select 1 from delivery_parked
                             where subscription_id = $1 and application_id = $2
                             limit $3
                         ) as counted) as parked",
            )
            .bind(subscription.uuid())
            .bind(application.uuid())
            .bind(COUNTED_MAX)
            .fetch_one(&self.pool)
            .await?)
        })
        .await
    }

    /// The latest revisions of a subscription of an application, newest first.
    pub async fn revisions(
        &self,
        application: ApplicationId,
        subscription: SubscriptionId,
        rows_max: i64,
    ) -> Result<Vec<RevisionRow>, StoreError> {
        bounded(async {
            Ok(sqlx::query_as(
                "select r.revision, r.created_at, r.target_url, r.method, r.event_types, r.filter,
                        r.is_active, r.disabled_at, r.disabled_because, r.disable_after_s,
                        r.timeout_ms, r.retry, r.payload_format, r.schema_version, r.signing,
                        r.signature_headers, r.sealed_headers, r.sealed_inbound_secret, r.inbound_type_header,
                        r.description, r.metadata, r.max_in_flight, r.rate_limit
                 from subscription_revision r join subscription s using (subscription_id)
                 where r.subscription_id = $1 and s.application_id = $2
                 order by r.revision desc limit $3",
            )
            .bind(subscription.uuid())
            .bind(application.uuid())
            .bind(rows_max)
            .fetch_all(&self.pool)
            .await?)
        })
        .await
    }
}
