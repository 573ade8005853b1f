//! `/applications/{id}/api-keys`: who may call for an application.

use axum::{
    Json,
    extract::{Request, State},
    http::{StatusCode, Uri},
};
use chrono::{DateTime, SecondsFormat, Utc};
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    ApiError, ApiState, applications, body,
    caller::Caller,
    events::Page,
    extract::{self, ApiKeyPath, ApplicationPath, Cursor, IdempotencyHeader, Parameters},
    json::{Members, pointer_to},
    problem::{Place, Problem},
    submission,
};
use crate::{
    domain::{ApiKey, ApiKeyId, ApplicationId, Permission, Role},
    store::{
        api_keys::{ApiKeyRow, NewApiKey},
        idempotency::Standing,
    },
};

/// The fields of a key, as callers send it.
pub const FIELDS: &[&str; 3] = &["name", "role", "expires_at"];

/// A key as it is shown.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ApiKey")]
pub struct ApiKeyBody {
    id: ApiKeyId,
    application_id: ApplicationId,
    name: String,
    #[schemars(extend("enum" = Role::ALL.map(Role::as_str)))]
    role: &'static str,
    /// Its first characters.
    hint: String,
    created_at: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
    last_used_at: Option<DateTime<Utc>>,
    revoked_at: Option<DateTime<Utc>>,
    /// The key itself: in the answer that makes it, and never again.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

impl ApiKeyBody {
    fn of(application_id: ApplicationId, row: ApiKeyRow, key: Option<String>) -> Self {
        let (id, role) = (row.id(), row.role().as_str());
        let ApiKeyRow { name, hint, created_at, expires_at, last_used_at, revoked_at, .. } = row;
        Self {
            id,
            application_id,
            name,
            role,
            hint,
            created_at,
            expires_at,
            last_used_at,
            revoked_at,
            key,
        }
    }
}

/// Makes a key and shows it, this once.
pub async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    ApplicationPath(named): ApplicationPath,
    key: Option<IdempotencyHeader>,
    request: Request,
) -> Result<(StatusCode, Json<ApiKeyBody>), Problem> {
    let application = caller.application(&state, Some(&named)).await?;
    caller.must(Permission::Manage)?;
    let body = body::read_json(request, state.body_limit, None).await?;
    let given = Members::of(body::text(&body)?, FIELDS)?;
    let role = role(&given)?;
    let name = applications::name(&given)?.unwrap_or_else(|| role.as_str().to_owned());
    let expires_at = expires_at(&given, state.clock.now())?;
    is_not_outlived(expires_at, caller.0.expires_at)?;
    let idempotency_key = key.map(|key| submission::header_key(&key.0)).transpose()?;

    let key = ApiKey::from_random(rand::random());
    let id = ApiKeyId::new(state.clock.unix_ms(), rand::random());
    let once = idempotency_key
        .as_ref()
        .map(|key| extract::reservation(application, "api_key", key, &body, id.uuid()));
    let new = NewApiKey {
        id,
        application: Some(application),
        name: &name,
        role,
        hint: key.hint(),
        hash: key.hash(),
        expires_at,
    };
    let (id, key) = match state.store.create_api_key(&new, once).await? {
        Standing::New => (id, Some(key.reveal().to_owned())),
        // The same answer again, but for the key: it is not known any more.
        Standing::Repeat(id) => (ApiKeyId::from_uuid(id), None),
        Standing::Reused { .. } => return Err(ApiError::KeyReused.into()),
    };
    let row = state.store.api_key(Some(application), id).await?;
    let row = row.ok_or(ApiError::MADE_AND_DELETED)?;
    Ok((StatusCode::CREATED, Json(ApiKeyBody::of(application, row, key))))
}

/// Lists the keys of an application, newest first.
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    ApplicationPath(named): ApplicationPath,
    uri: Uri,
) -> Result<Json<Page<ApiKeyBody>>, Problem> {
    let application = caller.application(&state, Some(&named)).await?;
    caller.must(Permission::Manage)?;
    let given = Parameters::of(&uri, extract::OF_PAGE)?;
    let limit = given.read("limit", extract::limit)?.unwrap_or(extract::LIMIT_DEFAULT);
    let older_than = given.read("cursor", |text| Cursor::ApiKeys.read(text))?;
    let older_than = older_than.map(ApiKeyId::from_uuid);
    let rows = state.store.api_keys(Some(application), older_than, extract::rows_of(limit)).await?;
    let (rows, next_cursor) = Cursor::ApiKeys.page(rows, limit, |row| row.id().uuid());
    let data = rows.into_iter().map(|row| ApiKeyBody::of(application, row, None)).collect();
    Ok(Json(Page { data, next_cursor }))
}

/// Shows a key, but for the key itself.
pub async fn show(
    State(state): State<ApiState>,
    caller: Caller,
    ApiKeyPath(named, id): ApiKeyPath,
) -> Result<Json<ApiKeyBody>, Problem> {
    let application = caller.application(&state, Some(&named)).await?;
    caller.must(Permission::Manage)?;
    let row =
        state.store.api_key(Some(application), id).await?.ok_or(ApiError::KeyNotFound(None))?;
    Ok(Json(ApiKeyBody::of(application, row, None)))
}

/// Revokes a key: within a second it lets nobody in any more.
pub async fn revoke(
    State(state): State<ApiState>,
    caller: Caller,
    ApiKeyPath(named, id): ApiKeyPath,
) -> Result<StatusCode, Problem> {
    let application = caller.application(&state, Some(&named)).await?;
    caller.must(Permission::Manage)?;
    let is_revoked = state.store.revoke_api_key(Some(application), id).await?;
    state.known.forget();
    if is_revoked { Ok(StatusCode::NO_CONTENT) } else { Err(ApiError::KeyNotFound(None).into()) }
}

/// Refuses a key that would be valid for longer than the key that makes it.
fn is_not_outlived(
    expires_at: Option<DateTime<Utc>>,
    of_caller: Option<DateTime<Utc>>,
) -> Result<(), Problem> {
    let Some(latest) = of_caller else { return Ok(()) };
    if expires_at.is_some_and(|time| time <= latest) {
        return Ok(());
    }
    let latest = latest.to_rfc3339_opts(SecondsFormat::Millis, true);
    let detail = format!("`expires_at` must be set, and not after {latest}: then your key expires");
    Err(ApiError::Invalid(detail).at(Place::Pointer(pointer_to("expires_at"))))
}

fn role<const N: usize>(given: &Members<'_, N>) -> Result<Role, Problem> {
    let fault = |detail: String| ApiError::Invalid(detail).at(Place::Pointer(pointer_to("role")));
    given.required("role")?;
    let name = given.string("role")?.unwrap_or_default();
    match Role::from_name(&name) {
        Some(Role::Admin) => Err(fault(
            "`role` cannot be admin: such keys are the instance's, and made by \
             `webhook-dispatcher keys create --role admin`"
                .to_owned(),
        )),
        Some(role) => Ok(role),
        None => {
            Err(fault("`role` must be one of manager, dispatcher, producer, viewer".to_owned()))
        }
    }
}

fn expires_at<const N: usize>(
    given: &Members<'_, N>,
    now: DateTime<Utc>,
) -> Result<Option<DateTime<Utc>>, Problem> {
    let Some(text) = given.string("expires_at")? else { return Ok(None) };
    let time = extract::time(&text)
        .and_then(|time| if time > now { Ok(time) } else { Err("must be in the future") });
    time.map(Some).map_err(|error| {
        let detail = format!("`expires_at` {error}");
        ApiError::Invalid(detail).at(Place::Pointer(pointer_to("expires_at")))
    })
}
