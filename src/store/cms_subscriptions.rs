//! Subscriptions that are documents of a CMS.
//!
//! A document is read without a transaction open, and by more than one process: the one that looks
//! regularly, and the ones that are told of a change. So whoever reads notes first how often it was
//! read before ([`KnownDocument::read_count`]), and what came of it is stored only if nobody was quicker.

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    Store, StoreError, bounded,
    changing::{Change, NextRevision, begin},
    subscription_changes::{Changed, NewSigningKey, NewSubscription},
    subscriptions::SettingsRow,
};
use crate::domain::{ApplicationId, SubscriptionId};

/// How many bytes of a document's id there may be.
pub const DOCUMENT_ID_BYTES_MAX: usize = 255;

/// A document as it was last read.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct KnownDocument {
    /// Its id in the CMS.
    pub document_id: String,
    subscription_id: Option<Uuid>,
    /// What the CMS said of its last change, as it said it.
    pub document_updated_at: String,
    /// How often it was read; what is stored next must name this.
    pub read_count: i64,
    /// Why it is refused, if it is.
    pub refused_because: Option<String>,
}

impl KnownDocument {
    /// The subscription that it is, unless that was deleted, or it never was good.
    pub fn subscription(&self) -> Option<SubscriptionId> {
        self.subscription_id.map(SubscriptionId::from_uuid)
    }
}

/// A document that is refused.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct RefusedDocument {
    /// Its id in the CMS.
    pub document_id: String,
    /// What people call it there.
    pub name: Option<String>,
    /// Since when.
    pub refused_at: DateTime<Utc>,
    /// Why.
    pub refused_because: String,
}

/// A document that was read.
#[derive(Debug, Clone, Copy)]
pub struct ReadDocument<'a> {
    /// The application that the CMS keeps the subscriptions of.
    pub application: ApplicationId,
    /// Its id in the CMS.
    pub document_id: &'a str,
    /// How often it was read before this; `None`: it was not known.
    pub known_read_count: Option<i64>,
    /// What the CMS says of its last change.
    pub updated_at: &'a str,
    /// What people call it there.
    pub name: Option<&'a str>,
}

/// What a good document comes to.
#[derive(Debug)]
pub enum Wanted<'a> {
    /// A new subscription.
    New(&'a NewSubscription<'a>),
    /// Another revision of the one that it is.
    Next {
        /// Which subscription.
        id: SubscriptionId,
        /// The revision that it must still be at.
        read_revision: i32,
        /// All of its settings; `None`: they are what they were.
        settings: Option<&'a SettingsRow>,
        /// A key that signs from now on, and how long those before it sign beside it.
        key: Option<(&'a NewSigningKey, Duration)>,
    },
}

const KNOWN: &str = "select d.document_id, s.subscription_id, d.document_updated_at, d.read_count,
                            d.refused_because
                     from cms_document d
                     left join subscription s
                         on s.subscription_id = d.subscription_id and s.deleted_at is null
                     where d.application_id = $1 and ($2::text is null or d.document_id = $2)
                     order by d.document_id limit $3";

impl Store {
    /// The documents that were read before, up to `rows_max`.
    pub async fn known_documents(
        &self,
        application: ApplicationId,
        rows_max: i64,
    ) -> Result<Vec<KnownDocument>, StoreError> {
        bounded(async {
            let known = sqlx::query_as(KNOWN).bind(application.uuid()).bind(None::<&str>);
            Ok(known.bind(rows_max).fetch_all(&self.pool).await?)
        })
        .await
    }

    /// One of them.
    pub async fn known_document(
        &self,
        application: ApplicationId,
        document_id: &str,
    ) -> Result<Option<KnownDocument>, StoreError> {
        bounded(async {
            let known = sqlx::query_as(KNOWN).bind(application.uuid()).bind(document_id);
            Ok(known.bind(1_i64).fetch_optional(&self.pool).await?)
        })
        .await
    }

    /// Makes or changes the subscription that a document is. Outdated if somebody else has read the
    /// document, or changed the subscription, since; gone if the application or the subscription is.
    pub async fn apply_document(
        &self,
        read: ReadDocument<'_>,
        wanted: &Wanted<'_>,
    ) -> Result<Changed, StoreError> {
        bounded(async {
            let mut connection = self.pool.acquire().await?;
            let Some(mut change) = begin(&mut connection, read.application, self.times()).await?
            else {
                return Ok(Changed::Gone);
            };
            let id = match wanted {
                Wanted::New(new) => {
                    change.insert_subscription(new).await?;
                    change.belongs_to(new.id, read.document_id).await?;
                    new.id
                }
                Wanted::Next { id, read_revision, settings, key } => {
                    if let Some(settings) = *settings {
                        let read_revision = *read_revision;
                        let next =
                            NextRevision { id: *id, read_revision, settings, uid: None, key: None };
                        match change.change_subscription(read.application, &next).await? {
                            Changed::Done => {}
                            other => return Ok(other),
                        }
                    }
                    if let Some((key, overlap)) = key
                        && !change.rotate_signing_key(read.application, *id, key, *overlap).await?
                    {
                        return Ok(Changed::Gone);
                    }
                    *id
                }
            };
            if !change.note(read, Some(id), None).await? {
                return Ok(Changed::Outdated);
            }
            change.transaction.commit().await?;
            Ok(Changed::Done)
        })
        .await
    }

    /// Notes that a document is refused, and why; its subscription, if it has one, is as it was.
    pub async fn refuse_document(
        &self,
        read: ReadDocument<'_>,
        because: &str,
    ) -> Result<Changed, StoreError> {
        bounded(async {
            let mut connection = self.pool.acquire().await?;
            let Some(mut change) = begin(&mut connection, read.application, self.times()).await?
            else {
                return Ok(Changed::Gone);
            };
            if !change.note(read, None, Some(because)).await? {
                return Ok(Changed::Outdated);
            }
            change.transaction.commit().await?;
            Ok(Changed::Done)
        })
        .await
    }

    /// Forgets a document that is gone, and deletes its subscription, which is told. `None` if somebody
    /// else has read the document since.
    pub async fn remove_document(
        &self,
        application: ApplicationId,
        document_id: &str,
        known_read_count: i64,
    ) -> Result<Option<Option<SubscriptionId>>, StoreError> {
        bounded(async {
            let mut connection = self.pool.acquire().await?;
            let Some(mut change) = begin(&mut connection, application, self.times()).await? else {
                return Ok(None);
            };
            let removed: Option<Option<Uuid>> = sqlx::query_scalar(
                "delete from cms_document
                 where application_id = $1 and document_id = $2 and read_count = $3
                 returning subscription_id",
            )
            .bind(application.uuid())
            .bind(document_id)
            .bind(known_read_count)
            .fetch_optional(&mut *change.transaction)
            .await?;
            let Some(subscription) = removed else { return Ok(None) };
            let subscription = subscription.map(SubscriptionId::from_uuid);
            if let Some(id) = subscription {
                change.delete_subscription(application, id).await?;
            }
            change.transaction.commit().await?;
            Ok(Some(subscription))
        })
        .await
    }

    /// The documents that are refused and are no subscription, the latest first: up to `rows_max`.
    pub async fn refused_documents(
        &self,
        application: ApplicationId,
        rows_max: i64,
    ) -> Result<Vec<RefusedDocument>, StoreError> {
        bounded(async {
            Ok(sqlx::query_as(
                "select document_id, name, refused_at, refused_because
                 from cms_document
                 where application_id = $1 and refused_at is not null and subscription_id is null
                 order by refused_at desc, document_id limit $2",
            )
            .bind(application.uuid())
            .bind(rows_max)
            .fetch_all(&self.pool)
            .await?)
        })
        .await
    }
}

impl Change<'_> {
    async fn belongs_to(
        &mut self,
        id: SubscriptionId,
        document_id: &str,
    ) -> Result<(), StoreError> {
        sqlx::query("update subscription set cms_document_id = $2 where subscription_id = $1")
            .bind(id.uuid())
            .bind(document_id)
            .execute(&mut *self.transaction)
            .await?;
        Ok(())
    }

    /// Notes what was read: of a good one the subscription, of another one why it is refused, and that
    /// since the first time. `false` if somebody else has read it since.
    async fn note(
        &mut self,
        read: ReadDocument<'_>,
        subscription: Option<SubscriptionId>,
        refused_because: Option<&str>,
    ) -> Result<bool, StoreError> {
        let statement = match read.known_read_count {
            None => sqlx::query(
                "insert into cms_document
                     (application_id, document_id, document_updated_at, name, subscription_id,
                      refused_because, refused_at)
                 values ($1, $2, $3, $4, $5, $6, case when $6::text is not null then now() end)
                 on conflict do nothing",
            ),
            Some(_) => sqlx::query(
                "update cms_document
                 set document_updated_at = $3, name = $4, read_count = read_count + 1,
                     subscription_id = coalesce($5, subscription_id), refused_because = $6,
                     refused_at = case when $6::text is not null then coalesce(refused_at, now()) end
                 where application_id = $1 and document_id = $2 and read_count = $7",
            ),
        };
        let statement = statement
            .bind(read.application.uuid())
            .bind(read.document_id)
            .bind(read.updated_at)
            .bind(read.name)
            .bind(subscription.map(SubscriptionId::uuid))
            .bind(refused_because);
        let statement = match read.known_read_count {
            None => statement,
            Some(count) => statement.bind(count),
        };
        Ok(statement.execute(&mut *self.transaction).await?.rows_affected() == 1)
    }
}
