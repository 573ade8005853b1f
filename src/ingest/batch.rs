//! What a batch is made of, within which bounds, and what each of its submissions is answered.
//! No I/O: the batcher does that.

use std::collections::{HashMap, VecDeque, hash_map::Entry};

use super::{Accepted, Rejected, Waiting};
use crate::{
    domain::{ApplicationId, EventId, IdempotencyKey, Submission, routing::Destination},
    store::events::Stored,
};

/// How many submissions one batch takes.
pub const SUBMISSIONS_MAX: usize = 512;
/// How many deliveries one batch makes. A submission that makes more goes alone.
pub const DELIVERIES_MAX: usize = 5_000;
/// How many payload bytes one batch writes. A submission that has more goes alone.
pub const PAYLOAD_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Where a submission goes, and the version of its application that says so.
#[derive(Debug, Clone)]
pub struct Routed {
    /// The version.
    pub version: i64,
    /// Where it goes.
    pub destinations: Vec<Destination>,
}

/// What one submission is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It is kept as this event.
    Yes(EventId),
    /// Its key stands for another submission.
    KeyReused {
        /// The other submission's fingerprint.
        fingerprint: [u8; 32],
        /// The other submission's event.
        event_id: EventId,
    },
    /// It is not kept.
    No(Rejected),
}

impl Answer {
    /// The answer for an event of this id, after the database's word.
    pub fn of(event_id: EventId, stored: Stored) -> Self {
        match stored {
            Stored::New => Self::Yes(event_id),
            Stored::Repeat(event_id) => Self::Yes(event_id),
            Stored::KeyReused { fingerprint, event_id } => {
                Self::KeyReused { fingerprint, event_id }
            }
        }
    }
}

impl From<Answer> for Result<Accepted, Rejected> {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Yes(event_id) => Ok(Accepted { event_id }),
            Answer::KeyReused { .. } => Err(Rejected::KeyReused),
            Answer::No(rejected) => Err(rejected),
        }
    }
}

/// Takes the next batch off the front, within the bounds. A submission beyond them goes alone.
pub fn cut(backlog: &mut VecDeque<Waiting>) -> Vec<Waiting> {
    let mut bytes = 0;
    let mut count = 0;
    for waiting in backlog.iter().take(SUBMISSIONS_MAX) {
        bytes += waiting.submission.held_bytes();
        if count > 0 && bytes > PAYLOAD_BYTES_MAX {
            break;
        }
        count += 1;
    }
    backlog.drain(..count).collect()
}

/// Splits what is to be stored so that no group makes more than [`DELIVERIES_MAX`] deliveries, but
/// for a submission that does so alone.
pub fn groups(indexes: &[usize], routed: &[Option<Routed>]) -> Vec<Vec<usize>> {
    let mut groups = vec![Vec::with_capacity(indexes.len())];
    let mut deliveries = 0;
    for &index in indexes {
        let count = routed[index].as_ref().map_or(0, |routed| routed.destinations.len());
        let group = groups.last_mut().expect("there is always a group");
        if !group.is_empty() && deliveries + count > DELIVERIES_MAX {
            groups.push(vec![index]);
            deliveries = count;
        } else {
            group.push(index);
            deliveries += count;
        }
    }
    groups
}

/// The applications of some submissions, each once.
pub fn applications_of(submissions: &[Submission], indexes: &[usize]) -> Vec<ApplicationId> {
    let mut applications: Vec<_> =
        indexes.iter().map(|&index| submissions[index].application).collect();
    applications.sort_unstable();
    applications.dedup();
    applications
}

/// Separates submissions whose key an earlier one of the same batch carries: that one leads, and
/// what becomes of it decides about them. A statement can take each key only once.
pub fn split_repeats(submissions: &[Submission]) -> (Vec<usize>, Vec<(usize, usize)>) {
    let mut first: HashMap<(ApplicationId, &IdempotencyKey), usize> = HashMap::new();
    let mut leaders = Vec::with_capacity(submissions.len());
    let mut followers = Vec::new();
    for (index, submission) in submissions.iter().enumerate() {
        let Some(key) = &submission.idempotency_key else {
            leaders.push(index);
            continue;
        };
        match first.entry((submission.application, key)) {
            Entry::Occupied(leader) => followers.push((index, *leader.get())),
            Entry::Vacant(vacant) => {
                vacant.insert(index);
                leaders.push(index);
            }
        }
    }
    (leaders, followers)
}

/// Completes the answers: a follower of the same body gets its leader's, and one of another body
/// what the key stands for now, which may be neither its nor its leader's.
pub fn answer_repeats(
    submissions: &[Submission],
    followers: &[(usize, usize)],
    answers: Vec<Option<Answer>>,
) -> Vec<Answer> {
    let unknown = Answer::No(Rejected::Unavailable);
    let mut answers: Vec<Answer> =
        answers.into_iter().map(|answer| answer.unwrap_or(unknown)).collect();
    for &(follower, leader) in followers {
        let (own, of_leader) =
            (submissions[follower].fingerprint(), submissions[leader].fingerprint());
        answers[follower] = match answers[leader] {
            answer if own == of_leader => answer,
            Answer::KeyReused { fingerprint, event_id } if own == fingerprint => {
                Answer::Yes(event_id)
            }
            Answer::Yes(event_id) => Answer::KeyReused { fingerprint: of_leader, event_id },
            answer => answer,
        };
    }
    answers
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::{Semaphore, oneshot};

    use super::{super::Room, *};
    use crate::domain::{Payload, TargetUrl, event::Route, ids::DEFAULT_APPLICATION};

    fn submission(payload: String, key: Option<&str>) -> Submission {
        Submission {
            application: DEFAULT_APPLICATION,
            event_type: None,
            payload: Payload::from_json(payload.into()).unwrap(),
            route: Route::Subscriptions,
            subject: None,
            metadata: None,
            idempotency_key: key.map(|key| IdempotencyKey::parse(key).unwrap()),
            upstream: crate::domain::Upstream::default(),
        }
    }

    fn waiting(bytes: usize) -> Waiting {
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let room = Room { _bytes: permit, _of_many: None };
        let (answer, _) = oneshot::channel();
        let submission = submission(" ".repeat(bytes - 1) + "1", None);
        Waiting { submission, answer, room }
    }

    #[test]
    fn a_batch_is_cut_at_its_bounds() {
        let mut backlog: VecDeque<_> = (0..600).map(|_| waiting(1)).collect();
        assert_eq!(cut(&mut backlog).len(), SUBMISSIONS_MAX);
        assert_eq!(cut(&mut backlog).len(), 600 - SUBMISSIONS_MAX);
        assert!(cut(&mut backlog).is_empty());
        let mib = 1024 * 1024;
        let mut backlog: VecDeque<_> = [3, 5, 1, 9, 9, 1].map(|n| waiting(n * mib)).into();
        let next = || Some(cut(&mut backlog).len()).filter(|&n| n > 0);
        let sizes: Vec<_> = std::iter::from_fn(next).collect();
        assert_eq!(sizes, [2, 1, 1, 1, 1], "8 MiB together, or one that is larger");
    }

    #[test]
    fn a_group_makes_so_many_deliveries_or_is_one_submission() {
        let target = TargetUrl::parse("http://a/").unwrap();
        let lane = target.lane(DEFAULT_APPLICATION);
        let routed = [3_000, 2_000, 1, 9_000, 0].map(|count| {
            let destination = Destination {
                lane,
                subscription: None,
                target: target.clone(),
                is_parked: false,
                settings: None,
                limit: None,
            };
            Some(Routed { version: 1, destinations: vec![destination; count] })
        });
        assert_eq!(groups(&[0, 1, 2, 3, 4], &routed), [vec![0, 1], vec![2], vec![3], vec![4]]);
    }

    #[test]
    fn repeats_are_answered_by_what_the_key_stands_for() {
        let submissions: Vec<_> =
            [("1", None), ("2", Some("k")), ("2", Some("k")), ("3", Some("k"))]
                .map(|(payload, key)| submission(payload.to_owned(), key))
                .into();
        let (leaders, followers) = split_repeats(&submissions);
        assert_eq!((leaders, &followers), (vec![0, 1], &vec![(2, 1), (3, 1)]));
        let event_id = EventId::new(1, [1; 10]);
        let complete = |of_leader| {
            let answers = vec![Some(Answer::Yes(event_id)), Some(of_leader), None, None];
            answer_repeats(&submissions, &followers, answers)[2..].to_vec()
        };
        let reused =
            |n: usize| Answer::KeyReused { fingerprint: submissions[n].fingerprint(), event_id };
        // The leader is new: the other body is refused.
        assert_eq!(complete(Answer::Yes(event_id)), [Answer::Yes(event_id), reused(1)]);
        // The key stood for the third body already: its repeat is the first answer again.
        assert_eq!(complete(reused(3)), [reused(3), Answer::Yes(event_id)]);
        // It stood for quite another.
        assert_eq!(complete(reused(0)), [reused(0), reused(0)]);
        let no = Answer::No(Rejected::Unavailable);
        assert_eq!(complete(no), [no, no]);
    }
}
