//! The document of the API: it is what it says that it is, and the service is what it says.

mod clients;

use std::{collections::BTreeSet, fs, process::Command, time::Duration};

use serde_json::{Value, json};

use crate::{
    applications::{ADMIN_KEY, WITH_KEYS, key, tenant},
    support::{TestApp, tools},
    tidy::root,
};

/// How long all that Schemathesis tries with one key may take; what it tries depends on its seed and
/// not on the time.
const TRIES_MAX: Duration = Duration::from_secs(900);
/// How many requests it makes up for each operation, beside those that try bounds one by one.
const EXAMPLES_MAX: &str = "10";

async fn get(app: &TestApp, path: &str, host: Option<&str>) -> reqwest::Response {
    let request = app.http.get(format!("{}{path}", app.base));
    match host {
        Some(host) => request.header("host", host).send().await.unwrap(),
        None => request.send().await.unwrap(),
    }
}

/// Catches: a document or a page that asks for a key, that answers to any name where the service is
/// open, or that a process has which only sends; an asset that is not there, or is somebody else's.
#[tokio::test]
async fn the_document_and_its_page_are_for_whoever_may_reach_the_service() {
    let app = TestApp::with(&WITH_KEYS).await;
    let document = get(&app, "/openapi.json", None).await;
    assert_eq!(document.headers()["content-type"], "application/json");
    let document: Value = serde_json::from_str(&document.text().await.unwrap()).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    for path in ["/docs", "/docs/"] {
        let page = get(&app, path, None).await;
        assert!(page.headers()["content-security-policy"].to_str().unwrap().contains("'self'"));
        let page = page.text().await.unwrap();
        let loaded = page.split([' ', '>']).filter_map(|word| {
            let (name, value) = word.split_once('=')?;
            ["src", "href"].contains(&name).then(|| value.trim_matches('"').to_owned())
        });
        let loaded: Vec<_> = loaded.filter(|link| !link.starts_with("data:")).collect();
        assert!(loaded.len() > 3, "{page}");
        for link in loaded {
            assert!(link.starts_with('/'), "{link} is not ours");
            let answer = get(&app, &link, None).await;
            assert_eq!(answer.status(), 200, "{link}");
            assert!(!answer.bytes().await.unwrap().is_empty(), "{link}");
        }
    }
    assert_eq!(get(&app, "/docs/nothing", None).await.status(), 404);
    app.stop().await;

    let open = TestApp::start().await;
    let sender = TestApp::with(&["--role=worker"]).await;
    for path in ["/openapi.json", "/docs", "/docs/start.js"] {
        assert_eq!(get(&open, path, Some("evil.example")).await.status(), 403, "{path}");
        assert_eq!(get(&sender, path, None).await.status(), 404, "{path}");
    }
    open.stop().await;
    sender.stop().await;
}

/// Catches: a problem that no operation tells of; one that is told and not explained.
#[tokio::test]
async fn its_problems_are_those_of_the_guide() {
    let app = TestApp::start().await;
    let (_, document) = app.get("/openapi.json").await;
    let told = &document["components"]["schemas"]["Problem"]["properties"]["type"]["enum"];
    let told: BTreeSet<_> = told.as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let guide = fs::read_to_string(root().join("docs/problems.md")).unwrap();
    let rows = guide.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    assert_eq!(told, rows.collect());
    app.stop().await;
}

/// Data for all that there is, and the keys of those who ask: the operator's and a manager's.
async fn with_data() -> (TestApp, [String; 2]) {
    // It sends nothing: what is made up here may name any address.
    let flags = ["--role=api", "--target-url=http://127.0.0.1:9/", "--dispatch-inline-max=0"];
    let app = TestApp::with(&[WITH_KEYS.as_slice(), &flags].concat()).await;
    let (id, manager) = tenant(&app, "acme", "manager").await;
    key(&app, &id, "viewer").await;
    for key in [ADMIN_KEY, manager.as_str()] {
        let call = async |path: &str, body: Value| {
            let (status, answer) = app.call("POST", path, Some(key), Some(&body)).await;
            assert!(status < 300, "{path}: {answer}");
        };
        call("/event-types/load", json!({})).await;
        call(
            "/subscriptions",
            json!({"target_url": "http://127.0.0.1:9/", "event_types": "*", "uid": "all"}),
        )
        .await;
        for event_type in ["invoice.paid", "user.created", "a"] {
            call("/events", json!({"type": event_type, "payload": {"n": 1}})).await;
        }
    }
    (app, [ADMIN_KEY.to_owned(), manager])
}

/// Catches: a document that is none by the meta-schema; an answer of a status, a type, a header or a
/// body that is not told; a request that keeps to its schema and is refused, or breaks it and is
/// accepted; a fault of ours (5xx); a route without a key; and what was deleted and is still there.
#[tokio::test]
async fn the_service_is_what_its_document_says() {
    let requirements = root().join("tests/it/python/requirements-openapi.txt");
    let requirements = fs::read_to_string(requirements).unwrap();
    let python = move || tools::python_with("openapi", &requirements);
    let Some(python) = tokio::task::spawn_blocking(python).await.unwrap() else { return };
    let (app, keys) = with_data().await;
    let file = document_file(&app).await;
    let mut validate = Command::new(&python);
    validate.args(["-m", "openapi_spec_validator"]).arg(&file);
    let valid = tokio::task::spawn_blocking(move || tools::run(&mut validate)).await.unwrap();
    assert_eq!(valid, Ok(()));

    for key in keys {
        let mut tries = tokio::process::Command::new(&python);
        tries
            .args(["-m", "schemathesis.cli"])
            .arg("--config-file")
            .arg(root().join("tests/it/python/schemathesis.toml"))
            .args(["run", &format!("{}/openapi.json", app.base), "--checks=all", "--seed=1"])
            .args(["--continue-on-failure", "--no-color", "--warnings=off"])
            .args(["--max-examples", EXAMPLES_MAX])
            .args(["--header", &format!("Authorization: Bearer {key}")])
            .current_dir(env!("CARGO_TARGET_TMPDIR"))
            .kill_on_drop(true);
        let output = tokio::time::timeout(TRIES_MAX, tries.output()).await;
        let output = output.expect("ends in time").unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
        assert!(told.contains("No issues found"), "{told}");
    }
    app.stop().await;
}

/// The document as a file.
async fn document_file(app: &TestApp) -> std::path::PathBuf {
    let text = get(app, "/openapi.json", None).await.text().await.unwrap();
    let (process, port) = (std::process::id(), app.base.rsplit(':').next().unwrap_or_default());
    let name = format!("openapi.{process}.{port}.json");
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, text).unwrap();
    path
}
