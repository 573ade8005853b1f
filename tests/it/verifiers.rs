//! Verifiers with code of their own, the official libraries of Standard Webhooks, believe what the
//! running service sends, and nothing that was changed on the way.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;

use crate::{
    support::{
        Received, Receiver, TestApp, eventually,
        tools::{install, prepared, python_with, run, skip},
    },
    tidy::root,
};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const PAYLOADS: [&str; 5] = ["{}", r#"{"z":1,  "a":"é\u00e9"}"#, "null", "[1.0]", r#""😀""#];

#[tokio::test]
async fn the_official_python_library_verifies_our_requests() {
    if let Some(mut python) = python().await {
        verify(&mut python).await;
    }
}

/// Whether the official Python library believes requests, given a secret; nothing where there is no
/// such library here.
pub async fn believes(secret: &str, requests: &[Received]) -> Option<Result<(), String>> {
    let told = ask(&mut python().await?, secret, requests).await;
    Some(told.map(|told| assert_eq!(told, format!("verified {}", requests.len()))))
}

async fn python() -> Option<Command> {
    let python = tokio::task::spawn_blocking(python_with_library).await.unwrap()?;
    let mut command = Command::new(python);
    command.arg(root().join("tests/it/python/verify.py"));
    Some(command)
}

#[tokio::test]
async fn the_official_javascript_library_verifies_our_requests() {
    let Some(folder) = tokio::task::spawn_blocking(javascript_with_library).await.unwrap() else {
        return;
    };
    verify(Command::new("node").arg(folder.join("verify.mjs"))).await;
}

/// Sends payloads through the service, and gives a verifier what a receiver got.
async fn verify(verifier: &mut Command) {
    let receiver = Receiver::always(200).await;
    let app = TestApp::with(&[&format!("--webhook-secret={SECRET}")]).await;
    for payload in PAYLOADS {
        let body = format!(r#"{{"payload": {payload}, "target_url": "{}"}}"#, receiver.url("/"));
        let request = app.http.post(format!("{}/events", app.base)).body(body);
        let request = request.header("content-type", "application/json");
        assert_eq!(request.send().await.unwrap().status(), 202);
    }
    eventually("all deliveries", async || (receiver.count() == PAYLOADS.len()).then_some(())).await;
    let told = ask(verifier, SECRET, &receiver.received()).await;
    assert_eq!(told, Ok(format!("verified {}", PAYLOADS.len())));
    app.stop().await;
}

/// Gives requests to a verifier, and tells what it says, or why it does not believe them.
async fn ask(
    verifier: &mut Command,
    secret: &str,
    requests: &[Received],
) -> Result<String, String> {
    let requests: Vec<_> = requests
        .iter()
        .map(|request| {
            let headers = request.headers.iter();
            let headers: BTreeMap<_, _> =
                headers.map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
            json!({"headers": headers, "body": STANDARD.encode(&request.body)})
        })
        .collect();
    let input = json!({"secret": secret, "requests": requests}).to_string();
    let mut child = verifier
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let ended = tokio::task::spawn_blocking(move || {
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    });
    let output = ended.await.unwrap();
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// A Python with the library. Without Python, or without a way to get the library, the test says so
/// and is skipped.
pub fn python_with_library() -> Option<PathBuf> {
    python_with("python", "standardwebhooks==1.1.0\n")
}

/// A folder with the script, the library and what that needs. Without node the test says so and is
/// skipped; all else fails it.
pub fn javascript_with_library() -> Option<PathBuf> {
    if let Err(error) = run(Command::new("node").arg("--version")) {
        skip(&format!("node and npm are needed: {error}"));
        return None;
    }
    let sources = root().join("tests/it/javascript");
    let names = [".npmrc", "package-lock.json", "package.json", "verify.mjs"];
    let texts = names.map(|name| fs::read(sources.join(name)).unwrap());
    let key: Vec<_> = texts.iter().map(Vec::as_slice).collect();
    let made = prepared("javascript", &key, |folder| {
        fs::create_dir_all(folder).map_err(|error| error.to_string())?;
        for (name, text) in names.iter().zip(&texts) {
            fs::write(folder.join(name), text).map_err(|error| error.to_string())?;
        }
        install(folder)
    });
    Some(made.expect("npm installs what the lock file names"))
}
