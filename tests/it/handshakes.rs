//! Handshakes that succeed and fail, with real servers: what is accepted, and the words for the rest.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::json;
use webhook_dispatcher::{
    delivery::{Client, resolver::Resolver},
    domain::ErrorClass,
    tls::Trust,
};

use crate::{
    delivery::{DEADLINE, client_that_trusts, sent},
    support::{
        Receiver, TestDatabase, eventually,
        process::{Process, free_port, on},
        raw::{Misdeed, RawReceiver, Reads, Then},
        tls::{Authority, Certificate, TlsReceiver, expired_authority},
        tools::{is_here, run},
    },
    tidy::root,
};

/// A folder for keys and certificates, removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("tls-{:x}", rand::random::<u64>()));
        fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn openssl(&self, line: &str) {
        let mut openssl = Command::new("openssl");
        openssl.args(line.split_whitespace()).current_dir(&self.0);
        run(&mut openssl).unwrap();
    }

    /// A key and a self-signed certificate, as `openssl req -x509` makes them.
    fn self_signed(&self, name: &str, more: &str) {
        self.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN={name} \
             -keyout {name}.key -out {name}.pem {more}"
        ));
    }

    /// A key and a certificate for 127.0.0.1 that `ca` issues.
    fn issued(&self, name: &str, key: &str, digest: &str) {
        fs::write(self.file("extensions"), "subjectAltName=IP:127.0.0.1\n").unwrap();
        self.openssl(&format!(
            "req -new {key} -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
        ));
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -days 30 {digest} -extfile extensions \
             -set_serial 7 -out {name}.pem"
        ));
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// `openssl s_server` until it is dropped.
struct OpensslServer {
    process: Child,
    port: u16,
}

impl OpensslServer {
    async fn start(folder: &Folder, name: &str, more: &str) -> Self {
        let port = free_port().await;
        let line = format!(
            "s_server -accept 127.0.0.1:{port} -cert {name}.pem -key {name}.key -www -quiet {more}"
        );
        let process = Command::new("openssl")
            .args(line.split_whitespace())
            .current_dir(&folder.0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let address: SocketAddr = ([127, 0, 0, 1], port).into();
        eventually("the server listens", async || {
            tokio::net::TcpStream::connect(address).await.ok()
        })
        .await;
        Self { process, port }
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}/", self.port)
    }
}

impl Drop for OpensslServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn trusting(file: &Path) -> Client {
    client_that_trusts(
        &["127.0.0.0/8"],
        false,
        &Resolver::new(&[]),
        Trust::with_file(file).unwrap(),
    )
}

async fn message(client: &Client, url: &str, class: ErrorClass) -> String {
    let exchange = sent(client, url, DEADLINE).await;
    let failure = exchange.outcome.failure().unwrap_or_else(|| panic!("{url}: {exchange:?}"));
    assert_eq!(failure.class, class, "{failure:?}");
    failure.message.clone()
}

/// The parts of messages that the page on troubleshooting explains.
fn documented() -> BTreeSet<String> {
    let page = fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap();
    let section = page.split("### TLS, DNS and connections").nth(1).unwrap();
    let section = section.split("\n### ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let cells = rows.filter_map(|row| row.split(" | ").next());
    let parts =
        cells.flat_map(|cell| cell.split("`, `").map(|part| part.trim_matches('`').to_owned()));
    parts.collect()
}

/// Says what was seen, in words, and has its row on the page.
#[track_caller]
fn check(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "no {word:?} in {message:?}");
    }
    for debug in ["::", "Error", "Other(", "Context", "{", "Invalid", "(os error"] {
        assert!(!message.contains(debug), "{debug:?} in {message:?}");
    }
    let is_documented = documented().iter().any(|part| message.contains(part.as_str()));
    assert!(is_documented, "no row of docs/troubleshooting.md has a part of {message:?}");
}

#[tokio::test]
async fn failed_handshake_names_cause_and_remedy() {
    let authority = Authority::new();
    let client = trusting(&authority.file_in_folder());
    for (certificate, words) in [
        (Certificate::Expired, &["expired at 2021-01-01 00:00 UTC", "renew"][..]),
        (Certificate::NotYetValid, &["valid only from 2100-01-01 00:00 UTC"]),
        (Certificate::OfAnotherHost, &["not valid for name 127.0.0.1: it names other.example"]),
        (Certificate::WithoutIntermediate, &["\"between\"", "does not send", "EXTRA_CA_CERTS"]),
        (Certificate::SelfSigned, &["self-signed", "EXTRA_CA_CERTS"]),
        (Certificate::AuthorityItself, &["CA:TRUE", "EXTRA_CA_CERTS"]),
    ] {
        let receiver = TlsReceiver::start(&authority, certificate).await;
        check(&message(&client, &receiver.url(), ErrorClass::Tls).await, words);
    }
    let stranger = TlsReceiver::start(&Authority::new(), Certificate::Good).await;
    check(
        &message(&client, &stranger.url(), ErrorClass::Tls).await,
        &["does not send", "EXTRA_CA_CERTS"],
    );
    let plain = Receiver::always(200).await;
    let url = format!("https://127.0.0.1:{}/", plain.port());
    check(&message(&client, &url, ErrorClass::Tls).await, &["does not speak TLS", "http://"]);
    for (bytes, then, words) in [
        (&b""[..], Then::HalfClose, &["closed the connection during the TLS handshake"][..]),
        (b"", Then::Reset, &["during the TLS handshake"]),
        (b"\x15\x03\x03\x00\x02\x02\x28", Then::HalfClose, &["handshake_failure", "cipher suite"]),
        (b"\x15\x03\x03\x00\x02\x02\x70", Then::HalfClose, &["unrecognized_name"]),
        (b"\x15\x03\x03\x00\x02\x02\x46", Then::HalfClose, &["neither TLS 1.2 nor TLS 1.3"]),
    ] {
        let script = Misdeed::Script(Reads::Something, bytes.to_vec(), then);
        let server = RawReceiver::start(script).await;
        let url = format!("https://127.0.0.1:{}/", server.port());
        check(&message(&client, &url, ErrorClass::Tls).await, words);
    }
}

#[tokio::test]
async fn failed_handshake_with_openssl_names_cause_and_remedy() {
    if !is_here("openssl", "version") {
        return;
    }
    let folder = Folder::new();
    folder.self_signed("ca", "");
    let ec = "-newkey ec -pkeyopt ec_paramgen_curve:P-256";
    folder.issued("good", ec, "-sha256");
    folder.issued("weak", "-newkey rsa:1024", "-sha256");
    folder.issued("old", ec, "-sha1");
    let client = trusting(&folder.file("ca.pem"));
    let weak = "-cipher DEFAULT@SECLEVEL=0";
    for (name, more, words) in [
        ("weak", weak, &["RSA key of 1024 bits", "2048"][..]),
        ("old", weak, &["SHA-1", "SHA-256"]),
        ("good", "-tls1_1 -cipher DEFAULT@SECLEVEL=0", &["neither TLS 1.2 nor TLS 1.3"]),
        ("good", "-Verify 1", &["client certificate"]),
        ("good", "-tls1_2 -Verify 1", &["client certificate"]),
        ("good", "-tls1_2 -cipher AES128-SHA", &["cipher suite"]),
    ] {
        let server = OpensslServer::start(&folder, name, more).await;
        check(&message(&client, &server.url(), ErrorClass::Tls).await, words);
    }
}

#[tokio::test]
async fn broken_connection_names_its_cause() {
    let client = trusting(&Authority::new().file_in_folder());
    let port = free_port().await;
    let refused = message(&client, &format!("http://127.0.0.1:{port}/"), ErrorClass::Connect).await;
    check(&refused, &["connection refused", &format!("127.0.0.1:{port}")]);
    for (bytes, then, words) in [
        (&b""[..], Then::Reset, "reset the connection"),
        (b"HTTP/1.1 20", Then::HalfClose, "closed the connection before"),
        (b"SSH-2.0-x\r\n\r\n", Then::HalfClose, "is not valid HTTP"),
        // An alert: the port speaks TLS.
        (b"\x15\x03\x01\x00\x02\x02\x46", Then::HalfClose, "https://"),
    ] {
        let server = RawReceiver::start(Misdeed::Script(Reads::Head, bytes.to_vec(), then)).await;
        check(&message(&client, &server.url(), ErrorClass::Protocol).await, &[words]);
    }
}

#[tokio::test]
async fn self_signed_certificate_is_accepted_where_exactly_it_is_trusted() {
    if !is_here("openssl", "version") {
        return;
    }
    let folder = Folder::new();
    // As most guides make it: the certificate of an authority.
    folder.self_signed("own", "-addext subjectAltName=IP:127.0.0.1");
    folder.self_signed("other", "-addext subjectAltName=IP:127.0.0.1");
    folder.self_signed("elsewhere", "-addext subjectAltName=DNS:elsewhere.example");
    // As docs/operations.md makes it.
    folder.self_signed(
        "server",
        "-addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE",
    );
    let exchange = async |served: &str, trusted: &str| {
        let certificate = folder.file(&format!("{served}.pem"));
        let key = folder.file(&format!("{served}.key"));
        let receiver = TlsReceiver::presenting(&certificate, &key).await;
        let client = trusting(&folder.file(&format!("{trusted}.pem")));
        let exchange = sent(&client, &receiver.url(), DEADLINE).await;
        exchange.outcome.failure().map(|failure| failure.message.clone())
    };
    assert_eq!(exchange("own", "own").await, None);
    assert_eq!(exchange("server", "server").await, None);
    check(&exchange("own", "other").await.unwrap(), &["CA:TRUE"]);
    check(&exchange("server", "other").await.unwrap(), &["self-signed"]);
    check(&exchange("elsewhere", "elsewhere").await.unwrap(), &["not valid for name 127.0.0.1"]);
    // The same name and another key.
    fs::rename(folder.file("own.pem"), folder.file("before.pem")).unwrap();
    folder.self_signed("own", "-addext subjectAltName=IP:127.0.0.1");
    check(&exchange("own", "before").await.unwrap(), &["CA:TRUE"]);
    // Trusted, and run out.
    expired_authority(&folder.file("expired.pem"), &folder.file("expired.key"));
    check(&exchange("expired", "expired").await.unwrap(), &["expired at"]);
}

#[tokio::test]
async fn extra_authorities_are_trusted_beside_the_others() {
    let (of_the_machine, extra) = (Authority::new(), Authority::new());
    let receivers = [
        TlsReceiver::start(&of_the_machine, Certificate::Good).await,
        TlsReceiver::start(&extra, Certificate::Good).await,
    ];
    let (machine_file, extra_file) = (of_the_machine.file_in_folder(), extra.file_in_folder());
    let database = TestDatabase::new().await;
    let url = database.url();
    let more = [
        ("SSL_CERT_FILE", machine_file.to_str().unwrap()),
        ("EXTRA_CA_CERTS", extra_file.to_str().unwrap()),
        ("ALLOWED_TARGET_CIDRS", "127.0.0.0/8"),
    ];
    let service = Process::start(free_port().await, &[on(&url).as_slice(), &more].concat()).await;
    let targets: Vec<_> = receivers.iter().map(TlsReceiver::url).collect();
    let body = json!({"event": "a", "payload": 1, "targets": targets});
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = client.post(format!("{}/dispatch", service.base));
    let request = request.header("content-type", "application/json").body(body.to_string());
    let answer = request.send().await.unwrap().text().await.unwrap();
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    for result in answer["results"].as_array().unwrap() {
        assert_eq!(result["status"], "delivered", "{answer}");
    }
}

#[test]
fn file_of_authorities_is_checked() {
    let folder = Folder::new();
    let file = folder.file("ca.pem");
    let refused = |file: &Path| Trust::with_file(file).unwrap_err().to_string();
    assert!(refused(&file).contains("cannot be read"));
    for (text, words) in [
        ("", "it holds none"),
        ("no certificate", "it holds none"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "damaged"),
    ] {
        fs::write(&file, text).unwrap();
        let message = refused(&file);
        assert!(message.contains(words) && message.contains("ca.pem"), "{message}");
    }
    assert!(Trust::default().client().is_ok());
}
