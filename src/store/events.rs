//! Accepting: a batch of events, their deliveries and their idempotency keys in one transaction.

use std::collections::HashSet;

use uuid::Uuid;

use super::{
    PLANS, Store, StoreError,
    dispatchers::DispatcherId,
    idempotency::{Reservation, Standing, reserve},
    prompt,
    session::Session,
    targets::{NewTargetSettings, insert_targets},
    time::{Times, ordered_now},
};
use crate::domain::{
    DeliveryId, EventId, EventType, IdempotencyKey, LaneId, Subject, Submission, SubscriptionId,
    TargetUrl,
    event::{Metadata, Route},
    upstream::{TraceParent, Upstream},
};

/// An event that has been routed and is about to be stored.
#[derive(Debug)]
pub struct NewEvent<'a> {
    /// Its id, made by the caller: a batch of unclear outcome is looked up by it.
    pub event_id: EventId,
    /// What was submitted.
    pub submission: &'a Submission,
    /// The version that it was routed at.
    pub routing_version: i64,
    /// Where it goes.
    pub deliveries: Vec<NewDelivery>,
}

/// A delivery of a [`NewEvent`].
#[derive(Debug)]
pub struct NewDelivery {
    /// Its id.
    pub delivery_id: DeliveryId,
    /// What it shares its limits with.
    pub lane: LaneId,
    /// The subscription that asked for it; `None` for an explicit target.
    pub subscription: Option<SubscriptionId>,
    /// Where it goes.
    pub target: TargetUrl,
    /// The process that will send it at once; `None` leaves it to whoever claims it.
    pub owner: Option<DispatcherId>,
    /// It waits for its subscription, which is disabled.
    pub is_parked: bool,
    /// How an explicit target is called, if the request says more than its URL.
    pub settings: Option<NewTargetSettings>,
}

impl NewDelivery {
    /// How many bytes of this event's payload and of what its caller said about the target it holds
    /// in memory.
    pub fn held_bytes(&self, submission: &Submission) -> usize {
        let settings = self.settings.as_ref().map_or(0, NewTargetSettings::bytes);
        submission.payload.bytes().len() + settings
    }
}

/// What became of one event of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It is stored, with its deliveries.
    New,
    /// Its key was used for the same submission before: that event stands for it.
    Repeat(EventId),
    /// Its key was used for another submission, with this fingerprint: that event stands for it.
    KeyReused {
        /// The other submission's fingerprint.
        fingerprint: [u8; 32],
        /// The other submission's event.
        event_id: EventId,
    },
}

/// What became of a batch.
#[derive(Debug, PartialEq, Eq)]
pub enum StoredBatch {
    /// Committed: one entry an event, in order.
    Committed(Vec<Stored>),
    /// Nothing was stored: an application was changed since its events were routed.
    StaleRouting,
}

impl Store {
    /// Stores a batch: all of it or nothing. No two events of a batch may carry the same key.
    ///
    /// Without keys, and without targets that have settings of their own, it is one statement, and so
    /// one round trip and one commit.
    pub async fn store_events(&self, events: &[NewEvent<'_>]) -> Result<StoredBatch, StoreError> {
        let times = self.times();
        prompt(&self.pace, async {
            let mut connection = self.pool.acquire().await?;
            if events.iter().all(is_one_statement) {
                let all: Vec<_> = events.iter().collect();
                return Ok(if insert_events(&mut connection, &all, times).await? {
                    StoredBatch::Committed(vec![Stored::New; events.len()])
                } else {
                    StoredBatch::StaleRouting
                });
            }
            let mut transaction = connection.begin().await?;
            let stored = reserve_keys(&mut transaction, events, times).await?;
            let new: Vec<_> = events
                .iter()
                .zip(&stored)
                .filter(|(_, stored)| **stored == Stored::New)
                .map(|(event, _)| event)
                .collect();
            if !new.is_empty() && !insert_events(&mut transaction, &new, times).await? {
                return Ok(StoredBatch::StaleRouting);
            }
            transaction.commit().await?;
            Ok(StoredBatch::Committed(stored))
        })
        .await
    }

    /// Opens the connection and has Postgres plan the statement that stores events, so that the first
    /// events after a start do not wait for that. Changes nothing.
    pub async fn prepare_to_store(&self) -> Result<(), StoreError> {
        for _ in 0..PLANS {
            Box::pin(self.store_events(&[])).await?;
        }
        Ok(())
    }

    /// Which of these events are stored: asked after a commit whose answer was lost.
    pub async fn existing_events(&self, ids: &[EventId]) -> Result<HashSet<EventId>, StoreError> {
        prompt(&self.pace, async {
            let ids: Vec<Uuid> = ids.iter().map(|id| id.uuid()).collect();
            // Every event has a payload, stored by the same statement, and that has the simpler key.
            let found: Vec<Uuid> =
                sqlx::query_scalar("select event_id from event_payload where event_id = any($1)")
                    .bind(ids)
                    .fetch_all(&self.pool)
                    .await?;
            Ok(found.into_iter().map(EventId::from_uuid).collect())
        })
        .await
    }
}

/// Whether the targets of an event have settings of their own.
fn has_targets(event: &NewEvent<'_>) -> bool {
    matches!(event.submission.route, Route::Targets(_))
}

/// Whether an event is stored by the one statement that stores all of a batch.
fn is_one_statement(event: &NewEvent<'_>) -> bool {
    event.submission.idempotency_key.is_none() && !has_targets(event)
}

/// Takes the keys of a batch, and tells which events are new.
async fn reserve_keys(
    connection: &mut Session,
    events: &[NewEvent<'_>],
    times: Times,
) -> Result<Vec<Stored>, StoreError> {
    let mut stored = vec![Stored::New; events.len()];
    let (mut indexes, mut wanted) = (Vec::new(), Vec::new());
    for (index, event) in events.iter().enumerate() {
        if let Some(key) = &event.submission.idempotency_key {
            indexes.push(index);
            wanted.push(Reservation {
                application_id: event.submission.application.uuid(),
                key: key.as_str(),
                fingerprint: event.submission.fingerprint(),
                result_id: event.event_id.uuid(),
            });
        }
    }
    if wanted.is_empty() {
        return Ok(stored);
    }
    for (index, standing) in indexes.into_iter().zip(reserve(connection, &wanted, times).await?) {
        stored[index] = match standing {
            Standing::New => Stored::New,
            Standing::Repeat(id) => Stored::Repeat(EventId::from_uuid(id)),
            Standing::Reused { fingerprint, result_id } => {
                Stored::KeyReused { fingerprint, event_id: EventId::from_uuid(result_id) }
            }
        };
    }
    Ok(stored)
}

/// Inserts events, payloads and deliveries in one statement; `false` if an application is not at
/// the version that its events were routed at, and then nothing was inserted. The comparison reads
/// a plain snapshot: a change that commits later counts from the next event on.
pub(super) async fn insert_events(
    connection: &mut Session,
    events: &[&NewEvent<'_>],
    times: Times,
) -> Result<bool, StoreError> {
    let mut versions: Vec<(Uuid, i64)> = events
        .iter()
        .map(|event| (event.submission.application.uuid(), event.routing_version))
        .collect();
    versions.sort_unstable();
    versions.dedup();
    let (version_applications, versions): (Vec<Uuid>, Vec<i64>) = versions.into_iter().unzip();

    let column = EventColumns::of(events);
    let delivery = DeliveryColumns::of(events);
    let is_current: bool = sqlx::query_scalar(INSERT_EVENTS)
        .bind(version_applications)
        .bind(versions)
        .bind(column.event_id)
        .bind(column.application_id)
        .bind(column.event_type)
        .bind(column.subject)
        .bind(column.metadata)
        .bind(column.routing_version)
        .bind(column.delivery_count)
        .bind(column.payload)
        .bind(delivery.delivery_id)
        .bind(delivery.event_id)
        .bind(delivery.application_id)
        .bind(delivery.lane_id)
        .bind(delivery.subscription_id)
        .bind(delivery.target_url)
        .bind(delivery.payload_bytes)
        .bind(delivery.owner)
        .bind(delivery.is_parked)
        .bind(column.route)
        .bind(column.idempotency_key)
        .bind(column.hops)
        .bind(column.traceparent)
        .bind(times.expected)
        .fetch_one(&mut *connection)
        .await?;
    if is_current && events.iter().any(|event| has_targets(event)) {
        insert_targets(connection, events).await?;
    }
    Ok(is_current)
}

const INSERT_EVENTS: &str = concat!(
    "with clock as materialized (select ",
    ordered_now!("$24"),
    " as now),
    stale as materialized (
        select 1
        from unnest($1::uuid[], $2::bigint[]) as routed(application_id, version)
        left join application using (application_id)
        where application.routing_version is distinct from routed.version
        limit 1
    ),
    stored_event as (
        insert into event (event_id, application_id, type, subject, metadata, routing_version,
                           delivery_count, route, idempotency_key, hops, traceparent, created_at)
        select e.*, (select now from clock)
        from unnest($3::uuid[], $4::uuid[], $5::text[], $6::text[], $7::text[], $8::bigint[],
                    $9::int[], $20::text[], $21::text[], $22::smallint[], $23::text[]) as e
        where not exists (select from stale)
    ),
    stored_payload as (
        insert into event_payload (event_id, payload)
        select * from unnest($3::uuid[], $10::bytea[])
        where not exists (select from stale)
    ),
    stored_delivery as (
        insert into delivery_queue (delivery_id, event_id, application_id, lane_id, subscription_id,
                                    target_url, payload_bytes, owner, claim_number, created_at,
                                    due_at)
        select delivery_id, event_id, application_id, lane_id, subscription_id, target_url,
               payload_bytes, owner, case when d.owner is null then 0 else 1 end,
               (select now from clock), (select now from clock)
        from unnest($11::uuid[], $12::uuid[], $13::uuid[], $14::uuid[], $15::uuid[], $16::text[],
                    $17::int[], $18::int[], $19::boolean[])
             as d(delivery_id, event_id, application_id, lane_id, subscription_id, target_url,
                  payload_bytes, owner, is_parked)
        where not is_parked and not exists (select from stale)
    ),
    parked_delivery as (
        insert into delivery_parked (delivery_id, event_id, application_id, subscription_id,
                                     target_url, payload_bytes, created_at, due_at)
        select delivery_id, event_id, application_id, subscription_id, target_url, payload_bytes,
               (select now from clock), (select now from clock)
        from unnest($11::uuid[], $12::uuid[], $13::uuid[], $15::uuid[], $16::text[], $17::int[],
                    $19::boolean[])
             as d(delivery_id, event_id, application_id, subscription_id, target_url,
                  payload_bytes, is_parked)
        where is_parked and not exists (select from stale)
    )
    select not exists (select from stale)"
);

#[derive(Default)]
struct EventColumns<'a> {
    event_id: Vec<Uuid>,
    application_id: Vec<Uuid>,
    event_type: Vec<Option<&'a str>>,
    subject: Vec<Option<&'a str>>,
    metadata: Vec<Option<&'a str>>,
    routing_version: Vec<i64>,
    delivery_count: Vec<i32>,
    route: Vec<Option<&'static str>>,
    idempotency_key: Vec<Option<&'a str>>,
    hops: Vec<Option<i16>>,
    traceparent: Vec<Option<&'a str>>,
    payload: Vec<&'a [u8]>,
}

impl<'a> EventColumns<'a> {
    fn of(events: &[&'a NewEvent<'a>]) -> Self {
        let mut columns = Self::default();
        for event in events {
            let submission = event.submission;
            columns.event_id.push(event.event_id.uuid());
            columns.application_id.push(submission.application.uuid());
            columns.event_type.push(submission.event_type.as_ref().map(EventType::as_str));
            columns.subject.push(submission.subject.as_ref().map(Subject::as_str));
            columns.metadata.push(submission.metadata.as_ref().map(Metadata::as_str));
            columns.routing_version.push(event.routing_version);
            columns.delivery_count.push(as_int(event.deliveries.len()));
            columns.route.push(submission.route.as_str());
            let key = submission.idempotency_key.as_ref().map(IdempotencyKey::as_str);
            columns.idempotency_key.push(key);
            let Upstream { hops, traceparent } = &submission.upstream;
            columns.hops.push((*hops > 0).then_some(i16::from(*hops)));
            columns.traceparent.push(traceparent.as_ref().map(TraceParent::as_str));
            columns.payload.push(submission.payload.bytes());
        }
        columns
    }
}

#[derive(Default)]
struct DeliveryColumns<'a> {
    delivery_id: Vec<Uuid>,
    event_id: Vec<Uuid>,
    application_id: Vec<Uuid>,
    lane_id: Vec<Uuid>,
    subscription_id: Vec<Option<Uuid>>,
    target_url: Vec<&'a str>,
    payload_bytes: Vec<i32>,
    owner: Vec<Option<DispatcherId>>,
    is_parked: Vec<bool>,
}

impl<'a> DeliveryColumns<'a> {
    fn of(events: &[&'a NewEvent<'a>]) -> Self {
        let mut columns = Self::default();
        for event in events {
            for delivery in &event.deliveries {
                columns.delivery_id.push(delivery.delivery_id.uuid());
                columns.event_id.push(event.event_id.uuid());
                columns.application_id.push(event.submission.application.uuid());
                columns.lane_id.push(delivery.lane.uuid());
                let subscription_id = delivery.subscription.map(SubscriptionId::uuid);
                columns.subscription_id.push(subscription_id);
                columns.target_url.push(delivery.target.as_str());
                columns.payload_bytes.push(as_int(event.submission.payload.bytes().len()));
                columns.owner.push(delivery.owner);
                columns.is_parked.push(delivery.is_parked);
            }
        }
        columns
    }
}

/// Bodies and batches are bounded far below 2 GiB.
fn as_int(count: usize) -> i32 {
    i32::try_from(count).expect("bounded far below i32::MAX")
}
