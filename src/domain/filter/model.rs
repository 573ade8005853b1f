//! The language a second time, naively, and that both readings agree on all that chance brings.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{EventDocument, Filter, Mismatch, Problem, Reason, path::Path};
use crate::domain::event::{EventType, Metadata, Payload};

/// A step as the model takes it.
#[derive(Debug, Clone, Copy)]
enum Way {
    Key(&'static str),
    Index(usize),
}

use Way::{Index, Key};

/// The paths that filters here have.
const PATHS: &[(&str, &[Way])] = &[
    ("type", &[Key("type")]),
    ("data", &[Key("data")]),
    ("data.a", &[Key("data"), Key("a")]),
    ("data.a.b", &[Key("data"), Key("a"), Key("b")]),
    ("data['x.y']", &[Key("data"), Key("x.y")]),
    ("data.0", &[Key("data"), Key("0")]),
    ("data[0]", &[Key("data"), Index(0)]),
    ("data.a[1]", &[Key("data"), Key("a"), Index(1)]),
    ("metadata.a", &[Key("metadata"), Key("a")]),
    ("metadata[\"b\"][0].a", &[Key("metadata"), Key("b"), Index(0), Key("a")]),
];

fn at<'v>(event: &'v Value, path: &str) -> Option<&'v Value> {
    let (_, ways) = PATHS.iter().find(|(text, _)| *text == path).expect("a path of the list");
    ways.iter().try_fold(event, |value, way| match way {
        Key(key) => value.get(key),
        Index(index) => value.get(index),
    })
}

/// All numbers here are multiples of a quarter and below 2^80, so that this is exact.
fn quarters(number: &serde_json::Number) -> i128 {
    let whole = number.as_i64().map(i128::from).or(number.as_u64().map(i128::from));
    #[expect(clippy::cast_possible_truncation, reason = "a whole float in range is cast exactly")]
    whole.map_or_else(|| (number.as_f64().unwrap() * 4.0) as i128, |whole| whole * 4)
}

fn is_equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => quarters(a) == quarters(b),
        _ => a == b,
    }
}

fn is_below(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => quarters(a) < quarters(b),
        (Value::String(a), Value::String(b)) => a < b,
        _ => false,
    }
}

fn passes(operator: &str, found: Option<&Value>, operand: &Value) -> bool {
    match operator {
        "exists" => found.is_some() == (operand == &json!(true)),
        "ne" => !passes("eq", found, operand),
        _ => found.is_some_and(|found| match operator {
            "eq" => is_equal(found, operand),
            "gt" => is_below(operand, found),
            "lt" => is_below(found, operand),
            "gte" => passes("gt", Some(found), operand) || (is_ordered(found, operand)),
            "lte" => passes("lt", Some(found), operand) || (is_ordered(found, operand)),
            "in" => operand.as_array().unwrap().iter().any(|value| is_equal(found, value)),
            "prefix" => found.as_str().is_some_and(|f| f.starts_with(operand.as_str().unwrap())),
            _ => unreachable!("{operator}"),
        }),
    }
}

fn is_ordered(a: &Value, b: &Value) -> bool {
    (a.is_number() || a.is_string()) && is_equal(a, b)
}

fn holds(filter: &Value, event: &Value) -> bool {
    let list = |value: &Value| value.as_array().unwrap().clone();
    filter.as_object().unwrap().iter().all(|(key, value)| match (key.as_str(), value) {
        ("any", filters) => list(filters).iter().any(|filter| holds(filter, event)),
        ("all", filters) => list(filters).iter().all(|filter| holds(filter, event)),
        ("not", filter) => !holds(filter, event),
        (path, Value::Object(checks)) => {
            checks.iter().all(|(operator, operand)| passes(operator, at(event, path), operand))
        }
        (path, value) => passes("eq", at(event, path), value),
    })
}

/// The filter that has nothing but the clause at a JSON Pointer.
fn clause_at(filter: &Value, pointer: &str) -> Value {
    let decoded = |segment: &str| segment.replace("~1", "/").replace("~0", "~");
    let mut segments = pointer.split('/').skip(1).map(decoded);
    let mut filter = filter.clone();
    loop {
        let key = segments.next().unwrap();
        let value = filter[&key].clone();
        filter = match (key.as_str(), segments.next()) {
            (_, None) => return json!({ key: value }),
            ("any" | "all", Some(index)) => value[index.parse::<usize>().unwrap()].clone(),
            (path, Some(operator)) => {
                let operand = value[&operator].clone();
                return json!({ path: { operator: operand } });
            }
        };
    }
}

/// What a mismatch says is so, to the letter.
fn check_mismatch(mismatch: &Mismatch, filter: &Value, event: &Value) -> Result<(), TestCaseError> {
    let clause = clause_at(filter, &mismatch.clause);
    prop_assert!(!holds(&clause, event), "{clause}");
    match &mismatch.reason {
        Reason::Value { path, operator, operand, found } => {
            let operand: Value = serde_json::from_str(operand).unwrap();
            prop_assert!(!passes(operator.as_str(), at(event, path), &operand));
            let found = found.as_deref().map(|json| serde_json::from_str::<Value>(json).unwrap());
            prop_assert_eq!(found.as_ref(), at(event, path));
        }
        Reason::NoneOf(filters) => {
            prop_assert_eq!(filters.len(), clause["any"].as_array().unwrap().len());
            for mismatch in filters {
                check_mismatch(mismatch, filter, event)?;
            }
        }
        Reason::Matches => prop_assert!(holds(&clause["not"], event)),
    }
    Ok(())
}

/// Values of which some are nearly the same.
fn scalar() -> impl Strategy<Value = Value> {
    let numbers = || {
        prop::sample::select(vec![
            json!(0),
            json!(1),
            json!(1.0),
            json!(1.5),
            json!(-1),
            json!(9_007_199_254_740_992_u64),
            json!(9_007_199_254_740_993_u64),
            json!(9_007_199_254_740_992.0),
            json!(u64::MAX),
            json!(18_446_744_073_709_551_616.0),
        ])
    };
    let strings = prop::sample::select(vec!["", "a", "ab", "b", "é", "1", "\u{ffff}", "😀"]);
    prop_oneof![
        1 => Just(Value::Null),
        1 => any::<bool>().prop_map(Value::Bool),
        3 => numbers(),
        3 => strings.prop_map(Value::from),
    ]
}

fn ordered() -> impl Strategy<Value = Value> {
    scalar().prop_filter("has an order", |value| value.is_number() || value.is_string())
}

/// JSON of few keys, so that paths meet something.
fn tree() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(3, 16, 3, |inner| {
        let key = prop::sample::select(vec!["a", "b", "x.y", "0"]).prop_map(str::to_owned);
        prop_oneof![
            1 => prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            2 => prop::collection::vec((key, inner), 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

fn event() -> impl Strategy<Value = Value> {
    let event_type = prop::option::of(prop::sample::select(vec!["a", "ab", "b.c"]));
    // Mostly an object, or no path would lead anywhere.
    let members =
        (tree(), tree(), scalar()).prop_map(|(a, x_y, b)| json!({"a": a, "x.y": x_y, "b": b}));
    let data = prop_oneof![1 => tree(), 3 => members];
    (event_type, data, prop::option::of(tree())).prop_map(|(event_type, data, metadata)| {
        let mut event = Map::new();
        event.extend(event_type.map(|name| ("type".to_owned(), json!(name))));
        event.insert("data".to_owned(), data);
        event.extend(metadata.map(|metadata| ("metadata".to_owned(), metadata)));
        Value::Object(event)
    })
}

fn conditions() -> impl Strategy<Value = Value> {
    let check = prop_oneof![
        (prop::sample::select(vec!["eq", "ne"]), scalar()),
        (prop::sample::select(vec!["gt", "gte", "lt", "lte"]), ordered()),
        (Just("in"), prop::collection::vec(scalar(), 1..4).prop_map(Value::from)),
        (Just("exists"), any::<bool>().prop_map(Value::Bool)),
        (Just("prefix"), prop::sample::select(vec!["", "a", "ab", "😀"]).prop_map(Value::from)),
    ];
    let checks = prop::collection::vec(check, 1..3).prop_map(|checks| {
        Value::Object(
            checks.into_iter().map(|(name, operand)| (name.to_owned(), operand)).collect(),
        )
    });
    prop_oneof![1 => scalar(), 3 => checks]
}

fn filter() -> impl Strategy<Value = Value> {
    let path = || prop::sample::select(PATHS).prop_map(|(text, _)| text.to_owned());
    let leaf = prop::collection::vec((path(), conditions()), 1..3)
        .prop_map(|clauses| Value::Object(clauses.into_iter().collect()));
    leaf.prop_recursive(3, 12, 3, move |inner| {
        let clauses = prop::collection::vec((path(), conditions()), 0..2);
        let filters = || prop::collection::vec(inner.clone(), 1..3).prop_map(Value::from);
        let join = prop_oneof![
            (Just("any"), filters()),
            (Just("all"), filters()),
            (Just("not"), inner.clone()),
        ];
        (clauses, prop::collection::vec(join, 1..3)).prop_map(|(clauses, joins)| {
            let joins = joins.into_iter().map(|(name, value)| (name.to_owned(), value));
            Value::Object(clauses.into_iter().chain(joins).collect())
        })
    })
}

/// JSON that is often nearly a filter.
fn nearly_a_filter() -> impl Strategy<Value = Value> {
    let key = prop_oneof![
        3 => prop::sample::select(vec!["any", "all", "not", "eq", "gt", "in", "exists", "prefix"])
            .prop_map(str::to_owned),
        3 => "(data|type|metadata)[.\\[\\]'\"\\\\0-9a~/é*-]{0,8}",
        1 => ".{0,8}",
    ];
    scalar().prop_recursive(10, 100, 4, move |inner| {
        prop_oneof![
            1 => prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            3 => prop::collection::vec((key.clone(), inner), 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Shows an event of the model to a reader of documents.
fn with_document<T>(event: &Value, read: impl FnOnce(&EventDocument<'_>) -> T) -> T {
    let event_type =
        event.get("type").map(|name| EventType::parse(name.as_str().unwrap()).unwrap());
    let payload = Payload::from_json(event["data"].to_string().into()).unwrap();
    let metadata =
        event.get("metadata").map(|json| Metadata::from_json(&json.to_string()).unwrap());
    read(&EventDocument::new(event_type.as_ref(), &payload, metadata.as_ref()))
}

fn parsed(filter: &Value) -> Result<Filter, TestCaseError> {
    Filter::parse(&filter.to_string()).map_err(|error| match error.problem {
        Problem::TooManyNodes => TestCaseError::reject("over the bound"),
        _ => TestCaseError::fail(format!("{error}: {filter}")),
    })
}

proptest! {
    // Much must meet for a filter to hold.
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn both_readings_agree(filter in filter(), event in event()) {
        let read = parsed(&filter)?;
        let matches = with_document(&event, |document| read.matches(document));
        prop_assert_eq!(matches, holds(&filter, &event));
    }

    /// The same without joins, where every condition decides.
    #[test]
    fn both_readings_agree_on_conditions(conditions in conditions(), value in scalar()) {
        let (filter, event) = (json!({"data": conditions}), json!({"data": value}));
        let read = parsed(&filter)?;
        let matches = with_document(&event, |document| read.matches(document));
        prop_assert_eq!(matches, holds(&filter, &event));
    }

    #[test]
    fn a_mismatch_names_what_does_not_hold(filter in filter(), event in event()) {
        let read = parsed(&filter)?;
        match with_document(&event, |document| read.explain(document)) {
            Ok(()) => prop_assert!(holds(&filter, &event)),
            Err(mismatch) => check_mismatch(&mismatch, &filter, &event)?,
        }
    }

    #[test]
    fn not_is_undone_by_not(filter in filter(), event in event()) {
        let (not, twice) = (json!({"not": filter}), json!({"not": {"not": filter}}));
        let (once, not, twice) = (parsed(&filter)?, parsed(&not)?, parsed(&twice)?);
        with_document(&event, |document| {
            prop_assert_eq!(not.matches(document), !once.matches(document));
            prop_assert_eq!(twice.matches(document), once.matches(document));
            Ok(())
        })?;
    }

    /// Whatever JSON comes, it is a filter, or there is a place in it that is wrong.
    #[test]
    fn an_error_names_a_place(json in nearly_a_filter(), event in event()) {
        match Filter::parse(&json.to_string()) {
            Ok(filter) => with_document(&event, |document| {
                prop_assert_eq!(filter.explain(document).is_ok(), filter.matches(document));
                Ok(())
            })?,
            Err(error) => {
                prop_assert!(json.pointer(&error.at).is_some(), "{error}");
                prop_assert!(!error.to_string().is_empty());
            }
        }
    }

    #[test]
    fn no_text_makes_parsing_panic(
        text in ".{0,60}",
        path in "[data.\\[\\]'\"\\\\019é]{0,20}",
        quoted in "['\"][aé'\"\\\\]{0,6}",
    ) {
        let _ = Filter::parse(&text);
        for path in [&text, &path, &format!("data{path}"), &format!("data[{quoted}")] {
            let _ = Path::parse(path);
        }
    }
}
