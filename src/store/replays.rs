//! Replays: jobs that send again what has ended, as they stand in the database. What a step does is
//! in [`super::replay_steps`] and [`super::rerouting`].

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{Postgres, QueryBuilder};
use uuid::Uuid;

use super::{
    Store, StoreError, bounded,
    history::time_bound,
    idempotency::{Reservation, Standing, stand},
    jobs::{Jobs, above_all_at, one_at_a_time},
    queue::interval,
    time::settled_now,
};
use crate::domain::{
    ApplicationId, DeliveryState, ErrorClass, EventId, ReplayId, SubscriptionId, ids::unix_ms_of,
    replay::ReplayState,
};

/// How many replays of an application may be under way or paused at a time.
pub const REPLAYS_MAX: i64 = 10;

/// What a replay sends again, of what had ended when it was made.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ReplayFilter {
    /// Only in these states, all of them final; empty: in any.
    pub states: Vec<DeliveryState>,
    /// Only of this subscription, which is one of the application's.
    pub subscription: Option<SubscriptionId>,
    /// Only of this event.
    pub event: Option<EventId>,
    /// Only of events of this type.
    pub event_type: Option<String>,
    /// Only those that were last answered with this status.
    pub response_status: Option<i16>,
    /// Only those that ended so.
    pub error_class: Option<ErrorClass>,
    /// Only of events accepted at or after this time.
    pub created_from: Option<DateTime<Utc>>,
    /// Only of events accepted before this time.
    pub created_until: Option<DateTime<Utc>>,
}

impl ReplayFilter {
    /// Whether it asks for what was not delivered, and so is answered by the index over that.
    pub(super) fn is_of_undelivered(&self) -> bool {
        !self.states.is_empty() && !self.states.contains(&DeliveryState::Delivered)
    }

    /// Between which ids, both exclusive, all lies that it means of what there is at `unix_ms`:
    /// deliveries and their events.
    pub(super) fn range(&self, unix_ms: u64) -> (Uuid, Uuid) {
        let mut after = self.created_from.map_or(Uuid::nil(), time_bound);
        let mut until = above_all_at(unix_ms);
        if let Some(at) = self.created_until {
            until = until.min(time_bound(at));
        }
        if let Some(event) = self.event {
            let (low, high) = event.delivery_range();
            after = after.max(Uuid::from_u128(low.uuid().as_u128().saturating_sub(1)));
            until = until.min(Uuid::from_u128(high.uuid().as_u128().saturating_add(1)));
        }
        (after, until)
    }
}

/// A replay to be made.
#[derive(Debug)]
pub struct NewReplay<'a> {
    /// Its id, made by the caller.
    pub id: ReplayId,
    /// Whose it is.
    pub application: ApplicationId,
    /// What it sends again.
    pub filter: &'a ReplayFilter,
    /// Whether events that reached nobody are routed by today's subscriptions.
    pub includes_unrouted: bool,
    /// Deliveries queued in a second, at most.
    pub per_second: u16,
    /// The database's clock, as sampled, in milliseconds.
    pub unix_ms: u64,
}

/// A replay.
#[derive(Debug, sqlx::FromRow)]
pub struct ReplayRow {
    replay_id: Uuid,
    application_id: Uuid,
    /// A state's name.
    pub state: String,
    states: Option<Vec<String>>,
    subscription_id: Option<Uuid>,
    event_id: Option<Uuid>,
    event_type: Option<String>,
    response_status: Option<i16>,
    error_class: Option<String>,
    created_from: Option<DateTime<Utc>>,
    created_until: Option<DateTime<Utc>>,
    /// Whether it routes events that reached nobody.
    pub include_unrouted: bool,
    per_second: i32,
    pub(super) until_id: Uuid,
    pub(super) delivery_cursor: Uuid,
    pub(super) event_cursor: Uuid,
    /// It has looked at all deliveries that had ended; what is left are events.
    pub has_all_ended: bool,
    /// It waits: a queue that it fills is as long as it may be.
    pub is_held_up: bool,
    /// Deliveries that the filter meant.
    pub matched_count: i64,
    /// Those of them that were queued.
    pub queued_count: i64,
    /// Those that were in the queue already.
    pub in_progress_count: i64,
    /// Those whose payload is not kept any more.
    pub payload_gone_count: i64,
    /// Those whose subscription is deleted.
    pub subscription_deleted_count: i64,
    /// Those whose subscription is disabled.
    pub subscription_disabled_count: i64,
    /// Events that had reached nobody.
    pub unrouted_count: i64,
    /// Those of them whose payload is not kept any more.
    pub unrouted_payload_gone_count: i64,
    /// Those that reached somebody now.
    pub routed_count: i64,
    /// The deliveries that were made for them.
    pub routed_delivery_count: i64,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it last moved.
    pub updated_at: DateTime<Utc>,
    /// When it was over.
    pub ended_at: Option<DateTime<Utc>>,
}

impl ReplayRow {
    /// Its id.
    pub fn id(&self) -> ReplayId {
        ReplayId::from_uuid(self.replay_id)
    }

    /// Whose it is.
    pub fn application(&self) -> ApplicationId {
        ApplicationId::from_uuid(self.application_id)
    }

    /// What it sends again.
    pub fn filter(&self) -> ReplayFilter {
        let states = self.states.iter().flatten();
        ReplayFilter {
            states: states.filter_map(|name| DeliveryState::from_name(name)).collect(),
            subscription: self.subscription_id.map(SubscriptionId::from_uuid),
            event: self.event_id.map(EventId::from_uuid),
            event_type: self.event_type.clone(),
            response_status: self.response_status,
            error_class: self.error_class.as_deref().and_then(ErrorClass::from_name),
            created_from: self.created_from,
            created_until: self.created_until,
        }
    }

    /// Deliveries queued in a second, at most.
    pub fn per_second(&self) -> u16 {
        u16::try_from(self.per_second).expect("a constraint of the table holds it")
    }

    /// How far it got: it has looked at what was accepted up to then, of the deliveries that had ended
    /// or, after those, of the events. `None`: at nothing yet.
    pub fn reached_at(&self) -> Option<DateTime<Utc>> {
        let is_at_events = self.has_all_ended && self.include_unrouted;
        let cursor = if is_at_events { self.event_cursor } else { self.delivery_cursor };
        let unix_ms = i64::try_from(unix_ms_of(cursor)).ok().filter(|ms| *ms > 0)?;
        DateTime::from_timestamp_millis(unix_ms)
    }
}

pub(super) const COLUMNS: &str =
    "replay_id, r.application_id, r.state, states, subscription_id, event_id, event_type,
     response_status, error_class, created_from, created_until, include_unrouted, per_second,
     until_id, delivery_cursor, event_cursor, has_all_ended, is_held_up, matched_count, queued_count,
     in_progress_count, payload_gone_count, subscription_deleted_count, subscription_disabled_count,
     unrouted_count, unrouted_payload_gone_count, routed_count, routed_delivery_count, r.created_at,
     r.updated_at, ended_at";

/// What became of the wish to move a replay to another state.
#[derive(Debug)]
pub enum Moved {
    /// It is there, or was already.
    Done(Box<ReplayRow>),
    /// It is over.
    Over,
    /// There is no such replay in this application.
    NotFound,
}

const JOBS: Jobs = Jobs { table: "replay r", id: "replay_id", columns: COLUMNS };

impl Store {
    /// Makes a replay, unless `once` was answered before: then only its standing is told. Full at
    /// [`REPLAYS_MAX`].
    pub async fn create_replay(
        &self,
        new: &NewReplay<'_>,
        once: Option<Reservation<'_>>,
    ) -> Result<Standing, StoreError> {
        let filter = new.filter;
        let (after, until) = filter.range(new.unix_ms);
        let states: Vec<_> = filter.states.iter().map(|state| state.as_str()).collect();
        bounded(async {
            let mut connection = self.pool.acquire().await?;
            let mut transaction = connection.begin().await?;
            let standing = stand(&mut transaction, once, self.times()).await?;
            if standing != Standing::New {
                return Ok(standing);
            }
            one_at_a_time(&mut transaction, new.application).await?;
            let inserted = sqlx::query(INSERT)
                .bind(new.id.uuid())
                .bind(new.application.uuid())
                .bind(Some(states).filter(|states| !states.is_empty()))
                .bind(filter.subscription.map(SubscriptionId::uuid))
                .bind(filter.event.map(EventId::uuid))
                .bind(filter.event_type.as_deref())
                .bind(filter.response_status)
                .bind(filter.error_class.map(ErrorClass::as_str))
                .bind(filter.created_from)
                .bind(filter.created_until)
                .bind(new.includes_unrouted)
                .bind(i32::from(new.per_second))
                .bind(until)
                .bind(after)
                .bind(REPLAYS_MAX)
                .execute(&mut *transaction)
                .await?;
            if inserted.rows_affected() == 0 {
                let (what, count_max) = ("replays that are not over", REPLAYS_MAX);
                return Err(StoreError::Full { what, count_max });
            }
            transaction.commit().await?;
            Ok(Standing::New)
        })
        .await
    }

    /// Finds a replay of an application.
    pub async fn replay(
        &self,
        application: ApplicationId,
        id: ReplayId,
    ) -> Result<Option<ReplayRow>, StoreError> {
        JOBS.find(self, application, id.uuid()).await
    }

    /// Lists replays of an application, newest first: up to `rows_max` of those made before
    /// `older_than`.
    pub async fn replays(
        &self,
        application: ApplicationId,
        older_than: Option<ReplayId>,
        rows_max: i64,
    ) -> Result<Vec<ReplayRow>, StoreError> {
        JOBS.list(self, application, older_than.map(ReplayId::uuid), rows_max).await
    }

    /// Pauses, resumes or cancels a replay. A step that is under way ends first; after the answer
    /// there is none but of a running one.
    pub async fn move_replay(
        &self,
        application: ApplicationId,
        id: ReplayId,
        to: ReplayState,
    ) -> Result<Moved, StoreError> {
        bounded(async {
            let mut query = QueryBuilder::<Postgres>::new("update replay r set state = ");
            query.push_bind(to.as_str());
            query.push(", updated_at = case when state = ").push_bind(to.as_str());
            query.push(" then updated_at else now() end, ended_at = case when ");
            query.push_bind(to.is_final()).push(" then now() end, is_held_up = false");
            query.push(" where application_id = ").push_bind(application.uuid());
            query.push(" and replay_id = ").push_bind(id.uuid());
            query.push(" and state in ('running', 'paused') returning ").push(COLUMNS);
            let moved: Option<ReplayRow> =
                query.build_query_as().fetch_optional(&self.pool).await?;
            if let Some(moved) = moved {
                return Ok(Moved::Done(Box::new(moved)));
            }
            let is_there = self.replay(application, id).await?;
            Ok(match is_there {
                // It is over, in the state that is asked for.
                Some(row) if row.state == to.as_str() => Moved::Done(Box::new(row)),
                Some(_) => Moved::Over,
                None => Moved::NotFound,
            })
        })
        .await
    }

    /// Deletes up to `rows_max` replays that were over before the history that is kept; tells how
    /// many.
    pub async fn forget_replays(
        &self,
        kept_for: Duration,
        rows_max: i64,
    ) -> Result<u64, StoreError> {
        bounded(async {
            let deleted = sqlx::query(concat!(
                "delete from replay where replay_id in (
                     select replay_id from replay where ended_at < ",
                settled_now!("$3"),
                " - $1
                     order by ended_at limit $2
                     for update skip locked
                 )",
            ))
            .bind(interval(kept_for))
            .bind(rows_max)
            .bind(self.times().settled)
            .execute(&self.pool)
            .await?;
            Ok(deleted.rows_affected())
        })
        .await
    }
}

const INSERT: &str = "
    insert into replay (replay_id, application_id, states, subscription_id, event_id, event_type,
                        response_status, error_class, created_from, created_until,
                        include_unrouted, per_second, until_id, delivery_cursor, event_cursor)
    select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $14
    where (select count(*) from replay
           where application_id = $2 and state in ('running', 'paused')) < $15";
