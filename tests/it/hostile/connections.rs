//! Connections that are kept: what a receiver says beside its answer is nobody's answer.

use std::sync::Arc;

use tokio::{io::AsyncWriteExt, net::TcpStream, sync::Notify};
use webhook_dispatcher::domain::{ErrorClass, Outcome};

use crate::{
    delivery::{DEADLINE, class, local, sent},
    support::{
        Receiver, TestApp, TestDatabase,
        process::{Process, free_port, on},
        raw::{RawReceiver, read_head},
    },
};

const FIRST: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfirst";
const SECOND: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison";

/// Reads requests and answers each, `after` what comes behind the first answer.
async fn answer(stream: &mut TcpStream, behind: &[u8]) -> std::io::Result<()> {
    if read_head(stream).await? {
        stream.write_all(&[FIRST, behind].concat()).await?;
    }
    Ok(())
}

async fn body(client: &webhook_dispatcher::delivery::Client, url: &str) -> String {
    let exchange = sent(client, url, DEADLINE).await;
    assert_eq!(exchange.outcome, Outcome::Delivered, "{exchange:?}");
    String::from_utf8(exchange.response.unwrap().body.to_vec()).unwrap()
}

/// Catches: a second answer that waits on the connection for the next request.
#[tokio::test]
async fn a_second_answer_is_nobodys() {
    for behind in [SECOND, b"\r\n\r\n", b"x", b"HTTP/1.1 100 Continue\r\n\r\n"] {
        let receiver = RawReceiver::with(move |mut stream, _| async move {
            answer(&mut stream, behind).await?;
            // It goes on as if nothing were wrong.
            while read_head(&mut stream).await? {
                stream.write_all(SECOND).await?;
            }
            Ok(())
        })
        .await;
        let client = local();
        for _ in 0..3 {
            assert_eq!(body(&client, &receiver.url()).await, "first");
        }
        assert_eq!(receiver.connections(), 3, "{behind:?}");
    }
}

/// The same, once the connection is at rest: an answer, a reset, an end.
#[tokio::test]
async fn what_comes_to_a_connection_at_rest_ends_it() {
    for kind in ["answer", "timeout", "reset", "close", "half-close"] {
        let (rests, done) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let notes = (rests.clone(), done.clone());
        let receiver = RawReceiver::with(move |mut stream, before| {
            let (rests, done) = notes.clone();
            async move {
                answer(&mut stream, b"").await?;
                if before > 0 {
                    return std::future::pending().await;
                }
                rests.notified().await;
                match kind {
                    "answer" => stream.write_all(SECOND).await?,
                    "timeout" => {
                        stream.write_all(b"HTTP/1.1 408 Late\r\nconnection: close\r\n\r\n").await?;
                    }
                    "reset" => {
                        stream.set_zero_linger()?;
                        drop(stream);
                        done.notify_one();
                        return Ok(());
                    }
                    "close" => {
                        drop(stream);
                        done.notify_one();
                        return Ok(());
                    }
                    _ => stream.shutdown().await?,
                }
                done.notify_one();
                std::future::pending().await
            }
        })
        .await;
        let client = local();
        assert_eq!(body(&client, &receiver.url()).await, "first");
        rests.notify_one();
        done.notified().await;
        assert_eq!(body(&client, &receiver.url()).await, "first", "{kind}");
        assert_eq!(receiver.connections(), 2, "{kind}");
    }
}

/// Catches: a failed attempt at a receiver that closes a connection while a request is on its way; a
/// request that is sent again though an answer had begun, or again and again.
#[tokio::test]
async fn a_request_is_sent_again_if_its_connection_at_rest_ends_without_an_answer() {
    // The second request of a connection has these answers, and then its end, or a reset.
    for is_reset in [false, true] {
        for (begun, class, connections) in [("", None, 2), ("HTTP/1.1 2", Some("protocol"), 1)] {
            let receiver = RawReceiver::with(move |mut stream, _| async move {
                answer(&mut stream, b"").await?;
                read_head(&mut stream).await?;
                stream.write_all(begun.as_bytes()).await?;
                if is_reset { stream.set_zero_linger() } else { Ok(()) }
            })
            .await;
            let client = local();
            assert_eq!(body(&client, &receiver.url()).await, "first");
            let exchange = sent(&client, &receiver.url(), DEADLINE).await;
            let failure = exchange.outcome.failure().map(|failure| failure.class.as_str());
            // A reset may overtake what was sent before it.
            if !(is_reset && failure.is_none()) {
                assert_eq!(failure, class, "{begun:?}: {exchange:?}");
                assert_eq!(receiver.connections(), connections, "{begun:?}");
            }
        }
    }
    // The first connection answers once. All others end at once.
    let receiver = RawReceiver::with(|mut stream, before| async move {
        if before == 0 {
            answer(&mut stream, b"").await?;
        }
        read_head(&mut stream).await.map(|_| ())
    })
    .await;
    let client = local();
    assert_eq!(body(&client, &receiver.url()).await, "first");
    let exchange = sent(&client, &receiver.url(), DEADLINE).await;
    assert_eq!(class(&exchange), ErrorClass::Protocol, "{exchange:?}");
    assert_eq!(receiver.connections(), 2, "it is sent again once");
}

/// Catches: a request that is sent twice although it was not the connection that was stale.
#[tokio::test]
async fn a_new_connection_that_ends_without_an_answer_is_a_failure() {
    let receiver =
        RawReceiver::with(|mut stream, _| async move { read_head(&mut stream).await.map(|_| ()) })
            .await;
    let client = local();
    let exchange = sent(&client, &receiver.url(), DEADLINE).await;
    assert_eq!(class(&exchange), ErrorClass::Protocol, "{exchange:?}");
    assert_eq!(receiver.connections(), 1);
}

/// Catches: `connection: close` that is not believed, and a body that was not read, on one that is kept.
#[tokio::test]
async fn what_is_not_to_be_kept_is_not() {
    for head in [
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nfirst",
        "HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nfirst",
        "HTTP/1.1 101 Go\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
    ] {
        let receiver = RawReceiver::with(move |mut stream, _| async move {
            while read_head(&mut stream).await? {
                stream.write_all(head.as_bytes()).await?;
            }
            Ok(())
        })
        .await;
        let client = local();
        for _ in 0..2 {
            sent(&client, &receiver.url(), DEADLINE).await;
        }
        assert_eq!(receiver.connections(), 2, "{head}");
    }
}

/// Catches: a request that fails for want of a descriptor, while connections at rest hold some.
#[tokio::test]
async fn connections_at_rest_give_way_where_descriptors_are_short() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let database = TestDatabase::new().await;
    let url = database.url();
    let app = TestApp::on(database.clone(), &["--role=api"]).await;
    let own = [("ALLOWED_TARGET_CIDRS", "127.0.0.0/8")];
    let sending = Process::start(free_port().await, &[&on(&url)[..], &own].concat()).await;
    let mut receivers = Vec::new();
    for _ in 0..20 {
        let receiver = Receiver::always(200).await;
        let event = app.accept(&receiver.url("/")).await;
        app.wait_for(&event, "delivered").await;
        receivers.push(receiver);
    }
    let open = std::fs::read_dir(format!("/proc/{}/fd", sending.id())).unwrap();
    let open: Vec<u64> =
        open.map(|one| one.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
    // The next one would be this, and all below are taken.
    let next = (0..=open.len() as u64).find(|number| !open.contains(number));
    let no_more = Rlimit { current: next, maximum: next };
    prlimit(Pid::from_raw(sending.id().cast_signed()), Resource::Nofile, no_more).unwrap();
    let another = Receiver::always(200).await;
    let event = app.accept(&another.url("/")).await;
    let shown = app.wait_for(&event, "delivered").await;
    assert_eq!(shown["attempt_count"], 1, "{shown}");
}
