//! `/subscriptions`: which events go where.

pub mod attention;
pub mod managed;
pub mod secrets;
pub mod settings;
mod shown;
pub mod test_event;

use self::{
    attention::SubscriptionPage,
    managed::{is_ours, may_be_enabled},
    secrets::{new_secret, secret_for, signing_key},
    settings::{Given, fault},
    shown::shown,
};
use super::{
    ApiError, ApiState, body,
    caller::Caller,
    events::{self, Page},
    extract::{self, Cursor, IdempotencyHeader, Parameters, SubscriptionPath},
    hosts,
    json::pointer_to,
    problem::{Place, Problem},
    submission,
};
use crate::{
    domain::{
        ApplicationId, EventTypePatterns, Permission, SubscriptionId, TargetUrl, Uid,
        subscription::DisabledBecause,
    },
    store::{
        StoreError,
        idempotency::Standing,
        subscription_changes::{Changed, NewSubscription},
        subscriptions::{SettingsRow, SubscriptionFilter, SubscriptionName, SubscriptionRow},
    },
};
use axum::{
    Json,
    extract::{Request, State},
    http::{StatusCode, Uri},
};
use chrono::{DateTime, Utc};

pub use settings::{Bounds, retry};
pub use shown::{DisabledBody, SubscriptionBody};

/// How often a change is tried anew because somebody else changed the same subscription meanwhile.
const CHANGE_ROUNDS_MAX: usize = 5;
/// The parameters of `GET /subscriptions`.
pub const PARAMETERS: &[&str; 7] =
    &["application", "is_active", "attention", "event_type", "target_url", "limit", "cursor"];
/// How many deliveries a deletion cancels itself, a disabling parks, and a statement cancels of what
/// is parked.
const AT_ONCE_MAX: i64 = 5_000;
/// How many such statements one request makes; beyond that it must be sent again.
const CANCEL_STATEMENTS_MAX: usize = 200;

/// The parameters of an enabling.
pub const OF_ENABLING: &[&str; 2] = &["application", "parked"];

/// Makes a subscription, and a secret for it where the caller brings none; the secret is shown.
pub async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    uri: Uri,
    key: Option<IdempotencyHeader>,
    request: Request,
) -> Result<(StatusCode, Json<SubscriptionBody>), Problem> {
    let application = events::application_of(&state, caller, &uri).await?;
    caller.must(Permission::Manage)?;
    let body = body::read_json(request, state.body_limit, None).await?;
    let given = Given::of(body::text(&body)?, &state.subscription_bounds, &state.sealing)?;
    let application = match given.application()? {
        Some(named) => of_body(&state, caller, &uri, application, &named).await?,
        None => application,
    };
    let id = SubscriptionId::new(state.clock.unix_ms(), rand::random());
    let (uid, settings) = (given.uid()?, stamped(given.settings(id)?, None, state.clock.now()));
    may_call(&state, application, &given).await?;
    let secret = secret_for(&settings, given.secret()?)?;
    let idempotency_key = key.map(|key| submission::header_key(&key.0)).transpose()?;
    let once = idempotency_key
        .as_ref()
        .map(|key| extract::reservation(application, "subscription", key, &body, id.uuid()));
    let new = NewSubscription {
        id,
        application,
        uid: uid.as_ref().map(Uid::as_str),
        settings: &settings,
        key: secret.as_deref().map(|secret| signing_key(&state.clock, &state.sealing, secret)),
    };
    let standing = state.store.create_subscription(&new, once).await.map_err(taken)?;
    let (id, secret) = match standing.ok_or(ApiError::ApplicationNotFound(None))? {
        Standing::New => (id, secret),
        Standing::Repeat(id) => (SubscriptionId::from_uuid(id), None),
        Standing::Reused { .. } => return Err(ApiError::KeyReused.into()),
    };
    let row = state.store.subscription(application, &SubscriptionName::Id(id)).await?;
    let row = row.ok_or(ApiError::MADE_AND_DELETED)?;
    let shown = shown(&state, application, row, secret)?.warned(given.warnings()?);
    Ok((StatusCode::CREATED, Json(shown)))
}

/// Refuses a target that the application may not call, if one is told.
async fn may_call(
    state: &ApiState,
    application: ApplicationId,
    given: &Given<'_>,
) -> Result<(), Problem> {
    let Some((name, target)) = given.target_url()? else { return Ok(()) };
    let allowed = hosts::check(state, application, &target).await;
    allowed.map_err(|error| error.at(Place::Pointer(pointer_to(name))))
}

/// The application that a body names; where the query does so too, they must agree.
async fn of_body(
    state: &ApiState,
    caller: Caller,
    uri: &Uri,
    of_query: ApplicationId,
    named: &str,
) -> Result<ApplicationId, Problem> {
    let of_body = caller.application(state, Some(named)).await;
    let of_body = of_body.map_err(|error| error.at(Place::Pointer("/application".to_owned())))?;
    let is_in_query = Parameters::of(uri, extract::OF_APPLICATION)?.text("application").is_some();
    if is_in_query && of_query != of_body {
        return Err(fault("application", "is another one than that of the query"));
    }
    Ok(of_body)
}

/// Lists the subscriptions of an application, newest first.
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    uri: Uri,
) -> Result<Json<SubscriptionPage>, Problem> {
    let given = Parameters::of(&uri, PARAMETERS)?;
    let application = events::application(&state, caller, &given).await?;
    caller.must(Permission::Read)?;
    let limit = given.read("limit", extract::limit)?.unwrap_or(extract::LIMIT_DEFAULT);
    let filter = SubscriptionFilter {
        is_active: given
            .read("is_active", |text| text.parse::<bool>().map_err(|_| "must be true or false"))?,
        event_type: given.read("event_type", |text| {
            EventTypePatterns::parse(&[text]).map(|_| text.to_owned())
        })?,
        target_url: given
            .read("target_url", TargetUrl::parse)?
            .map(|target| target.as_str().to_owned()),
        older_than: given
            .read("cursor", |text| Cursor::Subscriptions.read(text))?
            .map(SubscriptionId::from_uuid),
    };
    let wants_attention = given
        .read("attention", |text| if text == "true" { Ok(()) } else { Err("must be true") })?;
    if wants_attention.is_some() {
        return Ok(Json(attention::page(&state, application, &filter, limit).await?));
    }
    let rows = state.store.subscriptions(application, &filter, extract::rows_of(limit)).await?;
    let (rows, next_cursor) = Cursor::Subscriptions.page(rows, limit, |row| row.id().uuid());
    let data = rows.into_iter().map(|row| shown(&state, application, row, None));
    let page = Page { data: data.collect::<Result<_, _>>()?, next_cursor };
    Ok(Json(SubscriptionPage { page, refused_documents: None }))
}

/// Shows a subscription.
pub async fn show(
    State(state): State<ApiState>,
    caller: Caller,
    SubscriptionPath(name): SubscriptionPath,
    uri: Uri,
) -> Result<Json<SubscriptionBody>, Problem> {
    let application = events::application_of(&state, caller, &uri).await?;
    caller.must(Permission::Read)?;
    let row = found(&state, application, &name).await?;
    Ok(Json(shown(&state, application, row, None)?))
}

/// Replaces the settings of a subscription: what is not told has its default. Its secrets stay.
pub async fn replace(
    State(state): State<ApiState>,
    caller: Caller,
    SubscriptionPath(name): SubscriptionPath,
    uri: Uri,
    request: Request,
) -> Result<Json<SubscriptionBody>, Problem> {
    let replaced = |given: &Given<'_>, id, before| given.replaced(id, before);
    change(&state, caller, &name, &uri, request, replaced).await
}

/// Changes some settings of a subscription. Null stands for the default.
pub async fn patch(
    State(state): State<ApiState>,
    caller: Caller,
    SubscriptionPath(name): SubscriptionPath,
    uri: Uri,
    request: Request,
) -> Result<Json<SubscriptionBody>, Problem> {
    let changed = |given: &Given<'_>, id, before| given.changed(id, before);
    change(&state, caller, &name, &uri, request, changed).await
}

async fn change(
    state: &ApiState,
    caller: Caller,
    name: &SubscriptionName,
    uri: &Uri,
    request: Request,
    settings: impl Fn(&Given<'_>, SubscriptionId, SettingsRow) -> Result<SettingsRow, Problem>,
) -> Result<Json<SubscriptionBody>, Problem> {
    let application = events::application_of(state, caller, uri).await?;
    caller.must(Permission::Manage)?;
    let body = body::read_json(request, state.body_limit, None).await?;
    let given = Given::of(body::text(&body)?, &state.subscription_bounds, &state.sealing)?;
    if given.secret()?.is_some() {
        return Err(fault("secret", "is changed by POST …/rotate-secret, with an overlap"));
    }
    if given.application()?.is_some() {
        return Err(fault("application", "is told when a subscription is made, and stays"));
    }
    let uid = given.new_uid()?;
    is_ours(state, application, &found(state, application, name).await?).await?;
    may_call(state, application, &given).await?;
    let change = |id, before| settings(&given, id, before);
    let Json(changed) = apply(state, application, name, uid.as_ref(), change).await?;
    Ok(Json(changed.warned(given.warnings()?)))
}

/// Changes a subscription as it is when the change takes effect, however many change it.
async fn apply(
    state: &ApiState,
    application: ApplicationId,
    name: &SubscriptionName,
    uid: Option<&Uid>,
    settings: impl Fn(SubscriptionId, SettingsRow) -> Result<SettingsRow, Problem>,
) -> Result<Json<SubscriptionBody>, Problem> {
    for _ in 0..CHANGE_ROUNDS_MAX {
        let row = found(state, application, name).await?;
        let id = row.id();
        let after = settings(id, row.settings.clone())?;
        let after = stamped(after, Some(&row.settings), state.clock.now());
        if after == row.settings && uid.is_none_or(|uid| row.uid.as_deref() == Some(uid.as_str())) {
            return Ok(Json(shown(state, application, row, None)?));
        }
        // Signing that is turned on needs a key, unless there is one from before.
        let needs_key = after.signing != "none" && row.settings.signing == "none";
        let secret = if needs_key && state.store.signing_keys(id).await?.is_empty() {
            Some(new_secret())
        } else {
            None
        };
        let key = secret.as_deref().map(|secret| signing_key(&state.clock, &state.sealing, secret));
        let uid = uid.map(Uid::as_str);
        let changed = state
            .store
            .change_subscription(application, id, row.revision, &after, uid, key.as_ref())
            .await
            .map_err(taken)?;
        match changed {
            Changed::Done => {
                if row.settings.is_active && !after.is_active {
                    park_first(state, id).await;
                }
                let row = found(state, application, &SubscriptionName::Id(id)).await?;
                return Ok(Json(shown(state, application, row, secret)?));
            }
            Changed::Gone => return Err(ApiError::SubscriptionNotFound(None).into()),
            Changed::Outdated => {}
        }
    }
    Err(ApiError::Conflict("others change this subscription at the same time").into())
}

/// Deletes a subscription; what waits for it is cancelled.
pub async fn delete(
    State(state): State<ApiState>,
    caller: Caller,
    SubscriptionPath(name): SubscriptionPath,
    uri: Uri,
) -> Result<StatusCode, Problem> {
    let application = events::application_of(&state, caller, &uri).await?;
    caller.must(Permission::Manage)?;
    let row = found(&state, application, &name).await?;
    is_ours(&state, application, &row).await?;
    if !state.store.delete_subscription(application, row.id()).await? {
        return Err(ApiError::SubscriptionNotFound(None).into());
    }
    // The rest of a long backlog is cancelled by and by.
    if let Err(error) = state.store.cancel_waiting(row.id(), AT_ONCE_MAX).await {
        crate::telemetry::statement_failed(
            &error,
            "what waits for a deleted subscription is cancelled later",
        );
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Sends events there again, and what is parked for it, unless that is not wanted any more.
pub async fn enable(
    State(state): State<ApiState>,
    caller: Caller,
    SubscriptionPath(name): SubscriptionPath,
    uri: Uri,
) -> Result<Json<SubscriptionBody>, Problem> {
    let given = Parameters::of(&uri, OF_ENABLING)?;
    let application = events::application(&state, caller, &given).await?;
    caller.must(Permission::Manage)?;
    let cancels = given.read("parked", |text| match text {
        "send" => Ok(false),
        "cancel" => Ok(true),
        _ => Err("must be send or cancel"),
    })?;
    let row = found(&state, application, &name).await?;
    may_be_enabled(&state, application, &row).await?;
    if cancels == Some(true) {
        cancel_parked(&state, row.id()).await?;
    }
    let active = |_, before| Ok(SettingsRow { is_active: true, ..before });
    apply(&state, application, &name, None, active).await
}

/// Sends nothing there for now: what comes for it is parked.
pub async fn disable(
    State(state): State<ApiState>,
    caller: Caller,
    SubscriptionPath(name): SubscriptionPath,
    uri: Uri,
) -> Result<Json<SubscriptionBody>, Problem> {
    let application = events::application_of(&state, caller, &uri).await?;
    caller.must(Permission::Manage)?;
    is_ours(&state, application, &found(&state, application, &name).await?).await?;
    let inactive = |_, before| Ok(SettingsRow { is_active: false, ..before });
    apply(&state, application, &name, None, inactive).await
}

/// Notes since when a subscription is disabled by its owner; what is disabled already stays so.
fn stamped(after: SettingsRow, before: Option<&SettingsRow>, now: DateTime<Utc>) -> SettingsRow {
    let (disabled_at, disabled_because) = match before {
        _ if after.is_active => (None, None),
        Some(before) if !before.is_active => (before.disabled_at, before.disabled_because.clone()),
        Some(_) | None => (Some(now), Some(DisabledBecause::Owner.as_str().to_owned())),
    };
    SettingsRow { disabled_at, disabled_because, ..after }
}

/// Parks what waits for a subscription that has just been disabled; the rest of a long backlog is
/// parked by and by.
async fn park_first(state: &ApiState, id: SubscriptionId) {
    if let Err(error) = state.store.park_waiting(id, AT_ONCE_MAX).await {
        crate::telemetry::statement_failed(
            &error,
            "what waits for a disabled subscription is parked later",
        );
    }
}

/// Cancels what is parked for a subscription, all of it.
async fn cancel_parked(state: &ApiState, id: SubscriptionId) -> Result<(), Problem> {
    for _ in 0..CANCEL_STATEMENTS_MAX {
        if state.store.cancel_parked(id, AT_ONCE_MAX).await? < AT_ONCE_MAX {
            return Ok(());
        }
    }
    Err(ApiError::Busy.into())
}

async fn found(
    state: &ApiState,
    application: ApplicationId,
    name: &SubscriptionName,
) -> Result<SubscriptionRow, Problem> {
    let row = state.store.subscription(application, name).await?;
    Ok(row.ok_or(ApiError::SubscriptionNotFound(None))?)
}

fn taken(error: StoreError) -> Problem {
    match error {
        StoreError::Constraint { name } if name == "subscription_uid_key" => {
            ApiError::Conflict("`uid` is the name of another subscription")
                .at(Place::Pointer("/uid".to_owned()))
        }
        other => other.into(),
    }
}
