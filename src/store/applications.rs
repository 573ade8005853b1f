//! Applications, as far as routing needs them.

use super::{Store, StoreError, bounded};
use crate::domain::{ApplicationId, routing::RoutingSnapshot};

impl Store {
    /// What routing must know of an application; `None` if there is no such application.
    pub async fn routing_snapshot(
        &self,
        application: ApplicationId,
    ) -> Result<Option<RoutingSnapshot>, StoreError> {
        bounded(async {
            let version: Option<i64> = sqlx::query_scalar(
                "select routing_version from application where application_id = $1",
            )
            .bind(application.uuid())
            .fetch_optional(&self.pool)
            .await?;
            Ok(version.map(|version| RoutingSnapshot { application, version }))
        })
        .await
    }
}
