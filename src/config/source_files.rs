//! The files that settings come from: `relay.json`, and those that `_FILE` variables name, as they were at one moment.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::crypto;
use crate::secret::Secret;

use super::settings::SETTINGS;
use super::sources::Sources;

/// The largest `relay.json` that is read, in bytes.
const MAX_CONFIG_FILE: u64 = 1024 * 1024;
/// The largest secret file that is read, in bytes: larger than any key, certificate or token.
const MAX_SECRET_FILE: u64 = 64 * 1024;
/// The suffix of a variable that names a secret file.
pub(super) const FILE_SUFFIX: &str = "_FILE";

/// The content of a file, which may hold secrets, or why it cannot be read.
pub(super) type FileContent = io::Result<Arc<Secret<Vec<u8>>>>;

/// The content of the pipes and devices among the files, by their paths. Reading them empties them or waits for a writer,
/// so they are read at the start only, and a reload goes on with what they held then.
#[derive(Debug, Clone, Default)]
pub(super) struct PipeContents(BTreeMap<PathBuf, Arc<Secret<Vec<u8>>>>);

/// The files that settings come from.
pub(super) struct SourceFiles {
    /// `relay.json`.
    pub(super) config: FileContent,
    /// The files that variables name, by their paths.
    named: BTreeMap<PathBuf, FileContent>,
    /// Those that are pipes or devices, by their paths.
    pipes: BTreeSet<PathBuf>,
}

impl SourceFiles {
    /// Reads all files; of pipes and devices, takes what they held at the start, if it is given. Blocks.
    pub(super) fn read(sources: &Sources, at_start: Option<&PipeContents>) -> Self {
        let named_paths = named_files(sources);
        let paths = named_paths.iter().chain([&sources.path]);
        let pipes: BTreeSet<_> = paths.filter(|path| is_pipe_or_device(path)).cloned().collect();
        let read = |path: &Path, limit| match at_start {
            Some(at_start) if pipes.contains(path) => at_start.get(path),
            _ => read_at_most(path, limit).map(|content| Arc::new(Secret::new(content))),
        };
        let config = read(&sources.path, MAX_CONFIG_FILE);
        let named = named_paths.iter().map(|path| (path.clone(), read(path, MAX_SECRET_FILE)));
        let named = named.collect();
        Self { config, named, pipes }
    }

    /// What the pipes and devices hold, for the next reload.
    pub(super) fn pipe_contents(&self, sources: &Sources) -> PipeContents {
        let files = self.with_paths(sources).filter(|(path, _)| self.pipes.contains(*path));
        let contents = files
            .filter_map(|(path, content)| Some((path.to_owned(), content.as_ref().ok()?.clone())));
        PipeContents(contents.collect())
    }

    fn with_paths<'a>(
        &'a self,
        sources: &'a Sources,
    ) -> impl Iterator<Item = (&'a Path, &'a FileContent)> {
        let named = self.named.iter().map(|(path, content)| (path.as_path(), content));
        std::iter::once((sources.path.as_path(), &self.config)).chain(named)
    }

    /// The file that a variable names by this value.
    pub(super) fn named(&self, path: &str) -> Option<&FileContent> {
        self.named.get(Path::new(path.trim()))
    }

    /// The digest of all files but pipes and devices, which are not read again.
    pub(super) fn digest(&self, sources: &Sources) -> SourceDigest {
        let mut parts = Vec::new();
        for (path, content) in self.with_paths(sources) {
            let (state, digest) = match content {
                _ if self.pipes.contains(path) => (2, [0; 32]),
                Ok(content) => (1, crypto::sha256(content.expose())),
                Err(error) => (0, crypto::sha256(error.to_string().as_bytes())),
            };
            parts.push(state);
            parts.extend(digest);
        }
        SourceDigest(crypto::sha256(&parts))
    }
}

impl PipeContents {
    fn get(&self, path: &Path) -> FileContent {
        self.0.get(path).cloned().ok_or_else(|| {
            io::Error::other("it is a pipe or a device, which the relay reads only when it starts")
        })
    }
}

fn is_pipe_or_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| !(metadata.is_file() || metadata.is_dir()))
}

/// Reads a file of at most `limit` bytes.
///
/// # Errors
/// The error of the system, or that the file is larger.
fn read_at_most(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        return Err(io::Error::other(format!("it is larger than {limit} bytes")));
    }
    Ok(content)
}

/// The paths in the variables of `sources` that name files with settings.
fn named_files(sources: &Sources) -> Vec<PathBuf> {
    let variables: Vec<_> =
        SETTINGS.iter().map(|setting| setting.key.variable() + FILE_SUFFIX).collect();
    let set = sources.environment.iter();
    set.filter(|(name, value)| !value.is_empty() && variables.contains(name))
        .map(|(_, path)| PathBuf::from(path.trim()))
        .collect()
}

/// A digest of all files that settings come from, by which a change of any of them is noticed. Times would not do:
/// Kubernetes turns a symbolic link, which changes the time of no file.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct SourceDigest([u8; 32]);

impl fmt::Debug for SourceDigest {
    /// Shows nothing: a short secret can be guessed from its digest.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SourceDigest")
    }
}

impl SourceDigest {
    /// Reads the files of `sources`, except pipes and devices. Blocks.
    pub fn read(sources: &Sources) -> Self {
        SourceFiles::read(sources, Some(&PipeContents::default())).digest(sources)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_changes_with_the_content_and_existence_of_each_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let named =
            |variable: &str, name: &str| (variable.to_owned(), path(name).display().to_string());
        let sources = Sources {
            path: path("relay.json"),
            is_path_explicit: false,
            environment: vec![
                named("ASPIA_RELAY_ADMIN_TOKEN_FILE", "token"),
                named("ASPIA_RELAY_NOTHING_FILE", "other"),
            ],
        };
        let digest = || SourceDigest::read(&sources);
        let mut seen = vec![digest()];
        for (name, content) in [("relay.json", "{}"), ("token", "a"), ("token", "b")] {
            fs::write(path(name), content).unwrap();
            assert!(!seen.contains(&digest()), "{name} {content}");
            seen.push(digest());
        }
        fs::write(path("other"), "no setting comes from here").unwrap();
        assert_eq!(digest(), seen[3]);
        fs::write(path("token"), "a").unwrap();
        assert_eq!(digest(), seen[2]);
        fs::remove_file(path("relay.json")).unwrap();
        assert!(!seen.contains(&digest()));
        assert_eq!(format!("{:?}", digest()), "SourceDigest");
    }

    #[cfg(unix)]
    #[test]
    fn devices_and_pipes_are_read_only_at_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let (pipe, token) = (directory.path().join("relay.json"), directory.path().join("token"));
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        fs::write(&token, "a").unwrap();
        let variable = ("ASPIA_RELAY_ADMIN_TOKEN_FILE".to_owned(), token.display().to_string());
        let sources =
            Sources { path: pipe.clone(), is_path_explicit: true, environment: vec![variable] };
        let writer = std::thread::spawn(move || fs::write(pipe, "{}").unwrap());
        let started = SourceFiles::read(&sources, None);
        writer.join().unwrap();
        assert_eq!(started.config.as_ref().unwrap().expose(), b"{}");
        let kept = started.pipe_contents(&sources);
        // Nobody writes to the pipe any more, so reading it would block.
        let again = SourceFiles::read(&sources, Some(&kept));
        assert_eq!(again.config.as_ref().unwrap().expose(), b"{}");
        assert_eq!(again.pipe_contents(&sources).0.len(), 1);
        let digest = SourceDigest::read(&sources);
        assert_eq!([started.digest(&sources), again.digest(&sources)], [digest; 2]);
        // The other file is still watched.
        fs::write(&token, "b").unwrap();
        assert_ne!(SourceDigest::read(&sources), digest);
        // Another pipe has not been read at the start.
        let unknown = SourceFiles::read(&sources, Some(&PipeContents::default()));
        assert!(unknown.config.unwrap_err().to_string().contains("only when it starts"));
    }
}
