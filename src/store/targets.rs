//! How explicit targets are called whose requests say more than their URLs: beside the delivery, for
//! as long as its payload is kept, and so over retries, replays and what is sent by hand.

use std::sync::Arc;

use uuid::Uuid;

use super::{Store, StoreError, bounded, events::NewEvent, session::Session};
use crate::domain::{
    DeliveryId, KeyName,
    sealing::SealingKeys,
    subscription::{CustomHeaders, Method, RetrySettings},
    target::{TargetSettings, sealed_headers_of},
};

/// The settings of a target that is about to be stored.
#[derive(Debug)]
pub struct NewTargetSettings {
    /// The settings.
    pub settings: Arc<TargetSettings>,
    /// Their headers, sealed for the delivery; `None` if there are none.
    pub sealed_headers: Option<Vec<u8>>,
}

impl NewTargetSettings {
    /// Seals what is to be stored. `nonce` must be random.
    pub fn sealed(
        id: DeliveryId,
        settings: Arc<TargetSettings>,
        keys: &SealingKeys,
        nonce: [u8; crate::domain::sealing::NONCE_BYTES],
    ) -> Self {
        let has_headers = !settings.headers.is_empty();
        let sealed_headers = has_headers
            .then(|| keys.seal(&settings.headers.to_json(), &sealed_headers_of(id), nonce));
        Self { settings, sealed_headers }
    }

    /// How many bytes it holds in memory that a caller chose.
    pub fn bytes(&self) -> usize {
        self.sealed_headers.as_ref().map_or(0, Vec::len)
    }
}

/// What is known of how a delivery's target is called.
#[derive(Debug, Clone)]
pub enum Calling {
    /// As the settings say, or its subscription.
    Usual,
    /// As its request said.
    As(Arc<TargetSettings>),
    /// As its request said, which cannot be read here: a sealing key is missing, or a later version
    /// wrote it.
    Unreadable,
}

/// The columns of `delivery_target`, absent where it has no row.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct TargetColumns {
    #[sqlx(rename = "target_method")]
    method: Option<String>,
    #[sqlx(rename = "target_headers")]
    headers: Option<Vec<u8>>,
    #[sqlx(rename = "target_key")]
    key: Option<String>,
    #[sqlx(rename = "target_retry")]
    retry: Option<String>,
}

impl TargetColumns {
    /// How many bytes it holds in memory that a caller chose.
    pub fn bytes(&self) -> usize {
        self.headers.as_ref().map_or(0, Vec::len)
    }

    /// What they say.
    pub fn calling(&self, id: DeliveryId, keys: &SealingKeys) -> Calling {
        if self.method.is_none() {
            return Calling::Usual;
        }
        self.settings(id, keys).map_or(Calling::Unreadable, |settings| Calling::As(settings.into()))
    }

    fn settings(&self, id: DeliveryId, keys: &SealingKeys) -> Option<TargetSettings> {
        let headers = match &self.headers {
            None => CustomHeaders::default(),
            Some(sealed) => {
                let opened = keys.open(sealed, &sealed_headers_of(id)).ok()?;
                CustomHeaders::from_json(opened.bytes())?
            }
        };
        let key = self.key.as_deref().map(KeyName::parse).transpose().ok()?;
        let retry = self.retry.as_deref().map(serde_json::from_str::<RetrySettings>);
        let method = Method::from_name(self.method.as_deref()?)?;
        TargetSettings::new(method, headers, key, retry.transpose().ok()?).ok()
    }
}

/// Inserts the settings of the targets of these events, if they have any.
pub(super) async fn insert_targets(
    connection: &mut Session,
    events: &[&NewEvent<'_>],
) -> Result<(), StoreError> {
    let targets = events.iter().flat_map(|event| &event.deliveries);
    let targets = targets.filter_map(|delivery| Some((delivery, delivery.settings.as_ref()?)));
    let (mut ids, mut methods, mut headers) = (Vec::new(), Vec::new(), Vec::new());
    let (mut keys, mut retries) = (Vec::new(), Vec::new());
    for (delivery, NewTargetSettings { settings, sealed_headers }) in targets {
        ids.push(delivery.delivery_id.uuid());
        methods.push(settings.method.as_str());
        headers.push(sealed_headers.as_deref());
        keys.push(settings.signing_key.as_ref().map(KeyName::as_str));
        let retry = settings.retry.as_ref();
        retries.push(retry.map(|retry| serde_json::to_string(retry).expect("numbers are JSON")));
    }
    if ids.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "insert into delivery_target (delivery_id, method, sealed_headers, signing_key, retry)
         select * from unnest($1::uuid[], $2::text[], $3::bytea[], $4::text[], $5::text[])",
    )
    .bind(ids)
    .bind(methods)
    .bind(headers)
    .bind(keys)
    .bind(retries)
    .execute(connection)
    .await?;
    Ok(())
}

impl Store {
    /// The names of the keys that sign these deliveries, of those that have one.
    pub(super) async fn signing_keys_of(
        &self,
        deliveries: &[Uuid],
    ) -> Result<Vec<(Uuid, String)>, StoreError> {
        bounded(async {
            Ok(sqlx::query_as(
                "select delivery_id, signing_key from delivery_target
                 where delivery_id = any($1) and signing_key is not null",
            )
            .bind(deliveries)
            .fetch_all(&self.pool)
            .await?)
        })
        .await
    }
}
