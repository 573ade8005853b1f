//! Read models: events with their deliveries and attempts, over queue and history as one.

use chrono::{DateTime, Utc};
use sqlx::{Postgres, QueryBuilder};
use uuid::Uuid;

use super::{
    Store, StoreError, bounded,
    deliveries::{DeliveryRow, IdRange, Which},
};
use crate::domain::{
    ApplicationId, DeliveryId, EventId, EventStatus, delivery::DeliveryCounts, event::TARGETS, ids,
};

/// How many events one page looks at when it is filtered by status, type or subject, which no index
/// knows. A page of what is rare can so be short, or empty, and still have a next one.
pub const EVENTS_SCANNED_MAX: i64 = 500;
/// How many deliveries of one event are shown with it.
pub const DELIVERIES_SHOWN_MAX: i64 = 250;
/// How many attempts are shown with one event: the latest over its deliveries that are shown.
pub const ATTEMPTS_SHOWN_MAX: i64 = 1_000;
/// How many bytes of answers, headers and bodies together, are shown with one event: those of the
/// latest attempts. Of earlier ones the status alone is shown, and the body counts as truncated.
/// The largest body that can be kept fits in.
pub const ANSWER_BYTES_SHOWN_MAX: i64 = 2 * 1024 * 1024;

/// Which events a list shows.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// Only with this type.
    pub event_type: Option<String>,
    /// Only about this subject.
    pub subject: Option<String>,
    /// Only with this status.
    pub status: Option<EventStatus>,
    /// Only accepted at or after this time.
    pub created_from: Option<DateTime<Utc>>,
    /// Only accepted before this time.
    pub created_until: Option<DateTime<Utc>>,
    /// Only older than this event: where the last page ended.
    pub older_than: Option<EventId>,
}

/// An event as lists show it.
#[derive(Debug, sqlx::FromRow)]
pub struct EventRow {
    event_id: Uuid,
    /// Its type, if told.
    #[sqlx(rename = "type")]
    pub event_type: Option<String>,
    /// Whom it is about.
    pub subject: Option<String>,
    /// JSON text.
    pub metadata: Option<String>,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// How many deliveries it got.
    pub delivery_count: i32,
    /// Attempts recorded over all its deliveries.
    pub attempt_count: i64,
    /// When the next of them is due.
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// A name of `Route`; `None`: the subscriptions were asked.
    route: Option<String>,
    open: i64,
    delivered: i64,
    dead: i64,
    cancelled: i64,
}

impl EventRow {
    /// Its id.
    pub fn event_id(&self) -> EventId {
        EventId::from_uuid(self.event_id)
    }

    /// What its deliveries come to.
    pub fn status(&self) -> EventStatus {
        EventStatus::of(DeliveryCounts {
            open: self.open,
            delivered: self.delivered,
            dead: self.dead,
            cancelled: self.cancelled,
        })
    }
}

/// A page of events, newest first.
#[derive(Debug)]
pub struct EventPage {
    /// The events.
    pub events: Vec<EventRow>,
    /// Where the next page begins; `None` at the end.
    pub next: Option<EventId>,
}

/// An exchange.
#[derive(Debug, sqlx::FromRow)]
pub struct AttemptRow {
    delivery_id: Uuid,
    attempt_id: Uuid,
    /// When the delivery became due.
    pub scheduled_at: DateTime<Utc>,
    /// When the exchange began.
    pub started_at: DateTime<Utc>,
    /// How long it took, in milliseconds.
    pub duration_ms: i32,
    /// With which method.
    pub request_method: String,
    /// What was called.
    pub request_url: String,
    /// Header lines as sent.
    pub request_headers: String,
    /// The answer's status.
    pub response_status: Option<i16>,
    /// Header lines as received; `None` also over [`ANSWER_BYTES_SHOWN_MAX`].
    pub response_headers: Option<String>,
    /// The first bytes of the answer's body; `None` also over [`ANSWER_BYTES_SHOWN_MAX`].
    pub response_body: Option<Vec<u8>>,
    /// Whether there is more than is shown.
    pub response_truncated: bool,
    /// What went wrong, if anything.
    pub error_class: Option<String>,
    /// The same for people.
    pub error_message: Option<String>,
    /// Whether the result came after its lease was lost.
    pub is_late: bool,
    /// Why it was made, if not by the schedule: a name of `Run`.
    pub run: Option<String>,
}

impl AttemptRow {
    /// The delivery that it belongs to.
    pub fn delivery_id(&self) -> DeliveryId {
        DeliveryId::from_uuid(self.delivery_id)
    }

    /// Its id.
    pub fn attempt_id(&self) -> ids::AttemptId {
        ids::AttemptId::from_uuid(self.attempt_id)
    }
}

/// One event with all that happened to it.
#[derive(Debug)]
pub struct EventDetail {
    /// The event.
    pub event: EventRow,
    /// Its payload; `None` once that was dropped.
    pub payload: Option<Vec<u8>>,
    /// Its deliveries, at most [`DELIVERIES_SHOWN_MAX`].
    pub deliveries: Vec<DeliveryRow>,
    /// Their latest attempts, at most [`ATTEMPTS_SHOWN_MAX`], in the order of deliveries and then
    /// of time.
    pub attempts: Vec<AttemptRow>,
}

/// What the deliveries of each scanned event come to, from queue and history, but for the range that
/// they are in.
const EVENT_SUMMARY: &str = "
    select event.event_id, event.type, event.subject, event.metadata, event.created_at,
           event.delivery_count, event.route,
           queued.open + parked.open as open,
           coalesce(ended.delivered, 0) as delivered,
           coalesce(ended.dead, 0) as dead,
           coalesce(ended.cancelled, 0) as cancelled,
           (coalesce(queued.attempts, 0) + coalesce(parked.attempts, 0)
            + coalesce(ended.attempts, 0))::bigint as attempt_count,
           queued.next_attempt_at
    from scanned as event
    cross join lateral (
        select count(*) as open, sum(prior_count + attempt_count) as attempts,
               min(due_at) filter (where owner is null) as next_attempt_at
        from delivery_queue q
        where q.delivery_id between event.low and event.high and q.event_id = event.event_id
          and coalesce(q.run, 'retry') = 'retry'
    ) as queued
    cross join lateral (
        select count(*) as open, sum(prior_count + attempt_count) as attempts
        from delivery_parked p
        where p.delivery_id between event.low and event.high and p.event_id = event.event_id
    ) as parked
    cross join lateral (
        select count(*) filter (where state = 'delivered') as delivered,
               count(*) filter (where state = 'dead') as dead,
               count(*) filter (where state = 'cancelled') as cancelled,
               sum(attempt_count) as attempts
        from delivery d
        where d.application_id = event.application_id
          and d.delivery_id between event.low and event.high and d.event_id = event.event_id";

/// The summaries of the scanned events, all of which are within a range.
fn push_summary(query: &mut QueryBuilder<Postgres>, range: IdRange) {
    query.push(EVENT_SUMMARY);
    range.of_deliveries().push(query, "d.delivery_id");
    query.push(") as ended");
}

/// The columns of `scanned`: an event and the range of its deliveries' ids, which share all but
/// their last 20 bits (five hexadecimal digits) with its own.
pub(super) const SCANNED_COLUMNS: &str = "
    event.*,
    (left(event_id::text, 31) || '00000')::uuid as low,
    (left(event_id::text, 31) || 'fffff')::uuid as high";

impl Store {
    /// Lists events of an application, newest first, looking at a bounded number of them.
    pub async fn event_page(
        &self,
        application: ApplicationId,
        filter: &EventFilter,
        limit: usize,
    ) -> Result<EventPage, StoreError> {
        // A status is known only of rows that were read, so they are all read.
        let rows_max = if filter.status.is_some() {
            EVENTS_SCANNED_MAX
        } else {
            i64::try_from(limit).unwrap_or(i64::MAX) + 1
        };
        // Of a type or subject that is rare, even a few rows could take a walk through all history.
        let is_filtered = filter.event_type.is_some() || filter.subject.is_some();
        let scanned_max = if is_filtered { EVENTS_SCANNED_MAX } else { rows_max };
        let scan_end = self.scan_end(application, filter, scanned_max).await?;
        let mut rows: Vec<EventRow> = bounded(async {
            let mut query = page_query(application, filter, scan_end, rows_max);
            Ok(query.build_query_as().persistent(false).fetch_all(&self.pool).await?)
        })
        .await?;
        let is_full = i64::try_from(rows.len()).unwrap_or(i64::MAX) >= rows_max;
        let last_row = rows.last().map(EventRow::event_id);
        if let Some(status) = filter.status {
            rows.retain(|row| row.status() == status);
        }
        let has_more = rows.len() > limit;
        rows.truncate(limit);
        let next = if has_more {
            rows.last().map(EventRow::event_id)
        } else if is_full {
            last_row
        } else {
            scan_end
        };
        Ok(EventPage { events: rows, next })
    }

    /// The last of the events that one page looks at; `None` if it may look at all that is left.
    async fn scan_end(
        &self,
        application: ApplicationId,
        filter: &EventFilter,
        scanned_max: i64,
    ) -> Result<Option<EventId>, StoreError> {
        bounded(async {
            let mut query = QueryBuilder::<Postgres>::new("select event_id from event");
            push_range(&mut query, application, filter);
            query.push(" order by event_id desc limit 1 offset ");
            query.push_bind(scanned_max - 1);
            let end: Option<Uuid> =
                query.build_query_scalar().persistent(false).fetch_optional(&self.pool).await?;
            Ok(end.map(EventId::from_uuid))
        })
        .await
    }

    /// One event of an application with its deliveries and attempts.
    pub async fn event_detail(
        &self,
        application: ApplicationId,
        id: EventId,
    ) -> Result<Option<EventDetail>, StoreError> {
        let Some(event) = self.event_row(application, id).await? else { return Ok(None) };
        let (low, high) = id.delivery_range();
        let mut deliveries = self.deliveries_of(application, id, Which::All).await?;
        if event.route.as_deref() == Some(TARGETS) {
            self.tell_signing_keys(&mut deliveries).await?;
        }
        bounded(async {
            let payload =
                sqlx::query_scalar("select payload from event_payload where event_id = $1")
                    .bind(id.uuid())
                    .fetch_optional(&self.pool)
                    .await?;
            // Deliveries that are not shown must not take the places of these.
            let last_shown = deliveries.last().map_or(high, DeliveryRow::delivery_id);
            let attempts = self.attempts_between(low, last_shown).await?;
            Ok(Some(EventDetail { event, payload, deliveries, attempts }))
        })
        .await
    }

    /// The latest attempts of a range of deliveries, at most [`ATTEMPTS_SHOWN_MAX`], in the order of
    /// deliveries and then of time.
    pub(super) async fn attempts_between(
        &self,
        low: DeliveryId,
        high: DeliveryId,
    ) -> Result<Vec<AttemptRow>, StoreError> {
        Ok(sqlx::query_as(ATTEMPTS)
            .persistent(false)
            .bind(low.uuid())
            .bind(high.uuid())
            .bind(ATTEMPTS_SHOWN_MAX)
            .bind(ANSWER_BYTES_SHOWN_MAX)
            .fetch_all(&self.pool)
            .await?)
    }

    /// One event of an application, as lists show it.
    pub async fn event_row(
        &self,
        application: ApplicationId,
        id: EventId,
    ) -> Result<Option<EventRow>, StoreError> {
        bounded(async {
            let mut query = QueryBuilder::<Postgres>::new("with scanned as (select ");
            query.push(SCANNED_COLUMNS).push(" from event where event_id = ");
            query.push_bind(id.uuid()).push(" and application_id = ");
            query.push_bind(application.uuid()).push(")");
            push_summary(&mut query, IdRange { low: id.uuid(), high: id.uuid() });
            Ok(query.build_query_as().persistent(false).fetch_optional(&self.pool).await?)
        })
        .await
    }
}

fn page_query(
    application: ApplicationId,
    filter: &EventFilter,
    scan_end: Option<EventId>,
    rows_max: i64,
) -> QueryBuilder<Postgres> {
    let mut query = QueryBuilder::<Postgres>::new("with scanned as (select ");
    query.push(SCANNED_COLUMNS).push(" from event");
    push_range(&mut query, application, filter);
    if let Some(scan_end) = scan_end {
        query.push(" and event_id >= ").push_bind(scan_end.uuid());
    }
    if let Some(event_type) = &filter.event_type {
        query.push(" and type = ").push_bind(event_type.clone());
    }
    if let Some(subject) = &filter.subject {
        query.push(" and subject = ").push_bind(subject.clone());
    }
    query.push(" order by event_id desc limit ").push_bind(rows_max).push(")");
    let mut range = IdRange::ALL.within(
        scan_end.map_or(Uuid::nil(), EventId::uuid),
        filter.older_than.map_or(Uuid::max(), EventId::uuid),
    );
    let from = filter.created_from.map_or(Uuid::nil(), time_bound);
    range = range.within(from, filter.created_until.map_or(Uuid::max(), time_bound));
    push_summary(&mut query, range);
    query.push(" order by event.event_id desc");
    query
}

/// The conditions that are ranges of the key.
fn push_range(
    query: &mut QueryBuilder<Postgres>,
    application: ApplicationId,
    filter: &EventFilter,
) {
    query.push(" where application_id = ").push_bind(application.uuid());
    if let Some(older_than) = filter.older_than {
        query.push(" and event_id < ").push_bind(older_than.uuid());
    }
    // Ids carry the time: a range of times is a range of the key, and of partitions.
    if let Some(from) = filter.created_from {
        query.push(" and event_id >= ").push_bind(time_bound(from));
    }
    if let Some(until) = filter.created_until {
        query.push(" and event_id < ").push_bind(time_bound(until));
    }
}

/// The least id of this time.
pub(super) fn time_bound(at: DateTime<Utc>) -> Uuid {
    ids::lower_bound(u64::try_from(at.timestamp_millis()).unwrap_or_default())
}

/// The lengths come from the row alone, so what is not shown is not even read.
const ATTEMPTS: &str = "
    select delivery_id, attempt_id, scheduled_at, started_at, duration_ms, request_method,
           request_url, request_headers, response_status, error_class, error_message, is_late, run,
           case when fits then response_headers end as response_headers,
           case when fits then response_body end as response_body,
           response_truncated or not fits as response_truncated
    from (
        select latest.*, $4 >= sum(
                   coalesce(octet_length(response_headers), 0)
                   + coalesce(octet_length(response_body), 0)
               ) over (
                   order by started_at desc, delivery_id desc, claim_number desc
                   rows unbounded preceding
               ) as fits
        from (
            select * from attempt
            where delivery_id between $1 and $2
            order by started_at desc, delivery_id desc, claim_number desc limit $3
        ) as latest
    ) as measured
    order by delivery_id, claim_number";
