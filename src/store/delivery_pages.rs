//! The log of deliveries: queue, parked and history as one list, by the deliveries' ids.
//!
//! No page looks at more than a bounded number of rows. Where a filter is one that no index knows, a
//! page can so be short, or empty, and still have a next one.

use chrono::{DateTime, Utc};
use sqlx::{Postgres, QueryBuilder};
use uuid::Uuid;

use super::{
    Store, StoreError, bounded,
    deliveries::{DeliveryRow, IdRange, Source, push_event_type},
    history::{SCANNED_COLUMNS, time_bound},
    session::Session,
};
use crate::domain::{
    ApplicationId, DeliveryId, DeliveryState, ErrorClass, EventId, SubscriptionId,
};

/// How many rows of the history one page looks at, and how many events, when it is filtered by what
/// no index knows.
pub const SCANNED_MAX: i64 = 500;
/// How many rows of the queue one page of a subscription's list looks at: those of others stand
/// between its own.
pub const QUEUE_SCANNED_MAX: i64 = 5_000;

/// What a page is read in that takes several statements.
const ONE_SNAPSHOT: &str = "begin isolation level repeatable read read only";

/// Which deliveries a list shows.
#[derive(Debug, Clone, Default)]
pub struct DeliveryFilter {
    /// Only in this state.
    pub state: Option<DeliveryState>,
    /// Only of this subscription.
    pub subscription: Option<SubscriptionId>,
    /// Only of this event.
    pub event: Option<EventId>,
    /// Only of events of this type.
    pub event_type: Option<String>,
    /// Only those that were last answered with this status.
    pub response_status: Option<i16>,
    /// Only those that last failed so.
    pub error_class: Option<ErrorClass>,
    /// Only of events accepted at or after this time.
    pub created_from: Option<DateTime<Utc>>,
    /// Only of events accepted before this time.
    pub created_until: Option<DateTime<Utc>>,
    /// Only older than this one: where the last page ended.
    pub older_than: Option<DeliveryId>,
}

/// A page of deliveries, newest first.
#[derive(Debug)]
pub struct DeliveryPage {
    /// The deliveries.
    pub deliveries: Vec<DeliveryRow>,
    /// What the next page is older than; `None` at the end.
    pub next: Option<DeliveryId>,
}

impl Store {
    /// Lists deliveries of an application, newest first, looking at a bounded number of rows.
    pub async fn delivery_page(
        &self,
        application: ApplicationId,
        filter: &DeliveryFilter,
        limit: usize,
    ) -> Result<DeliveryPage, StoreError> {
        let rows_max = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
        let is_of_undelivered =
            matches!(filter.state, Some(DeliveryState::Dead | DeliveryState::Cancelled));
        let indexed = filter.subscription.is_some() || is_of_undelivered;
        let (mut rows, floor) = if indexed && filter.event.is_none() {
            self.page_by_index(application, filter, rows_max).await?
        } else {
            self.page_by_events(application, filter, rows_max).await?
        };
        let has_more = rows.len() > limit;
        rows.truncate(limit);
        let next = if has_more { rows.last().map(DeliveryRow::delivery_id) } else { floor };
        Ok(DeliveryPage { deliveries: rows, next })
    }

    /// A page, found by the indexes of a subscription's deliveries, and of those that were not
    /// delivered; and below which id it did not look.
    async fn page_by_index(
        &self,
        application: ApplicationId,
        filter: &DeliveryFilter,
        rows_max: i64,
    ) -> Result<(Vec<DeliveryRow>, Option<DeliveryId>), StoreError> {
        bounded(async {
            // One snapshot: what ends in between must not be missed by both statements.
            let mut connection = self.pool.acquire().await?;
            let mut transaction = connection.begin_with(ONE_SNAPSHOT).await?;
            let (mut spans, mut floor) = (Vec::new(), None);
            for source in Source::ALL.into_iter().filter(|source| source.has(filter.state)) {
                let span = span(&mut transaction, source, application, filter, rows_max).await?;
                floor = floor.max(span.floor);
                spans.extend(span.range.map(|range| (source, range)));
            }
            let below = floor.map(DeliveryId::from_uuid);
            if spans.is_empty() {
                return Ok((Vec::new(), below));
            }
            let range = range_of(filter, floor);
            let mut query = QueryBuilder::<Postgres>::new("select * from (");
            for (index, &(source, span)) in spans.iter().enumerate() {
                if index > 0 {
                    query.push(" union all ");
                }
                query.push("(");
                let range = range.within(span.low, span.high);
                source.push_select(&mut query, range);
                push_keys(&mut query, source, application, filter);
                if let Some(floor) = floor {
                    query.push(" and d.delivery_id >= ").push_bind(floor);
                }
                push_cheap_filters(&mut query, source, filter, range);
                query.push(" order by d.delivery_id desc");
                if !has_late_filters(filter) {
                    query.push(" limit ").push_bind(rows_max);
                }
                query.push(")");
            }
            query.push(") as any_state where true");
            push_late_filters(&mut query, filter);
            query.push(" order by delivery_id desc limit ").push_bind(rows_max);
            let rows =
                query.build_query_as().persistent(false).fetch_all(&mut *transaction).await?;
            transaction.commit().await?;
            Ok((rows, below))
        })
        .await
    }

    /// A page, found by the application's events; and below which id it did not look.
    async fn page_by_events(
        &self,
        application: ApplicationId,
        filter: &DeliveryFilter,
        rows_max: i64,
    ) -> Result<(Vec<DeliveryRow>, Option<DeliveryId>), StoreError> {
        let is_filtered = filter.state.is_some()
            || filter.subscription.is_some()
            || filter.event_type.is_some()
            || has_late_filters(filter);
        let events_max = if is_filtered { SCANNED_MAX } else { rows_max };
        let floor: Option<Uuid> = bounded(async {
            let mut query = QueryBuilder::<Postgres>::new("select event_id from event");
            push_events(&mut query, application, filter);
            query.push(" order by event_id desc limit 1 offset ").push_bind(events_max - 1);
            Ok(query.build_query_scalar().persistent(false).fetch_optional(&self.pool).await?)
        })
        .await?;
        let range =
            range_of(filter, floor.map(|id| EventId::from_uuid(id).delivery_range().0.uuid()));
        bounded(async {
            let mut query = QueryBuilder::<Postgres>::new("with scanned as (select ");
            query.push(SCANNED_COLUMNS).push(" from event");
            push_events(&mut query, application, filter);
            if let Some(floor) = floor {
                query.push(" and event_id >= ").push_bind(floor);
            }
            if let Some(event_type) = &filter.event_type {
                query.push(" and type = ").push_bind(event_type.clone());
            }
            query.push(" order by event_id desc) select * from (");
            let (history, waiting): (Vec<_>, Vec<_>) = Source::ALL
                .into_iter()
                .filter(|source| source.has(filter.state))
                .partition(|source| *source == Source::History);
            if !history.is_empty() {
                push_ended(&mut query, application, filter, range, rows_max);
                query.push(if waiting.is_empty() { "" } else { " union all " });
            }
            if !waiting.is_empty() {
                push_waiting(&mut query, &waiting, application, filter, range, rows_max);
            }
            query.push(") as any_state order by any_state.delivery_id desc limit ");
            query.push_bind(rows_max);
            let rows = query.build_query_as().persistent(false).fetch_all(&self.pool).await?;
            let below = floor.map(|id| EventId::from_uuid(id).delivery_range().0);
            Ok((rows, below))
        })
        .await
    }
}

/// Where the rows lie of one of the tables that a page can show.
struct Span {
    /// Between which ids; `None`: there are none. Where they are known, the planner has to look at
    /// their days only.
    range: Option<IdRange>,
    /// The last row that a page may look at; `None`: it may look at all.
    floor: Option<Uuid>,
}

async fn span(
    connection: &mut Session,
    source: Source,
    application: ApplicationId,
    filter: &DeliveryFilter,
    rows_max: i64,
) -> Result<Span, StoreError> {
    let is_answered = is_answered_by_index(source, filter);
    let mut query = QueryBuilder::<Postgres>::new(
        "select seen[1], seen[cardinality(seen)], all_seen[cardinality(all_seen)], cardinality(all_seen)
         from (select array_agg(delivery_id) filter (where ",
    );
    let scanned_max = match source {
        // It has no index for them.
        Source::Queue => {
            query.push("application_id = ").push_bind(application.uuid());
            if let Some(subscription) = filter.subscription {
                query.push(" and subscription_id = ").push_bind(subscription.uuid());
            }
            query.push(
                ") as seen, array_agg(delivery_id) as all_seen
                 from (select * from delivery_queue d where true",
            );
            push_range(&mut query, filter);
            QUEUE_SCANNED_MAX
        }
        Source::Parked | Source::History => {
            query.push("true) as seen, array_agg(delivery_id) as all_seen from (select d.delivery_id from ");
            let table = if source == Source::Parked { "delivery_parked" } else { "delivery" };
            query.push(table).push(" d where true");
            push_keys(&mut query, source, application, filter);
            if is_answered { rows_max } else { SCANNED_MAX }
        }
    };
    query
        .push(" order by d.delivery_id desc limit ")
        .push_bind(scanned_max)
        .push(") as d) as page");
    let (high, low, last, count): (Option<Uuid>, Option<Uuid>, Option<Uuid>, Option<i32>) =
        query.build_query_as().persistent(false).fetch_one(connection).await?;
    let is_full = i64::from(count.unwrap_or_default()) >= scanned_max;
    // What the index answers is all shown, or there is a next page.
    let has_floor = is_full && (source == Source::Queue || !is_answered);
    Ok(Span {
        range: low.zip(high).map(|(low, high)| IdRange { low, high }),
        floor: last.filter(|_| has_floor),
    })
}

/// What has ended of the scanned events: no others' are in that range of the application's key. Event by
/// event it took twenty times as long.
fn push_ended(
    query: &mut QueryBuilder<Postgres>,
    application: ApplicationId,
    filter: &DeliveryFilter,
    range: IdRange,
    rows_max: i64,
) {
    query.push("(select * from (");
    Source::History.push_select(query, range);
    push_of_events(query, Source::History, application, filter, range);
    if let Some(event) = filter.event {
        query.push(" and d.event_id = ").push_bind(event.uuid());
    }
    query.push(") as ended where true");
    push_late_filters(query, filter);
    query.push(" order by delivery_id desc limit ").push_bind(rows_max).push(")");
}

/// What has not ended of the scanned events, event by event: those of other applications are in the same
/// range.
fn push_waiting(
    query: &mut QueryBuilder<Postgres>,
    sources: &[Source],
    application: ApplicationId,
    filter: &DeliveryFilter,
    range: IdRange,
    rows_max: i64,
) {
    query.push("(select of_event.* from scanned cross join lateral (select * from (");
    for (index, &source) in sources.iter().enumerate() {
        query.push(if index > 0 { " union all " } else { "" });
        source.push_select(query, range);
        push_of_events(query, source, application, filter, range);
        query.push(
            " and d.delivery_id between scanned.low and scanned.high
              and d.event_id = scanned.event_id",
        );
    }
    query.push(") as waiting where true");
    push_late_filters(query, filter);
    query.push(" order by delivery_id desc limit ").push_bind(rows_max);
    query.push(") as of_event order by of_event.delivery_id desc limit ").push_bind(rows_max);
    query.push(")");
}

/// The conditions on a row of a table whose event is scanned.
fn push_of_events(
    query: &mut QueryBuilder<Postgres>,
    source: Source,
    application: ApplicationId,
    filter: &DeliveryFilter,
    range: IdRange,
) {
    query.push(" and d.application_id = ").push_bind(application.uuid());
    push_range(query, filter);
    if let Some(subscription) = filter.subscription {
        query.push(" and d.subscription_id = ").push_bind(subscription.uuid());
    }
    push_cheap_filters(query, source, filter, range);
}

/// Between which ids all deliveries lie that a page can show.
fn range_of(filter: &DeliveryFilter, floor: Option<Uuid>) -> IdRange {
    let mut range = IdRange::ALL.within(
        floor.unwrap_or(Uuid::nil()).max(filter.created_from.map_or(Uuid::nil(), time_bound)),
        filter.created_until.map_or(Uuid::max(), time_bound),
    );
    if let Some(older_than) = filter.older_than {
        range = range.within(Uuid::nil(), older_than.uuid());
    }
    if let Some(event) = filter.event {
        let (low, high) = event.delivery_range();
        range = range.within(low.uuid(), high.uuid());
    }
    range
}

/// Whether the index by which a table's rows are found has only such as the filter means. The one over
/// what was not delivered has what was cancelled beside what died.
fn is_answered_by_index(source: Source, filter: &DeliveryFilter) -> bool {
    let is_filtered = filter.state.is_some() && source == Source::History;
    !is_filtered && filter.event_type.is_none() && !has_late_filters(filter)
}

/// Whether there are filters that are known only once a row is put together.
fn has_late_filters(filter: &DeliveryFilter) -> bool {
    filter.response_status.is_some() || filter.error_class.is_some()
}

fn push_late_filters(query: &mut QueryBuilder<Postgres>, filter: &DeliveryFilter) {
    if let Some(status) = filter.response_status {
        query.push(" and last_status = ").push_bind(status);
    }
    if let Some(class) = filter.error_class {
        query.push(" and last_error = ").push_bind(class.as_str());
    }
}

/// The filters that a table's own columns answer.
fn push_cheap_filters(
    query: &mut QueryBuilder<Postgres>,
    source: Source,
    filter: &DeliveryFilter,
    range: IdRange,
) {
    match (source, filter.state) {
        (Source::Queue, Some(DeliveryState::Pending)) => drop(query.push(" and d.owner is null")),
        (Source::Queue, Some(DeliveryState::InFlight)) => {
            query.push(" and d.owner is not null");
        }
        (Source::History, Some(state)) => {
            query.push(" and d.state = ").push_bind(state.as_str());
        }
        _ => {}
    }
    if let Some(event_type) = &filter.event_type {
        match source {
            Source::History => {
                query.push(" and d.event_type = ").push_bind(event_type.clone());
            }
            Source::Queue | Source::Parked => {
                query.push(" and ");
                push_event_type(query, range);
                query.push(" = ").push_bind(event_type.clone());
            }
        }
    }
}

/// The conditions by which the rows of a table are found.
fn push_keys(
    query: &mut QueryBuilder<Postgres>,
    source: Source,
    application: ApplicationId,
    filter: &DeliveryFilter,
) {
    query.push(" and d.application_id = ").push_bind(application.uuid());
    match filter.subscription {
        Some(subscription) => {
            query.push(" and d.subscription_id = ").push_bind(subscription.uuid());
        }
        // What the index over those that were not delivered asks for.
        None if source == Source::History => drop(query.push(" and d.state <> 'delivered'")),
        None => {}
    }
    push_range(query, filter);
}

fn push_range(query: &mut QueryBuilder<Postgres>, filter: &DeliveryFilter) {
    if let Some(older_than) = filter.older_than {
        query.push(" and d.delivery_id < ").push_bind(older_than.uuid());
    }
    if let Some(from) = filter.created_from {
        query.push(" and d.delivery_id >= ").push_bind(time_bound(from));
    }
    if let Some(until) = filter.created_until {
        query.push(" and d.delivery_id < ").push_bind(time_bound(until));
    }
}

/// The events whose deliveries a page may show.
fn push_events(
    query: &mut QueryBuilder<Postgres>,
    application: ApplicationId,
    filter: &DeliveryFilter,
) {
    query.push(" where application_id = ").push_bind(application.uuid());
    if let Some(event) = filter.event {
        query.push(" and event_id = ").push_bind(event.uuid());
    }
    if let Some(older_than) = filter.older_than {
        // Its own event may have others that are older.
        query.push(" and event_id <= ").push_bind(older_than.event_range().1.uuid());
    }
    if let Some(from) = filter.created_from {
        query.push(" and event_id >= ").push_bind(time_bound(from));
    }
    if let Some(until) = filter.created_until {
        query.push(" and event_id < ").push_bind(time_bound(until));
    }
}
