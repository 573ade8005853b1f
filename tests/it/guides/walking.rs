//! Walks through a guide as a reader would: each of its commands is run, in their order, and what
//! the guide shows beneath must be what the service answers.
//!
//! A page shows what it was written with: its ids, times and durations are not those of the walk.
//! Of an answer it shows a part: members may be left out, elements of a list too, and `…` stands for
//! any text within one.

use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
};

use chrono::DateTime;
use mock_receiver::{MockReceiver, Settings};
use serde_json::Value;

use super::{blocks, guide};
use crate::support::{TestApp, eventually, tools::is_here};

/// Where the pages have the service and the receiver.
const SERVICE: &str = "http://localhost:8000";
const RECEIVER: &str = "http://127.0.0.1:8080";
/// What any number is as good as: it is a time that something took, or lasts.
const MEASURED: [&str; 4] = ["_ms", "_seconds", "p50", "p99"];

/// The ids of a page, and what they are in this walk.
type Ids = BTreeMap<String, String>;

struct Walk {
    app: TestApp,
    receiver: MockReceiver,
    ids: Ids,
}

/// Walks through a page; nothing where there is no shell, or no curl.
async fn walk(page: &str) {
    if !is_here("curl", "--version") {
        return;
    }
    let receiver = MockReceiver::bind(Settings::calm()).await.unwrap();
    let app = TestApp::with(&["--max-attempts=20"]).await;
    let mut walk = Walk { app, receiver, ids: Ids::new() };
    let guide = guide(page);
    let blocks = blocks(&guide);
    let mut commands = 0;
    for (index, (language, command)) in blocks.iter().enumerate() {
        if *language == "sh" {
            let shown = blocks.get(index + 1).filter(|(language, _)| *language != "sh");
            walk.step(command, shown.copied()).await;
            commands += 1;
        }
    }
    assert!(commands > 5, "{page} has {commands} commands");
    walk.app.stop().await;
}

impl Walk {
    /// Runs a command, until it answers what is shown where it only looks.
    async fn step(&mut self, command: &str, shown: Option<(&str, &str)>) {
        let looks = !command.contains(" -d ") && !command.contains(" -X ");
        let mut last = String::new();
        let mut tries = 0_usize;
        let found = tokio::time::timeout(
            // Longer than anybody waits for what has to come.
            std::time::Duration::from_secs(60),
            eventually("an answer as it is shown", async || {
                tries += 1;
                assert!(looks || tries == 1, "{command}\nanswers\n{last}\nand not\n{shown:?}");
                last = self.run(command).await;
                match shown {
                    Some(("json", shown)) => {
                        let shown: Value = serde_json::from_str(shown)
                            .unwrap_or_else(|error| panic!("{error}: {shown}"));
                        let answered = serde_json::from_str(&last).unwrap_or(Value::Null);
                        let mut ids = self.ids.clone();
                        matches(&shown, &answered, "", &mut ids).then_some(ids)
                    }
                    Some(("text", shown)) => {
                        let told: Vec<_> = last.lines().map(without_value).collect();
                        let is_told = |line| told.contains(&without_value(line));
                        shown.lines().all(is_told).then(|| self.ids.clone())
                    }
                    _ => Some(self.ids.clone()),
                }
            }),
        )
        .await;
        let Ok(ids) = found else {
            panic!("{command}\nanswers\n{last}\nand not\n{shown:?}");
        };
        self.ids = ids;
    }

    /// What a command prints, in the words of the page.
    async fn run(&self, command: &str) -> String {
        let mut command = command.to_owned();
        for (of_page, of_walk) in &self.ids {
            command = command.replace(of_page, of_walk);
        }
        let receiver = self.receiver.url_of("");
        let command = command.replace(SERVICE, &self.app.base).replace(RECEIVER, &receiver);
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", &command]).stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || shell.output().unwrap()).await.unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}\n{errors}");
        let told = String::from_utf8(output.stdout).unwrap();
        told.replace(&self.app.base, SERVICE).replace(&receiver, RECEIVER)
    }
}

/// Whether what is shown is a part of what is answered. Ids that are new are taken down.
fn matches(shown: &Value, answered: &Value, name: &str, ids: &mut Ids) -> bool {
    match (shown, answered) {
        (Value::Object(shown), Value::Object(answered)) => shown.iter().all(|(name, shown)| {
            answered.get(name).is_some_and(|answered| matches(shown, answered, name, ids))
        }),
        (Value::Array(shown), Value::Array(answered)) => {
            let mut rest = answered.iter();
            (shown.is_empty() == answered.is_empty())
                && shown.iter().all(|shown| {
                    rest.any(|answered| {
                        let mut tried = ids.clone();
                        let is_it = matches(shown, answered, name, &mut tried);
                        if is_it {
                            *ids = tried;
                        }
                        is_it
                    })
                })
        }
        (Value::Number(_), Value::Number(_)) if is_measured(name) => true,
        (Value::String(shown), Value::String(answered)) => is_text(shown, answered, ids),
        _ => shown == answered,
    }
}

fn is_measured(name: &str) -> bool {
    MEASURED.iter().any(|ending| name.ends_with(ending))
}

fn is_text(shown: &str, answered: &str, ids: &mut Ids) -> bool {
    let is_time = |text: &str| DateTime::parse_from_rfc3339(text).is_ok();
    if let (Some(of_page), Some(of_walk)) = (kind_of_id(shown), kind_of_id(answered)) {
        let known = ids.entry(shown.to_owned()).or_insert_with(|| answered.to_owned());
        return of_page == of_walk && known == answered;
    }
    (is_time(shown) && is_time(answered)) || has_parts(shown, answered)
}

/// The prefix of an id, if the text is one.
fn kind_of_id(text: &str) -> Option<&str> {
    let (kind, rest) = text.split_once('_')?;
    let is_id = rest.len() == 32 && rest.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then_some(kind)
}

/// A line of the metrics without its value.
fn without_value(line: &str) -> &str {
    match line.rsplit_once(' ') {
        Some((name, value)) if value.parse::<f64>().is_ok() => name,
        _ => line,
    }
}

/// Whether a text has the parts of another one between whose `…` anything may stand.
fn has_parts(shown: &str, told: &str) -> bool {
    let parts: Vec<&str> = shown.split('…').collect();
    let [first, between @ .., last] = parts.as_slice() else { return shown == told };
    let Some(mut rest) = told.strip_prefix(first) else { return false };
    for part in between {
        let Some((_, after)) = rest.split_once(part) else { return false };
        rest = after;
    }
    rest.ends_with(last)
}

#[test]
fn what_is_shown_is_a_part_of_what_is_answered() {
    let is_shown = |shown: &str, answered: &str| {
        let [shown, answered] =
            [shown, answered].map(|text| serde_json::from_str::<Value>(text).unwrap());
        matches(&shown, &answered, "", &mut Ids::new())
    };
    let id = |kind: &str, digit: &str| format!("\"{kind}_{}\"", digit.repeat(32));
    for (shown, answered, expected) in [
        (r#"{"a":1}"#, r#"{"a":1,"b":2}"#, true),
        (r#"{"a":1}"#, r#"{"a":2}"#, false),
        (r#"{"a":1,"b":2}"#, r#"{"a":1}"#, false),
        (r#"{"duration_ms":1}"#, r#"{"duration_ms":2}"#, true),
        (r#"{"duration_ms":1}"#, r#"{"duration_ms":null}"#, false),
        ("[2]", "[1,2,3]", true),
        ("[2,1]", "[1,2,3]", false),
        ("[]", "[1]", false),
        (r#""a … c""#, r#""a b c""#, true),
        (r#""a … d""#, r#""a b c""#, false),
        (r#""2026-11-28T10:05:13.123Z""#, r#""2027-01-01T00:00:00Z""#, true),
        (r#""2026-11-28T10:05:13.123Z""#, r#""soon""#, false),
        (&id("evt", "a"), &id("evt", "b"), true),
        (&id("evt", "a"), &id("dlv", "b"), false),
        (
            &format!("[{0},{0}]", id("evt", "a")),
            &format!("[{},{}]", id("evt", "b"), id("evt", "c")),
            false,
        ),
    ] {
        assert_eq!(is_shown(shown, answered), expected, "{shown} of {answered}");
    }
}

#[tokio::test]
async fn the_guide_for_publishers_shows_what_is_answered() {
    walk("publishers.md").await;
}

#[tokio::test]
async fn the_guide_for_operators_shows_what_is_answered() {
    walk("operators.md").await;
}
