//! Whose turn it is to look at all documents of the CMS: one process at a time, by the database's clock.

use std::time::Duration;

use uuid::Uuid;

use super::{Store, StoreError, bounded, queue::interval, time::ordered_now};
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
            let taken = sqlx::query(concat!(
                "insert into cms_look as l (application_id, owner, held_until)
                 select $1, $2, ",
                ordered_now!("$5"),
                " + $3
                 on conflict (application_id) do update
                 set owner = excluded.owner, held_until = excluded.held_until
                 -- What lies further ahead than a turn was written while the clock was wrong.
                 where (l.owner = excluded.owner or l.held_until < excluded.held_until - $3
                        or l.held_until > excluded.held_until + $3)
                   and (l.ended_at is null or l.ended_at <= excluded.held_until - $3 - $4
                        or l.ended_at > excluded.held_until + $3)",
            ))
            .bind(application.uuid())
            .bind(owner)
            .bind(interval(hold))
            .bind(interval(pause))
            .bind(self.times().expected)
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
            let kept = sqlx::query(concat!(
                "update cms_look set held_until = ",
                ordered_now!("$4"),
                " + $3
                 where application_id = $1 and owner = $2",
            ))
            .bind(application.uuid())
            .bind(owner)
            .bind(interval(hold))
            .bind(self.times().expected)
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
            sqlx::query(concat!(
                "update cms_look
                 set held_until = clock.now,
                     ended_at = case when $3 then clock.now else ended_at end
                 from (select ",
                ordered_now!("$4"),
                " as now) as clock
                 where application_id = $1 and owner = $2",
            ))
            .bind(application.uuid())
            .bind(owner)
            .bind(is_whole)
            .bind(self.times().expected)
            .execute(&self.pool)
            .await?;
            Ok(())
        })
        .await
    }
}
