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

    /// Its rows as [`DeliveryRow`]s, the table being called `d`; all of them are within a range.
    pub(super) fn push_select(self, query: &mut QueryBuilder<Postgres>, range: IdRange) {
        query.push(
            "select d.delivery_id, d.event_id, d.subscription_id, d.target_url, d.created_at, ",
        );
        let (state, next_attempt_at) = match self {
            Self::Queue => (
                "case when d.owner is null then 'pending' else 'in_flight' end",
                "case when d.owner is null then d.due_at end",
            ),
            Self::Parked => ("'parked'", "null::timestamptz"),
            Self::History => {
                query.push(ENDED);
                range.push(query, "d.delivery_id");
                return;
            }
        };
        push_event_type(query, range);
        query.push(" as event_type, ").push(state).push(" as state, null::text as reason, ");
        query.push("d.prior_count + d.attempt_count as attempt_count, ");
        for (column, name) in [("response_status", "last_status"), ("error_class", "last_error")] {
            query.push("case when d.prior_count + d.attempt_count > 0 then (select ").push(column);
            query.push(" from attempt a where a.delivery_id = d.delivery_id");
            range.push(query, "a.delivery_id");
            query.push(" order by claim_number desc limit 1) end as ").push(name).push(", ");
        }
        query.push(next_attempt_at).push(
            " as next_attempt_at, null::timestamptz as ended_at, false as is_sent_again from ",
        );
        query.push(match self {
            // What was sent again after its end is a row of the history.
            Self::Queue => "delivery_queue d where coalesce(d.run, 'retry') = 'retry'",
            _ => "delivery_parked d where true",
        });
    }
}

/// The type of the event of a delivery of the queue, or that is parked.
pub(super) fn push_event_type(query: &mut QueryBuilder<Postgres>, range: IdRange) {
    query.push(
        "(select type from event e
          where e.application_id = d.application_id and e.event_id = d.event_id",
    );
    range.of_events().push(query, "e.event_id");
    query.push(")");
}

/// Between which ids, both inclusive, all lies that a statement is about.
///
/// It is said of each partitioned table, also where it follows from what is said of another: the
/// planner leaves out days by what it knows beforehand only. With a month of them, making the plan
/// took 15 ms where it takes 2.
#[derive(Debug, Clone, Copy)]
pub(super) struct IdRange {
    pub low: Uuid,
    pub high: Uuid,
}

impl IdRange {
    pub const ALL: Self = Self { low: Uuid::nil(), high: Uuid::max() };

    /// What lies in this one and in another.
    pub fn within(self, low: Uuid, high: Uuid) -> Self {
        Self { low: self.low.max(low), high: self.high.min(high) }
    }

    /// That of the events of these deliveries.
    pub fn of_events(self) -> Self {
        let (low, _) = DeliveryId::from_uuid(self.low).event_range();
        let (_, high) = DeliveryId::from_uuid(self.high).event_range();
        Self { low: low.uuid(), high: high.uuid() }
    }

    /// That of the deliveries of these events.
    pub fn of_deliveries(self) -> Self {
        let (low, _) = EventId::from_uuid(self.low).delivery_range();
        let (_, high) = EventId::from_uuid(self.high).delivery_range();
        Self { low: low.uuid(), high: high.uuid() }
    }

    /// The condition on a column, beside others.
    pub fn push(self, query: &mut QueryBuilder<Postgres>, column: &str) {
        query.push(" and ").push(column).push(" between ").push_bind(self.low);
        query.push(" and ").push_bind(self.high);
    }
}

/// Events, and between which ids the deliveries of each lie, as columns.
pub(super) struct Ranges {
    pub events: Vec<Uuid>,
    pub low: Vec<Uuid>,
    pub high: Vec<Uuid>,
}

impl Ranges {
    pub fn of(events: &[EventId]) -> Self {
        let (low, high) =
            events.iter().map(|id| id.delivery_range()).map(|(l, h)| (l.uuid(), h.uuid())).unzip();
        Self { events: events.iter().map(|id| id.uuid()).collect(), low, high }
    }
}

/// The rest of the columns, and the table.
const ENDED: &str = "d.event_type, d.state, d.reason, d.attempt_count, d.last_status,
    d.reason as last_error, null::timestamptz as next_attempt_at, d.ended_at,
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
            let delivery =
                query.build_query_as().persistent(false).fetch_optional(&self.pool).await?;
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
            Ok(query.build_query_as().persistent(false).fetch_all(&self.pool).await?)
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
    let range = IdRange { low: low.uuid(), high: high.uuid() };
    let mut query = QueryBuilder::<Postgres>::new("");
    for (index, source) in Source::ALL.into_iter().enumerate() {
        query.push(if index > 0 { " union all " } else { "" });
        source.push_select(&mut query, range);
        query.push(" and d.application_id = ").push_bind(application.uuid());
        if source != Source::History {
            range.push(&mut query, "d.delivery_id");
        }
        push_more(&mut query);
    }
    query
}
