//! What a delivery is, and every rule that needs no clock, no dice, no database and no network.
//!
//! ```text
//!                    ┌──────────── retry: due again after a delay ───────────┐
//!                    ▼                                                       │
//! accepted ──► pending ──claim──► in_flight ──► attempt recorded ──► decide ─┼──► delivered
//!                    ▲                │                                      └──► dead
//!                    └── lease lost ──┘   (20 in a row: dead, `interrupted`)
//! ```
//!
//! Nothing in this module reads a clock or draws a random number: times and jitter are arguments.
//! That is what lets the tests be tables, and lets the database's clock be the only one.

pub mod access;
pub mod address;
pub mod attempt;
pub mod catalogue;
pub mod delivery;
pub mod diagnosis;
pub mod envelope;
pub mod erasure;
pub mod event;
pub mod event_types;
pub mod filter;
pub mod hosts;
pub mod ids;
pub mod json;
pub mod limits;
pub mod liveness;
pub mod named_keys;
pub mod operator;
pub mod outcome;
pub mod pacing;
pub mod replay;
pub mod retry;
pub mod routing;
pub mod schema;
pub mod sealing;
pub mod signature;
pub mod statistics;
pub mod subscription;
pub mod target;
pub mod uid;
pub mod upstream;
pub mod witness;

pub use access::{ApiKey, ApiKeyHash, Permission, Principal, Role};
pub use catalogue::Definition;
pub use delivery::{DeliveryState, EventStatus, Run};
pub use event::{EventType, IdempotencyKey, Payload, Subject, Submission};
pub use event_types::{EventTypePattern, EventTypePatterns, PatternIndex};
pub use filter::{EventDocument, Filter};
pub use hosts::AllowedHosts;
pub use ids::{
    ApiKeyId, ApplicationId, AttemptId, DeliveryId, ErasureId, EventId, LaneId, ReplayId,
    SigningKeyId, SubscriptionId,
};
pub use limits::{LaneLimit, Pace, RateLimit};
pub use named_keys::{KeyName, NamedKeys};
pub use outcome::{ErrorClass, Outcome};
pub use retry::{Decision, RetryPolicy};
pub use schema::Schema;
pub use signature::SigningKey;
pub use subscription::Subscription;
pub use target::TargetUrl;
pub use uid::Uid;
pub use upstream::Upstream;
