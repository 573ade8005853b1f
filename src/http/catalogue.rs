//! What publishing asks of an event type, told as problems.

use super::{
    ApiError, ApiState,
    json::pointer_to,
    names,
    problem::{Place, Problem},
};
use crate::{
    domain::{ApplicationId, EventType, Payload, schema::Fault},
    ingest::{CatalogueError, Fit, told},
    store::Store,
};

/// Among how many names the one is looked for that an unknown type may have been meant to be.
const NEAR_NAMES_MAX: i64 = 1_000;

/// Refuses an event of a type that is unknown where it must not be, and a payload that is not what
/// its type says.
pub async fn check(
    state: &ApiState,
    application: ApplicationId,
    event_type: &EventType,
    payload: &Payload,
) -> Result<(), Problem> {
    match state.catalogue.fit(&state.store, application, event_type, payload).await {
        Ok(Fit::Good) => Ok(()),
        Ok(Fit::Unknown) => Err(unknown(&state.store, application, event_type).await?),
        Ok(Fit::Faults(faults)) => Err(refused(event_type, &faults)),
        Err(error) => Err(ApiError::from(error).into()),
    }
}

impl From<CatalogueError> for ApiError {
    fn from(error: CatalogueError) -> Self {
        match error {
            CatalogueError::NoApplication => Self::ApplicationNotFound(None),
            CatalogueError::Store(error) => error.into(),
            CatalogueError::Broken => Self::Internal,
        }
    }
}

fn refused(event_type: &EventType, faults: &[Fault]) -> Problem {
    let event_type = event_type.as_str().to_owned();
    let first = faults.first().map_or("", |fault| fault.pointer.as_str());
    let place = Place::Pointer(format!("{}{first}", pointer_to("payload")));
    ApiError::PayloadRefused { event_type, faults: told(faults) }.at(place)
}

/// Says which type may have been meant.
async fn unknown(
    store: &Store,
    application: ApplicationId,
    event_type: &EventType,
) -> Result<Problem, ApiError> {
    let known = store.event_type_names(application, NEAR_NAMES_MAX).await?;
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let meant = names::near_miss(event_type.as_str(), &known).map(str::to_owned);
    let event_type = event_type.as_str().to_owned();
    let place = Place::Pointer(pointer_to("type"));
    Ok(ApiError::UnknownEventType { event_type, meant }.at(place))
}
