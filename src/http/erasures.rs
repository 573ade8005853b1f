//! `/erasures`: what is taken away for good, by request, and the receipts.

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
    events::{self, Page, PageAsked},
    extract::{self, Cursor, ErasurePath, IdempotencyHeader},
    json::{Members, pointer_to},
    problem::{Place, Problem},
    submission,
    subscriptions::settings::names,
};
use crate::{
    domain::{
        ApplicationId, ErasureId, EventId, Permission, Subject,
        erasure::{Erasable, ErasureState},
    },
    store::{
        erasures::{ErasureRow, NewErasure},
        idempotency::Standing,
    },
};

/// The fields of an erasure.
pub const FIELDS: &[&str; 3] = &["scope", "event_id", "subject"];

/// An erasure: while it goes on how far it got, and then its receipt.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Erasure")]
pub struct ErasureBody {
    id: ErasureId,
    application_id: ApplicationId,
    #[schemars(extend("enum" = Erasable::SCOPES))]
    scope: String,
    event_id: Option<EventId>,
    /// Until it is done; then it is erased too.
    subject: Option<String>,
    /// SHA-256 of the subject's UTF-8 bytes, in hexadecimal: whoever knows it can check the receipt.
    subject_sha256: Option<String>,
    #[schemars(extend("enum" = names(ErasureState::ALL, ErasureState::as_str)))]
    state: String,
    erased: ErasedBody,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    /// When it was done.
    ended_at: Option<DateTime<Utc>>,
}

/// What was taken away until now.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Erased")]
pub struct ErasedBody {
    /// Events that were gone through: their metadata and their subjects.
    events: i64,
    payloads: i64,
    /// Attempts: the headers and the bodies of their requests and answers.
    attempts: i64,
    /// Deliveries that were pending or parked.
    deliveries_cancelled: i64,
    idempotency_keys: i64,
}

impl From<ErasureRow> for ErasureBody {
    fn from(row: ErasureRow) -> Self {
        let (id, application_id, event_id) = (row.id(), row.application(), row.event());
        Self {
            id,
            application_id,
            scope: row.scope,
            event_id,
            subject: row.subject,
            subject_sha256: row.subject_sha256,
            state: row.state,
            erased: ErasedBody {
                events: row.event_count,
                payloads: row.payload_count,
                attempts: row.attempt_count,
                deliveries_cancelled: row.cancelled_count,
                idempotency_keys: row.idempotency_key_count,
            },
            created_at: row.created_at,
            updated_at: row.updated_at,
            ended_at: row.ended_at,
        }
    }
}

/// Asks for an erasure.
pub async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    uri: Uri,
    key: Option<IdempotencyHeader>,
    request: Request,
) -> Result<(StatusCode, Json<ErasureBody>), Problem> {
    let application = events::application_of(&state, caller, &uri).await?;
    caller.must(Permission::Manage)?;
    let body = body::read_json(request, state.body_limit, None).await?;
    let of = erasable(body::text(&body)?)?;
    if let Erasable::Event(id) = &of
        && state.store.routed_event(application, *id).await?.is_none()
    {
        return Err(ApiError::EventNotFound(None).into());
    }
    let key = key.map(|key| submission::header_key(&key.0)).transpose()?;
    let unix_ms = state.clock.unix_ms();
    let id = ErasureId::new(unix_ms, rand::random());
    let once =
        key.as_ref().map(|key| extract::reservation(application, "erasure", key, &body, id.uuid()));
    let new = NewErasure { id, application, of: &of, unix_ms };
    let id = match state.store.create_erasure(&new, once).await? {
        Standing::New => id,
        Standing::Repeat(id) => ErasureId::from_uuid(id),
        Standing::Reused { .. } => return Err(ApiError::KeyReused.into()),
    };
    tracing::info!(erasure = %id, %application, scope = of.scope(), "an erasure was asked for");
    let row = state.store.erasure(application, id).await?;
    let row = row.ok_or(ApiError::ErasureNotFound(None))?;
    Ok((StatusCode::ACCEPTED, Json(row.into())))
}

/// Lists erasures, newest first.
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    uri: Uri,
) -> Result<Json<Page<ErasureBody>>, Problem> {
    let asked = PageAsked::of(&state, caller, &uri, Cursor::Erasures).await?;
    let older_than = asked.older_than.map(ErasureId::from_uuid);
    let rows_max = extract::rows_of(asked.limit);
    let rows = state.store.erasures(asked.application, older_than, rows_max).await?;
    let (rows, next_cursor) = Cursor::Erasures.page(rows, asked.limit, |row| row.id().uuid());
    Ok(Json(Page { data: rows.into_iter().map(Into::into).collect(), next_cursor }))
}

/// Shows an erasure.
pub async fn show(
    State(state): State<ApiState>,
    caller: Caller,
    ErasurePath(id): ErasurePath,
    uri: Uri,
) -> Result<Json<ErasureBody>, Problem> {
    let application = events::application_of(&state, caller, &uri).await?;
    caller.must(Permission::Read)?;
    let row = state.store.erasure(application, id).await?;
    Ok(Json(row.ok_or(ApiError::ErasureNotFound(None))?.into()))
}

/// Reads what is to be erased. The scope is told beside what it is of, so that no slip erases more.
fn erasable(text: &str) -> Result<Erasable, Problem> {
    let given = Members::of(text, FIELDS)?;
    let scope = given.string("scope")?;
    let [event, subject, application] = Erasable::SCOPES;
    let must_be = format!("must be `{event}`, `{subject}` or `{application}`");
    let scope = scope.ok_or_else(|| submission::fault("scope", &must_be))?;
    let (of, belongs) = if scope == event {
        (
            submission::field(&given, "event_id", str::parse::<EventId>)?.map(Erasable::Event),
            "event_id",
        )
    } else if scope == subject {
        (submission::field(&given, "subject", Subject::parse)?.map(Erasable::Subject), "subject")
    } else if scope == application {
        (Some(Erasable::Application), "scope")
    } else {
        return Err(submission::fault("scope", must_be));
    };
    let alien = ["event_id", "subject"].into_iter().filter(|name| *name != belongs);
    if let Some(name) = alien.into_iter().find(|name| given.given(name).is_some()) {
        let detail = format!("`{name}` does not belong to the scope `{scope}`");
        return Err(ApiError::Invalid(detail).at(Place::Pointer(pointer_to(name))));
    }
    of.ok_or_else(|| submission::fault(belongs, format!("is missing: the scope is `{scope}`")))
}
