//! Callers' own names for what they make, accepted wherever an id is.

/// How many bytes a uid may have.
pub const UID_BYTES_MAX: usize = 255;

/// A caller's own name for an application or a subscription. It needs no escape in a path, and
/// cannot be taken for one of our ids.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Uid(String);

/// Why a text is no uid. Completes "`uid` …".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be 1 to {UID_BYTES_MAX} letters, digits or `-_.~:@`, with a letter or digit first, and \
     must not begin like an id of ours (`app_`, `sub_` and so on)"
)]
pub struct UidError;

/// What ids of ours begin with.
pub const ID_PREFIXES: [&str; 9] =
    ["app_", "sub_", "evt_", "dlv_", "att_", "key_", "lane_", "rpl_", "ers_"];

impl Uid {
    /// Reads a uid.
    pub fn parse(text: &str) -> Result<Self, UidError> {
        let is_sound = text.len() <= UID_BYTES_MAX
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.~:@".contains(&b))
            && !ID_PREFIXES.iter().any(|prefix| text.starts_with(prefix));
        if is_sound { Ok(Self(text.to_owned())) } else { Err(UidError) }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_need_no_escape_and_are_no_ids() {
        for good in ["default", "acme", "7", "user@example.com", "a:b~c.d-e_f", "apple"] {
            assert_eq!(Uid::parse(good).map(|uid| uid.as_str().to_owned()), Ok(good.to_owned()));
        }
        let long = "x".repeat(UID_BYTES_MAX + 1);
        for bad in ["", " ", "a b", "a/b", "a%2Fb", "é", "-a", ".", "..", "app_1", "sub_x", &long]
        {
            assert_eq!(Uid::parse(bad), Err(UidError), "{bad:?}");
        }
    }
}
