//! The documents: every relative link and anchor has a target, everything that they name exists, and the README stays short.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use aspia_relay::cli::Arguments;
use aspia_relay::config::settings::{SETTINGS, SettingKey};
use clap::CommandFactory;

const README_LINES: usize = 150;
/// Environment variables that are neither settings nor belong to the log.
const OTHER_VARIABLES: [&str; 3] =
    ["ASPIA_RELAY_CONFIG", "ASPIA_RELAY_REVISION", "ASPIA_RELAY_TEST_NO_SKIP"];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Collects the files below a directory, except build output and local files.
fn collect_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let path = entry.path();
        let name = entry.file_name().into_string().unwrap();
        let is_hidden =
            name.starts_with('.') && ![".ci", ".github", ".env.example"].contains(&&*name);
        let is_local = ["config", "secrets"].map(|name| repository().join(name)).contains(&path);
        if is_hidden || is_local || name == "target" {
            continue;
        }
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            collect_files(&path, found);
        } else if kind.is_file() {
            found.push(path);
        }
    }
}

fn files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    collect_files(repository(), &mut found);
    found
}

/// Every Markdown file by its path in the repository.
fn documents() -> BTreeMap<PathBuf, String> {
    let is_document = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "md");
    let files = files().into_iter().filter(is_document);
    files
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            (path.strip_prefix(repository()).unwrap().to_owned(), text)
        })
        .collect()
}

/// Lines outside of code blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

/// A line without its code spans.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect()
}

/// The anchors that GitHub gives to the headings of a text.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for line in prose(text).filter(|line| line.starts_with('#')) {
        let Some((_, heading)) = line.split_once("# ") else { continue };
        // Only the text of a link counts.
        let mut title = String::new();
        let mut rest = heading;
        while let Some((before, target)) = rest.split_once("](") {
            title += before;
            rest = target.split_once(')').map_or("", |(_, after)| after);
        }
        title += rest;
        let keeps = |c: &char| c.is_alphanumeric() || [' ', '-', '_'].contains(c);
        let title: String = title.trim().to_lowercase().chars().filter(keeps).collect();
        let anchor = title.replace(' ', "-");
        let count = seen.entry(anchor.clone()).or_default();
        anchors.insert(if *count == 0 { anchor } else { format!("{anchor}-{count}") });
        *count += 1;
    }
    anchors
}

/// The targets of the links and images of a text.
fn targets(text: &str) -> Vec<String> {
    let prose = prose(text).map(without_code).collect::<Vec<_>>().join("\n");
    let inline = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    let mut targets: Vec<String> = inline.map(|(target, _)| target.to_owned()).collect();
    let definitions = prose.lines().filter(|line| line.starts_with('['));
    targets.extend(definitions.filter_map(|line| Some(line.split_once("]: ")?.1.to_owned())));
    targets
}

/// A path without `.` and `..`.
fn normalized(path: &Path) -> PathBuf {
    let mut normalized = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                assert!(normalized.pop(), "{} leaves the repository", path.display());
            }
            Component::CurDir => {}
            other => normalized.push(other),
        }
    }
    normalized
}

/// Why a link of a document is broken, if it is.
fn broken(documents: &BTreeMap<PathBuf, String>, from: &Path, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let file = if path.is_empty() {
        from.to_owned()
    } else {
        normalized(&from.parent().unwrap().join(path))
    };
    if !repository().join(&file).exists() {
        return Some(format!("{}: {target}: there is no {}", from.display(), file.display()));
    }
    if anchor.is_empty() {
        return None;
    }
    let Some(text) = documents.get(&file) else {
        return Some(format!("{}: {target}: {} has no headings", from.display(), file.display()));
    };
    let exists = anchors(text).contains(anchor);
    (!exists).then(|| format!("{}: {target}: no such heading", from.display()))
}

#[test]
fn every_link_leads_to_an_existing_file_and_heading() {
    let documents = documents();
    let mut problems = Vec::new();
    let mut links = 0;
    for (from, text) in &documents {
        for target in targets(text) {
            links += 1;
            problems.extend(broken(&documents, from, &target));
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
    assert!(links > 100, "{links}");
}

#[test]
fn readme_is_short() {
    let lines = documents()[Path::new("README.md")].lines().count();
    assert!(lines <= README_LINES, "README.md has {lines} lines of at most {README_LINES}");
}

#[test]
fn readme_names_every_document() {
    let documents = documents();
    let readme = &documents[Path::new("README.md")];
    for document in documents.keys().filter(|path| path.starts_with("docs")) {
        // Paths in links have slashes on every system.
        let link = document.to_str().unwrap().replace('\\', "/");
        assert!(readme.contains(&format!("]({link})")), "README.md has no link to {link}");
    }
}

/// Comments, messages and scripts name documents by their paths; the documents themselves link to them.
#[test]
fn every_document_that_a_source_names_exists() {
    let is_path = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    let mut problems = Vec::new();
    for file in files() {
        if file.extension().is_some_and(|extension| extension == "md") {
            continue;
        }
        let Ok(text) = fs::read_to_string(&file) else { continue };
        for (place, _) in text.match_indices("docs/") {
            let rest = &text[place + "docs/".len()..];
            let name = &rest[..rest.find(|c| !is_path(c)).unwrap_or(rest.len())];
            // A full stop may follow.
            let Some((stem, _)) = name.split_once(".md") else { continue };
            let document = format!("docs/{stem}.md");
            if !repository().join(&document).exists() {
                problems.push(format!("{}: {document}", file.display()));
            }
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn every_variable_and_key_that_documents_name_exists() {
    let mut known: BTreeSet<String> = BTreeSet::new();
    for setting in SETTINGS {
        let variable = setting.key.variable();
        known.insert(format!("{variable}_FILE"));
        known.insert(variable);
    }
    known.extend(OTHER_VARIABLES.iter().chain(aspia_relay::log::VARIABLES).map(|&v| v.to_owned()));
    let is_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    for (path, text) in documents() {
        if path == Path::new("CHANGELOG.md") {
            continue;
        }
        for word in text.split(|c| !is_name(c)).filter(|word| word.starts_with("ASPIA_")) {
            // A family: ASPIA_RELAY_….
            let is_known = known.contains(word) || word.ends_with('_');
            assert!(is_known, "{}: {word}", path.display());
        }
        for block in text.split("```json\n").skip(1) {
            let block = block.split("```").next().unwrap();
            let keys =
                block.lines().filter_map(|line| line.trim().strip_prefix('"')?.split_once("\":"));
            for (key, _) in keys.filter(|(key, _)| !key.starts_with('_')) {
                assert!(SettingKey::find(key).is_some(), "{}: {key}", path.display());
            }
        }
    }
}

#[test]
fn documentation_names_every_argument() {
    let documents = documents();
    let document = &documents[Path::new("docs/configuration.md")];
    for argument in Arguments::command().get_arguments() {
        let long = format!("`--{}", argument.get_long().unwrap());
        assert!(document.contains(&long), "docs/configuration.md does not name {long}");
    }
}

#[test]
fn anchors_are_computed_as_github_does() {
    let text = "# The `relay.json` file\n## What differs, and why\n```\n# no heading\n```\n## [A link](x.md)\n\
                ### Twice\n### Twice\n## Routers 2.x and 3.x\n";
    let expected = [
        "a-link",
        "routers-2x-and-3x",
        "the-relayjson-file",
        "twice",
        "twice-1",
        "what-differs-and-why",
    ];
    assert_eq!(anchors(text).into_iter().collect::<Vec<_>>(), expected);
}

/// The text of the sources, with continued string literals joined into one line.
fn sources() -> String {
    let is_source = |file: &PathBuf| file.starts_with(repository().join("src"));
    let texts = files().into_iter().filter(is_source).map(|file| fs::read_to_string(file).unwrap());
    let mut joined = String::new();
    for line in texts.collect::<Vec<_>>().join("\n").lines() {
        match line.strip_suffix('\\') {
            Some(begin) => joined += begin.trim_start(),
            None => joined = joined + line.trim_start() + "\n",
        }
    }
    joined
}

/// Operators search these tables for lines of their log, and for what a command said.
#[test]
fn troubleshooting_quotes_what_the_program_logs() {
    let documents = documents();
    let document = &documents[Path::new("docs/troubleshooting.md")];
    let section = |heading: &str| {
        let (_, section) = document.split_once(&format!("\n## {heading}\n")).unwrap();
        section.split("\n## ").next().unwrap()
    };
    let sections = section("When the link does not come up").lines();
    let sections = sections.chain(section("When a command finds no relay").lines());
    let sections = sections.chain(section("When peers do not come through").lines());
    let sources = sources();
    let mut quotes = 0;
    for row in sections.filter(|line| line.starts_with("| `")) {
        let cell = row.split('|').nth(1).unwrap();
        for quote in cell.split('`').skip(1).step_by(2) {
            quotes += 1;
            // An ellipsis stands for a part that varies.
            for part in quote.split('…').map(str::trim) {
                assert!(sources.contains(part), "the program never logs {part:?}");
            }
        }
    }
    assert!(quotes > 20, "{quotes}");
}
