//! Durable jobs of applications: what the rows of replays and of erasures have in common.

use sqlx::{FromRow, Postgres, QueryBuilder, postgres::PgRow};
use uuid::Uuid;

use super::{Store, StoreError, bounded, session::Session};
use crate::domain::{ApplicationId, ids::lower_bound};

/// Ids of other processes may be ahead of this one's clock by so much. What was made after a job is left
/// out by other means; this only ends the range that is looked through.
const CLOCKS_APART_MS_MAX: u64 = 1_000;

/// A table of jobs, with the columns `application_id` and that of its ids.
pub(super) struct Jobs {
    /// The table, with its alias if the columns need one.
    pub table: &'static str,
    /// The column of the ids.
    pub id: &'static str,
    /// What is read of a row.
    pub columns: &'static str,
}

impl Jobs {
    /// One of an application.
    pub async fn find<R>(
        &self,
        store: &Store,
        application: ApplicationId,
        id: Uuid,
    ) -> Result<Option<R>, StoreError>
    where
        R: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        bounded(async {
            let mut query = self.of(application);
            query.push(" and ").push(self.id).push(" = ").push_bind(id);
            Ok(query.build_query_as().fetch_optional(&store.pool).await?)
        })
        .await
    }

    /// Those of an application, newest first: up to `rows_max` of those made before `older_than`.
    pub async fn list<R>(
        &self,
        store: &Store,
        application: ApplicationId,
        older_than: Option<Uuid>,
        rows_max: i64,
    ) -> Result<Vec<R>, StoreError>
    where
        R: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        bounded(async {
            let mut query = self.of(application);
            if let Some(older_than) = older_than {
                query.push(" and ").push(self.id).push(" < ").push_bind(older_than);
            }
            query.push(" order by ").push(self.id).push(" desc limit ").push_bind(rows_max);
            Ok(query.build_query_as().fetch_all(&store.pool).await?)
        })
        .await
    }

    fn of(&self, application: ApplicationId) -> QueryBuilder<Postgres> {
        let mut query = QueryBuilder::new("select ");
        query.push(self.columns).push(" from ").push(self.table);
        query.push(" where application_id = ").push_bind(application.uuid());
        query
    }
}

/// Waits until no other job of the application is being made, so that they are counted.
pub(super) async fn one_at_a_time(
    connection: &mut Session,
    application: ApplicationId,
) -> Result<(), StoreError> {
    sqlx::query("select from application where application_id = $1 for no key update")
        .bind(application.uuid())
        .execute(connection)
        .await?;
    Ok(())
}

/// Above the ids of all that there is at this time, in milliseconds of the database's clock.
pub(super) fn above_all_at(unix_ms: u64) -> Uuid {
    lower_bound(unix_ms.saturating_add(CLOCKS_APART_MS_MAX))
}
