//! Erasures: jobs that take away what is stored of an event, of a subject, or of an application.
//!
//! A step is one transaction: it takes the erasure's row, works on a few events, and moves the cursor
//! past them if nothing was left of them. So it goes on where it was, whatever crashes, and any
//! process may make the next step.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{FromRow, Postgres, QueryBuilder};
use uuid::Uuid;

use super::{
    Store, StoreError, bounded,
    erasing::{Erased, Whose, by_key, erase},
    idempotency::{Reservation, Standing, stand},
    jobs::{Jobs, above_all_at, one_at_a_time},
    queue::interval,
    session::Session,
    time::{Times, push_ordered_now, push_step_due},
};
use crate::domain::{
    ApplicationId, ErasureId, EventId,
    erasure::{Erasable, ErasureState},
};

/// How many erasures of an application may be under way at a time.
pub const ERASURES_MAX: i64 = 100;
/// How many events one step works on.
const EVENTS_PER_STEP: i64 = 200;
/// How many deliveries these may have, or one event that has more.
const DELIVERIES_PER_STEP: i64 = 2_000;
/// How long an erasure waits for deliveries that are being sent, before it looks again.
const IN_FLIGHT_PAUSE: Duration = Duration::from_secs(1);

/// An erasure to be made.
#[derive(Debug)]
pub struct NewErasure<'a> {
    /// Its id, made by the caller.
    pub id: ErasureId,
    /// Whose it is.
    pub application: ApplicationId,
    /// What is erased.
    pub of: &'a Erasable,
    /// The database's clock, as sampled, in milliseconds.
    pub unix_ms: u64,
}

/// An erasure.
#[derive(Debug, FromRow)]
pub struct ErasureRow {
    erasure_id: Uuid,
    application_id: Uuid,
    /// What it is of: a name of `Erasable`.
    pub scope: String,
    event_id: Option<Uuid>,
    /// Whom it is about, until it is done.
    pub subject: Option<String>,
    /// SHA-256 of that, in hexadecimal, which stays.
    pub subject_sha256: Option<String>,
    /// A state's name.
    pub state: String,
    until_id: Uuid,
    event_cursor: Uuid,
    /// Events that were gone through.
    pub event_count: i64,
    /// Payloads that were deleted.
    pub payload_count: i64,
    /// Attempts whose headers and bodies were deleted.
    pub attempt_count: i64,
    /// Deliveries that were cancelled.
    pub cancelled_count: i64,
    /// Idempotency keys that were deleted.
    pub idempotency_key_count: i64,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When it last moved.
    pub updated_at: DateTime<Utc>,
    /// When it was done.
    pub ended_at: Option<DateTime<Utc>>,
}

impl ErasureRow {
    /// Its id.
    pub fn id(&self) -> ErasureId {
        ErasureId::from_uuid(self.erasure_id)
    }

    /// Whose it is.
    pub fn application(&self) -> ApplicationId {
        ApplicationId::from_uuid(self.application_id)
    }

    /// The event that it is of, if it is of one.
    pub fn event(&self) -> Option<EventId> {
        self.event_id.map(EventId::from_uuid)
    }

    /// Whether it is done.
    pub fn is_done(&self) -> bool {
        self.ended_at.is_some()
    }
}

const COLUMNS: &str = "erasure_id, application_id, scope, event_id, subject,
     encode(subject_sha256, 'hex') as subject_sha256, state,
     until_id, event_cursor, event_count, payload_count, attempt_count, cancelled_count,
     idempotency_key_count, created_at, updated_at, ended_at";

const JOBS: Jobs = Jobs { table: "erasure", id: "erasure_id", columns: COLUMNS };

impl Store {
    /// Makes an erasure, unless `once` was answered before: then only its standing is told. Full at
    /// [`ERASURES_MAX`].
    pub async fn create_erasure(
        &self,
        new: &NewErasure<'_>,
        once: Option<Reservation<'_>>,
    ) -> Result<Standing, StoreError> {
        let until = match new.of {
            Erasable::Event(id) => Uuid::from_u128(id.uuid().as_u128().saturating_add(1)),
            Erasable::Subject(_) | Erasable::Application => above_all_at(new.unix_ms),
        };
        bounded(async {
            let mut connection = self.pool.acquire().await?;
            let mut transaction = connection.begin().await?;
            let standing = stand(&mut transaction, once, self.times()).await?;
            if standing != Standing::New {
                return Ok(standing);
            }
            one_at_a_time(&mut transaction, new.application).await?;
            let inserted = sqlx::query(
                "insert into erasure (erasure_id, application_id, scope, event_id, subject,
                                      subject_sha256, until_id)
                 select $1, $2, $3, $4, $5, sha256(convert_to($5, 'UTF8')), $6
                 where (select count(*) from erasure
                        where application_id = $2 and state = 'running') < $7",
            )
            .bind(new.id.uuid())
            .bind(new.application.uuid())
            .bind(new.of.scope())
            .bind(new.of.event().map(EventId::uuid))
            .bind(new.of.subject())
            .bind(until)
            .bind(ERASURES_MAX)
            .execute(&mut *transaction)
            .await?;
            if inserted.rows_affected() == 0 {
                let (what, count_max) = ("erasures that are not done", ERASURES_MAX);
                return Err(StoreError::Full { what, count_max });
            }
            transaction.commit().await?;
            Ok(Standing::New)
        })
        .await
    }

    /// Finds an erasure of an application.
    pub async fn erasure(
        &self,
        application: ApplicationId,
        id: ErasureId,
    ) -> Result<Option<ErasureRow>, StoreError> {
        JOBS.find(self, application, id.uuid()).await
    }

    /// Lists erasures of an application, newest first: up to `rows_max` of those made before
    /// `older_than`.
    pub async fn erasures(
        &self,
        application: ApplicationId,
        older_than: Option<ErasureId>,
        rows_max: i64,
    ) -> Result<Vec<ErasureRow>, StoreError> {
        JOBS.list(self, application, older_than.map(ErasureId::uuid), rows_max).await
    }

    /// Makes the next step of the erasure that is due for the longest; `None`: none is due, or others
    /// are about it.
    pub async fn step_erasure(&self) -> Result<Option<ErasureRow>, StoreError> {
        bounded(async {
            let mut connection = self.pool.acquire().await?;
            let mut transaction = connection.begin().await?;
            let mut query = QueryBuilder::<Postgres>::new("select ");
            query.push(COLUMNS).push(" from erasure where state = 'running' and ");
            push_step_due(&mut query, self.times());
            query.push(" order by next_step_at limit 1 for update skip locked");
            let due: Option<ErasureRow> =
                query.build_query_as().fetch_optional(&mut *transaction).await?;
            let Some(row) = due else { return Ok(None) };
            by_key(&mut transaction).await?;
            let row = step(&mut transaction, &row, self.cms(), self.times()).await?;
            transaction.commit().await?;
            Ok(Some(row))
        })
        .await
    }
}

async fn step(
    connection: &mut Session,
    row: &ErasureRow,
    cms: Option<&str>,
    times: Times,
) -> Result<ErasureRow, StoreError> {
    let unmoved = if row.event_cursor.is_nil() {
        // What is still on its way from SQL never becomes an event; what is being moved at this moment
        // is waited for, and found below.
        sqlx::query_as(UNMOVED)
            .bind(row.application_id)
            .bind(row.event_id)
            .bind(row.subject.as_deref())
            .bind(row.until_id)
            .fetch_one(&mut *connection)
            .await?
    } else {
        Unmoved::default()
    };
    let found = next_events(connection, row).await?;
    let ids: Vec<_> = found.iter().copied().map(EventId::from_uuid).collect();
    let (mut erased, mut events) = (Erased::default(), unmoved.events);
    let mut cursor = row.event_cursor;
    if let Some(&last) = found.last() {
        let whose = Whose { application: row.application_id, cms };
        erased = erase(connection, whose, &ids).await?;
        if erased.is_all() {
            cursor = last;
            events += i64::try_from(found.len()).unwrap_or(i64::MAX);
        }
    }
    let pause = if erased.in_flight > 0 { IN_FLIGHT_PAUSE } else { Duration::ZERO };
    let is_done = found.is_empty();
    let state = if is_done { ErasureState::Completed } else { ErasureState::Running };
    let mut query = QueryBuilder::<Postgres>::new("update erasure set state = ");
    query.push_bind(state.as_str());
    query.push(", ended_at = case when ").push_bind(is_done).push(" then now() end");
    query.push(", subject = case when not ").push_bind(is_done).push(" then subject end");
    query.push(", event_cursor = ").push_bind(cursor);
    query.push(", next_step_at = ");
    push_ordered_now(&mut query, times);
    query.push(" + ").push_bind(interval(pause));
    query.push(", event_count = event_count + ").push_bind(events);
    query.push(", payload_count = payload_count + ").push_bind(erased.payloads + unmoved.events);
    query.push(", attempt_count = attempt_count + ").push_bind(erased.attempts);
    query.push(", cancelled_count = cancelled_count + ").push_bind(erased.ended);
    query.push(", idempotency_key_count = idempotency_key_count + ");
    query.push_bind(erased.idempotency_keys + unmoved.idempotency_keys);
    query.push(", updated_at = now() where erasure_id = ").push_bind(row.erasure_id);
    query.push(" returning ").push(COLUMNS);
    Ok(query.build_query_as().fetch_one(connection).await?)
}

/// The next events: so many, with so many deliveries.
async fn next_events(connection: &mut Session, row: &ErasureRow) -> Result<Vec<Uuid>, StoreError> {
    let mut query = QueryBuilder::<Postgres>::new(
        "select event_id from (
             select event_id, delivery_count,
                    sum(delivery_count::bigint) over (order by event_id) as deliveries
             from (select event_id, delivery_count from event where application_id = ",
    );
    query.push_bind(row.application_id);
    query.push(" and event_id > ").push_bind(row.event_cursor);
    query.push(" and event_id < ").push_bind(row.until_id);
    if let Some(event) = row.event_id {
        query.push(" and event_id = ").push_bind(event);
    }
    if let Some(subject) = &row.subject {
        query.push(" and subject = ").push_bind(subject);
    }
    query.push(" order by event_id limit ").push_bind(EVENTS_PER_STEP);
    query.push(") as next) as summed where deliveries - delivery_count = 0 or deliveries <= ");
    query.push_bind(DELIVERIES_PER_STEP).push(" order by event_id");
    Ok(query.build_query_scalar().fetch_all(connection).await?)
}

#[derive(Default, FromRow)]
struct Unmoved {
    events: i64,
    idempotency_keys: i64,
}

// Both tables are as good as empty.
const UNMOVED: &str = "
    with unmoved as (
        delete from outbox
        where application_id = $1 and event_id < $4
          and ($2::uuid is null or event_id = $2) and ($3::text is null or subject = $3)
        returning event_id, idempotency_key
    ),
    refused as (
        delete from outbox_refused
        where application_id = $1 and event_id < $4
          and ($2::uuid is null or event_id = $2) and ($3::text is null or subject = $3)
        returning event_id, idempotency_key
    ),
    gone as (select * from unmoved union all select * from refused),
    forgotten as (
        delete from idempotency_key k using gone
        where k.application_id = $1 and k.key = gone.idempotency_key and k.event_id = gone.event_id
        returning k.key
    )
    select (select count(*) from gone) as events,
           (select count(*) from forgotten) as idempotency_keys";
