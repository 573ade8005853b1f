//! What became of an event at each of its targets, in short: what a dispatch is answered with.

use uuid::Uuid;

use super::{Store, StoreError, bounded, deliveries::Ranges};
use crate::domain::{ApplicationId, DeliveryId, DeliveryState, ErrorClass, EventId};

/// What became of an event at a target, in one word.
pub const PENDING: &str = "pending";
/// As [`PENDING`].
pub const DELIVERED: &str = "delivered";
/// As [`PENDING`].
pub const FAILED: &str = "failed";

/// What became of an event at one target.
#[derive(Debug, sqlx::FromRow)]
pub struct TargetResult {
    delivery_id: Uuid,
    /// What was called, or will be.
    pub url: String,
    state: String,
    /// Why it was not delivered, once it has ended.
    pub reason: Option<String>,
    /// Of the attempt that it was delivered by, or else of the latest one.
    pub response_status: Option<i16>,
    /// How long that took, in milliseconds.
    pub duration_ms: Option<i32>,
    /// How it failed, if it did: an error class.
    pub error_class: Option<String>,
    /// The same for people.
    pub error_message: Option<String>,
}

impl TargetResult {
    /// Its delivery.
    pub fn delivery_id(&self) -> DeliveryId {
        DeliveryId::from_uuid(self.delivery_id)
    }

    /// Where its delivery stands.
    pub fn state(&self) -> DeliveryState {
        // The names are held by constraints, or stand in the query.
        DeliveryState::from_name(&self.state).unwrap_or(DeliveryState::Pending)
    }

    /// The same in one word: [`PENDING`], [`DELIVERED`] or [`FAILED`].
    pub fn status(&self) -> &'static str {
        match self.state() {
            DeliveryState::Pending | DeliveryState::InFlight | DeliveryState::Parked => PENDING,
            DeliveryState::Delivered => DELIVERED,
            DeliveryState::Dead | DeliveryState::Cancelled => FAILED,
        }
    }

    /// Why it is not delivered: an error class, and what there is to say of it.
    pub fn error(&self) -> Option<(&str, &str)> {
        // Why it ended, which need not be how its last attempt failed.
        let class = self.reason.as_deref().or(self.error_class.as_deref());
        let class = class.filter(|_| self.status() != DELIVERED)?;
        let is_of_attempt = self.error_class.as_deref() == Some(class);
        let message = self.error_message.as_deref().filter(|_| is_of_attempt);
        Some((class, message.unwrap_or_else(|| without_attempt(class))))
    }
}

/// What is said where no attempt says it.
fn without_attempt(class: &str) -> &'static str {
    match ErrorClass::from_name(class) {
        Some(ErrorClass::Interrupted) => "the service was stopped too often while it was sent",
        Some(ErrorClass::Expired) => {
            "it became older than DELIVERY_AGE_MAX before it could be sent"
        }
        Some(ErrorClass::Cancelled) => "it was cancelled, or its subscription was deleted",
        _ => "it could not be sent; the service's log says why",
    }
}

impl Store {
    /// What became of an event at its first `rows_max` targets, in their order.
    pub async fn target_results(
        &self,
        application: ApplicationId,
        event: EventId,
        rows_max: i64,
    ) -> Result<Vec<TargetResult>, StoreError> {
        let (low, high) = event.delivery_range();
        bounded(async {
            Ok(sqlx::query_as(TARGET_RESULTS)
                .bind(application.uuid())
                .bind(event.uuid())
                .bind(low.uuid())
                .bind(high.uuid())
                .bind(rows_max)
                .fetch_all(&self.pool)
                .await?)
        })
        .await
    }

    /// Which of these events have no delivery in the queue any more that can still change.
    pub async fn settled_events(&self, events: &[EventId]) -> Result<Vec<EventId>, StoreError> {
        let ranges = Ranges::of(events);
        bounded(async {
            let settled: Vec<Uuid> = sqlx::query_scalar(SETTLED_EVENTS)
                .bind(ranges.events)
                .bind(ranges.low)
                .bind(ranges.high)
                .fetch_all(&self.pool)
                .await?;
            Ok(settled.into_iter().map(EventId::from_uuid).collect())
        })
        .await
    }
}

/// The attempt by which a delivery `d` is told, whose count of them is `attempts`. A delivered one is told
/// by the attempt that it was delivered by, whatever was tried afterwards.
macro_rules! shown_attempt {
    () => {
        "left join lateral (
             select request_url, response_status, duration_ms, error_class, error_message
             from attempt a
             where d.attempts > 0 and a.delivery_id = d.delivery_id and not a.is_late
             order by d.state = 'delivered' and a.error_class is null desc, a.claim_number desc
             limit 1
         ) as shown on true"
    };
}
pub(super) use shown_attempt;

// What has ended and is sent again is what it was.
const TARGET_RESULTS: &str = concat!(
    "
    select d.delivery_id, coalesce(shown.request_url, d.target_url) as url, d.state, d.reason,
           shown.response_status, shown.duration_ms, shown.error_class, shown.error_message
    from (
        select delivery_id, target_url,
               case when owner is null then 'pending' else 'in_flight' end as state,
               null::text as reason, prior_count + attempt_count as attempts
        from delivery_queue
        where application_id = $1 and event_id = $2 and delivery_id between $3 and $4
          and coalesce(run, 'retry') = 'retry'
        union all
        select delivery_id, target_url, 'parked', null, prior_count + attempt_count
        from delivery_parked
        where application_id = $1 and event_id = $2 and delivery_id between $3 and $4
        union all
        select delivery_id, target_url, state, reason, attempt_count
        from delivery
        where application_id = $1 and event_id = $2 and delivery_id between $3 and $4
        order by delivery_id limit $5
    ) as d
    ",
    shown_attempt!(),
    "
    order by d.delivery_id"
);

// Each by its range of the key: the planner believes that the queue is empty.
const SETTLED_EVENTS: &str = "
    select given.event_id
    from unnest($1::uuid[], $2::uuid[], $3::uuid[]) as given(event_id, low, high)
    left join lateral (
        select true as is_open from delivery_queue q
        where q.delivery_id between given.low and given.high and q.event_id = given.event_id
          and coalesce(q.run, 'retry') = 'retry'
        limit 1
    ) as queued on true
    where queued.is_open is null";
