//! Names that are not known: which of the known ones was meant.

/// How many bytes of an unknown name are looked at, and told back.
const NAME_BYTES_MAX: usize = 64;
/// How alike two names must be, from 0 to 1 (Jaro-Winkler), for one to be taken for a slip of the
/// other: `target` for `target_url` is, `time` for `type` is not.
const SIMILARITY_MIN: f64 = 0.85;

/// Says that a name, of a `kind` such as "field", is not known; and which one may have been meant,
/// or else which ones there are.
pub fn unknown(kind: &str, name: &str, known: &[&str]) -> String {
    let name = shown(name);
    match near_miss(&name, known) {
        Some(meant) => format!("unknown {kind} `{name}`: did you mean `{meant}`?"),
        None => format!("unknown {kind} `{name}`: there are `{}`", known.join("`, `")),
    }
}

/// A name of others, as a message may show it.
pub fn shown(name: &str) -> String {
    let end = name.floor_char_boundary(NAME_BYTES_MAX);
    let ellipsis = if end < name.len() { "…" } else { "" };
    format!("{}{ellipsis}", name[..end].escape_debug())
}

/// The known name that is most like this one, whatever its case and its separators.
pub fn near_miss<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let normal = |name: &str| name.replace(['-', '_', ' '], "").to_lowercase();
    let name = normal(name);
    let similarity = |known: &&&str| strsim::jaro_winkler(&name, &normal(known));
    let best = known.iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b)))?;
    (similarity(&best) >= SIMILARITY_MIN).then_some(*best)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 4] = ["payload", "type", "target_url", "idempotency_key"];

    #[test]
    fn slips_are_told_from_other_names() {
        for (slip, meant) in [
            ("playload", "payload"),
            ("Payload", "payload"),
            ("payloads", "payload"),
            ("typ", "type"),
            ("targte_url", "target_url"),
            ("targetUrl", "target_url"),
            ("target", "target_url"),
            ("idempotencyKey", "idempotency_key"),
            ("idempotency-key", "idempotency_key"),
        ] {
            let expected = format!("unknown field `{slip}`: did you mean `{meant}`?");
            assert_eq!(unknown("field", slip, &KNOWN), expected);
        }
        for other in ["", "colour", "time", "x", "data", "é"] {
            let message = unknown("field", other, &KNOWN);
            assert!(
                message.ends_with("there are `payload`, `type`, `target_url`, `idempotency_key`")
            );
        }
        assert!(unknown("field", "a", &[]).contains("`a`"));
    }

    #[test]
    fn what_is_shown_is_short_and_printable() {
        assert_eq!(shown("a\r\nb\0"), "a\\r\\nb\\0");
        let long = shown(&"é".repeat(1_000));
        assert!(long.len() < 100 && long.ends_with('…'), "{long}");
    }
}
