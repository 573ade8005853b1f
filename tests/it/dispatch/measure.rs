//! Not a test: how long the whole answer of a dispatch takes. `docs/benchmarks.md` has the command.

use std::time::{Duration, Instant};

use serde_json::json;

use super::to;
use crate::support::Receiver;

const PER_SECOND: u32 = 100;
const WARM_UP: u32 = 500;
const MEASURED: u32 = 3_000;

/// Dispatches to one healthy target at a steady rate, each counted from when it was due, through the
/// service at the address that `DISPATCH_AT` says.
#[tokio::test]
#[ignore = "a measurement of a service that runs"]
#[expect(clippy::print_stdout, reason = "its result")]
async fn the_whole_answer_at_a_steady_rate() {
    let address = std::env::vars().find(|(name, _)| name == "DISPATCH_AT");
    let (_, address) = address.expect("DISPATCH_AT says where the service is");
    let receiver = Receiver::always(200).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let (url, body) = (format!("{address}/dispatch"), to(&json!([receiver.url("/")])).to_string());
    let mut answers = tokio::task::JoinSet::new();
    let start = Instant::now() + Duration::from_millis(100);
    for n in 0..WARM_UP + MEASURED {
        let due = start + Duration::from_secs(1) * n / PER_SECOND;
        tokio::time::sleep_until(due.into()).await;
        let request = client.post(&url).header("content-type", "application/json");
        let sending = request.body(body.clone()).send();
        answers.spawn(async move {
            let answer = sending.await.unwrap();
            let status = answer.status();
            answer.bytes().await.unwrap();
            assert_eq!(status, 200);
            (n, due.elapsed())
        });
    }
    let all = answers.join_all().await;
    let measured = all.into_iter().filter(|(n, _)| *n >= WARM_UP);
    let mut measured: Vec<Duration> = measured.map(|(_, took)| took).collect();
    measured.sort_unstable();
    let at = |percent: usize| measured[(measured.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    println!(
        "{MEASURED} dispatches at {PER_SECOND}/s: p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms",
        at(50),
        at(99),
        at(100)
    );
}
