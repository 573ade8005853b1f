//! Failed handshakes in words: the observation, and the remedy. The texts of the library are names of
//! its types, which no operator can look up.

use chrono::DateTime;
use rustls::{
    AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible,
    pki_types::UnixTime,
};

use super::verifier::Untrusted;

/// Causes of an error that are looked at.
const CAUSES_MAX: usize = 16;
/// Names of a certificate that a message lists.
const NAMES_MAX: usize = 5;
/// Object identifiers of signatures over SHA-1 and MD5: of RSA, and of ECDSA.
const WEAK_HASHES: [(&[u8], &str); 3] = [
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x05], "SHA-1"),
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01], "SHA-1"),
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x04], "MD5"),
];

const NOT_TLS: &str = "the server does not speak TLS on this port (plain HTTP?); use the port for https, \
     or a target that begins with http://";
const VERSION: &str =
    "the server speaks neither TLS 1.2 nor TLS 1.3; the receiver must enable one of them";
const CLIENT_CERTIFICATE: &str = "the server asks for a client certificate, and this service sends none; \
     the receiver must accept requests without one, and verify their signature instead";
const NO_COMMON_CIPHER: &str = "the server supports no cipher suite, curve or signature of this service; \
     the receiver must offer ECDHE with AES-GCM or ChaCha20-Poly1305 (TLS 1.2), or TLS 1.3";

/// A sentence on the failed handshake among the causes of an error, if there is one.
pub fn explain_cause(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    for _ in 0..CAUSES_MAX {
        let cause = next?;
        if let Some(error) = cause.downcast_ref() {
            return Some(explain(error));
        }
        // An I/O error hides what it wraps from `source()`.
        let inner = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = inner.map(|inner| inner as _).or_else(|| cause.source());
    }
    None
}

/// A sentence on a failed handshake.
pub fn explain(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(error) => certificate(error),
        Error::AlertReceived(alert) => alerted(*alert),
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType
            | InvalidMessage::UnknownProtocolVersion
            | InvalidMessage::MessageTooLarge,
        )
        | Error::PeerSentOversizedRecord => NOT_TLS.to_owned(),
        Error::PeerIncompatible(incompatible) => match incompatible {
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig => VERSION.to_owned(),
            PeerIncompatible::NoCipherSuitesInCommon
            | PeerIncompatible::NoKxGroupsInCommon
            | PeerIncompatible::NoSignatureSchemesInCommon => NO_COMMON_CIPHER.to_owned(),
            other => format!("the TLS of the server is not compatible ({})", words(other)),
        },
        Error::NoCertificatesPresented => {
            "the server sent no certificate; the receiver must configure one".to_owned()
        }
        Error::InvalidMessage(fault) => broken(&words(fault)),
        Error::PeerMisbehaved(fault) => broken(&words(fault)),
        Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => {
            broken("an unexpected message")
        }
        Error::DecryptError => broken("a message that cannot be decrypted"),
        Error::NoApplicationProtocol => alerted(AlertDescription::NoApplicationProtocol),
        Error::General(text) => text.clone(),
        Error::FailedToGetRandomBytes | Error::FailedToGetCurrentTime => {
            format!("this machine failed ({error})")
        }
        other => format!("the TLS connection failed ({})", words(other)),
    }
}

fn broken(fault: &str) -> String {
    format!(
        "the server, or a proxy before it, broke the TLS protocol ({fault}); `openssl s_client -connect \
         HOST:PORT` shows its side"
    )
}

fn certificate(error: &CertificateError) -> String {
    use CertificateError as E;
    match error {
        E::ExpiredContext { not_after, .. } => format!(
            "the certificate of the server expired at {}; the receiver must renew it (or the clock of \
             this machine is wrong)",
            date(*not_after)
        ),
        E::Expired => {
            "the certificate of the server has expired; the receiver must renew it".to_owned()
        }
        E::NotValidYetContext { not_before, .. } => format!(
            "the certificate of the server is valid only from {} on (or the clock of this machine is \
             wrong)",
            date(*not_before)
        ),
        E::NotValidYet => "the certificate of the server is not valid yet".to_owned(),
        E::NotValidForNameContext { expected, presented } => format!(
            "the certificate of the server is not valid for name {}: it names {}; the receiver needs a \
             certificate with this name (subjectAltName)",
            expected.to_str(),
            listed(presented)
        ),
        E::NotValidForName => {
            "the certificate of the server is not valid for name of this host".to_owned()
        }
        E::UnknownIssuer => Untrusted::Authority("of its issuer".to_owned()).to_string(),
        E::BadSignature => {
            "the signature of a certificate of the server is wrong: it was made with \
             another key than that of the authority that it names; if the authority has a new key, \
             update it in EXTRA_CA_CERTS or in the system"
                .to_owned()
        }
        E::UnsupportedSignatureAlgorithmContext { signature_algorithm_id: algorithm, .. }
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext {
            signature_algorithm_id: algorithm,
            ..
        } => signature(algorithm),
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => {
            "the certificate is not made for servers (its extendedKeyUsage lacks serverAuth); the \
             receiver needs another one"
                .to_owned()
        }
        E::Revoked => {
            "the certificate of the server was revoked; the receiver needs another one".to_owned()
        }
        E::BadEncoding => "the certificate of the server is damaged".to_owned(),
        E::Other(other) => {
            if let Some(untrusted) = other.0.downcast_ref::<Untrusted>() {
                return untrusted.to_string();
            }
            match other.0.downcast_ref::<webpki::Error>() {
                Some(webpki::Error::CaUsedAsEndEntity) => "the server uses the certificate of an \
                     authority (CA:TRUE) as its own; add exactly this certificate to EXTRA_CA_CERTS, or \
                     make one for servers (`openssl req -x509 -addext basicConstraints=CA:FALSE`)"
                    .to_owned(),
                Some(webpki::Error::UnsupportedCertVersion) => "a certificate of the server is older \
                     than X.509 version 3; the receiver needs another one"
                    .to_owned(),
                Some(other) => unacceptable(&words(other)),
                None => unacceptable(&other.0.to_string()),
            }
        }
        other => unacceptable(&words(other)),
    }
}

fn unacceptable(reason: &str) -> String {
    format!(
        "a certificate of the server cannot be accepted ({reason}); the receiver needs another one"
    )
}

fn signature(algorithm: &[u8]) -> String {
    let contains = |id: &[u8]| algorithm.windows(id.len()).any(|part| part == id);
    match WEAK_HASHES.iter().find(|(id, _)| contains(id)) {
        Some((_, hash)) => format!(
            "a certificate of the server is signed with {hash}, which is not secure; the receiver needs \
             one that is signed with SHA-256"
        ),
        None => {
            "a certificate of the server is signed with an algorithm that is not supported; ECDSA \
             with P-256 or P-384, Ed25519, and RSA with SHA-256 or better are"
                .to_owned()
        }
    }
}

/// An alert of the server by its name in the standards, with the remedy where there is one.
fn alerted(alert: AlertDescription) -> String {
    use AlertDescription as A;
    let text = match alert {
        A::CertificateRequired | A::NoCertificate => CLIENT_CERTIFICATE,
        A::ProtocolVersion => VERSION,
        A::InsufficientSecurity => NO_COMMON_CIPHER,
        A::HandshakeFailure => {
            "the server rejected the handshake (alert handshake_failure); mostly it supports no cipher \
             suite of this service, or wants a client certificate, which this service does not send"
        }
        A::BadCertificate
        | A::UnsupportedCertificate
        | A::CertificateUnknown
        | A::UnknownCA
        | A::CertificateExpired
        | A::CertificateRevoked
        | A::AccessDenied => {
            return format!(
                "the server rejected the client (alert {}); {CLIENT_CERTIFICATE}",
                name(alert)
            );
        }
        A::UnrecognisedName => {
            "the server does not serve this host name (alert unrecognized_name); check the host of the \
             target, and the server names that the receiver has configured"
        }
        A::NoApplicationProtocol => {
            "the server does not offer HTTP/1.1 (alert no_application_protocol); the receiver must \
             enable it"
        }
        A::InternalError => {
            "the server failed during the handshake (alert internal_error); its log says why"
        }
        _ => return format!("the server ended the TLS connection (alert {})", name(alert)),
    };
    text.to_owned()
}

fn name(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::UnknownCA => "unknown_ca".to_owned(),
        AlertDescription::Unknown(code) => code.to_string(),
        other => words(&other).replace(' ', "_"),
    }
}

fn date(time: UnixTime) -> String {
    let time =
        i64::try_from(time.as_secs()).ok().and_then(|time| DateTime::from_timestamp(time, 0));
    time.map_or_else(|| "an unknown time".to_owned(), |time| time.format("%F %R UTC").to_string())
}

/// The names of a certificate, which the library gives as `DnsName("a.example")`.
fn listed(names: &[String]) -> String {
    let plain = |name: &String| {
        let inner = name.split_once('(').and_then(|(_, name)| name.strip_suffix(')'));
        inner.unwrap_or(name).trim_matches('"').to_owned()
    };
    let shown: Vec<_> = names.iter().take(NAMES_MAX).map(plain).collect();
    match names.len() {
        0 => "no host at all".to_owned(),
        count if count > NAMES_MAX => {
            format!("{} and {} more", shown.join(", "), count - NAMES_MAX)
        }
        _ => shown.join(", "),
    }
}

/// The name of a variant, as words: `SelectedUnofferedCipherSuite` has no other text.
fn words(variant: &impl std::fmt::Debug) -> String {
    let name = format!("{variant:?}");
    let name = name.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
    let mut text = String::new();
    for character in name.chars() {
        if character.is_ascii_uppercase() && !text.is_empty() {
            text.push(' ');
        }
        text.push(character.to_ascii_lowercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{OtherError, PeerMisbehaved, pki_types::ServerName};

    use super::*;

    /// Each with words that the sentence must have: the observation and the remedy.
    #[test]
    fn failed_handshakes_are_explained() {
        let other = |error: webpki::Error| {
            Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
        };
        let time = |seconds| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        let unsupported = |id: &[u8]| CertificateError::UnsupportedSignatureAlgorithmContext {
            signature_algorithm_id: [&[0x06, 0x09], id].concat(),
            supported_algorithms: vec![],
        };
        let name = |presented: &[&str]| CertificateError::NotValidForNameContext {
            expected: ServerName::try_from("a.example").unwrap(),
            presented: presented.iter().map(|&name| name.to_owned()).collect(),
        };
        let alert = Error::AlertReceived;
        let cases = [
            (other(webpki::Error::CaUsedAsEndEntity), &["CA:TRUE", "EXTRA_CA_CERTS"][..]),
            (other(webpki::Error::NameConstraintViolation), &["name constraint violation"]),
            (CertificateError::UnknownIssuer.into(), &["not trusted", "EXTRA_CA_CERTS"]),
            (CertificateError::BadSignature.into(), &["signature", "wrong"]),
            (unsupported(WEAK_HASHES[0].0).into(), &["SHA-1", "SHA-256"]),
            (unsupported(WEAK_HASHES[1].0).into(), &["SHA-1", "SHA-256"]),
            (unsupported(&[1, 2, 3]).into(), &["not supported", "P-256"]),
            (
                CertificateError::ExpiredContext { time: time(9), not_after: time(1_609_459_200) }
                    .into(),
                &["expired at 2021-01-01 00:00 UTC", "renew"],
            ),
            (
                CertificateError::NotValidYetContext {
                    time: time(9),
                    not_before: time(4_102_444_800),
                }
                .into(),
                &["only from 2100-01-01 00:00 UTC", "clock"],
            ),
            (
                name(&["DnsName(\"b.example\")", "IpAddress(10.0.0.1)"]).into(),
                &["not valid for name a.example", "names b.example, 10.0.0.1;", "subjectAltName"],
            ),
            (name(&[]).into(), &["no host at all"]),
            (name(&["DnsName(\"x\")"; 9]).into(), &["x, x, x, x, x and 4 more"]),
            (CertificateError::InvalidPurpose.into(), &["serverAuth"]),
            (InvalidMessage::InvalidContentType.into(), &["plain HTTP", "http://"]),
            (PeerIncompatible::ServerDoesNotSupportTls12Or13.into(), &["TLS 1.2", "enable"]),
            (PeerIncompatible::NoCipherSuitesInCommon.into(), &["cipher suite", "ECDHE"]),
            (
                PeerMisbehaved::SelectedUnofferedCipherSuite.into(),
                &["selected unoffered cipher suite"],
            ),
            (Error::NoCertificatesPresented, &["no certificate"]),
            (alert(AlertDescription::CertificateRequired), &["client certificate", "sends none"]),
            (alert(AlertDescription::UnknownCA), &["unknown_ca", "client certificate"]),
            (alert(AlertDescription::ProtocolVersion), &["TLS 1.2", "enable"]),
            (alert(AlertDescription::HandshakeFailure), &["handshake_failure", "cipher suite"]),
            (alert(AlertDescription::UnrecognisedName), &["unrecognized_name", "host"]),
            (alert(AlertDescription::InternalError), &["internal_error", "log"]),
            (alert(AlertDescription::BadRecordMac), &["alert bad_record_mac"]),
            (alert(AlertDescription::Unknown(200)), &["alert 200"]),
        ];
        for (error, expected) in cases {
            let text = explain(&error);
            for words in expected {
                assert!(text.contains(words), "no {words:?} in {text:?}");
            }
            // Nothing that looks like the name of a type.
            let is_camel = |word: &str| {
                word.chars().any(|c| c.is_ascii_lowercase())
                    && word.chars().skip(1).any(|c| c.is_ascii_uppercase())
            };
            let known = ["subjectAltName", "extendedKeyUsage", "serverAuth", "basicConstraints"];
            let camel =
                text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| is_camel(word));
            let camel: Vec<_> = camel.filter(|word| !known.contains(word)).collect();
            let camel: Vec<_> = camel.iter().filter(|word| **word != "ChaCha20").collect();
            assert!(camel.is_empty(), "{camel:?} in {text:?}");
            assert!(!text.contains("::") && !text.contains('{'), "{text:?}");
        }
    }
}
