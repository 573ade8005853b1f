//! The service as a process: crashes, signals, the embedded default, outages of Postgres.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use mock_receiver::{MockReceiver, Settings};
use serde_json::{Value, json};
use webhook_dispatcher::embedded_postgres::{EmbeddedPostgres, Options};

use crate::support::{
    Receiver, TestDatabase, eventually,
    process::{ENCRYPTION_KEY, Folder, Process, command, free_port, on},
};

/// Fast retries, local targets. A 429 of the chaos asks for a second of quiet from the whole lane,
/// which would make dozens of seconds of a few thousand events.
const FAST: &[(&str, &str)] = &[
    ("BACKOFF_BASE_SECONDS", "0.05"),
    ("BACKOFF_MAX_SECONDS", "0.5"),
    ("RETRY_AFTER_MAX", "0.05"),
    ("HTTP_TIMEOUT", "1"),
    ("MAX_ATTEMPTS", "200"),
    ("ALLOWED_TARGET_CIDRS", "127.0.0.0/8"),
];

async fn post(base: &str, target: &str, number: usize) -> Option<String> {
    let body = json!({"payload": {"number": number}, "target_url": target});
    let answer = reqwest::Client::new_of_tests()
        .post(format!("{base}/events"))
        .header("content-type", "application/json")
        .body(body.to_string())
        .send()
        .await
        .ok()?;
    if answer.status() != 202 {
        return None;
    }
    let body: Value = serde_json::from_str(&answer.text().await.ok()?).ok()?;
    Some(body["id"].as_str()?.to_owned())
}

/// One client for all of a test's requests would pool connections across the restart; what is
/// tested is the service, so each request has its own.
trait OfTests {
    fn new_of_tests() -> reqwest::Client;
}

impl OfTests for reqwest::Client {
    fn new_of_tests() -> reqwest::Client {
        reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_in_the_middle_loses_nothing_and_repeats_only_what_was_in_flight() {
    const EVENTS: usize = 2_000;
    const IN_FLIGHT_MAX: u64 = 32;
    let receiver = MockReceiver::bind(Settings {
        failure_rate: 0.3,
        hang_rate: 0.01,
        delay_max: Duration::from_millis(50),
        seed: Some(7),
        ..Settings::calm()
    })
    .await
    .unwrap();
    let database = TestDatabase::new().await;
    let url = database.url();
    let in_flight_max = IN_FLIGHT_MAX.to_string();
    let own = [("LANE_IN_FLIGHT_MAX", in_flight_max.as_str())];
    let environment = [FAST, &on(&url), &own].concat();
    let port = free_port().await;
    let service = Process::start(port, &environment).await;
    let base = service.base.clone();

    let (next, target) = (AtomicUsize::new(0), receiver.url());
    let post_until = async |end: usize| {
        let mut accepted = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= end {
                return accepted;
            }
            // A request that is cut by the crash was not accepted: it is not asked for again.
            accepted.extend(post(&base, &target, number).await);
        }
    };
    let mut accepted: HashSet<String> = HashSet::new();
    let halves = futures_util::future::join_all((0..16).map(|_| post_until(EVENTS / 2))).await;
    accepted.extend(halves.into_iter().flatten());
    // In the middle: the rest is being posted while the process dies.
    let ((), rest) = tokio::join!(
        async {
            while next.load(Ordering::Relaxed) < EVENTS * 3 / 4 {
                tokio::time::sleep(Duration::from_millis(5)).await; // not a race: any moment will do
            }
            service.kill();
        },
        futures_util::future::join_all((0..16).map(|_| post_until(EVENTS))),
    );
    accepted.extend(rest.into_iter().flatten());
    assert!(accepted.len() > EVENTS / 2, "{}", accepted.len());

    let service = Process::start(port, &environment).await;
    eventually("every accepted event to arrive", async || {
        let delivered: HashSet<String> = receiver
            .record()
            .iter()
            .filter(|r| matches!(r.answer, mock_receiver::Answer::Status(s) if s.is_success()))
            .filter_map(|r| r.webhook_id().map(str::to_owned))
            .collect();
        accepted.is_subset(&delivered).then_some(())
    })
    .await;
    let stats = receiver.stats();
    assert_eq!(stats.badly_signed, 0);
    assert!(stats.repeated <= IN_FLIGHT_MAX, "{stats:?}");
    drop(service);
}

#[tokio::test]
async fn the_first_signal_ends_in_order_and_the_second_at_once() {
    let database = TestDatabase::new().await;
    let url = database.url();
    let environment = [FAST, &on(&url)].concat();
    for signal in ["TERM", "INT"] {
        let mut service = Process::start(free_port().await, &environment).await;
        service.signal(signal);
        let status = service.ended().await;
        assert_eq!(status.code(), Some(0), "{}", service.output());
    }

    let receiver =
        MockReceiver::bind(Settings { hang_rate: 1.0, ..Settings::calm() }).await.unwrap();
    let slow = [FAST, &on(&url), &[("HTTP_TIMEOUT", "60"), ("SHUTDOWN_GRACE", "60")]];
    let mut service = Process::start(free_port().await, &slow.concat()).await;
    post(&service.base, &receiver.url(), 1).await.unwrap();
    receiver.wait_until(|stats| stats.hung_on_purpose == 1).await;
    service.signal("TERM");
    eventually("the first signal to be heard", async || {
        service.output().contains("stopping").then_some(())
    })
    .await;
    assert!(service.is_running(), "the request may still finish");
    service.signal("TERM");
    assert_eq!(service.ended().await.code(), Some(130));
}

#[tokio::test]
async fn the_embedded_default_keeps_its_data_through_crashes() {
    let receiver = Receiver::always(200).await;
    let folder = Folder::new("embedded");
    let environment = [FAST, &[("DATA_DIR", folder.str())]].concat();
    let port = free_port().await;
    let service = Process::start(port, &environment).await;
    assert!(service.output().contains("curl -X POST"), "{}", service.output());
    // A target that refuses: the event is still waiting when the service dies.
    let waiting = post(&service.base, "http://127.0.0.1:9/", 1).await.unwrap();
    let delivered = post(&service.base, &receiver.url("/"), 2).await.unwrap();
    // The same address too, as two services by their defaults have: the folder is what is told.
    let bind = format!("127.0.0.1:{port}");
    let mut other = command(&environment).env("BIND", bind).output().unwrap();
    assert_eq!(other.status.code(), Some(1));
    let message = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(message.contains("DATA_DIR") && message.contains(folder.str()), "{message}");
    other.stderr.clear();
    eventually("the delivery", async || (receiver.count() == 1).then_some(())).await;
    service.kill();

    let mut service = Process::start(port, &environment).await;
    assert!(service.output().contains("adopted=true"), "{}", service.output());
    for (id, status) in [(&waiting, "pending"), (&delivered, "delivered")] {
        let url = format!("{}/events/{id}", service.base);
        eventually(status, async || {
            let text = reqwest::get(&url).await.ok()?.text().await.ok()?;
            let event: Value = serde_json::from_str(&text).ok()?;
            (event["status"] == status).then_some(())
        })
        .await;
    }
    service.signal("TERM");
    assert_eq!(service.ended().await.code(), Some(0), "{}", service.output());
    assert!(!folder.0.join("postgres/postmaster.pid").exists(), "Postgres was stopped too");
}

#[tokio::test]
async fn killed_embedded_postgres_is_started_again_under_the_service() {
    let receiver = Receiver::always(200).await;
    let folder = Folder::new("embedded-killed");
    let environment = [FAST, &[("DATA_DIR", folder.str())]].concat();
    let mut service = Process::start(free_port().await, &environment).await;
    post(&service.base, &receiver.url("/"), 1).await.unwrap();
    let text = std::fs::read_to_string(folder.0.join("postgres/postmaster.pid")).unwrap();
    let postmaster = text.lines().next().unwrap();
    assert!(
        std::process::Command::new("kill").args(["-9", postmaster]).status().unwrap().success()
    );
    eventually("an acceptance", async || post(&service.base, &receiver.url("/"), 2).await).await;
    eventually("both deliveries", async || (receiver.count() >= 2).then_some(())).await;
    assert!(service.is_running(), "{}", service.output());
    let restarted = async || service.output().contains("embedded_postgres_restarted").then_some(());
    eventually("the line about the restart", restarted).await;
    service.signal("TERM");
    assert_eq!(service.ended().await.code(), Some(0), "{}", service.output());
    assert!(!folder.0.join("postgres/postmaster.pid").exists(), "Postgres was stopped too");
}

#[tokio::test]
async fn signal_ends_a_start_that_waits_for_the_database() {
    let closed = free_port().await;
    let url = format!("postgres://u@127.0.0.1:{closed}/d");
    let output = Folder::new("waiting-start");
    std::fs::create_dir_all(&output.0).unwrap();
    let log = output.0.join("log");
    let mut child = command(&on(&url))
        .env("BIND", "127.0.0.1:0")
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let read = || std::fs::read_to_string(&log).unwrap();
    eventually("the wait", async || read().contains("waiting for the database").then_some(()))
        .await;
    let begun = std::time::Instant::now();
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let status = eventually("the end", async || child.try_wait().unwrap()).await;
    assert_eq!(status.code(), Some(0), "{}", read());
    assert!(begun.elapsed() < Duration::from_secs(15), "half of the wait for the database");
}

/// Runs `webhook-dispatcher health`, which succeeds in silence or fails with this reason.
#[track_caller]
fn assert_health(environment: &[(&str, &str)], reason: Option<&str>) {
    let output = command(environment).arg("health").output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(i32::from(reason.is_some())), "{message}");
    assert!(message.contains(reason.unwrap_or_default()), "{message}");
    assert_eq!(message.lines().count(), usize::from(reason.is_some()), "{message}");
}

#[tokio::test]
async fn a_health_check_needs_nothing_but_the_address() {
    let url = TestDatabase::new().await.url();
    let number = free_port().await;
    let (bind, port) = (format!("127.0.0.1:{number}"), number.to_string());
    assert_health(&[("BIND", &bind)], Some(&format!("{bind} does not answer")));
    let mut service = Process::start(number, &on(&url)).await;
    assert_health(&[("BIND", &bind)], None);
    // All addresses, which would not be served without a key.
    assert_health(&[("PORT", &port)], None);
    assert_health(&[("BIND", "nowhere")], Some("BIND"));
    service.signal("TERM");
    service.ended().await;
    assert_health(&[("PORT", &port)], Some("does not answer"));
}

#[tokio::test]
async fn the_debug_log_follows_one_event_and_the_usual_one_is_silent() {
    let receiver = Receiver::always(200).await;
    let url = TestDatabase::new().await.url();
    for (log, lines) in [
        ("info,webhook_dispatcher=debug", &["accepted", "sending", "delivered"][..]),
        ("info", &[]),
    ] {
        let environment = [FAST, &on(&url), &[("RUST_LOG", log)]].concat();
        let mut service = Process::start(free_port().await, &environment).await;
        let before = receiver.count();
        let id = post(&service.base, &receiver.url("/"), 1).await.unwrap();
        eventually("the delivery", async || (receiver.count() > before).then_some(())).await;
        service.signal("TERM");
        service.ended().await;
        let output = service.output();
        let told: Vec<&str> = output.lines().filter(|line| line.contains(&id)).collect();
        assert_eq!(told.len(), lines.len(), "{output}");
        for (told, line) in told.iter().zip(lines) {
            assert!(told.contains(&format!(": {line} event={id}")), "{told}");
        }
    }
}

/// Catches: a library that logs whole messages at a level which the operator chose for another reason.
#[tokio::test]
async fn no_level_of_the_log_shows_what_agents_send() {
    let url = TestDatabase::new().await.url();
    let environment = [on(&url).as_slice(), &[("RUST_LOG", "trace,rmcp=trace")]].concat();
    let mut service = Process::start(free_port().await, &environment).await;
    let arguments = json!({"type": "a", "payload": {"note": "a-payload-of-a-tenant"}});
    let params = json!({"name": "webhook_publish", "arguments": arguments});
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params});
    let answer = reqwest::Client::new_of_tests()
        .post(format!("{}/mcp", service.base))
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .header("mcp-protocol-version", "2025-11-25")
        .bearer_auth("a-credential-of-a-tenant")
        .body(body.to_string())
        .send();
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200);
    service.signal("TERM");
    service.ended().await;
    let output = service.output();
    assert!(output.contains("DEBUG"), "{output}");
    for hidden in ["a-payload-of-a-tenant", "a-credential-of-a-tenant"] {
        let line = output.lines().find(|line| line.contains(hidden));
        assert!(line.is_none(), "{line:?}");
    }
}

#[tokio::test]
async fn an_outage_of_postgres_loses_nothing_and_ends_by_itself() {
    let receiver = MockReceiver::bind(Settings::calm()).await.unwrap();
    let folder = Folder::new("outage");
    let start = || {
        EmbeddedPostgres::start(Options {
            data_dir: folder.0.clone(),
            path: std::env::var_os("PATH"),
            extra_settings: Vec::new(),
        })
    };
    let postgres = start().await.unwrap();
    let socket = postgres.socket_dir().to_str().unwrap().replace('/', "%2F");
    let url = format!("postgres://webhook_dispatcher@{socket}/webhook_dispatcher");
    let environment = [FAST, &on(&url)].concat();
    let service = Process::start(free_port().await, &environment).await;
    let before = post(&service.base, &receiver.url(), 1).await.unwrap();
    receiver.wait_until(|stats| stats.unique == 1).await;

    let pid = std::fs::read_to_string(folder.0.join("postgres/postmaster.pid")).unwrap();
    let pid = pid.lines().next().unwrap().to_owned();
    // QUIT is an immediate shutdown: as a crash, with recovery at the next start.
    assert!(std::process::Command::new("kill").args(["-QUIT", &pid]).status().unwrap().success());
    let client = reqwest::Client::new_of_tests();
    let answer = eventually("a refusal", async || {
        let answer = client
            .post(format!("{}/events", service.base))
            .header("content-type", "application/json")
            .body(json!({"payload": 1, "target_url": receiver.url()}).to_string())
            .send()
            .await
            .ok()?;
        (answer.status() == 503).then_some(answer)
    })
    .await;
    assert!(answer.headers().contains_key("retry-after"));
    let problem: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    assert_eq!(problem["type"], "/problems/unavailable");
    let ready = client.get(format!("{}/readyz", service.base)).send().await.unwrap();
    assert_eq!(ready.status(), 503);
    let live = client.get(format!("{}/livez", service.base)).send().await.unwrap();
    assert_eq!(live.status(), 200);
    let bind = service.base.trim_start_matches("http://");
    assert_health(&[("BIND", bind)], Some("HTTP/1.1 503"));

    drop(postgres);
    let postgres = start().await.unwrap();
    let after =
        eventually("an acceptance", async || post(&service.base, &receiver.url(), 2).await).await;
    eventually("both deliveries", async || {
        let arrived: HashSet<_> =
            receiver.record().iter().filter_map(|r| r.webhook_id().map(str::to_owned)).collect();
        (arrived.contains(&before) && arrived.contains(&after)).then_some(())
    })
    .await;
    let output = service.output();
    let of_outage = |line: &&str| line.contains("database_unavailable");
    let warnings = output.lines().filter(of_outage).filter(|line| line.contains("WARN")).count();
    assert!((1..=2).contains(&warnings), "{output}");
    drop(service);
    postgres.stop().await.unwrap();
}

#[test]
fn contradictions_stop_the_start_and_name_the_variable() {
    #[track_caller]
    fn check(environment: &[(&str, &str)], expected: &str) {
        // Without a home a plain user's service would miss that first.
        let output = command(environment).env("HOME", "/nonexistent").output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains(expected), "{expected}: {message}");
        assert!(!message.contains("hunter2"), "a secret was shown: {message}");
    }
    check(&[("ADMIN_API_KEY", "hunter2")], "WEBHOOK_SECRET");
    let weak = [("ADMIN_API_KEY", "hunter2"), ("WEBHOOK_SECRET", "also hunter2")];
    check(&weak, "openssl rand -hex 32");
    check(&[("BIND", "0.0.0.0:8000")], "ADMIN_API_KEY");
    check(&[("PORT", "8000")], "ADMIN_API_KEY");
    check(&[("PORT", "http")], "PORT");
    check(&[("BIND", "localhost")], "BIND");
    check(
        &[
            ("ADMIN_API_KEY", "0c2f7a0b9d3e4f5a6b7c8d9e0f1a2b3c"),
            ("WEBHOOK_SECRET", "whsec_CyQKpVEdUZ0jZkSjKRlTJcDSfVaZYuCyQKpVEdUZ0jY="),
            ("ALLOW_UNAUTHENTICATED", "true"),
        ],
        "ALLOW_UNAUTHENTICATED",
    );
    check(&[("WEBHOOK_SECRET", "")], "WEBHOOK_SECRET");
    check(&[("DATABASE_URL", "mysql://u:hunter2@h/d")], "DATABASE_URL");
    check(&[("DATABASE_URL", "postgres://u:hunter2@h/d")], "ENCRYPTION_KEY");
    check(&[("ENCRYPTION_KEY", "hunter2")], "ENCRYPTION_KEY");
    let twice = format!("{ENCRYPTION_KEY},{ENCRYPTION_KEY}");
    check(&[("ENCRYPTION_KEY", &twice)], "ENCRYPTION_KEY");
    check(&[("TARGET_URL", "ftp://x/")], "TARGET_URL");
    check(&[("TARGET_URL", "https://hooks.{{tenant}}.example/")], "TARGET_URL");
    check(&[("TARGET_URL", "http://10.0.0.1/")], "ALLOWED_TARGET_CIDRS");
    check(&[("ALLOWED_TARGET_CIDRS", "10.0.0.0/33")], "ALLOWED_TARGET_CIDRS");
    check(&[("HTTP_TIMEOUT", "301")], "HTTP_TIMEOUT");
    check(&[("MAX_ATTEMPTS", "0")], "MAX_ATTEMPTS");
    check(&[("MAX_ATTEMPTS", "100")], "DELIVERY_AGE_MAX");
    check(&[("BACKOFF_BASE_SECONDS", "30000")], "BACKOFF_BASE_SECONDS");
    check(&[("RETENTION_DAYS", "5")], "RETENTION_DAYS");
    check(&[("PAYLOAD_RETENTION_DAYS", "40")], "PAYLOAD_RETENTION_DAYS");
    check(&[("IN_FLIGHT_MAX", "0")], "IN_FLIGHT_MAX");
    check(&[("IN_FLIGHT_MAX", "100"), ("LANE_IN_FLIGHT_MAX", "51")], "LANE_IN_FLIGHT_MAX");
    check(&[("ROLE", "api")], "DATABASE_URL");
    check(&[("ROLE", "worker")], "ROLE");
    check(&[("WORKER_POLL_INTERVAL", "0.000001")], "WORKER_POLL_INTERVAL");
    check(&[("WORKER_POLL_INTERVAL", "86400")], "WORKER_POLL_INTERVAL");
    check(&[("RETRY_AFTER_MAX", "864000")], "RETRY_AFTER_MAX");
    check(&[("REQUEST_BODY_MAX", "1")], "REQUEST_BODY_MAX");
    check(&[("BATCH_BODY_MAX", "100000000")], "BATCH_BODY_MAX");
    check(&[("RESPONSE_BODY_MAX", "99999999")], "RESPONSE_BODY_MAX");
}
