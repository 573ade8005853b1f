//! What lanes are bounded by, asked and told.

use std::time::{Duration, Instant};

use crate::domain::{ApplicationId, LaneId};

/// The bounds. Every number counts deliveries, but for the bytes, the failures and the pause.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Requests under way to one lane, and results of it that are not recorded yet.
    pub lane_in_flight_max: usize,
    /// Deliveries of one lane that one process holds: reserved, queued and in flight.
    pub lane_held_max: usize,
    /// The same in all. A waiting request costs some 40 KiB.
    pub in_flight_max: usize,
    /// Deliveries held in all.
    pub held_max: usize,
    /// Payload bytes held in all.
    pub held_bytes_max: usize,
    /// When a lane's breaker opens.
    pub breaker: Breaker,
}

/// When a breaker opens, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Breaker {
    /// The least number of failures one after the other, none of them answered, that open it; four
    /// times as many if they were answered with errors, and more if the receiver has failed at random
    /// before. 0: it never opens.
    pub failures: u16,
    /// The longest pause between two probes.
    pub pause_max: Duration,
}

/// What a delivery in memory has to tell.
pub trait Held {
    /// Its lane.
    fn lane(&self) -> LaneId;
    /// How many payload bytes it holds.
    fn bytes(&self) -> usize;
    /// When it may begin, of a lane with a rate; `None`: it has no time.
    fn time(&self) -> Option<Instant>;
    /// Of an explicit target, the lane of its origin.
    fn origin(&self) -> Option<LaneId> {
        None
    }
    /// Of an explicit target, the lane of its URL.
    fn url(&self) -> Option<LaneId> {
        None
    }
}

/// What one finished attempt says about its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The receiver took it.
    Healthy,
    /// The attempt failed: the answer was an error, or broken.
    Failing,
    /// There was no connection.
    Unreachable,
    /// The receiver answered that this one is not welcome (4xx): it is there, and not overrun.
    Refused,
    /// It was not the receiver that failed: nothing is learned of it.
    Unsent,
    /// The attempt ran out of time. What waits in memory returns to the database as well: at this
    /// pace it would be held for long.
    Hung,
    /// The receiver asked for quiet for this long.
    Paused(Duration),
}

impl Verdict {
    /// Returns whether the receiver answered, also with an error.
    pub fn is_answer(self) -> bool {
        matches!(self, Self::Healthy | Self::Failing | Self::Refused | Self::Paused(_))
    }
}

/// How a lane is, for others to know and for people to see. Times are from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// The lane.
    pub lane: LaneId,
    /// Its application.
    pub application: ApplicationId,
    /// Failures one after the other.
    pub failures: u16,
    /// How long its breaker stays open; `None`: it is closed. Zero: the next request is the probe.
    pub open_for: Option<Duration>,
    /// How long the receiver wants quiet.
    pub paused_for: Option<Duration>,
}

/// What came of a look at requests that take long.
#[derive(Debug)]
pub struct Looked<T> {
    /// What goes back to the database.
    pub returned: Vec<T>,
    /// Lanes are suspect that were not: others of their former class may start.
    pub has_demoted: bool,
    /// Requests are to be given up.
    pub has_cut: bool,
}
