//! How a request is signed: Standard Webhooks 1.0.0, and our own hexadecimal header beside it.

use std::fmt;

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The prefix of a secret whose bytes are given in base64.
const SECRET_PREFIX: &str = "whsec_";
/// How many bytes the key of a `whsec_` secret may have, as the standard says.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// Why a secret cannot sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SigningKeyError {
    /// Nothing there.
    #[error("a signing secret must not be empty")]
    Empty,
    /// `whsec_` with something else behind it than base64 of 24 to 64 bytes.
    #[error("`whsec_` must be followed by base64 of 24 to 64 bytes")]
    Malformed,
}

/// A secret that signs. Its bytes are shown to nobody: `Debug` is redacted, there is no `Display`.
#[derive(Clone)]
pub struct SigningKey {
    // Keyed once: the two blocks that HMAC derives from the key are not hashed again per request.
    mac: Hmac<Sha256>,
}

impl SigningKey {
    /// Reads a secret: `whsec_` + base64 of 24–64 bytes, of which the decoded bytes are the key,
    /// or any other text, which is used as its own bytes.
    pub fn from_secret(secret: &str) -> Result<Self, SigningKeyError> {
        if secret.is_empty() {
            return Err(SigningKeyError::Empty);
        }
        let Some(encoded) = secret.strip_prefix(SECRET_PREFIX) else {
            return Ok(Self::from_bytes(secret.as_bytes()));
        };
        let key = STANDARD
            .decode(encoded)
            .or_else(|_| STANDARD_NO_PAD.decode(encoded))
            .map_err(|_| SigningKeyError::Malformed)?;
        if KEY_BYTES.contains(&key.len()) {
            Ok(Self::from_bytes(&key))
        } else {
            Err(SigningKeyError::Malformed)
        }
    }

    fn from_bytes(key: &[u8]) -> Self {
        Self { mac: Hmac::new_from_slice(key).expect("HMAC takes a key of any length") }
    }

    /// One entry of `webhook-signature`: `v1,` and base64 over `id.timestamp.body`, the timestamp
    /// in Unix seconds.
    pub fn standard_signature(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let timestamp = timestamp.to_string();
        let digest = self.digest(&[id.as_bytes(), b".", timestamp.as_bytes(), b".", body]);
        format!("v1,{}", STANDARD.encode(digest))
    }

    /// `X-Webhook-Signature`: lower-case hexadecimal over `timestamp.body`, the timestamp being the
    /// text of `X-Webhook-Timestamp`.
    pub fn hex_signature(&self, timestamp: &str, body: &[u8]) -> String {
        let digest = self.digest(&[timestamp.as_bytes(), b".", body]);
        let mut hex = String::with_capacity(64);
        for byte in digest {
            hex.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
            hex.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
        }
        hex
    }

    fn digest(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut mac = self.mac.clone();
        for part in parts {
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(redacted)")
    }
}

/// The keys of a target, newest first: during rotation every one of them signs.
#[derive(Debug, Clone)]
pub struct SigningKeys(Vec<SigningKey>);

impl SigningKeys {
    /// One key, no rotation under way.
    pub fn single(key: SigningKey) -> Self {
        Self(vec![key])
    }

    /// The newest key, which alone signs the headers that can carry one signature only.
    pub fn newest(&self) -> &SigningKey {
        self.0.first().expect("there is at least one key by construction")
    }

    /// The whole value of `webhook-signature`: one entry a key, separated by spaces.
    pub fn standard_signatures(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let entries: Vec<_> =
            self.0.iter().map(|key| key.standard_signature(id, timestamp, body)).collect();
        entries.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The example of the standard's own documentation and libraries.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    #[test]
    fn the_standards_vector_is_met() {
        let key = SigningKey::from_secret(SECRET).unwrap();
        assert_eq!(
            key.standard_signature(
                "msg_p5jXN8AQM9LWM0D4loKWxJek",
                1_614_265_330,
                br#"{"test": 2432232314}"#
            ),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }

    #[test]
    fn hex_covers_timestamp_and_body() {
        // printf '2026-11-21T10:00:00Z.{}' | openssl dgst -sha256 -hmac secret
        let key = SigningKey::from_secret("secret").unwrap();
        assert_eq!(
            key.hex_signature("2026-11-21T10:00:00Z", b"{}"),
            "5cb9c1764ba361809d9c18e260bf3975698a181a8efa47fd5f171cace3cb3af2"
        );
    }

    #[test]
    fn secrets_are_read() {
        for good in ["x", "whsec", "plain text", SECRET] {
            assert!(SigningKey::from_secret(good).is_ok(), "{good}");
        }
        assert_eq!(SigningKey::from_secret("").unwrap_err(), SigningKeyError::Empty);
        for bad in ["whsec_", "whsec_!!!", "whsec_c2hvcnQ=", &format!("whsec_{}", "A".repeat(88))] {
            let error = SigningKey::from_secret(bad).unwrap_err();
            assert_eq!(error, SigningKeyError::Malformed, "{bad}");
        }
    }

    #[test]
    fn rotation_signs_with_every_key_newest_first() {
        let key = |text| SigningKey::from_secret(text).unwrap();
        let keys = SigningKeys(vec![key("new"), key("old")]);
        assert_eq!(
            keys.standard_signatures("evt_1", 1, b"{}"),
            format!(
                "{} {}",
                key("new").standard_signature("evt_1", 1, b"{}"),
                key("old").standard_signature("evt_1", 1, b"{}")
            )
        );
    }

    #[test]
    fn keys_are_not_shown() {
        assert_eq!(
            format!("{:?}", SigningKeys::single(SigningKey::from_secret("hush").unwrap())),
            "SigningKeys([SigningKey(redacted)])"
        );
    }
}
