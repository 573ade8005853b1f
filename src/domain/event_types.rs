//! Which event types a subscription wants: `invoice.paid`, `invoice.*`, `*`.
//!
//! An event without a type reaches no subscription; so types are all that is asked about here.

use std::{collections::HashMap, fmt};

use super::event::{EVENT_TYPE_BYTES_MAX, EventType};

/// How many patterns a subscription may have.
pub const PATTERNS_MAX: usize = 100;
/// How many bytes a pattern may have: those of an event type.
pub const PATTERN_BYTES_MAX: usize = EVENT_TYPE_BYTES_MAX;

/// Why a text is no pattern. The text completes "`event_types` …".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventTypePatternError {
    /// None at all.
    #[error("must name at least one event type; `*` is all of them")]
    None,
    /// Over [`PATTERNS_MAX`].
    #[error("must be at most {PATTERNS_MAX} patterns")]
    TooMany,
    /// Over [`PATTERN_BYTES_MAX`].
    #[error("must be of at most {PATTERN_BYTES_MAX} bytes each")]
    TooLong,
    /// A `*` that is not the last segment.
    #[error(
        "must not be `{pattern}`: `*` stands alone (all types) or as the last segment \
         (`invoice.*`, all below `invoice.`){}",
        suffix(.did_you_mean.as_ref())
    )]
    Wildcard {
        /// The pattern.
        pattern: String,
        /// The pattern that was probably meant.
        did_you_mean: Option<String>,
    },
    /// No dotted name.
    #[error(
        "must not be `{pattern}`: an event type is a dotted name such as `invoice.paid`, segments \
         of letters, digits, `_` and `-`{}",
        suffix(.did_you_mean.as_ref())
    )]
    Name {
        /// The pattern.
        pattern: String,
        /// The pattern that was probably meant.
        did_you_mean: Option<String>,
    },
}

/// One type, or many.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EventTypePattern {
    /// This type.
    Exact(EventType),
    /// `invoice.*`: all types below this one, at any depth, and not itself.
    Below(EventType),
    /// `*`: all types but those of operator events, which the service itself has to say about
    /// subscriptions. They go to who names them: a subscription to `*` wants the events of a
    /// business, and one that is told of its own failures would fail over them.
    All,
}

impl EventTypePattern {
    /// Reads a pattern.
    pub fn parse(text: &str) -> Result<Self, EventTypePatternError> {
        if text.len() > PATTERN_BYTES_MAX {
            return Err(EventTypePatternError::TooLong);
        }
        if text == "*" {
            return Ok(Self::All);
        }
        let (name, pattern): (_, fn(EventType) -> Self) = match text.strip_suffix(".*") {
            Some(name) => (name, Self::Below),
            None => (text, Self::Exact),
        };
        EventType::parse(name).map(pattern).map_err(|_| {
            let (pattern, did_you_mean) = (text.to_owned(), meant(text));
            if text.contains('*') {
                EventTypePatternError::Wildcard { pattern, did_you_mean }
            } else {
                EventTypePatternError::Name { pattern, did_you_mean }
            }
        })
    }

    /// Whether an event of this type is meant.
    pub fn matches(&self, event_type: &EventType) -> bool {
        match self {
            Self::Exact(name) => name == event_type,
            Self::Below(name) => {
                let below = event_type.as_str().strip_prefix(name.as_str());
                below.is_some_and(|below| below.starts_with('.'))
            }
            Self::All => !event_type.is_operators(),
        }
    }
}

impl fmt::Display for EventTypePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name.as_str()),
            Self::Below(name) => write!(f, "{}.*", name.as_str()),
            Self::All => f.write_str("*"),
        }
    }
}

/// The sound pattern that is nearest to a text, if one is near.
fn meant(text: &str) -> Option<String> {
    let dotted = text.trim().replace(['/', ':', ' '], ".");
    let name = dotted.trim_end_matches('*').trim_matches('.');
    let is_sound = EventType::parse(name).is_ok();
    match (name, dotted.ends_with('*')) {
        ("", true) => Some("*".to_owned()),
        (_, true) if is_sound => Some(format!("{name}.*")),
        (_, false) if is_sound => Some(name.to_owned()),
        _ => None,
    }
}

fn suffix(did_you_mean: Option<&String>) -> String {
    did_you_mean.map(|meant| format!("; did you mean `{meant}`?")).unwrap_or_default()
}

/// The patterns of a subscription: 1 to [`PATTERNS_MAX`], as they were given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventTypePatterns(Box<[EventTypePattern]>);

impl EventTypePatterns {
    /// Reads the patterns.
    pub fn parse<S: AsRef<str>>(texts: &[S]) -> Result<Self, EventTypePatternError> {
        match texts.len() {
            0 => Err(EventTypePatternError::None),
            1..=PATTERNS_MAX => {
                let parse = |text: &S| EventTypePattern::parse(text.as_ref());
                texts.iter().map(parse).collect::<Result<_, _>>().map(Self)
            }
            _ => Err(EventTypePatternError::TooMany),
        }
    }

    /// Whether an event of this type is meant by one of them.
    pub fn matches(&self, event_type: &EventType) -> bool {
        self.0.iter().any(|pattern| pattern.matches(event_type))
    }

    /// The patterns.
    pub fn as_slice(&self) -> &[EventTypePattern] {
        &self.0
    }
}

/// Which of an application's subscriptions mean a type, found by the type and not by asking each.
///
/// A look-up costs one hash for each segment of the type, and then only those that it finds: among
/// 10,000 subscriptions of which one matches as much as if it were alone.
#[derive(Debug, Clone, Default)]
pub struct PatternIndex {
    exact: HashMap<Box<str>, Vec<u32>>,
    below: HashMap<Box<str>, Vec<u32>>,
    all: Vec<u32>,
}

impl PatternIndex {
    /// An index of subscriptions, which are named by their place.
    pub fn new<'p>(subscriptions: impl IntoIterator<Item = &'p EventTypePatterns>) -> Self {
        let mut index = Self::default();
        for (place, patterns) in (0_u32..).zip(subscriptions) {
            for pattern in patterns.as_slice() {
                let places = match pattern {
                    EventTypePattern::Exact(name) => {
                        index.exact.entry(name.as_str().into()).or_default()
                    }
                    EventTypePattern::Below(name) => {
                        index.below.entry(name.as_str().into()).or_default()
                    }
                    EventTypePattern::All => &mut index.all,
                };
                // The same pattern again.
                if places.last() != Some(&place) {
                    places.push(place);
                }
            }
        }
        index
    }

    /// The places of the subscriptions that mean a type: ascending, each once.
    #[expect(
        clippy::stable_sort_primitive,
        reason = "it merges the few sorted runs that there are"
    )]
    pub fn candidates(&self, event_type: &EventType) -> Vec<u32> {
        let mut places: Vec<u32> = self.lists(event_type).flatten().copied().collect();
        places.sort();
        places.dedup();
        places
    }

    /// The lists that a type is in: at most one for each of its segments, and one more.
    fn lists<'i>(&'i self, event_type: &'i EventType) -> impl Iterator<Item = &'i Vec<u32>> {
        let name = event_type.as_str();
        let above = name.match_indices('.').map(|(end, _)| &name[..end]);
        let below = above.filter_map(|name| self.below.get(name));
        let all = (!event_type.is_operators()).then_some(&self.all);
        self.exact.get(name).into_iter().chain(below).chain(all)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event_type(text: &str) -> EventType {
        EventType::parse(text).unwrap()
    }

    #[track_caller]
    fn check(pattern: &str, expected: &[&str], others: &[&str]) {
        let parsed = EventTypePattern::parse(pattern).unwrap();
        assert_eq!(parsed.to_string(), pattern);
        for name in expected {
            assert!(parsed.matches(&event_type(name)), "{pattern} means {name}");
        }
        for name in others {
            assert!(!parsed.matches(&event_type(name)), "{pattern} does not mean {name}");
        }
    }

    #[test]
    fn patterns_mean_a_type_or_all_below_or_all() {
        check("invoice", &["invoice"], &["invoice.paid", "Invoice"]);
        check(
            "invoice.paid",
            &["invoice.paid"],
            &["invoice", "invoice.paid.late", "invoice.paid2"],
        );
        check(
            "invoice.*",
            &["invoice.paid", "invoice.line.added"],
            &["invoice", "invoices.paid", "my.invoice.paid"],
        );
        check("invoice.line.*", &["invoice.line.added"], &["invoice.line", "invoice.paid"]);
    }

    #[test]
    fn operator_events_must_be_named() {
        let operator = ["webhook.subscription.disabled", "webhook.test"];
        check("*", &["invoice.paid", "webhook", "webhooks.made"], &operator);
        check("webhook.*", &operator, &["webhook", "invoice.paid"]);
        check("webhook.subscription.*", &operator[..1], &operator[1..]);
        check("webhook.test", &operator[1..], &operator[..1]);
    }

    #[test]
    fn what_is_no_pattern_is_told_what_would_be() {
        #[track_caller]
        fn check(text: &str, near: Option<&str>) {
            let error = EventTypePattern::parse(text).unwrap_err();
            let (pattern, did_you_mean) = (text.to_owned(), near.map(str::to_owned));
            let expected = if text.contains('*') {
                EventTypePatternError::Wildcard { pattern, did_you_mean }
            } else {
                EventTypePatternError::Name { pattern, did_you_mean }
            };
            assert_eq!(error, expected);
            let told = near.map(|near| format!("did you mean `{near}`?"));
            assert!(told.is_none_or(|told| error.to_string().ends_with(&told)), "{error}");
        }
        check("invoice*", Some("invoice.*"));
        check("invoice.**", Some("invoice.*"));
        check("**", Some("*"));
        check(".*", Some("*"));
        check("invoice.", Some("invoice"));
        check("invoice/paid", Some("invoice.paid"));
        check(" invoice.paid ", Some("invoice.paid"));
        check("*.paid", None);
        check("invoice.*.paid", None);
        check("", None);
        check("é", None);
        check("a\r\nb", None);
    }

    #[test]
    fn patterns_have_bounds() {
        let name = "x".repeat(PATTERN_BYTES_MAX - 2);
        assert!(EventTypePattern::parse(&format!("{name}.*")).is_ok());
        let error = EventTypePattern::parse(&format!("{name}x.*"));
        assert_eq!(error, Err(EventTypePatternError::TooLong));
        assert!(EventTypePatterns::parse(&["a"; PATTERNS_MAX]).is_ok());
        let error = EventTypePatterns::parse(&["a"; PATTERNS_MAX + 1]);
        assert_eq!(error, Err(EventTypePatternError::TooMany));
        assert_eq!(EventTypePatterns::parse::<&str>(&[]), Err(EventTypePatternError::None));
        assert!(EventTypePatterns::parse(&["a", "b*"]).is_err());
    }

    /// What a look-up touches, counted rather than timed.
    #[test]
    fn a_look_up_touches_only_what_it_finds() {
        let names = (0..10_000).map(|n| [format!("kind{n}.made"), format!("group{n}.*")]);
        let subscriptions: Vec<_> =
            names.map(|names| EventTypePatterns::parse(&names).unwrap()).collect();
        let index = PatternIndex::new(&subscriptions);
        for (name, expected) in [
            ("kind7.made", vec![7]),
            ("group9999.a.b.c", vec![9_999]),
            ("group7", vec![]),
            ("kind7.made.again", vec![]),
        ] {
            let touched: usize = index.lists(&event_type(name)).map(Vec::len).sum();
            assert_eq!(touched, expected.len(), "{name}");
            assert_eq!(index.candidates(&event_type(name)), expected, "{name}");
        }
    }

    #[test]
    fn each_subscription_is_found_once_and_in_order() {
        let subscriptions =
            [&["a.*", "*"][..], &["b"], &["*", "a.b", "a.*", "*", "a.b.*"], &["a.b"]]
                .map(|texts| EventTypePatterns::parse(texts).unwrap());
        let index = PatternIndex::new(&subscriptions);
        assert_eq!(index.candidates(&event_type("a.b")), [0, 2, 3]);
        assert_eq!(index.candidates(&event_type("a.b.c")), [0, 2]);
        assert_eq!(index.candidates(&event_type("b")), [0, 1, 2]);
    }

    /// Names of few letters, so that they meet.
    fn name() -> impl Strategy<Value = String> {
        let segment = prop_oneof![Just("a"), Just("b"), Just("webhook")];
        prop::collection::vec(segment, 1..4).prop_map(|segments| segments.join("."))
    }

    fn pattern() -> impl Strategy<Value = String> {
        prop_oneof![
            4 => name(),
            4 => name().prop_map(|name| format!("{name}.*")),
            1 => Just("*".to_owned()),
        ]
    }

    proptest! {
        #[test]
        fn the_index_finds_what_asking_each_finds(
            subscriptions in prop::collection::vec(prop::collection::vec(pattern(), 1..5), 0..20),
            name in name(),
        ) {
            let subscriptions: Vec<_> = subscriptions
                .iter()
                .map(|patterns| EventTypePatterns::parse(patterns).unwrap())
                .collect();
            let name = event_type(&name);
            let naive: Vec<u32> = (0_u32..)
                .zip(&subscriptions)
                .filter(|(_, patterns)| patterns.matches(&name))
                .map(|(place, _)| place)
                .collect();
            prop_assert_eq!(PatternIndex::new(&subscriptions).candidates(&name), naive);
        }

        #[test]
        fn any_text_is_a_pattern_or_an_error(
            text in prop_oneof![".{0,140}", "[ab.*]{1,6}", pattern()],
        ) {
            match EventTypePattern::parse(&text) {
                Ok(pattern) => prop_assert_eq!(pattern.to_string(), text),
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
        }
    }
}
