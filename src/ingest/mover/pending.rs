//! Checks of payloads that a batch does not wait for: their rows stay in the outbox meanwhile, so that
//! events of other applications pass them.

use std::collections::HashMap;

use tokio::time::{Duration, Instant};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::{CatalogueError, Fit};
use crate::domain::{ApplicationId, EventId};

/// Time that all checks of a batch together are waited for.
pub(super) const BATCH_WAIT: Duration = Duration::from_millis(50);
/// Maximum number of pending checks of one application, and of all.
const PENDING_PER_APPLICATION_MAX: usize = 16;
const PENDING_MAX: usize = 256;
/// Time that a result is kept for a row that does not come again: another process has moved it.
const RESULT_KEPT: Duration = Duration::from_secs(30);

type Answer = Result<Fit, CatalogueError>;

/// Pending checks, by the event that they are for.
#[derive(Default)]
pub(super) struct PendingChecks {
    checks: HashMap<EventId, Pending>,
    tasks: TaskTracker,
}

struct Pending {
    application: ApplicationId,
    begun_at: Instant,
    check: AbortOnDropHandle<Answer>,
}

impl PendingChecks {
    /// The result of a check, which begins now unless it has begun before; `None` if there is none yet.
    pub(super) async fn fit<F>(
        &mut self,
        event: EventId,
        application: ApplicationId,
        wait_until: Instant,
        check: impl FnOnce() -> F,
    ) -> Option<Answer>
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        if let Some(pending) = self.checks.get(&event) {
            if !pending.check.is_finished() {
                return None;
            }
            let pending = self.checks.remove(&event)?;
            return Some(result(pending.check.await));
        }
        let of_application =
            self.checks.values().filter(|one| one.application == application).count();
        if of_application >= PENDING_PER_APPLICATION_MAX || self.checks.len() >= PENDING_MAX {
            return None;
        }
        let mut check = AbortOnDropHandle::new(self.tasks.spawn(check()));
        if let Ok(answer) = tokio::time::timeout_at(wait_until, &mut check).await {
            return Some(result(answer));
        }
        let begun_at = Instant::now();
        self.checks.insert(event, Pending { application, begun_at, check });
        None
    }

    /// Applications of which nothing is taken: checks of theirs are under way, and none has ended.
    pub(super) fn applications(&mut self) -> Vec<ApplicationId> {
        self.checks
            .retain(|_, one| !one.check.is_finished() || one.begun_at.elapsed() < RESULT_KEPT);
        let mut applications: Vec<_> = self.checks.values().map(|one| one.application).collect();
        applications.sort_unstable();
        applications.dedup();
        let has_result = |application: &ApplicationId| {
            let mut of_it = self.checks.values().filter(|one| one.application == *application);
            of_it.any(|one| one.check.is_finished())
        };
        applications.retain(|application| !has_result(application));
        applications
    }
}

fn result(joined: Result<Answer, tokio::task::JoinError>) -> Answer {
    joined.unwrap_or(Err(CatalogueError::Broken))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: u8) -> EventId {
        EventId::new(1, [number; 10])
    }

    fn application(number: u128) -> ApplicationId {
        ApplicationId::from_uuid(uuid::Uuid::from_u128(number))
    }

    /// Catches: a batch that waits for each long check, and a check that is begun again each time.
    #[tokio::test]
    async fn long_check_is_begun_once_and_its_application_is_passed_over_meanwhile() {
        let mut pending = PendingChecks::default();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let long = || async move {
            let _ = ended.await;
            Ok(Fit::Good)
        };
        let soon = || Instant::now() + Duration::from_millis(10);
        assert!(pending.fit(event(1), application(1), soon(), long).await.is_none());
        let again = || async { panic!("it is begun already") };
        assert!(pending.fit(event(1), application(1), soon(), again).await.is_none());
        let other = || async { Ok(Fit::Unknown) };
        let wait = Instant::now() + Duration::from_secs(60);
        let answer = pending.fit(event(2), application(2), wait, other).await;
        assert!(matches!(answer, Some(Ok(Fit::Unknown))));
        assert_eq!(pending.applications(), [application(1)]);
        end.send(()).unwrap();
        while !pending.applications().is_empty() {
            tokio::task::yield_now().await;
        }
        let again = || async { panic!("it is begun already") };
        let answer = pending.fit(event(1), application(1), soon(), again).await;
        assert!(matches!(answer, Some(Ok(Fit::Good))));
    }

    /// Catches: a set of pending checks without a bound.
    #[tokio::test]
    async fn pending_checks_are_bounded_per_application() {
        let mut pending = PendingChecks::default();
        for number in 0..=u8::try_from(PENDING_PER_APPLICATION_MAX).unwrap() {
            let long = || std::future::pending();
            assert!(
                pending.fit(event(number), application(1), Instant::now(), long).await.is_none()
            );
        }
        assert_eq!(pending.checks.len(), PENDING_PER_APPLICATION_MAX);
        for one in pending.checks.values() {
            one.check.abort();
        }
    }
}
