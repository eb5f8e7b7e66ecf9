//! Checks that references resolve: the headings of `docs/protocol.md` that comments cite, and the files, types and tests that
//! `ARCHITECTURE.md` names.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const PROTOCOL: &str = "docs/protocol.md";

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The text of every Rust file below `directory`.
fn sources(directory: &str) -> Vec<(PathBuf, String)> {
    fn collect(directory: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    let mut found = Vec::new();
    collect(&repository().join(directory), &mut found);
    found
}

fn document(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap()
}

/// The headings that `text` cites: `docs/protocol.md, "One", "Two" and "Three"`. Lines of comments may break anywhere.
fn cited(text: &str) -> Vec<String> {
    let comments: Vec<&str> =
        text.lines().map(|line| line.trim_start().trim_start_matches(['/', '!']).trim()).collect();
    let text = comments.join(" ");
    let mut headings = Vec::new();
    for (at, _) in text.match_indices(PROTOCOL) {
        let mut rest = &text[at + PROTOCOL.len()..];
        while let Some((between, quoted)) = rest.split_once('"') {
            // A citation ends with its sentence, or where something else is quoted.
            if between.len() > 80 || between.contains(['.', ';', '`', '(', ')']) {
                break;
            }
            let (heading, after) = quoted.split_once('"').unwrap();
            headings.push(heading.to_owned());
            rest = after;
        }
    }
    headings
}

#[test]
fn cited_headings_of_the_protocol_exist() {
    let protocol = document(PROTOCOL);
    let headings: BTreeSet<&str> = protocol
        .lines()
        .filter(|line| line.starts_with("##"))
        .map(|line| line.trim_start_matches('#').trim())
        .collect();
    let mut citations = 0;
    for (path, text) in sources("src") {
        let cited = cited(&text);
        assert!(
            text.matches(PROTOCOL).count() <= cited.len(),
            "{} cites {PROTOCOL} without a heading",
            path.display()
        );
        for heading in &cited {
            assert!(
                headings.contains(heading.as_str()),
                "{} cites \"{heading}\", which {PROTOCOL} does not have",
                path.display()
            );
        }
        citations += cited.len();
    }
    assert!(citations >= 13, "only {citations} citations were found");
}

/// Whether `text` contains `word` as a whole word.
fn has_word(text: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        !text[..at].ends_with(is_part) && !text[at + word.len()..].starts_with(is_part)
    })
}

/// The texts between backticks in `text`, outside code blocks.
fn quoted(text: &str) -> BTreeSet<&str> {
    let prose = text.split("```").step_by(2);
    prose.flat_map(|part| part.split('`').skip(1).step_by(2)).collect()
}

#[test]
fn files_types_and_tests_named_in_architecture_md_exist() {
    let architecture = document("ARCHITECTURE.md");
    let code: String = ["src", "tests"]
        .iter()
        .flat_map(|directory| sources(directory))
        .map(|(_, text)| text)
        .collect();
    let mut missing = Vec::new();
    for name in quoted(&architecture) {
        let is_path =
            ["src/", "tests/", "docs/", "deploy/", "helm/"].iter().any(|top| name.starts_with(top));
        let is_identifier = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        // The name of a test or a type, but not a plain word such as `signals`.
        let is_named =
            is_identifier && (name.contains('_') || name.starts_with(|c: char| c.is_uppercase()));
        let exists = match (is_path, is_named) {
            (true, _) => repository().join(name).exists(),
            (false, true) => has_word(&code, name),
            (false, false) => true,
        };
        if !exists {
            missing.push(name);
        }
    }
    assert!(missing.is_empty(), "ARCHITECTURE.md names things that do not exist: {missing:?}");
}
