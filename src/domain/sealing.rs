//! How secrets are sealed at rest: XChaCha20-Poly1305 under a key of `ENCRYPTION_KEY`.
//!
//! A sealed secret is, in bytes:
//!
//! | bytes | |
//! |---|---|
//! | 1 | the version of this format: 1 |
//! | 4 | the id of the key: the begin of SHA-256 over a label and the key |
//! | 24 | the nonce, random; long enough that two never meet |
//! | as many as the secret | the ciphertext |
//! | 16 | the tag |
//!
//! The tag also covers version, key id and a *context*, which is not stored: the caller names the
//! row that the secret stands in, by its kind and its id. So what was sealed for one tenant's row
//! does not open in another's, whoever can write to the database.

use std::{fmt, str::FromStr, sync::Arc};

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use chacha20poly1305::{
    XChaCha20Poly1305,
    aead::{Aead, KeyInit, Payload},
};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 24;
/// By how many bytes a sealed secret is longer than the secret.
pub const SEALED_BYTES_MORE: usize = HEADER_BYTES + NONCE_BYTES + TAG_BYTES;

const VERSION: u8 = 1;
const KEY_ID_BYTES: usize = 4;
const HEADER_BYTES: usize = 1 + KEY_ID_BYTES;
const TAG_BYTES: usize = 16;
/// What a key's id is hashed with: the same key used elsewhere would not show the same id.
const KEY_ID_LABEL: &[u8] = b"webhook-dispatcher sealing key ";

/// Base64 as people paste it: with its padding or without.
const EITHER_PADDING: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const BASE64: [GeneralPurpose; 2] = [
    GeneralPurpose::new(&alphabet::STANDARD, EITHER_PADDING),
    GeneralPurpose::new(&alphabet::URL_SAFE, EITHER_PADDING),
];

/// A text that is no key. It is not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be {KEY_BYTES} bytes, as base64 or as {} hexadecimal digits", 2 * KEY_BYTES)]
pub struct NoSealingKey;

/// The same key twice, where each should be another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the key {0} is there twice")]
pub struct RepeatedKey(pub KeyId);

/// What tells keys apart without telling anything about them: `1a2b3c4d`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KeyId([u8; KEY_ID_BYTES]);

/// A key. Shown to nobody but for its id, and wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct SealingKey {
    id: KeyId,
    bytes: Zeroizing<[u8; KEY_BYTES]>,
}

/// The keys of an installation: the first one seals, all of them open. Clones share them.
#[derive(Debug, Clone)]
pub struct SealingKeys(Arc<[SealingKey]>);

/// A secret that was opened. Shown to nobody, and wiped when dropped.
pub struct Secret(Zeroizing<Vec<u8>>);

/// Why a sealed secret does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// From another, later program, or nothing that was ever sealed.
    #[error("sealed in a way that this version does not know")]
    UnknownVersion,
    /// The key was dropped too early, or the database is another installation's.
    #[error("sealed with a key ({0}) that ENCRYPTION_KEY does not name")]
    UnknownKey(KeyId),
    /// Other bytes, or another row, than was sealed.
    #[error("damaged, or moved from where it was sealed")]
    DamagedOrMoved,
}

impl KeyId {
    /// As it stands in a sealed secret.
    pub fn bytes(&self) -> &[u8; KEY_ID_BYTES] {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl SealingKey {
    /// A key of these bytes, which must be random.
    pub fn from_bytes(bytes: Zeroizing<[u8; KEY_BYTES]>) -> Self {
        let digest = Sha256::new_with_prefix(KEY_ID_LABEL).chain_update(*bytes).finalize();
        let mut id = [0; KEY_ID_BYTES];
        id.copy_from_slice(&digest[..KEY_ID_BYTES]);
        Self { id: KeyId(id), bytes }
    }

    /// What tells it apart from others.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// The key itself, in base64, for where it is kept.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(*self.bytes))
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&*self.bytes).into())
    }
}

impl FromStr for SealingKey {
    type Err = NoSealingKey;

    /// Reads 32 bytes as base64 (standard or URL-safe, padded or not) or as 64 hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, NoSealingKey> {
        let decoded = from_hex(text)
            .or_else(|| BASE64.iter().find_map(|base64| base64.decode(text).ok()))
            .map(Zeroizing::new)
            .ok_or(NoSealingKey)?;
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        if decoded.len() != KEY_BYTES {
            return Err(NoSealingKey);
        }
        bytes.copy_from_slice(&decoded);
        Ok(Self::from_bytes(bytes))
    }
}

/// The bytes of exactly as many digits as a key has. As base64 those would be too many bytes.
fn from_hex(text: &str) -> Option<Vec<u8>> {
    if text.len() != 2 * KEY_BYTES {
        return None;
    }
    let digits = text.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()));
    let digits: Zeroizing<Vec<u8>> = Zeroizing::new(digits.collect::<Option<_>>()?);
    Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

impl From<SealingKey> for SealingKeys {
    fn from(key: SealingKey) -> Self {
        Self(Arc::new([key]))
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealingKey({})", self.id)
    }
}

impl SealingKeys {
    /// The key that seals, and older ones that only open. All must differ.
    pub fn new(current: SealingKey, older: Vec<SealingKey>) -> Result<Self, RepeatedKey> {
        let mut keys = vec![current];
        for key in older {
            if keys.contains(&key) {
                return Err(RepeatedKey(key.id));
            }
            keys.push(key);
        }
        Ok(Self(keys.into()))
    }

    /// The same keys and an older one, if it is not among them.
    #[must_use]
    pub fn with_older(&self, key: SealingKey) -> Self {
        if self.0.contains(&key) {
            return self.clone();
        }
        Self(self.0.iter().cloned().chain([key]).collect())
    }

    /// The id of the key that seals.
    pub fn current_id(&self) -> KeyId {
        self.current().id
    }

    fn current(&self) -> &SealingKey {
        self.0.first().expect("there is a current one by construction")
    }

    /// Seals a secret for the row that `context` names: its kind and its id, such as
    /// `subscription sub_0192…`. The nonce must be random, and another for each secret.
    pub fn seal(&self, plain: &[u8], context: &[u8], nonce: [u8; NONCE_BYTES]) -> Vec<u8> {
        let key = self.current();
        let header = header(key.id);
        let covered = covered(header, context);
        let ciphertext = key
            .cipher()
            .encrypt(&nonce.into(), Payload { msg: plain, aad: &covered })
            .expect("only a secret of 256 GiB would be too long");
        [&header, nonce.as_slice(), &ciphertext].concat()
    }

    /// Opens what any of the keys has sealed for the row that `context` names.
    pub fn open(&self, sealed: &[u8], context: &[u8]) -> Result<Secret, OpenError> {
        if sealed.first().is_some_and(|version| *version != VERSION) {
            return Err(OpenError::UnknownVersion);
        }
        let (header, rest) =
            sealed.split_first_chunk::<HEADER_BYTES>().ok_or(OpenError::DamagedOrMoved)?;
        let (nonce, ciphertext) =
            rest.split_first_chunk::<NONCE_BYTES>().ok_or(OpenError::DamagedOrMoved)?;
        let [_, id @ ..] = *header;
        let covered = covered(*header, context);
        let mut error = OpenError::UnknownKey(KeyId(id));
        // Ids are short: two keys may have the same.
        for key in self.0.iter().filter(|key| key.id == KeyId(id)) {
            let payload = Payload { msg: ciphertext, aad: &covered };
            match key.cipher().decrypt(nonce.into(), payload) {
                Ok(plain) => return Ok(Secret(Zeroizing::new(plain))),
                Err(_) => error = OpenError::DamagedOrMoved,
            }
        }
        Err(error)
    }

    /// Whether the current key has sealed it. If not, it should be sealed again, so that the older
    /// key can be dropped one day.
    pub fn is_current(&self, sealed: &[u8]) -> bool {
        sealed.starts_with(&header(self.current().id))
    }
}

fn header(id: KeyId) -> [u8; HEADER_BYTES] {
    let [a, b, c, d] = id.0;
    [VERSION, a, b, c, d]
}

/// What the tag covers beside the secret. The header has a fixed length, so nothing can be moved
/// from one to the other.
fn covered(header: [u8; HEADER_BYTES], context: &[u8]) -> Vec<u8> {
    [header.as_slice(), context].concat()
}

impl Secret {
    /// The secret itself.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    const NONCE: [u8; NONCE_BYTES] = [9; NONCE_BYTES];

    fn key(number: u8) -> SealingKey {
        SealingKey::from_bytes(Zeroizing::new([number; KEY_BYTES]))
    }

    fn keys(numbers: &[u8]) -> SealingKeys {
        let (current, older) = numbers.split_first().unwrap();
        SealingKeys::new(key(*current), older.iter().copied().map(key).collect()).unwrap()
    }

    /// What another implementation (libsodium) made: what was sealed once must open for ever.
    #[test]
    fn the_format_is_the_one_that_is_written_down() {
        let sealed = "019da77a96\
                      090909090909090909090909090909090909090909090909\
                      6248471adf106ec9cb127f6e4a2c688d39c338c24b20c9f43c72";
        let bytes = sealed.as_bytes().chunks(2);
        let sealed: Vec<u8> = bytes
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect();
        let bytes: [u8; KEY_BYTES] = std::array::from_fn(|index| u8::try_from(index).unwrap());
        let keys =
            SealingKeys::new(SealingKey::from_bytes(Zeroizing::new(bytes)), Vec::new()).unwrap();
        assert_eq!(keys.seal(b"whsec_hush", b"row 1", NONCE), sealed);
        assert_eq!(keys.open(&sealed, b"row 1").unwrap().bytes(), b"whsec_hush");
        assert_eq!(sealed.len(), b"whsec_hush".len() + SEALED_BYTES_MORE);
        assert_eq!(keys.current_id().to_string(), "9da77a96");
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_where_it_was_sealed_only(
            plain in vec(any::<u8>(), 0..100),
            context in vec(any::<u8>(), 0..50),
            other in vec(any::<u8>(), 0..50),
            nonce in any::<[u8; NONCE_BYTES]>(),
        ) {
            let sealed = keys(&[1]).seal(&plain, &context, nonce);
            let opened = keys(&[1]).open(&sealed, &context).unwrap();
            prop_assert_eq!(opened.bytes(), &*plain);
            if other != context {
                let error = keys(&[1]).open(&sealed, &other).unwrap_err();
                prop_assert_eq!(error, OpenError::DamagedOrMoved);
            }
        }
    }

    #[test]
    fn a_secret_moved_to_another_tenants_row_does_not_open() {
        let keys = keys(&[1]);
        let sealed = keys.seal(b"hush", b"subscription sub_1", NONCE);
        for context in ["subscription sub_2", "subscription sub_", "signing_key sub_1", ""] {
            let error = keys.open(&sealed, context.as_bytes()).unwrap_err();
            assert_eq!(error, OpenError::DamagedOrMoved, "{context}");
        }
    }

    #[test]
    fn any_flipped_bit_and_any_other_length_is_refused() {
        let keys = keys(&[1, 2]);
        let sealed = keys.seal(b"hush", b"row", NONCE);
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let error = keys.open(&flipped, b"row").unwrap_err();
            let is_told = match bit / 8 {
                0 => error == OpenError::UnknownVersion,
                1..HEADER_BYTES => matches!(error, OpenError::UnknownKey(_)),
                _ => error == OpenError::DamagedOrMoved,
            };
            assert!(is_told, "bit {bit}: {error}");
        }
        for length in 0..sealed.len() {
            let error = keys.open(&sealed[..length], b"row").unwrap_err();
            assert_eq!(error, OpenError::DamagedOrMoved, "{length}");
        }
        let longer = [sealed.as_slice(), &[0]].concat();
        assert_eq!(keys.open(&longer, b"row").unwrap_err(), OpenError::DamagedOrMoved);
    }

    #[test]
    fn the_same_secret_never_looks_the_same() {
        let keys = keys(&[1]);
        assert_ne!(
            keys.seal(b"hush", b"row", [1; NONCE_BYTES])[HEADER_BYTES + NONCE_BYTES..],
            keys.seal(b"hush", b"row", [2; NONCE_BYTES])[HEADER_BYTES + NONCE_BYTES..]
        );
    }

    #[test]
    fn rotation_opens_with_every_key_and_seals_with_the_first() {
        let old = keys(&[1]).seal(b"hush", b"row", NONCE);
        let rotated = keys(&[2, 1]);
        assert_eq!(rotated.open(&old, b"row").unwrap().bytes(), b"hush");
        assert!(!rotated.is_current(&old));
        let new = rotated.seal(b"hush", b"row", NONCE);
        assert!(rotated.is_current(&new));
        assert!(!rotated.is_current(&new[..HEADER_BYTES - 1]) && !rotated.is_current(&[]));
        assert_eq!(keys(&[2]).open(&new, b"row").unwrap().bytes(), b"hush");
        for (keys, sealed, id) in [(keys(&[2]), &old, key(1).id), (keys(&[1]), &new, key(2).id)] {
            assert_eq!(keys.open(sealed, b"row").unwrap_err(), OpenError::UnknownKey(id));
        }
    }

    #[test]
    fn an_older_key_is_added_once() {
        let one = keys(&[1]);
        assert_eq!(one.with_older(key(1)).0.len(), 1);
        let both = one.with_older(key(2));
        assert_eq!(both.current_id(), key(1).id);
        both.open(&keys(&[2]).seal(b"hush", b"row", NONCE), b"row").unwrap();
        assert_eq!(SealingKeys::new(key(1), vec![key(1)]).unwrap_err(), RepeatedKey(key(1).id));
        let twice = SealingKeys::new(key(1), vec![key(2), key(2)]);
        assert_eq!(twice.unwrap_err(), RepeatedKey(key(2).id));
    }

    #[test]
    fn keys_with_the_same_id_both_open() {
        let numbered = |number: u64| {
            let mut bytes = Zeroizing::new([0; KEY_BYTES]);
            bytes[..8].copy_from_slice(&number.to_le_bytes());
            SealingKey::from_bytes(bytes)
        };
        let mut seen = HashMap::new();
        // Some 80,000 are enough, as birthdays go.
        let (first, second) = (0..1_000_000)
            .find_map(|number| Some((seen.insert(numbered(number).id.0, number)?, number)))
            .expect("two of a million have the same 32 bits");
        let (first, second) = (numbered(first), numbered(second));
        assert!(first.id == second.id && first != second);
        let both = SealingKeys::new(first, vec![second.clone()]).unwrap();
        let sealed = SealingKeys::new(second, Vec::new()).unwrap().seal(b"hush", b"row", NONCE);
        assert_eq!(both.open(&sealed, b"row").unwrap().bytes(), b"hush");
        assert_eq!(both.open(&sealed, b"other").unwrap_err(), OpenError::DamagedOrMoved);
    }

    #[test]
    fn a_key_is_32_bytes_in_every_usual_spelling() {
        // All ones, so that both alphabets differ: `//…` and `__…`.
        let key = SealingKey::from_bytes(Zeroizing::new([0xff; KEY_BYTES]));
        let standard = format!("{}8=", "/".repeat(42));
        let accepted = [
            standard.clone(),
            standard.trim_end_matches('=').to_owned(),
            standard.replace('/', "_"),
            standard.replace('/', "_").trim_end_matches('=').to_owned(),
            "f".repeat(64),
            "F".repeat(64),
            key.to_base64().to_string(),
        ];
        for text in accepted {
            assert_eq!(text.parse(), Ok(key.clone()), "{text}");
        }
        let refused = [
            String::new(),
            "f".repeat(63),
            "f".repeat(65),
            "f".repeat(62) + "+f",
            "g".repeat(64),
            "é".repeat(32),
            "/".repeat(41),
            "/".repeat(44),
            format!("_{}8=", "/".repeat(41)),
            format!("{standard} "),
            format!(" {standard}"),
            format!("{}9=", "/".repeat(42)),
        ];
        for text in refused {
            assert_eq!(text.parse::<SealingKey>(), Err(NoSealingKey), "{text}");
        }
    }

    #[test]
    fn neither_keys_nor_secrets_are_shown() {
        let keys = keys(&[1]);
        let shown = format!("SealingKeys([SealingKey({})])", key(1).id);
        assert_eq!(format!("{keys:?}"), shown);
        let secret = keys.open(&keys.seal(b"hush", b"row", NONCE), b"row").unwrap();
        assert_eq!(format!("{secret:?}"), "Secret(redacted)");
    }
}
