//! Recording: results in batches, each fenced by the owner and the number of its claim.

use std::time::Duration;

use uuid::Uuid;

use chrono::{DateTime, Utc};

use super::{
    PLANS, Store, StoreError,
    dispatchers::DispatcherId,
    ending::{told, told_to_cms},
    prompt,
    queue::{AttemptRecord, Finished, Next, Recorded},
    time::ordered_now,
};
use crate::domain::{DeliveryState, ErrorClass, Run};

impl Store {
    /// Records results, in one statement and one commit for all that are sent by their schedules:
    /// ended deliveries leave the queue for the history, others are due again, and every attempt is
    /// kept. A result whose claim was lost changes nothing; its attempt is kept and marked late.
    pub async fn record(&self, finished: &[Finished]) -> Result<Recorded, StoreError> {
        let (mut scheduled, mut runs, mut parked) = (Vec::new(), Vec::new(), Vec::new());
        for one in finished {
            match (&one.next, one.run) {
                (Next::Park, _) => parked.push(one),
                (_, Run::Schedule) => scheduled.push(one),
                (_, Run::Retry | Run::Once | Run::Replay) => runs.push(one),
            }
        }
        let mut counted = 0;
        if !scheduled.is_empty() {
            counted += self.record_scheduled(&scheduled).await?;
        }
        if !runs.is_empty() {
            counted += self.record_runs(&runs).await?;
        }
        if !parked.is_empty() {
            counted += usize::try_from(self.park(&parked).await?).unwrap_or_default();
        }
        let late = finished.len().saturating_sub(counted);
        if late > 0 {
            self.keep_late_attempts(finished).await?;
        }
        Ok(Recorded { counted, late })
    }

    /// Opens the connection and has Postgres plan the statement that records results, so that the first
    /// ones after a start do not wait for that. Changes nothing.
    pub async fn prepare_to_record(&self) -> Result<(), StoreError> {
        for _ in 0..PLANS {
            Box::pin(self.record_scheduled(&[])).await?;
        }
        Ok(())
    }

    async fn record_scheduled(&self, finished: &[&Finished]) -> Result<usize, StoreError> {
        let record = match (finished.iter().any(|one| has_died(one)), self.cms()) {
            (false, None) => RECORD,
            (true, None) => RECORD_DEATHS,
            (false, Some(_)) => RECORD_FOR_CMS,
            (true, Some(_)) => RECORD_DEATHS_FOR_CMS,
        };
        prompt(&self.pace, async {
            let mut query = Columns::of(finished.iter().copied()).bind(sqlx::query_scalar(record));
            query = query.bind(self.times().expected);
            if let Some(cms) = self.cms() {
                query = query.bind(cms);
            }
            let counted: i64 = query.fetch_one(&self.pool).await?;
            Ok(usize::try_from(counted).unwrap_or_default())
        })
        .await
    }

    /// Keeps the attempts that the batch did not: those that counted are there already.
    async fn keep_late_attempts(&self, finished: &[Finished]) -> Result<(), StoreError> {
        prompt(&self.pace, async {
            let _: i64 = Columns::of(finished)
                .bind(sqlx::query_scalar(KEEP_LATE))
                .fetch_one(&self.pool)
                .await?;
            Ok(())
        })
        .await
    }
}

fn micros(delay: Duration) -> i64 {
    i64::try_from(delay.as_micros()).unwrap_or(i64::MAX)
}

fn has_died(one: &Finished) -> bool {
    matches!(one.next, Next::End { state: DeliveryState::Dead, .. })
}

// Behind `select` the planner cannot count the results, so that it keeps its plan: it would make one for
// each single result, which takes longer than to record it.
macro_rules! result_rows {
    () => {
        "with result as (
        select * from unnest(
            (select $1::uuid[]), (select $2::int[]), (select $3::int[]), (select $4::text[]),
            (select $5::text[]), (select $6::text[]), (select $7::bigint[]), (select $8::uuid[]),
            (select $9::timestamptz[]), (select $10::timestamptz[]), (select $11::int[]),
            (select $12::text[]), (select $13::text[]), (select $14::smallint[]),
            (select $15::text[]), (select $16::bytea[]), (select $17::boolean[]),
            (select $18::text[]), (select $19::text[]), (select $20::text[]))
        as r(delivery_id, owner, claim_number, event_type, state, reason, retry_us,
             attempt_id, scheduled_at, started_at, duration_ms, request_url, request_headers,
             response_status, response_headers, response_body, response_truncated, error_class,
             error_message, request_method)
    )"
    };
}
pub(super) use result_rows;

// How the rows are found matters more than anything else here. The queue is vacuumed when it is
// nearly empty, so the planner believes that it has one row, and would read all of it and compare
// each row with each result: 250 us of CPU a delivery instead of 20. The lateral sub-query with
// `offset 0` can only be a look-up by key for each result, and a `ctid` can only be looked up.
// The fence is checked again where the row is changed, since it may have been released in between.
//
// The rows that leave the queue are handed on by `returning` together with their results, since a
// join of two CTEs, which have no statistics either, would be a nested loop over both.
macro_rules! record {
    ($($telling:expr),*) => {
        concat!(
    result_rows!(),
    ",
    held as materialized (
        select result.*, row.place
        from result cross join lateral (
            select q.ctid as place from delivery_queue q
            where q.delivery_id = result.delivery_id
              and q.owner = result.owner and q.claim_number = result.claim_number
            offset 0
        ) as row
    ),
    ended as (
        delete from delivery_queue q using held r
        where q.ctid = r.place
          and q.owner = r.owner and q.claim_number = r.claim_number
          and r.state is not null
        returning q.event_id, q.application_id, q.lane_id, q.subscription_id, q.target_url,
                  q.prior_count + q.attempt_count as attempt_count, q.created_at, r.*
    ),
    rescheduled as (
        update delivery_queue q
        set owner = null,
            due_at = ",
    ordered_now!("$21"),
    " + abs(r.retry_us) * interval '1 microsecond',
            attempt_count = q.attempt_count + case when r.retry_us < 0 then 0 else 1 end,
            prior_count = q.prior_count + case when r.retry_us < 0 then 1 else 0 end,
            interruption_count = 0
        from held r
        where q.ctid = r.place
          and q.owner = r.owner and q.claim_number = r.claim_number
          and r.state is null
        returning r.*
    ),
    history as (
        insert into delivery (delivery_id, event_id, application_id, lane_id, subscription_id,
                              event_type, target_url, state, reason, attempt_count, last_status,
                              created_at)
        select delivery_id, event_id, application_id, lane_id, subscription_id, event_type,
               target_url, state, reason, attempt_count + case when attempt_id is null then 0 else 1 end,
               response_status, created_at
        from ended
    ),
    counted as (
        select delivery_id, claim_number, attempt_id, scheduled_at, started_at, duration_ms,
               request_method, request_url, request_headers, response_status, response_headers,
               response_body, response_truncated, error_class, error_message
        from ended
        union all
        select delivery_id, claim_number, attempt_id, scheduled_at, started_at, duration_ms,
               request_method, request_url, request_headers, response_status, response_headers,
               response_body, response_truncated, error_class, error_message
        from rescheduled
    ),
    kept as (
        insert into attempt (delivery_id, claim_number, attempt_id, scheduled_at, started_at,
                             duration_ms, request_method, request_url, request_headers,
                             response_status, response_headers, response_body, response_truncated, error_class,
                             error_message, is_late)
        select counted.*, false from counted where attempt_id is not null
    )",
            $(",", $telling,)*
            "
    select (select count(*) from ended) + (select count(*) from rescheduled)"
        )
    };
}

macro_rules! deaths {
    () => {
        told!(
            "death",
            "webhook.delivery.dead",
            "select application_id, delivery_id, event_id, event_type, subscription_id, target_url,
                    reason,
                    attempt_count + case when attempt_id is null then 0 else 1 end as attempt_count,
                    response_status::int as last_status, created_at
             from ended where state = 'dead'"
        )
    };
}

macro_rules! ended_for_cms {
    () => {
        told_to_cms!("select application_id, event_id from ended", "$22")
    };
}

const RECORD: &str = record!();

/// The same of a batch in which some have died: whoever asked for it is told.
const RECORD_DEATHS: &str = record!(deaths!());

// The same where the CMS is told. Without one not a word of these statements is sent.
const RECORD_FOR_CMS: &str = record!(ended_for_cms!());
const RECORD_DEATHS_FOR_CMS: &str = record!(deaths!(), ended_for_cms!());

// `result` is read once and not materialized: each copy of it is a copy of every answer's body.
const KEEP_LATE: &str = concat!(
    result_rows!(),
    ",
    kept as (
        insert into attempt (delivery_id, claim_number, attempt_id, scheduled_at, started_at,
                             duration_ms, request_method, request_url, request_headers,
                             response_status, response_headers, response_body, response_truncated, error_class,
                             error_message, is_late)
        select delivery_id, claim_number, attempt_id, scheduled_at, started_at, duration_ms,
               request_method, request_url, request_headers, response_status, response_headers,
               response_body, response_truncated, error_class, error_message, true
        from result where attempt_id is not null
        on conflict (delivery_id, claim_number) do nothing
        returning delivery_id
    )
    select count(*) from kept"
);

/// The results, a vector a column.
#[derive(Default)]
pub(super) struct Columns<'a> {
    delivery_id: Vec<Uuid>,
    owner: Vec<DispatcherId>,
    claim_number: Vec<i32>,
    event_type: Vec<Option<&'a str>>,
    state: Vec<Option<&'static str>>,
    reason: Vec<Option<&'static str>>,
    retry_us: Vec<i64>,
    attempt_id: Vec<Option<Uuid>>,
    scheduled_at: Vec<Option<DateTime<Utc>>>,
    started_at: Vec<Option<DateTime<Utc>>>,
    duration_ms: Vec<Option<i32>>,
    request_url: Vec<Option<&'a str>>,
    request_headers: Vec<Option<&'a str>>,
    response_status: Vec<Option<i16>>,
    response_headers: Vec<Option<&'a str>>,
    response_body: Vec<Option<&'a [u8]>>,
    response_truncated: Vec<bool>,
    error_class: Vec<Option<&'static str>>,
    error_message: Vec<Option<&'a str>>,
    request_method: Vec<Option<&'static str>>,
}

impl<'a> Columns<'a> {
    pub(super) fn of(finished: impl IntoIterator<Item = &'a Finished>) -> Self {
        let mut columns = Self::default();
        for one in finished {
            columns.delivery_id.push(one.delivery_id.uuid());
            columns.owner.push(one.token.owner);
            columns.claim_number.push(one.token.number);
            columns.event_type.push(one.event_type.as_deref());
            let (state, reason, retry_us) = match &one.next {
                Next::End { state, reason } => (Some(*state), *reason, 0),
                Next::RetryAfter(delay) => (None, None, micros(*delay)),
                // Below zero: the attempt is not counted.
                Next::Postpone(delay) => (None, None, -micros(*delay).max(1)),
                Next::Resume | Next::Park => (None, None, 0),
            };
            columns.state.push(state.map(DeliveryState::as_str));
            columns.reason.push(reason.map(ErrorClass::as_str));
            columns.retry_us.push(retry_us);
            columns.push_attempt(one.attempt.as_ref());
        }
        columns
    }

    fn push_attempt(&mut self, attempt: Option<&'a AttemptRecord>) {
        let response = attempt.and_then(|a| a.response.as_ref());
        let failure = attempt.and_then(|a| a.failure.as_ref());
        self.attempt_id.push(attempt.map(|a| a.attempt_id.uuid()));
        self.scheduled_at.push(attempt.map(|a| a.scheduled_at));
        self.started_at.push(attempt.map(|a| a.started_at));
        self.duration_ms
            .push(attempt.map(|a| i32::try_from(a.duration.as_millis()).unwrap_or(i32::MAX)));
        self.request_url.push(attempt.map(|a| a.request_url.as_str()));
        self.request_headers.push(attempt.map(|a| a.request_headers.as_str()));
        self.response_status.push(response.map(|r| r.status.cast_signed()));
        self.response_headers.push(response.map(|r| r.headers.as_str()));
        self.response_body.push(response.map(|r| r.body.as_ref()));
        self.response_truncated.push(response.is_some_and(|r| r.is_truncated));
        self.error_class.push(failure.map(|f| f.class.as_str()));
        self.error_message.push(failure.map(|f| f.message.as_str()));
        self.request_method.push(attempt.map(|a| a.request_method.as_str()));
    }

    pub(super) fn bind<'q>(self, query: ScalarQuery<'q>) -> ScalarQuery<'q>
    where
        'a: 'q,
    {
        query
            .bind(self.delivery_id)
            .bind(self.owner)
            .bind(self.claim_number)
            .bind(self.event_type)
            .bind(self.state)
            .bind(self.reason)
            .bind(self.retry_us)
            .bind(self.attempt_id)
            .bind(self.scheduled_at)
            .bind(self.started_at)
            .bind(self.duration_ms)
            .bind(self.request_url)
            .bind(self.request_headers)
            .bind(self.response_status)
            .bind(self.response_headers)
            .bind(self.response_body)
            .bind(self.response_truncated)
            .bind(self.error_class)
            .bind(self.error_message)
            .bind(self.request_method)
    }
}

pub(super) type ScalarQuery<'q> =
    sqlx::query::QueryScalar<'q, sqlx::Postgres, i64, sqlx::postgres::PgArguments>;
