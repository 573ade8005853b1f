//! Payloads that an application keeps for less time than the instance: dropped in bounded steps, each
//! a transaction that moves a cursor past what it has looked at.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    Store, StoreError, bounded,
    erasing::{Whose, by_key, drop_payloads},
    history::time_bound,
    time::settled_now,
};
use crate::domain::{ApplicationId, EventId};

/// How many events one step looks at.
const EVENTS_PER_STEP: i64 = 1_000;

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dropped {
    /// Payloads that were dropped.
    pub payloads: i64,
    /// Deliveries that died of it.
    pub expired: i64,
    /// Nothing is left that is old enough, or another process is about it.
    pub is_done: bool,
}

impl Store {
    /// The applications that keep payloads for less time than the instance.
    pub async fn applications_with_retention(
        &self,
        rows_max: i64,
    ) -> Result<Vec<ApplicationId>, StoreError> {
        bounded(async {
            let found: Vec<Uuid> = sqlx::query_scalar(
                "select application_id from payload_retention order by application_id limit $1",
            )
            .bind(rows_max)
            .fetch_all(&self.pool)
            .await?;
            Ok(found.into_iter().map(ApplicationId::from_uuid).collect())
        })
        .await
    }

    /// Drops the next payloads of an application that are older than it keeps them. What waits to be
    /// sent of these events dies as `expired`.
    pub async fn step_payload_retention(
        &self,
        application: ApplicationId,
    ) -> Result<Dropped, StoreError> {
        bounded(async {
            let mut connection = self.pool.acquire().await?;
            let mut transaction = connection.begin().await?;
            let due: Option<(Uuid, DateTime<Utc>)> = sqlx::query_as(concat!(
                "select event_cursor, ",
                settled_now!("$2"),
                " - make_interval(days => days) from payload_retention
                 where application_id = $1 for update skip locked",
            ))
            .bind(application.uuid())
            .bind(self.times().settled)
            .fetch_optional(&mut *transaction)
            .await?;
            let nothing = Dropped { payloads: 0, expired: 0, is_done: true };
            let Some((cursor, kept_from)) = due else { return Ok(nothing) };
            by_key(&mut transaction).await?;
            let found: Vec<Uuid> = sqlx::query_scalar(
                "select event_id from event
                 where application_id = $1 and event_id > $2 and event_id < $3
                 order by event_id limit $4",
            )
            .bind(application.uuid())
            .bind(cursor)
            .bind(time_bound(kept_from))
            .bind(EVENTS_PER_STEP)
            .fetch_all(&mut *transaction)
            .await?;
            let Some(&last) = found.last() else { return Ok(nothing) };
            let ids: Vec<_> = found.iter().copied().map(EventId::from_uuid).collect();
            let whose = Whose { application: application.uuid(), cms: self.cms() };
            let done = drop_payloads(&mut transaction, whose, &ids).await?;
            // What is being sent ends or comes back, and then finds that its payload is gone.
            let is_past = done.has_ended_all();
            if is_past {
                sqlx::query(
                    "update payload_retention set event_cursor = $2 where application_id = $1",
                )
                .bind(application.uuid())
                .bind(last)
                .execute(&mut *transaction)
                .await?;
            }
            transaction.commit().await?;
            let is_done = is_past && i64::try_from(found.len()) != Ok(EVENTS_PER_STEP);
            Ok(Dropped { payloads: done.payloads, expired: done.ended, is_done })
        })
        .await
    }
}
