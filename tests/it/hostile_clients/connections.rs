//! Many connections, and clients that do not read, or go away.

use std::{net::SocketAddr, time::Duration};

use tokio::{io::AsyncWriteExt, net::TcpSocket};

use super::{Client, PATIENCE, event, events, get, is_well, post, refusals};
use crate::support::{
    TestApp, TestDatabase, eventually,
    process::{Process, free_port, on},
};

/// So many connections that idle, each of which has been served.
async fn idle(app: &TestApp, count: usize) -> Vec<Client> {
    let mut idle = Vec::new();
    for n in 0..count {
        let mut client = Client::sending(app, get("/livez")).await;
        assert_eq!(client.answer().await.expect("an answer").status, 200, "{n}");
        idle.push(client);
    }
    idle
}

/// From another address of this machine.
async fn from_elsewhere(app: &TestApp) -> Client {
    let to: SocketAddr = app.base.strip_prefix("http://").unwrap().parse().unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    Client::over(socket.connect(to).await.unwrap())
}

/// Catches: connections without a bound; some beyond it that wait in silence; a process that cannot be
/// looked at while it is full; places that are not given back.
#[tokio::test]
async fn beyond_the_bound_connections_are_told_and_probes_are_answered() {
    let flags = ["--connections-max=16", "--client-connections-max=16"];
    let app = TestApp::with(&flags).await;
    let mut inside = idle(&app, 16).await;
    let before = refusals(&app, "connections").await;
    for request in [get("/events"), event("1"), post("/events", "content-length: 1000000")] {
        let mut client = Client::sending(&app, &request).await;
        let answer = client.answer().await.expect("an answer");
        answer.check(503, "busy");
        assert!(answer.head.contains("connection: close"), "{answer:?}");
        assert!(answer.body["detail"].as_str().unwrap().contains("(CONNECTIONS_MAX)"));
    }
    assert!(refusals(&app, "connections").await >= before + 3);
    for path in ["/livez", "/health", "/readyz", "/metrics"] {
        let mut client = Client::sending(&app, get(path)).await;
        assert_eq!(client.answer().await.expect("an answer").status, 200, "{path}");
        assert_eq!(client.ended().await, "", "one request each");
    }
    // Those who were there first are served as ever.
    for client in &mut inside {
        client.send(event("1")).await;
        assert_eq!(client.answer().await.expect("an answer").status, 202);
    }
    inside.pop();
    eventually("a place", async || {
        let mut client = Client::sending(&app, event("1")).await;
        (client.answer().await.expect("an answer").status == 202).then_some(())
    })
    .await;
    app.stop().await;
}

/// Catches: one client that takes the places of all.
#[tokio::test]
async fn one_client_leaves_places_for_others() {
    let app = TestApp::with(&["--connections-max=16", "--client-connections-max=4"]).await;
    let _inside = idle(&app, 4).await;
    let mut client = Client::sending(&app, event("1")).await;
    let answer = client.answer().await.expect("an answer");
    answer.check(503, "busy");
    assert!(answer.body["detail"].as_str().unwrap().contains("CLIENT_CONNECTIONS_MAX"));
    let mut other = from_elsewhere(&app).await;
    other.send(event("1")).await;
    assert_eq!(other.answer().await.expect("an answer").status, 202);
    app.stop().await;
}

/// Catches: a flood beyond the bound that keeps everybody out: the newest is let in.
#[tokio::test]
async fn a_flood_beyond_the_bound_keeps_nobody_out() {
    let flags = ["--connections-max=16", "--client-connections-max=16"];
    let app = TestApp::with(&flags).await;
    let _inside = idle(&app, 16).await;
    let before = refusals(&app, "displaced").await;
    let mut flood = Vec::new();
    for _ in 0..300 {
        // Not a whole request, so none is answered.
        flood.push(Client::sending(&app, "GET / HTTP/1.1\r\n").await);
    }
    let mut client = Client::sending(&app, get("/livez")).await;
    assert_eq!(client.answer().await.expect("an answer").status, 200);
    assert!(refusals(&app, "displaced").await > before);
    let first = flood.remove(0);
    assert_eq!(first.ended().await, "");
    app.stop().await;
}

/// Catches: answers that pile up for a client that does not read them, and requests that hold what they
/// have for as long as that.
#[tokio::test]
async fn a_client_that_never_reads_is_cut_off() {
    let app = TestApp::with(&["--answer-timeout=0.5"]).await;
    let before = refusals(&app, "answer_not_taken").await;
    let many = get("/openapi.json").repeat(400);
    let mut client = Client::of(&app).await;
    // The connection ends for want of a reader: a reset, so what it has sent is not all taken, or the
    // end of it never answered.
    let _ = tokio::time::timeout(PATIENCE, client.stream.write_all(many.as_bytes())).await;
    eventually("it is cut off", async || {
        (refusals(&app, "answer_not_taken").await > before).then_some(())
    })
    .await;
    let said = client.ended().await;
    assert!(said.matches("HTTP/1.1 200 OK").count() < 400, "the buffers of two sockets held all");
    is_well(&app).await;
    app.stop().await;
}

/// Catches: a client that goes away in the middle, in whatever manner, and leaves something behind.
#[tokio::test]
async fn clients_that_go_away_leave_nothing() {
    let app = TestApp::with(&["--requests-max=16"]).await;
    let whole = event("1");
    for length in [1, 20, whole.len() / 2, whole.len() - 1] {
        for _ in 0..8 {
            // Closed, reset, and half closed.
            drop(Client::sending(&app, &whole[..length]).await);
            let reset = Client::sending(&app, &whole[..length]).await;
            reset.stream.set_zero_linger().unwrap();
            drop(reset);
            let mut half = Client::sending(&app, &whole[..length]).await;
            half.stream.shutdown().await.unwrap();
            let said = half.ended().await;
            assert!(said.is_empty() || said.starts_with("HTTP/1.1 400 "), "{length}: {said}");
        }
    }
    assert_eq!(events(&app).await, 0);
    // A whole request, and no more: whoever ends his half has gone, or waits for the answer. Both end.
    let mut half = Client::sending(&app, &whole).await;
    half.stream.shutdown().await.unwrap();
    half.ended().await;
    eventually("all places are free", async || {
        let mut held = Vec::new();
        for _ in 0..16 {
            let head = post("/events", "content-length: 1000\r\nexpect: 100-continue");
            let mut client = Client::sending(&app, head).await;
            if client.answer().await.expect("an answer").status != 100 {
                return None;
            }
            held.push(client);
        }
        Some(())
    })
    .await;
    app.stop().await;
}

/// Catches: an accept loop that ends, or spins, where there are no descriptors left.
#[tokio::test]
async fn without_descriptors_it_goes_on_later() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let database = TestDatabase::new().await;
    let url = database.url();
    let settings = [on(&url).as_slice(), &[("ALLOW_UNAUTHENTICATED", "true")]].concat();
    let service = Process::start(free_port().await, &settings).await;
    let pid = Pid::from_raw(service.id().cast_signed());
    let open = std::fs::read_dir(format!("/proc/{}/fd", service.id())).unwrap().count() as u64;
    let few = Rlimit { current: Some(open + 8), maximum: Some(open + 8) };
    prlimit(pid, Resource::Nofile, few).unwrap();
    let address = service.base.strip_prefix("http://").unwrap();
    let mut clients = Vec::new();
    for _ in 0..40 {
        clients.push(Client::over(tokio::net::TcpStream::connect(address).await.unwrap()));
    }
    eventually("it says so", async || {
        service.output().contains("connections cannot be accepted").then_some(())
    })
    .await;
    // Some more turns of the loop: it is to say so once.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(service.output().matches("connections cannot be accepted").count(), 1);
    drop(clients);
    eventually("it answers", async || {
        let mut client = Client::over(tokio::net::TcpStream::connect(address).await.ok()?);
        client.send(get("/livez")).await;
        (client.answer().await?.status == 200).then_some(())
    })
    .await;
}
