//! Changes of subscriptions and of the keys that sign: each one is a transaction that raises the
//! routing version of its application.

use std::time::Duration;

use super::{
    Store, StoreError, bounded,
    changing::{NextRevision, begin},
    idempotency::{Reservation, Standing, stand},
    subscriptions::SettingsRow,
};
use crate::domain::{
    ApplicationId, SigningKeyId, SubscriptionId, operator, subscription::DisabledBecause,
};

/// How many keys of a subscription may sign at a time; the oldest beyond retire at once.
pub const SIGNING_KEYS_MAX: i64 = 5;
/// How many subscriptions an application may have: all of them are in the memory of every process
/// that routes.
pub const SUBSCRIPTIONS_MAX: i64 = 50_000;

/// A subscription to be made.
#[derive(Debug)]
pub struct NewSubscription<'a> {
    /// Its id, made by the caller.
    pub id: SubscriptionId,
    /// The application that it belongs to.
    pub application: ApplicationId,
    /// Its owner's name for it.
    pub uid: Option<&'a str>,
    /// Its first revision.
    pub settings: &'a SettingsRow,
    /// Its first key; `None` where signing is off.
    pub key: Option<NewSigningKey>,
}

/// A key to be made.
#[derive(Debug)]
pub struct NewSigningKey {
    /// Its id, made by the caller: the secret is sealed for it.
    pub id: SigningKeyId,
    /// The secret, sealed.
    pub sealed: Vec<u8>,
}

/// What a change came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    /// It is done.
    Done,
    /// There is no such subscription.
    Gone,
    /// Somebody else has changed it since it was read.
    Outdated,
}

impl Store {
    /// Makes a subscription, unless `once` was answered before: then only its standing is told.
    /// `None` if there is no such application. Violates `subscription_uid_key` if the uid is taken;
    /// full at [`SUBSCRIPTIONS_MAX`].
    pub async fn create_subscription(
        &self,
        new: &NewSubscription<'_>,
        once: Option<Reservation<'_>>,
    ) -> Result<Option<Standing>, StoreError> {
        bounded(async {
            let mut connection = self.pool.acquire().await?;
            let Some(mut change) = begin(&mut connection, new.application, self.times()).await?
            else {
                return Ok(None);
            };
            let standing = stand(&mut change.transaction, once, self.times()).await?;
            if standing != Standing::New {
                return Ok(Some(standing));
            }
            change.insert_subscription(new).await?;
            change.transaction.commit().await?;
            Ok(Some(Standing::New))
        })
        .await
    }

    /// Gives a subscription its next revision, if it is still at the one that was read. `uid`
    /// replaces its name if there is one. A key is made if there is one: signing was off.
    pub async fn change_subscription(
        &self,
        application: ApplicationId,
        id: SubscriptionId,
        read_revision: i32,
        settings: &SettingsRow,
        uid: Option<&str>,
        key: Option<&NewSigningKey>,
    ) -> Result<Changed, StoreError> {
        bounded(async {
            let mut connection = self.pool.acquire().await?;
            let Some(mut change) = begin(&mut connection, application, self.times()).await? else {
                return Ok(Changed::Gone);
            };
            let next = NextRevision { id, read_revision, settings, uid, key };
            let changed = change.change_subscription(application, &next).await?;
            if changed == Changed::Done {
                change.transaction.commit().await?;
            }
            Ok(changed)
        })
        .await
    }

    /// Disables a subscription because of what its receiver answered to a revision of it; `false` if
    /// it is at another one by now, or is disabled already: then that answer says nothing about it.
    pub async fn disable_subscription(
        &self,
        application: ApplicationId,
        id: SubscriptionId,
        sent_revision: i32,
        because: DisabledBecause,
    ) -> Result<bool, StoreError> {
        bounded(async {
            let mut connection = self.pool.acquire().await?;
            let Some(mut change) = begin(&mut connection, application, self.times()).await? else {
                return Ok(false);
            };
            let is_current: Option<bool> = sqlx::query_scalar(
                "select r.is_active from subscription s
                 join subscription_revision r using (subscription_id, revision)
                 where s.application_id = $1 and s.subscription_id = $2 and s.revision = $3
                   and s.deleted_at is null",
            )
            .bind(application.uuid())
            .bind(id.uuid())
            .bind(sent_revision)
            .fetch_optional(&mut *change.transaction)
            .await?;
            if is_current != Some(true) {
                return Ok(false);
            }
            change.move_to(id, sent_revision + 1, None).await?;
            change.set_draining(id, true).await?;
            change.copy_revision(id, sent_revision, Some(because)).await?;
            change.tell(id, operator::SUBSCRIPTION_DISABLED).await?;
            change.transaction.commit().await?;
            Ok(true)
        })
        .await
    }

    /// Deletes a subscription: events are routed to it no more, and what waits for it is cancelled.
    /// `false` if there is no such one.
    pub async fn delete_subscription(
        &self,
        application: ApplicationId,
        id: SubscriptionId,
    ) -> Result<bool, StoreError> {
        bounded(async {
            let mut connection = self.pool.acquire().await?;
            let Some(mut change) = begin(&mut connection, application, self.times()).await? else {
                return Ok(false);
            };
            if !change.delete_subscription(application, id).await? {
                return Ok(false);
            }
            change.transaction.commit().await?;
            Ok(true)
        })
        .await
    }

    /// Makes a key the current one of a subscription. Those before sign beside it for the overlap.
    /// `false` if there is no such subscription.
    pub async fn rotate_signing_key(
        &self,
        application: ApplicationId,
        id: SubscriptionId,
        key: &NewSigningKey,
        overlap: Duration,
    ) -> Result<bool, StoreError> {
        bounded(async {
            let mut connection = self.pool.acquire().await?;
            let Some(mut change) = begin(&mut connection, application, self.times()).await? else {
                return Ok(false);
            };
            if !change.rotate_signing_key(application, id, key, overlap).await? {
                return Ok(false);
            }
            change.transaction.commit().await?;
            Ok(true)
        })
        .await
    }
}
