//! Which targets an event reaches.
//!
//! Pure, so that the same function can say where an event goes when it is accepted, and afterwards
//! why it went there. What it reads is a snapshot of one application at one routing version; the
//! transaction that stores the result checks that version.

use std::{collections::HashMap, sync::Arc};

use super::{
    LaneLimit, PatternIndex, Subscription, SubscriptionId,
    event::{Route, Submission},
    filter::EventDocument,
    hosts::AllowedHosts,
    ids::{ApplicationId, LaneId},
    operator,
    subscription::KeyRing,
    target::{NamedTarget, TargetSettings, TargetUrl},
};

/// What routing and sending know of an application.
#[derive(Debug)]
pub struct Snapshot {
    /// The application.
    pub application: ApplicationId,
    /// Its routing version: raised by every change that may send an event elsewhere, or otherwise.
    pub version: i64,
    /// What signs its explicit targets; `None`: the key of the settings.
    pub keys: Option<KeyRing>,
    /// Its owner's name for it, by which settings may name it.
    pub uid: Option<String>,
    /// The hosts that it may call; `None`: all that may be called at all.
    pub allowed_hosts: Option<Arc<AllowedHosts>>,
    places: HashMap<SubscriptionId, Place>,
    /// Those that can be read, in the order of their ids, and so of time.
    subscriptions: Vec<Arc<Subscription>>,
    index: PatternIndex,
}

/// What is known of a subscription.
#[derive(Debug, Clone)]
pub enum Place {
    /// What it says.
    Subscription(Arc<Subscription>),
    /// That it is there: what it says cannot be read here.
    Unreadable,
}

impl Snapshot {
    /// An application with these subscriptions.
    pub fn new(
        application: ApplicationId,
        version: i64,
        keys: Option<KeyRing>,
        places: HashMap<SubscriptionId, Place>,
    ) -> Self {
        let readable = places.values().filter_map(|place| match place {
            Place::Subscription(subscription) => Some(subscription.clone()),
            Place::Unreadable => None,
        });
        let mut subscriptions: Vec<_> = readable.collect();
        subscriptions.sort_unstable_by_key(|subscription| subscription.id);
        let index = PatternIndex::new(subscriptions.iter().map(|one| &one.event_types));
        let (uid, allowed_hosts) = (None, None);
        Self { application, version, keys, uid, allowed_hosts, places, subscriptions, index }
    }

    /// The same, of an application of this uid.
    #[must_use]
    pub fn called(mut self, uid: &str) -> Self {
        self.uid = Some(uid.to_owned());
        self
    }

    /// The same, of an application that may call these hosts only, if there are any.
    #[must_use]
    pub fn calling(mut self, hosts: Option<AllowedHosts>) -> Self {
        self.allowed_hosts = hosts.map(Arc::new);
        self
    }

    /// The subscriptions that can be read, in the order of their ids.
    pub fn subscriptions(&self) -> &[Arc<Subscription>] {
        &self.subscriptions
    }

    /// Every subscription, in no order.
    pub fn places(&self) -> impl Iterator<Item = (SubscriptionId, &Place)> {
        self.places.iter().map(|(id, place)| (*id, place))
    }

    /// What is known of a subscription; `None`: there is none.
    pub fn subscription(&self, id: SubscriptionId) -> Option<&Place> {
        self.places.get(&id)
    }
}

/// One delivery to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct Destination {
    /// What it shares its limits with.
    pub lane: LaneId,
    /// The subscription that asked for it; `None` for an explicit target.
    pub subscription: Option<SubscriptionId>,
    /// Where it goes, as far as is known now: a subscription's URL may change until it is sent.
    pub target: TargetUrl,
    /// Its subscription is disabled: it waits until that ends.
    pub is_parked: bool,
    /// How an explicit target is called, if the request says more than its URL.
    pub settings: Option<Arc<TargetSettings>>,
    /// What the owner of the subscription bounds.
    pub limit: Option<LaneLimit>,
}

/// The deliveries that a submission comes to, in a stable order.
pub fn route(snapshot: &Snapshot, submission: &Submission) -> Vec<Destination> {
    match &submission.route {
        Route::Explicit(target) | Route::Default(target) => {
            vec![explicit(snapshot, target, None)]
        }
        Route::Targets(targets) => {
            let targets = targets.iter();
            let explicit = |NamedTarget { url, settings }: &NamedTarget| {
                explicit(snapshot, url, Some(settings.clone()))
            };
            targets.map(explicit).collect()
        }
        Route::Subscriptions => matching(snapshot, submission).map(destination).collect(),
        Route::One(id) => match snapshot.subscription(*id) {
            Some(Place::Subscription(subscription)) => vec![destination(subscription)],
            Some(Place::Unreadable) | None => Vec::new(),
        },
    }
}

fn explicit(
    snapshot: &Snapshot,
    target: &TargetUrl,
    settings: Option<Arc<TargetSettings>>,
) -> Destination {
    Destination {
        lane: target.lane(snapshot.application),
        subscription: None,
        target: target.clone(),
        is_parked: false,
        settings,
        limit: None,
    }
}

fn destination(subscription: &Subscription) -> Destination {
    Destination {
        lane: subscription.id.lane(),
        subscription: Some(subscription.id),
        target: subscription.sending.target.clone(),
        is_parked: !subscription.is_active,
        settings: None,
        limit: Some(subscription.limit),
    }
}

/// The subscriptions that mean an event, disabled ones too, but for one that the event is about. The
/// payload is read only if a filter looks into it.
fn matching<'s>(
    snapshot: &'s Snapshot,
    submission: &'s Submission,
) -> impl Iterator<Item = &'s Subscription> {
    let document = EventDocument::new(
        submission.event_type.as_ref(),
        &submission.payload,
        submission.metadata.as_ref(),
    );
    let places = submission.event_type.as_ref().map(|name| snapshot.index.candidates(name));
    let candidates = places.into_iter().flatten();
    candidates
        .filter_map(|place| snapshot.subscriptions.get(usize::try_from(place).ok()?))
        .map(AsRef::as_ref)
        .filter(move |subscription| {
            subscription.filter.as_ref().is_none_or(|filter| filter.matches(&document))
        })
        .filter(|subscription| !operator::is_about(submission, subscription.id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        EventType, EventTypePatterns, Payload,
        filter::Filter,
        ids::DEFAULT_APPLICATION,
        subscription::{CustomHeaders, Method, PayloadFormat, Sending, SignatureHeaders, Signing},
    };

    fn subscription(n: u8, types: &[&str], filter: Option<&str>) -> Subscription {
        Subscription {
            id: SubscriptionId::new(u64::from(n), [0; 10]),
            revision: 1,
            is_active: true,
            disable_after: None,
            limit: LaneLimit::default(),
            event_types: EventTypePatterns::parse(types).unwrap(),
            filter: filter.map(|text| Filter::parse(text).unwrap()),
            sending: Sending {
                target: TargetUrl::parse(&format!("http://{n}.example/")).unwrap(),
                method: Method::Post,
                headers: CustomHeaders::default(),
                signing: Signing::None,
                signature_headers: SignatureHeaders::Standard,
                timeout: None,
                retry: None,
                format: PayloadFormat::Envelope,
                schema_version: "1".to_owned(),
            },
        }
    }

    fn snapshot(given: Vec<Subscription>) -> Snapshot {
        let places = given.into_iter().map(|one| (one.id, Place::Subscription(Arc::new(one))));
        Snapshot::new(DEFAULT_APPLICATION, 1, None, places.collect())
    }

    fn submission(event_type: &str, payload: &'static str, route: Route) -> Submission {
        Submission {
            application: DEFAULT_APPLICATION,
            event_type: EventType::parse(event_type).ok(),
            payload: Payload::from_json(payload.into()).unwrap(),
            route,
            subject: None,
            metadata: None,
            idempotency_key: None,
            upstream: crate::domain::Upstream::default(),
        }
    }

    #[test]
    fn an_event_reaches_those_that_mean_it() {
        let mut disabled = subscription(3, &["*"], None);
        disabled.is_active = false;
        let given = vec![
            subscription(4, &["invoice.*"], Some(r#"{"data.amount": {"gte": 100}}"#)),
            subscription(1, &["invoice.paid", "user.*"], None),
            disabled,
            subscription(2, &["*"], None),
        ];
        let snapshot = snapshot(given);
        let reached = |event_type, payload| {
            let submission = submission(event_type, payload, Route::Subscriptions);
            let destinations = route(&snapshot, &submission);
            for one in &destinations {
                assert_eq!(one.subscription.map(SubscriptionId::lane), Some(one.lane));
            }
            let hosts = destinations.iter().map(|one| {
                let host = &one.target.as_str()[7..8];
                if one.is_parked { format!("({host})") } else { host.to_owned() }
            });
            hosts.collect::<String>()
        };
        assert_eq!(reached("invoice.paid", r#"{"amount": 100}"#), "12(3)4");
        assert_eq!(reached("invoice.paid", r#"{"amount": 99}"#), "12(3)");
        assert_eq!(reached("invoice.voided", "1"), "2(3)");
        assert_eq!(reached("user.created", "1"), "12(3)");
        assert_eq!(reached("webhook.delivery.dead", "1"), "");
        assert_eq!(reached("no type", "1"), "");
    }

    #[test]
    fn an_event_to_one_subscription_reaches_it_whatever_it_asks_for() {
        let mut disabled = subscription(2, &["b"], None);
        disabled.is_active = false;
        let snapshot = snapshot(vec![subscription(1, &["*"], None), disabled]);
        let reached = |n| {
            let id = SubscriptionId::new(n, [0; 10]);
            let destinations = route(&snapshot, &submission("a", "1", Route::One(id)));
            destinations
                .into_iter()
                .map(|one| (one.subscription, one.is_parked))
                .collect::<Vec<_>>()
        };
        let id = |n| Some(SubscriptionId::new(n, [0; 10]));
        assert_eq!(reached(1), [(id(1), false)]);
        assert_eq!(reached(2), [(id(2), true)]);
        assert_eq!(reached(3), []);
    }

    #[test]
    fn a_named_target_reaches_no_subscription() {
        let snapshot = snapshot(vec![subscription(1, &["*"], None)]);
        let target = TargetUrl::parse("http://explicit.example/").unwrap();
        let submission = submission("a", "1", Route::Explicit(target.clone()));
        let expected = Destination {
            lane: target.lane(DEFAULT_APPLICATION),
            subscription: None,
            target,
            is_parked: false,
            settings: None,
            limit: None,
        };
        assert_eq!(route(&snapshot, &submission), [expected]);
    }
}
