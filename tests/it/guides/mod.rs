//! The guides: their code is run against the service's own deliveries, and their commands against a
//! service.

mod publishing;
mod receiving;
mod verify;
mod walking;

use std::fs;

use crate::tidy::root;

/// A guide's text.
fn guide(name: &str) -> String {
    fs::read_to_string(root().join("docs/guides").join(name)).unwrap()
}

/// What stands between the lines of three backticks of a text, with the language of each.
fn blocks(text: &str) -> Vec<(&str, &str)> {
    let parts = text.split("\n```").skip(1).step_by(2);
    parts.map(|block| block.split_once('\n').expect("a block has lines")).collect()
}

/// The blocks in a language below a heading of a guide.
fn code(guide: &str, heading: &str, language: &str) -> Vec<String> {
    let section = guide.split(&format!("\n{heading}\n")).nth(1);
    let section = section.unwrap_or_else(|| panic!("no {heading}"));
    let section = section.split("\n## ").next().unwrap().split("\n### ").next().unwrap();
    let found: Vec<_> = blocks(section)
        .into_iter()
        .filter(|(of, _)| *of == language)
        .map(|(_, code)| format!("{code}\n"))
        .collect();
    assert!(!found.is_empty(), "{heading} has no {language}");
    found
}
