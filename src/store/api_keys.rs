//! API keys: who may call, known by the hash of what they send.

use std::{collections::HashMap, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::{Postgres, QueryBuilder};
use uuid::Uuid;

use super::{
    Store, StoreError, bounded, bounded_by,
    idempotency::{Reservation, Standing, stand},
    time::push_ordered_now,
};
use crate::domain::{ApiKeyHash, ApiKeyId, ApplicationId, Principal, Role};

/// How many keys an application may have that are not revoked, and the instance.
pub const API_KEYS_MAX: i64 = 1_000;

/// A key as it is shown: all but the key.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct ApiKeyRow {
    key_id: Uuid,
    application_id: Option<Uuid>,
    /// What people call it.
    pub name: String,
    role: String,
    /// Its first characters.
    pub hint: String,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it stops to let anybody in.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it last let somebody in, to the minute.
    pub last_used_at: Option<DateTime<Utc>>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
}

impl ApiKeyRow {
    /// Its id.
    pub fn id(&self) -> ApiKeyId {
        ApiKeyId::from_uuid(self.key_id)
    }

    /// What it lets its holder do. A constraint keeps unknown roles out.
    pub fn role(&self) -> Role {
        Role::from_name(&self.role).unwrap_or(Role::Viewer)
    }

    /// Whom it makes of its holder.
    fn principal(&self) -> Principal {
        Principal {
            role: self.role(),
            application: self.application_id.map(ApplicationId::from_uuid),
            key: Some(self.id()),
            expires_at: self.expires_at,
        }
    }
}

/// A key that was looked up by its hash.
#[derive(sqlx::FromRow)]
struct KnownRow {
    /// Its use is to be noted.
    is_due: bool,
    hash: Vec<u8>,
    #[sqlx(flatten)]
    key: ApiKeyRow,
}

/// A key to be made.
#[derive(Debug)]
pub struct NewApiKey<'a> {
    /// Its id, made by the caller.
    pub id: ApiKeyId,
    /// The application that it opens; `None` for one of the instance.
    pub application: Option<ApplicationId>,
    /// What people call it.
    pub name: &'a str,
    /// What it lets its holder do; `admin` exactly without an application.
    pub role: Role,
    /// Its first characters.
    pub hint: &'a str,
    /// What it is known by.
    pub hash: ApiKeyHash,
    /// When it stops to let anybody in.
    pub expires_at: Option<DateTime<Utc>>,
}

/// Maximum time for the note of a use: the next look-up waits for it.
const NOTE_TIMEOUT: Duration = Duration::from_secs(1);
const COLUMNS: &str = "key_id, application_id, name, role, hint, created_at, expires_at, \
                       last_used_at, revoked_at";

impl Store {
    /// Makes a key, unless `once` was answered before: then only its standing is told. Full at
    /// [`API_KEYS_MAX`], which several at the same time may pass by their number.
    pub async fn create_api_key(
        &self,
        new: &NewApiKey<'_>,
        once: Option<Reservation<'_>>,
    ) -> Result<Standing, StoreError> {
        bounded(async {
            let mut connection = self.pool.acquire().await?;
            let mut transaction = connection.begin().await?;
            let standing = stand(&mut transaction, once, self.times()).await?;
            if standing != Standing::New {
                return Ok(standing);
            }
            let inserted = sqlx::query(
                "insert into api_key (key_id, application_id, name, role, hint, hash, expires_at)
                 select $1, $2, $3, $4, $5, $6, $7
                 where (select count(*) from api_key
                        where application_id is not distinct from $2 and revoked_at is null) < $8",
            )
            .bind(new.id.uuid())
            .bind(new.application.map(ApplicationId::uuid))
            .bind(new.name)
            .bind(new.role.as_str())
            .bind(new.hint)
            .bind(new.hash.bytes().as_slice())
            .bind(new.expires_at)
            .bind(API_KEYS_MAX)
            .execute(&mut *transaction)
            .await?;
            if inserted.rows_affected() == 0 {
                return Err(StoreError::Full { what: "API keys", count_max: API_KEYS_MAX });
            }
            transaction.commit().await?;
            Ok(Standing::New)
        })
        .await
    }

    /// The callers that these keys let in, and the keys whose use is to be noted. A key is left out if
    /// it does not exist, is expired or revoked, or its application is deleted (it may have been made
    /// while that happened). Changes nothing, so that it is repeated where a session was lost.
    pub async fn principals_of(
        &self,
        hashes: &[ApiKeyHash],
    ) -> Result<(HashMap<ApiKeyHash, Principal>, Vec<ApiKeyId>), StoreError> {
        let hashes: Vec<&[u8]> = hashes.iter().map(|hash| hash.bytes().as_slice()).collect();
        bounded(async {
            let mut query = QueryBuilder::<Postgres>::new(
                "select last_used_at is null or last_used_at < now() - interval '1 minute' as is_due,
                        hash, ",
            );
            query.push(COLUMNS).push(" from api_key where hash = any(").push_bind(&hashes);
            query.push(") and revoked_at is null and (expires_at is null or expires_at > ");
            push_ordered_now(&mut query, self.times());
            query.push(
                ")
                  and not exists (
                      select from application a
                      where a.application_id = api_key.application_id and a.deleted_at is not null
                  )",
            );
            let rows: Vec<KnownRow> = query.build_query_as().fetch_all(&self.pool).await?;
            let due = rows.iter().filter(|row| row.is_due).map(|row| row.key.id()).collect();
            let known = rows.into_iter().filter_map(|row| {
                let hash = ApiKeyHash::from_bytes(row.hash.as_slice().try_into().ok()?);
                Some((hash, row.key.principal()))
            });
            Ok((known.collect(), due))
        })
        .await
    }

    /// Notes the use of keys, once a minute at most; a row that another process is noting is skipped.
    pub async fn note_use(&self, keys: &[ApiKeyId]) -> Result<(), StoreError> {
        let keys: Vec<Uuid> = keys.iter().map(|key| key.uuid()).collect();
        bounded_by(NOTE_TIMEOUT, async {
            sqlx::query(
                "with unnoted as (
                     select key_id from api_key
                     where key_id = any($1)
                       and (last_used_at is null or last_used_at < now() - interval '1 minute')
                     for no key update skip locked
                 )
                 update api_key set last_used_at = now() from unnoted
                 where api_key.key_id = unnoted.key_id",
            )
            .bind(keys)
            .execute(&self.pool)
            .await?;
            Ok(())
        })
        .await
    }

    /// Lists the keys of an application, or of the instance, newest first: up to `rows_max` of those
    /// made before `older_than`. Revoked and expired ones are among them.
    pub async fn api_keys(
        &self,
        application: Option<ApplicationId>,
        older_than: Option<ApiKeyId>,
        rows_max: i64,
    ) -> Result<Vec<ApiKeyRow>, StoreError> {
        bounded(async {
            let mut query = QueryBuilder::<Postgres>::new("select ");
            query.push(COLUMNS).push(" from api_key where ");
            match application {
                Some(id) => query.push("application_id = ").push_bind(id.uuid()),
                None => query.push("application_id is null"),
            };
            if let Some(older_than) = older_than {
                query.push(" and key_id < ").push_bind(older_than.uuid());
            }
            query.push(" order by key_id desc limit ").push_bind(rows_max);
            Ok(query.build_query_as().fetch_all(&self.pool).await?)
        })
        .await
    }

    /// One key of an application, or of the instance.
    pub async fn api_key(
        &self,
        application: Option<ApplicationId>,
        id: ApiKeyId,
    ) -> Result<Option<ApiKeyRow>, StoreError> {
        bounded(async {
            let mut query = QueryBuilder::<Postgres>::new("select ");
            query.push(COLUMNS).push(" from api_key where key_id = ").push_bind(id.uuid());
            query.push(" and application_id is not distinct from ");
            query.push_bind(application.map(ApplicationId::uuid));
            Ok(query.build_query_as().fetch_optional(&self.pool).await?)
        })
        .await
    }

    /// Revokes a key; `false` if there is no such key. To revoke it again changes nothing.
    pub async fn revoke_api_key(
        &self,
        application: Option<ApplicationId>,
        id: ApiKeyId,
    ) -> Result<bool, StoreError> {
        bounded(async {
            let revoked = sqlx::query(
                "update api_key set revoked_at = coalesce(revoked_at, now())
                 where key_id = $1 and application_id is not distinct from $2",
            )
            .bind(id.uuid())
            .bind(application.map(ApplicationId::uuid))
            .execute(&self.pool)
            .await?;
            Ok(revoked.rows_affected() > 0)
        })
        .await
    }

    /// Revokes a key, whosever it is; `false` if there is no such key. For the operator alone.
    pub async fn revoke_api_key_of_any(&self, id: ApiKeyId) -> Result<bool, StoreError> {
        bounded(async {
            let revoked = sqlx::query(
                "update api_key set revoked_at = coalesce(revoked_at, now()) where key_id = $1",
            )
            .bind(id.uuid())
            .execute(&self.pool)
            .await?;
            Ok(revoked.rows_affected() > 0)
        })
        .await
    }
}
