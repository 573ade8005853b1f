//! From a submission to its commit, and to whoever sends it.
//!
//! Everything that comes in over HTTP goes through [`Ingest::submit`]: one queue, one batcher, one
//! transaction a batch. The answer is given after the commit. What is published from SQL waits in a
//! table, from which the [`Mover`] takes it. What both do with a submission is in [`Intake`].

mod batch;
mod batcher;
mod catalogue;
mod checks;
mod gather;
pub mod handover;
mod idle;
mod intake;
mod mover;
pub mod routes;
mod snapshot;
mod waiters;

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::Instant,
};

use crate::domain::{EventId, Submission};

pub use batcher::Batcher;
pub use catalogue::{Catalogue, CatalogueError, Fit, told};
pub use checks::CheckError;
pub use gather::gather;
pub use handover::Handover;
pub use idle::{IDLE_AFTER, Idle};
pub use intake::Intake;
pub use mover::Mover;
pub use routes::Routes;
pub use waiters::{Waiter, Waiters};

/// How many submissions may wait for the batcher. Beyond it callers are told to come back later.
pub const WAITING_MAX: usize = 4_096;
/// How many payload bytes may wait for the batcher, in KiB. A payload takes a KiB at least.
pub const WAITING_KIB_MAX: u32 = 128 * 1024;
/// What the requests that bring many submissions may take of both, together: half, so that those
/// who bring one find room beside them.
const MANY_WAITING_MAX: usize = WAITING_MAX / 2;
const MANY_WAITING_KIB_MAX: u32 = WAITING_KIB_MAX / 2;
/// How long a request that brings many submissions waits for room for all of them.
const ROOM_WAIT: Duration = Duration::from_secs(10);
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
    room: Room,
}

/// What a submission takes of the bounds until it is answered.
#[derive(Debug)]
struct Room {
    /// Its share of [`WAITING_KIB_MAX`].
    _bytes: OwnedSemaphorePermit,
    _of_many: Option<RoomOfMany>,
}

/// What one of many takes of [`MANY_WAITING_MAX`] and of [`MANY_WAITING_KIB_MAX`].
#[derive(Debug)]
struct RoomOfMany {
    _place: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
}

/// A submission that was handed in, until when it is waited for.
struct Pending {
    answered: oneshot::Receiver<Result<Accepted, Rejected>>,
    until: Instant,
}

impl Pending {
    async fn answer(self) -> Result<Accepted, Rejected> {
        match tokio::time::timeout_at(self.until, self.answered).await {
            Ok(Ok(result)) => result,
            // The batcher is gone, or the commit takes too long.
            Ok(Err(_)) | Err(_) => Err(Rejected::Unavailable),
        }
    }
}

/// The way in. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ingest {
    waiting: mpsc::Sender<Waiting>,
    rooms: Arc<Semaphore>,
    /// Of [`MANY_WAITING_MAX`] and of [`MANY_WAITING_KIB_MAX`].
    of_many: (Arc<Semaphore>, Arc<Semaphore>),
}

impl Ingest {
    /// Hands a submission to the batcher and waits for its commit. A caller that gives up in
    /// between takes nothing back: the submission may still be kept.
    pub async fn submit(&self, submission: Submission) -> Result<Accepted, Rejected> {
        self.hand_in(submission, None)?.answer().await
    }

    /// Hands in many submissions of one request, in their order, and waits for the commits of all.
    /// Each stands or falls alone. What there is no room for yet waits, for [`ROOM_WAIT`] at most;
    /// those already handed in wait for nothing but their commit, and so make room.
    pub async fn submit_each(
        &self,
        submissions: Vec<Submission>,
    ) -> Vec<Result<Accepted, Rejected>> {
        let pending = self.hand_in_each(submissions, ROOM_WAIT).await;
        let answers = pending.into_iter().map(async |pending| pending?.answer().await);
        futures_util::future::join_all(answers).await
    }

    async fn hand_in_each(
        &self,
        submissions: Vec<Submission>,
        room_wait: Duration,
    ) -> Vec<Result<Pending, Rejected>> {
        let give_up_at = Instant::now() + room_wait;
        let mut pending = Vec::with_capacity(submissions.len());
        for submission in submissions {
            let room = tokio::time::timeout_at(give_up_at, self.room_of_many(&submission)).await;
            let room = room.map_err(|_| Rejected::Busy);
            pending.push(room.and_then(|room| self.hand_in(submission, Some(room))));
        }
        pending
    }

    fn hand_in(
        &self,
        submission: Submission,
        of_many: Option<RoomOfMany>,
    ) -> Result<Pending, Rejected> {
        let kib = kib_of(&submission).min(WAITING_KIB_MAX);
        let bytes = self.rooms.clone().try_acquire_many_owned(kib).map_err(|_| Rejected::Busy)?;
        let room = Room { _bytes: bytes, _of_many: of_many };
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting { submission, answer, room };
        self.waiting.try_send(waiting).map_err(|_| Rejected::Busy)?;
        Ok(Pending { answered, until: Instant::now() + COMMIT_WAIT })
    }

    async fn room_of_many(&self, submission: &Submission) -> RoomOfMany {
        let (places, kibs) = (self.of_many.0.clone(), self.of_many.1.clone());
        let kib = kib_of(submission).min(MANY_WAITING_KIB_MAX);
        let open = "these semaphores are never closed";
        let place = places.acquire_owned().await.expect(open);
        let bytes = kibs.acquire_many_owned(kib).await.expect(open);
        RoomOfMany { _place: place, _bytes: bytes }
    }
}

fn kib_of(submission: &Submission) -> u32 {
    u32::try_from(submission.held_bytes() / 1024 + 1).unwrap_or(u32::MAX)
}

/// Makes the way in and the end that the batcher reads.
fn channel() -> (Ingest, mpsc::Receiver<Waiting>) {
    let (waiting, receiver) = mpsc::channel(WAITING_MAX);
    let semaphore = |permits| Arc::new(Semaphore::new(permits));
    let rooms = semaphore(WAITING_KIB_MAX as usize);
    let of_many = (semaphore(MANY_WAITING_MAX), semaphore(MANY_WAITING_KIB_MAX as usize));
    (Ingest { waiting, rooms, of_many }, receiver)
}

#[cfg(test)]
mod tests {
    use futures_util::poll;

    use super::*;
    use crate::domain::{Payload, event::Route, ids::DEFAULT_APPLICATION};

    fn submission(bytes: usize) -> Submission {
        Submission {
            application: DEFAULT_APPLICATION,
            event_type: None,
            payload: Payload::from_json((" ".repeat(bytes - 1) + "1").into()).unwrap(),
            route: Route::Subscriptions,
            subject: None,
            metadata: None,
            idempotency_key: None,
            upstream: crate::domain::Upstream::default(),
        }
    }

    fn answer_all(receiver: &mut mpsc::Receiver<Waiting>) -> usize {
        let answer = Ok(Accepted { event_id: EventId::new(1, [1; 10]) });
        let waiting = std::iter::from_fn(|| receiver.try_recv().ok());
        waiting.map(|waiting| waiting.answer.send(answer).unwrap()).count()
    }

    /// Whatever they bring, one who brings a single submission finds room beside them.
    #[tokio::test]
    async fn many_wait_for_room_and_leave_some_for_others() {
        let mib = 1024 * 1024;
        // The bound on submissions, and the one on bytes: 64 MiB, a KiB more for each.
        for (count, bytes, at_a_time) in [(5_000, 1, MANY_WAITING_MAX), (200, mib, 63)] {
            let (ingest, mut receiver) = channel();
            let all = (0..count).map(|_| submission(bytes)).collect();
            let serve = async {
                let mut answered = 0;
                while answered < count {
                    let expected = at_a_time.min(count - answered);
                    while receiver.len() < expected {
                        tokio::task::yield_now().await;
                    }
                    // What came too soon would come now.
                    tokio::task::yield_now().await;
                    let mut single = std::pin::pin!(ingest.submit(submission(mib)));
                    assert!(poll!(&mut single).is_pending(), "it waits for its commit");
                    assert_eq!(answer_all(&mut receiver), expected + 1);
                    answered += expected;
                    single.await.unwrap();
                }
            };
            let (answers, ()) = futures_util::future::join(ingest.submit_each(all), serve).await;
            assert_eq!((answers.len(), answers.iter().all(Result::is_ok)), (count, true));
        }
    }

    #[tokio::test]
    async fn what_finds_no_room_in_time_is_refused_alone() {
        let (ingest, mut receiver) = channel();
        let all = (0..MANY_WAITING_MAX + 2).map(|_| submission(1)).collect();
        let pending = ingest.hand_in_each(all, Duration::ZERO).await;
        assert_eq!(answer_all(&mut receiver), MANY_WAITING_MAX);
        let (in_time, late) = pending.split_at(MANY_WAITING_MAX);
        assert!(in_time.iter().all(Result::is_ok));
        assert!(late.iter().all(|late| matches!(late, Err(Rejected::Busy))) && late.len() == 2);
    }
}
