//! An event as filters look at it: JSON that is read only where a path leads, and there once.
//!
//! An event may meet the filters of thousands of subscriptions, most events meet none, and a
//! mebibyte of JSON grows to a hundred as a tree of maps. So a value stays the text that it is until
//! a path leads to it; then its members are told apart, and stay text in turn. A level of a payload is
//! read in one pass at most over its text, and paths lead through the outermost level and at most
//! [`super::PATH_STEPS_MAX`] more: this bounds what all filters of an event together can cost.
//!
//! Reading never fails: whatever was accepted as JSON has a meaning here, also what stricter parsers
//! refuse (half of a surrogate pair, a number beyond all floats, a key that is there twice).

use std::{borrow::Cow, cell::OnceCell, cmp::Ordering, fmt};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::path::{Path, Root, Step};
use crate::domain::event::{EventType, Metadata, Payload};

/// How many bytes of a value a verdict shows.
pub const FOUND_BYTES_MAX: usize = 256;

/// An event to be matched. Made once for each event, and then shown to all filters.
pub struct EventDocument<'a> {
    event_type: Option<Node<'a>>,
    data: Option<Node<'a>>,
    metadata: Option<Node<'a>>,
}

impl<'a> EventDocument<'a> {
    /// An event of these parts. Nothing is read yet.
    pub fn new(
        event_type: Option<&'a EventType>,
        payload: &'a Payload,
        metadata: Option<&'a Metadata>,
    ) -> Self {
        Self {
            event_type: event_type.map(|name| Node::string(name.as_str())),
            data: std::str::from_utf8(payload.bytes()).ok().map(Node::new),
            metadata: metadata.map(|metadata| Node::new(metadata.as_str())),
        }
    }

    /// What stands at a path, if anything does.
    pub(super) fn value(&self, path: &Path) -> Option<&Value<'a>> {
        self.node(path).map(Node::value)
    }

    /// What stands at a path as JSON text, cut to [`FOUND_BYTES_MAX`].
    pub(super) fn shown(&self, path: &Path) -> Option<String> {
        let text = self.node(path)?.text;
        // A dotted name needs no escapes.
        Some(if path.root() == Root::Type { format!("\"{text}\"") } else { cut(text) })
    }

    fn node(&self, path: &Path) -> Option<&Node<'a>> {
        let root = match path.root() {
            Root::Type => &self.event_type,
            Root::Data => &self.data,
            Root::Metadata => &self.metadata,
        };
        root.as_ref()?.at(path.steps())
    }
}

/// Payloads are other people's data: a log shows nothing of them.
impl fmt::Debug for EventDocument<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EventDocument")
    }
}

/// The beginning of a text, with an ellipsis if that is not all of it.
fn cut(text: &str) -> String {
    if text.len() <= FOUND_BYTES_MAX {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(FOUND_BYTES_MAX);
    format!("{}…", &text[..end])
}

/// A JSON value: its text, and once somebody asked, what that says. Boxed, so that a list of a
/// million numbers of which one is looked at costs 24 bytes for each of the others.
pub(super) struct Node<'a> {
    text: &'a str,
    value: OnceCell<Box<Value<'a>>>,
}

/// One level of JSON.
pub(super) enum Value<'a> {
    Null,
    Bool(bool),
    Number(Number),
    /// Bytes rather than text: half of a surrogate pair has no UTF-8, and equals nothing that has.
    String(Cow<'a, [u8]>),
    List(Vec<Node<'a>>),
    /// Ordered by key, each key once.
    Object(Vec<(Cow<'a, [u8]>, Node<'a>)>),
}

impl<'a> Node<'a> {
    /// A value of valid JSON text.
    pub(super) fn new(text: &'a str) -> Self {
        Self { text: text.trim_ascii(), value: OnceCell::new() }
    }

    /// A string of this text, which is no JSON.
    fn string(text: &'a str) -> Self {
        let value = Value::String(Cow::Borrowed(text.as_bytes()));
        Self { text, value: OnceCell::from(Box::new(value)) }
    }

    /// The text, without blanks around it.
    pub(super) fn text(&self) -> &'a str {
        self.text
    }

    /// What the text says. What is no JSON, which `Payload` and `Metadata` rule out, says null.
    pub(super) fn value(&self) -> &Value<'a> {
        self.value.get_or_init(|| Box::new(read(self.text).unwrap_or(Value::Null)))
    }

    fn at(&self, steps: &[Step]) -> Option<&Node<'a>> {
        steps.iter().try_fold(self, |node, step| match (node.value(), step) {
            (Value::Object(members), Step::Key(key)) => members
                .binary_search_by(|(other, _)| other.as_ref().cmp(key.as_bytes()))
                .ok()
                .map(|at| &members[at].1),
            (Value::List(items), Step::Index(index)) => items.get(*index),
            _ => None,
        })
    }
}

impl<'de> Deserialize<'de> for Node<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&RawValue>::deserialize(deserializer).map(|raw| Self::new(raw.get()))
    }
}

fn read(text: &str) -> Option<Value<'_>> {
    Some(match text.as_bytes().first()? {
        b'n' => Value::Null,
        b't' => Value::Bool(true),
        b'f' => Value::Bool(false),
        b'"' => Value::String(serde_json::from_str::<Text<'_>>(text).ok()?.0),
        b'[' => Value::List(serde_json::from_str(text).ok()?),
        b'{' => Value::Object(by_key(members(text)?)),
        _ => Value::Number(Number::parse(text)?),
    })
}

/// The members of an object as they are written, repeated ones too.
pub(super) fn members(text: &str) -> Option<Vec<(Cow<'_, [u8]>, Node<'_>)>> {
    serde_json::from_str::<Members<'_>>(text).ok().map(|members| members.0)
}

/// Of a repeated key the last one counts, as most parsers have it.
fn by_key<'a>(mut members: Vec<(Cow<'a, [u8]>, Node<'a>)>) -> Vec<(Cow<'a, [u8]>, Node<'a>)> {
    members.reverse();
    members.sort_by(|(a, _), (b, _)| a.cmp(b));
    members.dedup_by(|(later, _), (kept, _)| later == kept);
    members
}

struct Members<'a>(Vec<(Cow<'a, [u8]>, Node<'a>)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some((key, node)) = map.next_entry::<Text<'de>, _>()? {
                    members.push((key.0, node));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

/// A string, read as bytes: so the parser lets half of a surrogate pair pass.
struct Text<'a>(Cow<'a, [u8]>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl<'de> Visitor<'de> for Bytes {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(bytes)))
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(bytes.to_owned())))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

/// A number: exact if it is an integer of up to 128 bits, else the nearest 64-bit float.
#[derive(Debug, Clone, Copy)]
pub(super) enum Number {
    Integer(i128),
    /// Never NaN, which JSON cannot say; infinite for what is beyond all floats.
    Float(f64),
}

impl Number {
    fn parse(text: &str) -> Option<Self> {
        if let Ok(integer) = text.parse() {
            return Some(Self::Integer(integer));
        }
        text.parse::<f64>().ok().filter(|float| !float.is_nan()).map(Self::Float)
    }

    /// By value: `1`, `1.0` and `1e0` are the same, 2^53 and 2^53 + 1 are not.
    pub(super) fn compare(self, other: Self) -> Ordering {
        match (self, other) {
            (Self::Integer(a), Self::Integer(b)) => a.cmp(&b),
            (Self::Float(a), Self::Float(b)) => a.partial_cmp(&b).expect("no NaN"),
            (Self::Integer(a), Self::Float(b)) => integer_to_float(a, b),
            (Self::Float(a), Self::Integer(b)) => integer_to_float(b, a).reverse(),
        }
    }
}

fn integer_to_float(integer: i128, float: f64) -> Ordering {
    /// 2^127, the first float above every `i128`.
    const ABOVE_ALL: f64 = 170_141_183_460_469_231_731_687_303_715_884_105_728.0;
    if float >= ABOVE_ALL {
        return Ordering::Less;
    }
    if float < -ABOVE_ALL {
        return Ordering::Greater;
    }
    #[expect(clippy::cast_possible_truncation, reason = "a whole float in range is cast exactly")]
    let whole = float.trunc() as i128;
    let fraction = 0.0.partial_cmp(&float.fract()).expect("no NaN");
    integer.cmp(&whole).then(fraction)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::{filter::Filter, json::JSON_DEPTH_MAX};

    impl Node<'_> {
        /// How many values of a tree were read.
        fn read_count(&self) -> usize {
            let Some(value) = self.value.get() else { return 0 };
            let inside: usize = match &**value {
                Value::List(items) => items.iter().map(Node::read_count).sum(),
                Value::Object(members) => members.iter().map(|(_, node)| node.read_count()).sum(),
                _ => 0,
            };
            1 + inside
        }
    }

    fn payload(json: impl Into<bytes::Bytes>) -> Payload {
        Payload::from_json(json.into()).unwrap()
    }

    fn reads_after(filter: &str, payload: &Payload) -> usize {
        let filter = Filter::parse(filter).unwrap();
        let event_type = EventType::parse("a").unwrap();
        let event = EventDocument::new(Some(&event_type), payload, None);
        for _ in 0..3 {
            filter.matches(&event);
        }
        event.data.unwrap().read_count()
    }

    #[track_caller]
    fn check(json: &str, path: &str, expected: Option<&str>) {
        let payload = payload(json.to_owned());
        let event = EventDocument::new(None, &payload, None);
        let path = Path::parse(path).unwrap();
        assert_eq!(event.shown(&path).as_deref(), expected, "{path:?} in {json}");
        assert_eq!(event.value(&path).is_some(), expected.is_some());
    }

    #[test]
    fn paths_lead_through_objects_and_lists() {
        let json =
            r#" {"a": {"b": [10, {"c" : [ 1, 2 ]}]}, "x.y": 1, "0": 2, "": 3, "\u0061b": 4} "#;
        check(json, "data", Some(json.trim()));
        check(json, "data.a.b[0]", Some("10"));
        check(json, "data.a.b[1].c", Some("[ 1, 2 ]"));
        check(json, "data['x.y']", Some("1"));
        check(json, "data.x.y", None);
        check(json, "data.0", Some("2"));
        check(json, "data[0]", None);
        check(json, "data['']", Some("3"));
        check(json, "data.ab", Some("4"));
        check(json, "data.a.b[2]", None);
        check(json, "data.a.b.0", None);
        check(json, "data.a.b[0].c", None);
        check(json, "metadata", None);
        check(json, "type", None);
    }

    #[test]
    fn what_stricter_parsers_refuse_has_a_meaning() {
        check(r#"{"a": 1, "b": 2, "a": 3}"#, "data.a", Some("3"));
        let equal =
            |one: &str, other: &str| match (Node::new(one).value(), Node::new(other).value()) {
                (Value::String(one), Value::String(other)) => one == other,
                (Value::Number(one), Value::Number(other)) => one.compare(*other).is_eq(),
                _ => false,
            };
        assert!(equal(r#""\ud83d\ude00""#, r#""😀""#));
        // Payloads rule these out; what reads them all the same must not panic.
        assert!(equal(r#""\ud800x""#, r#""\uD800x""#));
        assert!(!equal(r#""\ud800x""#, r#""x""#) && !equal(r#""\ud800x""#, r#""\ud801x""#));
        assert!(equal("1e999", "2e999") && !equal("1e999", "-1e999"));
        for broken in ["", "x", "{", "[1", "\"", "{\"a\" 1}", "-"] {
            assert!(matches!(Node::new(broken).value(), Value::Null), "{broken}");
        }
    }

    #[test]
    fn only_what_a_path_leads_through_is_read_and_that_once() {
        let json = r#"{"a": [{"b": 1}, {"b": 2}], "c": {"d": [1, 2, 3]}}"#;
        let payload = payload(json);
        assert_eq!(reads_after("{}", &payload), 0);
        assert_eq!(reads_after(r#"{"type": "x", "data.a": 1}"#, &payload), 0, "decided before");
        assert_eq!(reads_after(r#"{"data.x": 1}"#, &payload), 1);
        assert_eq!(reads_after(r#"{"data.a[1].b": 2, "data.a[1]": {"ne": 1}}"#, &payload), 4);
    }

    #[test]
    fn a_wide_payload_is_read_only_where_a_path_leads() {
        let members: Vec<String> = (0..100_000).map(|n| format!("\"key{n}\":[{n}]")).collect();
        let wide = payload(format!("{{{}}}", members.join(",")));
        assert_eq!(reads_after(r#"{"data.key77777[0]": 77777}"#, &wide), 3);
        let wide = payload(format!("[{}1]", "1,".repeat(500_000)));
        assert_eq!(reads_after(r#"{"data[500000]": 1, "data[0]": 1}"#, &wide), 3);
        assert!(std::mem::size_of::<Node<'_>>() <= 24, "what each of the others costs");
    }

    #[test]
    fn a_deep_payload_is_read_only_as_deep_as_a_path_leads() {
        let deep = "[".repeat(JSON_DEPTH_MAX) + &"]".repeat(JSON_DEPTH_MAX);
        let path = "[0]".repeat(super::super::PATH_STEPS_MAX);
        let filter = format!("{{\"data{path}\": 1}}");
        assert_eq!(reads_after(&filter, &payload(deep)), super::super::PATH_STEPS_MAX + 1);
    }

    #[test]
    fn what_is_shown_is_cut() {
        let long = "é".repeat(FOUND_BYTES_MAX);
        let payload = payload(format!("\"{long}\""));
        let event = EventDocument::new(None, &payload, None);
        let shown = event.shown(&Path::parse("data").unwrap()).unwrap();
        assert_eq!(shown, format!("\"{}…", "é".repeat((FOUND_BYTES_MAX - 1) / 2)));
    }

    #[test]
    fn numbers_are_compared_by_value() {
        #[track_caller]
        fn check(a: &str, expected: Ordering, b: &str) {
            let (a, b) = (Number::parse(a).unwrap(), Number::parse(b).unwrap());
            assert_eq!(a.compare(b), expected, "{a:?} {b:?}");
            assert_eq!(b.compare(a), expected.reverse(), "{b:?} {a:?}");
        }
        use Ordering::{Equal, Greater, Less};
        check("1", Equal, "1.0");
        check("1e2", Equal, "100");
        check("0", Equal, "-0.0");
        check("-0", Equal, "0");
        check("1", Less, "1.5");
        check("-1", Greater, "-1.5");
        check("-1.5", Greater, "-2");
        check("9007199254740992", Less, "9007199254740993");
        check("9007199254740993", Greater, "9007199254740992.0");
        check("18446744073709551615", Less, "18446744073709551616");
        check("18446744073709551615", Less, "18446744073709551616.0");
        check("170141183460469231731687303715884105727", Less, "1.8e38");
        check(
            "-170141183460469231731687303715884105728",
            Equal,
            "-170141183460469231731687303715884105728.0",
        );
        check("-170141183460469231731687303715884105728", Greater, "-1.8e38");
        check("1e999", Greater, "170141183460469231731687303715884105727");
        check("0.1", Equal, "1e-1");
        check("31.245270191439438", Less, "31.24527019143944");
    }

    proptest! {
        /// Any JSON that `RawValue` accepts, half broken text included.
        #[test]
        fn reading_never_panics(json in "[\\[\\]{}\",:0-9eE.+\\-ntfu\\\\ ]{0,40}") {
            let node = Node::new(&json);
            if let Value::Object(members) = node.value() {
                for (_, node) in members {
                    node.value();
                }
            }
        }
    }
}
