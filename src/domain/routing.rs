//! Which targets an event reaches.
//!
//! Pure, so that the same function can say where an event goes when it is accepted, and afterwards
//! why it went there. What it reads is a snapshot of one application at one routing version; the
//! transaction that stores the result checks that version.

use super::{
    event::{Route, Submission},
    ids::{ApplicationId, LaneId},
    target::TargetUrl,
};

/// What routing knows of an application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutingSnapshot {
    /// The application.
    pub application: ApplicationId,
    /// Its routing version: raised by every change that may send an event elsewhere.
    pub version: i64,
}

/// One delivery to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// What it shares its limits with.
    pub lane: LaneId,
    /// Where it goes.
    pub target: TargetUrl,
}

/// The deliveries that a submission comes to, in a stable order.
pub fn route(snapshot: &RoutingSnapshot, submission: &Submission) -> Vec<Destination> {
    match &submission.route {
        Route::Explicit(target) | Route::Default(target) => {
            vec![Destination { lane: target.lane(snapshot.application), target: target.clone() }]
        }
        // Subscriptions do not exist yet: such an event is kept, and is `unrouted`.
        Route::Subscriptions => Vec::new(),
    }
}
