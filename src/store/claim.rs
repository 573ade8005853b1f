//! What a process holds of a delivery, from its claim to its recorded result.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    dispatchers::DispatcherId,
    targets::{Calling, TargetColumns},
};
use crate::domain::{
    ApplicationId, AttemptId, DeliveryId, DeliveryState, ErrorClass, EventId, LaneId, LaneLimit,
    Pace, Run, SubscriptionId, TargetUrl, Upstream, attempt::Response, outcome::Failure,
    pacing::Held, sealing::SealingKeys, subscription::Method, upstream::TraceParent,
};

/// What a result must carry to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClaimToken {
    /// The process that claimed.
    pub owner: DispatcherId,
    /// The claim's number within its delivery, from 1.
    pub number: i32,
}

/// A delivery that this process holds. Not `Clone`: recording it consumes it.
#[derive(Debug)]
pub struct Claim {
    /// Its id.
    pub delivery_id: DeliveryId,
    /// What a result must carry.
    pub token: ClaimToken,
    /// The event.
    pub event_id: EventId,
    /// The event's type, if told.
    pub event_type: Option<String>,
    /// The tenant.
    pub application: ApplicationId,
    /// What it shares its limits with.
    pub lane: LaneId,
    /// The subscription that asked for it; `None` for an explicit target.
    pub subscription: Option<SubscriptionId>,
    /// Where it goes; a subscription's URL may have changed since.
    pub target: TargetUrl,
    /// The event's payload.
    pub payload: Bytes,
    /// The event's metadata, JSON text, if the delivery is a subscription's.
    pub metadata: Option<Arc<str>>,
    /// Why it is sent.
    pub run: Run,
    /// Attempts recorded before this one that its policy counts.
    pub attempt_count: u32,
    /// Those that it does not.
    pub prior_count: u32,
    /// When it became due, by the database's clock.
    pub scheduled_at: DateTime<Utc>,
    /// How an explicit target is called.
    pub calling: Calling,
    /// The way that its event came.
    pub upstream: Upstream,
    /// What it holds in memory: the payload, and what its caller said about the target.
    pub held_bytes: usize,
    /// Its lane was limited when it was claimed.
    pub is_limited: bool,
    /// When it may begin, of a lane with a rate.
    pub time: Option<Instant>,
}

impl Claim {
    /// The number of the attempt to come, from 1.
    pub fn number(&self) -> u32 {
        self.prior_count + self.attempt_count + 1
    }
}

impl Held for Claim {
    fn lane(&self) -> LaneId {
        self.lane
    }

    fn bytes(&self) -> usize {
        self.held_bytes
    }

    fn time(&self) -> Option<Instant> {
        self.time
    }

    fn origin(&self) -> Option<LaneId> {
        self.subscription.is_none().then(|| self.target.lane(self.application))
    }

    fn url(&self) -> Option<LaneId> {
        self.subscription.is_none().then(|| self.target.url_lane(self.application))
    }
}

/// A row that has just been claimed; its payload is read apart, in portions.
#[derive(Debug, sqlx::FromRow)]
pub struct ClaimedRow {
    delivery_id: Uuid,
    claim_number: i32,
    event_id: Uuid,
    event_type: Option<String>,
    application_id: Uuid,
    lane_id: Uuid,
    subscription_id: Option<Uuid>,
    event_metadata: Option<String>,
    event_hops: Option<i16>,
    event_traceparent: Option<String>,
    target_url: String,
    run: Option<String>,
    attempt_count: i32,
    prior_count: i32,
    due_at: DateTime<Utc>,
    payload_bytes: i32,
    #[sqlx(flatten)]
    target_settings: TargetColumns,
    /// Older than a delivery may be: it must be buried, not sent.
    pub is_expired: bool,
    #[sqlx(flatten)]
    limit: LimitColumns,
    /// From the claim on, when the first of the lane's rows may begin.
    first_in_us: Option<i64>,
    /// When it may begin, of a lane with a rate.
    #[sqlx(skip)]
    time: Option<Instant>,
}

/// What is known of its lane's limit when a row is read.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct LimitColumns {
    limit_revision: Option<i32>,
    max_in_flight: Option<i32>,
    step_us: Option<i64>,
    tolerance_us: Option<i64>,
    slack_us: Option<i64>,
}

impl LimitColumns {
    pub(super) fn limit(&self) -> Option<LaneLimit> {
        let Self { max_in_flight, step_us, tolerance_us, slack_us, .. } = *self;
        let us = |us: i64| Duration::from_micros(us.unsigned_abs());
        let pace = step_us.zip(tolerance_us).zip(slack_us);
        Some(LaneLimit {
            revision: self.limit_revision?,
            max_in_flight: max_in_flight.map(i32::unsigned_abs),
            pace: pace.map(|((step, tolerance), slack)| Pace {
                step: us(step),
                tolerance: us(tolerance),
                slack: us(slack),
            }),
        })
    }
}

impl ClaimedRow {
    /// The row's delivery.
    pub fn delivery_id(&self) -> DeliveryId {
        DeliveryId::from_uuid(self.delivery_id)
    }

    /// The row's event, whose payload must be read.
    pub fn event_id(&self) -> EventId {
        EventId::from_uuid(self.event_id)
    }

    /// The row's lane.
    pub fn lane(&self) -> LaneId {
        LaneId::from_uuid(self.lane_id)
    }

    /// The tenant.
    pub fn application(&self) -> ApplicationId {
        ApplicationId::from_uuid(self.application_id)
    }

    /// The subscription that asked for it.
    pub fn subscription(&self) -> Option<SubscriptionId> {
        self.subscription_id.map(SubscriptionId::from_uuid)
    }

    /// Its event's type, if told.
    pub fn event_type(&self) -> Option<&str> {
        self.event_type.as_deref()
    }

    /// When it became due.
    pub fn due_at(&self) -> DateTime<Utc> {
        self.due_at
    }

    /// When it may begin, of a lane with a rate.
    pub fn time(&self) -> Option<Instant> {
        self.time
    }

    /// What its lane's owner bounds; `None` if nothing is known of that.
    pub fn limit(&self) -> Option<LaneLimit> {
        self.limit.limit()
    }

    /// Gives the rows of lanes with a rate, which are in order, their times: the first of each lane
    /// has that of the claim, which was answered then, and each other one the next. Those that are not
    /// sent have none.
    pub(super) fn set_times(rows: &mut [Self], answered_at: Instant) {
        let (mut lane, mut next_us) = (None, 0);
        for row in rows {
            let (Some(first_in_us), Some(step_us)) = (row.first_in_us, row.limit.step_us) else {
                continue;
            };
            if row.is_expired {
                continue;
            }
            if lane != Some(row.lane_id) {
                (lane, next_us) = (Some(row.lane_id), first_in_us);
            }
            row.time = Some(answered_at + Duration::from_micros(next_us.max(0).unsigned_abs()));
            next_us += step_us;
        }
    }

    /// Why it is sent.
    pub fn run(&self) -> Run {
        // The names are held by a constraint of the table.
        Run::from_name(self.run.as_deref()).unwrap_or(Run::Schedule)
    }

    /// How many bytes its claim will hold in memory.
    pub fn held_bytes(&self) -> usize {
        usize::try_from(self.payload_bytes).unwrap_or_default() + self.target_settings.bytes()
    }

    /// What a result must carry.
    pub fn token(&self, owner: DispatcherId) -> ClaimToken {
        ClaimToken { owner, number: self.claim_number }
    }

    /// The claim, once its payload is there. `Err` gives the row back if its target cannot be read.
    #[expect(clippy::result_large_err, reason = "the row is moved back, not reported")]
    pub fn into_claim(
        self,
        owner: DispatcherId,
        payload: Bytes,
        keys: &SealingKeys,
    ) -> Result<Claim, Self> {
        let Ok(target) = TargetUrl::from_stored(&self.target_url) else { return Err(self) };
        let calling = self.target_settings.calling(self.delivery_id(), keys);
        let held_bytes = self.held_bytes();
        let is_limited = self.limit().is_some_and(|limit| limit.bounds());
        Ok(Claim {
            is_limited,
            time: self.time,
            delivery_id: self.delivery_id(),
            token: self.token(owner),
            event_id: self.event_id(),
            application: ApplicationId::from_uuid(self.application_id),
            lane: self.lane(),
            subscription: self.subscription_id.map(SubscriptionId::from_uuid),
            target,
            payload,
            metadata: self.event_metadata.map(Into::into),
            run: Run::from_name(self.run.as_deref()).unwrap_or(Run::Schedule),
            prior_count: self.prior_count.unsigned_abs(),
            attempt_count: self.attempt_count.unsigned_abs(),
            scheduled_at: self.due_at,
            calling,
            upstream: Upstream {
                // The bounds are those of a constraint of the table.
                hops: self.event_hops.and_then(|hops| hops.try_into().ok()).unwrap_or_default(),
                traceparent: self.event_traceparent.as_deref().and_then(TraceParent::parse),
            },
            held_bytes,
            event_type: self.event_type,
        })
    }
}

/// What follows from a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// The delivery has ended; `reason` unless it was delivered.
    End {
        /// `delivered`, `dead` or `cancelled`.
        state: DeliveryState,
        /// Why it was not delivered.
        reason: Option<ErrorClass>,
    },
    /// It is due again after this delay, which the database adds to its own clock.
    RetryAfter(Duration),
    /// The same, and the attempt is not counted: it failed by a fault of this service.
    Postpone(Duration),
    /// It was sent by hand, without success: it is due again when it was.
    Resume,
    /// Its subscription is disabled: it waits until that ends.
    Park,
}

impl Next {
    /// Whether the receiver took it.
    pub fn is_delivered(&self) -> bool {
        matches!(self, Self::End { state: DeliveryState::Delivered, .. })
    }
}

/// One exchange, as it is kept.
#[derive(Debug)]
pub struct AttemptRecord {
    /// Its id.
    pub attempt_id: AttemptId,
    /// When the delivery became due.
    pub scheduled_at: DateTime<Utc>,
    /// When it began, by the database's clock as sampled.
    pub started_at: DateTime<Utc>,
    /// How long it took.
    pub duration: Duration,
    /// The method.
    pub request_method: Method,
    /// The URL that was called.
    pub request_url: String,
    /// Header lines as sent, secrets redacted.
    pub request_headers: String,
    /// The answer, if there was one.
    pub response: Option<Response>,
    /// What went wrong; `None` if the receiver said 2xx.
    pub failure: Option<Failure>,
}

/// A finished claim. `attempt` is absent where none was made (an expired delivery).
#[derive(Debug)]
pub struct Finished {
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// What the claim's result must carry.
    pub token: ClaimToken,
    /// Its lane, for wake-ups.
    pub lane: LaneId,
    /// The tenant.
    pub application: ApplicationId,
    /// The subscription that asked for it.
    pub subscription: Option<SubscriptionId>,
    /// The event's type, for the history.
    pub event_type: Option<String>,
    /// Why it was sent.
    pub run: Run,
    /// What follows.
    pub next: Next,
    /// What happened.
    pub attempt: Option<AttemptRecord>,
    /// The payload bytes of a delivery that was started: its slot is freed once this is recorded.
    pub slot_bytes: Option<usize>,
}

/// What recording came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recorded {
    /// Results that counted.
    pub counted: usize,
    /// Results whose claim was lost, or that had been recorded before.
    pub late: usize,
}

/// When a claim that is given back is due again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// When it was: it keeps its place in the lane. The marks of other processes may hide it for
    /// some seconds.
    InPlace,
    /// Now.
    Now,
    /// After a while.
    After(Duration),
}
