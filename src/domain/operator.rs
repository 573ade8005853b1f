//! Operator events: what the service itself has to say of subscriptions and deliveries. They are
//! published to the application like its own, and reach only subscriptions that name them.
//!
//! The statements that record what they tell of publish them, in the same transaction; what each one
//! carries stands in `migrations/0011_operator_events.sql`.

use super::{EventType, SubscriptionId, event::Submission};

/// A subscription was disabled: by its owner, by a receiver that answered 410, or since all had
/// failed for long.
pub const SUBSCRIPTION_DISABLED: &str = "webhook.subscription.disabled";
/// A subscription was enabled again.
pub const SUBSCRIPTION_ENABLED: &str = "webhook.subscription.enabled";
/// A delivery was given up.
pub const DELIVERY_DEAD: &str = "webhook.delivery.dead";
/// A delivery that had been given up was delivered after all.
pub const DELIVERY_RECOVERED: &str = "webhook.delivery.recovered";

/// All of them, each with an example of what it carries.
pub const ALL: &[(&str, &str)] = &[
    (SUBSCRIPTION_DISABLED, OF_DISABLED),
    (SUBSCRIPTION_ENABLED, OF_ENABLED),
    (DELIVERY_DEAD, OF_DEAD),
    (DELIVERY_RECOVERED, OF_RECOVERED),
];

const OF_DISABLED: &str = r#"{"subscription_id": "sub_0192d4e012347abc8def0123456789ab", "uid": null, "target_url": "https://example.com/webhook", "because": "gone", "at": "2026-11-27T12:00:00.000000Z"}"#;
const OF_ENABLED: &str = r#"{"subscription_id": "sub_0192d4e012347abc8def0123456789ab", "uid": null, "target_url": "https://example.com/webhook", "because": null, "at": "2026-11-27T12:00:00.000000Z"}"#;
const OF_DEAD: &str = r#"{"delivery_id": "dlv_0192d4e012347abc8def012345600000", "event_id": "evt_0192d4e012347abc8def0123456789ab", "event_type": "invoice.paid", "subscription_id": "sub_0192d4e012347abc8def0123456789ab", "target_url": "https://example.com/webhook", "reason": "http_status", "attempt_count": 20, "last_status": 500, "created_at": "2026-11-25T12:00:00.000000Z", "ended_at": "2026-11-27T12:00:00.000000Z"}"#;
const OF_RECOVERED: &str = r#"{"delivery_id": "dlv_0192d4e012347abc8def012345600000", "event_id": "evt_0192d4e012347abc8def0123456789ab", "event_type": "invoice.paid", "subscription_id": "sub_0192d4e012347abc8def0123456789ab", "target_url": "https://example.com/webhook", "reason": "http_status", "attempt_count": 21, "last_status": 200, "created_at": "2026-11-25T12:00:00.000000Z", "ended_at": "2026-11-27T12:00:00.000000Z"}"#;

/// An example of what an operator event of this type carries; `None`: there is no such type.
pub fn example_of(event_type: &str) -> Option<&'static str> {
    ALL.iter().find(|(name, _)| *name == event_type).map(|(_, example)| *example)
}

/// Whether an event is about this subscription itself: then it does not go there.
pub fn is_about(submission: &Submission, id: SubscriptionId) -> bool {
    let is_operators = submission.event_type.as_ref().is_some_and(EventType::is_operators);
    is_operators && submission.subject.as_ref().is_some_and(|it| it.as_str() == id.to_string())
}
