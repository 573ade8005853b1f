//! From a submission to its commit, and to whoever sends it.
//!
//! Everything that comes in, by whatever way, goes through [`Ingest::submit`]: one queue, one
//! batcher, one transaction a batch. The answer is given after the commit.

mod batch;
mod batcher;
mod gather;
pub mod handover;
mod routes;

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::domain::{EventId, Submission};

pub use batcher::Batcher;
pub use gather::gather;
pub use handover::Handover;

/// How many submissions may wait for the batcher. Beyond it callers are told to come back later.
pub const WAITING_MAX: usize = 4_096;
/// How many payload bytes may wait for the batcher, in KiB. A payload takes a KiB at least.
pub const WAITING_KIB_MAX: u32 = 128 * 1024;
/// How long a caller waits for its commit, before it is told that the outcome is unknown.
pub const COMMIT_WAIT: Duration = Duration::from_secs(20);

/// A submission that was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// The event's id: of this submission, or of the one that its idempotency key stands for.
    pub event_id: EventId,
}

/// Why a submission was not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// [`WAITING_MAX`] submissions wait already, or the service is stopping.
    #[error("too many submissions are waiting")]
    Busy,
    /// Postgres is away. Nothing is known to be stored.
    #[error("the database cannot be reached")]
    Unavailable,
    /// The idempotency key was used for another submission.
    #[error("the idempotency key was used for another submission")]
    KeyReused,
    /// The application does not exist.
    #[error("there is no such application")]
    NoApplication,
    /// The database refused this submission, alone in its batch.
    #[error("the database refused the submission")]
    Refused,
}

/// A submission and whom to tell.
#[derive(Debug)]
struct Waiting {
    submission: Submission,
    answer: oneshot::Sender<Result<Accepted, Rejected>>,
    /// Its share of [`WAITING_KIB_MAX`].
    room: OwnedSemaphorePermit,
}

/// The way in. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ingest {
    waiting: mpsc::Sender<Waiting>,
    rooms: Arc<Semaphore>,
}

impl Ingest {
    /// Hands a submission to the batcher and waits for its commit. A caller that gives up in
    /// between takes nothing back: the submission may still be kept.
    pub async fn submit(&self, submission: Submission) -> Result<Accepted, Rejected> {
        let (answer, answered) = oneshot::channel();
        let kib = u32::try_from(submission.payload.bytes().len() / 1024 + 1);
        let kib = kib.unwrap_or(u32::MAX).min(WAITING_KIB_MAX);
        let room = self.rooms.clone().try_acquire_many_owned(kib).map_err(|_| Rejected::Busy)?;
        let waiting = Waiting { submission, answer, room };
        self.waiting.try_send(waiting).map_err(|_| Rejected::Busy)?;
        match tokio::time::timeout(COMMIT_WAIT, answered).await {
            Ok(Ok(result)) => result,
            // The batcher is gone, or the commit takes too long.
            Ok(Err(_)) | Err(_) => Err(Rejected::Unavailable),
        }
    }
}

/// Makes the way in and the end that the batcher reads.
fn channel() -> (Ingest, mpsc::Receiver<Waiting>) {
    let (waiting, receiver) = mpsc::channel(WAITING_MAX);
    let rooms = Arc::new(Semaphore::new(WAITING_KIB_MAX as usize));
    (Ingest { waiting, rooms }, receiver)
}
