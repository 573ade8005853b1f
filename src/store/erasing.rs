//! What is taken away of events: their payloads, or all that may say something of somebody.
//!
//! Both work on a few events at a time, in the caller's transaction. What would be sent yet is ended
//! first, so that nothing waits for a payload that is gone. Deliveries that are being sent are left
//! alone: their results come within the deadline of an exchange, and then it is tried again.

use uuid::Uuid;

use super::{
    StoreError,
    deliveries::Ranges,
    ending::{from_parked, from_queue, taken_end, told, told_to_cms},
    session::Session,
};
use crate::domain::EventId;

/// How many rows of one kind a step takes: deliveries that end, and attempts.
pub(super) const ROWS_MAX: i64 = 5_000;

/// Has the statements of this transaction find rows by key, a look-up for each: the planner knows
/// nothing of how many events it is about, and would rather read a month of attempts.
pub(super) async fn by_key(connection: &mut Session) -> Result<(), StoreError> {
    sqlx::query(
        "select set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true)",
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// What was taken away.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Erased {
    /// Deliveries that were ended.
    pub ended: i64,
    /// Payloads.
    pub payloads: i64,
    /// Attempts.
    pub attempts: i64,
    /// Idempotency keys.
    pub idempotency_keys: i64,
    /// Deliveries that are being sent.
    pub in_flight: i64,
}

impl Erased {
    /// Whether nothing was left of these events that waits to be sent.
    pub(super) fn has_ended_all(&self) -> bool {
        self.ended < ROWS_MAX
    }

    /// Whether nothing was left of these events.
    pub(super) fn is_all(&self) -> bool {
        self.in_flight == 0 && self.has_ended_all() && self.attempts < ROWS_MAX
    }
}

/// Whose events these are, and whether the CMS is told of what ends: the name of the application that it
/// is told of.
#[derive(Clone, Copy)]
pub(super) struct Whose<'a> {
    pub application: Uuid,
    pub cms: Option<&'a str>,
}

/// Drops the payloads of events. What waits to be sent dies as `expired`, as it would have when it came
/// to be sent.
pub(super) async fn drop_payloads(
    connection: &mut Session,
    whose: Whose<'_>,
    events: &[EventId],
) -> Result<Erased, StoreError> {
    end(connection, EXPIRE, whose, &Ranges::of(events)).await
}

/// Takes away what events, and what was done for them, may say of somebody: payload, metadata, subject,
/// the headers and bodies of attempts, idempotency keys. What waits to be sent is cancelled. That they
/// were, when, of which type, where they went and what came of it stays.
pub(super) async fn erase(
    connection: &mut Session,
    whose: Whose<'_>,
    events: &[EventId],
) -> Result<Erased, StoreError> {
    let ranges = Ranges::of(events);
    let mut erased = end(connection, CANCEL, whose, &ranges).await?;
    let attempts = sqlx::query(BLANK_ATTEMPTS)
        .bind(&ranges.low)
        .bind(&ranges.high)
        .bind(ROWS_MAX)
        .execute(&mut *connection)
        .await?;
    erased.attempts = i64::try_from(attempts.rows_affected()).unwrap_or(i64::MAX);
    // By its subject an event is found again, so that goes last.
    if erased.is_all() {
        erased.idempotency_keys = sqlx::query_scalar(BLANK_EVENTS)
            .bind(whose.application)
            .bind(&ranges.events)
            .fetch_one(&mut *connection)
            .await?;
    }
    Ok(erased)
}

/// Ends what waits of events, as a statement says, and deletes their payloads.
async fn end(
    connection: &mut Session,
    statement: &'static str,
    whose: Whose<'_>,
    ranges: &Ranges,
) -> Result<Erased, StoreError> {
    let (ended, in_flight): (i64, i64) = sqlx::query_as(statement)
        .bind(whose.application)
        .bind(&ranges.events)
        .bind(&ranges.low)
        .bind(&ranges.high)
        .bind(ROWS_MAX)
        .bind(whose.cms)
        .fetch_one(&mut *connection)
        .await?;
    let payloads = delete_payloads(connection, ranges).await?;
    Ok(Erased { ended, payloads, in_flight, ..Erased::default() })
}

/// With them goes what was said of their targets: headers may be credentials, and without a payload
/// nothing is sent again.
async fn delete_payloads(connection: &mut Session, ranges: &Ranges) -> Result<i64, StoreError> {
    sqlx::query(DELETE_TARGETS)
        .bind(&ranges.low)
        .bind(&ranges.high)
        .execute(&mut *connection)
        .await?;
    let deleted = sqlx::query("delete from event_payload where event_id = any($1)")
        .bind(&ranges.events)
        .execute(connection)
        .await?;
    Ok(i64::try_from(deleted.rows_affected()).unwrap_or(i64::MAX))
}

const DELETE_TARGETS: &str = "
    delete from delivery_target t
    using (
        select one.delivery_id from unnest($1::uuid[], $2::uuid[]) as meant(low, high)
        cross join lateral (
            select delivery_id from delivery_target
            where delivery_id between meant.low and meant.high
            offset 0
        ) as one
    ) as found
    where t.delivery_id = found.delivery_id";

/// Takes what waits of events out of the queue and out of `delivery_parked`; what is being sent is
/// counted.
macro_rules! taken_of_events {
    () => {
        concat!(
            "with meant as materialized (
                select * from unnest($2::uuid[], $3::uuid[], $4::uuid[]) as m(event_id, low, high)
            ),
            queued as materialized (
                select q.* from meant cross join lateral (
                    select ctid as place, owner from delivery_queue q
                    where q.delivery_id between meant.low and meant.high
                      and q.event_id = meant.event_id and q.application_id = $1
                    offset 0
                ) as q
                order by q.owner is not null limit $5
            ),
            parked as materialized (
                select p.* from meant cross join lateral (
                    select ctid as place from delivery_parked p
                    where p.delivery_id between meant.low and meant.high
                      and p.event_id = meant.event_id and p.application_id = $1
                    offset 0
                ) as p
                limit $5
            ),
            left_queue as (
                delete from delivery_queue q using queued
                where q.ctid = queued.place and q.owner is null ",
            from_queue!(),
            "
            ),
            left_parked as (
                delete from delivery_parked p using parked where p.ctid = parked.place ",
            from_parked!(),
            "
            ),
            taken as (select * from left_queue union all select * from left_parked), "
        )
    };
}

macro_rules! counted {
    () => {
        " select (select count(*) from taken),
                 (select count(*) from queued) - (select count(*) from left_queue)"
    };
}

const CANCEL: &str =
    concat!(taken_of_events!(), taken_end!("cancelled", "cancelled", "$6"), counted!());

const EXPIRE: &str = concat!(
    taken_of_events!(),
    taken_end!("dead", "expired", "$6"),
    ", ",
    told!("death", "webhook.delivery.dead", "select * from ended"),
    counted!()
);

// Those that are blank already are passed over, so that what a step leaves the next one takes.
const BLANK_ATTEMPTS: &str = "
    update attempt a
    set request_headers = '',
        response_headers = case when a.response_headers is not null then '' end,
        response_body = null
    from (
        select one.* from unnest($1::uuid[], $2::uuid[]) as meant(low, high)
        cross join lateral (
            select delivery_id, claim_number from attempt a
            where a.delivery_id between meant.low and meant.high
              and (a.request_headers <> '' or a.response_headers <> ''
                   or a.response_body is not null)
            offset 0
        ) as one
        limit $3
    ) as found
    where a.delivery_id = found.delivery_id and a.claim_number = found.claim_number";

const BLANK_EVENTS: &str = "
    with meant as materialized (
        select e.event_id, e.idempotency_key from unnest($2::uuid[]) as m(event_id)
        cross join lateral (
            select event_id, idempotency_key from event e
            where e.application_id = $1 and e.event_id = m.event_id
            offset 0
        ) as e
    ),
    forgotten as (
        delete from idempotency_key k using meant
        where k.application_id = $1 and k.key = meant.idempotency_key
          and k.event_id = meant.event_id
        returning k.key
    ),
    blanked as (
        update event e set metadata = null, subject = null, idempotency_key = null
        from meant
        where e.application_id = $1 and e.event_id = meant.event_id
          and num_nonnulls(e.metadata, e.subject, e.idempotency_key) > 0
    )
    select count(*) from forgotten";
