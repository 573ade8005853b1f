//! Verification of servers' certificates: webpki's, and what it says more or accepts more.
//!
//! A self-signed certificate with `CA:TRUE`, as `openssl req -x509` makes it, is refused by webpki as
//! the certificate of a server. It is accepted here when exactly that certificate is trusted, as by
//! OpenSSL: whoever has its key could issue any other certificate as well.

use std::{collections::HashSet, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};
use sha2::{Digest, Sha256};
use webpki::EndEntityCert;

use super::{TrustError, der};

/// Bits that an RSA key must have at least to be supported.
const RSA_BITS_MIN: usize = 2_048;
/// Certificates of a chain that are looked at to explain a failure.
const CHAIN_MAX: usize = 16;

/// Failures that webpki does not tell apart.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Untrusted {
    #[error(
        "the certificate of the server is self-signed; add it to EXTRA_CA_CERTS to trust it, or use a \
         certificate of an authority"
    )]
    SelfSigned,
    #[error(
        "the certificate of the server was issued by {0}, which is not trusted, and whose own \
         certificate the server does not send; the receiver must send the whole chain (intermediate \
         certificates too), or the authority must be added to EXTRA_CA_CERTS"
    )]
    Incomplete(String),
    #[error(
        "the certificate of the server leads to the authority {0}, which is not trusted; add its \
         certificate to EXTRA_CA_CERTS to trust it"
    )]
    Authority(String),
    #[error(
        "a certificate of the server has an RSA key of {0} bits, which is too weak; the receiver needs \
         one with 2048 bits or more, or with an elliptic curve"
    )]
    WeakKey(usize),
}

#[derive(Debug)]
pub(super) struct Verifier {
    webpki: Arc<WebPkiServerVerifier>,
    /// Digests of the trusted certificates.
    trusted: HashSet<[u8; 32]>,
}

/// Whether a certificate can be trusted at all.
pub(super) fn is_usable(certificate: &CertificateDer<'static>) -> bool {
    RootCertStore::empty().add(certificate.clone()).is_ok()
}

fn digest(certificate: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(certificate).into()
}

impl Verifier {
    /// Trusts the authorities of the machine and the extra ones.
    pub fn new(
        extra: &[CertificateDer<'static>],
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, TrustError> {
        let machine = rustls_native_certs::load_native_certs();
        for error in &machine.errors {
            tracing::warn!(
                event = "authorities_unreadable", %error,
                "some certificates of authorities could not be read"
            );
        }
        let certificates = || machine.certs.iter().chain(extra).cloned();
        let mut roots = RootCertStore::empty();
        let (_, ignored) = roots.add_parsable_certificates(certificates());
        if ignored > 0 {
            tracing::warn!(
                event = "authorities_ignored",
                ignored,
                "ignored damaged certificates of authorities"
            );
        }
        if roots.is_empty() {
            return Err(TrustError::Nothing);
        }
        let trusted = certificates().map(|certificate| digest(&certificate)).collect();
        let webpki = WebPkiServerVerifier::builder_with_provider(roots.into(), provider.clone());
        let webpki = webpki.build().map_err(|error| Error::General(error.to_string()))?;
        Ok(Self { webpki, trusted })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        server: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified =
            self.webpki.verify_server_cert(server, intermediates, name, ocsp_response, now);
        match verified {
            // webpki checks the dates before it refuses an authority's certificate, and the name after.
            Err(Error::InvalidCertificate(CertificateError::Other(other)))
                if is_authority(&other) && self.trusted.contains(&digest(server)) =>
            {
                verify_server_name(&ParsedCertificate::try_from(server)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
                Err(other(unknown_issuer(server, intermediates)))
            }
            Err(error) => Err(explained(error, std::iter::once(server).chain(intermediates))),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        server: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verified = self.webpki.verify_tls12_signature(message, server, signature);
        verified.map_err(|error| explained(error, [server]))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        server: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verified = self.webpki.verify_tls13_signature(message, server, signature);
        verified.map_err(|error| explained(error, [server]))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

fn other(error: Untrusted) -> Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}

fn is_authority(error: &OtherError) -> bool {
    matches!(error.0.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}

/// A wrong signature of a weak key is no wrong signature: such keys are not supported.
fn explained<'a>(error: Error, chain: impl IntoIterator<Item = &'a CertificateDer<'a>>) -> Error {
    if error != Error::InvalidCertificate(CertificateError::BadSignature) {
        return error;
    }
    let keys = chain.into_iter().take(CHAIN_MAX).filter_map(|certificate| {
        let parsed = EndEntityCert::try_from(certificate).ok()?;
        der::rsa_key_bits(&parsed.subject_public_key_info())
    });
    keys.min()
        .filter(|bits| *bits < RSA_BITS_MIN)
        .map_or(error, |bits| other(Untrusted::WeakKey(bits)))
}

/// Follows a chain from the certificate of the server to the last issuer that it names.
fn unknown_issuer(server: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Untrusted {
    let Ok(server) = EndEntityCert::try_from(server) else {
        return Untrusted::Authority("(unreadable)".to_owned());
    };
    if server.issuer() == server.subject() {
        return Untrusted::SelfSigned;
    }
    let sent: Vec<_> = intermediates
        .iter()
        .take(CHAIN_MAX)
        .filter_map(|certificate| EndEntityCert::try_from(certificate).ok())
        .collect();
    let mut issuer = server.issuer();
    for _ in 0..sent.len() {
        let Some(next) = sent.iter().find(|certificate| certificate.subject() == issuer) else {
            break;
        };
        if next.issuer() == next.subject() {
            return Untrusted::Authority(der::shown_name(issuer));
        }
        issuer = next.issuer();
    }
    Untrusted::Incomplete(der::shown_name(issuer))
}
