//! The code of the guide for publishers, as it stands there.

use std::process::{Command, Stdio};

use super::{code, guide};
use crate::support::{
    Answer, Receiver, TestApp, eventually,
    raw::{Misdeed, RawReceiver},
    tools::is_here,
};

/// An answer that ends before it is whole.
const CUT_OFF: &[u8] = b"HTTP/1.1 202 Accepted\r\ncontent-length: 50\r\n\r\n{\"id\":";

/// What the examples do, with the answers of a service.
struct Told {
    succeeded: bool,
    output: String,
    errors: String,
}

/// A command that runs the example of a language; nothing where the language is not here.
fn example(language: &str) -> Option<Command> {
    let code = code(&guide("publishers.md"), "### What to do with each answer", language);
    let (name, arguments): (_, &[&str]) = match language {
        "python" => ("python3", &["-c"]),
        _ => ("node", &["--input-type=module", "--eval"]),
    };
    if !is_here(name, "--version") {
        return None;
    }
    let mut command = Command::new(name);
    command.args(arguments).arg(&code[0]);
    Some(command)
}

/// Runs an example against a service, or against what answers in its place.
async fn run(mut command: Command, base: &str) -> Told {
    command.env("WEBHOOKS", base).env("NO_PROXY", "*");
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Told {
        succeeded: output.status.success(),
        output: text(output.stdout).trim().to_owned(),
        errors: text(output.stderr),
    }
}

/// Catches: an example that does not work as it stands, that makes two events of one, that gives up
/// where it should not, and that does not where it should.
async fn publishes_once(language: &str) {
    let Some(command) = example(language) else { return };
    let app = TestApp::start().await;
    let told = run(command, &app.base).await;
    assert!(told.succeeded, "{}", told.errors);
    let again = run(example(language).unwrap(), &app.base).await;
    assert_eq!(again.output, told.output);
    assert_eq!(app.event(&told.output).await["type"], "invoice.paid");
    app.stop().await;

    let flaky = Receiver::start(|before, _| match before {
        0 => Answer::status(503).header("retry-after", "0"),
        1 => Answer::status(429).header("retry-after", "0"),
        _ => Answer::status(202).body(r#"{"id":"evt_1","status":"accepted"}"#),
    })
    .await;
    let told = run(example(language).unwrap(), &flaky.url("")).await;
    let requests = flaky.received();
    assert!(told.succeeded, "{}", told.errors);
    assert_eq!(told.output, "evt_1");
    assert_eq!(requests.len(), 3);
    for request in &requests {
        assert_eq!(request.path, "/events");
        assert_eq!(request.body, requests[0].body);
        assert_eq!(request.header("idempotency-key"), "invoice 8 paid");
    }

    // An answer that breaks off is none.
    for misdeed in [Misdeed::Reset, Misdeed::Write(CUT_OFF.to_vec())] {
        let broken = RawReceiver::start(misdeed).await;
        let mut command = example(language).unwrap();
        command.env("WEBHOOKS", broken.url()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = command.spawn().unwrap();
        eventually("another try", async || (broken.connections() >= 2).then_some(())).await;
        process.kill().unwrap();
        process.wait().unwrap();
    }

    for status in [400, 401, 409, 413, 422] {
        let refusing = Receiver::always(status).await;
        let told = run(example(language).unwrap(), &refusing.url("")).await;
        assert!(!told.succeeded, "{status}");
        assert_eq!(refusing.count(), 1, "{status}");
    }
}

#[tokio::test]
async fn the_example_in_python_publishes_once() {
    publishes_once("python").await;
}

#[tokio::test]
async fn the_example_in_javascript_publishes_once() {
    publishes_once("js").await;
}
