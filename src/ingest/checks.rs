//! Threads for work that tenants can make expensive: compiling schemas and checking payloads.
//!
//! Such work cannot be interrupted, so it never runs on threads that serve requests. Applications take
//! turns, each has one check under way at a time, and callers wait for a bounded time. A check whose
//! caller is gone is skipped.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::oneshot;

use crate::domain::ApplicationId;

/// Number of threads, and so of applications with a check under way.
const THREADS: usize = 2;
/// Maximum number of checks of one application that wait.
const WAITING_PER_APPLICATION_MAX: usize = 1_024;
/// Maximum number of checks that wait.
const WAITING_MAX: usize = 8_192;
/// Maximum time that a caller waits for its check, queueing included.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// Reason for a check without a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// [`WAITING_PER_APPLICATION_MAX`] or [`WAITING_MAX`] is reached.
    #[error("too many checks of payloads and schemas are waiting")]
    Busy,
    /// It took longer than [`CHECK_TIMEOUT`].
    #[error("checking by the schema took too long")]
    TimedOut,
    /// It panicked.
    #[error("the check failed")]
    Failed,
}

type Job = Box<dyn FnOnce() + Send>;

/// The pool. Cheap to clone; its threads end with the last clone.
#[derive(Clone)]
pub struct Checks(Arc<Owner>);

/// Ends the threads when it is dropped.
struct Owner(Arc<Shared>);

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: HashMap<ApplicationId, VecDeque<Job>>,
    /// Applications that have waiting checks and none under way, in turn.
    turns: VecDeque<ApplicationId>,
    under_way: HashSet<ApplicationId>,
    count: usize,
    is_closed: bool,
}

impl Default for Checks {
    fn default() -> Self {
        Self::with_threads(THREADS)
    }
}

impl Checks {
    fn with_threads(threads: usize) -> Self {
        let shared = Arc::new(Shared::default());
        for _ in 0..threads {
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name("check".to_owned());
            thread.spawn(move || shared.work()).expect("a thread of the process's own can start");
        }
        Self(Arc::new(Owner(shared)))
    }

    /// Runs work of an application on these threads, in its turn.
    pub async fn run<T: Send + 'static>(
        &self,
        application: ApplicationId,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, CheckError> {
        let (answer, answered) = oneshot::channel();
        let job = Box::new(move || {
            if !answer.is_closed() {
                // A panic drops the sender, and is logged by its hook.
                if let Ok(result) = catch_unwind(AssertUnwindSafe(work)) {
                    let _ = answer.send(result);
                }
            }
        });
        self.0.0.push(application, job)?;
        match tokio::time::timeout(CHECK_TIMEOUT, answered).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(_)) => Err(CheckError::Failed),
            Err(_) => Err(CheckError::TimedOut),
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.queue().is_closed = true;
        self.0.wake.notify_all();
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, application: ApplicationId, job: Job) -> Result<(), CheckError> {
        let mut queue = self.queue();
        if queue.count >= WAITING_MAX {
            return Err(CheckError::Busy);
        }
        let waiting = queue.waiting.entry(application).or_default();
        if waiting.len() >= WAITING_PER_APPLICATION_MAX {
            return Err(CheckError::Busy);
        }
        waiting.push_back(job);
        let is_first = waiting.len() == 1;
        queue.count += 1;
        if is_first && !queue.under_way.contains(&application) {
            queue.turns.push_back(application);
        }
        drop(queue);
        self.wake.notify_one();
        Ok(())
    }

    /// Works until the pool is closed.
    fn work(&self) {
        let mut queue = self.queue();
        loop {
            if queue.is_closed {
                return;
            }
            let Some((application, job)) = queue.next() else {
                queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(queue);
            job();
            queue = self.queue();
            queue.done(application);
        }
    }
}

impl Queue {
    fn next(&mut self) -> Option<(ApplicationId, Job)> {
        let application = self.turns.pop_front()?;
        let waiting = self.waiting.get_mut(&application)?;
        let job = waiting.pop_front()?;
        if waiting.is_empty() {
            self.waiting.remove(&application);
        }
        self.under_way.insert(application);
        self.count -= 1;
        Some((application, job))
    }

    fn done(&mut self, application: ApplicationId) {
        self.under_way.remove(&application);
        if self.waiting.contains_key(&application) {
            self.turns.push_back(application);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures_util::{future::join_all, poll};

    use super::*;

    fn application(number: u128) -> ApplicationId {
        ApplicationId::from_uuid(uuid::Uuid::from_u128(number))
    }

    /// A check that ends when the sender is used or dropped, and tells when it begins.
    fn held() -> (impl FnOnce() + Send, mpsc::Receiver<()>, mpsc::Sender<()>) {
        let (begun, has_begun) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let work = move || {
            let _ = begun.send(());
            let _ = ended.recv();
        };
        (work, has_begun, end)
    }

    /// Catches: a pool of which one application takes every thread.
    #[tokio::test]
    async fn application_with_many_checks_leaves_a_thread_to_others() {
        let checks = Checks::default();
        let (work, has_begun, end) = held();
        let mut heavy = vec![Box::pin(checks.run(application(1), work))];
        let (second, second_begun, second_end) = held();
        heavy.push(Box::pin(checks.run(application(1), second)));
        for one in &mut heavy {
            assert!(poll!(one).is_pending());
        }
        has_begun.recv().unwrap();
        let others = (2..50).map(|number| checks.run(application(number), move || number));
        let answers = join_all(others).await;
        assert!(answers.into_iter().eq((2..50).map(Ok)));
        assert!(second_begun.try_recv().is_err(), "one at a time");
        drop((end, second_end));
        assert_eq!(join_all(heavy).await, [Ok(()), Ok(())]);
    }

    /// Catches: a queue without a bound, and one whose room a single application takes.
    #[tokio::test]
    async fn waiting_checks_are_bounded_per_application() {
        let checks = Checks::with_threads(1);
        let (work, has_begun, end) = held();
        let mut first = Box::pin(checks.run(application(1), work));
        assert!(poll!(&mut first).is_pending());
        has_begun.recv().unwrap();
        let mut waiting = Vec::new();
        for _ in 0..WAITING_PER_APPLICATION_MAX {
            let mut one = Box::pin(checks.run(application(1), || ()));
            assert!(poll!(&mut one).is_pending());
            waiting.push(one);
        }
        assert_eq!(checks.run(application(1), || ()).await, Err(CheckError::Busy));
        let mut other = Box::pin(checks.run(application(2), || 7));
        assert!(poll!(&mut other).is_pending());
        drop(end);
        assert_eq!(other.await, Ok(7));
        first.await.unwrap();
        assert!(join_all(waiting).await.iter().all(Result::is_ok));
    }

    /// Catches: checks that run although nobody waits for them, and a thread that a panic ends.
    #[tokio::test]
    async fn check_without_a_caller_is_skipped_and_a_panic_is_an_error() {
        let checks = Checks::with_threads(1);
        let (work, has_begun, end) = held();
        let mut first = Box::pin(checks.run(application(1), work));
        assert!(poll!(&mut first).is_pending());
        has_begun.recv().unwrap();
        let (ran, has_run) = mpsc::channel();
        let mut cancelled = Box::pin(checks.run(application(2), move || ran.send(())));
        assert!(poll!(&mut cancelled).is_pending());
        drop((cancelled, end));
        first.await.unwrap();
        let failed: Result<(), _> = checks.run(application(1), || panic!("of a test")).await;
        assert_eq!(failed, Err(CheckError::Failed));
        assert_eq!(checks.run(application(2), || 1).await, Ok(1));
        assert!(has_run.try_recv().is_err());
    }
}
