//! The house rules that a reader could forget: who may use whom, where SQL may stand, how long a
//! file may be, and that the documents name what there is.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Which module may use which; what is not named here may use everything.
const MAY_USE: &[(&str, &[&str])] = &[
    ("domain", &["domain"]),
    ("store", &["domain", "store", "clock", "tls"]),
    ("delivery", &["domain", "delivery", "tls"]),
    ("ingest", &["domain", "store", "ingest", "clock", "telemetry"]),
    ("worker", &["domain", "store", "delivery", "ingest", "worker", "clock", "telemetry"]),
    ("sealing", &["domain", "store", "sealing"]),
    ("http", &["domain", "store", "ingest", "http", "clock", "telemetry"]),
    ("cms", &["domain", "store", "cms", "http", "peer", "clock", "telemetry", "tls"]),
    ("commands", &["domain", "store", "config", "embedded_postgres", "commands"]),
    ("bridge", &["config", "peer", "tls"]),
    ("embedded_postgres", &["embedded_postgres"]),
];
/// What the pure core must not know.
const IMPURE: &[&str] = &[
    "sqlx",
    "axum",
    "reqwest",
    "tokio",
    "hyper",
    "rand::",
    "SystemTime",
    "Instant::now",
    "Utc::now",
];
/// Lines of a file, its tests apart.
const LINES_MAX: usize = 500;

/// The folder of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            // Tests that have outgrown the file that they test.
            if path.file_name().is_none_or(|name| name != "tests") {
                files.extend(rust_files(&path));
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// The code of a file without comments and without its tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]").next().unwrap();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The modules of this crate that a file's code names.
fn used(code: &str) -> BTreeSet<String> {
    let mut modules = BTreeSet::new();
    for part in code.split("crate::").skip(1) {
        let names = match part.strip_prefix('{') {
            // `use crate::{a::…, b::…}`: the names at depth one.
            Some(list) => top_level(list),
            None => vec![part],
        };
        for name in names {
            let end = name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len());
            modules.insert(name[..end].to_owned());
        }
    }
    modules.remove("");
    modules
}

fn top_level(list: &str) -> Vec<&str> {
    let (mut depth, mut start, mut names) = (0, 0, Vec::new());
    for (index, character) in list.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => {
                names.push(list[start..index].trim());
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.push(list[start..index].trim());
                start = index + 1;
            }
            _ => {}
        }
    }
    names
}

#[test]
fn modules_use_only_what_they_may() {
    for (module, allowed) in MAY_USE {
        let files = rust_files(&root().join("src").join(module));
        assert!(!files.is_empty(), "{module}");
        for file in files {
            for name in used(&code(&file)) {
                assert!(allowed.contains(&name.as_str()), "{} uses {name}", file.display());
            }
        }
    }
    assert_eq!(
        used("use crate::{a::{b, c}, d};\nuse crate::e::f;").into_iter().collect::<Vec<_>>(),
        ["a", "d", "e"],
        "the reader itself"
    );
}

#[test]
fn the_domain_is_pure() {
    for file in rust_files(&root().join("src/domain")) {
        let code = code(&file);
        for word in IMPURE {
            assert!(!code.contains(word), "{} knows {word}", file.display());
        }
    }
}

#[test]
fn sql_stands_in_the_store_only() {
    for file in rust_files(&root().join("src")) {
        if !file.starts_with(root().join("src/store"))
            && !file.starts_with(root().join("src/embedded_postgres"))
        {
            let code = code(&file);
            for word in ["sqlx::query", "sqlx::raw_sql", "QueryBuilder"] {
                assert!(!code.contains(word), "{} holds SQL", file.display());
            }
        }
    }
}

#[test]
fn only_the_configuration_reads_the_environment() {
    for file in rust_files(&root().join("src")) {
        if !file.starts_with(root().join("src/config")) {
            assert!(!code(&file).contains("env::var"), "{}", file.display());
        }
    }
}

/// Messages show no debug output: names of types help no operator. `words` makes words of such a name.
#[test]
fn messages_have_no_debug_output() {
    for file in rust_files(&root().join("src")) {
        for line in code(&file).lines().filter(|line| {
            !line.contains("{variant:?}")
                && !line.contains("assert")
                && !line.contains(".contains(")
        }) {
            let is_field = line.contains(", ?") || line.trim_start().starts_with('?');
            assert!(!line.contains(":?}") && !is_field, "{}: {line}", file.display());
        }
    }
}

#[test]
fn no_file_outgrows_one_sitting() {
    for folder in ["src", "mock-receiver/src"] {
        for file in rust_files(&root().join(folder)) {
            let text = fs::read_to_string(&file).unwrap();
            let lines = text.split("#[cfg(test)]").next().unwrap().lines().count();
            assert!(lines <= LINES_MAX, "{} has {lines} lines", file.display());
        }
    }
}

/// Every setting of the command line stands in the table of the README, and the other way round.
#[test]
fn the_settings_table_is_complete() {
    let config = fs::read_to_string(root().join("src/config/settings.rs")).unwrap();
    let settings: BTreeSet<&str> =
        config.split("env = \"").skip(1).filter_map(|part| part.split('"').next()).collect();
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let table = readme.split("## Settings").nth(1).expect("a section on settings");
    let table = table.split("\n## ").next().unwrap();
    let documented: BTreeSet<&str> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|line| line.split('`').next())
        .collect();
    assert_eq!(settings, documented);
}

/// Every metric stands in the operations guide.
#[test]
fn every_metric_is_documented() {
    let telemetry = fs::read_to_string(root().join("src/telemetry.rs")).unwrap();
    let guide = fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let names: Vec<&str> = telemetry
        .split("\"dispatcher_")
        .skip(1)
        .filter_map(|part| part.split('"').next())
        .collect();
    assert!(names.len() > 5);
    for name in names {
        assert!(guide.contains(&format!("`dispatcher_{name}`")), "dispatcher_{name}");
    }
}

/// The database's lists of names are those of the code.
#[test]
fn the_schema_knows_the_closed_sets() {
    use webhook_dispatcher::domain::{DeliveryState, ErrorClass};
    // The last one to add a constraint counts.
    let schema: String = ["0001_main_job", "0025_upstream"]
        .map(|name| fs::read_to_string(root().join(format!("migrations/{name}.sql"))).unwrap())
        .concat();
    let list = |constraint: &str| -> BTreeSet<String> {
        let after = schema.rsplit(&format!("{constraint} check")).next().unwrap();
        let inside = after.split(" in (").nth(1).unwrap().split(')').next().unwrap();
        inside.split(',').map(|name| name.trim().trim_matches('\'').to_owned()).collect()
    };
    let all: BTreeSet<String> = ErrorClass::ALL.iter().map(|c| c.as_str().to_owned()).collect();
    assert_eq!(list("constraint delivery_reason_known"), all);
    let mut of_attempts = all.clone();
    for never in ["interrupted", "expired", "cancelled"] {
        of_attempts.remove(never);
    }
    assert_eq!(list("constraint attempt_error_class_known"), of_attempts);
    let finals: BTreeSet<String> = DeliveryState::ALL
        .iter()
        .filter(|state| state.is_final())
        .map(|state| state.as_str().to_owned())
        .collect();
    assert_eq!(list("constraint delivery_state_is_final"), finals);
}
