//! Connections that receivers close while they rest, just as the next request is on its way.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    time::Instant,
};
use webhook_dispatcher::domain::Outcome;

use super::{noting, post};
use crate::{
    delivery::{DEADLINE, local, sent},
    support::{
        TestApp, eventually,
        process::free_port,
        raw::RawReceiver,
        tools::{is_here, python_with},
    },
    tidy::root,
};

/// Delay of each way between us and the servers.
const WAY: Duration = Duration::from_millis(100);
/// Time after which the servers close a connection at rest. Some know whole seconds only.
const IDLE: Duration = Duration::from_secs(1);
/// Requests of each lane: the first opens a connection.
const REQUESTS: usize = 4;
/// Lanes of each server. Each waits a little longer than the one before.
const LANES: u32 = 8;

/// Catches: a delivery that fails at a receiver that closes each connection soon after its answer.
#[tokio::test]
async fn each_dispatch_to_a_receiver_that_closes_after_its_answer_is_delivered() {
    let (receiver, heads) = noting(0, true).await;
    let app = TestApp::start().await;
    let target = receiver.url();
    let body = json!({"event": "a.b", "payload": 1, "targets": [target]});
    let failures = AtomicUsize::new(0);
    let one_after_another = async || {
        for _ in 0..50 {
            let (status, answer) = post(&app, "/dispatch", &[], &body).await;
            if status != 200 || answer["results"][0]["status"] != "delivered" {
                failures.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    futures_util::future::join_all((0..8).map(|_| one_after_another())).await;
    assert_eq!(failures.into_inner(), 0);
    // Sent again where an answer had come: that would be more.
    assert_eq!(heads.all().len(), 400);
    app.stop().await;
}

/// Catches: a stale connection that counts as a failed attempt. One request each idle time of the
/// server meets its close in about every other case.
#[tokio::test]
async fn real_servers_that_close_connections_at_rest_see_no_failed_attempt() {
    let requirements = include_str!("servers.txt");
    let Some(python) =
        tokio::task::spawn_blocking(move || python_with("servers", requirements)).await.unwrap()
    else {
        return;
    };
    let mut servers = vec![
        uvicorn(&python).await,
        module(&python, "hypercorn", &["wire.servers:asgi", "--keep-alive", "1"], "--bind").await,
        module(&python, "gunicorn", GUNICORN, "--bind").await,
    ];
    if is_here("node", "--version") {
        servers.push(node().await);
    }
    let servers = servers.iter().map(|server| async move {
        let relay = relay(server.port).await;
        let lanes = (0..LANES).map(|lane| {
            let url = relay.url();
            async move {
                let client = local();
                let mut failed = 0;
                for _ in 0..REQUESTS {
                    let exchange = sent(&client, &url, DEADLINE).await;
                    failed += usize::from(exchange.outcome != Outcome::Delivered);
                    // From its answer the server waits for IDLE, and its close needs one way; so does
                    // the request. Between the two is the time that this is about.
                    let early = WAY * 5 / 2;
                    let pause = (IDLE + WAY * 3 * lane / LANES).saturating_sub(early);
                    tokio::time::sleep(pause).await;
                }
                failed
            }
        });
        let failed: usize = futures_util::future::join_all(lanes).await.into_iter().sum();
        (server.name, failed)
    });
    let failed = futures_util::future::join_all(servers).await;
    assert!(failed.iter().all(|(_, failed)| *failed == 0), "{failed:?}");
}

/// A server that is ended when it is dropped.
struct Server {
    name: &'static str,
    port: u16,
    process: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Asked first, so that its own processes end with it.
        let id = rustix::process::Pid::from_raw(self.process.id().cast_signed()).unwrap();
        let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        for _ in 0..500 {
            if !matches!(self.process.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20)); // bounded, and only at the end
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const GUNICORN: &[&str] = &[
    "wire.servers:wsgi",
    "--keep-alive",
    "1",
    "-k",
    "gthread",
    "--threads",
    "16",
    "--no-control-socket",
];

async fn uvicorn(python: &Path) -> Server {
    let port = free_port().await;
    let (port_of, more) = (port.to_string(), ["--timeout-keep-alive", "1", "--log-level", "error"]);
    let mut command = Command::new(python);
    command.args(["-m", "uvicorn", "wire.servers:asgi", "--port", &port_of]).args(more);
    started("uvicorn", port, command).await
}

async fn module(python: &Path, name: &'static str, arguments: &[&str], bind: &str) -> Server {
    let port = free_port().await;
    let mut command = Command::new(python);
    command.args(["-m", name, bind, &format!("127.0.0.1:{port}")]).args(arguments);
    started(name, port, command).await
}

async fn node() -> Server {
    let port = free_port().await;
    // Its header says a second, and it closes after two.
    let script = format!(
        "const server = require('http').createServer((request, response) => {{
           request.resume().on('end', () => response.end('ok'));
         }});
         server.keepAliveTimeout = 1000;
         server.listen({port}, '127.0.0.1');"
    );
    let mut command = Command::new("node");
    command.args(["-e", &script]);
    started("node", port, command).await
}

async fn started(name: &'static str, port: u16, mut command: Command) -> Server {
    command.current_dir(root().join("tests/it")).env("PYTHONDONTWRITEBYTECODE", "1");
    let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let server = Server { name, port, process };
    eventually(name, async || TcpStream::connect(("127.0.0.1", port)).await.ok()).await;
    server
}

/// A path to a server with [`WAY`] each way.
async fn relay(port: u16) -> RawReceiver {
    RawReceiver::with(move |stream, _| async move {
        let server = TcpStream::connect(("127.0.0.1", port)).await?;
        let ((from_us, to_us), (from_it, to_it)) = (stream.into_split(), server.into_split());
        futures_util::future::join(carry(from_us, to_it), carry(from_it, to_us)).await;
        Ok(())
    })
    .await
}

/// Carries bytes, and the end after them, each [`WAY`] later.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let (sender, mut under_way) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let reading = async move {
        loop {
            let mut bytes = Vec::new();
            let count = from.read_buf(&mut bytes).await.unwrap_or_default();
            // Nothing is the end.
            if sender.send((Instant::now() + WAY, bytes)).is_err() || count == 0 {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((at, bytes)) = under_way.recv().await {
            tokio::time::sleep_until(at).await; // the way itself
            if bytes.is_empty() || to.write_all(&bytes).await.is_err() {
                let _ = to.shutdown().await;
                return;
            }
        }
    };
    futures_util::future::join(reading, writing).await;
}
