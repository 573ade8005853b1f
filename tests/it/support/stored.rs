//! Events as they are stored, without a service.

use webhook_dispatcher::{
    domain::{
        DeliveryId, EventId, Payload, Submission, TargetUrl, Upstream, event::Route,
        ids::DEFAULT_APPLICATION,
    },
    store::{dispatchers::DispatcherId, events::NewDelivery},
};

/// What nobody is subscribed to, for one explicit target.
pub fn submission(target: &TargetUrl) -> Submission {
    Submission {
        application: DEFAULT_APPLICATION,
        event_type: None,
        payload: Payload::from_json("1".into()).unwrap(),
        route: Route::Explicit(target.clone()),
        subject: None,
        metadata: None,
        idempotency_key: None,
        upstream: Upstream::default(),
    }
}

/// Its delivery, which `owner` has from the beginning.
pub fn delivery(event_id: EventId, target: TargetUrl, owner: Option<DispatcherId>) -> NewDelivery {
    NewDelivery {
        subscription: None,
        is_parked: false,
        settings: None,
        delivery_id: DeliveryId::of_event(event_id, 0),
        lane: target.lane(DEFAULT_APPLICATION),
        target,
        owner,
    }
}
