//! Whether an event passes, and if not, which clause it fails.

use std::{cmp::Ordering, fmt};

use super::{
    Check, Clause, Condition, Operator, Scalar,
    document::{EventDocument, Value},
    path::Pointer,
};

/// The clause that an event fails, and why. Of the event it shows at most
/// [`super::FOUND_BYTES_MAX`] bytes for each operator that it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// Where in the filter it stands: a JSON Pointer (RFC 6901) such as `/data.amount/gte`.
    pub clause: String,
    /// Why it does not hold.
    pub reason: Reason,
}

/// Why a clause does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The value at a path is not what is asked for.
    Value {
        /// The path that was looked at.
        path: String,
        /// What is asked; `eq` where the filter has a bare value.
        operator: Operator,
        /// The operand's JSON.
        operand: String,
        /// The value's JSON, cut, with an ellipsis; none if the path leads nowhere.
        found: Option<String>,
    },
    /// No filter of an `any` passes: why, for each of them.
    NoneOf(Vec<Mismatch>),
    /// The filter under a `not` passes.
    Matches,
}

/// A sentence for people, in the words of the filter.
impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Reason::Value { path, operator, operand, found } => {
                let found = found.as_deref().unwrap_or("not there");
                write!(f, "`{path}` is {found}; asked for: {} {operand}", operator.as_str())
            }
            Reason::NoneOf(filters) => {
                write!(f, "no filter of `{}` matches", self.clause)?;
                for (index, mismatch) in filters.iter().enumerate() {
                    write!(f, "{} {mismatch}", if index == 0 { ":" } else { ";" })?;
                }
                Ok(())
            }
            Reason::Matches => write!(f, "the filter of `{}` matches", self.clause),
        }
    }
}

pub(super) fn all_hold(clauses: &[Clause], event: &EventDocument<'_>) -> bool {
    clauses.iter().all(|clause| match clause {
        Clause::At { path, conditions } => {
            let value = event.value(path);
            conditions.iter().all(|condition| condition.check.holds(value))
        }
        Clause::Any(filters) => filters.iter().any(|filter| all_hold(filter, event)),
        Clause::All(filters) => filters.iter().all(|filter| all_hold(filter, event)),
        Clause::Not(filter) => !all_hold(filter, event),
    })
}

pub(super) fn first_mismatch(clauses: &[Clause], event: &EventDocument<'_>) -> Option<Mismatch> {
    Explainer { event, at: Pointer::default() }.first(clauses)
}

/// Walks like [`all_hold`], and keeps book of where it is.
struct Explainer<'e, 'a> {
    event: &'e EventDocument<'a>,
    at: Pointer,
}

impl Explainer<'_, '_> {
    fn first(&mut self, clauses: &[Clause]) -> Option<Mismatch> {
        clauses.iter().find_map(|clause| {
            let before = self.at.push(clause.key());
            let mismatch = self.clause(clause);
            self.at.back_to(before);
            mismatch
        })
    }

    fn clause(&mut self, clause: &Clause) -> Option<Mismatch> {
        match clause {
            Clause::At { path, conditions } => {
                let value = self.event.value(path);
                let failed = conditions.iter().find(|condition| !condition.check.holds(value))?;
                Some(Mismatch {
                    clause: self.place(failed),
                    reason: Reason::Value {
                        path: path.as_str().to_owned(),
                        operator: failed.check.operator(),
                        operand: failed.operand.to_string(),
                        found: self.event.shown(path),
                    },
                })
            }
            Clause::Any(filters) => {
                // One without a mismatch is one that passes.
                let each: Option<Vec<_>> = filters
                    .iter()
                    .enumerate()
                    .map(|(index, filter)| self.nth(index, filter))
                    .collect();
                each.map(|filters| self.here(Reason::NoneOf(filters)))
            }
            Clause::All(filters) => {
                filters.iter().enumerate().find_map(|(index, filter)| self.nth(index, filter))
            }
            Clause::Not(filter) => all_hold(filter, self.event).then(|| self.here(Reason::Matches)),
        }
    }

    fn nth(&mut self, index: usize, filter: &[Clause]) -> Option<Mismatch> {
        let before = self.at.push(index);
        let mismatch = self.first(filter);
        self.at.back_to(before);
        mismatch
    }

    fn here(&self, reason: Reason) -> Mismatch {
        Mismatch { clause: self.at.to_text(), reason }
    }

    fn place(&mut self, condition: &Condition) -> String {
        if condition.is_bare {
            return self.at.to_text();
        }
        let before = self.at.push(condition.check.operator().as_str());
        let place = self.at.to_text();
        self.at.back_to(before);
        place
    }
}

impl Clause {
    /// Its key in the filter.
    fn key(&self) -> &str {
        match self {
            Self::At { path, .. } => path.as_str(),
            Self::Any(_) => "any",
            Self::All(_) => "all",
            Self::Not(_) => "not",
        }
    }
}

impl Check {
    fn operator(&self) -> Operator {
        match self {
            Self::Eq(_) => Operator::Eq,
            Self::Ne(_) => Operator::Ne,
            Self::Gt(_) => Operator::Gt,
            Self::Gte(_) => Operator::Gte,
            Self::Lt(_) => Operator::Lt,
            Self::Lte(_) => Operator::Lte,
            Self::In(_) => Operator::In,
            Self::Exists(_) => Operator::Exists,
            Self::Prefix(_) => Operator::Prefix,
        }
    }

    fn holds(&self, found: Option<&Value<'_>>) -> bool {
        let Some(value) = found else {
            return matches!(self, Self::Ne(_) | Self::Exists(false));
        };
        match self {
            Self::Eq(operand) => value.equals(operand),
            Self::Ne(operand) => !value.equals(operand),
            Self::Gt(operand) => value.order(operand).is_some_and(Ordering::is_gt),
            Self::Gte(operand) => value.order(operand).is_some_and(Ordering::is_ge),
            Self::Lt(operand) => value.order(operand).is_some_and(Ordering::is_lt),
            Self::Lte(operand) => value.order(operand).is_some_and(Ordering::is_le),
            Self::In(operands) => operands.iter().any(|operand| value.equals(operand)),
            Self::Exists(wanted) => *wanted,
            Self::Prefix(prefix) => {
                matches!(value, Value::String(bytes) if bytes.starts_with(prefix.as_bytes()))
            }
        }
    }
}

impl Value<'_> {
    fn equals(&self, operand: &Scalar) -> bool {
        match (self, operand) {
            (Self::Null, Scalar::Null) => true,
            (Self::Bool(a), Scalar::Bool(b)) => a == b,
            _ => self.order(operand).is_some_and(Ordering::is_eq),
        }
    }

    /// Numbers among themselves, and strings; nothing else has an order.
    fn order(&self, operand: &Scalar) -> Option<Ordering> {
        match (self, operand) {
            (Self::Number(a), Scalar::Number(b)) => Some(a.compare(*b)),
            (Self::String(a), Scalar::String(b)) => Some(a.as_ref().cmp(b.as_bytes())),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        event::{EventType, Metadata, Payload},
        filter::{FOUND_BYTES_MAX, Filter},
    };

    const DATA: &str = r#"{
        "amount": 120, "big": 9007199254740993, "name": "Zoë", "at": "2026-01-02T03:04:05Z",
        "paid": true, "none": null, "items": [{"sku": "A-1"}, {"sku": "B-2"}], "more": {"x": 1}
    }"#;

    fn explained(filter: &str, event_type: Option<&str>) -> Result<(), Mismatch> {
        let filter = Filter::parse(filter).unwrap();
        let event_type = event_type.map(|name| EventType::parse(name).unwrap());
        let payload = Payload::from_json(DATA.into()).unwrap();
        let metadata = Metadata::from_json(r#"{"region": "eu"}"#).unwrap();
        let event = EventDocument::new(event_type.as_ref(), &payload, Some(&metadata));
        let result = filter.explain(&event);
        assert_eq!(result.is_ok(), filter.matches(&event));
        result
    }

    #[track_caller]
    fn passes(filter: &str) {
        assert_eq!(explained(filter, Some("invoice.paid")), Ok(()), "{filter}");
    }

    #[track_caller]
    fn fails(filter: &str, clause: &str, because: &str) {
        let mismatch = explained(filter, Some("invoice.paid")).expect_err(filter);
        assert_eq!((mismatch.clause.as_str(), mismatch.to_string().as_str()), (clause, because));
    }

    #[test]
    fn an_empty_filter_passes_all() {
        passes("{}");
    }

    #[test]
    fn values_are_compared_within_their_kind() {
        passes(r#"{"data.amount": 120}"#);
        passes(r#"{"data.amount": {"eq": 120.0}}"#);
        passes(r#"{"data.amount": {"ne": "120"}}"#);
        passes(r#"{"data.paid": true, "data.none": null, "data.name": "Zoë"}"#);
        passes(r#"{"data.paid": {"ne": "true"}, "data.none": {"ne": false}}"#);
        fails(
            r#"{"data.amount": "120"}"#,
            "/data.amount",
            r#"`data.amount` is 120; asked for: eq "120""#,
        );
        fails(
            r#"{"data.amount": {"gt": "1"}}"#,
            "/data.amount/gt",
            r#"`data.amount` is 120; asked for: gt "1""#,
        );
        fails(
            r#"{"data.amount": {"lte": "1"}}"#,
            "/data.amount/lte",
            r#"`data.amount` is 120; asked for: lte "1""#,
        );
        fails(
            r#"{"data.paid": {"gt": 0}}"#,
            "/data.paid/gt",
            "`data.paid` is true; asked for: gt 0",
        );
        fails(r#"{"data.paid": false}"#, "/data.paid", "`data.paid` is true; asked for: eq false");
        fails(r#"{"data.none": false}"#, "/data.none", "`data.none` is null; asked for: eq false");
        fails(
            r#"{"data.none": {"gte": 0}}"#,
            "/data.none/gte",
            "`data.none` is null; asked for: gte 0",
        );
        passes(r#"{"data.more": {"ne": 1}, "data.items": {"ne": "A-1"}}"#);
        fails(r#"{"data.more": 1}"#, "/data.more", r#"`data.more` is {"x": 1}; asked for: eq 1"#);
    }

    #[test]
    fn numbers_and_strings_have_an_order() {
        passes(r#"{"data.amount": {"gt": 119, "gte": 120, "lt": 120.5, "lte": 120}}"#);
        fails(
            r#"{"data.amount": {"gte": 100, "gt": 120}}"#,
            "/data.amount/gt",
            "`data.amount` is 120; asked for: gt 120",
        );
        fails(
            r#"{"data.amount": {"lt": 120}}"#,
            "/data.amount/lt",
            "`data.amount` is 120; asked for: lt 120",
        );
        fails(
            r#"{"data.amount": {"gte": 121}}"#,
            "/data.amount/gte",
            "`data.amount` is 120; asked for: gte 121",
        );
        fails(
            r#"{"data.amount": {"lte": 119}}"#,
            "/data.amount/lte",
            "`data.amount` is 120; asked for: lte 119",
        );
        fails(
            r#"{"data.big": 9007199254740992}"#,
            "/data.big",
            "`data.big` is 9007199254740993; asked for: eq 9007199254740992",
        );
        passes(r#"{"data.at": {"gte": "2026-01-01", "lt": "2026-02"}}"#);
        passes(r#"{"data.name": {"gt": "Zo", "lt": "Zoö"}}"#);
    }

    #[test]
    fn lists_of_values_and_prefixes() {
        passes(r#"{"data.amount": {"in": ["120", null, 120]}}"#);
        fails(
            r#"{"data.amount": {"in": [1, "120"]}}"#,
            "/data.amount/in",
            r#"`data.amount` is 120; asked for: in [1, "120"]"#,
        );
        passes(r#"{"data.name": {"prefix": "Zo"}, "data.at": {"prefix": ""}}"#);
        fails(
            r#"{"data.name": {"prefix": "oë"}}"#,
            "/data.name/prefix",
            r#"`data.name` is "Zoë"; asked for: prefix "oë""#,
        );
        fails(
            r#"{"data.amount": {"prefix": ""}}"#,
            "/data.amount/prefix",
            r#"`data.amount` is 120; asked for: prefix """#,
        );
    }

    #[test]
    fn what_is_not_there_passes_exists_false_and_ne_only() {
        passes(r#"{"data.x": {"exists": false, "ne": null}, "data.none": {"exists": true}}"#);
        for (operator, operand) in [
            ("eq", "null"),
            ("gt", "0"),
            ("gte", "0"),
            ("lt", "0"),
            ("lte", "0"),
            ("in", "[null]"),
            ("exists", "true"),
            ("prefix", "\"\""),
        ] {
            fails(
                &format!("{{\"data.x\": {{\"{operator}\": {operand}}}}}"),
                &format!("/data.x/{operator}"),
                &format!("`data.x` is not there; asked for: {operator} {operand}"),
            );
        }
        fails(
            r#"{"data.none": {"exists": false}}"#,
            "/data.none/exists",
            "`data.none` is null; asked for: exists false",
        );
        fails(
            r#"{"data.none": {"ne": null}}"#,
            "/data.none/ne",
            "`data.none` is null; asked for: ne null",
        );
    }

    #[test]
    fn all_roots_can_be_looked_at() {
        passes(r#"{"type": "invoice.paid", "metadata.region": "eu", "data.items[1].sku": "B-2"}"#);
        passes(r#"{"type": {"prefix": "invoice."}}"#);
        fails(r#"{"type": "a"}"#, "/type", r#"`type` is "invoice.paid"; asked for: eq "a""#);
        fails(
            r#"{"metadata.region": "us"}"#,
            "/metadata.region",
            r#"`metadata.region` is "eu"; asked for: eq "us""#,
        );
        assert_eq!(explained(r#"{"type": {"exists": false}}"#, None), Ok(()));
    }

    #[test]
    fn filters_are_joined() {
        let (yes, no) = (r#"{"data.amount": 120}"#, r#"{"data.amount": 1}"#);
        passes(&format!("{{\"any\": [{no}, {yes}]}}"));
        fails(
            &format!("{{\"any\": [{no}, {{\"all\": [{yes}, {no}]}}]}}"),
            "/any",
            "no filter of `/any` matches: `data.amount` is 120; asked for: eq 1; `data.amount` is 120; \
             asked for: eq 1",
        );
        passes(&format!("{{\"all\": [{yes}, {yes}]}}"));
        fails(
            &format!("{{\"all\": [{yes}, {no}]}}"),
            "/all/1/data.amount",
            "`data.amount` is 120; asked for: eq 1",
        );
        passes(&format!("{{\"not\": {no}}}"));
        fails(
            &format!("{{\"data.paid\": true, \"not\": {yes}}}"),
            "/not",
            "the filter of `/not` matches",
        );
        // All members of a filter under `not` together.
        passes(r#"{"not": {"data.amount": 120, "data.paid": false}}"#);
    }

    #[test]
    fn the_first_clause_as_written_is_told_and_each_of_an_any() {
        fails(
            r#"{"type": "invoice.paid", "data.z": 1, "data.a": 1}"#,
            "/data.z",
            "`data.z` is not there; asked for: eq 1",
        );
        let any = r#"{"any": [{"not": {"any": [{"data.paid": true}]}}, {"type": "a"}]}"#;
        let Err(Mismatch { clause, reason: Reason::NoneOf(filters) }) = explained(any, None) else {
            panic!("an `any` tells why for each filter");
        };
        assert_eq!(clause, "/any");
        let places: Vec<_> = filters.iter().map(|mismatch| mismatch.clause.as_str()).collect();
        assert_eq!(places, ["/any/0/not", "/any/1/type"]);
    }

    #[test]
    fn little_of_a_payload_is_told() {
        let payload = Payload::from_json(format!("[\"{}\"]", "x".repeat(10_000)).into()).unwrap();
        let event = EventDocument::new(None, &payload, None);
        let mismatch = Filter::parse(r#"{"data": 1}"#).unwrap().explain(&event).unwrap_err();
        assert!(mismatch.to_string().len() < FOUND_BYTES_MAX + 50);
    }
}
