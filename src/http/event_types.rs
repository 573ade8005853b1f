//! `/event-types`: the catalogue, of the instance and of each application.

use axum::{
    Json,
    extract::{Request, State},
    http::{StatusCode, Uri},
};
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{
    ApiError, ApiState, body,
    caller::Caller,
    events::Page,
    extract::{self, Cursor, EventTypePath, IdempotencyHeader, Parameters},
    json::{Members, pointer_to},
    problem::{Place, Problem},
    submission,
};
use crate::{
    domain::{
        ApplicationId, Definition, EventType, Permission,
        catalogue::{DefinitionError, standard_catalogue},
        ids::DEFAULT_APPLICATION,
    },
    store::{
        StoreError,
        event_types::{EventTypeFilter, EventTypeRow, Listed, Owner},
        idempotency::Standing,
    },
};

/// The fields of a type, as callers send it.
pub const FIELDS: &[&str; 7] =
    &["name", "description", "schema", "checks_payload", "version", "example", "deprecated"];
/// The fields of a change: all but the name.
pub const CHANGED_FIELDS: &[&str; 6] =
    &["description", "schema", "checks_payload", "version", "example", "deprecated"];
/// Whose catalogue there is.
pub const SCOPES: [&str; 2] = ["application", "instance"];
/// The parameters that say whose catalogue is meant.
pub const OF_CATALOGUE: &[&str; 2] = &["application", "scope"];
/// The parameters of `GET /event-types`.
pub const OF_LIST: &[&str; 6] =
    &["application", "scope", "deprecated", "prefix", "limit", "cursor"];

/// A type as it is shown.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "EventType")]
pub struct EventTypeBody {
    name: String,
    /// Whose catalogue it is in.
    #[schemars(extend("enum" = SCOPES))]
    scope: &'static str,
    /// Absent of the instance's.
    #[serde(skip_serializing_if = "Option::is_none")]
    application_id: Option<ApplicationId>,
    description: Option<String>,
    schema: Option<Box<RawValue>>,
    checks_payload: bool,
    version: Option<String>,
    example: Option<Box<RawValue>>,
    deprecated: bool,
    deprecated_at: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl From<EventTypeRow> for EventTypeBody {
    fn from(row: EventTypeRow) -> Self {
        let owner = row.owner();
        let Definition { description, schema, checks_payload, version, example } = row.definition();
        let json = |text: Option<String>| text.and_then(|text| RawValue::from_string(text).ok());
        Self {
            name: row.name,
            scope: if owner.is_some() { "application" } else { "instance" },
            application_id: owner,
            description,
            schema: json(schema),
            checks_payload,
            version,
            example: json(example),
            deprecated: row.deprecated_at.is_some(),
            deprecated_at: row.deprecated_at,
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

/// What loading the standard catalogue came to.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "LoadedEventTypes")]
pub struct LoadedBody {
    /// How many types were added.
    added: usize,
    /// The names that were there, and were left as they are.
    already_there: Vec<&'static str>,
}

/// Makes a type.
pub async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    key: Option<IdempotencyHeader>,
    uri: Uri,
    request: Request,
) -> Result<(StatusCode, Json<EventTypeBody>), Problem> {
    let given = Parameters::of(&uri, OF_CATALOGUE)?;
    let owner = changed_catalogue(&state, caller, &given).await?;
    let body = body::read_json(request, state.body_limit, None).await?;
    let given = Members::of(body::text(&body)?, FIELDS)?;
    given.required("name")?;
    let name = given.string("name")?.unwrap_or_default();
    let name = EventType::parse(&name).map_err(|error| {
        ApiError::Invalid(format!("`name` {error}")).at(Place::Pointer(pointer_to("name")))
    })?;
    let definition = changed(Definition::default(), &given)?;
    let is_deprecated = given.boolean("deprecated")?.unwrap_or(false);
    check(&state, owner, &definition).await?;

    let key = key.map(|key| submission::header_key(&key.0)).transpose()?;
    let kind = if owner.is_some() { "event_type" } else { "event_type of the instance" };
    // The name finds it again; the key needs something that it stands for all the same.
    let result_id = Uuid::from_u128(rand::random());
    let once = key.as_ref().map(|key| extract::reservation(owner, kind, key, &body, result_id));
    let made = state.store.create_event_type(owner, &name, &definition, is_deprecated, once).await;
    match made.map_err(taken)? {
        Standing::New => state.catalogue.forget(),
        // The name is that of the first request too: its body was the same.
        Standing::Repeat(_) => {}
        Standing::Reused { .. } => return Err(ApiError::KeyReused.into()),
    }
    let row = state.store.event_type(owner, &name).await?;
    Ok((StatusCode::CREATED, Json(row.ok_or(ApiError::MADE_AND_DELETED)?.into())))
}

/// Adds those types of the standard catalogue that are not there yet.
pub async fn load(
    State(state): State<ApiState>,
    caller: Caller,
    uri: Uri,
) -> Result<Json<LoadedBody>, Problem> {
    let given = Parameters::of(&uri, OF_CATALOGUE)?;
    let owner = changed_catalogue(&state, caller, &given).await?;
    let added = state.store.add_event_types(owner, standard_catalogue()).await?;
    state.catalogue.forget();
    let names = standard_catalogue().iter().map(|one| one.name.as_str());
    let already_there = names.filter(|name| !added.iter().any(|new| new == name)).collect();
    Ok(Json(LoadedBody { added: added.len(), already_there }))
}

/// Lists types by name: those that an application sees, or those of one catalogue.
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    uri: Uri,
) -> Result<Json<Page<EventTypeBody>>, Problem> {
    caller.must(Permission::Read)?;
    let given = Parameters::of(&uri, OF_LIST)?;
    let catalogue = shown_catalogue(&state, caller, &given).await?;
    let limit = given.read("limit", extract::limit)?.unwrap_or(extract::LIMIT_DEFAULT);
    let prefix = given.read("prefix", prefix)?;
    let after = given.read("cursor", |text| Cursor::EventTypes.read_name(text))?;
    let filter = EventTypeFilter {
        catalogue,
        prefix: prefix.as_deref(),
        is_deprecated: given.read("deprecated", boolean)?,
        after: after.as_ref().map(EventType::as_str),
    };
    let mut rows = state.store.event_types(&filter, extract::rows_of(limit)).await?;
    let has_more = rows.len() > limit;
    rows.truncate(limit);
    let last = rows.last().filter(|_| has_more);
    let next_cursor = last.map(|row| Cursor::EventTypes.after_name(&row.name));
    Ok(Json(Page { data: rows.into_iter().map(Into::into).collect(), next_cursor }))
}

/// Shows a type: the application's own, else the instance's.
pub async fn show(
    State(state): State<ApiState>,
    caller: Caller,
    EventTypePath(name): EventTypePath,
    uri: Uri,
) -> Result<Json<EventTypeBody>, Problem> {
    caller.must(Permission::Read)?;
    let given = Parameters::of(&uri, OF_CATALOGUE)?;
    let row = match shown_catalogue(&state, caller, &given).await? {
        Listed::Of(owner) => state.store.event_type(owner, &name).await?,
        Listed::SeenBy(application) => seen_by(&state, application, &name).await?,
    };
    Ok(Json(row.ok_or(ApiError::EventTypeNotFound)?.into()))
}

/// The type of this name that an application sees: its own, else the instance's.
pub async fn seen_by(
    state: &ApiState,
    application: ApplicationId,
    name: &EventType,
) -> Result<Option<EventTypeRow>, ApiError> {
    Ok(match state.store.event_type(Some(application), name).await? {
        None => state.store.event_type(None, name).await?,
        own => own,
    })
}

/// Changes a type: what is not given stays, null takes away.
pub async fn change(
    State(state): State<ApiState>,
    caller: Caller,
    EventTypePath(name): EventTypePath,
    uri: Uri,
    request: Request,
) -> Result<Json<EventTypeBody>, Problem> {
    let given = Parameters::of(&uri, OF_CATALOGUE)?;
    let owner = changed_catalogue(&state, caller, &given).await?;
    let body = body::read_json(request, state.body_limit, None).await?;
    let given = Members::of(body::text(&body)?, CHANGED_FIELDS)?;
    let row = state.store.event_type(owner, &name).await?.ok_or(ApiError::EventTypeNotFound)?;
    let definition = changed(row.definition(), &given)?;
    let is_deprecated = given.boolean("deprecated")?;
    check(&state, owner, &definition).await?;
    let change =
        state.store.change_event_type(owner, &name, row.revision, &definition, is_deprecated);
    let row = change.await?;
    state.catalogue.forget();
    let row = row.ok_or(ApiError::Conflict("somebody else changed it meanwhile: try again"))?;
    Ok(Json(row.into()))
}

/// Takes a type out of the catalogue. Events that are stored keep theirs.
pub async fn delete(
    State(state): State<ApiState>,
    caller: Caller,
    EventTypePath(name): EventTypePath,
    uri: Uri,
) -> Result<StatusCode, Problem> {
    let given = Parameters::of(&uri, OF_CATALOGUE)?;
    let owner = changed_catalogue(&state, caller, &given).await?;
    let is_deleted = state.store.delete_event_type(owner, &name).await?;
    state.catalogue.forget();
    if is_deleted { Ok(StatusCode::NO_CONTENT) } else { Err(ApiError::EventTypeNotFound.into()) }
}

/// Whose catalogue a query names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Application,
    Instance,
}

/// The scope that a query names, and the application, if it is not the instance that is meant.
async fn scope<const N: usize>(
    state: &ApiState,
    caller: Caller,
    given: &Parameters<N>,
) -> Result<(Option<Scope>, ApplicationId), Problem> {
    let scope = given.read("scope", |text| match text {
        "application" => Ok(Scope::Application),
        "instance" => Ok(Scope::Instance),
        _ => Err("must be application or instance"),
    })?;
    let named = given.text("application");
    if scope == Some(Scope::Instance) && named.is_some() {
        let detail = "`scope=instance` and `application` exclude each other".to_owned();
        return Err(ApiError::Invalid(detail).at(Place::Parameter("scope".to_owned())));
    }
    let application = caller.application(state, named).await;
    let place = || Place::Parameter("application".to_owned());
    Ok((scope, application.map_err(|error| error.at(place()))?))
}

/// The catalogue that is to be changed, if the caller may.
async fn changed_catalogue<const N: usize>(
    state: &ApiState,
    caller: Caller,
    given: &Parameters<N>,
) -> Result<Owner, Problem> {
    let (scope, application) = scope(state, caller, given).await?;
    if scope == Some(Scope::Instance) {
        caller.must(Permission::Administer)?;
        return Ok(None);
    }
    caller.must(Permission::Manage)?;
    Ok(Some(application))
}

/// What is to be shown.
async fn shown_catalogue<const N: usize>(
    state: &ApiState,
    caller: Caller,
    given: &Parameters<N>,
) -> Result<Listed, Problem> {
    let (scope, application) = scope(state, caller, given).await?;
    Ok(match scope {
        None => Listed::SeenBy(application),
        Some(Scope::Application) => Listed::Of(Some(application)),
        Some(Scope::Instance) => Listed::Of(None),
    })
}

/// A definition with what is given put in; null takes away.
fn changed<const N: usize>(
    mut definition: Definition,
    given: &Members<'_, N>,
) -> Result<Definition, Problem> {
    let json = |name| given.given(name).map(|value| value.get().to_owned());
    if given.raw("description").is_some() {
        definition.description = given.string("description")?;
    }
    if given.raw("version").is_some() {
        definition.version = given.string("version")?;
    }
    if given.raw("schema").is_some() {
        definition.schema = json("schema");
    }
    if given.raw("example").is_some() {
        definition.example = json("example");
    }
    if given.raw("checks_payload").is_some() {
        definition.checks_payload = given.boolean("checks_payload")?.unwrap_or(false);
    }
    Ok(definition)
}

/// Checks a definition, as work of the application whose catalogue it is for.
async fn check(state: &ApiState, owner: Owner, definition: &Definition) -> Result<(), Problem> {
    let application = owner.unwrap_or(DEFAULT_APPLICATION);
    let checked = state.catalogue.check(application, definition.clone()).await;
    checked.map_err(ApiError::from)?.map_err(|error| unsound(&error))
}

fn unsound(error: &DefinitionError) -> Problem {
    let place = Place::Pointer(format!("{}{}", pointer_to(error.field), error.pointer));
    ApiError::Invalid(error.to_string()).at(place)
}

fn taken(error: StoreError) -> Problem {
    let keys = ["event_type_application_key", "event_type_instance_key"];
    match error {
        StoreError::Constraint { name } if keys.contains(&name.as_str()) => {
            ApiError::Conflict("`name` is that of another type of this catalogue")
                .at(Place::Pointer(pointer_to("name")))
        }
        other => other.into(),
    }
}

/// Reads what names are to begin with: as much of one as there is.
fn prefix(text: &str) -> Result<String, &'static str> {
    let trimmed = text.strip_suffix('.').unwrap_or(text);
    let is_sound = EventType::parse(trimmed).is_ok();
    let fault = "must be the beginning of a name, such as `invoice.`";
    if is_sound { Ok(text.to_owned()) } else { Err(fault) }
}

fn boolean(text: &str) -> Result<bool, &'static str> {
    text.parse().map_err(|_| "must be true or false")
}
