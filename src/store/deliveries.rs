//! A delivery, wherever it is: in the queue, parked, or in the history. [`super::delivery_pages`]
//! lists them.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::{Postgres, QueryBuilder};
use uuid::Uuid;

use super::{
    Store, StoreError, bounded,
    history::{AttemptRow, DELIVERIES_SHOWN_MAX},
};
use crate::domain::{ApplicationId, DeliveryId, DeliveryState, EventId, SubscriptionId};

/// A delivery, whether it has ended or not.
#[derive(Debug, sqlx::FromRow)]
pub struct DeliveryRow {
    delivery_id: Uuid,
    event_id: Uuid,
    subscription_id: Option<Uuid>,
    /// Its event's type, if told.
    pub event_type: Option<String>,
    /// Where it goes.
    pub target_url: String,
    /// A state's name.
    pub state: String,
    /// Why it is not delivered, once it has ended.
    pub reason: Option<String>,
    /// Attempts recorded.
    pub attempt_count: i32,
    /// What the latest attempt was answered with.
    pub last_status: Option<i16>,
    /// How the latest attempt failed: an error class.
    pub last_error: Option<String>,
    /// When it is due, while it is pending.
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
    /// It has ended, and is sent again: by hand, or by a replay.
    pub is_sent_again: bool,
    /// The name of the key of the settings that signs, where all is shown and there is one.
    #[sqlx(default)]
    pub signing_key: Option<String>,
}

impl DeliveryRow {
    /// Its id.
    pub fn delivery_id(&self) -> DeliveryId {
        DeliveryId::from_uuid(self.delivery_id)
    }

    /// Its event.
    pub fn event_id(&self) -> EventId {
        EventId::from_uuid(self.event_id)
    }

    /// The subscription that asked for it; `None` for an explicit target.
    pub fn subscription_id(&self) -> Option<SubscriptionId> {
        self.subscription_id.map(SubscriptionId::from_uuid)
    }
}

/// A delivery with its attempts.
#[derive(Debug)]
pub struct DeliveryDetail {
    /// The delivery.
    pub delivery: DeliveryRow,
    /// Its latest attempts, in the order of time.
    pub attempts: Vec<AttemptRow>,
}

/// The tables that a delivery can be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Queue,
    Parked,
    History,
}

impl Source {
    pub(super) const ALL: [Self; 3] = [Self::Queue, Self::Parked, Self::History];

    /// Whether a delivery in this state can be in it; in any state: in each of them.
    pub(super) fn has(self, state: Option<DeliveryState>) -> bool {
        match state {
            None => true,
            Some(DeliveryState::Pending | DeliveryState::InFlight) => self == Self::Queue,
            Some(DeliveryState::Parked) => self == Self::Parked,
            Some(DeliveryState::Delivered | DeliveryState::Dead | DeliveryState::Cancelled) => {
                self == Self::History
            }
        }
    }

    /// Its rows as [`DeliveryRow`]s, the table being called `d`.
    pub(super) fn select(self) -> &'static str {
        match self {
            Self::Queue => QUEUE,
            Self::Parked => PARKED,
            Self::History => HISTORY,
        }
    }
}

macro_rules! latest_attempt {
    ($column:literal) => {
        concat!(
            "case when d.prior_count + d.attempt_count > 0 then (
                 select ",
            $column,
            " from attempt a where a.delivery_id = d.delivery_id
                 order by claim_number desc limit 1
             ) end"
        )
    };
}

macro_rules! event_type {
    () => {
        "(select type from event e
          where e.application_id = d.application_id and e.event_id = d.event_id)"
    };
}
pub(super) use event_type;

// What was sent again after its end is a row of the history.
const QUEUE: &str = concat!(
    "select d.delivery_id, d.event_id, d.subscription_id, ",
    event_type!(),
    " as event_type,
            d.target_url, case when d.owner is null then 'pending' else 'in_flight' end as state,
            null::text as reason, d.prior_count + d.attempt_count as attempt_count, ",
    latest_attempt!("response_status"),
    " as last_status, ",
    latest_attempt!("error_class"),
    " as last_error,
            case when d.owner is null then d.due_at end as next_attempt_at, d.created_at,
            null::timestamptz as ended_at, false as is_sent_again
     from delivery_queue d where coalesce(d.run, 'retry') = 'retry'"
);
const PARKED: &str = concat!(
    "select d.delivery_id, d.event_id, d.subscription_id, ",
    event_type!(),
    " as event_type,
            d.target_url, 'parked' as state, null::text as reason,
            d.prior_count + d.attempt_count as attempt_count, ",
    latest_attempt!("response_status"),
    " as last_status, ",
    latest_attempt!("error_class"),
    " as last_error,
            null::timestamptz as next_attempt_at, d.created_at,
            null::timestamptz as ended_at, false as is_sent_again
     from delivery_parked d where true"
);
const HISTORY: &str =
    "select d.delivery_id, d.event_id, d.subscription_id, d.event_type, d.target_url, d.state,
            d.reason, d.attempt_count, d.last_status, d.reason as last_error,
            null::timestamptz as next_attempt_at, d.created_at, d.ended_at,
            exists (
                select from delivery_queue q
                where q.delivery_id = d.delivery_id and q.run in ('once', 'replay')
            ) as is_sent_again
     from delivery d where true";

impl Store {
    /// One delivery of an application with its attempts.
    pub async fn delivery_detail(
        &self,
        application: ApplicationId,
        id: DeliveryId,
    ) -> Result<Option<DeliveryDetail>, StoreError> {
        bounded(async {
            let mut query = in_any_table(application, (id, id), |_| {});
            let delivery = query.build_query_as().fetch_optional(&self.pool).await?;
            let Some(mut delivery) = delivery else { return Ok(None) };
            self.tell_signing_keys(std::slice::from_mut(&mut delivery)).await?;
            let attempts = self.attempts_between(id, id).await?;
            Ok(Some(DeliveryDetail { delivery, attempts }))
        })
        .await
    }

    /// Tells which keys of the settings sign these. Lists do without: only explicit targets have any.
    pub(super) async fn tell_signing_keys(
        &self,
        deliveries: &mut [DeliveryRow],
    ) -> Result<(), StoreError> {
        let explicit = deliveries.iter().filter(|row| row.subscription_id.is_none());
        let explicit: Vec<Uuid> = explicit.map(|row| row.delivery_id).collect();
        if explicit.is_empty() {
            return Ok(());
        }
        let named = self.signing_keys_of(&explicit).await?;
        let mut named: HashMap<Uuid, String> = named.into_iter().collect();
        for row in deliveries {
            row.signing_key = named.remove(&row.delivery_id);
        }
        Ok(())
    }

    /// Deliveries of an event, at most [`DELIVERIES_SHOWN_MAX`], oldest first.
    pub async fn deliveries_of(
        &self,
        application: ApplicationId,
        event: EventId,
        which: Which<'_>,
    ) -> Result<Vec<DeliveryRow>, StoreError> {
        bounded(async {
            let mut query = in_any_table(application, event.delivery_range(), |query| {
                query.push(" and d.event_id = ").push_bind(event.uuid());
                match which {
                    Which::All => {}
                    Which::ToTargets => drop(query.push(" and d.subscription_id is null")),
                    Which::ToSubscriptions(ids) => {
                        let ids: Vec<Uuid> = ids.iter().map(|id| id.uuid()).collect();
                        query.push(" and d.subscription_id = any(").push_bind(ids).push(")");
                    }
                }
            });
            query.push(" order by delivery_id limit ").push_bind(DELIVERIES_SHOWN_MAX);
            Ok(query.build_query_as().fetch_all(&self.pool).await?)
        })
        .await
    }
}

/// Which deliveries of an event.
#[derive(Debug, Clone, Copy)]
pub enum Which<'a> {
    /// All of them.
    All,
    /// Those to explicit targets.
    ToTargets,
    /// Those to these subscriptions.
    ToSubscriptions(&'a [SubscriptionId]),
}

/// The deliveries of a range of ids that keep to further conditions, in whichever table they are.
fn in_any_table(
    application: ApplicationId,
    (low, high): (DeliveryId, DeliveryId),
    push_more: impl Fn(&mut QueryBuilder<Postgres>),
) -> QueryBuilder<Postgres> {
    let mut query = QueryBuilder::<Postgres>::new("");
    for (index, source) in Source::ALL.into_iter().enumerate() {
        query.push(if index > 0 { " union all " } else { "" }).push(source.select());
        query.push(" and d.application_id = ").push_bind(application.uuid());
        query.push(" and d.delivery_id between ").push_bind(low.uuid());
        query.push(" and ").push_bind(high.uuid());
        push_more(&mut query);
    }
    query
}
