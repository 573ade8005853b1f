//! What every way in does with submissions: they are routed, given room, and settled after the
//! commit that keeps them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Handover, Routes, batch::Routed};
use crate::{
    clock::Clock,
    domain::{
        DeliveryId, EventId, Run, Submission,
        routing::{Destination, route},
    },
    store::{
        events::{NewDelivery, NewEvent, Stored},
        queue::{Claim, ClaimToken},
        targets::{Calling, NewTargetSettings},
    },
    telemetry,
};

/// What routing and handing over need. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Intake {
    /// The database's clock.
    pub clock: Clock,
    /// Where there is room to send at once.
    pub handover: Arc<Handover>,
    /// What is known of applications.
    pub routes: Arc<Routes>,
}

impl Intake {
    /// Where a submission goes, if its application is in memory.
    pub fn route(&self, submission: &Submission) -> Option<Routed> {
        let snapshot = self.routes.known(submission.application)?;
        let destinations = route(&snapshot, submission);
        Some(Routed { version: snapshot.version, destinations })
    }

    /// Makes the event of a submission, and asks for room to send its deliveries at once. It must be
    /// followed by [`Self::settle`] or [`Self::abandon`].
    pub fn prepare<'a>(
        &self,
        event_id: EventId,
        submission: &'a Submission,
        Routed { version, destinations }: Routed,
    ) -> NewEvent<'a> {
        let deliveries = destinations.into_iter().enumerate().map(|(ordinal, destination)| {
            let delivery_id = DeliveryId::of_event(event_id, ordinal);
            let Destination { lane, subscription, target, is_parked, settings, limit } =
                destination;
            let lane = if subscription.is_none() {
                self.handover.explicit_lane(&target, submission.application)
            } else {
                lane
            };
            let sealed = |settings| {
                let keys = self.routes.sealing();
                NewTargetSettings::sealed(delivery_id, settings, keys, rand::random())
            };
            let (settings, owner) = (settings.map(sealed), None);
            let mut delivery =
                NewDelivery { delivery_id, lane, subscription, target, owner, is_parked, settings };
            if !is_parked {
                let bytes = delivery.held_bytes(submission);
                delivery.owner = self.handover.reserve(
                    delivery_id,
                    lane,
                    (submission.application, limit),
                    bytes,
                );
            }
            delivery
        });
        let deliveries = deliveries.collect();
        NewEvent { event_id, submission, routing_version: version, deliveries }
    }

    /// After the commit: what was known of the applications of these events is what the database knew
    /// when it was asked to store them, or later. Only of those that are new it has compared that.
    pub fn confirm(&self, events: &[NewEvent<'_>], stored: &[Stored], asked_at: Instant) {
        let new = events.iter().zip(stored).filter(|(_, stored)| **stored == Stored::New);
        let versions = new.map(|(event, _)| (event.submission.application, event.routing_version));
        self.routes.confirm(versions, asked_at);
    }

    /// After the commit: what is ours goes to the sender, what is not waits in the queue.
    /// Returns deliveries whose lane was paused meanwhile; they are to be given back.
    pub fn settle(&self, events: Vec<NewEvent<'_>>, stored: &[Stored]) -> Vec<(Claim, Duration)> {
        let mut claims = Vec::with_capacity(events.len());
        let mut left_in_queue = Vec::new();
        for (event, stored) in events.into_iter().zip(stored) {
            let payload = event.submission.payload.bytes();
            // All deliveries of an event share it.
            let metadata: Option<Arc<str>> =
                event.submission.metadata.as_ref().map(|metadata| metadata.as_str().into());
            for delivery in event.deliveries {
                let held_bytes = delivery.held_bytes(event.submission);
                match (stored, delivery.owner) {
                    (Stored::New, Some(owner)) => claims.push(Claim {
                        delivery_id: delivery.delivery_id,
                        token: ClaimToken { owner, number: 1 },
                        event_id: event.event_id,
                        event_type: event
                            .submission
                            .event_type
                            .as_ref()
                            .map(|name| name.as_str().to_owned()),
                        application: event.submission.application,
                        lane: delivery.lane,
                        subscription: delivery.subscription,
                        target: delivery.target,
                        payload: payload.clone(),
                        metadata: delivery.subscription.and(metadata.clone()),
                        run: Run::Schedule,
                        attempt_count: 0,
                        prior_count: 0,
                        scheduled_at: self.clock.now(),
                        calling: delivery
                            .settings
                            .map_or(Calling::Usual, |one| Calling::As(one.settings)),
                        upstream: event.submission.upstream.clone(),
                        held_bytes,
                        is_limited: false,
                        time: None,
                    }),
                    (Stored::New, None) if !delivery.is_parked => {
                        left_in_queue.push((delivery.lane, event.submission.application));
                    }
                    (_, Some(owner)) => {
                        let token = ClaimToken { owner, number: 1 };
                        let (id, lane) = (delivery.delivery_id, delivery.lane);
                        self.handover.take_back(id, token, lane, held_bytes);
                    }
                    (_, None) => {}
                }
            }
        }
        telemetry::born_claimed(claims.len());
        let refused = self.handover.hand_over(claims);
        if !left_in_queue.is_empty() {
            telemetry::left_in_queue(left_in_queue.len());
            left_in_queue.sort_unstable();
            left_in_queue.dedup();
            self.handover.leave_in_queue(left_in_queue);
        }
        refused
    }

    /// Returns the room of events that were not stored. If they were stored after all, unknown to
    /// us, the reconciliation finds rows that we own and do not know, and releases them.
    pub fn abandon(&self, events: &[NewEvent<'_>]) {
        for (event, delivery, token) in owned(events) {
            let bytes = delivery.held_bytes(event.submission);
            self.handover.take_back(delivery.delivery_id, token, delivery.lane, bytes);
        }
    }
}

/// The deliveries that were to be sent from here, each with its claim.
pub fn owned<'a>(
    events: &'a [NewEvent<'_>],
) -> impl Iterator<Item = (&'a NewEvent<'a>, &'a NewDelivery, ClaimToken)> {
    events.iter().flat_map(|event| {
        event.deliveries.iter().filter_map(move |delivery| {
            Some((event, delivery, ClaimToken { owner: delivery.owner?, number: 1 }))
        })
    })
}

/// With this line the log of one event begins. Before it is handed over, so that it comes first.
pub fn log_accepted(event_id: EventId) {
    tracing::debug!(event = %event_id, "accepted");
}
