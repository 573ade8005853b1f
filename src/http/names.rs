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

/// The known name that is most like this one, ignoring case and separators.
pub fn near_miss<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let normalized = known.iter().map(|known| normalized(known));
    most_alike(name, normalized).map(|index| known[index])
}

/// Names to compare several unknown ones with.
pub struct KnownNames {
    names: Vec<String>,
    normalized: Vec<String>,
}

impl KnownNames {
    /// These names.
    pub fn new(names: Vec<String>) -> Self {
        let normalized = names.iter().map(|name| normalized(name)).collect();
        Self { names, normalized }
    }

    /// The name that is most like this one, ignoring case and separators.
    pub fn near_miss(&self, name: &str) -> Option<&str> {
        most_alike(name, self.normalized.iter()).map(|index| self.names[index].as_str())
    }
}

fn normalized(name: &str) -> String {
    let name = &name[..name.floor_char_boundary(NAME_BYTES_MAX)];
    name.replace(['-', '_', ' '], "").to_lowercase()
}

/// The index of the name that is most like this one. Each is compared once.
fn most_alike(name: &str, known: impl Iterator<Item: AsRef<str>>) -> Option<usize> {
    let name = normalized(name);
    let similarities = known.map(|known| {
        #[cfg(test)]
        COMPARED.with(|compared| compared.set(compared.get() + 1));
        strsim::jaro_winkler(&name, known.as_ref())
    });
    let best = similarities.enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b));
    best.filter(|(_, similarity)| *similarity >= SIMILARITY_MIN).map(|(index, _)| index)
}

#[cfg(test)]
thread_local! {
    /// Number of comparisons of this thread.
    static COMPARED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Number of comparisons of this thread so far.
#[cfg(test)]
pub fn compared() -> usize {
    COMPARED.with(std::cell::Cell::get)
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
