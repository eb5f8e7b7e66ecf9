//! Files with secrets that every user of the machine can read.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::tls::Source;

use super::report::Report;
use super::settings::{self, SETTINGS};
use super::sources::Sources;

/// A file that too many can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposed {
    /// The file.
    pub path: PathBuf,
    /// What it holds.
    pub holds: String,
    /// Its permissions.
    pub mode: u32,
    /// Whether this process runs in a container, where "every user" may be nobody else.
    pub in_container: bool,
}

impl fmt::Display for Exposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, holds, mode, in_container } = self;
        let path = path.display();
        write!(f, "{path} holds {holds} and can be read by every user (mode {mode:04o})")?;
        if *in_container {
            f.write_str("; in a container that may be nobody else")
        } else {
            write!(f, "; let only the relay's user read it: chmod 600 {path}")
        }
    }
}

/// All files with a secret setting of `report`, and with the private key, that every user can read.
pub fn find(sources: &Sources, report: &Report) -> Vec<Exposed> {
    let variable = |name: &str| {
        let value = sources.environment.iter().find(|(n, _)| n == name).map(|(_, value)| value);
        value.filter(|value| !value.is_empty())
    };
    let relay_json = format!("file {}", sources.path.display());
    let mut files: Vec<(PathBuf, String)> = Vec::new();
    let mut in_relay_json = Vec::new();
    for setting in SETTINGS.iter().filter(|setting| setting.secret) {
        let Some(line) = report.settings.iter().find(|line| line.key == setting.key) else {
            continue;
        };
        let is_path = line.key.starts_with("MetricsTls")
            && !line.value.is_empty()
            && line.value != super::REDACTED;
        if is_path && let Source::File(path) = Source::new(&line.value) {
            files.push((path, line.key.to_owned()));
        } else if line.source == relay_json && !line.value.is_empty() {
            in_relay_json.push(line.key);
        } else if let Some(path) = variable(&format!("{}_FILE", settings::variable(line.key))) {
            files.push((path.into(), line.key.to_owned()));
        }
    }
    if !in_relay_json.is_empty() {
        files.insert(0, (sources.path.clone(), in_relay_json.join(", ")));
    }
    if let Some(path) = ["OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "OTEL_EXPORTER_OTLP_CLIENT_KEY"]
        .iter()
        .find_map(|name| variable(name))
    {
        files.push((path.into(), "the private key for the trace collector".into()));
    }
    let in_container = variable("KUBERNETES_SERVICE_HOST").is_some()
        || Path::new("/.dockerenv").exists()
        || Path::new("/run/.containerenv").exists();
    files
        .into_iter()
        .filter_map(|(path, holds)| {
            let mode = mode(&path)?;
            (mode & 0o004 != 0).then_some(Exposed { path, holds, mode, in_container })
        })
        .collect()
}

#[cfg(unix)]
fn mode(path: &Path) -> Option<u32> {
    use std::os::unix::fs::PermissionsExt;

    Some(std::fs::metadata(path).ok()?.permissions().mode() & 0o7777)
}

/// Elsewhere permissions are not a number.
#[cfg(not(unix))]
fn mode(_path: &Path) -> Option<u32> {
    None
}
