//! The few values of a certificate that a message shows and webpki does not read. Nothing is decided by
//! them, so this is no reason for a whole X.509 library.

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const SEQUENCE: u8 = 0x30;
/// Object identifiers with their tags: commonName, organizationName, rsaEncryption.
const COMMON_NAME: &[u8] = &[0x06, 0x03, 0x55, 0x04, 0x03];
const ORGANIZATION: &[u8] = &[0x06, 0x03, 0x55, 0x04, 0x0a];
const RSA: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
/// Characters of a name that are shown.
const NAME_CHARACTERS_MAX: usize = 80;

/// The first value: its tag, its contents, and the bytes behind it.
fn value(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, length], rest) = bytes.split_first_chunk()?;
    let (length, rest) = if length < 0x80 {
        (usize::from(length), rest)
    } else {
        let count = usize::from(length & 0x7f);
        if !(1..=3).contains(&count) {
            return None;
        }
        let (digits, rest) = rest.split_at_checked(count)?;
        (digits.iter().fold(0, |length, &digit| length << 8 | usize::from(digit)), rest)
    };
    let (contents, rest) = rest.split_at_checked(length)?;
    Some((tag, contents, rest))
}

fn inside(bytes: &[u8], expected: u8) -> Option<(&[u8], &[u8])> {
    value(bytes).filter(|(tag, ..)| *tag == expected).map(|(_, contents, rest)| (contents, rest))
}

/// Bits of the modulus of an RSA key; `None` of another one.
pub(super) fn rsa_key_bits(public_key_info: &[u8]) -> Option<usize> {
    let (info, _) = inside(public_key_info, SEQUENCE)?;
    let (algorithm, rest) = inside(info, SEQUENCE)?;
    if !algorithm.starts_with(RSA) {
        return None;
    }
    let (key, _) = inside(rest, BIT_STRING)?;
    let (key, _) = inside(key.get(1..)?, SEQUENCE)?;
    let (modulus, _) = inside(key, INTEGER)?;
    let leading = modulus.iter().position(|&byte| byte != 0)?;
    let modulus = &modulus[leading..];
    Some(modulus.len() * 8 - modulus[0].leading_zeros() as usize)
}

/// The common name of a distinguished name, or its organization, for a message.
pub(super) fn shown_name(name: &[u8]) -> String {
    let found = attribute(name, COMMON_NAME).or_else(|| attribute(name, ORGANIZATION));
    found.map_or_else(|| "an authority without a name".to_owned(), |name| format!("\"{name}\""))
}

fn attribute(mut name: &[u8], kind: &[u8]) -> Option<String> {
    while let Some((_, set, rest)) = value(name) {
        let (attribute, _) = inside(set, SEQUENCE)?;
        if let Some(text) = attribute.strip_prefix(kind) {
            let (_, text, _) = value(text)?;
            let text = String::from_utf8_lossy(text);
            let text =
                text.chars().filter(|character| !character.is_control() && *character != '"');
            return Some(text.take(NAME_CHARACTERS_MAX).collect());
        }
        name = rest;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_shown_by_their_common_name() {
        let name = b"\x31\x0b\x30\x09\x06\x03\x55\x04\x0a\x0c\x02Ab\x31\x0c\x30\x0a\x06\x03\x55\x04\x03\x0c\x03C\nA";
        assert_eq!(shown_name(name), "\"CA\"");
        assert_eq!(shown_name(&name[..13]), "\"Ab\"");
        assert_eq!(shown_name(b""), "an authority without a name");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = (rsa_key_bits(&bytes), shown_name(&bytes));
        }
    }
}
