//! The operator's secrets: given directly or as a file, and strong enough where callers need a key.

use std::{collections::HashSet, io::Read, path::Path};

use zeroize::Zeroizing;

use super::{
    check::{ConfigError, bad, set},
    encryption::MAKE_KEY,
    settings::{DEFAULT_SECRET, Hidden, Settings},
};
use crate::domain::sealing::SealingKey;

/// How many bytes of a file are read.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// How many bytes a strong secret has at least, and how many of them differ. `openssl rand -hex 16`
/// has 32 bytes, about 13 of them different.
const STRONG_BYTES_MIN: usize = 20;
const STRONG_DIFFERENT_BYTES_MIN: usize = 8;
/// The key in docker-compose.yml, which everybody can read.
const DEMONSTRATION_KEY: &[u8; 32] = b"demonstration only, never yours!";

/// The commands that make a secret, as an error suggests them.
const MAKE_API_KEY: &str = "openssl rand -hex 32";
const MAKE_SECRET: &str = "echo whsec_$(openssl rand -base64 32)";

/// The secrets, with those that files hold.
#[derive(Clone, Default)]
pub(super) struct Secrets {
    pub admin_api_key: Option<String>,
    pub webhook_secret: String,
    pub signing_keys: String,
    pub encryption_key: Option<String>,
    pub payload_api_key: Option<String>,
    pub egress_proxy: Option<String>,
}

impl Settings {
    /// Reads the secrets, from their files where those are named.
    pub(super) fn secrets(&self) -> Result<Secrets, ConfigError> {
        let webhook_secret = secret(
            "WEBHOOK_SECRET",
            self.webhook_secret.as_ref(),
            self.webhook_secret_file.as_deref(),
        )?;
        if webhook_secret.is_none() && self.webhook_secret.is_some() {
            return Err(bad("WEBHOOK_SECRET", "must not be empty"));
        }
        // Blanks around a secret in the variable are part of it, as they have always been.
        let as_given = self.webhook_secret.as_ref().map(|secret| secret.0.clone());
        let webhook_secret = webhook_secret
            .map(|read| as_given.filter(|given| given.trim() == read).unwrap_or(read));
        Ok(Secrets {
            admin_api_key: secret(
                "ADMIN_API_KEY",
                self.admin_api_key.as_ref(),
                self.admin_api_key_file.as_deref(),
            )?,
            webhook_secret: webhook_secret.unwrap_or_else(|| DEFAULT_SECRET.to_owned()),
            signing_keys: secret(
                "SIGNING_KEYS",
                self.signing_keys.as_ref(),
                self.signing_keys_file.as_deref(),
            )?
            .unwrap_or_default(),
            encryption_key: secret(
                "ENCRYPTION_KEY",
                self.encryption_key.as_ref(),
                self.encryption_key_file.as_deref(),
            )?,
            payload_api_key: secret(
                "PAYLOAD_API_KEY",
                self.payload_api_key.as_ref(),
                self.payload_api_key_file.as_deref(),
            )?,
            egress_proxy: secret(
                "EGRESS_PROXY",
                self.egress_proxy.as_ref(),
                self.egress_proxy_file.as_deref(),
            )?,
        })
    }
}

impl Secrets {
    /// Refuses weak secrets where callers need a key, so where the service is not a local trial.
    pub(super) fn check_strength(&self) -> Result<(), ConfigError> {
        let Some(key) = &self.admin_api_key else { return Ok(()) };
        if self.webhook_secret == DEFAULT_SECRET {
            return Err(ConfigError::DefaultSecret);
        }
        strong("ADMIN_API_KEY", key, MAKE_API_KEY)?;
        strong("WEBHOOK_SECRET", &self.webhook_secret, MAKE_SECRET)?;
        for key in self.encryption_key.iter().flat_map(|list| list.split(',')) {
            check_encryption_key(key.trim())?;
        }
        Ok(())
    }
}

fn strong(variable: &'static str, secret: &str, command: &'static str) -> Result<(), ConfigError> {
    let different: HashSet<u8> = secret.bytes().collect();
    if secret.len() >= STRONG_BYTES_MIN && different.len() >= STRONG_DIFFERENT_BYTES_MIN {
        return Ok(());
    }
    Err(weak(variable, command))
}

/// The key's form is checked elsewhere, so text that is no key passes here.
fn check_encryption_key(text: &str) -> Result<(), ConfigError> {
    let Ok(key) = text.parse::<SealingKey>() else { return Ok(()) };
    let demonstration = SealingKey::from_bytes(Zeroizing::new(*DEMONSTRATION_KEY));
    let different: HashSet<u8> = text.bytes().collect();
    let is_weak = different.len() < STRONG_DIFFERENT_BYTES_MIN;
    if is_weak || demonstration.id() == key.id() {
        return Err(weak("ENCRYPTION_KEY", MAKE_KEY));
    }
    Ok(())
}

fn weak(variable: &'static str, command: &'static str) -> ConfigError {
    bad(
        variable,
        format!(
            "is too easy to guess: use at least {STRONG_BYTES_MIN} random characters, such as the \
             output of `{command}`"
        ),
    )
}

/// A secret as it is given, or what its file holds without the line end. The file's variable is the
/// secret's with `_FILE` behind it.
pub(super) fn secret(
    variable: &'static str,
    direct: Option<&Hidden>,
    file: Option<&Path>,
) -> Result<Option<String>, ConfigError> {
    let direct = set(direct.map(|secret| secret.0.as_str()));
    let file = file.filter(|file| !file.as_os_str().is_empty());
    match (direct, file) {
        (Some(_), Some(_)) => {
            Err(bad(variable, format!("is set, and so is {variable}_FILE: set one of the two")))
        }
        (Some(direct), None) => Ok(Some(direct.to_owned())),
        (None, Some(file)) => read(file).map(Some).map_err(|reason| {
            bad(variable, format!("{variable}_FILE ({}) {reason}", file.display()))
        }),
        (None, None) => Ok(None),
    }
}

fn read(file: &Path) -> Result<String, String> {
    let cannot = |cause: std::io::Error| format!("cannot be read: {cause}");
    let mut bytes = Vec::new();
    let file = std::fs::File::open(file).map_err(cannot)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("is larger than {FILE_BYTES_MAX} bytes"));
    }
    let text = String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())?;
    let text = text.trim();
    if text.is_empty() { Err("is empty".to_owned()) } else { Ok(text.to_owned()) }
}

#[cfg(test)]
mod tests {
    use crate::config::check::tests::{check, refused};

    const KEY: &str = "--admin-api-key=0c2f7a0b9d3e4f5a6b7c8d9e0f1a2b3c";
    const SECRET: &str = "--webhook-secret=whsec_CyQKpVEdUZ0jZkSjKRlTJcDSfVaZYuCyQKpVEdUZ0jY=";

    #[test]
    fn weak_operator_secret_is_refused_once_a_key_is_set() {
        let make_key = "openssl rand -hex 32";
        for weak in ["x", "hunter2hunter2", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"] {
            refused(&[&format!("--admin-api-key={weak}"), SECRET], &["ADMIN_API_KEY", make_key]);
            let secret = format!("--webhook-secret={weak}");
            refused(&[KEY, &secret], &["WEBHOOK_SECRET", "openssl rand -base64 32"]);
            // A trial on this machine may be as easy as it likes.
            check(&[&secret]).unwrap();
        }
        check(&[KEY, SECRET]).unwrap();
    }

    #[test]
    fn known_encryption_key_is_refused_once_a_key_is_set() {
        let compose = include_str!("../../docker-compose.yml");
        let demonstration = compose
            .lines()
            .find_map(|line| line.trim().strip_prefix("ENCRYPTION_KEY: "))
            .expect("the demonstration has one");
        for weak in [demonstration.to_owned(), "0".repeat(64)] {
            let key = format!("--encryption-key={weak}");
            refused(&[KEY, SECRET, &key], &["ENCRYPTION_KEY", "openssl rand -base64 32"]);
            let older = format!("--encryption-key={},{weak}", "1a2b3c4d5e6f7089".repeat(4));
            refused(&[KEY, SECRET, &older], &["ENCRYPTION_KEY"]);
            check(&[&key]).unwrap();
        }
        let strong = format!("--encryption-key={}", "1a2b3c4d5e6f7089".repeat(4));
        check(&[KEY, SECRET, &strong]).unwrap();
    }

    #[test]
    fn secret_comes_from_its_file() {
        let folder = std::env::temp_dir().join(format!("whd-secrets-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let key = file("key", "0c2f7a0b9d3e4f5a6b7c8d9e0f1a2b3c\n");
        let secret = file("secret", "whsec_CyQKpVEdUZ0jZkSjKRlTJcDSfVaZYuCyQKpVEdUZ0jY=\r\n");
        let sealing = file("sealing", &"1a2b3c4d5e6f7089".repeat(4));
        let key_file = format!("--admin-api-key-file={key}");
        let secret_file = format!("--webhook-secret-file={secret}");
        let sealing_file = format!("--encryption-key-file={sealing}");
        let config = check(&[&key_file, &secret_file, &sealing_file]).unwrap();
        assert!(matches!(config.access, crate::http::Access::Key(_)));
        assert!(!config.signs_with_default_secret && config.encryption.is_some());

        // A variable that is set to nothing is not set.
        check(&["--webhook-secret-file=", "--admin-api-key-file="]).unwrap();
        refused(&[&key_file, KEY, SECRET], &["ADMIN_API_KEY", "ADMIN_API_KEY_FILE"]);
        let empty = format!("--webhook-secret-file={}", file("empty", "\n"));
        refused(&[&empty], &["WEBHOOK_SECRET_FILE", "is empty"]);
        let weak = format!("--admin-api-key-file={}", file("weak", "x"));
        refused(&[&weak, SECRET], &["ADMIN_API_KEY", "openssl rand -hex 32"]);
        refused(&["--encryption-key-file=/nowhere/key"], &["ENCRYPTION_KEY_FILE", "/nowhere/key"]);
        let large = format!("--signing-keys-file={}", file("large", &"x".repeat(65 * 1024)));
        refused(&[&large], &["SIGNING_KEYS_FILE", "larger than"]);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
