//! From a host name to a connection: name servers, the system's files, and addresses that do not
//! answer.

use std::{fs, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use hickory_resolver::proto::op::ResponseCode;
use webhook_dispatcher::{
    delivery::{
        Client,
        resolver::{Resolver, SystemFiles},
    },
    domain::{
        ErrorClass, Outcome,
        outcome::{Failure, Fault},
    },
};

use crate::{
    delivery::{DEADLINE, client_with, sent},
    support::{
        Receiver,
        dns::{DnsServer, Reply},
        eventually,
        raw::{Misdeed, RawReceiver, Unresponsive},
    },
};

/// Less than a name server's time-out and more than a slow machine needs.
const SOON: Duration = Duration::from_millis(2_500);

fn asking(servers: &[SocketAddr]) -> Client {
    client_with(&["127.0.0.0/8"], false, &Resolver::new(servers))
}

async fn failure(client: &Client, url: &str) -> Failure {
    let exchange = sent(client, url, DEADLINE).await;
    exchange.outcome.failure().unwrap_or_else(|| panic!("{url}: {exchange:?}")).clone()
}

/// A receiver at 127.0.0.1, and an address that drops connection requests on the same port.
async fn receiver_and_dropping_address() -> (RawReceiver, Unresponsive) {
    loop {
        let answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let receiver = RawReceiver::start(Misdeed::Write(answer.to_vec())).await;
        let dropping = Unresponsive::at(([127, 0, 0, 2], receiver.port()).into());
        if let Ok(dropping) = dropping.await {
            return (receiver, dropping);
        }
    }
}

#[tokio::test]
async fn host_whose_first_address_drops_connection_requests_is_reached_at_the_next_one() {
    let (receiver, _dropping) = receiver_and_dropping_address().await;
    let dns = DnsServer::start(|_, _| Reply::addresses(&["127.0.0.2", "127.0.0.1"])).await;
    let client = asking(&[dns.address()]);
    let url = format!("http://two.test:{}/", receiver.port());
    let exchange = sent(&client, &url, DEADLINE).await;
    assert_eq!(exchange.outcome, Outcome::Delivered);
    // The first address was tried, and given a quarter of a second before the next one.
    assert!(exchange.duration >= Duration::from_millis(250), "{exchange:?}");
    assert!(exchange.duration < DEADLINE / 2, "{exchange:?}");
    assert_eq!(receiver.connections(), 1);
}

#[tokio::test]
async fn failure_names_every_address_that_was_tried() {
    let dns = DnsServer::start(|_, _| Reply::addresses(&["127.0.0.2", "127.0.0.1"])).await;
    let failure = failure(&asking(&[dns.address()]), "http://two.test:9/").await;
    assert_eq!((failure.class, failure.fault), (ErrorClass::Connect, Fault::Receiver));
    for address in ["127.0.0.1:9", "127.0.0.2:9"] {
        assert!(failure.message.contains(address), "{}", failure.message);
    }
}

#[tokio::test]
async fn dns_failure_counts_against_the_receiver_only_with_an_answer() {
    let dns = DnsServer::start(|name, _| match name {
        "failed.test" => Reply::Code(ResponseCode::ServFail),
        "refused.test" => Reply::Code(ResponseCode::Refused),
        "none.test" => Reply::addresses(&[]),
        "silent.test" => Reply::Silence,
        "half.test" => Reply::SilenceOnV6(Vec::new()),
        _ => Reply::Code(ResponseCode::NXDomain),
    })
    .await;
    // Nothing listens on the discard port.
    let nobody: SocketAddr = ([127, 0, 0, 1], 9).into();
    let (client, dead) = (asking(&[dns.address()]), asking(&[nobody]));
    for (client, host, fault, words) in [
        (&client, "missing.test", Fault::Receiver, "no such host name"),
        (&client, "none.test", Fault::Receiver, "has no address"),
        (&client, "failed.test", Fault::Service, "name servers"),
        (&client, "refused.test", Fault::Service, "name servers"),
        (&client, "silent.test", Fault::Service, "no name server answered"),
        (&client, "half.test", Fault::Service, "no name server answered"),
        (&dead, "good.test", Fault::Service, "name server"),
    ] {
        let failure = failure(client, &format!("http://{host}/")).await;
        assert_eq!((failure.class, failure.fault), (ErrorClass::Dns, fault), "{failure:?}");
        assert!(failure.message.contains(words), "{}", failure.message);
        assert!(failure.message.contains(host), "{}", failure.message);
    }
}

#[tokio::test]
async fn name_server_that_drops_questions_for_ipv6_delays_nothing() {
    let receiver = Receiver::always(200).await;
    let dns = DnsServer::start(|_, _| Reply::SilenceOnV6(vec![[127, 0, 0, 1].into()])).await;
    let client = asking(&[dns.address()]);
    // Each name is new, so that no answer comes from the cache.
    for n in 0..3 {
        let url = format!("http://{n}.test:{}/", receiver.port());
        let exchange = sent(&client, &url, DEADLINE).await;
        assert_eq!(exchange.outcome, Outcome::Delivered);
        assert!(exchange.duration < SOON, "{exchange:?}");
    }
}

#[tokio::test]
async fn host_name_with_an_underscore_is_called() {
    let receiver = Receiver::always(200).await;
    let dns = DnsServer::start(|name, _| match name {
        "my_service" | "_a_.b_c.test" => Reply::addresses(&["127.0.0.1"]),
        _ => Reply::Code(ResponseCode::NXDomain),
    })
    .await;
    let client = asking(&[dns.address()]);
    for host in ["my_service", "_a_.b_c.test"] {
        let url = format!("http://{host}:{}/", receiver.port());
        let exchange = sent(&client, &url, DEADLINE).await;
        assert_eq!(exchange.outcome, Outcome::Delivered, "{host}");
        let received = receiver.received();
        let authority = format!("{host}:{}", receiver.port());
        assert_eq!(received.last().unwrap().headers["host"], authority.as_str());
    }
}

/// The files of a system, in a folder of their own that is removed in the end.
struct System(PathBuf);

impl System {
    fn new() -> Self {
        let name = format!("system-{:x}", rand::random::<u64>());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    fn resolver(&self, port: u16) -> Arc<Resolver> {
        let (resolv_conf, hosts) = (self.0.join("resolv.conf"), self.0.join("hosts"));
        Resolver::with_files(&[], SystemFiles { resolv_conf, hosts, port })
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.join(name), text).unwrap();
    }

    /// Puts another file in the place of one, as programs do that write safely.
    fn replace(&self, name: &str, text: &str) {
        self.write("new", text);
        fs::rename(self.0.join("new"), self.0.join(name)).unwrap();
    }
}

impl Drop for System {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn changed_name_servers_are_asked_without_a_restart() {
    let receiver = Receiver::always(200).await;
    let dns = DnsServer::start(|name, _| match name {
        "good.test" | "short.corp.test" => Reply::addresses(&["127.0.0.1"]),
        _ => Reply::Code(ResponseCode::NXDomain),
    })
    .await;
    let system = System::new();
    system.write("resolv.conf", "nameserver 127.0.0.9\n");
    let client = client_with(&["127.0.0.0/8"], false, &system.resolver(dns.address().port()));
    let url = |host: &str| format!("http://{host}:{}/", receiver.port());
    let delivers = async |host: &str| {
        let exchange = sent(&client, &url(host), DEADLINE).await;
        (exchange.outcome == Outcome::Delivered).then_some(())
    };
    assert_eq!(failure(&client, &url("good.test")).await.fault, Fault::Service);
    // Half a file, as a reader may see it, changes nothing.
    system.write("resolv.conf", "# nameserver");
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(failure(&client, &url("good.test")).await.class, ErrorClass::Dns);
    system.write("resolv.conf", "nameserver 127.0.0.1\n");
    eventually("the new name server", async || delivers("good.test").await).await;
    assert_eq!(failure(&client, &url("short")).await.fault, Fault::Receiver);
    system.replace("resolv.conf", "search corp.test\nnameserver 127.0.0.1\n");
    eventually("the new search domain", async || delivers("short").await).await;
}

#[tokio::test]
async fn changed_hosts_file_is_read_without_a_restart_and_wins_over_name_servers() {
    let receiver = Receiver::always(200).await;
    // It never answers, so a question to it would show.
    let dns = DnsServer::start(|_, _| Reply::Silence).await;
    let system = System::new();
    system.write("resolv.conf", "nameserver 127.0.0.1\n");
    system.write("hosts", "127.0.0.1 first_host\n");
    let client = client_with(&["127.0.0.0/8"], false, &system.resolver(dns.address().port()));
    let delivered = async |host: &str| {
        let url = format!("http://{host}:{}/", receiver.port());
        let deadline = Duration::from_secs(1);
        sent(&client, &url, deadline).await.outcome == Outcome::Delivered
    };
    assert!(delivered("first_host").await);
    assert!(!delivered("second.test").await);
    system.replace("hosts", "127.0.0.1 first_host\n127.0.0.1 second.test third.test\n");
    eventually("the new host", async || delivered("second.test").await.then_some(())).await;
    assert_eq!(dns.asked("first_host"), 0);
}
