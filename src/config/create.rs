//! `--create-config`: writes a default `relay.json`.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use super::advice;

/// The file that `--create-config` writes, byte for byte the one that the original relay writes.
pub const DEFAULT_FILE: &str = r#"{
    "MaxPeerCount": "100",
    "PeerAddress": "",
    "PeerIdleTimeout": "5",
    "PeerPort": "8070",
    "RouterAddress": "127.0.0.1",
    "RouterPort": "8060",
    "RouterPublicKey": "",
    "StatisticsEnabled": "false",
    "StatisticsInterval": "5"
}"#;

/// Why the default file was not written.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// A file exists, whatever its content.
    #[error("{0} already exists and is not overwritten; remove it first, or edit it")]
    Exists(PathBuf),
    /// A symbolic link leads to a file that does not exist.
    #[error("{0} is a link to a file that does not exist; remove it, or create that file")]
    Dangling(PathBuf),
    /// The file cannot be written.
    #[error("cannot write {path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

impl CreateError {
    /// What to do about it, to be appended to the error; empty if the error says it all.
    pub fn advice(&self, is_in_container: bool) -> &'static str {
        match self {
            Self::Io { error, .. } => advice::for_unwritable_file(error, is_in_container),
            Self::Exists(_) | Self::Dangling(_) => "",
        }
    }
}

/// Writes the default file, and creates its directory if that is missing.
///
/// # Errors
/// [`CreateError`].
pub fn create_default_file(path: &Path) -> Result<(), CreateError> {
    let failed = |error| CreateError::Io { path: path.to_owned(), error };
    if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    match File::create_new(path) {
        Ok(mut file) => file.write_all(DEFAULT_FILE.as_bytes()).map_err(|error| {
            // A partial file would only block the next attempt.
            let _ = fs::remove_file(path);
            failed(error)
        }),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => match path.exists() {
            true => Err(CreateError::Exists(path.to_owned())),
            false => Err(CreateError::Dangling(path.to_owned())),
        },
        Err(error) => Err(failed(error)),
    }
}
