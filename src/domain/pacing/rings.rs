//! Whose turn it is: the applications take turns, and within each its lanes.

use std::collections::{HashMap, VecDeque};

use super::lane::Class;
use crate::domain::{ApplicationId, LaneId};

/// How many applications one look passes over that may not have more at present. The next look goes
/// on behind them.
const PASSED_OVER_MAX: usize = 64;

/// A turn in a ring. A lane that loses its turn, or gets another one, makes the old one void.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    class: Class,
    number: u32,
}

/// Lanes of a class that wait for something.
#[derive(Debug)]
pub struct Ring {
    class: Class,
    applications: VecDeque<ApplicationId>,
    lanes: HashMap<ApplicationId, VecDeque<(LaneId, Turn)>>,
    next: u32,
    len: usize,
}

impl Ring {
    pub fn of(class: Class) -> Self {
        Self { class, applications: VecDeque::new(), lanes: HashMap::new(), next: 0, len: 0 }
    }

    /// How many wait, those counted whose turn is void.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Puts a lane last among those of its application.
    pub fn push(&mut self, application: ApplicationId, lane: LaneId) -> Turn {
        let turn = Turn { class: self.class, number: self.next };
        self.next = self.next.wrapping_add(1);
        let lanes = self.lanes.entry(application).or_default();
        if lanes.is_empty() {
            self.applications.push_back(application);
        }
        lanes.push_back((lane, turn));
        self.len += 1;
        turn
    }

    /// Takes the next lane of the next application that may have more.
    pub fn pop(&mut self, may_have: impl Fn(ApplicationId) -> bool) -> Option<(LaneId, Turn)> {
        for _ in 0..self.applications.len().min(PASSED_OVER_MAX) {
            let application = self.applications.pop_front()?;
            if !may_have(application) {
                self.applications.push_back(application);
                continue;
            }
            let lanes = self.lanes.get_mut(&application)?;
            let next = lanes.pop_front();
            if lanes.is_empty() {
                self.lanes.remove(&application);
            } else {
                self.applications.push_back(application);
            }
            self.len -= usize::from(next.is_some());
            return next;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn lane(n: u128) -> LaneId {
        LaneId::from_uuid(Uuid::from_u128(n))
    }

    #[test]
    fn applications_take_turns_and_then_their_lanes() {
        let mut ring = Ring::of(Class::Proven);
        let [one, two, three] = [1, 2, 3].map(|n| ApplicationId::from_uuid(Uuid::from_u128(n)));
        for (application, n) in [(one, 1), (one, 2), (one, 3), (two, 4), (three, 5), (three, 6)] {
            ring.push(application, lane(n));
        }
        let mut next = |allowed: &dyn Fn(ApplicationId) -> bool| ring.pop(allowed).map(|it| it.0);
        assert_eq!(next(&|_| true), Some(lane(1)));
        assert_eq!(next(&|it| it == three), Some(lane(5)));
        // Those that were passed over are behind now: of `one` the turn was spent before.
        let rest: Vec<_> = std::iter::from_fn(|| next(&|_| true)).collect();
        assert_eq!(rest, [2, 4, 6, 3].map(lane));
        assert!(ring.is_empty() && ring.applications.is_empty() && ring.lanes.is_empty());
    }
}
