//! Why a text is no filter.

use std::fmt;

use super::{
    FILTER_BYTES_MAX, FILTER_DEPTH_MAX, FILTER_NODES_MAX, IN_VALUES_MAX, Operator, path::PathError,
};

/// Why a text is no filter, and where. The text completes "`filter` …".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterError {
    /// Where in the filter: a JSON Pointer (RFC 6901), empty if it is about all of it.
    pub at: String,
    /// What is wrong there.
    pub problem: Problem,
}

impl std::error::Error for FilterError {}

impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.at.is_empty() {
            write!(f, "{}", self.problem)
        } else {
            write!(f, "at `{}`: {}", self.at, self.problem)
        }
    }
}

/// What is wrong with a part of a filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Over [`FILTER_BYTES_MAX`].
    #[error("must be at most {FILTER_BYTES_MAX} bytes of JSON")]
    TooLong,
    /// Over [`FILTER_NODES_MAX`].
    #[error("a filter has at most {FILTER_NODES_MAX} operators, `any`, `all` and `not` together")]
    TooManyNodes,
    /// Over [`FILTER_DEPTH_MAX`].
    #[error("filters stand in each other at most {FILTER_DEPTH_MAX} deep")]
    TooDeep,
    /// Over [`IN_VALUES_MAX`].
    #[error("`in` lists at most {IN_VALUES_MAX} values")]
    TooManyValues,
    /// No JSON.
    #[error("must be JSON: {0}")]
    NotJson(String),
    /// Something else where a filter, an operand or a list should stand.
    #[error("must be {expected}, not {found}")]
    Kind {
        /// What would have been right.
        expected: &'static str,
        /// What is there.
        found: &'static str,
    },
    /// A list or an object with nothing in it, which says nothing and is a slip.
    #[error("must not be empty")]
    Empty,
    /// The same key twice, of which one would be lost.
    #[error("stands there twice; join conditions on one path in one object, or use `all`")]
    Repeated,
    /// A string with half of a surrogate pair, which equals nothing.
    #[error("must be a string of whole characters")]
    BrokenString,
    /// A key that is neither a path nor a way to join filters.
    #[error(transparent)]
    Path(#[from] PathError),
    /// An operator without a path.
    #[error("`{}` asks for a path: {{\"data.amount\": {{\"{}\": …}}}}", .0.as_str(), .0.as_str())]
    OperatorWithoutPath(Operator),
    /// `any`, `all` or `not` under a path.
    #[error("`{0}` joins filters, and stands beside paths rather than under one: {{\"{0}\": …}}")]
    JoinUnderPath(&'static str),
    /// Another name for `any`, `all` or `not`.
    #[error("unknown key `{name}`; did you mean `{did_you_mean}`?")]
    UnknownJoin {
        /// The name.
        name: String,
        /// The name that was probably meant.
        did_you_mean: &'static str,
    },
    /// No operator, but nearly.
    #[error("unknown operator `{name}`; did you mean `{did_you_mean}`?")]
    MisspeltOperator {
        /// The name.
        name: String,
        /// The name that was probably meant.
        did_you_mean: &'static str,
    },
    /// No operator.
    #[error(
        "unknown operator `{name}`; there are {}. A name inside of the value belongs to the path",
        Operator::ALL.map(Operator::as_str).join(", ")
    )]
    UnknownOperator {
        /// The name.
        name: String,
    },
}
