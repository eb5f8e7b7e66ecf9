//! Files with secrets that every user of the machine can read.

use std::fmt;
use std::io;
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
    /// Its user and its group, by their numbers.
    pub owner: (u32, u32),
    /// Whether this process runs in a container, where "every user" may be nobody else.
    pub in_container: bool,
}

impl fmt::Display for Exposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, holds, mode, owner: (user, group), in_container } = self;
        let path = path.display();
        write!(f, "{path} holds {holds} and can be read by every user (mode {mode:04o})")?;
        if *in_container {
            return f.write_str("; in a container that may be nobody else");
        }
        // A relay that runs as another user than the owner could not read it any more after a chmod alone.
        write!(
            f,
            "; let only the relay's user read it. It belongs to user {}, group {}: where the relay runs as that \
             user, chmod 600 {path}; otherwise chown USER {path} && chmod 600 {path}, or chgrp GROUP {path} && chmod \
             640 {path}, with the relay's USER or GROUP",
            named(*user),
            named(*group)
        )
    }
}

/// A number of a user or group, with the one name that is the same everywhere.
fn named(id: u32) -> String {
    if id == 0 { "0 (root)".to_owned() } else { id.to_string() }
}

/// A file with a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretFile {
    /// Not everybody can read it.
    Kept(PathBuf),
    /// Everybody can.
    Exposed(Exposed),
    /// That cannot be told, for this reason.
    Unknown {
        /// The file.
        path: PathBuf,
        /// What it holds.
        holds: String,
        /// Why.
        why: String,
    },
}

/// All files with a secret setting of `report`, and with the private key, that every user can read.
pub fn find(sources: &Sources, report: &Report) -> Vec<Exposed> {
    let files = look(sources, report, sources.in_container()).into_iter();
    files
        .filter_map(|file| match file {
            SecretFile::Exposed(exposed) => Some(exposed),
            SecretFile::Kept(_) | SecretFile::Unknown { .. } => None,
        })
        .collect()
}

/// All files with a secret setting of `report`, and with the private key, and who can read them.
pub fn look(sources: &Sources, report: &Report, in_container: bool) -> Vec<SecretFile> {
    let variable = |name: &str| sources.variable(name);
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
            files.push((path.trim().into(), line.key.to_owned()));
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
    files
        .into_iter()
        .map(|(path, holds)| match permissions(&path) {
            Ok(Permissions { mode, owner }) if mode & 0o004 != 0 => {
                SecretFile::Exposed(Exposed { path, holds, mode, owner, in_container })
            }
            Ok(_) => SecretFile::Kept(path),
            Err(error) => SecretFile::Unknown { path, holds, why: error.to_string() },
        })
        .collect()
}

struct Permissions {
    mode: u32,
    owner: (u32, u32),
}

#[cfg(unix)]
fn permissions(path: &Path) -> io::Result<Permissions> {
    use std::os::unix::fs::MetadataExt;

    let metadata = std::fs::metadata(path)?;
    Ok(Permissions { mode: metadata.mode() & 0o7777, owner: (metadata.uid(), metadata.gid()) })
}

/// Elsewhere permissions are not a number.
#[cfg(not(unix))]
fn permissions(_path: &Path) -> io::Result<Permissions> {
    Err(io::Error::other("permissions are not looked at on this system"))
}
