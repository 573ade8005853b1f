//! Names: what DNS says is vetted when it is called, whatever it said before.

use std::net::Ipv4Addr;

use hickory_resolver::proto::op::ResponseCode;
use serde_json::{Value, json};

use crate::support::{
    TestApp,
    dns::{DnsServer, Reply},
    eventually,
    raw::{Misdeed, RawReceiver},
};

/// The one address that may be called, and one that may not.
const GOOD: Ipv4Addr = Ipv4Addr::LOCALHOST;
const BAD: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// An answer after which the connection is closed, so that the next delivery looks the name up.
fn closing() -> Misdeed {
    Misdeed::Write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".to_vec())
}

/// Two receivers on one port: at the address that may be called, and at the one that may not.
async fn receivers() -> (RawReceiver, RawReceiver) {
    loop {
        let good = RawReceiver::start(closing()).await;
        if let Ok(bad) = RawReceiver::at((BAD, good.port()).into(), closing()).await {
            return (good, bad);
        }
    }
}

async fn service(dns: &DnsServer, more: &[&str]) -> TestApp {
    let servers = format!("--dns-servers={}", dns.address());
    let allowed = format!("--allowed-target-cidrs={GOOD}/32");
    let flags = [
        servers.as_str(),
        &allowed,
        "--max-attempts=1",
        "--dispatch-inline-max=100",
        "--dispatch-wait=100",
    ];
    TestApp::with(&[&flags, more].concat()).await
}

fn answer(name: &str) -> Reply {
    match name {
        "good.test" => Reply::addresses(&["127.0.0.1"]),
        "bad.test" => Reply::addresses(&["127.0.0.2"]),
        "mixed.test" => Reply::addresses(&["127.0.0.1", "127.0.0.2"]),
        "mixed-back.test" => Reply::addresses(&["127.0.0.2", "127.0.0.1"]),
        "metadata.test" => Reply::addresses(&["169.254.169.254"]),
        "private.test" => Reply::addresses(&["10.0.0.1"]),
        "any.test" => Reply::addresses(&["0.0.0.0"]),
        "mapped.test" => Reply::addresses(&["::ffff:127.0.0.1"]),
        // As DNS64 answers for a name that has no IPv6 address.
        "nat64.test" => Reply::addresses(&["127.0.0.1", "64:ff9b::7f00:1"]),
        "nat64-only.test" => Reply::addresses(&["64:ff9b::7f00:1"]),
        "nat64-metadata.test" => Reply::addresses(&["64:ff9b::a9fe:a9fe", "64:ff9b::7f00:1"]),
        "6to4.test" => Reply::addresses(&["127.0.0.2", "2002:7f00:1::"]),
        "teredo.test" => Reply::addresses(&["2001:0:7f00:1::"]),
        "ula.test" => Reply::addresses(&["fd00:ec2::254"]),
        "ula-mixed.test" => Reply::addresses(&["127.0.0.1", "fd00:ec2::254"]),
        "link.test" => Reply::addresses(&["fe80::1"]),
        "alias.test" => Reply::aliases(&["a.test", "b.test", "c.test"], &["127.0.0.1"]),
        "alias-bad.test" => Reply::aliases(&["a.test", "b.test", "c.test"], &["169.254.169.254"]),
        "alias-mixed.test" => Reply::aliases(&["a.test"], &["127.0.0.1", "127.0.0.2"]),
        // Each step is a question of its own.
        "steps.test" => Reply::aliases(&["step.test"], &[]),
        "step.test" => Reply::aliases(&["bad.test"], &[]),
        "good-steps.test" => Reply::aliases(&["good-step.test"], &[]),
        "good-step.test" => Reply::aliases(&["good.test"], &[]),
        "local-alias.test" => Reply::aliases(&["localhost"], &[]),
        "loop.test" => Reply::aliases(&["pool.test"], &[]),
        "pool.test" => Reply::aliases(&["loop.test"], &[]),
        "many.test" => Reply::Addresses(vec![GOOD.into(); 64]),
        "too-many.test" => Reply::Addresses(vec![GOOD.into(); 65]),
        "too-many-bad.test" => Reply::Addresses(vec![BAD.into(); 900]),
        "none.test" => Reply::addresses(&[]),
        "failed.test" => Reply::Code(ResponseCode::ServFail),
        "refused.test" => Reply::Code(ResponseCode::Refused),
        "garbage.test" => Reply::Garbage,
        "silent.test" => Reply::Silence,
        name if name.ends_with("silent-tcp.test") => Reply::SilenceOverTcp,
        name if name.ends_with("silent.test") => Reply::Silence,
        _ => Reply::Code(ResponseCode::NXDomain),
    }
}

/// Catches: one good address that opens the way to a bad one, or a bad one that closes the way to a
/// good one; an answer that is believed because of its form, a failed look-up without a word.
#[tokio::test]
async fn what_dns_says_is_vetted() {
    let dns = DnsServer::start(|name, _| answer(name)).await;
    let (good, bad) = receivers().await;
    let cases = [
        ("good.test", "", ""),
        ("alias.test", "", ""),
        ("good-steps.test", "", ""),
        ("many.test", "", ""),
        ("too-many.test", "", ""),
        // What may not be called is left out.
        ("mixed.test", "", ""),
        ("mixed-back.test", "", ""),
        ("alias-mixed.test", "", ""),
        ("ula-mixed.test", "", ""),
        ("nat64.test", "", ""),
        ("local-alias.test", "", ""),
        ("localhost", "", ""),
        ("bad.test", "blocked_address", "127.0.0.2 is not a public address (loopback)"),
        ("metadata.test", "blocked_address", "169.254.169.254"),
        ("private.test", "blocked_address", "10.0.0.1"),
        ("any.test", "blocked_address", "this network"),
        ("mapped.test", "blocked_address", "IPv4-mapped"),
        ("nat64-only.test", "blocked_address", "NAT64"),
        ("nat64-metadata.test", "blocked_address", "NAT64"),
        ("6to4.test", "blocked_address", "127.0.0.2"),
        ("teredo.test", "blocked_address", "Teredo"),
        ("ula.test", "blocked_address", "unique local"),
        ("link.test", "blocked_address", "link-local"),
        ("alias-bad.test", "blocked_address", "169.254.169.254"),
        ("steps.test", "blocked_address", "127.0.0.2"),
        ("too-many-bad.test", "blocked_address", "127.0.0.2"),
        ("loop.test", "dns", "loop.test"),
        ("none.test", "dns", "none.test"),
        ("missing.test", "dns", "missing.test"),
        ("failed.test", "dns", "failed.test"),
        ("refused.test", "dns", "refused.test"),
        ("garbage.test", "dns", "garbage.test"),
    ];
    let app = service(&dns, &[]).await;
    let url = |name: &str| format!("http://{name}:{}/", good.port());
    let mut targets: Vec<_> = cases.iter().map(|(name, ..)| url(name)).collect();
    targets.push(format!("https://bad.test:{}/", good.port()));
    let (status, told) =
        app.post("/dispatch", &json!({"event": "a", "payload": 1, "targets": targets})).await;
    assert_eq!(status, 200, "{told}");
    let results = told["results"].as_array().unwrap();
    let delivered = cases.iter().filter(|(_, class, _)| class.is_empty()).count();
    for ((name, class, words), result) in cases.iter().zip(results) {
        if class.is_empty() {
            assert_eq!(result["status"], "delivered", "{name}: {result}");
            continue;
        }
        assert_eq!(result["error"]["class"], *class, "{name}: {result}");
        let message = result["error"]["message"].as_str().unwrap();
        assert!(message.contains(words) && message.contains(name), "{name}: {message}");
        let names_the_setting = message.contains("ALLOWED_TARGET_CIDRS");
        assert_eq!(names_the_setting, *class == "blocked_address", "{name}: {message}");
    }
    assert_eq!(results.last().unwrap()["error"]["class"], "blocked_address", "over https too");
    assert_eq!((good.connections(), bad.connections()), (delivered, 0));
    app.stop().await;
}

/// Catches: a name that is vetted at one moment and looked up again at another.
#[tokio::test]
async fn a_name_that_changes_its_answer_gains_nothing() {
    let dns = DnsServer::start(|_, before| match before {
        0 | 2 => Reply::addresses(&["127.0.0.1"]),
        1 => Reply::addresses(&["127.0.0.2"]),
        _ => Reply::addresses(&["169.254.169.254"]),
    })
    .await;
    let (good, bad) = receivers().await;
    let app = service(&dns, &[]).await;
    let url = format!("http://rebind.test:{}/", good.port());
    let made = app.make("/subscriptions", json!({"target_url": url, "event_types": "a"})).await;
    let test = format!("/subscriptions/{}/test", made["id"].as_str().unwrap());
    let outcome = async |id: &str| app.wait_for_attempt(id).await["last_error"]["class"].clone();
    let publish = async || app.publish(json!({"type": "a", "payload": 1})).await;
    assert_eq!(outcome(&publish().await).await, Value::Null);
    assert_eq!(dns.asked("rebind.test"), 1, "what was vetted is what was called");
    let body = json!({"event": "a.b", "payload": 1, "targets": [url]});
    let (_, blocked) = app.post("/dispatch", &body).await;
    assert_eq!(blocked["results"][0]["error"]["class"], "blocked_address", "{blocked}");
    assert_eq!(outcome(&app.accept(&url).await).await, Value::Null);
    let (status, accepted) = app.post(&test, &json!({})).await;
    assert_eq!(status, 202, "{accepted}");
    assert_eq!(outcome(accepted["id"].as_str().unwrap()).await, "blocked_address");
    assert!(dns.asked("rebind.test") >= 4, "and again a second later");
    assert_eq!((good.connections(), bad.connections()), (2, 0));
    app.stop().await;
}

/// Catches: look-ups that stand in each other's way; one that outlasts its delivery.
#[tokio::test]
async fn dns_that_hangs_hurts_nobody_else() {
    let dns = DnsServer::start(|name, _| answer(name)).await;
    let (good, _) = receivers().await;
    let app = service(&dns, &["--http-timeout=60", "--dispatch-wait=0.05"]).await;
    for kind in ["silent", "silent-tcp"] {
        let silent: Vec<_> = (0..100).map(|n| format!("http://{n}.{kind}.test/")).collect();
        let body = json!({"event": "a", "payload": 1, "targets": silent});
        let (status, told) = app.post("/dispatch", &body).await;
        assert_eq!(status, 202, "{told}");
        eventually("all hang", async || {
            (0..100).all(|n| dns.asked(&format!("{n}.{kind}.test")) > 0).then_some(())
        })
        .await;
    }
    // The second is asked for over TCP, as those are that hang there.
    for _ in 0..10 {
        for name in ["good.test", "many.test"] {
            let id = app.accept(&format!("http://{name}:{}/", good.port())).await;
            app.wait_for(&id, "delivered").await;
        }
    }
    app.stop().await;

    let app = service(&dns, &["--http-timeout=1"]).await;
    let id = app.accept("http://silent.test/").await;
    let event = app.wait_for_attempt(&id).await;
    assert_eq!(event["last_error"]["class"], "dns", "{event}");
    app.stop().await;
}
