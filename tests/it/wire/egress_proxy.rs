//! Targets behind an HTTP proxy that is the only way out: Tinyproxy, as Debian has it.

use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::post;
use crate::support::{
    Receiver, TestApp, TestDatabase, eventually,
    process::{Folder, Process, free_port, on},
    raw::{Misdeed, RawReceiver},
    tls::{Authority, Certificate, TlsReceiver},
    tools::is_here,
};

/// A running Tinyproxy that wants a user and a password; killed when dropped.
struct Proxy {
    child: Child,
    port: u16,
    folder: Folder,
}

impl Proxy {
    /// Starts one with further settings. `None`: it is not installed.
    async fn start(settings: &str) -> Option<Self> {
        if !is_here("tinyproxy", "-v") {
            return None;
        }
        let port = free_port().await;
        let folder = Folder::new(&format!("tinyproxy-{port}"));
        std::fs::create_dir_all(&folder.0).unwrap();
        let (file, log) = (folder.0.join("conf"), folder.0.join("log"));
        let settings = format!(
            "Port {port}\nListen 127.0.0.1\nAllow 127.0.0.1\nTimeout 20\nMaxClients 50\n\
             BasicAuth user secret\nLogFile \"{}\"\nLogLevel Connect\n{settings}\n",
            log.display()
        );
        std::fs::write(&file, settings).unwrap();
        let child = Command::new("tinyproxy")
            .arg("-d")
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let proxy = Self { child, port, folder };
        let address = ("127.0.0.1", port);
        eventually("the proxy", async || tokio::net::TcpStream::connect(address).await.ok()).await;
        Some(proxy)
    }

    fn url(&self) -> String {
        format!("http://user:secret@127.0.0.1:{}", self.port)
    }

    /// Addresses to which tunnels were wanted.
    fn tunnels(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.folder.0.join("log")).unwrap();
        let mut wanted = Vec::new();
        for line in log.lines() {
            if let Some((_, rest)) = line.split_once(": CONNECT ")
                && let Some((address, _)) = rest.split_once(' ')
            {
                wanted.push(address.to_owned());
            }
        }
        wanted
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn app(proxy: &str, more: &[&str]) -> TestApp {
    let flag = format!("--egress-proxy={proxy}");
    TestApp::with(&[&[flag.as_str()], more].concat()).await
}

async fn dispatch(app: &TestApp, target: &str) -> Value {
    let body = json!({"event": "a.b", "payload": 1, "targets": [target]});
    let (_, answer) = post(app, "/dispatch", &[], &body).await;
    answer["results"][0].clone()
}

/// An event for a target, once its first attempt has failed.
async fn failed_event(app: &TestApp, target: &str) -> Value {
    let id = app.publish(json!({"payload": 1, "target_url": target})).await;
    app.wait_for_attempt(&id).await
}

/// The setting is named, and neither the proxy nor its user.
#[track_caller]
fn check_error(event: &Value, class: &str, text: &str) {
    let error = &event["last_error"];
    assert_eq!(error["class"], class, "{event}");
    let said = error["message"].as_str().unwrap();
    assert!(said.contains(text) && said.contains("EGRESS_PROXY"), "{said}");
    for hidden in ["wr0ng", "secret", "user:"] {
        assert!(!said.contains(hidden), "{said}");
    }
}

/// Broken by: a target called past the proxy; a name that the proxy resolves; an address that may be
/// called because a proxy calls it.
#[tokio::test]
async fn targets_are_called_through_the_proxy_at_vetted_addresses() {
    let Some(proxy) = Proxy::start("").await else { return };
    let app = app(&proxy.url(), &["--allowed-target-cidrs=127.0.0.1/32"]).await;
    let receiver = Receiver::always(200).await;
    let port = receiver.port();
    for _ in 0..2 {
        let result = dispatch(&app, &format!("http://localhost:{port}/")).await;
        assert_eq!(result["status"], "delivered", "{result}");
    }
    assert_eq!(proxy.tunnels(), [format!("127.0.0.1:{port}")], "one tunnel for two requests");
    let blocked = dispatch(&app, &format!("http://127.0.0.2:{port}/")).await;
    assert_eq!(blocked["error"]["class"], "blocked_address", "{blocked}");
    assert_eq!(proxy.tunnels().len(), 1, "nothing was asked of the proxy");
    app.stop().await;
}

/// Broken by: TLS to the proxy, or for its name; credentials in the log.
#[tokio::test]
async fn tls_goes_through_the_tunnel_for_the_name_of_the_target() {
    let Some(proxy) = Proxy::start("").await else { return };
    let authority = Authority::new();
    let receiver = TlsReceiver::start(&authority, Certificate::Good).await;
    let (database, file, proxy_url) = (TestDatabase::new().await, authority.file(), proxy.url());
    let url = database.url();
    let more = [
        ("SSL_CERT_FILE", file.to_str().unwrap()),
        ("ALLOWED_TARGET_CIDRS", "127.0.0.0/8"),
        ("EGRESS_PROXY", proxy_url.as_str()),
        ("RUST_LOG", "debug"),
    ];
    let service = Process::start(free_port().await, &[on(&url).as_slice(), &more].concat()).await;
    let body = json!({"event": "a.b", "payload": 1, "targets": [receiver.url()]});
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = http.post(format!("{}/dispatch", service.base)).body(body.to_string());
    let answer = request.header("content-type", "application/json").send().await.unwrap();
    let answer: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    assert_eq!(answer["results"][0]["status"], "delivered", "{answer}");
    assert_eq!(proxy.tunnels().len(), 1);
    let log = std::fs::read_to_string(&service.log).unwrap();
    // printf user:secret | base64
    for hidden in ["user:secret", "dXNlcjpzZWNyZXQ"] {
        assert!(!log.contains(hidden), "{log}");
    }
}

/// Broken by: a target that the proxy cannot reach, reported as a fault of this service.
#[tokio::test]
async fn what_the_proxy_cannot_reach_counts_against_the_receiver() {
    let Some(proxy) = Proxy::start("").await else { return };
    let app = app(&proxy.url(), &["--max-attempts=1"]).await;
    let target = format!("http://127.0.0.1:{}/", free_port().await);
    let event = failed_event(&app, &target).await;
    assert_eq!((&event["status"], &event["attempt_count"]), (&json!("dead"), &json!(1)), "{event}");
    check_error(&event, "connect", "could not connect");
    app.stop().await;
}

/// Broken by: a fault of the proxy that uses up attempts, or counts against the receiver.
#[tokio::test]
async fn faults_of_the_proxy_are_named_and_use_up_no_attempt() {
    let receiver = Receiver::always(200).await;
    let greeting = Misdeed::Write(b"220 mail.example ESMTP\r\n".to_vec());
    let mail = RawReceiver::start(greeting).await;
    let nobody = format!("http://localhost:{}", free_port().await);
    let mut cases = vec![
        (nobody, "connect", "no connection to the egress proxy"),
        (mail.url(), "connect", "opens no tunnel"),
    ];
    let ports = "ConnectPort 1";
    let proxies = (Proxy::start("").await, Proxy::start(ports).await);
    if let (Some(open), Some(closed)) = &proxies {
        let wrong = format!("http://user:wr0ng@127.0.0.1:{}", open.port);
        cases.push((wrong, "connect", "put a user and a password"));
        cases.push((closed.url(), "blocked_address", "answered 403"));
    }
    for (proxy, class, text) in cases {
        let app = app(&proxy, &["--max-attempts=1"]).await;
        let event = failed_event(&app, &receiver.url("/")).await;
        assert_eq!(event["status"], "pending", "{event}");
        check_error(&event, class, text);
        app.stop().await;
    }
    assert_eq!(receiver.count(), 0, "never past the proxy");
}

/// Broken by: a name that is not resolved at the deadline, reported as a time-out of the receiver.
#[tokio::test]
async fn a_name_that_is_not_resolved_at_the_deadline_is_a_failure_of_dns() {
    let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let servers = format!("--dns-servers={}", silent.local_addr().unwrap());
    let app = TestApp::with(&[&servers, "--http-timeout=0.5", "--max-attempts=1"]).await;
    let event = failed_event(&app, "http://receiver.example/").await;
    assert_eq!(event["status"], "pending", "{event}");
    assert_eq!(event["last_error"]["class"], "dns", "{event}");
    let said = event["last_error"]["message"].as_str().unwrap();
    assert!(said.contains("no name server answered within 0.5 s"), "{said}");
    app.stop().await;
}

/// Broken by: a proxy that hangs, and is not named where the deadline is short.
#[tokio::test]
async fn proxy_that_hangs_is_named_at_the_deadline() {
    let silent = RawReceiver::start(Misdeed::Hang).await;
    let app = app(&silent.url(), &["--http-timeout=0.5", "--max-attempts=1"]).await;
    let event = failed_event(&app, "http://127.0.0.1:9/").await;
    check_error(&event, "timeout", "opened no tunnel in time");
    app.stop().await;
}
