//! What was published from SQL, on its way to where all events are.
//!
//! A row is deleted by the transaction that stores its event, so whatever crashes, each is stored
//! once. Rows are found by the transaction that published them: a [`Mark`] remembers a snapshot
//! before which nothing is left, and what came after it is of transactions that were running then,
//! or began later. So no look walks over what was moved long ago, however long a forgotten
//! transaction keeps Postgres from clearing it away (see `docs/decisions/0007-sql-publishing.md`).

use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    Pace, Store, StoreError, bounded,
    events::{NewEvent, insert_events},
    pool::PooledSession,
    prompt,
    session::Transaction,
    time::{Times, settled_now},
};
use crate::domain::{ApplicationId, EventId};

/// How many bytes a payload may have that is published from SQL: as the function says. That is what
/// HTTP takes by default; a function in the database knows no settings of processes.
pub const PAYLOAD_BYTES_MAX: usize = 1024 * 1024;
/// At how many rows one look is enough.
const ROWS_PER_LOOK: i64 = 1_000;

/// Where to look for rows: behind a snapshot before which none is left.
#[derive(Debug, Clone, Default, sqlx::FromRow)]
pub struct Mark {
    /// The snapshot, as Postgres writes it; none at first.
    snapshot: Option<String>,
    /// The transactions that were running.
    running: Vec<i64>,
    /// All that began later have this id, or a higher one.
    begun_from: i64,
}

/// What there is behind a mark.
#[derive(Debug, sqlx::FromRow)]
pub struct Look {
    /// The snapshot of this look.
    #[sqlx(flatten)]
    pub here: Mark,
    /// Nothing is there.
    pub is_empty: bool,
    /// Nothing is there that an earlier look could have seen.
    pub is_all_newer: bool,
    /// Since when the oldest row waits that was seen, in seconds.
    pub waits_for_seconds: f64,
}

/// A row's place in the order in which they are moved.
#[derive(Debug, Clone, Copy, Default)]
pub struct Place {
    transaction_id: i64,
    event_id: Uuid,
}

/// How much one batch takes.
#[derive(Debug, Clone, Copy)]
pub struct Portion {
    /// Rows.
    pub rows_max: i64,
    /// Bytes of payloads, or one row that has more.
    pub bytes_max: i64,
}

/// An event that was published from SQL.
#[derive(Debug)]
pub struct OutboxRow {
    /// Its place.
    pub place: Place,
    ctid: String,
    /// The application that it belongs to.
    pub application: ApplicationId,
    /// Its type.
    pub event_type: String,
    /// Its payload.
    pub payload: Bytes,
    /// Whom it is about.
    pub subject: Option<String>,
    /// JSON text.
    pub metadata: Option<String>,
    /// It stands for the event since its publisher's commit.
    pub idempotency_key: Option<String>,
    /// When it was published.
    pub created_at: DateTime<Utc>,
}

impl OutboxRow {
    /// The id that its publisher was told.
    pub fn event_id(&self) -> EventId {
        EventId::from_uuid(self.place.event_id)
    }
}

/// A row that was looked at; its event is `None` where another process is about it.
#[derive(sqlx::FromRow)]
struct TakenRow {
    transaction_id: i64,
    event_id: Uuid,
    /// How many rows there were before the bound on bytes.
    behind: i64,
    #[sqlx(flatten)]
    event: TakenEvent,
}

#[derive(sqlx::FromRow)]
struct TakenEvent {
    ctid: Option<String>,
    application_id: Option<Uuid>,
    #[sqlx(rename = "type")]
    event_type: Option<String>,
    payload: Option<Vec<u8>>,
    subject: Option<String>,
    metadata: Option<String>,
    idempotency_key: Option<String>,
    created_at: Option<DateTime<Utc>>,
}

/// What a batch has taken.
#[derive(Debug)]
pub struct Taken {
    /// The rows, in their order, locked until the batch ends.
    pub rows: Vec<OutboxRow>,
    /// Where the next batch goes on.
    pub last: Option<Place>,
    /// Nothing was left when it was taken.
    pub is_all: bool,
}

/// The rows behind a mark (`$1` running, `$2` begun from) and a place (`$3`, `$4`), the first `$5`
/// that meet a condition. Each branch is a walk along the primary key from where it has to begin.
macro_rules! behind {
    ($condition:literal) => {
        concat!(
            "
    select transaction_id, event_id, bytes, created_at from (
        (select later.* from unnest($1::bigint[]) as running(id)
         cross join lateral (
             select transaction_id, event_id, octet_length(payload) as bytes, created_at
             from outbox
             where transaction_id = running.id and (transaction_id, event_id) > ($3, $4)
               and ",
            $condition,
            "
             order by transaction_id, event_id limit $5
         ) as later)
        union all
        (select transaction_id, event_id, octet_length(payload), created_at
         from outbox
         where transaction_id >= $2 and (transaction_id, event_id) > ($3, $4)
           and ",
            $condition,
            "
         order by transaction_id, event_id limit $5)
    ) as behind
    order by transaction_id, event_id limit $5"
        )
    };
}

/// All of them.
const BEHIND: &str = behind!("true");
/// Those that are not of the applications `$7`.
const BEHIND_OF_OTHERS: &str = behind!("not application_id = any($7::uuid[])");

impl Store {
    /// Looks what there is behind a mark, and what of it an earlier look could have seen.
    pub async fn look_at_outbox(
        &self,
        mark: &Mark,
        earlier: Option<&Mark>,
    ) -> Result<Look, StoreError> {
        prompt(&self.pace, async {
            let look = format!(
                "with behind as materialized ({BEHIND})
                 select snapshot::text as snapshot,
                        array(select id::text::bigint from pg_snapshot_xip(snapshot) as id)
                            as running,
                        pg_snapshot_xmax(snapshot)::text::bigint as begun_from,
                        count = 0 as is_empty, count < $5 and is_all_newer as is_all_newer,
                        waits_for_seconds
                 from pg_current_snapshot() as snapshot
                 cross join lateral (
                     select count(*),
                            coalesce(bool_and(not pg_visible_in_snapshot(
                                transaction_id::text::xid8, $6::text::pg_snapshot)), false)
                                as is_all_newer,
                            coalesce(extract(epoch from clock_timestamp() - min(created_at)), 0)
                                ::float8 as waits_for_seconds
                     from behind
                 ) as seen"
            );
            Ok(sqlx::query_as(sqlx::AssertSqlSafe(look))
                .bind(&mark.running)
                .bind(mark.begun_from)
                .bind(Place::default().transaction_id)
                .bind(Place::default().event_id)
                .bind(ROWS_PER_LOOK)
                .bind(earlier.and_then(|earlier| earlier.snapshot.as_deref()))
                .fetch_one(&self.pool)
                .await?)
        })
        .await
    }

    /// Lends a connection to move with.
    pub async fn outbox(&self) -> Result<Outbox, StoreError> {
        Ok(Outbox { session: self.pool.acquire().await?, store: self.clone() })
    }

    /// Deletes up to `rows_max` refused events that were refused so long ago; tells how many.
    pub async fn forget_refused(&self, keep: Duration, rows_max: i64) -> Result<u64, StoreError> {
        bounded(async {
            let deleted = sqlx::query(concat!(
                "delete from outbox_refused where ctid in (
                     select ctid from outbox_refused
                     where refused_at < ",
                settled_now!("$3"),
                " - make_interval(secs => $1)
                     order by refused_at limit $2
                     for update skip locked
                 )",
            ))
            .bind(keep.as_secs_f64())
            .bind(rows_max)
            .bind(self.times().settled)
            .execute(&self.pool)
            .await?;
            Ok(deleted.rows_affected())
        })
        .await
    }
}

/// A connection to move with.
pub struct Outbox {
    session: PooledSession,
    store: Store,
}

impl Outbox {
    /// Begins a batch. Dropped before its commit, it has moved nothing.
    pub async fn begin(&mut self) -> Result<Move<'_>, StoreError> {
        let (times, pace) = (self.store.times(), self.store.pace.clone());
        let session = &mut self.session;
        prompt(&pace.clone(), async {
            Ok(Move { transaction: session.begin().await?, pace, times })
        })
        .await
    }
}

/// A batch on its way.
pub struct Move<'c> {
    transaction: Transaction<'c>,
    pace: Pace,
    times: Times,
}

impl Move<'_> {
    /// Takes the next rows behind a mark and a place. Rows that another process has locked, and those
    /// of the applications that are passed over, stay where they are.
    pub async fn take(
        &mut self,
        mark: &Mark,
        after: Place,
        portion: Portion,
        passed_over: &[ApplicationId],
    ) -> Result<Taken, StoreError> {
        let pace = self.pace.clone();
        prompt(&pace, async {
            let take = format!(
                "with behind as materialized ({BEHIND_OF_OTHERS}),
                 sized as materialized (
                     select *, sum(bytes) over (order by transaction_id, event_id) as bytes_until
                     from behind
                 )
                 select sized.transaction_id, sized.event_id,
                        (select count(*) from behind) as behind, locked.*
                 from sized left join lateral (
                     select ctid::text as ctid, application_id, type, payload, subject, metadata,
                            idempotency_key, created_at
                     from outbox as o
                     where o.transaction_id = sized.transaction_id and o.event_id = sized.event_id
                     offset 0
                     for update skip locked
                 ) as locked on true
                 where bytes_until - bytes = 0 or bytes_until <= $6
                 order by sized.transaction_id, sized.event_id"
            );
            let rows: Vec<TakenRow> = sqlx::query_as(sqlx::AssertSqlSafe(take))
                .bind(&mark.running)
                .bind(mark.begun_from)
                .bind(after.transaction_id)
                .bind(after.event_id)
                .bind(portion.rows_max)
                .bind(portion.bytes_max)
                .bind(passed_over.iter().map(|one| one.uuid()).collect::<Vec<_>>())
                .fetch_all(&mut *self.transaction)
                .await?;
            let place_of = |row: &TakenRow| Place {
                transaction_id: row.transaction_id,
                event_id: row.event_id,
            };
            let last = rows.last().map(place_of);
            let is_all = rows.last().is_none_or(|row| {
                row.behind < portion.rows_max && i64::try_from(rows.len()) == Ok(row.behind)
            });
            let outbox_row = |row: TakenRow| {
                let (position, event) = (place_of(&row), row.event);
                Some(OutboxRow {
                    place: position,
                    ctid: event.ctid?,
                    application: ApplicationId::from_uuid(event.application_id?),
                    event_type: event.event_type?,
                    payload: event.payload?.into(),
                    subject: event.subject,
                    metadata: event.metadata,
                    idempotency_key: event.idempotency_key,
                    created_at: event.created_at?,
                })
            };
            Ok(Taken { rows: rows.into_iter().filter_map(outbox_row).collect(), last, is_all })
        })
        .await
    }

    /// Stores the events of taken rows in place of them; `false` if an application is not at the
    /// version that its events were routed at, and then nothing was stored.
    ///
    /// Idempotency keys are not asked: they stand for these events since their publishers' commits,
    /// and what was told to be kept is kept, also where a key has run out meanwhile.
    pub async fn store(
        &mut self,
        rows: &[&OutboxRow],
        events: &[&NewEvent<'_>],
    ) -> Result<bool, StoreError> {
        let pace = self.pace.clone();
        prompt(&pace, async {
            if !insert_events(&mut self.transaction, events, self.times).await? {
                return Ok(false);
            }
            let places: Vec<&str> = rows.iter().map(|row| row.ctid.as_str()).collect();
            // They are locked, so they are where they were.
            sqlx::query("delete from outbox where ctid = any($1::text[]::tid[])")
                .bind(places)
                .execute(&mut *self.transaction)
                .await?;
            Ok(true)
        })
        .await
    }

    /// Puts taken rows aside, each with the reason. Their idempotency keys are free again.
    pub async fn refuse(&mut self, rows: &[(&OutboxRow, String)]) -> Result<(), StoreError> {
        let pace = self.pace.clone();
        prompt(&pace, async {
            let places: Vec<&str> = rows.iter().map(|(row, _)| row.ctid.as_str()).collect();
            let ids: Vec<Uuid> = rows.iter().map(|(row, _)| row.place.event_id).collect();
            let reasons: Vec<&str> = rows.iter().map(|(_, reason)| reason.as_str()).collect();
            sqlx::query(
                "with refused as (
                     delete from outbox where ctid = any($1::text[]::tid[]) returning *
                 ),
                 freed as (
                     delete from idempotency_key as known using refused
                     where known.application_id = refused.application_id
                       and known.key = refused.idempotency_key
                       and known.event_id = refused.event_id
                 )
                 insert into outbox_refused (event_id, application_id, type, payload, subject,
                                             metadata, idempotency_key, created_at, reason)
                 select event_id, application_id, type, payload, subject, metadata,
                        idempotency_key, created_at, reason
                 from refused join unnest($2::uuid[], $3::text[]) as given(event_id, reason)
                     using (event_id)
                 on conflict (event_id) do nothing",
            )
            .bind(places)
            .bind(ids)
            .bind(reasons)
            .execute(&mut *self.transaction)
            .await?;
            Ok(())
        })
        .await
    }

    /// Commits. Where the answer is lost, the rows tell: they are there, or their events are.
    pub async fn commit(self) -> Result<(), StoreError> {
        let Self { transaction, pace, .. } = self;
        prompt(&pace, async { Ok(transaction.commit().await?) }).await
    }
}
