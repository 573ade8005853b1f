//! Programs of others that read the document: linters, and generators whose clients call the service.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use super::document_file;
use crate::{
    applications::{WITH_KEYS, tenant},
    support::{TestApp, tools},
    tidy::root,
};

const NODE_FILES: [&str; 3] = [".npmrc", "package-lock.json", "package.json"];

/// The folder of the linters and of the generator for TypeScript.
fn node() -> Option<PathBuf> {
    if !tools::is_here("node", "--version") {
        return None;
    }
    let sources = root().join("tests/it/openapi/node");
    let texts = NODE_FILES.map(|name| fs::read(sources.join(name)).unwrap());
    let key: Vec<_> = texts.iter().map(Vec::as_slice).collect();
    let made = tools::prepared("openapi-node", &key, |folder: &Path| {
        fs::create_dir_all(folder).map_err(|error| error.to_string())?;
        for (name, text) in NODE_FILES.iter().zip(&texts) {
            fs::write(folder.join(name), text).map_err(|error| error.to_string())?;
        }
        tools::install(folder)
    });
    Some(made.expect("npm installs what the lock file names"))
}

/// An empty folder for one run, below a folder.
fn run_folder(below: &Path, name: &str) -> PathBuf {
    let folder = below.join(format!("{name}.{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// What a command prints, which must succeed.
async fn output_of(mut command: Command) -> String {
    let ran = tokio::task::spawn_blocking(move || (format!("{command:?}"), command.output()));
    let (command, output) = ran.await.unwrap();
    let output = output.unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {printed}{errors}");
    printed
}

async fn blocking<T: Send + 'static>(make: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(make).await.unwrap()
}

/// What each generated client prints of what it was answered.
#[track_caller]
fn check_answers(printed: &str, source: &str) {
    let answers: Value = serde_json::from_str(printed).unwrap();
    let expected = json!({
        "count": 10,
        "clauses": {"data.amount": {"gte": 1}},
        "retry": [1.0, 60.0],
        "metadata": {"source": source},
    });
    let numbers = |value: &Value| {
        value["retry"].as_array().unwrap().iter().map(Value::as_f64).collect::<Vec<_>>()
    };
    assert_eq!(numbers(&answers), numbers(&expected));
    for name in ["count", "clauses", "metadata"] {
        assert_eq!(answers[name], expected[name], "{name}");
    }
}

/// Catches: a schema that linters refuse, such as `true`.
#[tokio::test]
async fn document_has_no_errors_for_spectral_and_redocly() {
    let Some(node) = blocking(node).await else { return };
    let app = TestApp::start().await;
    let file = document_file(&app).await;
    app.stop().await;
    let folder = run_folder(&node, "lint");
    fs::write(folder.join("spectral.json"), r#"{"extends": ["spectral:oas"]}"#).unwrap();
    let mut spectral = Command::new(node.join("node_modules/.bin/spectral"));
    spectral
        .args(["lint", "--fail-severity=error", "-r"])
        .arg(folder.join("spectral.json"))
        .arg(&file);
    output_of(spectral).await;
    let mut redocly = Command::new(node.join("node_modules/.bin/redocly"));
    redocly.args(["lint", "--format=json"]).arg(&file).current_dir(&folder);
    redocly.env("REDOCLY_TELEMETRY", "off").env("REDOCLY_SUPPRESS_UPDATE_NOTICE", "true");
    output_of(redocly).await;
    fs::remove_dir_all(folder).unwrap();
}

/// Catches: a document of which no client is generated, and one whose types are not those of the answers.
#[tokio::test]
async fn generated_python_client_creates_a_subscription_and_publishes() {
    let requirements = root().join("tests/it/python/requirements-clients.txt");
    let requirements = fs::read_to_string(requirements).unwrap();
    let python = blocking(move || tools::python_with("openapi-client", &requirements)).await;
    let Some(python) = python else { return };
    let app = TestApp::with(&WITH_KEYS).await;
    let (_, key) = tenant(&app, "acme", "manager").await;
    let file = document_file(&app).await;
    let folder = run_folder(Path::new(env!("CARGO_TARGET_TMPDIR")), "openapi-python");
    fs::write(folder.join("config.json"), r#"{"post_hooks": []}"#).unwrap();
    let mut generate = Command::new(&python);
    generate
        .args(["-m", "openapi_python_client", "generate", "--meta=none", "--fail-on-warning"])
        .arg("--path")
        .arg(&file)
        .arg("--config")
        .arg(folder.join("config.json"))
        .arg("--output-path")
        .arg(folder.join("api_client"));
    output_of(generate).await;
    let mut client = Command::new(&python);
    client.arg(root().join("tests/it/openapi/client.py")).arg(&folder);
    client.args([app.base.as_str(), &key, "http://127.0.0.1:9/"]);
    check_answers(&output_of(client).await, "python");
    app.stop().await;
    fs::remove_dir_all(folder).unwrap();
}

/// Catches: as above, with a compiler that holds the program to the types.
#[tokio::test]
async fn generated_typescript_client_creates_a_subscription_and_publishes() {
    let Some(node) = blocking(node).await else { return };
    let app = TestApp::with(&WITH_KEYS).await;
    let (_, key) = tenant(&app, "acme", "manager").await;
    let file = document_file(&app).await;
    let folder = run_folder(&node, "client");
    let bin = node.join("node_modules/.bin");
    let mut generate = Command::new(bin.join("openapi-typescript"));
    generate.arg(&file).arg("-o").arg(folder.join("api.d.ts"));
    output_of(generate).await;
    fs::copy(root().join("tests/it/openapi/node/client.ts"), folder.join("client.ts")).unwrap();
    let mut compile = Command::new(bin.join("tsc"));
    compile.args(["--strict", "--module", "nodenext", "--target", "es2022", "client.ts"]);
    compile.current_dir(&folder);
    output_of(compile).await;
    let mut client = Command::new("node");
    client.arg(folder.join("client.js")).args([app.base.as_str(), &key, "http://127.0.0.1:9/"]);
    check_answers(&output_of(client).await, "typescript");
    app.stop().await;
    fs::remove_dir_all(folder).unwrap();
}
