//! `/applications`: the tenants.

use axum::{
    Json,
    extract::{Request, State},
    http::{StatusCode, Uri},
};
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    ApiError, ApiState, body,
    caller::Caller,
    events::Page,
    extract::{self, ApplicationPath, Cursor, IdempotencyHeader, Parameters},
    json::{Members, pointer_to},
    problem::{Place, Problem},
    submission,
    subscriptions::secrets,
};
use crate::{
    domain::{
        AllowedHosts, ApplicationId, Permission, Uid, hosts::HOSTS_MAX, ids::DEFAULT_APPLICATION,
    },
    store::{
        StoreError,
        applications::{
            ApplicationChange, ApplicationName, ApplicationRow, HostsAllowed, NewApplication,
            PayloadsKept,
        },
        idempotency::Standing,
    },
};

/// How many bytes the name of an application, or of a key, may have.
pub const NAME_BYTES_MAX: usize = 255;
/// The fields of an application, as callers send it.
pub const FIELDS: &[&str; 5] =
    &["uid", "name", "accepts_unknown_types", "payload_retention_days", "allowed_hosts"];

/// An application as it is shown.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Application")]
pub struct ApplicationBody {
    id: ApplicationId,
    uid: String,
    name: String,
    accepts_unknown_types: bool,
    /// After so many days its payloads are dropped; null: as the settings say.
    payload_retention_days: Option<i32>,
    /// The hosts that it may call; null: all that may be called at all.
    allowed_hosts: Option<Vec<String>>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl From<ApplicationRow> for ApplicationBody {
    fn from(row: ApplicationRow) -> Self {
        Self {
            id: row.id(),
            uid: row.uid,
            name: row.name,
            accepts_unknown_types: row.accepts_unknown_types,
            payload_retention_days: row.payload_retention_days,
            allowed_hosts: row.allowed_hosts,
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

/// Makes an application.
pub async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    key: Option<IdempotencyHeader>,
    request: Request,
) -> Result<(StatusCode, Json<ApplicationBody>), Problem> {
    caller.must(Permission::Administer)?;
    let body = body::read_json(request, state.body_limit, None).await?;
    let given = Members::of(body::text(&body)?, FIELDS)?;
    let id = ApplicationId::new(state.clock.unix_ms(), rand::random());
    let uid = uid(&given)?.map_or_else(|| id.to_string(), |uid| uid.as_str().to_owned());
    let name = name(&given)?.unwrap_or_else(|| uid.clone());
    let key = key.map(|key| submission::header_key(&key.0)).transpose()?;
    let once =
        key.as_ref().map(|key| extract::reservation(None, "application", key, &body, id.uuid()));
    let signs = secrets::signing_key(&state.clock, &state.sealing, &secrets::new_secret());
    let hosts = allowed_hosts(&given)?;
    let accepts_unknown_types = given.boolean("accepts_unknown_types")?.unwrap_or(true);
    let new = NewApplication {
        id,
        uid: &uid,
        name: &name,
        accepts_unknown_types,
        payloads: payloads(&state, &given)?,
        allowed_hosts: hosts.as_ref().and_then(HostsAllowed::list),
        key: &signs,
    };
    let standing = state.store.create_application(&new, once).await.map_err(taken)?;
    let id = match standing {
        Standing::New => id,
        Standing::Repeat(id) => ApplicationId::from_uuid(id),
        Standing::Reused { .. } => return Err(ApiError::KeyReused.into()),
    };
    let row = state.store.application(&ApplicationName::Id(id)).await?;
    let row = row.ok_or(ApiError::MADE_AND_DELETED)?;
    Ok((StatusCode::CREATED, Json(row.into())))
}

/// Lists the applications that the caller may see, newest first.
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    uri: Uri,
) -> Result<Json<Page<ApplicationBody>>, Problem> {
    caller.must(Permission::Read)?;
    let given = Parameters::of(&uri, extract::OF_PAGE)?;
    let limit = given.read("limit", extract::limit)?.unwrap_or(extract::LIMIT_DEFAULT);
    let older_than = given.read("cursor", |text| Cursor::Applications.read(text))?;
    let rows = if let Some(own) = caller.0.application {
        let own = state.store.application(&ApplicationName::Id(own)).await?;
        own.into_iter().filter(|_| older_than.is_none()).collect()
    } else {
        let older_than = older_than.map(ApplicationId::from_uuid);
        state.store.applications(older_than, extract::rows_of(limit)).await?
    };
    let (rows, next_cursor) = Cursor::Applications.page(rows, limit, |row| row.id().uuid());
    Ok(Json(Page { data: rows.into_iter().map(Into::into).collect(), next_cursor }))
}

/// Shows an application.
pub async fn show(
    State(state): State<ApiState>,
    caller: Caller,
    ApplicationPath(named): ApplicationPath,
) -> Result<Json<ApplicationBody>, Problem> {
    let id = caller.application(&state, Some(&named)).await?;
    caller.must(Permission::Read)?;
    let row = state.store.application(&ApplicationName::Id(id)).await?;
    Ok(Json(row.ok_or(ApiError::ApplicationNotFound(None))?.into()))
}

/// Changes an application. Its uid, and the hosts that it may call, are the instance's to change.
pub async fn change(
    State(state): State<ApiState>,
    caller: Caller,
    ApplicationPath(named): ApplicationPath,
    request: Request,
) -> Result<Json<ApplicationBody>, Problem> {
    let id = caller.application(&state, Some(&named)).await?;
    caller.must(Permission::Manage)?;
    let body = body::read_json(request, state.body_limit, None).await?;
    let given = Members::of(body::text(&body)?, FIELDS)?;
    let (uid, name) = (uid(&given)?, name(&given)?);
    if uid.is_some() {
        caller.must(Permission::Administer)?;
        if id == DEFAULT_APPLICATION {
            return Err(ApiError::Conflict("the uid of `default` cannot be changed").into());
        }
    }
    let hosts = allowed_hosts(&given)?;
    if hosts.is_some() {
        caller.must(Permission::Administer)?;
    }
    let change = ApplicationChange {
        uid: uid.as_ref().map(Uid::as_str),
        name: name.as_deref(),
        accepts_unknown_types: given.boolean("accepts_unknown_types")?,
        payloads: payloads(&state, &given)?,
        allowed_hosts: hosts.as_ref(),
    };
    let row = state.store.change_application(id, &change).await.map_err(taken)?;
    state.known.forget();
    state.catalogue.forget();
    state.routes.forget([id]);
    Ok(Json(row.ok_or(ApiError::ApplicationNotFound(None))?.into()))
}

/// Deletes an application: its keys let nobody in any more, and what waits is cancelled.
pub async fn delete(
    State(state): State<ApiState>,
    caller: Caller,
    ApplicationPath(named): ApplicationPath,
) -> Result<StatusCode, Problem> {
    let id = caller.application(&state, Some(&named)).await?;
    caller.must(Permission::Administer)?;
    if id == DEFAULT_APPLICATION {
        return Err(ApiError::Conflict("the application `default` cannot be deleted").into());
    }
    let is_deleted = state.store.delete_application(id).await?;
    state.known.forget();
    if is_deleted {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(ApiError::ApplicationNotFound(None).into())
    }
}

fn uid<const N: usize>(given: &Members<'_, N>) -> Result<Option<Uid>, Problem> {
    let text = given.string("uid")?;
    text.map(|text| Uid::parse(&text)).transpose().map_err(|error| {
        ApiError::Invalid(format!("`uid` {error}")).at(Place::Pointer(pointer_to("uid")))
    })
}

/// The `name` of an application, or of a key.
pub fn name<const N: usize>(given: &Members<'_, N>) -> Result<Option<String>, Problem> {
    let name = given.string("name")?;
    let is_sound = |name: &String| {
        (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control)
    };
    match name {
        Some(name) if !is_sound(&name) => Err(ApiError::Invalid(format!(
            "`name` must be 1 to {NAME_BYTES_MAX} bytes without control characters"
        ))
        .at(Place::Pointer(pointer_to("name")))),
        name => Ok(name),
    }
}

/// For how many days payloads are kept: null for as long as the settings say, at most as long.
fn payloads<const N: usize>(
    state: &ApiState,
    given: &Members<'_, N>,
) -> Result<Option<PayloadsKept>, Problem> {
    let name = "payload_retention_days";
    let Some(days) = given.number(name)? else {
        return Ok(given.raw(name).map(|_| PayloadsKept::AsSettings));
    };
    let days_max = state.payload_days;
    let is_sound = days.fract() == 0.0
        && (1.0..=f64::from(u32::try_from(days_max).unwrap_or(u32::MAX))).contains(&days);
    if !is_sound {
        let detail = format!("must be a whole number, 1 to {days_max} (PAYLOAD_RETENTION_DAYS)");
        return Err(submission::fault(name, detail));
    }
    #[expect(clippy::cast_possible_truncation, reason = "checked above")]
    Ok(Some(PayloadsKept::Days(days as i32)))
}

/// The hosts that may be called, in their normal form; null for all.
fn allowed_hosts<const N: usize>(given: &Members<'_, N>) -> Result<Option<HostsAllowed>, Problem> {
    let name = "allowed_hosts";
    if given.raw(name).is_none() {
        return Ok(None);
    }
    if given.given(name).is_none() {
        return Ok(Some(HostsAllowed::All));
    }
    // An array, and not one string alone.
    given.elements(name, HOSTS_MAX)?;
    let texts = given.strings(name, HOSTS_MAX)?;
    let hosts = AllowedHosts::parse(&texts).map_err(|error| submission::fault(name, error))?;
    Ok(Some(HostsAllowed::Only(hosts.texts())))
}

fn taken(error: StoreError) -> Problem {
    match error {
        StoreError::Constraint { name } if name == "application_uid_key" => {
            ApiError::Conflict("`uid` is the name of another application")
                .at(Place::Pointer(pointer_to("uid")))
        }
        other => other.into(),
    }
}
