//! Verifiers with code of their own, the official libraries of Standard Webhooks, believe what the
//! running service sends, and nothing that was changed on the way.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::{
    support::{Received, Receiver, TestApp, eventually},
    tidy::root,
};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const PAYLOADS: [&str; 5] = ["{}", r#"{"z":1,  "a":"é\u00e9"}"#, "null", "[1.0]", r#""😀""#];
/// How often `npm ci` is tried: a registry may be away for a moment.
const NPM_ATTEMPTS_MAX: usize = 3;

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
fn python_with_library() -> Option<PathBuf> {
    let requirement = "standardwebhooks==1.1.0";
    let made = prepared("python", &[requirement.as_bytes()], |folder| {
        run(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
        let install = ["-m", "pip", "install", "-q", requirement];
        run(Command::new(folder.join("bin/python")).args(install))
    });
    match made {
        Ok(folder) => Some(folder.join("bin/python")),
        Err(error) => {
            skip(&format!(
                "python3 with venv, and the package standardwebhooks, are needed: {error}"
            ));
            None
        }
    }
}

/// A folder with the script, the library and what that needs. Without node the test says so and is
/// skipped; all else fails it.
fn javascript_with_library() -> Option<PathBuf> {
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

/// Installs what the lock file of a folder names.
pub fn install(folder: &Path) -> Result<(), String> {
    let mut install = Command::new("npm");
    install.arg("ci").current_dir(folder);
    let mut result = run(&mut install);
    for _ in 1..NPM_ATTEMPTS_MAX {
        if result.is_err() {
            result = run(&mut install);
        }
    }
    result
}

/// A folder beside the build, made once for all that has the same key. It is made under another name
/// and renamed when it is whole: another test process may be about the same.
pub fn prepared(
    name: &str,
    key: &[&[u8]],
    make: impl FnOnce(&Path) -> Result<(), String>,
) -> Result<PathBuf, String> {
    let mut hash = Sha256::new();
    for part in key {
        hash.update(part.len().to_be_bytes());
        hash.update(part);
    }
    let hash = hash.finalize();
    let hash = u64::from_be_bytes(hash[..8].try_into().unwrap());
    let beside = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = beside.join(format!("{name}-{hash:016x}"));
    if folder.exists() {
        return Ok(folder);
    }
    let under_way = beside.join(format!("{name}-{hash:016x}.{}", std::process::id()));
    let made = make(&under_way);
    // Where another process was first, its folder is as good.
    if made.is_ok() && fs::rename(&under_way, &folder).is_ok() {
        return Ok(folder);
    }
    let _ = fs::remove_dir_all(&under_way);
    made.and_then(|()| if folder.exists() { Ok(folder) } else { Err("it is gone".to_owned()) })
}

pub fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// Says why a test does nothing; with `CI` set it has to do something.
pub fn skip(why: &str) {
    assert!(!std::env::vars().any(|(name, _)| name == "CI"), "{why}");
    #[expect(clippy::print_stderr, reason = "says why a test did nothing")]
    {
        eprintln!("skipped: {why}");
    }
}
