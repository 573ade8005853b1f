//! Idempotency keys: what a request that is sent again is answered with.

use uuid::Uuid;

use super::{
    Store, StoreError, bounded,
    session::Session,
    time::{Times, ordered_now, settled_now},
};

/// How many hours the answer to an idempotency key is kept.
pub const IDEMPOTENCY_HOURS: u32 = 24;
/// How long a key is waited for that another transaction holds. Ours hold keys for milliseconds; one
/// that publishes from SQL holds them until its caller commits, and nobody else's events may wait for
/// that.
const KEY_PATIENCE: &str = "100ms";

/// A key that a request carries, and what the key will stand for if it is new.
#[derive(Debug)]
pub struct Reservation<'a> {
    /// The application that the key is unique in.
    pub application_id: Uuid,
    /// The key.
    pub key: &'a str,
    /// What makes two requests the same.
    pub fingerprint: [u8; 32],
    /// The id of what is to be made.
    pub result_id: Uuid,
}

/// How a request with a key stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The key is new: go on, in the same transaction.
    New,
    /// The same request was answered before, with this id.
    Repeat(Uuid),
    /// The key was used for another request.
    Reused {
        /// The other request's fingerprint.
        fingerprint: [u8; 32],
        /// What was made of it.
        result_id: Uuid,
    },
}

/// The answer that a key stands for.
#[derive(sqlx::FromRow)]
struct KeyRow {
    application_id: Uuid,
    key: String,
    fingerprint: Vec<u8>,
    event_id: Uuid,
}

/// Takes keys, in sorted order so that two transactions cannot wait for each other, and tells how
/// each stands, in the order given. No key may be there twice. The keys are kept if the caller's
/// transaction commits.
pub(super) async fn reserve(
    connection: &mut Session,
    wanted: &[Reservation<'_>],
    times: Times,
) -> Result<Vec<Standing>, StoreError> {
    let mut sorted: Vec<_> = wanted.iter().collect();
    sorted.sort_unstable_by_key(|one| (one.application_id, one.key));
    let applications: Vec<Uuid> = sorted.iter().map(|one| one.application_id).collect();
    let keys: Vec<&str> = sorted.iter().map(|one| one.key).collect();
    let fingerprints: Vec<&[u8]> = sorted.iter().map(|one| one.fingerprint.as_slice()).collect();
    let ids: Vec<Uuid> = sorted.iter().map(|one| one.result_id).collect();
    sqlx::query(concat!(
        "with patience as materialized (select set_config('lock_timeout', $6, true))
         insert into idempotency_key as known (application_id, key, fingerprint, event_id, created_at)
         select wanted.*, ",
        ordered_now!("$7"),
        "
         from patience, unnest($1::uuid[], $2::text[], $3::bytea[], $4::uuid[]) as wanted
         on conflict (application_id, key) do update
         set fingerprint = excluded.fingerprint, event_id = excluded.event_id,
             created_at = excluded.created_at
         where known.created_at < ",
        settled_now!("$8"),
        " - make_interval(hours => $5)",
    ))
    .bind(&applications)
    .bind(&keys)
    .bind(&fingerprints)
    .bind(&ids)
    .bind(IDEMPOTENCY_HOURS.cast_signed())
    .bind(KEY_PATIENCE)
    .bind(times.expected)
    .bind(times.settled)
    .execute(&mut *connection)
    .await
    .map_err(|error| if is_lock_timeout(&error) { StoreError::KeyHeld } else { error.into() })?;
    let rows: Vec<KeyRow> = sqlx::query_as(
        "with no_patience as materialized (select set_config('lock_timeout', null, true))
         select known.* from no_patience, unnest($1::uuid[], $2::text[]) as given(application_id, key)
         cross join lateral (
             select application_id, key, fingerprint, event_id from idempotency_key k
             where k.application_id = given.application_id and k.key = given.key
             offset 0
         ) as known",
    )
    .bind(&applications)
    .bind(&keys)
    .fetch_all(&mut *connection)
    .await?;
    Ok(wanted.iter().map(|one| standing(one, &rows)).collect())
}

fn is_lock_timeout(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("55P03"))
}

/// How a request stands that may carry a key: without one it is new.
pub(super) async fn stand(
    connection: &mut Session,
    once: Option<Reservation<'_>>,
    times: Times,
) -> Result<Standing, StoreError> {
    match once {
        Some(once) => Ok(reserve(connection, &[once], times).await?[0]),
        None => Ok(Standing::New),
    }
}

/// What the stored keys say about one request.
fn standing(wanted: &Reservation<'_>, rows: &[KeyRow]) -> Standing {
    let row = rows
        .iter()
        .find(|row| row.application_id == wanted.application_id && row.key == wanted.key);
    match row {
        Some(row) if row.event_id == wanted.result_id => Standing::New,
        Some(row) if row.fingerprint == wanted.fingerprint => Standing::Repeat(row.event_id),
        Some(row) => Standing::Reused {
            fingerprint: row.fingerprint.as_slice().try_into().unwrap_or([0; 32]),
            result_id: row.event_id,
        },
        // Reserved or found in this very transaction, so it cannot be missing.
        None => unreachable!("an idempotency key vanished within its transaction"),
    }
}

impl Store {
    /// Deletes up to `rows_max` idempotency keys that are past their time; tells how many.
    pub async fn forget_idempotency_keys(&self, rows_max: i64) -> Result<u64, StoreError> {
        bounded(async {
            let deleted = sqlx::query(concat!(
                "delete from idempotency_key where (application_id, key) in (
                     select application_id, key from idempotency_key
                     where created_at < ",
                settled_now!("$3"),
                " - make_interval(hours => $1)
                     order by created_at limit $2
                     for update skip locked
                 )",
            ))
            .bind(IDEMPOTENCY_HOURS.cast_signed())
            .bind(rows_max)
            .bind(self.times().settled)
            .execute(&self.pool)
            .await?;
            Ok(deleted.rows_affected())
        })
        .await
    }
}
