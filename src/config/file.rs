//! `relay.json` on disk: there, not there, or not there although it should be; and what to do about a file that cannot
//! be had.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::report::{FileState, Problem, Report};
use super::sources::Sources;

/// Longest `relay.json` read, in bytes.
const MAX_CONFIG_FILE: u64 = 1024 * 1024;

/// The mark that some editors put in front of a text, in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Reads the file of `sources`, and notes in the report what became of it. `None` where there is nothing to take apart.
///
/// That there is no file means that nothing is set in it only where nobody names the file, nobody has read it before
/// (`was_there`), and no link leads to it. Everywhere else something is missing, and the settings in it must not be
/// taken for withdrawn.
pub(super) fn read(sources: &Sources, was_there: bool, report: &mut Report) -> Option<Vec<u8>> {
    report.path.clone_from(&sources.path);
    report.file = FileState::Unusable;
    let expected = match read_at_most(&sources.path, MAX_CONFIG_FILE) {
        Ok(content) => {
            report.file = FileState::Read;
            return Some(content);
        }
        Err(error) if error.kind() == ErrorKind::NotFound => match dangling(&sources.path) {
            Some((link, target)) => format!(
                "a file, but {} is a link to {}, which does not exist; correct the link, or remove it",
                link.display(),
                target.display()
            ),
            None if was_there => {
                let left = left_by_version_3(&sources.path);
                format!(
                    "the file that the relay has read before, and it is gone; put it back, or restart the relay to run \
                     without it{}",
                    left.map_or(String::new(), |left| format!(" ({left})"))
                )
            }
            None if sources.path_is_explicit => format!(
                "an existing file, since --config or ASPIA_RELAY_CONFIG names it; {}",
                how_to_get(sources)
            ),
            None => {
                report.file = FileState::Absent;
                return None;
            }
        },
        Err(error) => format!(
            "a file that can be read ({error}){}",
            how_to_read(&error, &sources.path, sources)
        ),
    };
    report.problems.push(Problem {
        key: String::new(),
        value: None,
        source: format!("file {}", sources.path.display()),
        expected,
    });
    None
}

/// Reads a file of no more than so many bytes.
///
/// # Errors
/// What the system says, or that it is larger.
pub(super) fn read_at_most(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        return Err(io::Error::other(format!("it is larger than {limit} bytes")));
    }
    Ok(content)
}

/// The text of a file, without a byte order mark.
///
/// # Errors
/// Why it is none.
pub(super) fn text(content: &[u8]) -> Result<&str, String> {
    if content.starts_with(b"\xff\xfe") || content.starts_with(b"\xfe\xff") {
        return Err("not UTF-8 but UTF-16; save it as UTF-8".into());
    }
    let content = content.strip_prefix(BYTE_ORDER_MARK).unwrap_or(content);
    std::str::from_utf8(content).map_err(|error| format!("not UTF-8: {error}"))
}

/// The first link on the way to a missing file that leads nowhere, and where it leads.
fn dangling(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let there = path.ancestors().find(|part| fs::symlink_metadata(part).is_ok())?;
    let target = fs::read_link(there).ok()?;
    (!there.exists()).then(|| (there.to_owned(), target))
}

/// How to come by a file that does not exist.
pub(super) fn how_to_get(sources: &Sources) -> String {
    let path = &sources.path;
    if let Some(left) = left_by_version_3(path) {
        return left;
    }
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    let directory = directory.unwrap_or_else(|| Path::new("."));
    if sources.in_container() && !is_writable(directory) {
        return to_mount(directory);
    }
    "--create-config writes one".to_owned()
}

/// What to do in a container, which cannot make the file itself.
fn to_mount(directory: &Path) -> String {
    let what = if directory.exists() {
        "put it into the directory that is mounted at"
    } else {
        "mount a directory that holds it at"
    };
    format!("{what} {}", directory.display())
}

/// What a relay 3.0 has made of a missing `relay.json`, and what to do with it here.
pub(super) fn left_by_version_3(path: &Path) -> Option<String> {
    let mut renamed = path.as_os_str().to_owned();
    renamed.push(".bak");
    let renamed = PathBuf::from(renamed);
    let converted = path.with_extension("conf");
    let is_there = |path: &Path| fs::symlink_metadata(path).is_ok();
    let (json, bak, conf) = (path.display(), renamed.display(), converted.display());
    let to_use = format!(
        "to use it here, rename {bak} to {json}, and set RouterPort to 8063 where the Router is a 3.x"
    );
    match (is_there(&renamed), is_there(&converted)) {
        (true, true) => {
            Some(format!("a relay 3.0 has turned it into {conf} and renamed it to {bak}: {to_use}"))
        }
        (true, false) => Some(format!("{bak} is there, as a relay 3.0 renames it: {to_use}")),
        (false, true) => Some(format!(
            "{conf} is there, the file of a relay 3.0, which is not read here: write what it says into {json}"
        )),
        (false, false) => None,
    }
}

/// What to do about a file that this process cannot read, to stand behind other words; empty where the error says it all.
pub(super) fn how_to_read(error: &io::Error, path: &Path, sources: &Sources) -> String {
    match error.kind() {
        ErrorKind::PermissionDenied => {}
        ErrorKind::IsADirectory => {
            return "; it is a directory, which Docker makes where a file is to be mounted that does not exist: remove it, \
                    and mount the directory that holds the file"
                .to_owned();
        }
        _ => return String::new(),
    }
    let file = path.display();
    if cfg!(windows) {
        return format!(r#"; for the service: icacls "{file}" /grant "NT SERVICE\aspia-relay:R""#);
    }
    let user = user();
    if sources.in_container() {
        return format!(
            "; the relay runs as user {user} in this container: on the host, chown {user} and chmod 600 the file, or \
             chmod 644 it; in Kubernetes, defaultMode and fsGroup decide. The directories above it must let that user \
             through, too"
        );
    }
    format!(
        "; the relay runs as user {user}: let that user read it and get through the directories above it; for the \
         service of a package: chgrp aspia-relay {file} && chmod g+r {file}"
    )
}

/// What to do where no default file can be written, to stand behind other words.
pub(super) fn how_to_write(error: &io::Error, in_container: bool) -> &'static str {
    match error.kind() {
        ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied if in_container => {
            "; in a container it is the host's to write: there, docker run --rm --user 0 -v DIRECTORY:/etc/aspia IMAGE \
             --create-config writes it into DIRECTORY, which the relay has mounted at /etc/aspia"
        }
        ErrorKind::PermissionDenied if cfg!(windows) => {
            "; use a Command Prompt that was started with \"Run as administrator\""
        }
        ErrorKind::PermissionDenied => {
            "; this takes the rights of root: sudo aspia_relay --create-config"
        }
        _ => "",
    }
}

#[cfg(unix)]
fn user() -> String {
    rustix::process::geteuid().as_raw().to_string()
}

#[cfg(not(unix))]
fn user() -> String {
    String::new()
}

/// Whether this process could make a file in a directory, or make the directory; neither is tried.
#[cfg(unix)]
fn is_writable(directory: &Path) -> bool {
    let there = directory.ancestors().find(|part| part.exists());
    there.is_some_and(|there| rustix::fs::access(there, rustix::fs::Access::WRITE_OK).is_ok())
}

#[cfg(not(unix))]
fn is_writable(_directory: &Path) -> bool {
    true
}

/// The text without the white space around it, and without the mark that some editors put in front of what was pasted.
pub(super) fn trimmed(text: &str) -> &str {
    text.trim_matches(|letter: char| letter.is_whitespace() || letter == '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    fn sources(path: &Path, in_container: bool) -> Sources {
        let host = if in_container { "10.0.0.1" } else { "" };
        let environment = vec![("KUBERNETES_SERVICE_HOST".to_owned(), host.to_owned())];
        Sources { path: path.to_owned(), path_is_explicit: false, environment }
    }

    #[cfg(unix)]
    #[test]
    fn advice_fits_a_container() {
        let denied = io::Error::from(ErrorKind::PermissionDenied);
        let read_only = io::Error::from(ErrorKind::ReadOnlyFilesystem);
        let file = Path::new("/etc/aspia/relay.json");
        let inside = how_to_read(&denied, file, &sources(file, true));
        assert!(inside.contains("in this container") && !inside.contains("chgrp"), "{inside}");
        assert_eq!(how_to_read(&read_only, file, &sources(file, true)), "");
        let directory = io::Error::from(ErrorKind::IsADirectory);
        assert!(how_to_read(&directory, file, &sources(file, true)).contains("Docker makes"));
        for error in [&denied, &read_only] {
            assert!(how_to_write(error, true).contains("--user 0"), "{error}");
        }
        let directory = tempfile::tempdir().unwrap();
        let there = directory.path().display();
        assert_eq!(
            to_mount(directory.path()),
            format!("put it into the directory that is mounted at {there}")
        );
        assert_eq!(
            to_mount(&directory.path().join("aspia")),
            format!(
                "mount a directory that holds it at {}",
                directory.path().join("aspia").display()
            )
        );
        let writable = sources(&directory.path().join("relay.json"), true);
        assert_eq!(how_to_get(&writable), "--create-config writes one");
    }

    #[test]
    fn text_loses_its_mark_and_utf_16_is_named() {
        assert_eq!(text(b"\xef\xbb\xbfkey"), Ok("key"));
        for utf16 in [&b"\xff\xfek\0"[..], b"\xfe\xff\0k"] {
            assert!(text(utf16).unwrap_err().contains("UTF-16"));
        }
        assert!(text(b"\xc3").unwrap_err().contains("not UTF-8"));
    }
}
