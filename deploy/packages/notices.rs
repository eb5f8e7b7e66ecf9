//! Collects the licences of the crates that are linked into the program, whose terms require that they accompany it.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

use serde::Deserialize;

/// What `cargo metadata` says about a crate.
#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    authors: Vec<String>,
    repository: Option<String>,
    manifest_path: PathBuf,
}

/// The answer of `cargo metadata`.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

/// The deepest directory of a crate in which licences are looked for: C code that a crate contains has its own.
const DEPTH: usize = 3;

/// Returns a document with every crate that the program contains, its licence, and the text of that. `target` is the system
/// that it is built for, by default this one.
///
/// # Errors
/// Fails if cargo does, or if a crate says nothing about its licence.
pub(crate) fn collect(target: Option<&str>) -> Result<String, Box<dyn Error>> {
    let linked = linked(target)?;
    let metadata = cargo(&["metadata", "--format-version=1"])?;
    let mut packages = serde_json::from_str::<Metadata>(&metadata)?.packages;
    packages.retain(|package| linked.contains(&format!("{} v{}", package.name, package.version)));
    if packages.len() != linked.len() {
        return Err(format!("cargo knows {} of {} crates", packages.len(), linked.len()).into());
    }
    packages.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    document(&packages)
}

/// Name and version of every crate that is linked into the program: no build scripts, macros or tests.
fn linked(target: Option<&str>) -> Result<Vec<String>, Box<dyn Error>> {
    let edges = "--edges=normal,no-proc-macro";
    let target = target.map(|target| format!("--target={target}"));
    let mut arguments =
        vec!["tree", "--package=aspia-relay", edges, "--prefix=none", "--format={p}"];
    arguments.extend(target.as_deref());
    let tree = cargo(&arguments)?;
    let own = format!("aspia-relay v{}", env!("CARGO_PKG_VERSION"));
    let mut crates: Vec<String> = tree
        .lines()
        .map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" "))
        .filter(|name| *name != own)
        .collect();
    crates.sort();
    crates.dedup();
    Ok(crates)
}

/// What a subcommand of cargo prints.
fn cargo(arguments: &[&str]) -> Result<String, Box<dyn Error>> {
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(program).args(arguments).arg("--locked").output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("cargo {}: {said}", arguments.join(" ")).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn document(packages: &[Package]) -> Result<String, Box<dyn Error>> {
    let mut list = String::new();
    // Crates with the same text share it.
    let mut texts: BTreeMap<String, (String, Vec<String>)> = BTreeMap::new();
    for package in packages {
        let Package { name, version, .. } = package;
        let license = package.license.as_deref();
        let license =
            license.ok_or_else(|| format!("{name} {version} does not name its licence"))?;
        let _ = writeln!(list, "{name} {version}: {license}");
        let directory = package.manifest_path.parent().ok_or("a manifest without a directory")?;
        let mut files = Vec::new();
        find(directory, 0, &mut files)?;
        files.sort();
        for file in &files {
            let text = String::from_utf8_lossy(&fs::read(file)?).into_owned();
            let same = text.split_whitespace().collect::<Vec<_>>().join(" ");
            let path = file.strip_prefix(directory)?.display();
            let (_, users) = texts.entry(same).or_insert((text, Vec::new()));
            users.push(format!("{name} {version} ({path})"));
        }
        if files.is_empty() {
            let _ = writeln!(
                list,
                "    It contains no text of its licence. By {}; {}",
                if package.authors.is_empty() {
                    "its authors".into()
                } else {
                    package.authors.join(", ")
                },
                package.repository.as_deref().unwrap_or("https://crates.io"),
            );
        }
    }
    let mut document = format!(
        "aspia_relay contains the Rust standard library (MIT or Apache-2.0, https://github.com/rust-lang/rust) and the \
         following crates.\nThe texts of their licences follow, each once.\n\n{list}"
    );
    for (text, users) in texts.into_values() {
        let _ =
            write!(document, "\n{}\n{}\n\n{}\n", "=".repeat(80), users.join("\n"), text.trim_end());
    }
    Ok(document)
}

/// Collects the files with licences and notices.
fn find(directory: &Path, depth: usize, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if depth < DEPTH {
                find(&entry.path(), depth + 1, files)?;
            }
        } else if is_notice(&entry.file_name().to_string_lossy()) {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// Whether a file of this name holds a licence or a notice: `LICENSE-MIT`, `COPYING.txt`, but not `license.rs`.
fn is_notice(name: &str) -> bool {
    let (stem, extension) = name.split_once('.').unwrap_or((name, ""));
    let is_text = ["", "txt", "md"].contains(&extension.to_lowercase().as_str())
        // As in LICENSE.Apache-2.0.
        || extension.starts_with(|c: char| c.is_uppercase());
    let beginning = stem.to_uppercase();
    let kinds = ["LICENSE", "LICENCE", "UNLICENSE", "COPYING", "COPYRIGHT", "NOTICE"];
    is_text && kinds.iter().any(|kind| beginning.starts_with(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_linked_crate_has_its_licence() {
        let document = collect(None).unwrap();
        let (list, texts) = document.split_once(&"=".repeat(80)).unwrap();
        for name in ["tokio", "rustls", "aws-lc-sys", "prometheus"] {
            assert!(list.lines().any(|line| line.starts_with(&format!("{name} "))), "{name}");
            assert!(texts.contains(&format!("\n{name} ")), "{name}");
        }
        // Code in C, inside a crate.
        assert!(texts.contains("(aws-lc/LICENSE)"));
        assert!(texts.contains("WITHOUT WARRANTY OF ANY KIND") && texts.contains("Apache License"));
        // What only builds or tests the program is not in it.
        for name in ["serde_derive", "cc", "clap_mangen", "proptest", "relay-lab", "aspia-relay"] {
            assert!(!list.lines().any(|line| line.starts_with(&format!("{name} "))), "{name}");
        }
    }

    #[test]
    fn crates_of_another_system_are_those_that_are_linked_there() {
        let lists = ["x86_64-pc-windows-gnu", "x86_64-unknown-linux-gnu"].map(|target| {
            let document = collect(Some(target)).unwrap();
            document.split_once(&"=".repeat(80)).unwrap().0.to_owned()
        });
        let contains = |name: &str| {
            lists
                .each_ref()
                .map(|list| list.lines().any(|line| line.starts_with(&format!("{name} "))))
        };
        assert_eq!(contains("tokio"), [true, true]);
        assert_eq!(contains("windows-service"), [true, false]);
        assert_eq!(contains("sd-notify"), [false, true]);
    }

    #[test]
    fn notices_are_known_by_name() {
        for name in [
            "LICENSE",
            "LICENSE-MIT",
            "license-apache",
            "COPYING.txt",
            "LICENSE.Apache-2.0",
            "NOTICE.md",
        ] {
            assert!(is_notice(name), "{name}");
        }
        for name in ["license.rs", "README.md", "copying.html", "LICENSE.py"] {
            assert!(!is_notice(name), "{name}");
        }
    }

    #[test]
    fn crate_without_a_licence_is_an_error() {
        let package = |license: Option<&str>| Package {
            name: "a".into(),
            version: "1.0.0".into(),
            license: license.map(Into::into),
            authors: vec!["Somebody".into()],
            repository: None,
            manifest_path: "deploy/systemd/Cargo.toml".into(),
        };
        let error = document(&[package(None)]).unwrap_err().to_string();
        assert!(error.contains("a 1.0.0 does not name its licence"), "{error}");
        let text = document(&[package(Some("MIT"))]).unwrap();
        assert!(text.contains("a 1.0.0: MIT\n    It contains no text"), "{text}");
    }
}
