//! Replays: what is sent again as one job, and how fast.

use std::time::Duration;

/// How many deliveries a replay queues in a second, unless the caller asks otherwise.
pub const PER_SECOND_DEFAULT: u16 = 100;
/// How many it may at most.
pub const PER_SECOND_MAX: u16 = 1_000;
/// How much of a second one step queues, and may make up for.
pub const STEP_SPAN: Duration = Duration::from_millis(250);

/// Where a replay stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayState {
    /// It goes on.
    Running,
    /// Somebody halted it.
    Paused,
    /// All that it means is queued.
    Completed,
    /// Somebody ended it, or its application is deleted.
    Cancelled,
}

impl ReplayState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Running, Self::Paused, Self::Completed, Self::Cancelled];

    /// The name in JSON and in SQL.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether it is over.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Cancelled)
    }
}

/// How many deliveries one step queues: one at least, however slow the replay is.
pub fn rows_of_step(per_second: u16) -> u16 {
    let rows = u128::from(per_second) * STEP_SPAN.as_millis() / 1_000;
    u16::try_from(rows).expect("less than in a second").max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_a_part_of_a_second_and_never_nothing() {
        for (per_second, rows) in [(1, 1), (3, 1), (4, 1), (8, 2), (100, 25), (1_000, 250)] {
            assert_eq!(rows_of_step(per_second), rows, "{per_second}");
        }
    }
}
