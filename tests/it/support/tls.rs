//! Receivers behind TLS, with certificates of the tests' own authority.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::task::AbortOnDropHandle;

use super::raw::{self, Reads, Then};

/// Signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// What is right or wrong with a receiver's certificate.
#[derive(Debug, Clone, Copy)]
pub enum Certificate {
    Good,
    OfAnotherHost,
    Expired,
    NotYetValid,
    /// Issued by an authority between, whose certificate is not sent.
    WithoutIntermediate,
    /// Its own issuer, and no authority.
    SelfSigned,
    /// With `CA:TRUE`, and issued by the authority.
    AuthorityItself,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        // One of the same name would be the same authority with a wrong signature.
        params.distinguished_name.push(DnType::CommonName, format!("{:x}", rand::random::<u64>()));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// The same in a file that no other authority of this process has.
    pub fn file_in_folder(&self) -> PathBuf {
        let name = format!("authority-{:x}.pem", rand::random::<u64>());
        let file = std::env::temp_dir().join(name);
        std::fs::write(&file, &self.pem).unwrap();
        file
    }

    /// Writes the authority's certificate to a file, for `SSL_CERT_FILE`.
    pub fn file(&self) -> PathBuf {
        let file = std::env::temp_dir().join(format!("authority-{}.pem", std::process::id()));
        std::fs::write(&file, &self.pem).unwrap();
        file
    }

    fn server_config(&self, certificate: Certificate) -> ServerConfig {
        let host = match certificate {
            Certificate::OfAnotherHost => "other.example",
            _ => "127.0.0.1",
        };
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        match certificate {
            Certificate::Expired => {
                params.not_before = date_time_ymd(2020, 1, 1);
                params.not_after = date_time_ymd(2021, 1, 1);
            }
            Certificate::NotYetValid => {
                params.not_before = date_time_ymd(2100, 1, 1);
                params.not_after = date_time_ymd(2101, 1, 1);
            }
            _ => {}
        }
        if matches!(certificate, Certificate::AuthorityItself) {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        let key = KeyPair::generate().unwrap();
        let signed = match certificate {
            Certificate::SelfSigned => params.self_signed(&key),
            Certificate::WithoutIntermediate => {
                let mut between = CertificateParams::default();
                between.distinguished_name.push(DnType::CommonName, "between");
                between.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                let between = Issuer::new(between, KeyPair::generate().unwrap());
                params.signed_by(&key, &between)
            }
            _ => params.signed_by(&key, &self.issuer),
        };
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        server_config(vec![signed.unwrap().der().clone()], key)
    }
}

/// Writes a certificate with `CA:TRUE` that is its own issuer and has run out, and its key.
pub fn expired_authority(certificate: &Path, key: &Path) {
    let pair = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2021, 1, 1);
    std::fs::write(certificate, params.self_signed(&pair).unwrap().pem()).unwrap();
    std::fs::write(key, pair.serialize_pem()).unwrap();
}

fn server_config(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> ServerConfig {
    ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap()
}

/// Answers 200 to every request, over TLS, on one connection after the other.
pub struct TlsReceiver {
    address: SocketAddr,
    _server: AbortOnDropHandle<()>,
}

impl TlsReceiver {
    pub async fn start(authority: &Authority, certificate: Certificate) -> Self {
        Self::serving(authority, certificate, None).await
    }

    /// Writes these bytes once a request's head has come, and does that then. Only a half-close ends
    /// as TLS asks for it; the others end the connection beneath.
    pub async fn following(authority: &Authority, bytes: &str, then: Then) -> Self {
        let script = (bytes.as_bytes().to_vec(), then);
        Self::serving(authority, Certificate::Good, Some(script)).await
    }

    async fn serving(
        authority: &Authority,
        certificate: Certificate,
        script: Option<(Vec<u8>, Then)>,
    ) -> Self {
        Self::serving_with(authority.server_config(certificate), script).await
    }

    /// Serves with a certificate and a key of PEM files.
    pub async fn presenting(certificate: &Path, key: &Path) -> Self {
        let chain = CertificateDer::pem_file_iter(certificate).unwrap();
        let chain = chain.collect::<Result<_, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_file(key).unwrap();
        Self::serving_with(server_config(chain, key), None).await
    }

    async fn serving_with(config: ServerConfig, script: Option<(Vec<u8>, Then)>) -> Self {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        #[expect(clippy::disallowed_methods, reason = "aborted when the receiver is dropped")]
        let server = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // A client that does not trust us ends the handshake.
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let _ = match &script {
                    None => answer(stream).await,
                    Some((bytes, then)) => follow(stream, bytes, then.clone()).await,
                };
            }
        });
        Self { address, _server: AbortOnDropHandle::new(server) }
    }

    pub fn url(&self) -> String {
        format!("https://{}/", self.address)
    }
}

async fn answer(mut stream: TlsStream<TcpStream>) -> std::io::Result<()> {
    let mut buffer = [0; 4_096];
    while stream.read(&mut buffer).await? > 0 {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await?;
    }
    Ok(())
}

async fn follow(mut stream: TlsStream<TcpStream>, bytes: &[u8], then: Then) -> std::io::Result<()> {
    if !raw::read_head(&mut stream).await? {
        return Ok(());
    }
    stream.write_all(bytes).await?;
    stream.flush().await?;
    if matches!(then, Then::Reset) {
        stream.get_ref().0.set_zero_linger()?;
    }
    raw::finish(&mut stream, then, &raw::Seen::default(), Reads::Head).await
}
