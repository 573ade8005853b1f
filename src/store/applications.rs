//! Applications: the tenants.

use chrono::{DateTime, Utc};
use sqlx::{Postgres, QueryBuilder};
use uuid::Uuid;

use super::{
    Store, StoreError, bounded,
    changing::insert_key,
    idempotency::{Reservation, Standing, stand},
    session::Session,
    subscription_changes::NewSigningKey,
};
use crate::domain::{ApplicationId, Uid};

/// An application as it is shown.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct ApplicationRow {
    application_id: Uuid,
    /// Its owner's name for it.
    pub uid: String,
    /// What people call it.
    pub name: String,
    /// Whether events of types that are in no catalogue are taken.
    pub accepts_unknown_types: bool,
    /// After how many days its payloads are dropped; `None`: as the settings say.
    pub payload_retention_days: Option<i32>,
    /// The hosts that it may call; `None`: all that may be called at all.
    pub allowed_hosts: Option<Vec<String>>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
}

impl ApplicationRow {
    /// Its id.
    pub fn id(&self) -> ApplicationId {
        ApplicationId::from_uuid(self.application_id)
    }
}

/// What an application is named by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApplicationName {
    /// Our id.
    Id(ApplicationId),
    /// Its owner's name for it.
    Uid(Uid),
}

/// An application to be made.
#[derive(Debug)]
pub struct NewApplication<'a> {
    /// Its id, made by the caller.
    pub id: ApplicationId,
    /// Its owner's name for it.
    pub uid: &'a str,
    /// What people call it.
    pub name: &'a str,
    /// What signs its explicit targets.
    pub key: &'a NewSigningKey,
    /// Whether events of types that are in no catalogue are taken.
    pub accepts_unknown_types: bool,
    /// For how long its payloads are kept, if that is said.
    pub payloads: Option<PayloadsKept>,
    /// The hosts that it may call; `None`: all that may be called at all.
    pub allowed_hosts: Option<&'a [String]>,
}

/// For how long an application keeps payloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadsKept {
    /// As long as the settings say.
    AsSettings,
    /// For so many days.
    Days(i32),
}

/// Which hosts an application may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostsAllowed {
    /// All that may be called at all.
    All,
    /// These, and all below these domains.
    Only(Vec<String>),
}

impl HostsAllowed {
    /// As it is stored.
    pub fn list(&self) -> Option<&[String]> {
        match self {
            Self::All => None,
            Self::Only(hosts) => Some(hosts),
        }
    }
}

/// What is to be changed of an application; `None` leaves it as it is.
#[derive(Debug, Default)]
pub struct ApplicationChange<'a> {
    /// Its owner's name for it.
    pub uid: Option<&'a str>,
    /// What people call it.
    pub name: Option<&'a str>,
    /// Whether events of types that are in no catalogue are taken.
    pub accepts_unknown_types: Option<bool>,
    /// For how long its payloads are kept.
    pub payloads: Option<PayloadsKept>,
    /// The hosts that it may call.
    pub allowed_hosts: Option<&'a HostsAllowed>,
}

const COLUMNS: &str = "application_id, uid, name, accepts_unknown_types, allowed_hosts,
     (select days from payload_retention p where p.application_id = application.application_id)
         as payload_retention_days,
     created_at, updated_at";

impl Store {
    /// Makes an application, unless `once` was answered before: then only its standing is told.
    /// Violates `application_uid_key` if the uid is taken.
    pub async fn create_application(
        &self,
        new: &NewApplication<'_>,
        once: Option<Reservation<'_>>,
    ) -> Result<Standing, StoreError> {
        bounded(async {
            let mut connection = self.pool.acquire().await?;
            let mut transaction = connection.begin().await?;
            let standing = stand(&mut transaction, once, self.times()).await?;
            if standing != Standing::New {
                return Ok(standing);
            }
            sqlx::query(
                "insert into application
                     (application_id, uid, name, accepts_unknown_types, allowed_hosts)
                 values ($1, $2, $3, $4, $5)",
            )
            .bind(new.id.uuid())
            .bind(new.uid)
            .bind(new.name)
            .bind(new.accepts_unknown_types)
            .bind(new.allowed_hosts)
            .execute(&mut *transaction)
            .await?;
            if let Some(payloads) = new.payloads {
                keep_payloads(&mut transaction, new.id, payloads).await?;
            }
            insert_key(&mut transaction, new.id, None, new.key).await?;
            transaction.commit().await?;
            Ok(Standing::New)
        })
        .await
    }

    /// Finds an application, unless it is deleted.
    pub async fn application(
        &self,
        name: &ApplicationName,
    ) -> Result<Option<ApplicationRow>, StoreError> {
        bounded(async {
            let mut query = QueryBuilder::<Postgres>::new("select ");
            query.push(COLUMNS).push(" from application where deleted_at is null and ");
            match name {
                ApplicationName::Id(id) => {
                    query.push("application_id = ").push_bind(id.uuid());
                }
                ApplicationName::Uid(uid) => {
                    query.push("uid = ").push_bind(uid.as_str());
                }
            }
            Ok(query.build_query_as().fetch_optional(&self.pool).await?)
        })
        .await
    }

    /// Lists applications, newest first: up to `rows_max` of those made before `older_than`.
    pub async fn applications(
        &self,
        older_than: Option<ApplicationId>,
        rows_max: i64,
    ) -> Result<Vec<ApplicationRow>, StoreError> {
        bounded(async {
            let mut query = QueryBuilder::<Postgres>::new("select ");
            query.push(COLUMNS).push(" from application where deleted_at is null");
            if let Some(older_than) = older_than {
                query.push(" and application_id < ").push_bind(older_than.uuid());
            }
            query.push(" order by application_id desc limit ").push_bind(rows_max);
            Ok(query.build_query_as().fetch_all(&self.pool).await?)
        })
        .await
    }

    /// Changes an application; `None` if there is no such one. Violates `application_uid_key` if
    /// the uid is taken.
    pub async fn change_application(
        &self,
        id: ApplicationId,
        change: &ApplicationChange<'_>,
    ) -> Result<Option<ApplicationRow>, StoreError> {
        bounded(async {
            let mut connection = self.pool.acquire().await?;
            let mut transaction = connection.begin().await?;
            if let Some(payloads) = change.payloads {
                keep_payloads(&mut transaction, id, payloads).await?;
            }
            let mut query = QueryBuilder::<Postgres>::new("update application set uid = coalesce(");
            query.push_bind(change.uid).push(", uid), routing_version = routing_version");
            let hosts = change.allowed_hosts.map(HostsAllowed::list);
            if let Some(hosts) = hosts {
                // Whoever calls must hear of it.
                query.push(" + case when allowed_hosts is distinct from ").push_bind(hosts);
                query.push(" then 1 else 0 end");
            }
            // Senders know applications by their uids too: `SIGNING_KEYS` may name them so.
            query.push(" + case when uid <> ").push_bind(change.uid).push(" then 1 else 0 end");
            query.push(", name = coalesce(");
            query.push_bind(change.name).push(", name), accepts_unknown_types = coalesce(");
            query.push_bind(change.accepts_unknown_types);
            query.push(", accepts_unknown_types)");
            if let Some(hosts) = hosts {
                query.push(", allowed_hosts = ").push_bind(hosts);
            }
            query.push(", updated_at = now() where application_id = ");
            query.push_bind(id.uuid()).push(" and deleted_at is null returning ").push(COLUMNS);
            let row = query.build_query_as().fetch_optional(&mut *transaction).await?;
            transaction.commit().await?;
            Ok(row)
        })
        .await
    }

    /// Deletes an application: from now on it accepts nothing, its keys let nobody in, its
    /// subscriptions are deleted, and its deliveries are cancelled when they are due. `false` if
    /// there is no such one.
    pub async fn delete_application(&self, id: ApplicationId) -> Result<bool, StoreError> {
        bounded(async {
            let deleted = sqlx::query(
                "with deleted as (
                     update application
                     set deleted_at = now(), updated_at = now(),
                         routing_version = routing_version + 1
                     where application_id = $1 and deleted_at is null
                     returning application_id, routing_version
                 ),
                 ended as (
                     update subscription s
                     set deleted_at = now(), updated_at = now(),
                         routing_version = deleted.routing_version
                     from deleted
                     where s.application_id = deleted.application_id and s.deleted_at is null
                     returning s.subscription_id
                 ),
                 unlimited as (
                     delete from lane_limit l using ended where l.lane_id = ended.subscription_id
                 ),
                 revoked as (
                     update api_key set revoked_at = now()
                     from deleted
                     where api_key.application_id = deleted.application_id and revoked_at is null
                 )
                 select from deleted",
            )
            .bind(id.uuid())
            .execute(&self.pool)
            .await?;
            Ok(deleted.rows_affected() > 0)
        })
        .await
    }
}

/// Has the payloads of an application dropped after so many days, or as the settings say.
async fn keep_payloads(
    connection: &mut Session,
    id: ApplicationId,
    kept: PayloadsKept,
) -> Result<(), StoreError> {
    let query = match kept {
        PayloadsKept::AsSettings => {
            sqlx::query("delete from payload_retention where application_id = $1").bind(id.uuid())
        }
        PayloadsKept::Days(days) => sqlx::query(
            "insert into payload_retention (application_id, days) values ($1, $2)
             on conflict (application_id) do update set days = excluded.days",
        )
        .bind(id.uuid())
        .bind(days),
    };
    query.execute(connection).await?;
    Ok(())
}
