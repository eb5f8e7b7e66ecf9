//! Advice on a file that is missing, or that cannot be read or written.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::sources::Sources;

/// What to do if `relay.json` does not exist.
pub(super) fn for_missing_file(sources: &Sources) -> String {
    let path = &sources.path;
    if let Some(advice) = for_converted_file(path) {
        return advice;
    }
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    let directory = directory.unwrap_or_else(|| Path::new("."));
    if sources.is_in_container() && !is_writable(directory) {
        return for_container(directory);
    }
    "--create-config writes one".to_owned()
}

/// What to do if a container has no `relay.json`, which it cannot create itself.
fn for_container(directory: &Path) -> String {
    let what = if directory.exists() {
        "put it into the directory that is mounted at"
    } else {
        "mount a directory that holds it at"
    };
    format!("{what} {}", directory.display())
}

/// How to use the settings of a `relay.json` that a 3.0 relay has converted or renamed; `None` if none has.
pub(super) fn for_converted_file(path: &Path) -> Option<String> {
    let mut renamed = path.as_os_str().to_owned();
    renamed.push(".bak");
    let renamed = PathBuf::from(renamed);
    let converted = path.with_extension("conf");
    let exists = |path: &Path| fs::symlink_metadata(path).is_ok();
    let (json, bak, conf) = (path.display(), renamed.display(), converted.display());
    let remedy = format!(
        "to use it here, rename {bak} to {json}, and set RouterPort to 8063 if the Router is version 3.x"
    );
    match (exists(&renamed), exists(&converted)) {
        (true, true) => Some(format!(
            "a 3.0 relay has converted it to {conf} and renamed it to {bak}: {remedy}"
        )),
        (true, false) => {
            Some(format!("{bak} exists, which is the name that a 3.0 relay gives it: {remedy}"))
        }
        (false, true) => Some(format!(
            "{conf} exists, the file of a 3.0 relay, which this relay does not read: copy its settings to {json}"
        )),
        (false, false) => None,
    }
}

/// What to do about a file that this process cannot read, to be appended to a message; empty if the error says it all.
pub(super) fn for_unreadable_file(error: &io::Error, path: &Path, sources: &Sources) -> String {
    match error.kind() {
        ErrorKind::PermissionDenied => {}
        ErrorKind::IsADirectory => {
            return "; it is a directory, which Docker creates in place of a mounted file that does not exist: remove \
                    it, and mount the directory that holds the file"
                .to_owned();
        }
        _ => return String::new(),
    }
    let file = path.display();
    if cfg!(windows) {
        return format!(r#"; for the service: icacls "{file}" /grant "NT SERVICE\aspia-relay:R""#);
    }
    let user = effective_user();
    if sources.is_in_container() {
        return format!(
            "; the relay runs as user {user} in this container: on the host, chown {user} and chmod 600 the file, or \
             chmod 644 it; in Kubernetes, defaultMode and fsGroup decide. That user also needs search permission on \
             its parent directories"
        );
    }
    format!(
        "; the relay runs as user {user}: let that user read it and search its parent directories; for the packaged \
         service: chgrp aspia-relay {file} && chmod g+r {file}"
    )
}

/// What to do if the default file cannot be written, to be appended to a message.
pub(super) fn for_unwritable_file(error: &io::Error, is_in_container: bool) -> &'static str {
    match error.kind() {
        ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied if is_in_container => {
            "; in a container, the host must write it: there, docker run --rm --user 0 -v DIRECTORY:/etc/aspia IMAGE \
             --create-config writes it to DIRECTORY, which is mounted at /etc/aspia for the relay"
        }
        ErrorKind::PermissionDenied if cfg!(windows) => {
            "; use a Command Prompt that was started with \"Run as administrator\""
        }
        ErrorKind::PermissionDenied => "; this requires root: sudo aspia_relay --create-config",
        _ => "",
    }
}

#[cfg(unix)]
fn effective_user() -> String {
    rustix::process::geteuid().as_raw().to_string()
}

#[cfg(not(unix))]
fn effective_user() -> String {
    String::new()
}

/// Whether this process may create a file in a directory, or the directory itself if it is missing. Looks at the
/// permissions only, and creates nothing.
#[cfg(unix)]
fn is_writable(directory: &Path) -> bool {
    let existing = directory.ancestors().find(|part| part.exists());
    existing.is_some_and(|path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok())
}

#[cfg(not(unix))]
fn is_writable(_directory: &Path) -> bool {
    true
}

#[cfg(test)]
mod tests {
    #[cfg(unix)]
    use super::*;

    #[cfg(unix)]
    fn sources(path: &Path, is_in_container: bool) -> Sources {
        let host = if is_in_container { "10.0.0.1" } else { "" };
        let environment = vec![("KUBERNETES_SERVICE_HOST".to_owned(), host.to_owned())];
        Sources { path: path.to_owned(), is_path_explicit: false, environment }
    }

    #[cfg(unix)]
    #[test]
    fn advice_in_a_container_names_commands_for_the_host() {
        let denied = io::Error::from(ErrorKind::PermissionDenied);
        let read_only = io::Error::from(ErrorKind::ReadOnlyFilesystem);
        let file = Path::new("/etc/aspia/relay.json");
        let inside = for_unreadable_file(&denied, file, &sources(file, true));
        assert!(inside.contains("in this container") && !inside.contains("chgrp"), "{inside}");
        assert_eq!(for_unreadable_file(&read_only, file, &sources(file, true)), "");
        let directory = io::Error::from(ErrorKind::IsADirectory);
        assert!(
            for_unreadable_file(&directory, file, &sources(file, true)).contains("Docker creates")
        );
        for error in [&denied, &read_only] {
            assert!(for_unwritable_file(error, true).contains("--user 0"), "{error}");
        }
        let directory = tempfile::tempdir().unwrap();
        let there = directory.path().display();
        assert_eq!(
            for_container(directory.path()),
            format!("put it into the directory that is mounted at {there}")
        );
        assert_eq!(
            for_container(&directory.path().join("aspia")),
            format!(
                "mount a directory that holds it at {}",
                directory.path().join("aspia").display()
            )
        );
        let writable = sources(&directory.path().join("relay.json"), true);
        assert_eq!(for_missing_file(&writable), "--create-config writes one");
    }
}
