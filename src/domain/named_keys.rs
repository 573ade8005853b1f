//! Signing keys that callers choose by name: those of `SIGNING_KEYS`.
//!
//! A key belongs to one application, and is found only under it: what one tenant names is never
//! another's.

use std::{collections::HashMap, fmt, sync::Arc};

use super::{
    ids::{ApplicationId, DEFAULT_APPLICATION},
    signature::{SigningKey, SigningKeys},
};

/// How many bytes the name of a key may have.
pub const KEY_NAME_BYTES_MAX: usize = 64;
/// How many keys there may be.
pub const NAMED_KEYS_MAX: usize = 1_000;
/// What the application is called whose keys need no name of an application before theirs.
pub const DEFAULT_OWNER: &str = "default";

/// A text that names no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to {KEY_NAME_BYTES_MAX} letters, digits, `_`, `-` and `.`")]
pub struct NoKeyName;

/// What a key is called: `signatureKeyId` in requests, `X-Webhook-Key-Id` for receivers. Not a
/// secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyName(String);

impl KeyName {
    /// Reads a name. What is one can be the value of a header.
    pub fn parse(text: &str) -> Result<Self, NoKeyName> {
        let is_sound = (1..=KEY_NAME_BYTES_MAX).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
        if is_sound { Ok(Self(text.to_owned())) } else { Err(NoKeyName) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The keys of all applications. Cheap to clone; `Debug` shows names.
#[derive(Debug, Clone, Default)]
pub struct NamedKeys(Arc<HashMap<String, HashMap<KeyName, SigningKeys>>>);

impl NamedKeys {
    /// Keys, each with its owner: an application's id or its uid.
    pub fn new(keys: impl IntoIterator<Item = (String, KeyName, SigningKey)>) -> Self {
        let mut owners = HashMap::<String, HashMap<_, _>>::new();
        for (owner, name, key) in keys {
            owners.entry(owner).or_default().insert(name, SigningKeys::single(key));
        }
        Self(Arc::new(owners))
    }

    /// The key of this name that belongs to this application. `uid` is the application's own, if it
    /// is known; that of `default` need not be told.
    pub fn of(
        &self,
        application: ApplicationId,
        uid: Option<&str>,
        name: &KeyName,
    ) -> Option<&SigningKeys> {
        let uid = if application == DEFAULT_APPLICATION { Some(DEFAULT_OWNER) } else { uid };
        let id = application.to_string();
        [Some(id.as_str()), uid]
            .into_iter()
            .flatten()
            .find_map(|owner| self.0.get(owner)?.get(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> KeyName {
        KeyName::parse(text).unwrap()
    }

    #[test]
    fn names_can_stand_in_a_header() {
        for good in ["a", "2026-01", "tenant_7.current"] {
            assert_eq!(KeyName::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "a b", "a/b", "a=b", "a,b", "é", "a\r\nb", &"k".repeat(65)] {
            assert_eq!(KeyName::parse(bad), Err(NoKeyName), "{bad:?}");
        }
    }

    #[test]
    fn a_key_is_found_under_its_own_application_only() {
        let key = |secret: &str| SigningKey::from_secret(secret).unwrap();
        let (acme, rival) = (ApplicationId::new(1, [1; 10]), ApplicationId::new(2, [2; 10]));
        let keys = NamedKeys::new([
            ("default".to_owned(), name("k"), key("of default")),
            ("acme".to_owned(), name("k"), key("of acme")),
            (acme.to_string(), name("by-id"), key("of acme, by its id")),
        ]);
        let sign = |keys: &SigningKeys| keys.newest().hex_body_signature(b"x");
        let of = |application, uid, text| keys.of(application, uid, &name(text)).map(sign);
        let expected = |secret: &str| Some(key(secret).hex_body_signature(b"x"));
        assert_eq!(of(DEFAULT_APPLICATION, None, "k"), expected("of default"));
        assert_eq!(of(acme, Some("acme"), "k"), expected("of acme"));
        assert_eq!(of(acme, Some("acme"), "by-id"), expected("of acme, by its id"));
        assert_eq!(of(acme, None, "k"), None);
        assert_eq!(of(rival, Some("rival"), "k"), None);
        assert_eq!(of(rival, Some("rival"), "by-id"), None);
        assert_eq!(of(DEFAULT_APPLICATION, Some("acme"), "by-id"), None);
        // Whatever it is called, no other application is `default`: its uid is taken for good.
        assert_eq!(of(acme, Some("acme"), "of-nobody"), None);
    }

    #[test]
    fn keys_are_not_shown() {
        let keys = NamedKeys::new([(
            "acme".to_owned(),
            name("k"),
            SigningKey::from_secret("hush hush").unwrap(),
        )]);
        assert!(!format!("{keys:?}").contains("hush"));
    }
}
