//! Secrets that an older sealing key has sealed: found and replaced, so that the older key can go.

use uuid::Uuid;

use super::{Store, StoreError, bounded};
use crate::domain::{
    DeliveryId, SigningKeyId, SubscriptionId, sealing::KeyId, subscription::sealed,
    target::sealed_headers_of,
};

/// A sealed secret, and where it stands.
#[derive(Debug, sqlx::FromRow)]
pub struct SealedRow {
    kind: String,
    id: Uuid,
    revision: i32,
    /// The secret, sealed.
    pub sealed: Vec<u8>,
}

impl SealedRow {
    /// What the secret is bound to.
    pub fn context(&self) -> Vec<u8> {
        let subscription = SubscriptionId::from_uuid(self.id);
        match self.kind.as_str() {
            "headers" => sealed::headers_of(subscription),
            "inbound_secret" => sealed::inbound_secret_of(subscription),
            "target_headers" => sealed_headers_of(DeliveryId::from_uuid(self.id)),
            _ => sealed::signing_key(SigningKeyId::from_uuid(self.id)),
        }
    }
}

impl Store {
    /// Finds up to `rows_max` secrets in use that another key than `current` has sealed.
    pub async fn outdated_secrets(
        &self,
        current: KeyId,
        rows_max: i64,
    ) -> Result<Vec<SealedRow>, StoreError> {
        bounded(async {
            // The key's id stands behind the version of the format.
            Ok(sqlx::query_as(
                "select 'signing_key' as kind, signing_key_id as id, 0 as revision, sealed
                 from signing_key
                 where substring(sealed from 2 for 4) <> $1
                   and (retires_at is null or retires_at > now())
                 union all
                 select secret.kind, s.subscription_id, s.revision, secret.sealed
                 from subscription s
                 join subscription_revision r using (subscription_id, revision)
                 cross join lateral (values
                     ('headers', r.sealed_headers),
                     ('inbound_secret', r.sealed_inbound_secret)
                 ) as secret(kind, sealed)
                 where s.deleted_at is null and substring(secret.sealed from 2 for 4) <> $1
                 union all
                 select 'target_headers', delivery_id, 0, sealed_headers
                 from delivery_target
                 where sealed_headers is not null
                   -- Two ranges of its index.
                   and (substring(sealed_headers from 2 for 4) < $1
                        or substring(sealed_headers from 2 for 4) > $1)
                 limit $2",
            )
            .bind(current.bytes().as_slice())
            .bind(rows_max)
            .fetch_all(&self.pool)
            .await?)
        })
        .await
    }

    /// Replaces one sealed secret, if it is still as it was found.
    pub async fn reseal(&self, found: &SealedRow, resealed: &[u8]) -> Result<(), StoreError> {
        bounded(async {
            let statement = match found.kind.as_str() {
                "headers" => {
                    "update subscription_revision set sealed_headers = $3
                     where subscription_id = $1 and revision = $4 and sealed_headers = $2"
                }
                "inbound_secret" => {
                    "update subscription_revision set sealed_inbound_secret = $3
                     where subscription_id = $1 and revision = $4 and sealed_inbound_secret = $2"
                }
                "target_headers" => {
                    "update delivery_target set sealed_headers = $3
                     where delivery_id = $1 and sealed_headers = $2 and $4 = 0"
                }
                _ => {
                    "update signing_key set sealed = $3
                     where signing_key_id = $1 and sealed = $2 and $4 = 0"
                }
            };
            sqlx::query(statement)
                .bind(found.id)
                .bind(&found.sealed)
                .bind(resealed)
                .bind(found.revision)
                .execute(&self.pool)
                .await?;
            Ok(())
        })
        .await
    }
}
