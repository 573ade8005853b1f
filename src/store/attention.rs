//! Subscriptions that want somebody's attention: disabled by the service, failing, behind, or
//! documents of the CMS that are refused.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::FromRow;
use uuid::Uuid;

use super::{
    Store, StoreError, bounded,
    queue::interval,
    subscriptions::{SubscriptionFilter, SubscriptionRow, current_subscriptions, listed},
};
use crate::domain::{ApplicationId, SubscriptionId, subscription::DisabledBecause};

/// How many subscriptions one page looks at.
pub const LOOKED_AT_MAX: i64 = 1_000;
/// How many minutes with attempts are looked at, the latest: in all of them all must have failed.
const MINUTES: i64 = 10;
/// From how many failures in these minutes on.
const FAILURES_MIN: i64 = 3;
/// For how long the oldest delivery is due of a subscription that is behind.
const BEHIND: Duration = Duration::from_secs(60);

/// Why a subscription wants attention. More than one can hold.
#[derive(Debug, FromRow)]
pub struct Attention {
    subscription_id: Uuid,
    /// Since when the service has disabled it.
    pub disabled_at: Option<DateTime<Utc>>,
    /// Why: a name of `DisabledBecause`.
    pub disabled_because: Option<String>,
    /// Since when all failed, as far back as is looked.
    pub failing_since: Option<DateTime<Utc>>,
    /// How many attempts failed since then.
    pub failures: Option<i64>,
    /// The latest failure: an error class.
    pub last_error: Option<String>,
    /// The same for people.
    pub last_message: Option<String>,
    /// Since when the oldest delivery is due that waits.
    pub behind_since: Option<DateTime<Utc>>,
    /// Since when its document in the CMS is refused.
    pub refused_at: Option<DateTime<Utc>>,
    /// Why.
    pub refused_because: Option<String>,
}

impl Attention {
    fn id(&self) -> SubscriptionId {
        SubscriptionId::from_uuid(self.subscription_id)
    }
}

/// A page of subscriptions that want attention.
#[derive(Debug)]
pub struct InNeed {
    /// Newest first, each with why.
    pub subscriptions: Vec<(SubscriptionRow, Attention)>,
    /// The last one that was looked at; `None`: there is none behind it.
    pub looked_at: Option<SubscriptionId>,
}

impl Store {
    /// Lists the subscriptions of an application that want attention, newest first: up to `rows_max`
    /// of the first [`LOOKED_AT_MAX`] that the filter lets through.
    pub async fn subscriptions_in_need(
        &self,
        application: ApplicationId,
        filter: &SubscriptionFilter,
        rows_max: usize,
    ) -> Result<InNeed, StoreError> {
        bounded(async {
            let mut connection = self.pool.acquire().await?;
            let looked_at: Vec<Uuid> = sqlx::query_scalar(LOOKED_AT)
                .bind(application.uuid())
                .bind(filter.older_than.map(SubscriptionId::uuid))
                .bind(filter.is_active)
                .bind(filter.event_type.as_deref())
                .bind(filter.target_url.as_deref())
                .bind(LOOKED_AT_MAX)
                .fetch_all(&mut *connection)
                .await?;
            let mut found: Vec<Attention> = sqlx::query_as(ATTENTION)
                .bind(&looked_at)
                .bind(DisabledBecause::Owner.as_str())
                .bind(MINUTES)
                .bind(FAILURES_MIN)
                .bind(interval(BEHIND))
                .bind(i64::try_from(rows_max).unwrap_or(i64::MAX).saturating_add(1))
                .fetch_all(&mut *connection)
                .await?;
            let may_be_more = i64::try_from(looked_at.len()) == Ok(LOOKED_AT_MAX);
            let mut last = looked_at.last().copied().filter(|_| may_be_more);
            if found.len() > rows_max {
                found.truncate(rows_max);
                last = found.last().map(|one| one.subscription_id);
            }
            let ids: Vec<Uuid> = found.iter().map(|one| one.subscription_id).collect();
            let mut rows: Vec<SubscriptionRow> = sqlx::query_as(current_subscriptions!(
                "where s.application_id = $1 and s.subscription_id = any($2)
                   and s.deleted_at is null"
            ))
            .bind(application.uuid())
            .bind(ids)
            .fetch_all(&mut *connection)
            .await?;
            let subscriptions = found.into_iter().filter_map(|attention| {
                let place = rows.iter().position(|row| row.id() == attention.id())?;
                Some((rows.swap_remove(place), attention))
            });
            Ok(InNeed {
                subscriptions: subscriptions.collect(),
                looked_at: last.map(SubscriptionId::from_uuid),
            })
        })
        .await
    }
}

const LOOKED_AT: &str = concat!(
    "select s.subscription_id
     from subscription s join subscription_revision r using (subscription_id, revision) ",
    listed!()
);

// Of each one a bounded number of rows is looked at, found by key: the latest minutes and the head of
// the queue.
const ATTENTION: &str = "
    select s.subscription_id,
           case when disabled.is_so then r.disabled_at end as disabled_at,
           case when disabled.is_so then r.disabled_because end as disabled_because,
           failing.since as failing_since, failing.failures, failing.last_error,
           failing.last_message, behind.due_at as behind_since, document.refused_at,
           document.refused_because
    from unnest($1::uuid[]) with ordinality as looked_at(id, place)
    join subscription s on s.subscription_id = looked_at.id
    join subscription_revision r using (subscription_id, revision)
    cross join lateral (
        select not r.is_active and r.disabled_because <> $2 as is_so offset 0
    ) as disabled
    left join lateral (
        select min(first_failed_at) as since, sum(failed) as failures,
               (array_agg(last_error order by minute desc))[1] as last_error,
               (array_agg(last_message order by minute desc))[1] as last_message
        from (
            select * from lane_minute m
            where m.lane_id = looked_at.id and m.attempts > 0
            order by m.minute desc limit $3
        ) as latest
        having sum(failed) >= $4 and sum(attempts) = sum(failed)
    ) as failing on r.is_active
    left join lateral (
        select due_at from delivery_queue q
        where q.lane_id = looked_at.id and q.owner is null and q.due_at < now() - $5
        order by q.lane_id, q.due_at limit 1
    ) as behind on r.is_active
    left join lateral (
        select refused_at, refused_because from cms_document d
        where d.subscription_id = looked_at.id and d.refused_at is not null
    ) as document on true
    where disabled.is_so or failing.since is not null or behind.due_at is not null
       or document.refused_at is not null
    order by looked_at.place limit $6";
