//! Every operation, declared once: what it is called, who may call it, what it takes and answers.
//! The router and the document (`/openapi.json`) are made of these lists.

mod api_keys;
mod applications;
mod cms;
mod deliveries;
mod diagnosis;
mod dispatch;
mod erasures;
mod event_types;
mod events;
mod ingest;
mod replays;
mod service;
mod statistics;
pub mod subscriptions;

use super::openapi::Operation;

/// What every process answers.
pub fn of_the_process() -> Vec<Operation> {
    service::operations()
}

/// What a process answers that accepts events.
pub fn of_the_api() -> Vec<Operation> {
    let (subscriptions, event_types) = (subscriptions::operations(), event_types::operations());
    let deliveries = deliveries::operations();
    // There, `events` are the types of events.
    let prefixed = [
        under_the_prefix(&subscriptions, ("/subscriptions", "/subscriptions")),
        under_the_prefix(&deliveries, ("/deliveries", "/deliveries")),
        under_the_prefix(&event_types, ("/event-types", "/events")),
    ];
    [
        events::operations(),
        dispatch::operations(),
        deliveries,
        vec![deliveries::status(), ingest::create()],
        replays::operations(),
        erasures::operations(),
        subscriptions,
        vec![cms::changed()],
        event_types,
        applications::operations(),
        vec![statistics::of_application()],
        api_keys::operations(),
        prefixed.concat(),
    ]
    .concat()
}

fn under_the_prefix(operations: &[Operation], place: (&str, &str)) -> Vec<Operation> {
    operations.iter().map(|operation| operation.under_the_prefix(place)).collect()
}

/// Values of examples, the same wherever they stand.
mod examples {
    /// An application's id.
    pub const APPLICATION: &str = "app_0192d4e012347abc8def0123456789ab";
    /// An event's id.
    pub const EVENT: &str = "evt_0192d4e012347abc8def0123456789ab";
    /// A delivery's id.
    pub const DELIVERY: &str = "dlv_0192d4e012347abc8def012345600001";
    /// A replay's id.
    pub const REPLAY: &str = "rpl_0192d4e012347abc8def0123456789ab";
    pub const ERASURE: &str = "ers_0192d4e012347abc8def0123456789ab";
    /// A subscription's id.
    pub const SUBSCRIPTION: &str = "sub_0192d4e012347abc8def0123456789ab";
    /// When it happened.
    pub const TIME: &str = "2026-01-31T12:00:00.123Z";
    /// A secret that opens nothing.
    pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    /// Where the next page begins.
    pub const CURSOR: &str = "AmUBktTgEjR6vI3vASNFZ4mr";
}
