//! The binary as people run it: environment, log and signals; and the receivers on request.

mod on_request;

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use mock_receiver::HANG_MAX;
use sha2::Sha256;

const SECRET: &str = "tell-nobody-ever";

/// A running binary. Killed if its test fails.
struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// All that was read of `stdout`.
    log: String,
    addr: String,
}

impl Running {
    fn spawn(environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_mock-receiver"))
            .env_clear()
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdout, log: String::new(), addr: String::new() }
    }

    /// Starts it with every request hanging, and waits until it listens.
    fn start() -> Self {
        let mut running = Self::spawn(&[
            ("PORT", "0"),
            ("HANG_RATE", "1"),
            ("SEED", "7"),
            ("WEBHOOK_SECRET", SECRET),
        ]);
        running.read_until("listening");
        let (_, rest) = running.log.split_once("local_addr=").unwrap();
        running.addr = rest.split_whitespace().next().unwrap().to_owned();
        running
    }

    fn read_until(&mut self, text: &str) {
        while !self.log.contains(text) {
            let length = self.stdout.read_line(&mut self.log).unwrap();
            assert_ne!(length, 0, "the log ended without {text:?}: {}", self.log);
        }
    }

    /// Sends a signal by its name.
    fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Waits for the end.
    fn exit_code(&mut self) -> Option<i32> {
        self.stdout.read_to_string(&mut self.log).unwrap();
        self.child.wait().unwrap().code()
    }

    /// Asks for the stats until they hold this text.
    fn wait_for_stats(&self, text: &str) {
        for _ in 0..10_000 {
            let mut stream = TcpStream::connect(&self.addr).unwrap();
            let request = b"GET /stats HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n";
            stream.write_all(request).unwrap();
            let mut response = String::new();
            stream.read_to_string(&mut response).unwrap();
            if response.contains(text) {
                return;
            }
        }
        panic!("the stats never held {text:?}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails if it has ended already, as it should have.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a well signed webhook and does not wait for the answer.
fn send_webhook(addr: &str) -> TcpStream {
    let mac = |text: &str| {
        let mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
        Bytes::copy_from_slice(&mac.chain_update(text).finalize().into_bytes())
    };
    let now_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let mut stream = TcpStream::connect(addr).unwrap();
    write!(
        stream,
        "POST /webhook HTTP/1.1\r\nhost: test\r\nwebhook-id: evt_a\r\n\
         webhook-timestamp: {now_unix_s}\r\nwebhook-signature: v1,{}\r\n\
         x-webhook-timestamp: 2026-01-31T23:59:59Z\r\nx-webhook-signature: {:x}\r\n\
         content-length: 2\r\n\r\n{{}}",
        STANDARD.encode(mac(&format!("evt_a.{now_unix_s}.{{}}"))),
        mac("2026-01-31T23:59:59Z.{}"),
    )
    .unwrap();
    stream
}

#[track_caller]
fn check_stops_on(signal: &str) {
    let mut running = Running::start();
    let mut held = send_webhook(&running.addr);
    running.wait_for_stats("\"hung_on_purpose\":1");
    let endless = ["/hang", "/drip", "/endless"].map(|path| {
        let mut stream = TcpStream::connect(&running.addr).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
        stream
    });
    running.wait_for_stats("\"in_progress\":4");
    running.signal(signal);
    // Half of `HANG_MAX`, after which the request would be let go anyway.
    held.set_read_timeout(Some(HANG_MAX / 2)).unwrap();
    let closed = held.read_to_end(&mut Vec::new()).map_err(|error| error.kind());
    assert!(matches!(closed, Ok(0) | Err(ErrorKind::ConnectionReset)), "{closed:?}");
    assert_eq!(running.exit_code(), Some(0), "{}", running.log);
    drop(endless);

    let line = running.log.lines().find(|line| line.contains("webhook_id")).unwrap();
    for field in [
        "method=\"POST\"",
        "path=\"/webhook\"",
        "webhook_id=\"evt_a\"",
        "attempt=1",
        "signature=good",
        "answer=hang",
        "after_ms=",
    ] {
        assert!(line.contains(field), "no {field} in {line}");
    }
    assert!(running.log.contains("seed=7"), "{}", running.log);
    assert!(!running.log.contains(SECRET), "{}", running.log);
}

#[test]
fn sigterm_stops_it_while_a_request_hangs() {
    check_stops_on("TERM");
}

#[test]
fn sigint_stops_it_while_a_request_hangs() {
    check_stops_on("INT");
}

#[test]
fn a_health_check_says_whether_it_answers() {
    /// Runs `mock-receiver health`. Returns its exit code and what it says.
    fn health(port: &str) -> (Option<i32>, String) {
        let mut asking = Command::new(env!("CARGO_BIN_EXE_mock-receiver"));
        // All addresses: it is asked on loopback.
        let asking = asking.arg("health").env_clear().env("BIND", "0.0.0.0").env("PORT", port);
        let output = asking.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }
    let mut running = Running::start();
    let (_, port) = running.addr.rsplit_once(':').unwrap();
    let port = port.to_owned();
    assert_eq!(health(&port), (Some(0), String::new()));
    running.signal("TERM");
    running.exit_code();
    let (code, reason) = health(&port);
    assert_eq!(code, Some(1));
    assert!(reason.contains("does not answer"), "{reason}");
}

#[test]
fn bad_settings_in_the_environment_stop_the_start_by_name() {
    let check = |name, value| {
        let mut running = Running::spawn(&[("PORT", "0"), (name, value)]);
        // It says something here only if it starts all the same.
        running.stdout.read_line(&mut running.log).unwrap();
        assert_eq!(running.log, "", "{name}={value} must not start it");
        let mut stderr = String::new();
        running.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!(running.exit_code(), Some(2), "{stderr}");
        assert!(stderr.contains(name), "{stderr}");
    };
    check("FAILURE_RATE", "7");
    check("HANG_RATE", "-0.5");
    check("MAX_DELAY_SEC", "soon");
    check("PORT", "65536");
    check("BIND", "localhost:8080");
    check("SEED", "-1");
    check("WEBHOOK_SECRET", "");
}
