//! `GET /events/{id}/explain`: why an event went where it went, and nowhere else.

use std::collections::HashMap;

use axum::{Json, extract::State, http::Uri};
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    ApiError, ApiState,
    caller::Caller,
    deliveries::DeliveryBody,
    events,
    extract::{self, Cursor, EventPath, Parameters},
    problem::Problem,
    statistics::BreakerBody,
};
use crate::{
    domain::{
        ApplicationId, DeliveryId, DeliveryState, EventDocument, EventId, EventType,
        EventTypePatterns, Filter, LaneId, Payload, Permission, SubscriptionId, TargetUrl,
        event::Metadata, subscription::DisabledBecause,
    },
    store::{
        StoreError,
        deliveries::{DeliveryRow, Which},
        explaining::{PastSubscription, RoutedEvent},
        lane_health::HealthRow,
    },
};

/// The parameters of `GET /events/{id}/explain`.
pub const PARAMETERS: &[&str; 3] = &["application", "limit", "cursor"];

/// Why an event went where it went.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Explanation")]
pub struct ExplanationBody {
    event_id: EventId,
    event_type: Option<String>,
    created_at: DateTime<Utc>,
    /// How its targets were found: the application's `subscriptions` were asked, or the request named
    /// a `target` or `targets`, or it did not and the service has a `default`, or it came for `one`
    /// subscription.
    #[schemars(extend("enum" = ["subscriptions", "target", "targets", "default", "one"]))]
    route: String,
    delivery_count: i32,
    /// Every subscription of the application as it was when the event was routed, oldest first; where
    /// none was asked, the deliveries that there are.
    data: Vec<VerdictBody>,
    next_cursor: Option<String>,
}

/// What became of an event for one subscription, or for one explicit target.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Verdict")]
pub struct VerdictBody {
    subscription_id: Option<SubscriptionId>,
    uid: Option<String>,
    /// The number of the revision that the event was routed by.
    revision: Option<i32>,
    target_url: String,
    #[schemars(extend("enum" = Verdict::ALL.map(Verdict::as_str)))]
    verdict: &'static str,
    /// A sentence for people.
    detail: String,
    /// Of a filter that did not match: a JSON Pointer to the clause.
    #[serde(skip_serializing_if = "Option::is_none")]
    clause: Option<String>,
    /// What there is of it, if it was routed there.
    #[serde(skip_serializing_if = "Option::is_none")]
    delivery: Option<DeliveryBody>,
}

/// What became of an event for a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Delivered,
    Pending,
    InFlight,
    Retrying,
    Parked,
    Dead,
    Cancelled,
    NotMatched,
    Deleted,
    NotAsked,
    Unknown,
}

impl Verdict {
    const ALL: [Self; 11] = [
        Self::Delivered,
        Self::Pending,
        Self::InFlight,
        Self::Retrying,
        Self::Parked,
        Self::Dead,
        Self::Cancelled,
        Self::NotMatched,
        Self::Deleted,
        Self::NotAsked,
        Self::Unknown,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Pending => "pending",
            Self::InFlight => "in_flight",
            Self::Retrying => "retrying",
            Self::Parked => "parked",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
            Self::NotMatched => "not_matched",
            Self::Deleted => "deleted",
            Self::NotAsked => "not_asked",
            Self::Unknown => "unknown",
        }
    }
}

/// Explains an event.
pub async fn show(
    State(state): State<ApiState>,
    caller: Caller,
    EventPath(id): EventPath,
    uri: Uri,
) -> Result<Json<ExplanationBody>, Problem> {
    let given = Parameters::of(&uri, PARAMETERS)?;
    let application = events::application(&state, caller, &given).await?;
    caller.must(Permission::Read)?;
    let limit = given.read("limit", extract::limit)?.unwrap_or(extract::LIMIT_DEFAULT);
    let after = given.read("cursor", |text| Cursor::Explanation.read(text))?;
    let after = after.map(SubscriptionId::from_uuid);
    let event = state.store.routed_event(application, id).await?;
    let event = event.ok_or(ApiError::EventNotFound(None))?;

    let (mut data, mut next_cursor) = (Vec::new(), None);
    if matches!(event.route.as_deref(), Some("target" | "targets" | "default")) {
        let rows = state.store.deliveries_of(application, id, Which::ToTargets).await?;
        let held_back = held_back(&state, application, &rows).await?;
        data.extend(rows.into_iter().map(|row| VerdictBody::of_target(row, &held_back)));
    } else {
        let rows = state
            .store
            .subscriptions_at(application, event.routing_version, after, extract::rows_of(limit))
            .await?;
        let (rows, next) = Cursor::Explanation.page(rows, limit, |row| row.id().uuid());
        next_cursor = next;
        let ids: Vec<_> = rows.iter().map(PastSubscription::id).collect();
        let which = Which::ToSubscriptions(&ids);
        let found = state.store.deliveries_of(application, id, which).await?;
        let held_back = held_back(&state, application, &found).await?;
        let mut deliveries: HashMap<_, _> =
            found.into_iter().map(|row| (row.subscription_id(), row)).collect();
        let facts = Facts::of(&event);
        data.extend(rows.into_iter().map(|row| {
            let delivery = deliveries.remove(&Some(row.id()));
            VerdictBody::of_subscription(row, delivery, &event, (&facts, &held_back))
        }));
    }
    Ok(Json(ExplanationBody {
        event_id: id,
        event_type: event.event_type,
        created_at: event.created_at,
        route: event.route.unwrap_or_else(|| "subscriptions".to_owned()),
        delivery_count: event.delivery_count,
        data,
        next_cursor,
    }))
}

/// What filters look at.
struct Facts {
    event_type: Option<EventType>,
    payload: Option<Payload>,
    metadata: Option<Metadata>,
}

impl Facts {
    fn of(event: &RoutedEvent) -> Self {
        Self {
            event_type: event.event_type.as_deref().and_then(|name| EventType::parse(name).ok()),
            payload: event
                .payload
                .clone()
                .and_then(|payload| Payload::from_json(payload.into()).ok()),
            metadata: event.metadata.as_deref().and_then(|json| Metadata::from_json(json).ok()),
        }
    }
}

/// Why deliveries wait beyond their time: of those whose lanes are left in peace.
async fn held_back(
    state: &ApiState,
    application: ApplicationId,
    rows: &[DeliveryRow],
) -> Result<HashMap<DeliveryId, String>, StoreError> {
    let now = state.clock.now();
    let is_due = |row: &&DeliveryRow| {
        row.state == DeliveryState::Pending.as_str()
            && row.next_attempt_at.is_none_or(|at| at <= now)
    };
    let due = rows.iter().filter(is_due);
    let due: Vec<_> = due
        .flat_map(|row| lanes_of(row, application).map(move |lane| (row.delivery_id(), lane)))
        .collect();
    if due.is_empty() {
        return Ok(HashMap::new());
    }
    let lanes: Vec<_> = due.iter().map(|(_, lane)| *lane).collect();
    let fare = state.store.health_of(&lanes).await?;
    let fare = fare.iter().map(HealthRow::health);
    let because: HashMap<_, _> = fare
        .filter_map(|one| Some((one.lane, BreakerBody::of(state, Some(one), now).in_words()?)))
        .collect();
    let held = due.into_iter().filter_map(|(id, lane)| Some((id, because.get(&lane)?.clone())));
    Ok(held.collect())
}

/// The lanes that a delivery can be in: its subscription's, or those of its target's origin and URL.
fn lanes_of(row: &DeliveryRow, application: ApplicationId) -> impl Iterator<Item = LaneId> + use<> {
    let lanes = if let Some(subscription) = row.subscription_id() {
        [Some(subscription.lane()), None]
    } else {
        let target = TargetUrl::from_stored(&row.target_url).ok();
        let lanes = target.map(|it| [it.lane(application), it.url_lane(application)]);
        lanes.map_or([None; 2], |lanes| lanes.map(Some))
    };
    lanes.into_iter().flatten()
}

impl VerdictBody {
    fn of_target(row: DeliveryRow, held_back: &HashMap<DeliveryId, String>) -> Self {
        let (verdict, detail) = of_delivery(&row, held_back);
        Self {
            subscription_id: None,
            uid: None,
            revision: None,
            target_url: row.target_url.clone(),
            verdict: verdict.as_str(),
            detail,
            clause: None,
            delivery: Some(DeliveryBody::listed(row)),
        }
    }

    fn of_subscription(
        row: PastSubscription,
        delivery: Option<DeliveryRow>,
        event: &RoutedEvent,
        (facts, held_back): (&Facts, &HashMap<DeliveryId, String>),
    ) -> Self {
        let (mut verdict, mut detail, clause) = match &delivery {
            Some(delivery) => {
                let (verdict, detail) = of_delivery(delivery, held_back);
                (verdict, detail, None)
            }
            None => not_routed(&row, event, facts),
        };
        if verdict == Verdict::Parked
            && let Some((at, because)) = row.disabled_at.zip(row.disabled_because.as_deref())
        {
            detail = format!("disabled since {}: {}", at.to_rfc3339(), because_of(because));
        }
        if delivery.is_none()
            && let Some(deleted_at) = row.deleted_at
        {
            verdict = Verdict::Deleted;
            detail = format!("deleted at {}, before the event came", deleted_at.to_rfc3339());
        }
        Self {
            subscription_id: Some(row.id()),
            uid: row.uid,
            revision: Some(row.revision),
            target_url: delivery.as_ref().map_or(row.target_url, |one| one.target_url.clone()),
            verdict: verdict.as_str(),
            detail,
            clause: clause.filter(|_| verdict == Verdict::NotMatched),
            delivery: delivery.map(DeliveryBody::listed),
        }
    }
}

/// What a delivery's state says.
fn of_delivery(row: &DeliveryRow, held_back: &HashMap<DeliveryId, String>) -> (Verdict, String) {
    let attempts = match row.attempt_count {
        1 => "1 attempt".to_owned(),
        count => format!("{count} attempts"),
    };
    let last = match (row.last_status, row.last_error.as_deref()) {
        (Some(status), _) => format!("the last answer was {status}"),
        (None, Some(class)) => format!("the last attempt failed: {class}"),
        (None, None) => "none has been made yet".to_owned(),
    };
    let but =
        held_back.get(&row.delivery_id()).map(|why| format!("; but {why}")).unwrap_or_default();
    match DeliveryState::from_name(&row.state) {
        Some(DeliveryState::Delivered) => (Verdict::Delivered, format!("after {attempts}")),
        Some(DeliveryState::Pending) if row.attempt_count > 0 => {
            let next = row.next_attempt_at.map(|at| at.to_rfc3339()).unwrap_or_default();
            (Verdict::Retrying, format!("{attempts}, {last}; the next one is due at {next}{but}"))
        }
        Some(DeliveryState::Pending) => (Verdict::Pending, format!("it waits to be sent{but}")),
        Some(DeliveryState::InFlight) => (Verdict::InFlight, "it is being sent".to_owned()),
        Some(DeliveryState::Parked) => {
            (Verdict::Parked, "its subscription has been disabled since".to_owned())
        }
        Some(DeliveryState::Dead) => {
            let reason = row.reason.as_deref().unwrap_or_default();
            (Verdict::Dead, format!("given up after {attempts}: {reason}; {last}"))
        }
        Some(DeliveryState::Cancelled) => {
            (Verdict::Cancelled, "by request, or with its subscription".to_owned())
        }
        None => (Verdict::Unknown, String::new()),
    }
}

/// Why a subscription is disabled, for people.
pub fn because_of(name: &str) -> &'static str {
    match DisabledBecause::from_name(name) {
        Some(DisabledBecause::Gone) => "its receiver answered 410",
        Some(DisabledBecause::Failing) => "all has failed for long",
        Some(DisabledBecause::Owner) | None => "its owner said so",
    }
}

/// Why an event was not routed to a subscription, and the clause of the filter that says so.
fn not_routed(
    row: &PastSubscription,
    event: &RoutedEvent,
    facts: &Facts,
) -> (Verdict, String, Option<String>) {
    if event.route.is_some() {
        let detail = "the event came for another subscription alone".to_owned();
        return (Verdict::NotAsked, detail, None);
    }
    let is_operators = facts.event_type.as_ref().is_some_and(EventType::is_operators);
    if is_operators && event.subject.as_deref() == Some(row.id().to_string().as_str()) {
        let detail = "it is about this subscription, and none is told of itself".to_owned();
        return (Verdict::NotMatched, detail, None);
    }
    let patterns = EventTypePatterns::parse(&row.event_types).ok();
    let is_meant = match (&patterns, &facts.event_type) {
        (Some(patterns), Some(event_type)) => patterns.matches(event_type),
        _ => false,
    };
    if !is_meant {
        let asked = row.event_types.join(", ");
        let name = event.event_type.as_deref().unwrap_or("an event without a type");
        return (Verdict::NotMatched, format!("it asks for {asked}; this is {name}"), None);
    }
    let filter = row.filter.as_deref().map(Filter::parse);
    match (filter, &facts.payload) {
        (Some(Ok(filter)), Some(payload)) => {
            let document =
                EventDocument::new(facts.event_type.as_ref(), payload, facts.metadata.as_ref());
            match filter.explain(&document) {
                Err(mismatch) => {
                    let clause = mismatch.clause.clone();
                    (Verdict::NotMatched, format!("its filter: {mismatch}"), Some(clause))
                }
                Ok(()) => (Verdict::Unknown, GONE.to_owned(), None),
            }
        }
        (Some(_), None) => {
            let detail = "its filter cannot be asked any more: the payload is not kept".to_owned();
            (Verdict::Unknown, detail, None)
        }
        (None | Some(Err(_)), _) => (Verdict::Unknown, GONE.to_owned(), None),
    }
}

/// What is said where the event was routed there, and nothing is left of the delivery.
const GONE: &str = "it was routed there, and the delivery's log is not kept any more";
