//! Checks the structure that `ARCHITECTURE.md` describes (modules use only modules of lower layers, and none is part of a
//! cycle) and the style of `CONTRIBUTING.md` (files and functions are short, and every type has a name of its own).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The layers from top to bottom, as in the module map of `ARCHITECTURE.md`. Modules of one layer never use each other.
const LAYERS: &[&[&str]] = &[
    &["command"],
    &["bootstrap", "doctor"],
    &["app"],
    &["admin", "systemd", "service"],
    &["handover"],
    &["handle"],
    &["router", "peer", "headroom"],
    &["workers", "forward"],
    &["state"],
    &["link"],
    &["cli"],
    &["open_files", "memory", "node", "probe"],
    &["config"],
    &["trace"],
    &["dial"],
    &["wire", "crypto", "tls"],
    &["listen", "fd_store"],
    &[
        "exit", "secret", "log", "metrics", "tcp_info", "clock", "deadline", "heap", "process",
        "signals", "sync",
    ],
    &["printable"],
];

/// The code of every module of the library, without tests and comments, by module path (`peer::session`).
fn modules() -> BTreeMap<String, String> {
    fn collect(directory: &Path, prefix: &str, modules: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                collect(&path, &format!("{prefix}{name}::"), modules);
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("//!"), "{} does not say what it is for", path.display());
            if ["main", "lib"].contains(&name.as_str()) && prefix.is_empty() {
                continue;
            }
            let module = match name.as_str() {
                "mod" => prefix.trim_end_matches("::").to_owned(),
                name => format!("{prefix}{name}"),
            };
            let code: Vec<&str> = text
                .split("#[cfg(test)]")
                .next()
                .unwrap()
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
                .collect();
            modules.insert(module, code.join("\n"));
        }
    }
    let mut modules = BTreeMap::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    collect(&source, "", &mut modules);
    modules
}

/// The modules that each module names.
fn arrows() -> BTreeMap<String, BTreeSet<String>> {
    let modules = modules();
    let mut arrows = BTreeMap::new();
    for (module, code) in &modules {
        let mut used = BTreeSet::new();
        for (start, prefix) in [("crate::", String::new()), ("super::", parent(module))] {
            for (at, _) in code.match_indices(start) {
                // A visibility is not a use.
                if code[..at].ends_with("pub(in ") {
                    continue;
                }
                let path = code[at + start.len()..]
                    .split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'))
                    .next()
                    .unwrap();
                used.extend(resolve(&prefix, path, &modules));
            }
        }
        assert!(
            !code.contains("crate::{") && !code.contains("super::{self"),
            "{module}: import each module on a line of its own, so that this test can read it"
        );
        // A module that has children names them without a prefix, in a `use` or in a path.
        for child in modules.keys().filter(|child| parent(child) == *module) {
            let name = format!("{}::", child.rsplit("::").next().unwrap());
            let named = code.match_indices(&name).any(|(at, _)| {
                !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
            });
            if named {
                used.insert(child.clone());
            }
        }
        used.remove(module);
        arrows.insert(module.clone(), used);
    }
    arrows
}

fn parent(module: &str) -> String {
    module.rsplit_once("::").map_or(String::new(), |(parent, _)| parent.to_owned())
}

/// The longest beginning of `path` below `prefix` that is a module.
fn resolve(prefix: &str, path: &str, modules: &BTreeMap<String, String>) -> Option<String> {
    let mut whole: Vec<&str> =
        prefix.split("::").chain(path.split("::")).filter(|part| !part.is_empty()).collect();
    let least = prefix.split("::").filter(|part| !part.is_empty()).count();
    while whole.len() >= least.max(1) {
        let candidate = whole.join("::");
        if modules.contains_key(&candidate) {
            return Some(candidate);
        }
        whole.pop();
    }
    None
}

fn layer(module: &str) -> usize {
    let top = module.split("::").next().unwrap();
    LAYERS
        .iter()
        .position(|layer| layer.contains(&top))
        .unwrap_or_else(|| panic!("{top} is in no layer"))
}

#[test]
fn modules_use_only_lower_layers() {
    let arrows = arrows();
    assert!(arrows.values().map(BTreeSet::len).sum::<usize>() > 40, "{arrows:#?}");
    for (module, used) in &arrows {
        for other in used {
            let same = module.split("::").next() == other.split("::").next();
            assert!(
                same || layer(module) < layer(other),
                "{module} uses {other}, which is not below it"
            );
        }
    }
}

#[test]
fn no_module_is_part_of_a_cycle() {
    let arrows = arrows();
    for start in arrows.keys() {
        let mut seen = BTreeSet::new();
        let mut next: Vec<&String> = arrows[start].iter().collect();
        while let Some(module) = next.pop() {
            assert_ne!(module, start, "{start} is part of a cycle: {:?}", arrows[start]);
            if seen.insert(module) {
                next.extend(&arrows[module]);
            }
        }
    }
}

#[test]
fn module_map_of_the_architecture_lists_the_layers() {
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md");
    let text = std::fs::read_to_string(text).unwrap();
    let (_, map) = text.split_once("\n| layer | modules | contents |\n").unwrap();
    let rows = map.lines().skip(1).take_while(|line| line.starts_with('|'));
    let mapped: Vec<BTreeSet<&str>> = rows
        .map(|row| row.split('|').nth(2).unwrap().split('`').skip(1).step_by(2).collect())
        .collect();
    let layers: Vec<BTreeSet<&str>> =
        LAYERS.iter().map(|layer| layer.iter().copied().collect()).collect();
    assert_eq!(mapped, layers);
}

/// These programs do not use the built-in test harness, and without it the compiler silently drops functions with such an
/// attribute.
#[test]
fn programs_with_their_own_harness_have_no_test_attributes() {
    let mut seen = 0;
    for folder in ["tests/system", "tests/alone"] {
        for (file, text) in rust_files(folder) {
            for attribute in ["#[test]", "#[tokio::test"] {
                assert!(!text.contains(attribute), "{attribute} in {folder}/{file}");
            }
            seen += 1;
        }
    }
    assert!(seen > 10, "{seen}");
}

/// Longest file of the library, in lines, with its unit tests.
const MAX_FILE: usize = 720;
/// Longest file of the library without its unit tests.
const MAX_FILE_WITHOUT_TESTS: usize = 500;
/// Longest function outside tests.
const MAX_FUNCTION: usize = 60;
/// Deepest nesting of conditions, loops, matches, closures and async blocks in a function.
const MAX_NESTING: usize = 5;
/// Longest `main.rs`.
const MAX_MAIN: usize = 80;
/// Alternative files, of which each system compiles one. They define the same types.
const ALTERNATIVES: &[[&str; 2]] = &[["forward/pipe.rs", "forward/no_pipe.rs"]];

/// Rust files below a directory of the repository, by their paths in it.
fn rust_files(directory: &str) -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let (mut files, mut directories) = (BTreeMap::new(), vec![root.clone()]);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() && path.file_name().unwrap() != "target" {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                files.insert(name, std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    files
}

/// The part of a file before its unit tests.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap()
}

/// The code without comments and the content of literals. Line numbers stay the same.
fn bare(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else {
            literal(rest, code.chars().next_back())
        };
        if skipped == 0 {
            code.push(character);
            rest = &rest[character.len_utf8()..];
        } else {
            code.extend(rest[..skipped].chars().filter(|character| *character == '\n'));
            rest = &rest[skipped..];
        }
    }
    code
}

/// Length of the string or character literal at the beginning of `rest`; 0 if there is none.
fn literal(rest: &str, before: Option<char>) -> usize {
    if let Some(character) = rest.strip_prefix('\'') {
        let mut characters = character.char_indices();
        let escaped = matches!(characters.next(), Some((_, '\\')));
        // A lifetime has no quote after its first letter.
        let end = characters.nth(usize::from(escaped)).filter(|_| !escaped);
        return match end {
            Some((end, '\'')) => end + 2,
            _ if escaped => character[2..].find('\'').map_or(0, |end| end + 4),
            _ => 0,
        };
    }
    let is_in_word = before.is_some_and(|before| before.is_alphanumeric() || before == '_');
    let unprefixed = if is_in_word { rest } else { rest.trim_start_matches(['b', 'c']) };
    let raw = unprefixed.strip_prefix('r').filter(|_| !is_in_word);
    let after_r = raw.unwrap_or(unprefixed);
    let hashes = after_r.len() - after_r.trim_start_matches('#').len();
    let Some(content) = after_r[hashes..].strip_prefix('"') else { return 0 };
    let start = rest.len() - content.len();
    if raw.is_some() {
        let end = format!("\"{}", "#".repeat(hashes));
        return start + content.find(&end).unwrap() + end.len();
    }
    let mut escaped = false;
    let end = content.find(|character| {
        let ends = character == '"' && !escaped;
        escaped = character == '\\' && !escaped;
        ends
    });
    start + end.unwrap() + 1
}

/// The functions of formatted code: name, line, and the lines of each.
fn functions(code: &str) -> Vec<(String, usize, String)> {
    let lines: Vec<&str> = code.lines().collect();
    let mut functions = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        let Some((before, after)) = line.split_once("fn ") else { continue };
        let is_definition = before.split_whitespace().all(|word| {
            ["const", "async", "unsafe", "extern", "pub", "(in"].contains(&word)
                || word.starts_with("pub(")
                || word.ends_with(')')
        });
        if !is_definition {
            continue;
        }
        let name = after.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let indent = &line[..line.len() - line.trim_start().len()];
        let ends = |line: &&str| {
            let own = line.strip_prefix(indent).is_some_and(|rest| !rest.starts_with(' '));
            own && line.ends_with(['}', ';'])
        };
        let length = lines[number..].iter().position(ends).unwrap_or(0) + 1;
        functions.push((name, number + 1, lines[number..number + length].join("\n")));
    }
    functions
}

/// Deepest nesting of control flow in a function.
fn nesting(function: &str) -> usize {
    let is_control = |before: &str| {
        let keywords = ["if", "else", "match", "for", "while", "loop", "async"];
        let words = |c: char| !(c.is_alphanumeric() || c == '_');
        before.trim_end().ends_with('|') || before.split(words).any(|word| keywords.contains(&word))
    };
    // The body of the function itself is the first block.
    let (mut blocks, mut deepest, mut before) = (Vec::new(), 0, String::new());
    for character in function.chars() {
        match character {
            '{' => blocks.push(!blocks.is_empty() && is_control(&before)),
            '}' => drop(blocks.pop()),
            ';' => {}
            character => {
                before.push(character);
                continue;
            }
        }
        before.clear();
        deepest = deepest.max(blocks.iter().filter(|is_control| **is_control).count());
    }
    deepest
}

#[test]
fn main_is_short() {
    let lines = rust_files("src")["main.rs"].lines().count();
    assert!(lines <= MAX_MAIN, "main.rs has {lines} lines");
}

#[test]
fn files_are_short() {
    for (file, text) in rust_files("src") {
        let (all, code) = (text.lines().count(), without_tests(&text).lines().count());
        assert!(all <= MAX_FILE, "{file} has {all} lines");
        assert!(code <= MAX_FILE_WITHOUT_TESTS, "{file} has {code} lines without its tests");
    }
}

#[test]
fn functions_are_short_and_flat() {
    let mut count = 0;
    for (file, text) in rust_files("src").into_iter().chain(rust_files("tests/lab/src")) {
        for (name, line, function) in functions(&bare(without_tests(&text))) {
            let (lines, nesting) = (function.lines().count(), nesting(&function));
            assert!(lines <= MAX_FUNCTION, "{name} ({file}:{line}) has {lines} lines");
            assert!(nesting <= MAX_NESTING, "{name} ({file}:{line}) nests {nesting} deep");
            count += 1;
        }
    }
    assert!(count > 1000, "{count}");
}

#[test]
fn every_type_has_a_name_of_its_own() {
    let mut types: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (file, text) in rust_files("src") {
        for line in bare(without_tests(&text)).lines() {
            let mut words = line.split_whitespace().skip_while(|word| word.starts_with("pub"));
            // An indented `type` is an associated type.
            let is_type = match words.next() {
                Some("struct" | "enum" | "trait" | "union") => true,
                Some("type") => !line.starts_with(' '),
                _ => false,
            };
            let name = words.next().filter(|_| is_type).unwrap_or_default();
            let name: String = name.chars().take_while(|c| c.is_alphanumeric()).collect();
            if !name.is_empty() {
                let is_new = types.entry(name.clone()).or_default().insert(file.clone());
                assert!(is_new, "{file} has two types {name}");
            }
        }
    }
    assert!(types.len() > 300, "{}", types.len());
    for files in types.values_mut() {
        for [one, other] in ALTERNATIVES {
            if files.contains(*one) {
                files.remove(*other);
            }
        }
    }
    types.retain(|_, files| files.len() > 1);
    assert!(types.is_empty(), "types with the same name: {types:#?}");
}

#[test]
fn every_file_says_what_it_is_for() {
    for directory in ["src", "tests", "deploy"] {
        for (file, text) in rust_files(directory) {
            assert!(text.starts_with("//!"), "{directory}/{file} does not begin with //!");
        }
    }
}

#[test]
fn style_checks_read_code_correctly() {
    let code = bare(
        "fn a<'a>(b: char) { // {\n    match b { '{' | '\\'' => \"{\\\"\", _ => r#\"{\"#, }\n}\n",
    );
    assert_eq!(code, "fn a<'a>(b: char) { \n    match b {  |  => , _ => , }\n}\n");
    let code = "fn a() {\n    if b {\n        for c in d {}\n    }\n}\nfn e();\n";
    let found: Vec<_> = functions(code).into_iter().map(|(name, line, _)| (name, line)).collect();
    assert_eq!(found, [("a".to_owned(), 1), ("e".to_owned(), 6)]);
    assert_eq!(nesting(&functions(code)[0].2), 2);
}
