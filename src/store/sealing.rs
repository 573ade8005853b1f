//! The one sealed value by which a process proves that it has this database's keys.

use super::{Store, StoreError, bounded};

impl Store {
    /// Whether a process has sealed anything in this database yet.
    pub async fn is_sealed(&self) -> Result<bool, StoreError> {
        bounded(async {
            Ok(sqlx::query_scalar("select exists (select from sealing_check)")
                .fetch_one(&self.pool)
                .await?)
        })
        .await
    }

    /// The sealed value of this database: the one that is there, or else this one, which then is.
    pub async fn sealing_check_or(&self, sealed: &[u8]) -> Result<Vec<u8>, StoreError> {
        bounded(async {
            // Two statements: one alone would not see what another process inserts meanwhile.
            sqlx::query("insert into sealing_check (sealed) values ($1) on conflict do nothing")
                .bind(sealed)
                .execute(&self.pool)
                .await?;
            Ok(sqlx::query_scalar("select sealed from sealing_check").fetch_one(&self.pool).await?)
        })
        .await
    }

    /// Replaces the sealed value, unless another process has done so since it was read.
    pub async fn reseal_check(&self, read: &[u8], sealed: &[u8]) -> Result<(), StoreError> {
        bounded(async {
            sqlx::query(
                "update sealing_check set sealed = $2, sealed_at = now() where sealed = $1",
            )
            .bind(read)
            .bind(sealed)
            .execute(&self.pool)
            .await?;
            Ok(())
        })
        .await
    }
}
