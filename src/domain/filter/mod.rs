//! Filters: which events of a type a subscription wants, told in JSON.
//!
//! ```json
//! {"data.amount": {"gte": 100}, "data.currency": "EUR", "not": {"metadata.is_test": true}}
//! ```
//!
//! `docs/filters.md` has the language. The rules that everything follows from:
//!
//! - A filter is an object; all of its members must hold. A key is a path, or `any`, `all`, `not`.
//! - What a path leads to must pass all operators that stand under it; a bare value means `eq`.
//! - Values are compared within their kind only, and never converted. Numbers are compared by value,
//!   strings by their bytes. `gt`, `gte`, `lt`, `lte` know numbers and strings.
//! - A path that leads nowhere passes `exists: false` and `ne`, and nothing else; null is a value.
//!
//! A filter is parsed when it is made, so that a mistake is told to whom it can still help. To
//! evaluate it costs at most [`FILTER_NODES_MAX`] × [`PATH_STEPS_MAX`] look-ups, each a binary search
//! among the members of an object, and the comparison of at most [`FILTER_BYTES_MAX`] bytes in all,
//! since no operand is longer; on top of that comes, once for each event, what [`document`] reads.

pub mod document;
mod error;
mod evaluate;
mod parse;
pub mod path;

use std::fmt;

pub use document::{EventDocument, FOUND_BYTES_MAX};
pub use error::{FilterError, Problem};
pub use evaluate::{Mismatch, Reason};
pub use path::{PATH_STEPS_MAX, PathError};

use document::Number;
use path::Path;

/// How many bytes of JSON a filter may have.
pub const FILTER_BYTES_MAX: usize = 4 * 1024;
/// How many nodes a filter may have: operators, and `any`, `all`, `not`.
pub const FILTER_NODES_MAX: usize = 64;
/// How deep filters may stand in each other, the outermost counted.
pub const FILTER_DEPTH_MAX: usize = 8;
/// How many values an `in` may list.
pub const IN_VALUES_MAX: usize = 100;

/// A filter that was found to be sound.
#[derive(Clone)]
pub struct Filter {
    text: Box<str>,
    clauses: Box<[Clause]>,
}

impl Filter {
    /// Reads a filter from its JSON.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        let clauses = parse::clauses(text)?;
        Ok(Self { text: text.into(), clauses })
    }

    /// The JSON as it was given.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether an event passes.
    pub fn matches(&self, event: &EventDocument<'_>) -> bool {
        evaluate::all_hold(&self.clauses, event)
    }

    /// Like [`Self::matches`], and if an event does not pass, the first clause that it fails.
    pub fn explain(&self, event: &EventDocument<'_>) -> Result<(), Mismatch> {
        evaluate::first_mismatch(&self.clauses, event).map_or(Ok(()), Err)
    }
}

/// Filters are what they are written as.
impl PartialEq for Filter {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Filter {}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// One member of a filter.
#[derive(Debug, Clone)]
enum Clause {
    At { path: Path, conditions: Box<[Condition]> },
    Any(Box<[Box<[Clause]>]>),
    All(Box<[Box<[Clause]>]>),
    Not(Box<[Clause]>),
}

/// What stands under a path.
#[derive(Debug, Clone)]
struct Condition {
    check: Check,
    /// The operand's JSON.
    operand: Box<str>,
    /// Whether the operator was left out.
    is_bare: bool,
}

/// An operator and its operand.
#[derive(Debug, Clone)]
enum Check {
    Eq(Scalar),
    Ne(Scalar),
    Gt(Scalar),
    Gte(Scalar),
    Lt(Scalar),
    Lte(Scalar),
    In(Box<[Scalar]>),
    Exists(bool),
    Prefix(Box<str>),
}

/// A value that is neither list nor object.
#[derive(Debug, Clone)]
enum Scalar {
    Null,
    Bool(bool),
    Number(Number),
    String(Box<str>),
}

/// What is asked of the value at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// It is this value.
    Eq,
    /// It is not this value, or is not there.
    Ne,
    /// It is above this number or string.
    Gt,
    /// It is this number or string, or above.
    Gte,
    /// It is below this number or string.
    Lt,
    /// It is this number or string, or below.
    Lte,
    /// It is one of these values.
    In,
    /// It is there (null is), or it is not.
    Exists,
    /// It is a string that begins so.
    Prefix,
}

impl Operator {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Eq,
        Self::Ne,
        Self::Gt,
        Self::Gte,
        Self::Lt,
        Self::Lte,
        Self::In,
        Self::Exists,
        Self::Prefix,
    ];

    /// Its name in a filter.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Eq => "eq",
            Self::Ne => "ne",
            Self::Gt => "gt",
            Self::Gte => "gte",
            Self::Lt => "lt",
            Self::Lte => "lte",
            Self::In => "in",
            Self::Exists => "exists",
            Self::Prefix => "prefix",
        }
    }
}

/// The name that was probably meant: what other languages call `words`, or the most similar one.
fn near(
    name: &str,
    words: &[(&str, &'static str)],
    names: impl IntoIterator<Item = &'static str>,
) -> Option<&'static str> {
    /// As a share of one: `gtt` and `gt` have 0.89, `date` and `data` 0.83.
    const SIMILARITY_MIN: f64 = 0.85;
    if let Some((_, meant)) = words.iter().find(|(word, _)| *word == name) {
        return Some(meant);
    }
    names
        .into_iter()
        .map(|candidate| (strsim::jaro(name, candidate), candidate))
        .filter(|(similarity, _)| *similarity >= SIMILARITY_MIN)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod examples;
#[cfg(test)]
mod model;
