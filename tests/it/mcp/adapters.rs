//! What passes the tools on to models, with its own packages: openai-agents, langchain, fastmcp.

use std::{fs, process::Command};

use serde_json::{Value, json};

use super::{READING, Scene, WRITING, clients::ask};
use crate::{
    applications::WITH_KEYS,
    support::{TestApp, tools::python_with},
    tidy::root,
};

/// Formats and keywords that strict schemas of tools may have, by the providers' documents.
const FORMATS: [&str; 2] = ["date-time", "uuid"];
const REFUSED: [&str; 8] =
    ["allOf", "oneOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas"];

async fn script(requirements: &str, script: &str) -> Option<Command> {
    let text = fs::read_to_string(root().join("tests/it/python").join(requirements)).unwrap();
    let name = requirements.trim_end_matches(".txt").trim_start_matches("requirements-").to_owned();
    let python = tokio::task::spawn_blocking(move || python_with(&name, &text)).await.unwrap()?;
    let mut command = Command::new(python);
    command.arg(root().join("tests/it/mcp").join(script));
    // Nothing is sent to the provider of a model.
    command.env("OPENAI_AGENTS_DISABLE_TRACING", "1").env("LANGSMITH_TRACING", "false");
    Some(command)
}

/// Checks the names of the tools as a model gets them, and what one call came to.
fn check_names(answers: &Value) {
    let tools = answers["tools"].as_array().unwrap();
    let mut names: Vec<_> = tools.iter().map(|tool| tool["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    let mut all = [READING.as_slice(), &WRITING].concat();
    all.sort_unstable();
    assert_eq!(names, all);
    for name in names {
        let is_sound = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        assert!((1..=64).contains(&name.len()) && name.chars().all(is_sound), "{name}");
    }
    assert!(answers["answer"]["id"].as_str().unwrap().starts_with("evt_"), "{answers}");
}

/// Checks a schema by the rules of strict mode.
fn check_strict(schema: &Value, at: &str) {
    let Some(members) = schema.as_object() else { panic!("{at}: {schema}") };
    let is_typed =
        ["type", "anyOf", "enum", "const"].iter().any(|name| members.contains_key(*name));
    assert!(is_typed, "{at}: {schema}");
    for name in REFUSED {
        assert!(!members.contains_key(name), "{at}: {name}");
    }
    let format = members.get("format").and_then(Value::as_str);
    assert!(format.is_none_or(|format| FORMATS.contains(&format)), "{at}: {format:?}");
    let pattern = members.get("pattern").and_then(Value::as_str).unwrap_or_default();
    assert!(!pattern.contains("(?"), "{at}: {pattern}");
    if schema["type"] == "object" {
        assert_eq!(schema["additionalProperties"], false, "{at}");
        let properties = schema["properties"].as_object().unwrap();
        assert_eq!(schema["required"].as_array().unwrap().len(), properties.len(), "{at}");
    }
    for (name, part) in members.get("properties").and_then(Value::as_object).into_iter().flatten() {
        check_strict(part, &format!("{at}/{name}"));
    }
    for part in members.get("anyOf").and_then(Value::as_array).into_iter().flatten() {
        check_strict(part, &format!("{at}/anyOf"));
    }
    if let Some(items) = members.get("items") {
        check_strict(items, &format!("{at}/items"));
    }
}

fn call() -> Value {
    json!(["webhook_publish", {"type": "invoice.paid", "payload": {"amount": 8}}])
}

/// Catches: names that model APIs refuse, a schema that strict mode refuses, and names with dots that
/// are not callable any more.
#[tokio::test]
async fn openai_agents_passes_on_every_tool_and_calls_it_by_both_names() {
    let Some(agent) = script("requirements-agents.txt", "openai_agents.py").await else { return };
    let scene = Scene::new(200).await;
    let url = format!("{}/mcp", scene.app.base);
    let answers = ask(agent, json!({"url": url, "key": scene.manager, "call": call()})).await;
    check_names(&answers);
    assert!(answers["dotted"]["id"].as_str().unwrap().starts_with("evt_"), "{answers}");
    let mut strict = Vec::new();
    for tool in answers["tools"].as_array().unwrap() {
        let name = tool["name"].as_str().unwrap();
        if tool["strict"] == true {
            check_strict(&tool["schema"], name);
            strict.push(name);
        }
    }
    // The others take free JSON.
    for name in ["webhook_event", "webhook_deliveries", "webhook_diagnose", "webhook_retry"] {
        assert!(strict.contains(&name), "{name}: {strict:?}");
    }
    for name in ["webhook_publish", "webhook_subscription_update"] {
        assert!(!strict.contains(&name), "{name} cannot be strict");
    }
    scene.app.stop().await;
}

/// Catches: the same of another adapter, which passes names on unchanged.
#[tokio::test]
async fn langchain_adapters_pass_on_every_tool_and_call_it() {
    let Some(agent) = script("requirements-agents.txt", "langchain.py").await else { return };
    let scene = Scene::new(200).await;
    let url = format!("{}/mcp", scene.app.base);
    let answers = ask(agent, json!({"url": url, "key": scene.manager, "call": call()})).await;
    check_names(&answers);
    scene.app.stop().await;
}

/// Catches: a missing key that a client shows as a failure without a reason.
#[tokio::test]
async fn missing_key_is_shown_by_fastmcp() {
    let Some(client) = script("requirements-fastmcp.txt", "fastmcp_client.py").await else {
        return;
    };
    let app = TestApp::with(&WITH_KEYS).await;
    let answers = ask(client, json!({"url": format!("{}/mcp", app.base)})).await;
    let error = answers["error"].as_str().unwrap();
    assert!(error.contains("Authorization: Bearer"), "{answers}");
    app.stop().await;
}
