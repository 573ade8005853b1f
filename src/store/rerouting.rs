//! The steps of replays over events that reached nobody: read, routed by the caller, and stored in
//! one transaction with how far the replay got.

use sqlx::{Postgres, QueryBuilder};
use uuid::Uuid;

use super::{
    Store, StoreError, bounded,
    replay_steps::{COUNTED_MAX, DUE_IN_LANE_MAX, push_next_step_at, take},
    replays::{ReplayFilter, ReplayRow},
    session::Session,
    time::{Times, ordered_now},
};
use crate::domain::{ApplicationId, DeliveryId, EventId, SubscriptionId, TargetUrl};

/// How many events one step looks at.
const SCANNED_PER_STEP: i64 = 1_000;
/// How many of them one step routes, and how many payload bytes it reads for that; one that is larger
/// is read alone.
const ROUTED_PER_STEP: usize = 100;
const PAYLOAD_BYTES_PER_STEP: usize = 8 * 1024 * 1024;
/// How many events a dry run looks at.
const COUNT_SCANNED_MAX: i64 = 100_000;

/// An event that reached nobody.
#[derive(Debug, sqlx::FromRow)]
pub struct UnroutedRow {
    event_id: Uuid,
    /// Its type, if told.
    pub event_type: Option<String>,
    /// Whom it is about, if told.
    pub subject: Option<String>,
    /// JSON text, if told.
    pub metadata: Option<String>,
    /// Its payload, if that is still kept.
    pub payload: Option<Vec<u8>>,
}

impl UnroutedRow {
    /// The event.
    pub fn event_id(&self) -> EventId {
        EventId::from_uuid(self.event_id)
    }
}

/// What a step is about.
#[derive(Debug)]
pub struct Unrouted {
    /// The events, oldest first.
    pub events: Vec<UnroutedRow>,
    /// Up to where this is all.
    reached: Option<Uuid>,
    /// Whether there is nothing after it.
    is_last: bool,
}

impl Unrouted {
    /// The first `count` events alone.
    pub fn truncate(&mut self, count: usize) {
        if count < self.events.len() {
            self.events.truncate(count);
            self.reached = self.events.last().map(|event| event.event_id);
            self.is_last = false;
        }
    }
}

/// A delivery of an event that reached nobody.
#[derive(Debug)]
pub struct LateDelivery {
    /// Its id.
    pub delivery_id: DeliveryId,
    /// The event.
    pub event_id: EventId,
    /// The subscription that asks for it now.
    pub subscription: SubscriptionId,
    /// Where it goes.
    pub target: TargetUrl,
    /// How many bytes its event's payload has.
    pub payload_bytes: usize,
    /// It waits for its subscription, which is disabled.
    pub is_parked: bool,
}

/// What storing a step came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Rerouted {
    /// So many deliveries were made.
    Stored(u64),
    /// A lane is full: nothing was stored, and the replay waits.
    HeldUp,
    /// The application was changed since the events were routed: nothing was stored.
    Stale,
    /// The replay goes on elsewhere, or not at all: nothing was stored.
    Overtaken,
}

/// How many events reached nobody.
#[derive(Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct UnroutedCount {
    /// Those that a filter means.
    pub events: i64,
    /// Those of them whose payload is not kept any more.
    pub payload_gone: i64,
    /// Whether these are all.
    pub is_exact: bool,
}

#[derive(sqlx::FromRow)]
struct ScannedRow {
    event_id: Uuid,
    is_meant: bool,
    /// Null where the payload is not kept any more, and of what is not meant.
    bytes: Option<i32>,
}

/// What was inserted.
#[derive(Default, sqlx::FromRow)]
struct Made {
    is_stale: bool,
    events: i64,
    deliveries: i64,
}

impl Store {
    /// Reads the events that the next step of a replay routes.
    pub async fn unrouted_events(&self, replay: &ReplayRow) -> Result<Unrouted, StoreError> {
        bounded(async {
            let mut query = QueryBuilder::<Postgres>::new("with ");
            let range = (replay.event_cursor, replay.until_id);
            let filter = replay.filter();
            push_scanned(&mut query, replay.application(), range, SCANNED_PER_STEP);
            query.push(
                " select scanned.event_id, meant.is_meant, payload.bytes
                  from scanned cross join lateral (select delivery_count = 0 and created_at <= ",
            );
            query.push_bind(replay.created_at);
            push_filters(&mut query, &filter);
            query.push(" as is_meant offset 0) as meant left join lateral (").push(BYTES);
            query.push(" and meant.is_meant offset 0) as payload on true order by event_id");
            let scanned: Vec<ScannedRow> = query.build_query_as().fetch_all(&self.pool).await?;
            let (ids, reached) = portion(&scanned);
            let is_all = reached == scanned.last().map(|row| row.event_id);
            let is_short = scanned.len() < usize::try_from(SCANNED_PER_STEP).unwrap_or(usize::MAX);
            let events = sqlx::query_as(EVENTS)
                .bind(replay.application().uuid())
                .bind(ids)
                .fetch_all(&self.pool)
                .await?;
            Ok(Unrouted { events, reached, is_last: is_all && is_short })
        })
        .await
    }

    /// Stores the deliveries that were found for the events of a step, routed at `version`, and moves
    /// the replay past these events.
    pub async fn reroute(
        &self,
        replay: &ReplayRow,
        unrouted: &Unrouted,
        version: i64,
        deliveries: &[LateDelivery],
    ) -> Result<Rerouted, StoreError> {
        let times = self.times();
        bounded(async {
            let mut connection = self.pool.acquire().await?;
            let mut transaction = connection.begin().await?;
            let current = take(&mut transaction, replay.id(), times).await?;
            if current.is_none_or(|row| row.event_cursor != replay.event_cursor) {
                return Ok(Rerouted::Overtaken);
            }
            let queued = deliveries.iter().filter(|delivery| !delivery.is_parked);
            let mut lanes: Vec<Uuid> = queued.map(|one| one.subscription.lane().uuid()).collect();
            lanes.sort_unstable();
            lanes.dedup();
            let is_crowded: bool = sqlx::query_scalar(IS_CROWDED)
                .bind(lanes)
                .bind(DUE_IN_LANE_MAX)
                .bind(times.expected)
                .fetch_one(&mut *transaction)
                .await?;
            let made = if is_crowded {
                Some(Made::default())
            } else {
                store(&mut transaction, replay.application(), version, deliveries, times).await?
            };
            let Some(made) = made else {
                // At once: what is dropped is rolled back later, and holds the replay until then.
                transaction.rollback().await?;
                return Ok(Rerouted::Stale);
            };
            let advance = &mut advance(replay, unrouted, &made, is_crowded, times);
            advance.build().execute(&mut *transaction).await?;
            transaction.commit().await?;
            let stored = Rerouted::Stored(made.deliveries.unsigned_abs());
            Ok(if is_crowded { Rerouted::HeldUp } else { stored })
        })
        .await
    }

    /// Counts the events that a replay that is made now would route.
    pub async fn count_unrouted(
        &self,
        application: ApplicationId,
        filter: &ReplayFilter,
        unix_ms: u64,
    ) -> Result<UnroutedCount, StoreError> {
        bounded(async {
            let mut query = QueryBuilder::<Postgres>::new("with ");
            push_scanned(&mut query, application, filter.range(unix_ms), COUNT_SCANNED_MAX);
            query.push(", meant as (select * from scanned where delivery_count = 0");
            push_filters(&mut query, filter);
            query.push(" order by event_id limit ").push_bind(COUNTED_MAX).push(")");
            query.push(
                " select count(*) as events, count(*) filter (where bytes is null) as payload_gone,
                         count(*) < ",
            );
            query.push_bind(COUNTED_MAX).push(" and (select count(*) from scanned) < ");
            query.push_bind(COUNT_SCANNED_MAX).push(" as is_exact from meant as scanned");
            query.push(" left join lateral (").push(BYTES).push(" offset 0) as payload on true");
            Ok(query.build_query_as().fetch_one(&self.pool).await?)
        })
        .await
    }
}

/// The first events that are meant, within the bounds of a step; and the last one that was looked at.
fn portion(scanned: &[ScannedRow]) -> (Vec<Uuid>, Option<Uuid>) {
    let (mut ids, mut bytes, mut reached) = (Vec::new(), 0, None);
    for row in scanned {
        if row.is_meant {
            let more = row.bytes.map_or(0, |bytes| usize::try_from(bytes).unwrap_or_default());
            let is_full = ids.len() == ROUTED_PER_STEP || bytes + more > PAYLOAD_BYTES_PER_STEP;
            if is_full && !ids.is_empty() {
                break;
            }
            bytes += more;
            ids.push(row.event_id);
        }
        reached = Some(row.event_id);
    }
    (ids, reached)
}

fn push_scanned(
    query: &mut QueryBuilder<Postgres>,
    application: ApplicationId,
    (after, until): (Uuid, Uuid),
    rows_max: i64,
) {
    query.push(
        "scanned as materialized (
             select event_id, type, route, delivery_count, created_at from event
             where application_id = ",
    );
    query.push_bind(application.uuid()).push(" and event_id > ").push_bind(after);
    query.push(" and event_id < ").push_bind(until);
    query.push(" order by event_id limit ").push_bind(rows_max).push(")");
}

/// Of an event only its type and its id tell whether it is meant; one that was for a target, or for one
/// subscription, was never for those that ask for its type.
fn push_filters(query: &mut QueryBuilder<Postgres>, filter: &ReplayFilter) {
    query.push(" and route is null");
    if let Some(event_type) = &filter.event_type {
        query.push(" and coalesce(type = ").push_bind(event_type.clone()).push(", false)");
    }
    if let Some(event) = filter.event {
        query.push(" and event_id = ").push_bind(event.uuid());
    }
}

/// Inserts deliveries of those events that still have none, and tells how many; `None` if the
/// application is not at the version that they were routed at.
async fn store(
    connection: &mut Session,
    application: ApplicationId,
    version: i64,
    deliveries: &[LateDelivery],
    times: Times,
) -> Result<Option<Made>, StoreError> {
    let column =
        |value: fn(&LateDelivery) -> Uuid| -> Vec<Uuid> { deliveries.iter().map(value).collect() };
    let bytes = |one: &LateDelivery| i32::try_from(one.payload_bytes).unwrap_or(i32::MAX);
    let made: Made = sqlx::query_as(STORE)
        .bind(application.uuid())
        .bind(version)
        .bind(column(|one| one.delivery_id.uuid()))
        .bind(column(|one| one.event_id.uuid()))
        .bind(column(|one| one.subscription.uuid()))
        .bind(deliveries.iter().map(|one| one.target.as_str()).collect::<Vec<_>>())
        .bind(deliveries.iter().map(bytes).collect::<Vec<_>>())
        .bind(deliveries.iter().map(|one| one.is_parked).collect::<Vec<_>>())
        .bind(times.expected)
        .fetch_one(connection)
        .await?;
    Ok(Some(made).filter(|made| !made.is_stale))
}

fn advance(
    replay: &ReplayRow,
    unrouted: &Unrouted,
    made: &Made,
    is_crowded: bool,
    times: Times,
) -> QueryBuilder<Postgres> {
    let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let gone = unrouted.events.iter().filter(|event| event.payload.is_none()).count();
    let is_done = unrouted.is_last && !is_crowded;
    let mut query = QueryBuilder::<Postgres>::new("update replay r set is_held_up = ");
    query.push_bind(is_crowded);
    if !is_crowded {
        query.push(", event_cursor = ").push_bind(unrouted.reached.unwrap_or(replay.event_cursor));
        query.push(", unrouted_count = unrouted_count + ");
        query.push_bind(count(unrouted.events.len()));
        query.push(", unrouted_payload_gone_count = unrouted_payload_gone_count + ");
        query.push_bind(count(gone));
        query.push(", routed_count = routed_count + ").push_bind(made.events);
        query.push(", routed_delivery_count = routed_delivery_count + ");
        query.push_bind(made.deliveries);
    }
    query.push(", state = case when ").push_bind(is_done);
    query.push(" then 'completed' else state end, ended_at = case when ").push_bind(is_done);
    query.push(" then now() end, updated_at = now(), next_step_at = ");
    let (made, waits) = (made.deliveries.to_string(), is_crowded.to_string());
    push_next_step_at(&mut query, replay.per_second(), (&made, &waits), times);
    query.push(" where r.replay_id = ").push_bind(replay.id().uuid());
    query
}

const BYTES: &str = "
    select octet_length(p.payload) as bytes from event_payload p
    where p.event_id = scanned.event_id";

const EVENTS: &str = "
    select known.event_id, known.type as event_type, known.subject, known.metadata, payload.payload
    from unnest($2::uuid[]) as given(event_id)
    cross join lateral (
        select event_id, type, subject, metadata from event e
        where e.application_id = $1 and e.event_id = given.event_id
        offset 0
    ) as known
    left join lateral (
        select payload from event_payload p where p.event_id = known.event_id offset 0
    ) as payload on true
    order by known.event_id";

const IS_CROWDED: &str = concat!(
    "select exists (
        select from unnest($1::uuid[]) as lane(lane_id)
        cross join lateral (
            select count(*) as count from (
                select from delivery_queue q
                where q.lane_id = lane.lane_id and q.owner is null and q.due_at <= ",
    ordered_now!("$3"),
    "
                order by q.lane_id, q.due_at limit $2
            ) as up_to_max
        ) as due
        where due.count >= $2
    )"
);

// An event that another replay has just routed is left to that. The ids of a step are a short range
// of the key: a join over all events cannot be planned.
const STORE: &str = concat!(
    "with clock as materialized (select ",
    ordered_now!("$9"),
    " as now),
    stale as materialized (
        select 1 from application
        where application_id = $1 and routing_version is distinct from $2
    ),
    made as materialized (
        select * from unnest($3::uuid[], $4::uuid[], $5::uuid[], $6::text[], $7::int[],
                             $8::boolean[])
            as d(delivery_id, event_id, subscription_id, target_url, payload_bytes, is_parked)
    ),
    per_event as materialized (select event_id, count(*) as count from made group by event_id),
    routed as (
        update event e set delivery_count = per_event.count, routing_version = $2
        from per_event
        where e.application_id = $1 and e.event_id = per_event.event_id and e.delivery_count = 0
          and e.event_id >= (select event_id from per_event order by event_id limit 1)
          and e.event_id <= (select event_id from per_event order by event_id desc limit 1)
          and not exists (select from stale)
        returning e.event_id
    ),
    queued as (
        insert into delivery_queue (delivery_id, event_id, application_id, lane_id, subscription_id,
                                    target_url, payload_bytes, created_at, due_at)
        select delivery_id, event_id, $1, subscription_id, subscription_id, target_url,
               payload_bytes, now, now + (row_number() over (order by delivery_id))::float8
                                         * interval '1 microsecond'
        from made cross join clock where not is_parked and event_id in (select event_id from routed)
        returning 1
    ),
    parked as (
        insert into delivery_parked (delivery_id, event_id, application_id, subscription_id,
                                     target_url, payload_bytes, created_at, due_at)
        select delivery_id, event_id, $1, subscription_id, target_url, payload_bytes, now, now
        from made cross join clock where is_parked and event_id in (select event_id from routed)
        returning 1
    )
    select exists (select from stale) as is_stale, (select count(*) from routed) as events,
           (select count(*) from queued) + (select count(*) from parked) as deliveries"
);
