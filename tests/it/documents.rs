//! What the documents say is so: they name only what there is, and their queries run.

use std::{collections::BTreeSet, fs, path::PathBuf};

use clap::CommandFactory;
use reqwest::StatusCode;
use sqlx::{AssertSqlSafe, ConnectOptions, Executor};
use webhook_dispatcher::{
    config::{Instance, Settings},
    domain::{ErrorClass, address},
};

use crate::{support::TestDatabase, tidy::root};

/// Words that look like settings of ours, and are others'.
const FOREIGN: &[&str] = &[
    "AF_INET",
    "AF_INET6",
    "AF_UNIX",
    "CARGO_PROFILE_RELEASE_DEBUG",
    "CLOCK_BOOTTIME",
    "DISPATCH_AT",
    "HTTP_PROXY",
    "HTTP_WEBHOOK_ID",
    "PAYLOAD_SECRET",
    "POSTGRES_DB",
    "POSTGRES_PASSWORD",
    "POSTGRES_USER",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TCP_USER_TIMEOUT",
    "UNIX_EPOCH",
    "UTF_8",
];

/// A document and its text.
struct Document {
    path: PathBuf,
    text: String,
}

impl Document {
    fn name(&self) -> String {
        self.path.strip_prefix(root()).unwrap().display().to_string()
    }

    fn is_markdown(&self) -> bool {
        self.path.extension().is_some_and(|extension| extension == "md")
    }
}

/// All that is written for people, and what they are told to run.
fn documents() -> Vec<Document> {
    let mut paths: Vec<PathBuf> = ["README.md", "CHANGELOG.md", "mock-receiver/README.md"]
        .into_iter()
        .chain(["Dockerfile", "docker-compose.yml", "docs/prove.sh"])
        .map(|name| root().join(name))
        .collect();
    for folder in ["docs", "docs/decisions", "docs/guides"] {
        let entries = fs::read_dir(root().join(folder)).unwrap();
        let files = entries.map(|entry| entry.unwrap().path());
        paths.extend(files.filter(|path| path.extension().is_some_and(|ending| ending == "md")));
    }
    assert!(paths.len() > 10);
    let read = |path: PathBuf| Document { text: fs::read_to_string(&path).unwrap(), path };
    paths.into_iter().map(read).collect()
}

/// The longest runs of characters that `is_part` accepts.
fn words(text: &str, is_part: impl Fn(char) -> bool) -> impl Iterator<Item = &str> {
    text.split(move |character| !is_part(character)).filter(|word| !word.is_empty())
}

/// The anchor that a heading gets.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// The variables that a binary reads.
fn variables(command: &clap::Command) -> BTreeSet<String> {
    let names = command.get_arguments().filter_map(clap::Arg::get_env);
    names.map(|name| name.to_str().unwrap().to_owned()).collect()
}

fn dispatcher_variables() -> BTreeSet<String> {
    let command = clap::Command::new("webhook-dispatcher");
    let command = <Settings as clap::Args>::augment_args(command);
    variables(&<Instance as clap::Args>::augment_args(command))
}

fn receiver_variables() -> BTreeSet<String> {
    let mut variables = variables(&mock_receiver::Settings::command());
    variables.insert("RUST_LOG".to_owned());
    variables
}

#[test]
fn they_name_only_settings_that_there_are() {
    let known = &dispatcher_variables() | &receiver_variables();
    assert!(known.len() > 20);
    for document in documents() {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        for word in words(&document.text, is_part) {
            let is_variable = word.contains('_')
                && word.starts_with(|c: char| c.is_ascii_uppercase())
                && !word.contains(|c: char| c.is_ascii_lowercase());
            if is_variable && !FOREIGN.contains(&word) {
                assert!(known.contains(word), "{} names {word}", document.name());
            }
        }
    }
}

/// A misspelt variable would be ignored without a word.
#[test]
fn compose_sets_only_what_the_binaries_read() {
    let compose = fs::read_to_string(root().join("docker-compose.yml")).unwrap();
    let environment = |service: &str| -> BTreeSet<String> {
        let own = compose.split(&format!("\n  {service}:\n")).nth(1).unwrap();
        let own = own.split("    environment:\n").nth(1).unwrap();
        let lines = own.lines().take_while(|line| line.starts_with("      "));
        let lines = lines.filter(|line| !line.trim_start().starts_with('#'));
        lines.map(|line| line.trim().split(':').next().unwrap().to_owned()).collect()
    };
    for (service, known) in
        [("dispatcher", dispatcher_variables()), ("mock-receiver", receiver_variables())]
    {
        let set = environment(service);
        assert!(set.len() > 2, "{set:?}");
        assert!(set.is_subset(&known), "{service}: {:?}", &set - &known);
    }
}

#[test]
fn they_name_only_metrics_that_there_are() {
    let telemetry = fs::read_to_string(root().join("src/telemetry.rs")).unwrap();
    for document in documents() {
        for word in words(&document.text, |c| c.is_ascii_alphanumeric() || c == '_') {
            let is_metric = word.starts_with("dispatcher_") && word != "dispatcher_id";
            if is_metric {
                let name = ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|of_histograms| word.strip_suffix(of_histograms))
                    .unwrap_or(word);
                let is_known = telemetry.contains(&format!("\"{name}\""));
                assert!(is_known, "{} names {word}", document.name());
            }
        }
    }
}

#[test]
fn they_name_only_problems_that_there_are() {
    let problems = fs::read_to_string(root().join("src/http/problem.rs")).unwrap();
    for document in documents() {
        let is_part = |c: char| c.is_ascii_lowercase() || c == '-' || c == '/';
        for word in words(&document.text, is_part).filter(|word| word.starts_with("/problems/")) {
            let is_known = problems.contains(&format!("\"{word}\""));
            assert!(is_known, "{} names {word}", document.name());
        }
    }
}

/// The table of `docs/problems.md` is that of the code, and each problem has its section.
#[test]
fn every_problem_is_explained() {
    let named = |name: &str| {
        let reason = |code: &StatusCode| code.canonical_reason().unwrap_or_default().to_uppercase();
        let mut codes = (100..600).filter_map(|code| StatusCode::from_u16(code).ok());
        codes.find(|code| reason(code).replace([' ', '-'], "_") == name).expect(name).as_u16()
    };
    let code = fs::read_to_string(root().join("src/http/problem.rs")).unwrap();
    let rows = code.split("fn row(").nth(1).unwrap().split("\n    }\n").next().unwrap();
    let rows: Vec<String> = rows
        .split("StatusCode::")
        .skip(1)
        .filter(|row| row.contains("\"/problems/"))
        .map(|row| {
            let status = named(row.split(',').next().unwrap());
            let mut texts = row.split('"').skip(1).step_by(2);
            let (problem, title) = (texts.next().unwrap(), texts.next().unwrap());
            let anchor = anchor(title);
            format!("| `{problem}` | {status} | [{title}](#{anchor}) |")
        })
        .collect();
    assert!(rows.len() > 15, "{rows:?}");
    let guide = fs::read_to_string(root().join("docs/problems.md")).unwrap();
    let table: Vec<&str> = guide.lines().filter(|line| line.starts_with("| `")).collect();
    assert_eq!(table, rows);
    let sections: Vec<_> = guide.split("\n## ").skip(1).collect();
    assert_eq!(sections.len(), rows.len());
    for (row, section) in rows.iter().zip(sections) {
        let (title, text) = section.split_once('\n').unwrap();
        assert!(row.contains(&format!("[{title}]")), "{row}: {title}");
        assert!(text.trim().len() > 40, "{title} says nothing");
    }
}

#[test]
fn every_class_of_error_has_its_advice() {
    let guide = fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap();
    let table = guide.split("| class |").nth(1).expect("a table by class");
    let table = table.split("\n\n").next().unwrap();
    let advised: Vec<&str> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|line| line.split('`').next())
        .collect();
    assert_eq!(advised, ErrorClass::ALL.map(ErrorClass::as_str));
}

/// Every block that is refused by name stands in the page on security, and no other.
#[test]
fn every_refused_block_is_documented() {
    let page = fs::read_to_string(root().join("docs/security.md")).unwrap();
    let section = page.split("## Blocks").nth(1).unwrap().split("\n## ").next().unwrap();
    let told: Vec<&str> = section.lines().filter(|line| line.starts_with("| `")).collect();
    let rows = address::refused_blocks()
        .map(|(block, purpose, by)| format!("| `{block}` | {purpose} | {by} |"));
    assert_eq!(told, rows.collect::<Vec<_>>());
}

#[tokio::test]
async fn their_queries_run() {
    let mut connection = TestDatabase::new().await.options.connect().await.unwrap();
    let mut count = 0;
    for document in documents() {
        for block in document.text.split("```sql\n").skip(1) {
            let query = block.split("```").next().unwrap();
            // Others make roles and databases.
            if query.starts_with("select") {
                let result = connection.execute(AssertSqlSafe(query.to_owned())).await;
                assert!(result.is_ok(), "{}: {query}\n{:?}", document.name(), result.err());
                count += 1;
            }
        }
    }
    assert!(count > 5, "{count}");
}

#[test]
fn their_links_lead_somewhere() {
    for document in documents().iter().filter(|document| document.is_markdown()) {
        for link in document.text.split("](").skip(1) {
            let link = link.split(')').next().unwrap();
            if link.contains("://") {
                continue;
            }
            let (file, wanted) = link.split_once('#').unwrap_or((link, ""));
            let path = if file.is_empty() {
                document.path.clone()
            } else {
                document.path.parent().unwrap().join(file)
            };
            assert!(path.exists(), "{} links to {link}", document.name());
            if !wanted.is_empty() {
                let text = fs::read_to_string(&path).unwrap();
                let mut headings = text.lines().filter(|line| line.starts_with('#'));
                let is_there = headings.any(|heading| anchor(heading) == wanted);
                assert!(is_there, "{} links to {link}", document.name());
            }
        }
    }
}
