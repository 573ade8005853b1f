//! What publishing asks of an event type, told as problems.

use super::{
    ApiError, ApiState,
    json::pointer_to,
    names::KnownNames,
    problem::{Place, Problem},
    room::Bound,
};
use crate::{
    domain::{ApplicationId, EventType, Payload, schema::Fault},
    ingest::{CatalogueError, CheckError, Fit, told},
    store::{Store, StoreError},
};

/// Maximum number of names that are compared with an unknown type.
const NEAR_NAMES_MAX: i64 = 1_000;
/// Number of unknown types of one request for which a similar name is looked for.
pub const SUGGESTIONS_MAX: usize = 3;

/// Suggestions of one request: the names are read once, and only for the first unknown types.
#[derive(Default)]
pub struct Suggestions {
    made: usize,
    names: Option<(ApplicationId, KnownNames)>,
}

impl Suggestions {
    /// The name of the application's catalogues that is most like this one, if a suggestion is left.
    async fn near(
        &mut self,
        application: ApplicationId,
        event_type: &EventType,
        read: impl AsyncFnOnce() -> Result<Vec<String>, StoreError>,
    ) -> Result<Option<String>, StoreError> {
        if self.made == SUGGESTIONS_MAX {
            return Ok(None);
        }
        self.made += 1;
        let names = match self.names.take() {
            Some((of, names)) if of == application => names,
            _ => KnownNames::new(read().await?),
        };
        let (_, names) = self.names.insert((application, names));
        Ok(names.near_miss(event_type.as_str()).map(str::to_owned))
    }
}

/// Refuses an event of a type that is unknown where it must not be, and a payload that is not what
/// its type says.
pub async fn check(
    state: &ApiState,
    application: ApplicationId,
    event_type: &EventType,
    payload: &Payload,
) -> Result<(), Problem> {
    check_in(&mut Suggestions::default(), state, application, event_type, payload).await
}

/// Like [`check`], of one of several events of a request.
pub async fn check_in(
    suggestions: &mut Suggestions,
    state: &ApiState,
    application: ApplicationId,
    event_type: &EventType,
    payload: &Payload,
) -> Result<(), Problem> {
    match state.catalogue.fit(&state.store, application, event_type, payload).await {
        Ok(Fit::Good) => Ok(()),
        Ok(Fit::Unknown) => Err(unknown(&state.store, application, event_type, suggestions).await?),
        Ok(Fit::Faults(faults)) => Err(refused(event_type, &faults)),
        Err(error) => Err(ApiError::from(error).into()),
    }
}

impl From<CatalogueError> for ApiError {
    fn from(error: CatalogueError) -> Self {
        match error {
            CatalogueError::NoApplication => Self::ApplicationNotFound(None),
            CatalogueError::Store(error) => error.into(),
            CatalogueError::Check(error) => error.into(),
            CatalogueError::Broken => Self::Internal,
        }
    }
}

impl From<CheckError> for ApiError {
    fn from(error: CheckError) -> Self {
        match error {
            CheckError::Busy => Self::Overloaded(Bound::Checks),
            CheckError::TimedOut => Self::Overloaded(Bound::CheckTime),
            CheckError::Failed => Self::Internal,
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
    suggestions: &mut Suggestions,
) -> Result<Problem, ApiError> {
    let read = async || store.event_type_names(application, NEAR_NAMES_MAX).await;
    let meant = suggestions.near(application, event_type, read).await?;
    let event_type = event_type.as_str().to_owned();
    let place = Place::Pointer(pointer_to("type"));
    Ok(ApiError::UnknownEventType { event_type, meant }.at(place))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{domain::ids::DEFAULT_APPLICATION, http::names::compared};

    /// A batch of unknown types costs a number of look-ups and comparisons that does not grow with it.
    #[tokio::test]
    async fn suggestions_of_a_request_read_the_names_once_and_compare_for_the_first_types() {
        let names: Vec<_> = (0..1_000).map(|n| format!("billing.invoice.kind{n}")).collect();
        let (mut reads, before) = (0, compared());
        let mut suggestions = Suggestions::default();
        let mut found = Vec::new();
        for n in 0..1_000 {
            let unknown = EventType::parse(&format!("billing.invoice.kin{n}x")).unwrap();
            let read = async || {
                reads += 1;
                Ok(names.clone())
            };
            found.push(suggestions.near(DEFAULT_APPLICATION, &unknown, read).await.unwrap());
        }
        assert_eq!(reads, 1);
        assert_eq!(found.iter().flatten().count(), SUGGESTIONS_MAX);
        assert!(found[..SUGGESTIONS_MAX].iter().all(Option::is_some));
        assert_eq!(compared() - before, SUGGESTIONS_MAX * names.len());
    }
}
