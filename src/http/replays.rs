//! `/replays`: sending again, as a job.

use axum::{
    Json,
    extract::{Request, State},
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    ApiError, ApiState, body,
    caller::Caller,
    events::{self, Page, PageAsked},
    extract::{self, Cursor, IdempotencyHeader, ReplayPath},
    json::{Members, pointer_to},
    problem::{Place, Problem},
    submission,
    upstream::FirstHand,
};
use crate::{
    domain::{
        ApplicationId, DeliveryState, ErrorClass, EventId, EventType, Permission, ReplayId,
        SubscriptionId,
        replay::{PER_SECOND_DEFAULT, PER_SECOND_MAX, ReplayState},
    },
    store::{
        idempotency::Standing,
        replay_steps::ReplayCount,
        replays::{Moved, NewReplay, ReplayFilter, ReplayRow},
        rerouting::UnroutedCount,
    },
};

/// The fields of a replay, as callers send it.
pub const FIELDS: &[&str; 4] = &["filter", "rate_per_second", "include_unrouted", "dry_run"];
/// Those of its filter.
pub const FILTER_FIELDS: &[&str; 8] = &[
    "state",
    "subscription_id",
    "event_id",
    "event_type",
    "response_status",
    "error_class",
    "created_after",
    "created_before",
];
/// What events have not: a filter by it means none that reached nobody.
pub const OF_DELIVERIES_ALONE: [&str; 3] = ["subscription_id", "response_status", "error_class"];

/// The states that a delivery can have ended in.
pub fn final_states() -> impl Iterator<Item = DeliveryState> {
    DeliveryState::ALL.into_iter().filter(|state| state.is_final())
}

/// A replay as it is shown.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Replay")]
pub struct ReplayBody {
    id: ReplayId,
    application_id: ApplicationId,
    #[schemars(extend("enum" = ReplayState::ALL.map(ReplayState::as_str)))]
    state: String,
    filter: FilterBody,
    rate_per_second: u16,
    include_unrouted: bool,
    /// Deliveries that the filter meant, so far.
    matched: i64,
    /// Those of them that are being sent again, or were.
    queued: i64,
    skipped: SkippedBody,
    unrouted: UnroutedBody,
    /// It waits: a queue that it fills is as long as it may be.
    is_held_up: bool,
    /// It has looked at what was accepted until then: of the deliveries and, after those, of the events.
    reached_at: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    ended_at: Option<DateTime<Utc>>,
}

/// What a replay sends again.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ReplayFilter")]
pub struct FilterBody {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    state: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subscription_id: Option<SubscriptionId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event_id: Option<EventId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_status: Option<i16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_class: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_after: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_before: Option<DateTime<Utc>>,
}

/// Deliveries that the filter means and that are not sent again, by what is in the way.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ReplaySkipped")]
pub struct SkippedBody {
    /// They are being sent again already.
    in_progress: i64,
    /// Their payload is not kept any more.
    payload_gone: i64,
    subscription_deleted: i64,
    subscription_disabled: i64,
}

/// Events that had reached nobody.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ReplayUnrouted")]
pub struct UnroutedBody {
    events: i64,
    /// Those whose payload is not kept any more.
    payload_gone: i64,
    /// Those that reach somebody now.
    routed: i64,
    /// To how many subscriptions, together.
    deliveries: i64,
}

/// What a replay would do.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ReplayCount")]
pub struct CountBody {
    matched: i64,
    queued: i64,
    skipped: SkippedBody,
    unrouted: UnroutedCountBody,
    /// Whether these are all; otherwise there are so many at least.
    is_exact: bool,
}

/// Events that have reached nobody.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ReplayUnroutedCount")]
pub struct UnroutedCountBody {
    events: i64,
    payload_gone: i64,
}

/// Makes a replay, or counts what it would do.
pub async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    uri: Uri,
    key: Option<IdempotencyHeader>,
    _: FirstHand,
    request: Request,
) -> Result<Response, Problem> {
    let application = events::application_of(&state, caller, &uri).await?;
    caller.must(Permission::Manage)?;
    let body = body::read_json(request, state.body_limit, None).await?;
    let given = Members::of(body::text(&body)?, FIELDS)?;
    let includes_unrouted = given.boolean("include_unrouted")?.unwrap_or(false);
    let per_second = whole(&given, "rate_per_second", 1, PER_SECOND_MAX)?;
    let filter = filter(&state, application, given.required("filter")?.get(), includes_unrouted)
        .await
        .map_err(|problem| problem.within(&pointer_to("filter")))?;
    let key = key.map(|key| submission::header_key(&key.0)).transpose()?;
    let unix_ms = state.clock.unix_ms();
    if given.boolean("dry_run")?.unwrap_or(false) {
        let ended = state.store.count_replay(application, &filter, unix_ms).await?;
        let unrouted = if includes_unrouted {
            Some(state.store.count_unrouted(application, &filter, unix_ms).await?)
        } else {
            None
        };
        return Ok(Json(CountBody::of(&ended, unrouted)).into_response());
    }
    let id = ReplayId::new(unix_ms, rand::random());
    let once =
        key.as_ref().map(|key| extract::reservation(application, "replay", key, &body, id.uuid()));
    let new = NewReplay {
        id,
        application,
        filter: &filter,
        includes_unrouted,
        per_second: per_second.unwrap_or(PER_SECOND_DEFAULT),
        unix_ms,
    };
    let id = match state.store.create_replay(&new, once).await? {
        Standing::New => id,
        Standing::Repeat(id) => ReplayId::from_uuid(id),
        Standing::Reused { .. } => return Err(ApiError::KeyReused.into()),
    };
    let row = state.store.replay(application, id).await?;
    let row = row.ok_or(ApiError::ReplayNotFound(None))?;
    Ok((StatusCode::ACCEPTED, Json(ReplayBody::from(row))).into_response())
}

/// Lists replays, newest first.
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    uri: Uri,
) -> Result<Json<Page<ReplayBody>>, Problem> {
    let asked = PageAsked::of(&state, caller, &uri, Cursor::Replays).await?;
    let older_than = asked.older_than.map(ReplayId::from_uuid);
    let rows_max = extract::rows_of(asked.limit);
    let rows = state.store.replays(asked.application, older_than, rows_max).await?;
    let (rows, next_cursor) = Cursor::Replays.page(rows, asked.limit, |row| row.id().uuid());
    Ok(Json(Page { data: rows.into_iter().map(Into::into).collect(), next_cursor }))
}

/// Shows a replay.
pub async fn show(
    State(state): State<ApiState>,
    caller: Caller,
    ReplayPath(id): ReplayPath,
    uri: Uri,
) -> Result<Json<ReplayBody>, Problem> {
    let application = events::application_of(&state, caller, &uri).await?;
    caller.must(Permission::Read)?;
    let row = state.store.replay(application, id).await?;
    Ok(Json(row.ok_or(ApiError::ReplayNotFound(None))?.into()))
}

/// Halts a replay.
pub async fn pause(
    state: State<ApiState>,
    caller: Caller,
    path: ReplayPath,
    uri: Uri,
) -> Result<Json<ReplayBody>, Problem> {
    to(state, caller, path, uri, ReplayState::Paused).await
}

/// Lets a replay go on.
pub async fn resume(
    state: State<ApiState>,
    caller: Caller,
    path: ReplayPath,
    uri: Uri,
) -> Result<Json<ReplayBody>, Problem> {
    to(state, caller, path, uri, ReplayState::Running).await
}

/// Ends a replay. What it has queued stays queued.
pub async fn cancel(
    state: State<ApiState>,
    caller: Caller,
    path: ReplayPath,
    uri: Uri,
) -> Result<Json<ReplayBody>, Problem> {
    to(state, caller, path, uri, ReplayState::Cancelled).await
}

async fn to(
    State(state): State<ApiState>,
    caller: Caller,
    ReplayPath(id): ReplayPath,
    uri: Uri,
    to: ReplayState,
) -> Result<Json<ReplayBody>, Problem> {
    let application = events::application_of(&state, caller, &uri).await?;
    caller.must(Permission::Manage)?;
    match state.store.move_replay(application, id, to).await? {
        Moved::Done(row) => Ok(Json((*row).into())),
        Moved::Over => Err(ApiError::Conflict("this replay is over").into()),
        Moved::NotFound => Err(ApiError::ReplayNotFound(None).into()),
    }
}

fn invalid(detail: impl Into<String>, pointer: String) -> Problem {
    ApiError::Invalid(detail.into()).at(Place::Pointer(pointer))
}

/// A member that is a whole number within bounds; null is none.
fn whole<const N: usize>(
    given: &Members<'_, N>,
    name: &str,
    min: u16,
    max: u16,
) -> Result<Option<u16>, Problem> {
    let Some(number) = given.number(name)? else { return Ok(None) };
    let is_sound = number.fract() == 0.0 && (f64::from(min)..=f64::from(max)).contains(&number);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
    let sound = is_sound.then_some(number as u16);
    sound.map(Some).ok_or_else(|| {
        invalid(format!("`{name}` must be a whole number, {min} to {max}"), pointer_to(name))
    })
}

/// Reads the filter, whose pointers are its own.
async fn filter(
    state: &ApiState,
    application: ApplicationId,
    text: &str,
    includes_unrouted: bool,
) -> Result<ReplayFilter, Problem> {
    let given = Members::of(text, FILTER_FIELDS)?;
    let told: Vec<&str> =
        FILTER_FIELDS.iter().copied().filter(|name| given.raw(name).is_some()).collect();
    if told.is_empty() {
        // Everything that ever was is nobody's wish, and a slip would send it.
        let names = FILTER_FIELDS.join("`, `");
        return Err(invalid(
            format!("`filter` must name one of `{names}` at least"),
            String::new(),
        ));
    }
    if let Some(name) = told.iter().find(|name| given.given(name).is_none()) {
        let detail = format!("`{name}` must not be null: leave it out, and it restricts nothing");
        return Err(invalid(detail, pointer_to(name)));
    }
    let alone = told.iter().find(|name| OF_DELIVERIES_ALONE.contains(name));
    if let Some(name) = alone.filter(|_| includes_unrouted) {
        let detail = format!(
            "`{name}` cannot stand with `include_unrouted`: events that reached \
                              nobody have none"
        );
        return Err(invalid(detail, pointer_to(name)));
    }
    Ok(ReplayFilter {
        states: states(&given)?,
        event: read(&given, "event_id", str::parse::<EventId>)?,
        event_type: read(&given, "event_type", EventType::parse)?.map(|it| it.as_str().to_owned()),
        response_status: whole(&given, "response_status", 100, 999)?.map(u16::cast_signed),
        error_class: read(&given, "error_class", extract::error_class)?,
        created_from: read(&given, "created_after", extract::time)?,
        created_until: read(&given, "created_before", extract::time)?,
        subscription: match given.string("subscription_id")? {
            Some(text) => Some(subscription(state, application, &text).await?),
            None => None,
        },
    })
}

fn states<const N: usize>(given: &Members<'_, N>) -> Result<Vec<DeliveryState>, Problem> {
    if given.given("state").is_none() {
        return Ok(Vec::new());
    }
    let mut states = Vec::new();
    for name in given.strings("state", final_states().count())? {
        let state = final_states().find(|state| state.as_str() == name).ok_or_else(|| {
            let names: Vec<_> = final_states().map(DeliveryState::as_str).collect();
            let detail = format!("`state` must be one of {}, or several", names.join(", "));
            invalid(detail, pointer_to("state"))
        })?;
        if !states.contains(&state) {
            states.push(state);
        }
    }
    Ok(states)
}

/// A member that is text, read. What the reader says completes "`name` …".
fn read<const N: usize, T, E: std::fmt::Display>(
    given: &Members<'_, N>,
    name: &str,
    read: impl FnOnce(&str) -> Result<T, E>,
) -> Result<Option<T>, Problem> {
    let value = given.string(name)?.map(|text| read(&text)).transpose();
    value.map_err(|error| invalid(format!("`{name}` {error}"), pointer_to(name)))
}

async fn subscription(
    state: &ApiState,
    application: ApplicationId,
    text: &str,
) -> Result<SubscriptionId, Problem> {
    let at = |error: ApiError| error.at(Place::Pointer(pointer_to("subscription_id")));
    let name = extract::subscription_name(text).map_err(at)?;
    let row = state.store.subscription(application, &name).await?;
    Ok(row.ok_or_else(|| at(ApiError::SubscriptionNotFound(None)))?.id())
}

impl From<ReplayRow> for ReplayBody {
    fn from(row: ReplayRow) -> Self {
        Self {
            id: row.id(),
            application_id: row.application(),
            filter: row.filter().into(),
            rate_per_second: row.per_second(),
            include_unrouted: row.include_unrouted,
            matched: row.matched_count,
            queued: row.queued_count,
            skipped: SkippedBody {
                in_progress: row.in_progress_count,
                payload_gone: row.payload_gone_count,
                subscription_deleted: row.subscription_deleted_count,
                subscription_disabled: row.subscription_disabled_count,
            },
            unrouted: UnroutedBody {
                events: row.unrouted_count,
                payload_gone: row.unrouted_payload_gone_count,
                routed: row.routed_count,
                deliveries: row.routed_delivery_count,
            },
            is_held_up: row.is_held_up,
            reached_at: row.reached_at(),
            created_at: row.created_at,
            updated_at: row.updated_at,
            ended_at: row.ended_at,
            state: row.state,
        }
    }
}

impl From<ReplayFilter> for FilterBody {
    fn from(filter: ReplayFilter) -> Self {
        Self {
            state: filter.states.into_iter().map(DeliveryState::as_str).collect(),
            subscription_id: filter.subscription,
            event_id: filter.event,
            event_type: filter.event_type,
            response_status: filter.response_status,
            error_class: filter.error_class.map(ErrorClass::as_str),
            created_after: filter.created_from,
            created_before: filter.created_until,
        }
    }
}

impl CountBody {
    fn of(ended: &ReplayCount, unrouted: Option<UnroutedCount>) -> Self {
        let none = UnroutedCount { events: 0, payload_gone: 0, is_exact: true };
        let unrouted = unrouted.unwrap_or(none);
        Self {
            matched: ended.matched,
            queued: ended.queued,
            skipped: SkippedBody {
                in_progress: ended.in_progress,
                payload_gone: ended.payload_gone,
                subscription_deleted: ended.subscription_deleted,
                subscription_disabled: ended.subscription_disabled,
            },
            unrouted: UnroutedCountBody {
                events: unrouted.events,
                payload_gone: unrouted.payload_gone,
            },
            is_exact: ended.is_exact && unrouted.is_exact,
        }
    }
}
