//! What JSON text must keep to, beyond its grammar, before it is stored and sent on.
//!
//! One pass over the text, without recursion and without building anything: payloads are kept as the
//! bytes that came, so nothing else would ever look at them before a receiver does.

/// How deep arrays and objects of a payload or of metadata may nest.
pub const JSON_DEPTH_MAX: usize = 128;

/// So many bytes of digits without an exponent are within the range of a double: 1e308 is.
const PLAIN_NUMBER_BYTES_MAX: usize = 308;

/// Why valid JSON is not taken. The text completes "`field` …".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Arrays and objects nested deeper than [`JSON_DEPTH_MAX`].
    #[error("must not nest deeper than {JSON_DEPTH_MAX} levels")]
    TooDeep,
    /// Such as 1e400, which parsers refuse, or take for infinity.
    #[error("must not hold a number beyond ±1.8e308, the range of a double")]
    Number,
    /// An escape such as `\ud800` without its other half: no Unicode text can hold that.
    #[error("must not hold half of a surrogate pair (`\\ud800` to `\\udfff` alone)")]
    Surrogate,
    /// `\u0000`, which Postgres' text cannot hold.
    #[error("must not hold the character U+0000")]
    Nul,
}

/// What is thought of `\u0000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nul {
    /// In payloads: they are bytes here, and what their strings hold is the receiver's business.
    Allowed,
    /// In what is kept as text, and may be looked into with SQL.
    Refused,
}

/// Checks a text that is known to be one JSON value; of any other the answer means nothing.
pub fn check(json: &[u8], nul: Nul) -> Result<(), JsonError> {
    let (mut depth, mut rest) = (0_usize, json);
    while let Some((&byte, after)) = rest.split_first() {
        rest = match byte {
            b'"' => after_string(after, nul)?,
            b'{' | b'[' => {
                depth += 1;
                if depth > JSON_DEPTH_MAX {
                    return Err(JsonError::TooDeep);
                }
                after
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                after
            }
            b'-' | b'0'..=b'9' => after_number(rest)?,
            _ => after,
        };
    }
    Ok(())
}

/// What follows a string whose opening quote was just read.
fn after_string(mut rest: &[u8], nul: Nul) -> Result<&[u8], JsonError> {
    // Payloads are mostly strings, and this is faster than a look at each of their bytes.
    while let Some(at) = memchr::memchr2(b'"', b'\\', rest) {
        if rest[at] == b'"' {
            return Ok(&rest[at + 1..]);
        }
        let is_unicode = rest.get(at + 1) == Some(&b'u');
        rest = rest.get(at + 2..).unwrap_or_default();
        if is_unicode {
            rest = after_unicode_escape(rest, nul)?;
        }
    }
    Ok(&[])
}

/// What follows `\u`, its digits and, of a surrogate pair, the second half.
fn after_unicode_escape(rest: &[u8], nul: Nul) -> Result<&[u8], JsonError> {
    let (unit, rest) = code_unit(rest);
    match unit {
        0 if nul == Nul::Refused => Err(JsonError::Nul),
        0xD800..=0xDBFF => {
            let second = rest.strip_prefix(b"\\u").ok_or(JsonError::Surrogate)?;
            let (unit, rest) = code_unit(second);
            if (0xDC00..=0xDFFF).contains(&unit) { Ok(rest) } else { Err(JsonError::Surrogate) }
        }
        0xDC00..=0xDFFF => Err(JsonError::Surrogate),
        _ => Ok(rest),
    }
}

/// The value of four hexadecimal digits, and what follows them.
fn code_unit(text: &[u8]) -> (u32, &[u8]) {
    let (digits, rest) = text.split_at(text.len().min(4));
    let value = |digit: &u8| char::from(*digit).to_digit(16).unwrap_or_default();
    (digits.iter().fold(0, |unit, digit| unit * 16 + value(digit)), rest)
}

/// What follows the number that the text begins with.
fn after_number(text: &[u8]) -> Result<&[u8], JsonError> {
    let is_part = |b: &u8| matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
    let end = text.iter().position(|byte| !is_part(byte)).unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    let has_exponent = number.iter().any(|byte| matches!(byte, b'e' | b'E'));
    if has_exponent || number.len() > PLAIN_NUMBER_BYTES_MAX {
        let value = str::from_utf8(number).ok().and_then(|number| number.parse::<f64>().ok());
        if value.is_some_and(f64::is_infinite) {
            return Err(JsonError::Number);
        }
    }
    Ok(rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, value::RawValue};

    use super::*;

    #[track_caller]
    fn refused(json: &str, expected: Option<JsonError>) {
        assert_eq!(check(json.as_bytes(), Nul::Refused).err(), expected, "{json}");
    }

    #[test]
    fn depth_counts_brackets_outside_strings() {
        let deep = |n: usize| "[".repeat(n) + &"]".repeat(n);
        refused(&deep(JSON_DEPTH_MAX), None);
        refused(&deep(JSON_DEPTH_MAX + 1), Some(JsonError::TooDeep));
        refused(&format!(r#"["\"{}\\"]"#, "[".repeat(1_000)), None);
        refused(&format!("[{}]", "[],".repeat(1_000) + "{}"), None);
    }

    #[test]
    fn numbers_are_within_the_range_of_a_double() {
        for json in ["0", "-1.7976931348623157e308", "1e308", "[1e-400]", "\"1e400\"", "true"] {
            refused(json, None);
        }
        refused(&"9".repeat(308), None);
        for json in ["1e309", "-1E+400", "{\"a\":[1,1.8e308]}", &"9".repeat(309)] {
            refused(json, Some(JsonError::Number));
        }
    }

    #[test]
    fn surrogates_come_in_pairs() {
        for json in [r#""\ud83d\ude00""#, r#""\u00e9\\ud800""#, r#""\uD7FF\uE000""#] {
            refused(json, None);
        }
        for json in [
            r#""\ud800""#,
            r#""\uDFFF""#,
            r#""\ud800\ud800""#,
            r#""\ud800x\udc00""#,
            r#""\ude00\ud83d""#,
            r#"{"\udbff": 1}"#,
        ] {
            refused(json, Some(JsonError::Surrogate));
        }
    }

    #[test]
    fn nul_is_refused_where_it_is_to_be() {
        for json in [r#""a\u0000b""#, r#"{"\u0000": 1}"#] {
            refused(json, Some(JsonError::Nul));
            assert_eq!(check(json.as_bytes(), Nul::Allowed), Ok(()));
        }
        refused(r#""\\u0000""#, None);
        refused(r#""\u0001""#, None);
    }

    /// Strings of what is easily got wrong, in arrays.
    fn tricky_json() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "a",
            "é",
            "\\\\",
            "\\\"",
            "\\n",
            "\\u0041",
            "\\ud800",
            "\\uDC00",
            "\\ud83d\\ude00",
            "\\u0000",
            "[",
            "}",
            "1e999",
        ]);
        let string = prop::collection::vec(piece, 0..6).prop_map(|p| format!("\"{}\"", p.concat()));
        let number = r"-?(0|[1-9][0-9]{0,5})(\.[0-9]{1,3})?([eE][+-]?[0-9]{1,3})?";
        let one = prop_oneof![string, number, Just("null".to_owned())];
        prop::collection::vec(one, 0..6).prop_map(|items| format!("[{}]", items.join(" ,")))
    }

    proptest! {
        /// A parser with code of its own agrees.
        #[test]
        fn what_is_taken_can_be_parsed_and_what_is_not_cannot(json in tricky_json()) {
            let text: &RawValue = serde_json::from_str(&json).unwrap();
            let checked = check(text.get().as_bytes(), Nul::Allowed);
            let parsed = serde_json::from_str::<Value>(&json);
            prop_assert_eq!(checked.is_ok(), parsed.is_ok(), "{} {:?}", json, checked);
        }

        #[test]
        fn no_text_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64),
                                  text in r#"["\\u{}\[\]de0-9+.-]{0,40}"#) {
            let _ = check(&bytes, Nul::Refused);
            let _ = check(text.as_bytes(), Nul::Refused);
        }
    }
}
