//! `ENCRYPTION_KEY`: a list of keys, of which the first seals and all open.

use super::check::{ConfigError, bad};
use crate::domain::sealing::{SealingKey, SealingKeys};

/// How many keys the list may have. Two are a rotation; more are rotations that were not finished.
const KEYS_MAX: usize = 8;
/// What makes a key.
pub(super) const MAKE_KEY: &str = "openssl rand -base64 32";

/// Reads the list. No message shows any of it.
pub(super) fn keys(list: &str) -> Result<SealingKeys, ConfigError> {
    // One more than may be is enough to refuse it.
    let texts: Vec<&str> = list.split(',').map(str::trim).take(KEYS_MAX + 1).collect();
    if texts.len() > KEYS_MAX {
        return Err(refuse(format_args!("must be at most {KEYS_MAX} keys, separated by commas")));
    }
    let read = texts.iter().enumerate().map(|(index, text)| {
        text.parse().map_err(|error| {
            let which = if texts.len() == 1 {
                String::new()
            } else {
                format!("key {} of {} ", index + 1, texts.len())
            };
            refuse(format_args!("{which}{error}; `{MAKE_KEY}` makes one"))
        })
    });
    let mut keys: Vec<SealingKey> = read.collect::<Result<_, _>>()?;
    let current = keys.remove(0); // `split` gives at least one, be it empty
    SealingKeys::new(current, keys).map_err(refuse)
}

fn refuse(reason: impl std::fmt::Display) -> ConfigError {
    bad("ENCRYPTION_KEY", reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONES: &str = "1111111111111111111111111111111111111111111111111111111111111111";
    const TWOS: &str = "2222222222222222222222222222222222222222222222222222222222222222";
    /// The bytes of [`ONES`].
    const ONES_IN_BASE64: &str = "ERERERERERERERERERERERERERERERERERERERERERE=";

    fn sealed_by(key: &str) -> Vec<u8> {
        keys(key).unwrap().seal(b"hush", b"row", [0; 24])
    }

    #[test]
    fn the_first_key_seals_and_all_open() {
        for list in [format!("{ONES},{TWOS}"), format!(" {ONES_IN_BASE64} ,\n{TWOS}")] {
            let keys = keys(&list).unwrap();
            assert!(keys.is_current(&sealed_by(ONES)), "{list}");
            for key in [ONES, TWOS] {
                assert_eq!(keys.open(&sealed_by(key), b"row").unwrap().bytes(), b"hush", "{list}");
            }
        }
    }

    #[test]
    fn what_is_no_list_of_keys_is_refused_and_not_shown() {
        #[track_caller]
        fn refused(list: &str, expected: &str) {
            let message = keys(list).unwrap_err().to_string();
            let expected = format!("ENCRYPTION_KEY: {expected}");
            assert!(message.starts_with(&expected), "{expected}: {message}");
            let mut shown = list.split(',').map(str::trim).filter(|text| !text.is_empty());
            assert!(!shown.any(|text| message.contains(text)), "it was shown: {message}");
        }
        let no_key = "must be 32 bytes, as base64 or as 64 hexadecimal digits; `openssl rand \
                      -base64 32` makes one";
        refused("hunter2", no_key);
        refused(&ONES[1..], no_key);
        refused(&ONES_IN_BASE64[1..], no_key);
        refused(&format!("{ONES} {TWOS}"), no_key);
        refused(&format!("{ONES},hunter2"), &format!("key 2 of 2 {no_key}"));
        refused(&format!("{ONES},"), &format!("key 2 of 2 {no_key}"));
        refused(&format!(",{ONES}"), &format!("key 1 of 2 {no_key}"));
        refused(&format!("{ONES},{TWOS},{ONES_IN_BASE64}"), "the key ");

        let many = |count: u8| {
            let keys: Vec<String> = (1..=count).map(|n| format!("{n:064x}")).collect();
            keys.join(",")
        };
        keys(&many(8)).unwrap();
        refused(&many(9), "must be at most 8 keys, separated by commas");
    }
}
