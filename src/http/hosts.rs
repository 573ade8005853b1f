//! Which hosts an application's targets may have: refused at once where it is known.

use std::{sync::Arc, time::Duration};

use super::{ApiError, ApiState};
use crate::domain::{AllowedHosts, ApplicationId, TargetUrl};

/// How long a caller waits for what the database says of its application.
const READ_WAIT: Duration = Duration::from_secs(20);

/// Refuses a target whose host is not among those that the application may call, as that was a second
/// ago at most. Sending asks again.
pub async fn check(
    state: &ApiState,
    application: ApplicationId,
    target: &TargetUrl,
) -> Result<(), ApiError> {
    let hosts = allowed(state, application).await?;
    vet(hosts.as_deref(), target)
}

/// Refuses a target whose host is not among these; `None`: all are.
pub fn vet(hosts: Option<&AllowedHosts>, target: &TargetUrl) -> Result<(), ApiError> {
    let Some(hosts) = hosts else { return Ok(()) };
    hosts.vet(target.url()).map_err(|refused| ApiError::TargetRefused(refused.to_string()))
}

/// `None`: all.
async fn allowed(
    state: &ApiState,
    application: ApplicationId,
) -> Result<Option<Arc<AllowedHosts>>, ApiError> {
    let fresh = state.routes.fresh(&state.store, application);
    let snapshot =
        tokio::time::timeout(READ_WAIT, fresh).await.map_err(|_| ApiError::Unavailable)??;
    Ok(snapshot.and_then(|snapshot| snapshot.allowed_hosts.clone()))
}
