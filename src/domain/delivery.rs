//! The states of a delivery, which moves lead from one to another, and how they sum up to the
//! status of an event.

/// Where a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeliveryState {
    /// Due now, or at `next_attempt_at`.
    Pending,
    /// Claimed by a process.
    InFlight,
    /// Its subscription is disabled; pending again when that ends.
    Parked,
    /// A receiver said 2xx.
    Delivered,
    /// Given up.
    Dead,
    /// An operator ended it.
    Cancelled,
}

impl DeliveryState {
    /// Every state.
    pub const ALL: [Self; 6] =
        [Self::Pending, Self::InFlight, Self::Parked, Self::Delivered, Self::Dead, Self::Cancelled];

    /// The name in JSON, SQL, metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::InFlight => "in_flight",
            Self::Parked => "parked",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
        }
    }

    /// Reads a name as it is stored.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }

    /// Whether the delivery has ended: it has left the queue for the history.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Delivered | Self::Dead | Self::Cancelled)
    }

    /// Whether a delivery may go from this state to another, but for those that had ended and are
    /// sent again by hand (see [`Run`]).
    pub const fn may_become(self, next: Self) -> bool {
        use DeliveryState::{Cancelled, Dead, Delivered, InFlight, Parked, Pending};
        matches!(
            (self, next),
            (Pending, InFlight | Parked | Cancelled | Dead)
                | (InFlight, Pending | Delivered | Dead | Parked)
                | (Parked, Pending | Cancelled | Dead)
        )
    }
}

/// Why a delivery is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Run {
    /// It is due by its schedule.
    Schedule,
    /// It was pending, and somebody wants it sent at once. If that fails, its schedule and the count
    /// that its policy goes by are as if nothing had been.
    Retry,
    /// It had ended, and somebody wants one more attempt. If that fails, its state is what it was.
    Once,
    /// It had ended, and is sent again as its policy says. If that ends in failure, its state is
    /// what it was.
    Replay,
}

impl Run {
    /// The name in JSON and in SQL, where the schedule's is null.
    pub const fn as_str(self) -> Option<&'static str> {
        match self {
            Self::Schedule => None,
            Self::Retry => Some("retry"),
            Self::Once => Some("once"),
            Self::Replay => Some("replay"),
        }
    }

    /// Reads a name as it is stored.
    pub fn from_name(name: Option<&str>) -> Option<Self> {
        [Self::Schedule, Self::Retry, Self::Once, Self::Replay]
            .into_iter()
            .find(|run| run.as_str() == name)
    }
}

/// What an event's deliveries come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventStatus {
    /// At least one delivery can still change.
    Pending,
    /// All are delivered, cancelled ones left out.
    Delivered,
    /// None can change any more, and one or more died.
    Dead,
    /// All were cancelled.
    Cancelled,
    /// It reached nobody.
    Unrouted,
}

impl EventStatus {
    /// Every status.
    pub const ALL: [Self; 5] =
        [Self::Pending, Self::Delivered, Self::Dead, Self::Cancelled, Self::Unrouted];

    /// The name in JSON and in filters.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
            Self::Unrouted => "unrouted",
        }
    }

    /// Reads a name as a filter gives it.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == name)
    }

    /// Sums up an event's deliveries.
    pub fn of(counts: DeliveryCounts) -> Self {
        let DeliveryCounts { open, delivered, dead, cancelled } = counts;
        if open > 0 {
            Self::Pending
        } else if dead > 0 {
            Self::Dead
        } else if delivered > 0 {
            Self::Delivered
        } else if cancelled > 0 {
            Self::Cancelled
        } else {
            Self::Unrouted
        }
    }
}

/// How many of an event's deliveries stand where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeliveryCounts {
    /// Pending, in flight or parked.
    pub open: i64,
    /// Delivered.
    pub delivered: i64,
    /// Dead.
    pub dead: i64,
    /// Cancelled.
    pub cancelled: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for state in DeliveryState::ALL {
            assert_eq!(DeliveryState::from_name(state.as_str()), Some(state));
        }
        for status in EventStatus::ALL {
            assert_eq!(EventStatus::from_name(status.as_str()), Some(status));
        }
        for run in [Run::Schedule, Run::Retry, Run::Once, Run::Replay] {
            assert_eq!(Run::from_name(run.as_str()), Some(run));
        }
        assert_eq!(Run::from_name(Some("")), None);
    }

    #[test]
    fn what_has_ended_stays_ended() {
        for state in DeliveryState::ALL {
            for next in DeliveryState::ALL {
                if state.is_final() || state == next {
                    assert!(!state.may_become(next), "{state:?} → {next:?}");
                }
            }
        }
        assert!(DeliveryState::InFlight.may_become(DeliveryState::Pending));
        assert!(!DeliveryState::Pending.may_become(DeliveryState::Delivered));
        assert!(!DeliveryState::Parked.may_become(DeliveryState::InFlight));
    }

    #[test]
    fn deliveries_sum_up_to_a_status() {
        #[track_caller]
        fn check(open: i64, delivered: i64, dead: i64, cancelled: i64, expected: &str) {
            let counts = DeliveryCounts { open, delivered, dead, cancelled };
            assert_eq!(EventStatus::of(counts).as_str(), expected, "{counts:?}");
        }
        check(0, 0, 0, 0, "unrouted");
        check(1, 0, 0, 0, "pending");
        check(1, 5, 5, 5, "pending");
        check(0, 5, 1, 0, "dead");
        check(0, 0, 1, 1, "dead");
        check(0, 1, 0, 1, "delivered");
        check(0, 0, 0, 2, "cancelled");
    }
}
