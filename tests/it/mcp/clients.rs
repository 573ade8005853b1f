//! The official clients, in Python over HTTP and stdio, and in JavaScript over HTTP.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use super::{READING, Scene, WRITING};
use crate::{
    applications::key,
    support::tools::{install, prepared, python_with, run, skip},
    tidy::root,
};

const PYTHON: &str = "mcp==2.3.0\njsonschema==4.26.0\n";

/// Runs a client on what it is given, and tells what it says.
pub(super) async fn ask(mut client: Command, given: Value) -> Value {
    let asked = tokio::task::spawn_blocking(move || {
        let mut child = client
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(given.to_string().as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    });
    let output = asked.await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

async fn python() -> Option<Command> {
    let python = tokio::task::spawn_blocking(|| python_with("mcp", PYTHON)).await.unwrap()?;
    let mut command = Command::new(python);
    command.arg(root().join("tests/it/mcp/client.py"));
    Some(command)
}

fn javascript() -> Option<Command> {
    if let Err(error) = run(Command::new("node").arg("--version")) {
        skip(&format!("node and npm are needed: {error}"));
        return None;
    }
    let sources = root().join("tests/it/mcp/node");
    let names = [".npmrc", "package-lock.json", "package.json", "client.mjs"];
    let texts = names.map(|name| fs::read(sources.join(name)).unwrap());
    let key: Vec<_> = texts.iter().map(Vec::as_slice).collect();
    let made = prepared("mcp-node", &key, |folder: &Path| {
        fs::create_dir_all(folder).map_err(|error| error.to_string())?;
        for (name, text) in names.iter().zip(&texts) {
            fs::write(folder.join(name), text).map_err(|error| error.to_string())?;
        }
        install(folder)
    });
    let folder = made.expect("npm installs what the lock file names");
    let mut command = Command::new("node");
    command.arg(folder.join("client.mjs"));
    Some(command)
}

/// What a client is to say of a manager's key, and of a viewer's: all tools answer what their schemas
/// say, a viewer is offered what reads, and a problem is told.
async fn works(scene: &Scene, mut ask_with: impl AsyncFnMut(&str, Vec<(&str, Value)>) -> Value) {
    let calls = scene.calls();
    let told = ask_with(&scene.manager, calls.clone()).await;
    assert_eq!(told["server"], "webhook-dispatcher");
    let sorted = |told: &Value| {
        let names = told["tools"].as_array().unwrap().iter();
        let mut names: Vec<_> = names.map(|name| name.as_str().unwrap().to_owned()).collect();
        names.sort_unstable();
        names
    };
    let mut all = [READING.as_slice(), &WRITING].concat();
    all.sort_unstable();
    assert_eq!(sorted(&told), all);
    for ((name, arguments), result) in calls.iter().zip(told["results"].as_array().unwrap()) {
        assert_eq!(result["is_error"], false, "{name} {arguments}: {result}");
    }
    let viewer = key(&scene.app, &scene.application, "viewer").await;
    let calls = vec![
        ("webhook_event", json!({"event_id": scene.event})),
        ("webhook_event", json!({"event_id": "evt_nonsense"})),
        ("webhook_publish", json!({"type": "invoice.paid", "payload": 1})),
    ];
    let told = ask_with(&viewer, calls).await;
    let mut reading = READING;
    reading.sort_unstable();
    assert_eq!(sorted(&told), reading);
    assert_eq!(told["results"][0]["answer"]["id"], scene.event.as_str());
    let problem = &told["results"][1];
    assert_eq!(problem["is_error"], true, "{problem}");
    assert_eq!(problem["answer"]["type"], "/problems/event-not-found");
    assert_eq!(told["results"][2]["answer"]["type"], "/problems/not-permitted");
}

async fn python_works(mode: &str) {
    let Some(_) = python().await else { return };
    let scene = Scene::new(503).await;
    let url = format!("{}/mcp", scene.app.base);
    works(&scene, async |key, calls| {
        let given = json!({"url": url, "key": key, "mode": mode, "calls": calls});
        ask(python().await.unwrap(), given).await
    })
    .await;
    scene.app.stop().await;
}

/// Catches: an answer that is not what its schema says, of any tool.
#[tokio::test]
async fn the_official_python_client_uses_every_tool() {
    python_works("auto").await;
}

/// Catches: the same of clients that open a conversation with `initialize`.
#[tokio::test]
async fn the_official_python_client_of_before_uses_every_tool() {
    python_works("legacy").await;
}

/// Catches: a message that the command does not carry, a key or an address that it does not take from
/// the environment, something else than messages on its standard output.
#[tokio::test]
async fn the_official_python_client_uses_every_tool_over_stdio() {
    let Some(_) = python().await else { return };
    for mode in ["auto", "legacy"] {
        let scene = Scene::new(503).await;
        works(&scene, async |key, calls| {
            let environment = json!({
                "WEBHOOK_DISPATCHER_URL": scene.app.base, "WEBHOOK_DISPATCHER_API_KEY": key,
                "RUST_LOG": "debug",
            });
            let command = env!("CARGO_BIN_EXE_webhook-dispatcher");
            let given = json!({"command": command, "environment": environment, "mode": mode,
                "calls": calls});
            ask(python().await.unwrap(), given).await
        })
        .await;
        scene.app.stop().await;
    }
}

/// Catches: as above, with the schemas read by another validator.
#[tokio::test]
async fn the_official_javascript_client_uses_every_tool() {
    let is_there = tokio::task::spawn_blocking(javascript).await.unwrap().is_some();
    if !is_there {
        return;
    }
    let scene = Scene::new(503).await;
    let url = format!("{}/mcp", scene.app.base);
    works(&scene, async |key, calls| {
        ask(javascript().unwrap(), json!({"url": url, "key": key, "calls": calls})).await
    })
    .await;
    scene.app.stop().await;
}
