//! TLS of the client's side: the authorities that are trusted, and the words for a failed handshake.

mod der;
mod explain;
mod verifier;

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, pem::PemObject},
};

pub use explain::{explain, explain_cause};
use verifier::Verifier;

/// Size up to which `EXTRA_CA_CERTS` is read, in bytes.
const EXTRA_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Authorities that are trusted beside those of the machine. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    extra: Arc<[CertificateDer<'static>]>,
}

/// A failure to find out which authorities are trusted.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file of `EXTRA_CA_CERTS` cannot be read.
    #[error("{} cannot be read: {error}", .file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The failure.
        error: io::Error,
    },
    /// The file has something else than certificates.
    #[error("{} must hold certificates in PEM format (`-----BEGIN CERTIFICATE-----`): {reason}", .file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// The first fault.
        reason: &'static str,
    },
    /// Neither the machine nor a setting has certificates.
    #[error(
        "no certificates of authorities were found; install the package `ca-certificates`, or name a \
         file of them in SSL_CERT_FILE or EXTRA_CA_CERTS"
    )]
    Nothing,
    /// The library cannot be set up.
    #[error("{}", explain(.0))]
    Library(#[from] rustls::Error),
}

impl Trust {
    /// Trusts the certificates of a PEM file too.
    pub fn with_file(file: &Path) -> Result<Self, TrustError> {
        let malformed = |reason| TrustError::Malformed { file: file.to_owned(), reason };
        let mut text = Vec::new();
        File::open(file)
            .and_then(|opened| opened.take(EXTRA_BYTES_MAX + 1).read_to_end(&mut text))
            .map_err(|error| TrustError::Unreadable { file: file.to_owned(), error })?;
        if text.len() as u64 > EXTRA_BYTES_MAX {
            return Err(malformed("it has more than 4 MiB"));
        }
        let extra = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
        let extra = extra.map_err(|_| malformed("a part of it is no PEM"))?;
        if extra.is_empty() {
            return Err(malformed("it holds none"));
        }
        if extra.iter().any(|certificate| !verifier::is_usable(certificate)) {
            return Err(malformed("one of them is damaged"));
        }
        Ok(Self { extra: extra.into() })
    }

    /// A configuration for clients that trust the authorities of the machine and these. `SSL_CERT_FILE`
    /// replaces those of the machine.
    pub fn client(&self) -> Result<ClientConfig, TrustError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Verifier::new(&self.extra, &provider)?;
        Ok(ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth())
    }
}
