//! From JSON to clauses.

use std::{borrow::Cow, collections::HashSet};

use serde_json::value::RawValue;

use super::{
    Check, Clause, Condition, FILTER_BYTES_MAX, FILTER_DEPTH_MAX, FILTER_NODES_MAX, IN_VALUES_MAX,
    Operator, Scalar,
    document::{self, Node, Number, Value},
    error::{FilterError, Problem},
    near,
    path::{Path, Pointer},
};

const JOINS: [&str; 3] = ["any", "all", "not"];
/// What others call our joins.
const JOIN_WORDS: &[(&str, &str)] = &[("or", "any"), ("and", "all"), ("nor", "not")];
/// What others call our operators.
const OPERATOR_WORDS: &[(&str, &str)] = &[
    ("=", "eq"),
    ("==", "eq"),
    ("equals", "eq"),
    ("!=", "ne"),
    (">", "gt"),
    (">=", "gte"),
    ("ge", "gte"),
    ("<", "lt"),
    ("<=", "lte"),
    ("le", "lte"),
    ("startswith", "prefix"),
    ("starts_with", "prefix"),
];

/// Reads all clauses of a filter.
pub(super) fn clauses(text: &str) -> Result<Box<[Clause]>, FilterError> {
    let mut parser = Parser { nodes: 0, at: Pointer::default() };
    if text.len() > FILTER_BYTES_MAX {
        return Err(parser.error(Problem::TooLong));
    }
    match serde_json::from_str::<&RawValue>(text) {
        Ok(json) => parser.filter(&Node::new(json.get()), 1),
        Err(error) => Err(parser.error(Problem::NotJson(error.to_string()))),
    }
}

struct Parser {
    nodes: usize,
    at: Pointer,
}

impl Parser {
    fn error(&self, problem: Problem) -> FilterError {
        FilterError { at: self.at.to_text(), problem }
    }

    fn wrong_kind(&self, expected: &'static str, found: &Node<'_>) -> FilterError {
        self.error(Problem::Kind { expected, found: kind(found) })
    }

    fn count_node(&mut self) -> Result<(), FilterError> {
        self.nodes += 1;
        if self.nodes > FILTER_NODES_MAX { Err(self.error(Problem::TooManyNodes)) } else { Ok(()) }
    }

    /// `depth` counts this filter.
    fn filter(&mut self, json: &Node<'_>, depth: usize) -> Result<Box<[Clause]>, FilterError> {
        let members = self.members(json, "an object of paths and what they must lead to")?;
        if depth > FILTER_DEPTH_MAX {
            return Err(self.error(Problem::TooDeep));
        }
        // To want everything can be meant, but only of the whole.
        if members.is_empty() && depth > 1 {
            return Err(self.error(Problem::Empty));
        }
        self.each(&members, |parser, key, value| parser.clause(key, value, depth))
    }

    fn clause(&mut self, key: &str, value: &Node<'_>, depth: usize) -> Result<Clause, FilterError> {
        match key {
            "any" | "all" | "not" => self.count_node()?,
            _ => {}
        }
        match key {
            "any" => self.filters(value, depth + 1).map(Clause::Any),
            "all" => self.filters(value, depth + 1).map(Clause::All),
            "not" => self.filter(value, depth + 1).map(Clause::Not),
            _ => {
                let path = self.path(key)?;
                let conditions = self.conditions(value)?;
                Ok(Clause::At { path, conditions })
            }
        }
    }

    fn path(&self, key: &str) -> Result<Path, FilterError> {
        let bare = key.trim_start_matches('$');
        if let Some(operator) = operator(bare) {
            return Err(self.error(Problem::OperatorWithoutPath(operator)));
        }
        let known = JOINS.into_iter().find(|join| *join == bare);
        if let Some(did_you_mean) = known.or_else(|| near(bare, JOIN_WORDS, [])) {
            return Err(self.error(Problem::UnknownJoin { name: key.to_owned(), did_you_mean }));
        }
        Path::parse(key).map_err(|error| self.error(error.into()))
    }

    fn filters(
        &mut self,
        json: &Node<'_>,
        depth: usize,
    ) -> Result<Box<[Box<[Clause]>]>, FilterError> {
        let filters = self.list(json, "a list of filters")?;
        let one = |(index, filter)| {
            let before = self.at.push(index);
            let clauses = self.filter(filter, depth)?;
            self.at.back_to(before);
            Ok(clauses)
        };
        filters.iter().enumerate().map(one).collect()
    }

    fn conditions(&mut self, json: &Node<'_>) -> Result<Box<[Condition]>, FilterError> {
        match json.value() {
            Value::Object(_) => {
                let members = self.members(json, "an object of operators")?;
                if members.is_empty() {
                    return Err(self.error(Problem::Empty));
                }
                self.each(&members, |parser, name, operand| {
                    let operator = parser.operator(name)?;
                    parser.condition(operator, operand, false)
                })
            }
            Value::List(_) => {
                Err(self.wrong_kind("a value, or an object of operators such as `in`", json))
            }
            _ => Ok(Box::new([self.condition(Operator::Eq, json, true)?])),
        }
    }

    fn operator(&self, name: &str) -> Result<Operator, FilterError> {
        let bare = name.trim_start_matches('$').to_lowercase();
        let joins = JOINS.into_iter().find(|join| *join == bare);
        if let Some(join) = joins.or_else(|| near(&bare, JOIN_WORDS, [])) {
            return Err(self.error(Problem::JoinUnderPath(join)));
        }
        operator(name).ok_or_else(|| {
            let name = name.to_owned();
            let names = Operator::ALL.map(Operator::as_str);
            self.error(match near(&bare, OPERATOR_WORDS, names) {
                Some(did_you_mean) => Problem::MisspeltOperator { name, did_you_mean },
                None => Problem::UnknownOperator { name },
            })
        })
    }

    fn condition(
        &mut self,
        operator: Operator,
        json: &Node<'_>,
        is_bare: bool,
    ) -> Result<Condition, FilterError> {
        self.count_node()?;
        let check = match operator {
            Operator::Eq => Check::Eq(self.scalar(json)?),
            Operator::Ne => Check::Ne(self.scalar(json)?),
            Operator::Gt => Check::Gt(self.ordered(json)?),
            Operator::Gte => Check::Gte(self.ordered(json)?),
            Operator::Lt => Check::Lt(self.ordered(json)?),
            Operator::Lte => Check::Lte(self.ordered(json)?),
            Operator::In => Check::In(self.scalars(json)?),
            Operator::Exists => match json.value() {
                Value::Bool(wanted) => Check::Exists(*wanted),
                _ => return Err(self.wrong_kind("true or false", json)),
            },
            Operator::Prefix => match json.value() {
                Value::String(bytes) => Check::Prefix(self.text(bytes)?),
                _ => return Err(self.wrong_kind("a string", json)),
            },
        };
        Ok(Condition { check, operand: json.text().into(), is_bare })
    }

    fn ordered(&self, json: &Node<'_>) -> Result<Scalar, FilterError> {
        match json.value() {
            Value::Number(_) | Value::String(_) => self.scalar(json),
            _ => Err(self.wrong_kind("a number or a string", json)),
        }
    }

    fn scalars(&mut self, json: &Node<'_>) -> Result<Box<[Scalar]>, FilterError> {
        let values = self.list(json, "a list of values")?;
        if values.len() > IN_VALUES_MAX {
            return Err(self.error(Problem::TooManyValues));
        }
        let one = |(index, value)| {
            let before = self.at.push(index);
            let scalar = self.scalar(value)?;
            self.at.back_to(before);
            Ok(scalar)
        };
        values.iter().enumerate().map(one).collect()
    }

    fn scalar(&self, json: &Node<'_>) -> Result<Scalar, FilterError> {
        match json.value() {
            Value::Null => Ok(Scalar::Null),
            Value::Bool(value) => Ok(Scalar::Bool(*value)),
            // Such an operand could not be told from its neighbours.
            Value::Number(Number::Float(float)) if float.is_infinite() => {
                Err(self.error(Problem::Kind {
                    expected: "a number in the range of 64-bit floats",
                    found: "a larger one",
                }))
            }
            Value::Number(number) => Ok(Scalar::Number(*number)),
            Value::String(bytes) => self.text(bytes).map(Scalar::String),
            Value::List(_) | Value::Object(_) => {
                Err(self.wrong_kind("a string, a number, true, false or null", json))
            }
        }
    }

    fn text(&self, bytes: &[u8]) -> Result<Box<str>, FilterError> {
        let text = std::str::from_utf8(bytes).map_err(|_| self.error(Problem::BrokenString))?;
        Ok(text.into())
    }

    /// The items of a list with something in it.
    fn list<'j, 'a>(
        &self,
        json: &'j Node<'a>,
        expected: &'static str,
    ) -> Result<&'j [Node<'a>], FilterError> {
        match json.value() {
            Value::List(items) if items.is_empty() => Err(self.error(Problem::Empty)),
            Value::List(items) => Ok(items),
            _ => Err(self.wrong_kind(expected, json)),
        }
    }

    /// The members of an object, in the order in which they are written.
    fn members<'a>(
        &self,
        json: &Node<'a>,
        expected: &'static str,
    ) -> Result<Vec<(String, Node<'a>)>, FilterError> {
        let members = document::members(json.text()).filter(|_| json.text().starts_with('{'));
        let members = members.ok_or_else(|| self.wrong_kind(expected, json))?;
        let named = |(key, value): (Cow<'a, [u8]>, Node<'a>)| {
            self.text(&key).map(|key| (key.into_string(), value))
        };
        members.into_iter().map(named).collect()
    }

    /// Reads each member of an object, at its place, and refuses a key that was there before.
    fn each<T>(
        &mut self,
        members: &[(String, Node<'_>)],
        read: impl Fn(&mut Self, &str, &Node<'_>) -> Result<T, FilterError>,
    ) -> Result<Box<[T]>, FilterError> {
        let mut seen = HashSet::with_capacity(members.len());
        let mut all = Vec::with_capacity(members.len());
        for (key, value) in members {
            let before = self.at.push(key);
            if !seen.insert(key) {
                return Err(self.error(Problem::Repeated));
            }
            all.push(read(self, key, value)?);
            self.at.back_to(before);
        }
        Ok(all.into())
    }
}

fn operator(name: &str) -> Option<Operator> {
    Operator::ALL.into_iter().find(|operator| operator.as_str() == name)
}

fn kind(json: &Node<'_>) -> &'static str {
    match json.value() {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::List(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use crate::domain::filter::{
        FILTER_BYTES_MAX, FILTER_DEPTH_MAX, FILTER_NODES_MAX, Filter, IN_VALUES_MAX, Problem,
    };

    #[track_caller]
    fn check(filter: &str, expected: &str) {
        assert_eq!(Filter::parse(filter).unwrap_err().to_string(), expected, "{filter}");
    }

    #[test]
    fn what_is_no_filter_is_told_where_and_why() {
        check("", "must be JSON: EOF while parsing a value at line 1 column 0");
        check("{} {}", "must be JSON: trailing characters at line 1 column 4");
        let object = "must be an object of paths and what they must lead to";
        check("[]", &format!("{object}, not a list"));
        check("null", &format!("{object}, not null"));
        check(r#"{"not": 1}"#, &format!("at `/not`: {object}, not a number"));
        check(r#"{"any": {"data.a": 1}}"#, "at `/any`: must be a list of filters, not an object");
        check(r#"{"any": [{}, 1]}"#, "at `/any/0`: must not be empty");
        check(r#"{"all": [{"data": 1}, "x"]}"#, &format!("at `/all/1`: {object}, not a string"));
        check(r#"{"all": []}"#, "at `/all`: must not be empty");
        check(r#"{"not": {}}"#, "at `/not`: must not be empty");
        check(r#"{"data.a": {}}"#, "at `/data.a`: must not be empty");
        check(r#"{"data.a": {"in": []}}"#, "at `/data.a/in`: must not be empty");
        check(
            r#"{"data.a/b": [1]}"#,
            "at `/data.a~1b`: must be a value, or an object of operators such as `in`, not a list",
        );
        check(
            r#"{"data.a": 1, "data.a": 2}"#,
            "at `/data.a`: stands there twice; join conditions on one path in one object, or use `all`",
        );
        check(
            r#"{"data.a": {"gt": 1, "gt": 2}}"#,
            "at `/data.a/gt`: stands there twice; join conditions on one path in one object, or use `all`",
        );
        check(r#"{"data.a": "\ud800"}"#, "at `/data.a`: must be a string of whole characters");
    }

    #[test]
    fn operands_are_of_the_kind_that_an_operator_takes() {
        let scalar = "must be a string, a number, true, false or null";
        check(r#"{"data.a": {"eq": {}}}"#, &format!("at `/data.a/eq`: {scalar}, not an object"));
        check(r#"{"data.a": {"ne": []}}"#, &format!("at `/data.a/ne`: {scalar}, not a list"));
        check(
            r#"{"data.a": {"in": [1, []]}}"#,
            &format!("at `/data.a/in/1`: {scalar}, not a list"),
        );
        check(
            r#"{"data.a": {"in": 1}}"#,
            "at `/data.a/in`: must be a list of values, not a number",
        );
        for operator in ["gt", "gte", "lt", "lte"] {
            check(
                &format!("{{\"data.a\": {{\"{operator}\": true}}}}"),
                &format!("at `/data.a/{operator}`: must be a number or a string, not a boolean"),
            );
        }
        check(
            r#"{"data.a": {"exists": 1}}"#,
            "at `/data.a/exists`: must be true or false, not a number",
        );
        check(r#"{"data.a": {"prefix": null}}"#, "at `/data.a/prefix`: must be a string, not null");
        check(
            r#"{"data.a": {"lt": 1e999}}"#,
            "at `/data.a/lt`: must be a number in the range of 64-bit floats, not a larger one",
        );
    }

    #[test]
    fn slips_are_told_what_was_meant() {
        check(
            r#"{"data.a": {"$gte": 1}}"#,
            "at `/data.a/$gte`: unknown operator `$gte`; did you mean `gte`?",
        );
        for (slip, meant) in [
            ("exist", "exists"),
            ("neq", "ne"),
            ("le", "lte"),
            ("==", "eq"),
            ("startsWith", "prefix"),
            ("Prefix", "prefix"),
        ] {
            let problem = Problem::MisspeltOperator { name: slip.to_owned(), did_you_mean: meant };
            let error = Filter::parse(&format!("{{\"data.a\": {{\"{slip}\": 1}}}}")).unwrap_err();
            assert_eq!((error.at, error.problem), (format!("/data.a/{slip}"), problem));
        }
        check(
            r#"{"data": {"customer": {"id": 1}}}"#,
            "at `/data/customer`: unknown operator `customer`; there are eq, ne, gt, gte, lt, lte, in, \
             exists, prefix. A name inside of the value belongs to the path",
        );
        check(
            r#"{"data.a": {"not": {"eq": 1}}}"#,
            "at `/data.a/not`: `not` joins filters, and stands beside paths rather than under one: \
             {\"not\": …}",
        );
        check(r#"{"gte": 1}"#, "at `/gte`: `gte` asks for a path: {\"data.amount\": {\"gte\": …}}");
        check(r#"{"$or": []}"#, "at `/$or`: unknown key `$or`; did you mean `any`?");
        check(r#"{"and": []}"#, "at `/and`: unknown key `and`; did you mean `all`?");
        check(
            r#"{"any": [{"amount": 1}]}"#,
            "at `/any/0/amount`: a path begins with `type`, `data` (the payload) or `metadata`; did \
             you mean `data.amount`?",
        );
        check(r#"{"data.": 1}"#, "at `/data.`: expected a name after `data.`");
    }

    #[test]
    fn filters_have_bounds() {
        let padded = |bytes: usize| format!("{}{{}}", " ".repeat(bytes - 2));
        assert!(Filter::parse(&padded(FILTER_BYTES_MAX)).is_ok());
        check(&padded(FILTER_BYTES_MAX + 1), "must be at most 4096 bytes of JSON");

        let paths =
            |count: usize| (0..count).map(|n| format!("\"data.a{n}\": 1")).collect::<Vec<_>>();
        let of = |nodes| format!("{{{}}}", paths(nodes).join(","));
        assert!(Filter::parse(&of(FILTER_NODES_MAX)).is_ok());
        let error = Filter::parse(&of(FILTER_NODES_MAX + 1)).unwrap_err();
        assert_eq!((error.at.as_str(), error.problem), ("/data.a64", Problem::TooManyNodes));
        // A `not` and an operator each count.
        let not = |nodes| format!("{{\"not\": {}}}", of(nodes));
        assert!(Filter::parse(&not(FILTER_NODES_MAX - 1)).is_ok());
        assert_eq!(
            Filter::parse(&not(FILTER_NODES_MAX)).unwrap_err().problem,
            Problem::TooManyNodes
        );

        let deep =
            |depth: usize| "{\"not\":".repeat(depth - 1) + "{\"data\": 1}" + &"}".repeat(depth - 1);
        assert!(Filter::parse(&deep(FILTER_DEPTH_MAX)).is_ok());
        let error = Filter::parse(&deep(FILTER_DEPTH_MAX + 1)).unwrap_err();
        assert_eq!((error.at, error.problem), ("/not".repeat(FILTER_DEPTH_MAX), Problem::TooDeep));

        let list = |values: usize| format!("{{\"data\": {{\"in\": {:?}}}}}", vec![1; values]);
        assert!(Filter::parse(&list(IN_VALUES_MAX)).is_ok());
        check(&list(IN_VALUES_MAX + 1), "at `/data/in`: `in` lists at most 100 values");
    }

    #[test]
    fn a_filter_is_kept_as_it_was_written() {
        let text = " {\"data.a\" : 1.50,\n\"not\":{\"type\":\"b\"}} ";
        assert_eq!(Filter::parse(text).unwrap().as_str(), text);
    }
}
