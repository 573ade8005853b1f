//! Paths: `data.items[0].price`, `metadata['a.b']`, `type`.

use std::fmt;

use super::near;

/// How many names and indexes a path may have after its root.
pub const PATH_STEPS_MAX: usize = 16;

/// Where a path begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Root {
    Type,
    Data,
    Metadata,
}

impl Root {
    const NAMES: [&str; 3] = ["type", "data", "metadata"];

    fn parse(name: &str) -> Option<Self> {
        match name {
            "type" => Some(Self::Type),
            "data" => Some(Self::Data),
            "metadata" => Some(Self::Metadata),
            _ => None,
        }
    }
}

/// One way down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Key(Box<str>),
    Index(usize),
}

/// Why a text is no path. The text completes "at …:".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It begins with something else than a root.
    #[error(
        "a path begins with `type`, `data` (the payload) or `metadata`; did you mean `{did_you_mean}`?"
    )]
    Root {
        /// The path that was probably meant.
        did_you_mean: String,
    },
    /// It goes on after `type`.
    #[error("`type` is a string; there is nothing inside to look at")]
    InsideType,
    /// Not of the grammar.
    #[error("expected {expected} after `{after}`")]
    Syntax {
        /// What would have been right.
        expected: &'static str,
        /// What was read until then.
        after: String,
    },
    /// Over [`PATH_STEPS_MAX`].
    #[error("a path has at most {PATH_STEPS_MAX} names and indexes")]
    TooLong,
}

/// A way into an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Path {
    text: Box<str>,
    root: Root,
    steps: Box<[Step]>,
}

impl Path {
    pub(super) fn parse(text: &str) -> Result<Self, PathError> {
        let (name, mut rest) = text.split_at(text.find(['.', '[']).unwrap_or(text.len()));
        let root = Root::parse(name)
            .ok_or_else(|| PathError::Root { did_you_mean: with_root(text, name, rest) })?;
        let mut steps = Vec::new();
        while !rest.is_empty() {
            if steps.len() == PATH_STEPS_MAX {
                return Err(PathError::TooLong);
            }
            let (step, after) = step(rest).map_err(|(expected, at)| PathError::Syntax {
                expected,
                after: text[..text.len() - at.len()].to_owned(),
            })?;
            steps.push(step);
            rest = after;
        }
        if root == Root::Type && !steps.is_empty() {
            return Err(PathError::InsideType);
        }
        Ok(Self { text: text.into(), root, steps: steps.into() })
    }

    pub(super) fn root(&self) -> Root {
        self.root
    }

    pub(super) fn steps(&self) -> &[Step] {
        &self.steps
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }
}

/// What somebody meant who forgot the root, or has another word for it.
fn with_root(text: &str, name: &str, rest: &str) -> String {
    const WORDS: &[(&str, &str)] = &[
        ("payload", "data"),
        ("body", "data"),
        ("event", "type"),
        ("event_type", "type"),
        ("meta", "metadata"),
    ];
    match near(&name.to_lowercase(), WORDS, Root::NAMES) {
        Some(root) => format!("{root}{rest}"),
        None => format!("data.{}", text.trim_start_matches(['$', '.'])),
    }
}

/// Reads one step: `.name`, `[0]`, `["name"]` or `['name']`. Fails with what it expected, and where.
fn step(text: &str) -> Result<(Step, &str), (&'static str, &str)> {
    if let Some(rest) = text.strip_prefix('.') {
        let end = rest.find(['.', '[', ']']).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        return if name.is_empty() {
            Err(("a name", rest))
        } else {
            Ok((Step::Key(name.into()), after))
        };
    }
    let Some(rest) = text.strip_prefix('[') else {
        return Err(("`.` or `[`", text));
    };
    if let Some(quoted) = rest.strip_prefix(['"', '\'']) {
        let (name, after) = quoted_name(quoted, &rest[..1])?;
        let after = after.strip_prefix(']').ok_or(("`]`", after))?;
        return Ok((Step::Key(name.into()), after));
    }
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (index, after) = rest.split_at(digits);
    let is_plain = index == "0" || !index.starts_with('0');
    let index =
        index.parse().ok().filter(|_| is_plain).ok_or(INDEX_EXPECTED).map_err(|e| (e, rest))?;
    let after = after.strip_prefix(']').ok_or(("`]`", after))?;
    Ok((Step::Index(index), after))
}

const INDEX_EXPECTED: &str = "an index such as `0` or a name in quotes";

/// Reads up to the closing quote; before a quote or a backslash that belongs to the name stands a
/// backslash.
fn quoted_name<'a>(
    text: &'a str,
    quote: &str,
) -> Result<(String, &'a str), (&'static str, &'a str)> {
    let (mut name, mut rest) = (String::new(), text);
    loop {
        let Some(end) = rest.find(['\\', '"', '\'']) else {
            return Err(("the closing quote", &text[text.len()..]));
        };
        name.push_str(&rest[..end]);
        let (mark, after) = (&rest[end..=end], &rest[end + 1..]);
        if mark == quote {
            return Ok((name, after));
        }
        if mark == "\\" {
            if !after.starts_with(['\\', '"', '\'']) {
                return Err(("a quote or a backslash", after));
            }
            name.push_str(&after[..1]);
            rest = &after[1..];
        } else {
            name.push_str(mark);
            rest = after;
        }
    }
}

/// Where in a filter something stands: a JSON Pointer (RFC 6901), empty for all of it.
#[derive(Debug, Default)]
pub(super) struct Pointer(String);

impl Pointer {
    /// Goes down one level; what comes back is the way up, for [`Self::back_to`].
    pub(super) fn push(&mut self, segment: impl fmt::Display) -> usize {
        let before = self.0.len();
        let segment = segment.to_string();
        self.0.push('/');
        self.0.push_str(&segment.replace('~', "~0").replace('/', "~1"));
        before
    }

    /// Goes up again.
    pub(super) fn back_to(&mut self, before: usize) {
        self.0.truncate(before);
    }

    pub(super) fn to_text(&self) -> String {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<&[&str], &str>) {
        let got = Path::parse(text).map(|path| {
            let shown = |step: &Step| match step {
                Step::Key(key) => key.to_string(),
                Step::Index(index) => format!("#{index}"),
            };
            path.steps.iter().map(shown).collect::<Vec<_>>()
        });
        match expected {
            Ok(steps) => assert_eq!(
                got.as_deref(),
                Ok(&*steps.iter().map(ToString::to_string).collect::<Vec<_>>()),
                "{text}"
            ),
            Err(error) => assert_eq!(got.unwrap_err().to_string(), error, "{text}"),
        }
    }

    #[test]
    fn paths_have_names_and_indexes() {
        check("type", Ok(&[]));
        check("data", Ok(&[]));
        check("data.customer.id", Ok(&["customer", "id"]));
        check("data.items[0].price", Ok(&["items", "#0", "price"]));
        check("data[10][0]", Ok(&["#10", "#0"]));
        check("metadata.0", Ok(&["0"]));
        check("data.a-b.ü ü.it's", Ok(&["a-b", "ü ü", "it's"]));
        check(r#"data["a.b"].c"#, Ok(&["a.b", "c"]));
        check(r#"data['a"b']['']"#, Ok(&["a\"b", ""]));
        check(r#"data['it\'s \\ "so"']"#, Ok(&[r#"it's \ "so""#]));
        check(r#"data["[x]"]"#, Ok(&["[x]"]));
    }

    #[test]
    fn what_is_no_path_is_told_where_it_breaks() {
        check("type.name", Err("`type` is a string; there is nothing inside to look at"));
        check("data.", Err("expected a name after `data.`"));
        check("data..a", Err("expected a name after `data.`"));
        check(
            "data]",
            Err(
                "a path begins with `type`, `data` (the payload) or `metadata`; did you mean `data`?",
            ),
        );
        check("data.a]", Err("expected `.` or `[` after `data.a`"));
        check("data[0]a", Err("expected `.` or `[` after `data[0]`"));
        check("data[0", Err("expected `]` after `data[0`"));
        for bad in
            ["data[]", "data[-1]", "data[+1]", "data[01]", "data[*]", "data[99999999999999999999]"]
        {
            check(bad, Err("expected an index such as `0` or a name in quotes after `data[`"));
        }
        check("data['a", Err("expected the closing quote after `data['a`"));
        check(r"data['\n']", Err(r"expected a quote or a backslash after `data['\`"));
        check("data['a'", Err("expected `]` after `data['a'`"));
    }

    #[test]
    fn a_forgotten_root_is_guessed() {
        #[track_caller]
        fn check(text: &str, meant: &str) {
            let did_you_mean = meant.to_owned();
            assert_eq!(Path::parse(text), Err(PathError::Root { did_you_mean }));
        }
        check("amount", "data.amount");
        check("payload.amount", "data.amount");
        check("$.amount", "data.amount");
        check("Data.amount", "data.amount");
        check("metdata['a']", "metadata['a']");
        check("event_type", "type");
        check("date.day", "data.date.day");
    }

    #[test]
    fn paths_have_a_bound() {
        let of = |steps: usize| format!("data{}", ".a".repeat(steps));
        assert!(Path::parse(&of(PATH_STEPS_MAX)).is_ok());
        assert_eq!(Path::parse(&of(PATH_STEPS_MAX + 1)), Err(PathError::TooLong));
    }

    #[test]
    fn pointers_escape_what_separates_them() {
        let mut pointer = Pointer::default();
        let top = pointer.push("a/b~c");
        pointer.push(0);
        assert_eq!(pointer.to_text(), "/a~1b~0c/0");
        pointer.back_to(top);
        assert_eq!(pointer.to_text(), "");
    }
}
