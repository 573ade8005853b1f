//! Look-ups of API keys in the database. Callers that wait are looked up by one statement together,
//! so that made-up keys cost no statement each.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::oneshot;

use super::ApiError;
use crate::{
    domain::{ApiKeyHash, Principal},
    store::Store,
};

/// Maximum number of keys in one statement.
const BATCH_MAX: usize = 256;
/// Maximum number of requests that wait for a look-up; further ones are refused as busy.
const WAITING_MAX: usize = 4_096;
/// Pause after a statement that found an unknown key: made-up keys cost at most ten statements a
/// second, whatever their number.
const PAUSE: Duration = Duration::from_millis(100);

/// The queue of one kind of key. Cheap to clone.
#[derive(Debug, Clone)]
pub struct KeyLookups {
    queue: Arc<Mutex<Queue>>,
    pause: Duration,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<Waiting>,
    is_running: bool,
}

#[derive(Debug)]
struct Waiting {
    hash: ApiKeyHash,
    answer: oneshot::Sender<Result<Option<Principal>, ApiError>>,
}

impl KeyLookups {
    /// A queue for keys that were valid recently: their look-ups wait for nothing.
    pub fn of_familiar() -> Self {
        Self { queue: Arc::default(), pause: Duration::ZERO }
    }

    /// A queue for all other keys.
    pub fn of_strangers() -> Self {
        Self { queue: Arc::default(), pause: PAUSE }
    }

    /// Looks a key up, together with the others that wait.
    pub async fn principal(
        &self,
        store: &Store,
        hash: ApiKeyHash,
    ) -> Result<Option<Principal>, ApiError> {
        let (answer, answered) = oneshot::channel();
        {
            let mut queue = self.queue();
            if queue.waiting.len() >= WAITING_MAX {
                return Err(ApiError::Busy);
            }
            queue.waiting.push(Waiting { hash, answer });
            if !mem::replace(&mut queue.is_running, true) {
                // A task of its own: the request that begins it may be dropped at any time.
                #[expect(clippy::disallowed_methods, reason = "ends once nobody waits")]
                tokio::spawn(Running(self.clone()).run(store.clone()));
            }
        }
        answered.await.map_err(|_| ApiError::Internal)?
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task that empties a queue. Dropped early (a panic), it lets the next caller begin anew.
struct Running(KeyLookups);

impl Running {
    async fn run(self, store: Store) {
        while let Some(batch) = self.take() {
            let mut hashes: Vec<_> = batch.iter().map(|one| one.hash).collect();
            hashes.sort_unstable_by_key(|hash| *hash.bytes());
            hashes.dedup();
            let found = store.principals_of(&hashes).await.map_err(ApiError::from);
            let (found, due) = match found {
                Ok((found, due)) => (Ok(found), due),
                Err(error) => (Err(error), Vec::new()),
            };
            let has_unknown = found.as_ref().is_ok_and(|found| found.len() < hashes.len());
            for Waiting { hash, answer } in batch {
                let found = found.as_ref().map(|found| found.get(&hash).copied());
                // A caller that hung up needs no answer.
                let _ = answer.send(found.map_err(Clone::clone));
            }
            if !due.is_empty()
                && let Err(error) = store.note_use(&due).await
            {
                tracing::debug!(%error, "the use of keys is not noted");
            }
            if has_unknown && !self.0.pause.is_zero() {
                tokio::time::sleep(self.0.pause).await;
            }
        }
    }

    /// The next batch; `None` ends the task.
    fn take(&self) -> Option<Vec<Waiting>> {
        let mut queue = self.0.queue();
        if queue.waiting.is_empty() {
            queue.is_running = false;
            return None;
        }
        let count = queue.waiting.len().min(BATCH_MAX);
        Some(queue.waiting.drain(..count).collect())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut queue = self.0.queue();
            queue.waiting.clear();
            queue.is_running = false;
        }
    }
}
