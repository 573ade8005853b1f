//! Subscriptions, their revisions, and the keys that sign.
//!
//! Every change takes the application's row, raises its routing version, and stamps what it changed
//! with the new one. So a snapshot is brought up to date by what lies above its version
//! ([`super::routing_changes`]), and the transaction that stores an event finds out that its snapshot
//! was too old.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Store, StoreError, applications::ApplicationName, bounded, time::ordered_now};
use crate::domain::{ApplicationId, SigningKeyId, SubscriptionId, Uid, ids::DEFAULT_APPLICATION};

/// A subscription at its current revision.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct SubscriptionRow {
    subscription_id: Uuid,
    /// Its owner's name for it.
    pub uid: Option<String>,
    /// The current revision's number.
    pub revision: i32,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
    /// When it was deleted.
    pub deleted_at: Option<DateTime<Utc>>,
    /// The document of the CMS that it is, if it is one.
    pub cms_document_id: Option<String>,
    /// All that may change.
    #[sqlx(flatten)]
    pub settings: SettingsRow,
}

impl SubscriptionRow {
    /// Its id.
    pub fn id(&self) -> SubscriptionId {
        SubscriptionId::from_uuid(self.subscription_id)
    }
}

/// What one revision says.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct SettingsRow {
    /// Where events go.
    pub target_url: String,
    /// A method's name.
    pub method: String,
    /// Patterns.
    pub event_types: Vec<String>,
    /// JSON text.
    pub filter: Option<String>,
    /// Whether events are sent.
    pub is_active: bool,
    /// Since when they are not.
    pub disabled_at: Option<DateTime<Utc>>,
    /// Why they are not: a name of `DisabledBecause`.
    pub disabled_because: Option<String>,
    /// How many seconds all may fail before it is disabled; zero: for ever; `None`: as the settings
    /// say.
    pub disable_after_s: Option<i32>,
    /// The deadline over one exchange; `None`: that of the settings.
    pub timeout_ms: Option<i32>,
    /// JSON text; `None`: the policy of the settings.
    pub retry: Option<String>,
    /// How many requests at a time.
    pub max_in_flight: Option<i32>,
    /// JSON text: how many requests in a time.
    pub rate_limit: Option<String>,
    /// A format's name.
    pub payload_format: String,
    /// What the envelope tells of its form.
    pub schema_version: String,
    /// `standard` or `none`.
    pub signing: String,
    /// A name of `SignatureHeaders`.
    pub signature_headers: String,
    /// A JSON object of names and values, sealed.
    pub sealed_headers: Option<Vec<u8>>,
    /// The secret that checks what comes in, sealed.
    pub sealed_inbound_secret: Option<Vec<u8>>,
    /// The header that names the type of what comes in, in lower case.
    pub inbound_type_header: Option<String>,
    /// For people.
    pub description: Option<String>,
    /// JSON text.
    pub metadata: Option<String>,
}

/// A key that signs, sealed.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct SigningKeyRow {
    signing_key_id: Uuid,
    subscription_id: Option<Uuid>,
    /// The secret, sealed.
    pub sealed: Vec<u8>,
    /// When it stops to sign; `None` for the current one.
    pub retires_at: Option<DateTime<Utc>>,
}

impl SigningKeyRow {
    /// Its id.
    pub fn id(&self) -> SigningKeyId {
        SigningKeyId::from_uuid(self.signing_key_id)
    }

    /// The subscription whose deliveries it signs; `None`: the application's explicit targets.
    pub fn subscription(&self) -> Option<SubscriptionId> {
        self.subscription_id.map(SubscriptionId::from_uuid)
    }
}

macro_rules! current_subscriptions {
    ($rest:expr) => {
        concat!(
            "select s.application_id, s.subscription_id, s.uid, s.revision, s.created_at, s.updated_at, s.deleted_at,
                    s.cms_document_id, r.target_url, r.method, r.event_types, r.filter, r.is_active, r.disabled_at,
                    r.disabled_because, r.disable_after_s, r.timeout_ms,
                    r.retry, r.payload_format, r.schema_version, r.signing, r.signature_headers,
                    r.sealed_headers, r.sealed_inbound_secret, r.inbound_type_header, r.description, r.metadata,
                    r.max_in_flight, r.rate_limit
             from subscription s join subscription_revision r using (subscription_id, revision) ",
            $rest
        )
    };
}

/// Which subscriptions (`s`, at their revisions `r`) a list shows: `$1` is the application, `$2` to `$5`
/// are those of a [`SubscriptionFilter`], and `$6` is how many.
macro_rules! listed {
    () => {
        "where s.application_id = $1 and s.deleted_at is null
           and ($2::uuid is null or s.subscription_id < $2)
           and ($3::boolean is null or r.is_active = $3)
           and ($4::text is null or $4 = any(r.event_types))
           and ($5::text is null or r.target_url = $5)
         order by s.subscription_id desc limit $6"
    };
}
pub(super) use {current_subscriptions, listed};

/// What a subscription is named by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubscriptionName {
    /// Our id.
    Id(SubscriptionId),
    /// Its owner's name for it.
    Uid(Uid),
}

/// Which subscriptions a list shows.
#[derive(Debug, Default)]
pub struct SubscriptionFilter {
    /// Only active ones, or only others.
    pub is_active: Option<bool>,
    /// Only those with this very pattern among their event types.
    pub event_type: Option<String>,
    /// Only those with this very URL.
    pub target_url: Option<String>,
    /// Only older than this one: where the last page ended.
    pub older_than: Option<SubscriptionId>,
}

impl Store {
    /// One subscription of an application, unless it is deleted.
    pub async fn subscription(
        &self,
        application: ApplicationId,
        name: &SubscriptionName,
    ) -> Result<Option<SubscriptionRow>, StoreError> {
        bounded(async {
            let query = match name {
                SubscriptionName::Id(id) => sqlx::query_as(current_subscriptions!(
                    "where s.application_id = $1 and s.subscription_id = $2
                       and s.deleted_at is null"
                ))
                .bind(application.uuid())
                .bind(id.uuid()),
                SubscriptionName::Uid(uid) => sqlx::query_as(current_subscriptions!(
                    "where s.application_id = $1 and s.uid = $2 and s.deleted_at is null"
                ))
                .bind(application.uuid())
                .bind(uid.as_str()),
            };
            Ok(query.fetch_optional(&self.pool).await?)
        })
        .await
    }

    /// One subscription, its application being named by its id or its uid; unnamed, it is that of the
    /// subscription's id, or `default`. One statement, whatever exists.
    pub async fn subscription_of(
        &self,
        application: Option<&ApplicationName>,
        name: &SubscriptionName,
    ) -> Result<Option<(ApplicationId, SubscriptionRow)>, StoreError> {
        #[derive(sqlx::FromRow)]
        struct Row {
            application_id: Uuid,
            #[sqlx(flatten)]
            subscription: SubscriptionRow,
        }
        macro_rules! of_application {
            ($named:literal) => {
                current_subscriptions!(concat!(
                    "join application a using (application_id)
                     where ($1::uuid is null or a.application_id = $1)
                       and ($2::text is null or a.uid = $2)
                       and a.deleted_at is null and s.deleted_at is null and ",
                    $named
                ))
            };
        }
        let (id, uid) = match application {
            Some(ApplicationName::Id(id)) => (Some(*id), None),
            Some(ApplicationName::Uid(uid)) => (None, Some(uid.as_str())),
            None if matches!(name, SubscriptionName::Uid(_)) => (Some(DEFAULT_APPLICATION), None),
            None => (None, None),
        };
        bounded(async {
            let query = match name {
                SubscriptionName::Id(_) => of_application!("s.subscription_id = $3"),
                SubscriptionName::Uid(_) => of_application!("s.uid = $3"),
            };
            let query = sqlx::query_as(query).bind(id.map(ApplicationId::uuid)).bind(uid);
            let query = match name {
                SubscriptionName::Id(id) => query.bind(id.uuid()),
                SubscriptionName::Uid(uid) => query.bind(uid.as_str()),
            };
            let row: Option<Row> = query.fetch_optional(&self.pool).await?;
            Ok(row.map(|row| (ApplicationId::from_uuid(row.application_id), row.subscription)))
        })
        .await
    }

    /// Lists an application's subscriptions, newest first: up to `rows_max` of those that the filter
    /// lets through.
    pub async fn subscriptions(
        &self,
        application: ApplicationId,
        filter: &SubscriptionFilter,
        rows_max: i64,
    ) -> Result<Vec<SubscriptionRow>, StoreError> {
        bounded(async {
            Ok(sqlx::query_as(current_subscriptions!(listed!()))
                .bind(application.uuid())
                .bind(filter.older_than.map(SubscriptionId::uuid))
                .bind(filter.is_active)
                .bind(filter.event_type.as_deref())
                .bind(filter.target_url.as_deref())
                .bind(rows_max)
                .fetch_all(&self.pool)
                .await?)
        })
        .await
    }

    /// The keys of a subscription that still sign, newest first. The current one is that by its row,
    /// and not by its id: two processes' clocks may differ by a little.
    pub async fn signing_keys(
        &self,
        subscription: SubscriptionId,
    ) -> Result<Vec<SigningKeyRow>, StoreError> {
        bounded(async {
            Ok(sqlx::query_as(concat!(
                "select signing_key_id, subscription_id, sealed, retires_at from signing_key k
                 join subscription s using (application_id, subscription_id)
                 where subscription_id = $1 and (retires_at is null or retires_at > ",
                ordered_now!("$2"),
                ") order by retires_at is not null, signing_key_id desc",
            ))
            .bind(subscription.uuid())
            .bind(self.times().expected)
            .fetch_all(&self.pool)
            .await?)
        })
        .await
    }
}
