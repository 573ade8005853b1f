//! The time in statements: the database's clock, as far as it can be believed.
//!
//! No statement that moves, ends or drops something goes by `now()` alone. What orders work takes
//! [`ordered_now`]: the database's clock where it is near the time that this process expects, and
//! else the expected one. What ends or drops something for good takes [`settled_now`]: never later
//! than any witness says. Both are compared by Postgres, so a jump between two heartbeats has no
//! effect either. See [`crate::clock`].

use chrono::{DateTime, Utc};
use sqlx::{Postgres, QueryBuilder};

use super::Store;

/// The times that a statement is given.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Times {
    /// What the database's clock must be near to; `None`: it is believed as it is.
    pub expected: Option<DateTime<Utc>>,
    /// What it must not be after where something ends for good.
    pub settled: Option<DateTime<Utc>>,
}

impl Store {
    /// The times of this moment.
    pub(super) fn times(&self) -> Times {
        let Some(clock) = &self.clock else { return Times::default() };
        Times { expected: clock.expected(), settled: clock.settled() }
    }
}

/// The time that orders work, given the parameter of [`Times::expected`]. Behind `select`, so that
/// the planner cannot see the value and keeps its plan. The interval is
/// [`crate::domain::witness::TOLERANCE`].
macro_rules! ordered_now {
    ($expected:literal) => {
        concat!(
            "(select case when now() between e.at - interval '5 seconds' and e.at + interval '5 seconds'
                          then now() else coalesce(e.at, now()) end
              from (select ",
            $expected,
            "::timestamptz as at offset 0) as e)"
        )
    };
}

/// The time by which things end for good, given the parameter of [`Times::settled`].
macro_rules! settled_now {
    ($settled:literal) => {
        concat!("(select least(now(), ", $settled, "::timestamptz))")
    };
}

/// Whether the step of a job is due, given the parameter of [`Times::expected`]. No step is ever put
/// off by an hour: one that is was written while the clock was wrong.
macro_rules! is_step_due {
    ($expected:literal) => {
        concat!(
            "(next_step_at <= ",
            ordered_now!($expected),
            " or next_step_at > ",
            ordered_now!($expected),
            " + interval '1 hour')"
        )
    };
}

pub(super) use {is_step_due, ordered_now, settled_now};

/// Adds [`ordered_now`] to a query that is built.
pub(super) fn push_ordered_now(query: &mut QueryBuilder<Postgres>, times: Times) {
    let (before, after) = ordered_now!("?").split_once('?').unwrap_or_default();
    query.push(before).push_bind(times.expected).push(after);
}

/// Adds [`is_step_due`] to a query that is built.
pub(super) fn push_step_due(query: &mut QueryBuilder<Postgres>, times: Times) {
    query.push("(next_step_at <= ");
    push_ordered_now(query, times);
    query.push(" or next_step_at > ");
    push_ordered_now(query, times);
    query.push(" + interval '1 hour')");
}

#[cfg(test)]
mod tests {
    use crate::domain::witness::TOLERANCE;

    #[test]
    fn tolerance_of_statements_is_that_of_the_witness() {
        assert_eq!(TOLERANCE.as_secs(), 5);
        assert_eq!(ordered_now!("$1").matches("interval '5 seconds'").count(), 2);
    }
}
