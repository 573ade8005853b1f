//! Who may do what: the roles of API keys, and the keys themselves.

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};

use super::ids::{ApiKeyId, ApplicationId};

/// How many characters of a key are shown, so that people can tell their keys apart: the prefix and
/// 24 bits of it.
const HINT_CHARACTERS: usize = ApiKey::PREFIX.len() + 4;

/// What the caller of a request may do. One role a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Everything, in every application of the instance.
    Admin,
    /// Everything in one application.
    Manager,
    /// Publishes, explicit targets included, and reads.
    Dispatcher,
    /// Publishes to subscriptions, and nothing else.
    Producer,
    /// Reads.
    Viewer,
}

/// What a route asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Permission {
    /// To see what there is, secrets apart.
    Read,
    /// To publish events to the subscriptions that match.
    Publish,
    /// To have something sent to a URL that the request names.
    NameTargets,
    /// To change an application's subscriptions, event types and keys.
    Manage,
    /// To make and delete applications, to see all of them, and to change the instance's event types.
    Administer,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 5] =
        [Self::Admin, Self::Manager, Self::Dispatcher, Self::Producer, Self::Viewer];

    /// The name in JSON, SQL and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Manager => "manager",
            Self::Dispatcher => "dispatcher",
            Self::Producer => "producer",
            Self::Viewer => "viewer",
        }
    }

    /// Reads a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == name)
    }

    /// Whether a key of this role may do it.
    pub const fn may(self, permission: Permission) -> bool {
        use Permission::{Manage, NameTargets, Publish, Read};
        match self {
            Self::Admin => true,
            Self::Manager => matches!(permission, Read | Publish | NameTargets | Manage),
            Self::Dispatcher => matches!(permission, Read | Publish | NameTargets),
            Self::Producer => matches!(permission, Publish),
            Self::Viewer => matches!(permission, Read),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Permission {
    /// Every permission.
    pub const ALL: [Self; 5] =
        [Self::Read, Self::Publish, Self::NameTargets, Self::Manage, Self::Administer];

    /// The name in the API's document.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Publish => "publish",
            Self::NameTargets => "name_targets",
            Self::Manage => "manage",
            Self::Administer => "administer",
        }
    }

    /// Completes "this key may not …".
    pub const fn as_words(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Publish => "publish events",
            Self::NameTargets => "name targets of its own",
            Self::Manage => "change the application",
            Self::Administer => "administer the instance",
        }
    }
}

/// Who calls, once its key is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Principal {
    /// What it may do.
    pub role: Role,
    /// The one application that it may do it in; `None`: every one. Exactly the admins' is `None`.
    pub application: Option<ApplicationId>,
    /// Its key; `None` for the key of the settings, and where no key is asked for.
    pub key: Option<ApiKeyId>,
    /// Expiry of that key; `None`: never.
    pub expires_at: Option<DateTime<Utc>>,
}

impl Principal {
    /// Whoever runs the instance.
    pub const OPERATOR: Self =
        Self { role: Role::Admin, application: None, key: None, expires_at: None };
}

/// A key as its owner has it: 256 random bits. Shown once; only its hash is kept.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// What marks a key, for people and for scanners of leaked secrets.
    pub const PREFIX: &'static str = "whd_";

    /// Number of characters after the prefix: 32 bytes in base64.
    const RANDOM_CHARACTERS: usize = 43;

    /// Whether a text has the form of a key. Any other text needs no look-up to be refused.
    pub fn is_form(text: &str) -> bool {
        text.strip_prefix(Self::PREFIX).is_some_and(|random| {
            random.len() == Self::RANDOM_CHARACTERS
                && random.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
        })
    }

    /// Makes a key of random bytes.
    pub fn from_random(random: [u8; 32]) -> Self {
        Self(format!("{}{}", Self::PREFIX, URL_SAFE_NO_PAD.encode(random)))
    }

    /// The key itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What is kept of it.
    pub fn hash(&self) -> ApiKeyHash {
        ApiKeyHash::of(&self.0)
    }

    /// Its first characters, by which people tell their keys apart.
    pub fn hint(&self) -> &str {
        &self.0[..HINT_CHARACTERS]
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(redacted)")
    }
}

/// The SHA-256 of a key. A key is random in full, so nothing slower is needed against guessing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ApiKeyHash([u8; 32]);

impl ApiKeyHash {
    /// The hash of a text that may be a key.
    pub fn of(text: &str) -> Self {
        Self(Sha256::digest(text.as_bytes()).into())
    }

    /// A hash that was stored.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_may_what_the_contract_says() {
        use Permission::{Administer, Manage, NameTargets, Publish, Read};
        let all = [Read, Publish, NameTargets, Manage, Administer];
        for (role, may) in [
            (Role::Admin, &all[..]),
            (Role::Manager, &[Read, Publish, NameTargets, Manage]),
            (Role::Dispatcher, &[Read, Publish, NameTargets]),
            (Role::Producer, &[Publish]),
            (Role::Viewer, &[Read]),
        ] {
            for permission in all {
                assert_eq!(
                    role.may(permission),
                    may.contains(&permission),
                    "{role} {permission:?}"
                );
            }
            assert_eq!(Role::from_name(role.as_str()), Some(role));
        }
        assert_eq!(Role::from_name("Admin"), None);
    }

    #[test]
    fn a_key_is_its_random_bytes_and_shows_little() {
        let key = ApiKey::from_random([0xff; 32]);
        assert_eq!(key.reveal(), "whd___________________________________________8");
        assert_eq!(key.hint(), "whd_____");
        assert_eq!(format!("{key:?}"), "ApiKey(redacted)");
        assert_eq!(key.hash(), ApiKeyHash::of(key.reveal()));
        assert!(ApiKey::is_form(key.reveal()));
        let text = key.reveal();
        for bad in
            ["", "whd_", "whd_wrong", &text[..46], &format!("{text}a"), &text.replace('8', "=")]
        {
            assert!(!ApiKey::is_form(bad), "{bad}");
        }
        assert_ne!(key.hash(), ApiKey::from_random([0; 32]).hash());
    }
}
