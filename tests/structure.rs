//! The structure that `src/lib.rs` describes: arrows point down, no module is part of a cycle, every file says
//! what it is for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// From the top down; those in one line never know each other.
const LAYERS: &[&[&str]] = &[
    &["app", "doctor"],
    &["admin", "systemd", "service"],
    &["handle"],
    &["router", "peer"],
    &["workers", "forward"],
    &["state"],
    &["link"],
    &["cli"],
    &["open_files", "memory", "node"],
    &["config"],
    &["trace"],
    &["dial"],
    &["wire", "crypto", "tls"],
    &["listen"],
    &["secret", "log", "metrics", "tcp_info", "clock", "deadline", "heap", "process", "signals"],
    &["printable"],
];

/// Every module of the library by its path (`peer::session`), with its code but for tests and comments.
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
                let path = code[at + start.len()..]
                    .split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'))
                    .next()
                    .unwrap();
                used.extend(resolve(&prefix, path, &modules));
            }
        }
        assert!(
            !code.contains("crate::{") && !code.contains("super::{self"),
            "{module}: one line for each module that is used, so that this test can read it"
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
fn arrows_point_down() {
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
fn no_file_is_part_of_a_cycle() {
    let arrows = arrows();
    for start in arrows.keys() {
        let mut seen = BTreeSet::new();
        let mut next: Vec<&String> = arrows[start].iter().collect();
        while let Some(module) = next.pop() {
            assert_ne!(module, start, "{start} comes back to itself: {:?}", arrows[start]);
            if seen.insert(module) {
                next.extend(&arrows[module]);
            }
        }
    }
}
