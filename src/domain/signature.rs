//! How a request is signed: Standard Webhooks 1.0.0, and our own hexadecimal header beside it.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// The prefix of a secret whose bytes are given in base64.
const SECRET_PREFIX: &str = "whsec_";
/// How many bytes the key of a `whsec_` secret may have, as the standard says.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// Number of bytes of a secret that a caller chooses.
pub const SECRET_BYTES: std::ops::RangeInclusive<usize> = 8..=256;
/// Makes a secret in the form of Standard Webhooks.
pub const MAKE_SECRET: &str = "echo whsec_$(openssl rand -base64 32)";

/// Whether a secret has the form of Standard Webhooks: `whsec_` and base64 of 24 to 64 bytes.
pub fn is_standard_secret(secret: &str) -> bool {
    standard_key(secret).is_some()
}

fn standard_key(secret: &str) -> Option<Vec<u8>> {
    let key = secret.strip_prefix(SECRET_PREFIX).and_then(|text| STANDARD.decode(text).ok());
    key.filter(|key| KEY_BYTES.contains(&key.len()))
}

/// A warning about a secret that signs deliveries and is not in the form of Standard Webhooks. `name`
/// is the field or setting; the secret itself is not shown.
pub fn signing_warning(name: &str, secret: &str) -> Option<String> {
    if is_standard_secret(secret) {
        return None;
    }
    let short = if is_short(secret) { too_short(secret) + ", and it " } else { String::new() };
    Some(format!(
        "`{name}` {short}is not in `whsec_` form: Standard Webhooks libraries do not verify a text \
         secret as their documentation shows; a good one is made by `{MAKE_SECRET}`"
    ))
}

/// A warning about a short secret that verifies what comes in. Its form is the other system's choice.
pub fn inbound_warning(name: &str, secret: &str) -> Option<String> {
    is_short(secret).then(|| {
        format!("`{name}` {}; a good one is made by `openssl rand -hex 32`", too_short(secret))
    })
}

fn is_short(secret: &str) -> bool {
    !is_standard_secret(secret) && secret.len() < *KEY_BYTES.start()
}

fn too_short(secret: &str) -> String {
    format!("is short ({} bytes; at least {} are recommended)", secret.len(), KEY_BYTES.start())
}

/// A secret that is no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a signing secret must not be empty")]
pub struct EmptySecret;

/// A secret that signs. Its bytes are shown to nobody: `Debug` is redacted, there is no `Display`.
#[derive(Clone)]
pub struct SigningKey {
    // Keyed once: the two blocks that HMAC derives from the key are not hashed again per request.
    mac: Hmac<Sha256>,
}

impl SigningKey {
    /// Reads a secret: `whsec_` + base64 of 24–64 bytes, of which the decoded bytes are the key,
    /// or any other text, which is used as its own bytes.
    pub fn from_secret(secret: &str) -> Result<Self, EmptySecret> {
        if secret.is_empty() {
            return Err(EmptySecret);
        }
        Ok(match standard_key(secret) {
            Some(key) => Self::from_bytes(&key),
            None => Self::from_bytes(secret.as_bytes()),
        })
    }

    /// The keys that a sender may derive from a secret: its text as it stands, as GitHub does, and the
    /// decoded bytes of one in the form of Standard Webhooks.
    pub fn inbound(secret: &str) -> Vec<Self> {
        let keys = [Some(secret.as_bytes().to_vec()), standard_key(secret)];
        keys.into_iter().flatten().map(|key| Self::from_bytes(&key)).collect()
    }

    /// A key of random bytes, which nobody has.
    pub fn from_random(random: [u8; 32]) -> Self {
        Self::from_bytes(&random)
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
        hex(&self.digest(&[timestamp.as_bytes(), b".", body]))
    }

    /// `X-Signature`: lower-case hexadecimal over the body alone, for receivers that know no more.
    pub fn hex_body_signature(&self, body: &[u8]) -> String {
        hex(&self.digest(&[body]))
    }

    /// Whether a hexadecimal signature over the body alone is this key's, compared in constant time.
    pub fn verifies_body(&self, body: &[u8], hex: &str) -> bool {
        let expected = self.hex_body_signature(body);
        bool::from(expected.as_bytes().ct_eq(hex.to_ascii_lowercase().as_bytes()))
    }

    fn digest(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut mac = self.mac.clone();
        for part in parts {
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }
}

fn hex(digest: &[u8; 32]) -> String {
    let mut hex = String::with_capacity(64);
    for byte in digest {
        hex.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
        hex.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
    }
    hex
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

    /// Keys, newest first; `None` if there are none.
    pub fn newest_first(keys: Vec<SigningKey>) -> Option<Self> {
        (!keys.is_empty()).then_some(Self(keys))
    }

    /// The keys but for those that are told to be left out; never the newest.
    #[must_use]
    pub fn without(&self, left_out: &[bool]) -> Self {
        let kept =
            self.0.iter().enumerate().filter(|(index, _)| {
                *index == 0 || !left_out.get(*index).copied().unwrap_or_default()
            });
        Self(kept.map(|(_, key)| key.clone()).collect())
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

    #[test]
    fn a_body_is_verified_by_all_of_its_signature() {
        // Of RFC 4231, test case 2.
        let key = SigningKey::from_secret("Jefe").unwrap();
        let body = b"what do ya want for nothing?";
        let signature = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert!(key.verifies_body(body, signature));
        assert!(key.verifies_body(body, &signature.to_uppercase()));
        assert!(!key.verifies_body(b"what do ya want for nothing", signature));
        for bad in ["", &signature[1..], &signature[..62], &format!("{signature}00"), "zz", "5bé"]
        {
            assert!(!key.verifies_body(body, bad), "{bad}");
        }
    }

    // The example of the standard's own documentation and libraries.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    #[test]
    fn secrets_in_another_form_are_warned_of_and_not_shown() {
        assert_eq!(signing_warning("secret", SECRET), None);
        let short = signing_warning("secret", "your-secret").unwrap();
        assert!(short.contains("`secret` is short (11 bytes"), "{short}");
        assert!(short.contains("is not in `whsec_` form"), "{short}");
        assert!(!short.contains("your-secret"), "{short}");
        let long = signing_warning("secret", &"x".repeat(24)).unwrap();
        assert!(
            long.contains("`secret` is not in `whsec_` form") && !long.contains("short"),
            "{long}"
        );
        assert_eq!(inbound_warning("inbound_secret", &"x".repeat(24)), None);
        assert_eq!(inbound_warning("inbound_secret", SECRET), None);
        assert!(inbound_warning("inbound_secret", &"x".repeat(23)).unwrap().contains("23 bytes"));
    }

    #[test]
    fn inbound_secrets_are_read_as_text_and_as_base64() {
        assert_eq!(SigningKey::inbound("text").len(), 1);
        let keys = SigningKey::inbound(SECRET);
        let signed = |key: &SigningKey| key.hex_body_signature(b"x");
        let both =
            [SigningKey::from_bytes(SECRET.as_bytes()), SigningKey::from_secret(SECRET).unwrap()];
        assert_eq!(keys.iter().map(signed).collect::<Vec<_>>(), both.each_ref().map(signed));
    }

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
    fn what_is_no_standard_secret_is_its_own_bytes() {
        let sign = |key: SigningKey| key.hex_signature("t", b"b");
        for plain in ["x", "whsec", "whsec_", "whsec_!!!", "whsec_c2hvcnQ=", "plain text"] {
            let read = SigningKey::from_secret(plain).unwrap();
            assert_eq!(sign(read), sign(SigningKey::from_bytes(plain.as_bytes())), "{plain}");
        }
        let too_long = format!("whsec_{}", STANDARD.encode([7; 65]));
        let read = SigningKey::from_secret(&too_long).unwrap();
        assert_eq!(sign(read), sign(SigningKey::from_bytes(too_long.as_bytes())));
        for length in [24, 64] {
            let text = format!("whsec_{}", STANDARD.encode(vec![7; length]));
            let read = SigningKey::from_secret(&text).unwrap();
            assert_eq!(sign(read), sign(SigningKey::from_bytes(&vec![7; length])), "{length}");
        }
        assert_eq!(SigningKey::from_secret("").unwrap_err(), EmptySecret);
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
