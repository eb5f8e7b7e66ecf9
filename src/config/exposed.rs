//! Finds files with secrets that every user of the machine can read.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::tls::PemSource;

use super::provenance::Provenance;
use super::report::ConfigReport;
use super::settings::{REDACTED, SETTINGS};
use super::sources::Sources;

/// A file with a secret that every user can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExposedFile {
    /// The file.
    pub path: PathBuf,
    /// The secrets in it, as a message names them.
    pub holds: String,
    /// The permissions of the file.
    pub mode: u32,
    /// The numeric ids of its user and its group.
    pub owner: (u32, u32),
    /// Whether this process runs in a container, where there may be no other user.
    pub is_in_container: bool,
}

impl fmt::Display for ExposedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, holds, mode, owner: (user, group), is_in_container } = self;
        let path = path.display();
        write!(f, "{path} holds {holds} and can be read by every user (mode {mode:04o})")?;
        if *is_in_container {
            return f.write_str("; in a container there may be no other user");
        }
        // After a chmod alone, a relay that runs as another user than the owner could no longer read it.
        write!(
            f,
            "; let only the relay's user read it. It belongs to user {}, group {}: if the relay runs as that \
             user, chmod 600 {path}; otherwise chown USER {path} && chmod 600 {path}, or chgrp GROUP {path} && chmod \
             640 {path}, with the relay's USER or GROUP",
            format_id(*user),
            format_id(*group)
        )
    }
}

/// Formats the id of a user or group. Only id 0 has the same name everywhere.
fn format_id(id: u32) -> String {
    if id == 0 { "0 (root)".to_owned() } else { id.to_string() }
}

/// A file with a secret, and who can read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileExposure {
    /// Not every user can read it.
    Private(PathBuf),
    /// Every user can read it.
    Exposed(ExposedFile),
    /// Its permissions are not known.
    Unknown {
        /// The file.
        path: PathBuf,
        /// The secrets in it, as a message names them.
        holds: String,
        /// Why the permissions are not known.
        why: String,
    },
}

/// Finds all files with a secret setting of `report`, or with a private key, that every user can read.
pub fn find(sources: &Sources, report: &ConfigReport) -> Vec<ExposedFile> {
    let files = inspect(sources, report, sources.is_in_container()).into_iter();
    files
        .filter_map(|file| match file {
            FileExposure::Exposed(exposed) => Some(exposed),
            FileExposure::Private(_) | FileExposure::Unknown { .. } => None,
        })
        .collect()
}

/// Finds all files with a secret setting of `report`, or with a private key, and looks at who can read them.
pub fn inspect(
    sources: &Sources,
    report: &ConfigReport,
    is_in_container: bool,
) -> Vec<FileExposure> {
    let variable = |name: &str| sources.variable(name);
    let mut files: Vec<(PathBuf, String)> = Vec::new();
    let mut in_relay_json = Vec::new();
    for setting in SETTINGS.iter().filter(|setting| setting.is_secret) {
        let Some(line) = report.settings.iter().find(|line| line.key == setting.key) else {
            continue;
        };
        let is_path = setting.is_pem && !line.value.is_empty() && line.value != REDACTED;
        if is_path && let PemSource::File(path) = PemSource::new(&line.value) {
            files.push((path, line.key.to_string()));
        } else if matches!(line.source, Provenance::File(_)) && !line.value.is_empty() {
            in_relay_json.push(line.key.name());
        } else if let Some(path) = variable(&format!("{}_FILE", line.key.variable())) {
            files.push((path.trim().into(), line.key.to_string()));
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
        .map(|(path, holds)| match read_permissions(&path) {
            Ok(FilePermissions { mode, owner }) if mode & 0o004 != 0 => {
                FileExposure::Exposed(ExposedFile { path, holds, mode, owner, is_in_container })
            }
            Ok(_) => FileExposure::Private(path),
            Err(error) => FileExposure::Unknown { path, holds, why: error.to_string() },
        })
        .collect()
}

struct FilePermissions {
    mode: u32,
    owner: (u32, u32),
}

#[cfg(unix)]
fn read_permissions(path: &Path) -> io::Result<FilePermissions> {
    use std::os::unix::fs::MetadataExt;

    let metadata = std::fs::metadata(path)?;
    Ok(FilePermissions { mode: metadata.mode() & 0o7777, owner: (metadata.uid(), metadata.gid()) })
}

/// Other systems have no numeric permissions.
#[cfg(not(unix))]
fn read_permissions(_path: &Path) -> io::Result<FilePermissions> {
    Err(io::Error::other("permissions are not checked on this system"))
}
