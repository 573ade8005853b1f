//! Each receiver on request, as a client with a bare socket sees it.

use std::io::{ErrorKind, Read as _};
use std::time::{Duration, Instant};

use flate2::read::GzDecoder;
use mock_receiver::{Answer, MockReceiver, Settings, Stats, Verdict};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

async fn receiver() -> MockReceiver {
    MockReceiver::bind(Settings::calm()).await.unwrap()
}

/// Waits, but not for ever: a broken receiver fails the test instead of stopping it.
async fn patiently<T>(awaited: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), awaited).await.expect("it must happen")
}

/// A connection on which a request was sent. It asks for no further one, so that an answer of HTTP
/// ends with it.
struct Call(TcpStream);

impl Call {
    async fn new(receiver: &MockReceiver, method: &str, path: &str, headers: &str) -> Self {
        let mut stream = TcpStream::connect(receiver.local_addr()).await.unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: example.com:81\r\nconnection: close\r\n\
             content-length: 2\r\n{headers}\r\n{{}}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        Self(stream)
    }

    async fn post(receiver: &MockReceiver, path: &str) -> Self {
        Self::new(receiver, "POST", path, "").await
    }

    /// What comes next, at least one byte unless the connection has ended.
    async fn some(&mut self) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; 64 * 1024];
        let length = patiently(self.0.read(&mut bytes)).await?;
        bytes.truncate(length);
        Ok(bytes)
    }

    /// All that comes until this is there.
    async fn until(&mut self, end: &str) -> String {
        let mut text = String::new();
        while !text.contains(end) {
            let some = self.some().await.unwrap();
            assert!(!some.is_empty(), "{text:?} ended before {end:?}");
            text.push_str(str::from_utf8(&some).unwrap());
        }
        text
    }

    /// All that comes, and how the connection ends: closed, or with an error.
    async fn all(mut self) -> (Vec<u8>, Option<ErrorKind>) {
        let mut bytes = Vec::new();
        loop {
            match self.some().await {
                Ok(some) if some.is_empty() => return (bytes, None),
                Ok(some) => bytes.extend_from_slice(&some),
                Err(error) => return (bytes, Some(error.kind())),
            }
        }
    }

    /// The text of all that comes; the connection must be closed after it.
    async fn text(self) -> String {
        let (bytes, error) = self.all().await;
        assert_eq!(error, None, "closed, not reset");
        String::from_utf8(bytes).unwrap()
    }
}

#[track_caller]
fn check_status(answer: &str, expected: u16) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "not {expected}: {answer}");
}

async fn check_answer(method: &str, path: &str, status: u16, header: &str) {
    let receiver = receiver().await;
    let answer = Call::new(&receiver, method, path, "").await.text().await;
    check_status(&answer, status);
    assert!(answer.contains(header), "{path}: no {header} in {answer}");
    assert_eq!(
        receiver.stats(),
        Stats { requests: 1, on_request: 1, ..Stats::default() },
        "{path}"
    );
    let [entry] = &receiver.record()[..] else { panic!("there must be one entry") };
    assert_eq!((entry.method.as_str(), &*entry.path), (method, path));
    assert_eq!(entry.answer.to_string(), status.to_string());
}

#[tokio::test]
async fn a_status_on_request() {
    for status in [200, 204, 304, 400, 404, 500, 599, 600, 999] {
        check_answer("POST", &format!("/status/{status}"), status, "").await;
    }
    for method in ["GET", "PUT", "PATCH", "DELETE"] {
        check_answer(method, "/status/418", 418, "as requested").await;
    }
}

#[tokio::test]
async fn gone_and_elsewhere() {
    check_answer("POST", "/gone", 410, "").await;
    check_answer("POST", "/redirect", 307, "\r\nlocation: /webhook\r\n").await;
    check_answer("POST", "/redirect?status=301", 301, "\r\nlocation: /webhook\r\n").await;
}

#[tokio::test]
async fn retry_after_says_when_to_come_back() {
    check_answer("POST", "/retry-after/30", 429, "\r\nretry-after: 30\r\n").await;
    check_answer("POST", "/retry-after/0?status=503", 503, "\r\nretry-after: 0\r\n").await;
    check_answer("POST", "/retry-after/86400", 429, "\r\nretry-after: 86400\r\n").await;
}

#[tokio::test]
async fn slow_answers_after_a_while() {
    let began = Instant::now();
    check_answer("POST", "/slow/0.3", 200, "at last").await;
    // Not a measurement: what was asked for is the least.
    assert!(Duration::from_millis(300) <= began.elapsed());
    check_answer("POST", "/slow/0?status=500", 500, "at last").await;
}

#[tokio::test]
async fn who_hangs_up_on_a_slow_answer_has_abandoned_it() {
    let receiver = receiver().await;
    let call = Call::post(&receiver, "/slow/3600").await;
    patiently(receiver.wait_until(|stats| stats.in_progress == 1)).await;
    drop(call);
    let stats = patiently(receiver.wait_until(|stats| stats.in_progress == 0)).await;
    assert_eq!((stats.abandoned, stats.on_request), (1, 0));
}

#[tokio::test]
async fn the_first_attempts_of_each_event_fail() {
    let receiver = receiver().await;
    let attempt = async |path: &str, webhook_id: &str| {
        let header = format!("webhook-id: {webhook_id}\r\n");
        let answer = Call::new(&receiver, "POST", path, &header).await.text().await;
        answer["HTTP/1.1 ".len()..][..3].to_owned()
    };
    assert_eq!(attempt("/fail-first/2", "evt_a").await, "500");
    assert_eq!(attempt("/fail-first/2", "evt_b").await, "500");
    assert_eq!(attempt("/fail-first/2", "evt_a").await, "500");
    assert_eq!(attempt("/fail-first/2", "evt_a").await, "200");
    assert_eq!(attempt("/fail-first/2", "evt_a").await, "200");
    assert_eq!(attempt("/fail-first/2", "evt_b").await, "500");
    assert_eq!(attempt("/fail-first/1?status=429", "evt_a").await, "429", "another path");
    assert_eq!(attempt("/fail-first/1?status=429", "evt_a").await, "200");
    assert_eq!(attempt("/fail-first/0", "evt_a").await, "200");
    assert_eq!(receiver.stats().on_request, 9);
    assert_eq!(receiver.stats().unique, 0, "not for trying things");
}

#[tokio::test]
async fn hang_never_answers() {
    let receiver = receiver().await;
    let mut call = Call::post(&receiver, "/hang").await;
    let hangs = |_: &Stats| receiver.record().iter().any(|entry| entry.answer == Answer::Hang);
    patiently(receiver.wait_until(hangs)).await;
    // Whatever would come would come by now; a time is all that tells "never" from "not yet".
    let answer = tokio::time::timeout(Duration::from_millis(200), call.some()).await;
    assert!(answer.is_err(), "{answer:?}");
    assert_eq!(receiver.stats(), Stats { requests: 1, in_progress: 1, ..Stats::default() });
    drop(call);
    let stats = patiently(receiver.wait_until(|stats| stats.in_progress == 0)).await;
    assert_eq!((stats.on_request, stats.hung_on_purpose, stats.abandoned), (1, 0, 0));
}

#[tokio::test]
async fn drip_sends_a_byte_a_second() {
    let receiver = receiver().await;
    let mut call = Call::post(&receiver, "/drip?status=202").await;
    let head = call.until("\r\n\r\n").await;
    check_status(&head, 202);
    assert!(head.contains("transfer-encoding: chunked"), "{head}");
    assert!(head.ends_with("\r\n\r\n"), "nothing comes at once: {head}");
    let began = Instant::now();
    for _ in 0..2 {
        assert_eq!(call.until("\r\n.\r\n").await, "1\r\n.\r\n");
    }
    // Not a measurement: two bytes are two seconds apart from the head, but for slow reading.
    assert!(Duration::from_millis(1_500) <= began.elapsed());
    assert_eq!(receiver.record()[0].answer.to_string(), "202");
    drop(call);
    let stats = patiently(receiver.wait_until(|stats| stats.in_progress == 0)).await;
    assert_eq!(stats.on_request, 1);
}

#[tokio::test]
async fn endless_has_no_end() {
    let receiver = receiver().await;
    let mut call = Call::post(&receiver, "/endless").await;
    check_status(&call.until("\r\n\r\n").await, 200);
    let mut length = 0;
    // Far more than the kernel buffers.
    while length < 64 * 1024 * 1024 {
        let some = call.some().await.unwrap();
        assert!(!some.is_empty(), "ended after {length} bytes");
        length += some.len();
    }
    drop(call);
    let stats = patiently(receiver.wait_until(|stats| stats.in_progress == 0)).await;
    assert_eq!(stats.on_request, 1);
}

#[tokio::test]
async fn gzip_bomb_is_small_until_it_is_unpacked() {
    let receiver = receiver().await;
    let (answer, error) = Call::post(&receiver, "/gzip-bomb").await.all().await;
    assert_eq!(error, None);
    let at = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let head = str::from_utf8(&answer[..at]).unwrap();
    check_status(head, 200);
    assert!(head.contains("content-encoding: gzip"), "{head}");
    let body = &answer[at + 4..];
    assert!(body.len() < 2_000_000, "{}", body.len());
    // A part of it is enough to see that it is a bomb.
    let mut unpacked = Vec::new();
    GzDecoder::new(body).take(32 * 1024 * 1024).read_to_end(&mut unpacked).unwrap();
    assert_eq!(unpacked.len(), 32 * 1024 * 1024);
}

#[tokio::test]
async fn wrong_length_closes_too_early() {
    let receiver = receiver().await;
    let answer = Call::post(&receiver, "/wrong-length?status=500").await.text().await;
    check_status(&answer, 500);
    assert!(answer.contains("content-length: 1000\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nthe rest never comes\n"), "{answer}");
}

#[tokio::test]
async fn wrong_length_excess_is_an_answer_to_nothing() {
    let receiver = receiver().await;
    let mut call = Call::post(&receiver, "/wrong-length/excess").await;
    let answer = call.until("500 Internal Server Error\r\ncontent-length: 0\r\n\r\n").await;
    check_status(&answer, 200);
    assert!(answer.contains("content-length: 3\r\n\r\nok\nHTTP/1.1 500 "), "{answer}");
    let stats = receiver.stats();
    assert_eq!((stats.in_progress, stats.on_request), (1, 0), "and stays open");
    drop(call);
    patiently(receiver.wait_until(|stats| stats.on_request == 1)).await;
}

/// A close would end with no error.
#[tokio::test]
async fn resets_are_resets() {
    let receiver = receiver().await;
    let reset = async |path: &str| {
        let (bytes, error) = Call::post(&receiver, path).await.all().await;
        assert_eq!(error, Some(ErrorKind::ConnectionReset), "{path}");
        String::from_utf8(bytes).unwrap()
    };
    assert_eq!(reset("/reset").await, "");
    assert_eq!(reset("/reset/head").await, "HTTP/1.1 200 OK\r\ncontent-ty");
    let half = reset("/reset/body").await;
    check_status(&half, 200);
    assert!(half.ends_with("content-length: 14\r\n\r\nhalf of"), "{half}");
    patiently(receiver.wait_until(|stats| stats.on_request == 3)).await;
    assert!(receiver.record().iter().all(|entry| entry.answer == Answer::Reset));
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_with_its_reason() {
    let receiver = receiver().await;
    let cases = [
        ("/status/199", "a status is 200 to 999"),
        ("/status/1000", "a status is 200 to 999"),
        ("/status/ok", "u16"),
        ("/slow/3600.5", "seconds are 0 to 3600"),
        ("/slow/-1", "seconds are 0 to 3600"),
        ("/slow/NaN", "seconds are 0 to 3600"),
        ("/slow/soon", "f64"),
        ("/slow/0?status=100", "a status is 200 to 999"),
        ("/slow/0?staus=500", "unknown field `staus`"),
        ("/gone?status=200", "unknown field `status`"),
        ("/retry-after/86401", "seconds are 0 to 86400"),
        ("/fail-first/some", "u32"),
        ("/fail-first/1", "webhook-id"),
    ];
    for (path, reason) in cases {
        let answer = Call::post(&receiver, path).await.text().await;
        check_status(&answer, 400);
        assert!(answer.contains(reason), "{path}: {answer}");
    }
    let refused = cases.len() as u64;
    assert_eq!(receiver.stats(), Stats { requests: refused, refused, ..Stats::default() });
    assert_eq!(receiver.record()[0].answer.to_string(), "400");
}

/// Whatever does not end by itself ends with the receiver.
#[tokio::test]
async fn shutdown_waits_for_none_of_them() {
    let mut receiver = receiver().await;
    let paths = ["/hang", "/drip", "/endless", "/slow/3600", "/wrong-length/excess"];
    let mut calls = Vec::new();
    for path in paths {
        calls.push(Call::post(&receiver, path).await);
    }
    let all_are_here = |stats: &Stats| stats.in_progress == paths.len() as u64;
    patiently(receiver.wait_until(all_are_here)).await;
    patiently(receiver.shutdown()).await;
    assert_eq!(receiver.stats().in_progress, 0);
    for call in calls {
        call.all().await;
    }
}

/// The paths that the page at `/` lists, each with its command.
fn listed(page: &str) -> Vec<(&str, &str)> {
    let (_, list) = page.split_once("or try it here:\n\n").unwrap();
    let mut lines = list.lines();
    let mut listed = Vec::new();
    while let Some(line) = lines.next() {
        listed.push((line.split_once(' ').unwrap().0, lines.next().unwrap().trim()));
    }
    listed
}

#[tokio::test]
async fn the_page_lists_them_all_with_commands_that_work() {
    let receiver = receiver().await;
    let answer = Call::new(&receiver, "GET", "/", "").await.text().await;
    check_status(&answer, 200);
    assert!(answer.contains("content-type: text/plain"), "{answer}");
    let readme = include_str!("../../README.md");
    let listed = listed(&answer);
    assert_eq!(listed.len(), 15);
    for (path, command) in listed {
        assert!(readme.contains(&format!("| `{path}` |")), "the README lacks {path}");
        assert!(command.starts_with("curl "), "{command}");
        // The name is that by which this receiver was called.
        let (_, url) = command.split_once("http://example.com:81").unwrap();
        let url = url.split([' ', '\'']).next().unwrap();
        let pattern = path.split('{').next().unwrap();
        assert!(url.starts_with(pattern), "{command} tries {path}");
        let call = Call::new(&receiver, "POST", url, "webhook-id: any\r\n").await;
        let is_decided = |_: &Stats| {
            let record = receiver.record();
            let last = record.last().filter(|entry| *entry.path == *url);
            last.is_some_and(|entry| {
                // The slow one is not waited for, only seen to be under way.
                let is_under_way = path.starts_with("/slow") && entry.verdict != Verdict::Unchecked;
                is_under_way || entry.answer != Answer::Pending
            })
        };
        patiently(receiver.wait_until(is_decided)).await;
        drop(call);
    }
    let stats = patiently(receiver.wait_until(|stats| stats.in_progress == 0)).await;
    assert_eq!((stats.on_request, stats.abandoned, stats.refused), (14, 1, 0));
}
