//! Why an event went where it went: the subscriptions as they were when it was routed.

use chrono::{DateTime, Utc};
use sqlx::FromRow;
use uuid::Uuid;

use super::{Store, StoreError, bounded};
use crate::domain::{ApplicationId, EventId, SubscriptionId};

/// An event as it was routed.
#[derive(Debug, FromRow)]
pub struct RoutedEvent {
    /// Its type, if told.
    #[sqlx(rename = "type")]
    pub event_type: Option<String>,
    /// Whom it is about.
    pub subject: Option<String>,
    /// JSON text.
    pub metadata: Option<String>,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// The application's routing version that it was routed at.
    pub routing_version: i64,
    /// How many deliveries it got.
    pub delivery_count: i32,
    /// A name of `Route`; `None`: the subscriptions were asked.
    pub route: Option<String>,
    /// Its payload; `None` once that was dropped.
    pub payload: Option<Vec<u8>>,
}

/// A subscription as it was at a routing version.
#[derive(Debug, FromRow)]
pub struct PastSubscription {
    subscription_id: Uuid,
    /// Its owner's name for it.
    pub uid: Option<String>,
    /// The number of the revision that it was at.
    pub revision: i32,
    /// Where events went.
    pub target_url: String,
    /// Patterns.
    pub event_types: Vec<String>,
    /// JSON text.
    pub filter: Option<String>,
    /// Since when it was disabled.
    pub disabled_at: Option<DateTime<Utc>>,
    /// Why it was.
    pub disabled_because: Option<String>,
    /// When it had been deleted, if it had.
    pub deleted_at: Option<DateTime<Utc>>,
}

impl PastSubscription {
    /// Its id.
    pub fn id(&self) -> SubscriptionId {
        SubscriptionId::from_uuid(self.subscription_id)
    }
}

impl Store {
    /// An event of an application as it was routed.
    pub async fn routed_event(
        &self,
        application: ApplicationId,
        id: EventId,
    ) -> Result<Option<RoutedEvent>, StoreError> {
        bounded(async {
            Ok(sqlx::query_as(
                "select e.type, e.subject, e.metadata, e.created_at, e.routing_version, e.delivery_count,
                        e.route, p.payload
                 from event e left join event_payload p on p.event_id = $2
                 where e.application_id = $1 and e.event_id = $2",
            )
            .bind(application.uuid())
            .bind(id.uuid())
            .fetch_optional(&self.pool)
            .await?)
        })
        .await
    }

    /// Lists up to `rows_max` subscriptions of an application, oldest first, as they were at a
    /// routing version; those that were made later are not among them.
    pub async fn subscriptions_at(
        &self,
        application: ApplicationId,
        routing_version: i64,
        after: Option<SubscriptionId>,
        rows_max: i64,
    ) -> Result<Vec<PastSubscription>, StoreError> {
        bounded(async {
            // A deletion is a subscription's last change, and its routing version that of the row.
            Ok(sqlx::query_as(
                "select s.subscription_id, s.uid, r.revision, r.target_url, r.event_types,
                        r.filter, r.disabled_at, r.disabled_because,
                        case when s.routing_version <= $2 then s.deleted_at end as deleted_at
                 from subscription s
                 cross join lateral (
                     select * from subscription_revision r
                     where r.subscription_id = s.subscription_id and r.routing_version <= $2
                     order by r.revision desc limit 1
                 ) as r
                 where s.application_id = $1 and s.subscription_id > $3
                 order by s.subscription_id limit $4",
            )
            .bind(application.uuid())
            .bind(routing_version)
            .bind(after.map_or(Uuid::nil(), SubscriptionId::uuid))
            .bind(rows_max)
            .fetch_all(&self.pool)
            .await?)
        })
        .await
    }
}
