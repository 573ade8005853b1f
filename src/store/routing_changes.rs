//! What has changed of applications since the versions that are known: of many at a time, since all of
//! them are asked for every second.

use std::collections::HashMap;

use uuid::Uuid;

use super::{
    Store, StoreError, bounded,
    session::Session,
    subscriptions::{SigningKeyRow, SubscriptionRow, current_subscriptions},
    time::{Times, ordered_now},
};
use crate::domain::ApplicationId;

/// What has changed of an application since a version.
#[derive(Debug)]
pub struct Changes {
    /// The version that it has now.
    pub version: i64,
    /// Its uid; a change of it raises the version.
    pub uid: String,
    /// The hosts that it may call; a change of them raises the version.
    pub allowed_hosts: Option<Vec<String>>,
    /// Subscriptions that were made, changed or deleted since; at their current revisions.
    pub subscriptions: Vec<SubscriptionRow>,
    /// The keys of these, and those of the application's explicit targets: newest first. None, if
    /// the version is the one that was known.
    pub keys: Vec<SigningKeyRow>,
}

/// What a look at an application came to.
#[derive(Debug)]
pub enum Found {
    /// What has changed, or nothing.
    Changes(Changes),
    /// More subscriptions have changed than were to be read.
    TooMany,
}

#[derive(sqlx::FromRow)]
struct ApplicationRow {
    application_id: Uuid,
    known: i64,
    routing_version: i64,
    uid: String,
    allowed_hosts: Option<Vec<String>>,
    has_many: bool,
}

/// What has changed, of each application.
#[derive(Default)]
struct Changed {
    subscriptions: HashMap<Uuid, Vec<SubscriptionRow>>,
    keys: HashMap<Uuid, Vec<SigningKeyRow>>,
}

#[derive(sqlx::FromRow)]
struct Of<T> {
    application_id: Uuid,
    #[sqlx(flatten)]
    row: T,
}

impl Store {
    /// What has changed of these applications since the versions that are known of them (0: nothing
    /// is known). Those that do not exist are missing from the answer.
    pub async fn changes_since(
        &self,
        known: &[(ApplicationId, i64)],
        subscriptions_max: i64,
    ) -> Result<HashMap<ApplicationId, Found>, StoreError> {
        let (ids, versions): (Vec<Uuid>, Vec<i64>) =
            known.iter().map(|(id, version)| (id.uuid(), version)).unzip();
        bounded(async {
            let mut connection = self.pool.acquire().await?;
            // The versions first: what is read after them may be newer, and is then read once more.
            let rows: Vec<ApplicationRow> = sqlx::query_as(
                "select a.application_id, w.known, a.routing_version, a.uid, a.allowed_hosts,
                        a.routing_version <> w.known and $3::bigint < (
                            select count(*) from (
                                select from subscription s
                                where s.application_id = a.application_id
                                  and s.routing_version > w.known
                                  and (w.known > 0 or s.deleted_at is null)
                                limit $3::bigint + 1
                            ) as newer
                        ) as has_many
                 -- Behind `select` the planner cannot count them, so that it keeps its plan.
                 from unnest((select $1::uuid[]), (select $2::bigint[])) as w(application_id, known)
                 join application a using (application_id)
                 where a.deleted_at is null",
            )
            .bind(ids)
            .bind(versions)
            .bind(subscriptions_max)
            .fetch_all(&mut *connection)
            .await?;
            let is_read = |row: &&ApplicationRow| row.routing_version != row.known && !row.has_many;
            let (ids, versions): (Vec<Uuid>, Vec<i64>) =
                rows.iter().filter(is_read).map(|row| (row.application_id, row.known)).unzip();
            let Changed { mut subscriptions, mut keys } = if ids.is_empty() {
                Changed::default()
            } else {
                changed(&mut connection, &ids, &versions, self.times()).await?
            };
            let found = rows.into_iter().map(|row| {
                let id = row.application_id;
                let found = if row.has_many {
                    Found::TooMany
                } else {
                    Found::Changes(Changes {
                        version: row.routing_version,
                        uid: row.uid,
                        allowed_hosts: row.allowed_hosts,
                        subscriptions: subscriptions.remove(&id).unwrap_or_default(),
                        keys: keys.remove(&id).unwrap_or_default(),
                    })
                };
                (ApplicationId::from_uuid(id), found)
            });
            Ok(found.collect())
        })
        .await
    }

    /// Has Postgres plan what [`Self::changes_since`] asks. Changes nothing.
    pub(super) async fn prepare_changes(&self) -> Result<(), StoreError> {
        self.changes_since(&[], 1).await?;
        bounded(async {
            let mut connection = self.pool.acquire().await?;
            changed(&mut connection, &[], &[], self.times()).await.map(drop)
        })
        .await
    }
}

/// The subscriptions of these applications that have changed since these versions, and the keys.
async fn changed(
    connection: &mut Session,
    ids: &[Uuid],
    versions: &[i64],
    times: Times,
) -> Result<Changed, StoreError> {
    let mut changed = Changed::default();
    let read: Vec<Of<SubscriptionRow>> = sqlx::query_as(current_subscriptions!(
        "join unnest((select $1::uuid[]), (select $2::bigint[])) as w(application_id, known)
             on w.application_id = s.application_id
         where s.routing_version > w.known and (w.known > 0 or s.deleted_at is null)"
    ))
    .bind(ids)
    .bind(versions)
    .fetch_all(&mut *connection)
    .await?;
    let read_ids: Vec<Uuid> = read.iter().map(|one| one.row.id().uuid()).collect();
    for one in read {
        changed.subscriptions.entry(one.application_id).or_default().push(one.row);
    }
    let read: Vec<Of<SigningKeyRow>> = sqlx::query_as(concat!(
        "select k.application_id, k.signing_key_id, k.subscription_id, k.sealed, k.retires_at
         from unnest((select $1::uuid[]), (select $2::bigint[])) as w(application_id, known)
         join signing_key k using (application_id)
         where (w.known = 0 or k.subscription_id is null or k.subscription_id = any($3))
           and (k.retires_at is null or k.retires_at > ",
        ordered_now!("$4"),
        ") order by k.retires_at is not null, k.signing_key_id desc",
    ))
    .bind(ids)
    .bind(versions)
    .bind(read_ids)
    .bind(times.expected)
    .fetch_all(&mut *connection)
    .await?;
    for one in read {
        changed.keys.entry(one.application_id).or_default().push(one.row);
    }
    Ok(changed)
}
