//! Whose turn it is to look at all documents of the CMS: one process at a time, by the database's clock.

use std::time::Duration;

use uuid::Uuid;

use super::{Store, StoreError, bounded, queue::interval};
use crate::domain::ApplicationId;

impl Store {
    /// Takes or keeps the turn for so long; `false` if another process has it, or if a whole look has
    /// ended within the last `pause`.
    pub async fn take_cms_look(
        &self,
        application: ApplicationId,
        owner: Uuid,
        hold: Duration,
        pause: Duration,
    ) -> Result<bool, StoreError> {
        bounded(async {
            let taken = sqlx::query(
                "insert into cms_look as l (application_id, owner, held_until)
                 values ($1, $2, now() + $3)
                 on conflict (application_id) do update
                 set owner = excluded.owner, held_until = excluded.held_until
                 where (l.owner = excluded.owner or l.held_until < now())
                   and (l.ended_at is null or l.ended_at <= now() - $4)",
            )
            .bind(application.uuid())
            .bind(owner)
            .bind(interval(hold))
            .bind(interval(pause))
            .execute(&self.pool)
            .await?;
            Ok(taken.rows_affected() == 1)
        })
        .await
    }

    /// Keeps the turn for so long; `false` if another process has it by now.
    pub async fn keep_cms_look(
        &self,
        application: ApplicationId,
        owner: Uuid,
        hold: Duration,
    ) -> Result<bool, StoreError> {
        bounded(async {
            let kept = sqlx::query(
                "update cms_look set held_until = now() + $3
                 where application_id = $1 and owner = $2",
            )
            .bind(application.uuid())
            .bind(owner)
            .bind(interval(hold))
            .execute(&self.pool)
            .await?;
            Ok(kept.rows_affected() == 1)
        })
        .await
    }

    /// Gives the turn back. `is_whole` tells whether all was seen.
    pub async fn end_cms_look(
        &self,
        application: ApplicationId,
        owner: Uuid,
        is_whole: bool,
    ) -> Result<(), StoreError> {
        bounded(async {
            sqlx::query(
                "update cms_look
                 set held_until = now(), ended_at = case when $3 then now() else ended_at end
                 where application_id = $1 and owner = $2",
            )
            .bind(application.uuid())
            .bind(owner)
            .bind(is_whole)
            .execute(&self.pool)
            .await?;
            Ok(())
        })
        .await
    }
}
