//! What all requests may hold together: places, bytes of bodies, and bytes of answers. What finds no
//! room is refused at once; nothing waits for room.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ApiError;
use crate::telemetry::Refusal;

/// How many requests about the process itself (probes, metrics) are served at a time, beside all
/// others.
const OF_THE_PROCESS_MAX: usize = 64;
/// So much of each body takes nothing of the room: events are small, and must not be refused because
/// of large ones. All together it is bounded by the requests that there may be.
const BODY_FREE_BYTES: usize = 16 * 1024;
/// How many bytes of answers that are not taken yet may be in memory, in KiB.
const ANSWERS_KIB_MAX: usize = 256 * 1024;
/// So much of each answer takes nothing of that.
const ANSWER_FREE_BYTES: usize = 64 * 1024;

/// What there is enough of already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Bound {
    /// Connections in all.
    #[error("too many connections are open (CONNECTIONS_MAX)")]
    Connections,
    /// Connections of one client.
    #[error("too many connections of this client are open (CLIENT_CONNECTIONS_MAX)")]
    ClientConnections,
    /// Requests under way.
    #[error("too many requests are under way (REQUESTS_MAX)")]
    Requests,
    /// Bytes of bodies.
    #[error("too many bytes of bodies are in memory (REQUEST_BODIES_MAX)")]
    Bodies,
    /// Bytes of answers.
    #[error("too many bytes of answers wait to be taken")]
    Answers,
    /// Checks of payloads and schemas that wait.
    #[error("too many payloads and schemas of this application wait to be checked")]
    Checks,
    /// Time of a check.
    #[error("checking by the schema took too long: shorten the payload or simplify the schema")]
    CheckTime,
}

impl Bound {
    /// What it is counted as.
    pub fn refusal(self) -> Refusal {
        match self {
            Self::Connections => Refusal::Connections,
            Self::ClientConnections => Refusal::ClientConnections,
            Self::Requests => Refusal::Requests,
            Self::Bodies => Refusal::Bodies,
            Self::Answers => Refusal::Answers,
            Self::Checks | Self::CheckTime => Refusal::Checks,
        }
    }
}

/// The room. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Room(Arc<Bounds>);

#[derive(Debug)]
struct Bounds {
    requests: Arc<Semaphore>,
    of_the_process: Arc<Semaphore>,
    bodies_kib: Arc<Semaphore>,
    answers_kib: Arc<Semaphore>,
}

/// What one request holds, until its answer is taken. Clones share it.
#[derive(Debug, Clone)]
pub struct Hold(Arc<Held>);

#[derive(Debug)]
struct Held {
    room: Room,
    _place: OwnedSemaphorePermit,
    bytes: Mutex<Bytes>,
}

#[derive(Debug, Default)]
struct Bytes {
    body: Option<OwnedSemaphorePermit>,
    answer: Option<OwnedSemaphorePermit>,
}

impl Room {
    /// Room for so many requests, whose bodies come to so many bytes.
    pub fn new(requests_max: usize, bodies_bytes_max: usize) -> Self {
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        Self(Arc::new(Bounds {
            requests: semaphore(requests_max),
            of_the_process: semaphore(OF_THE_PROCESS_MAX),
            bodies_kib: semaphore(bodies_bytes_max / 1024),
            answers_kib: semaphore(ANSWERS_KIB_MAX),
        }))
    }

    /// Takes a place for a request of which nothing but the head has come.
    pub fn enter(&self, is_of_the_process: bool) -> Result<Hold, ApiError> {
        let Bounds { requests, of_the_process, .. } = &*self.0;
        let places = if is_of_the_process { of_the_process } else { requests };
        let place = places.clone().try_acquire_owned();
        let place = place.map_err(|_| ApiError::Overloaded(Bound::Requests))?;
        Ok(Hold(Arc::new(Held { room: self.clone(), _place: place, bytes: Mutex::default() })))
    }
}

impl Hold {
    fn bytes(&self) -> MutexGuard<'_, Bytes> {
        self.0.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a body of so many bytes has a chance: asked before any of it is read.
    pub fn could_grow_to(&self, bytes: usize) -> Result<(), ApiError> {
        let kib = beyond(bytes, BODY_FREE_BYTES);
        if kib <= self.0.room.0.bodies_kib.available_permits() {
            Ok(())
        } else {
            Err(ApiError::Overloaded(Bound::Bodies))
        }
    }

    /// Takes the room for what has come of the body: so who dawdles holds no more than that.
    pub fn grow_to(&self, bytes: usize) -> Result<(), ApiError> {
        let kib = beyond(bytes, BODY_FREE_BYTES);
        take(&self.0.room.0.bodies_kib, &mut self.bytes().body, kib)
            .ok_or(ApiError::Overloaded(Bound::Bodies))
    }

    /// Takes the room for an answer, until its client has taken it.
    pub fn answer(&self, bytes: usize) -> Result<(), ApiError> {
        let kib = beyond(bytes, ANSWER_FREE_BYTES);
        take(&self.0.room.0.answers_kib, &mut self.bytes().answer, kib)
            .ok_or(ApiError::Overloaded(Bound::Answers))
    }
}

/// What is beyond the free part, in KiB.
fn beyond(bytes: usize, free: usize) -> usize {
    bytes.saturating_sub(free).div_ceil(1024)
}

/// Takes more until it is `kib`.
fn take(room: &Arc<Semaphore>, taken: &mut Option<OwnedSemaphorePermit>, kib: usize) -> Option<()> {
    let more = kib.saturating_sub(taken.as_ref().map_or(0, OwnedSemaphorePermit::num_permits));
    if more == 0 {
        return Some(());
    }
    let more = room.clone().try_acquire_many_owned(u32::try_from(more).ok()?).ok()?;
    match taken {
        Some(taken) => taken.merge(more),
        None => *taken = Some(more),
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1024;

    #[test]
    fn so_many_requests_have_a_place_and_probes_beside_them() {
        let room = Room::new(2, KIB);
        let held = [room.enter(false).unwrap(), room.enter(false).unwrap()];
        assert_eq!(room.enter(false).unwrap_err(), ApiError::Overloaded(Bound::Requests));
        let probes: Vec<_> = (0..OF_THE_PROCESS_MAX).map(|_| room.enter(true).unwrap()).collect();
        assert!(room.enter(true).is_err());
        drop((held, probes));
        room.enter(false).unwrap();
        room.enter(true).unwrap();
    }

    #[test]
    fn bodies_share_one_room_and_small_ones_take_none() {
        let full = Err(ApiError::Overloaded(Bound::Bodies));
        let room = Room::new(9, 100 * KIB);
        let [one, other] = [room.enter(false).unwrap(), room.enter(false).unwrap()];
        one.grow_to(BODY_FREE_BYTES + 60 * KIB).unwrap();
        one.grow_to(BODY_FREE_BYTES + 61 * KIB).unwrap();
        other.grow_to(BODY_FREE_BYTES).unwrap();
        assert_eq!(other.could_grow_to(BODY_FREE_BYTES + 39 * KIB + 1), full);
        assert_eq!(other.grow_to(BODY_FREE_BYTES + 39 * KIB + 1), full);
        other.could_grow_to(BODY_FREE_BYTES + 39 * KIB).unwrap();
        other.grow_to(BODY_FREE_BYTES + 39 * KIB).unwrap();
        let copy = one.clone();
        drop(one);
        assert_eq!(other.grow_to(BODY_FREE_BYTES + 40 * KIB), full, "a clone holds it");
        drop(copy);
        other.grow_to(BODY_FREE_BYTES + 100 * KIB).unwrap();
    }

    #[test]
    fn answers_share_one_room() {
        let room = Room::new(9, KIB);
        let [one, other] = [room.enter(false).unwrap(), room.enter(false).unwrap()];
        one.answer(ANSWERS_KIB_MAX * KIB + ANSWER_FREE_BYTES).unwrap();
        other.answer(ANSWER_FREE_BYTES).unwrap();
        assert_eq!(other.answer(ANSWER_FREE_BYTES + 1), Err(ApiError::Overloaded(Bound::Answers)));
        drop(one);
        other.answer(ANSWER_FREE_BYTES + 1).unwrap();
    }
}
