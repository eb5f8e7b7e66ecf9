//! The address of the descriptor store's socket.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The longest path or name, in bytes: what the address of a Unix socket holds (`sun_path`) without its zero byte.
const MAX_LEN: usize = 107;
/// The characters that an abstract name may have besides letters and digits. Others would be hard to read in a log, or to
/// quote in a unit file.
const NAME_SYMBOLS: &str = "-_./:";

/// Where the descriptor store listens, or where the relay finds it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum StoreAddress {
    /// An absolute path in the file system.
    Path(PathBuf),
    /// An abstract name, without the `@`. It belongs to the network namespace, and vanishes with its socket.
    Abstract(String),
}

/// A text is not the address of a store. The message says what is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StoreAddressError {
    /// It is neither an absolute path nor an abstract name.
    #[error(
        "an absolute path such as /run/aspia-relay/fd-store.sock, or @ and a name such as @aspia-relay-8070"
    )]
    Form,
    /// The name is empty or has other characters.
    #[error("@ and a name of ASCII letters, digits and {NAME_SYMBOLS}, such as @aspia-relay-8070")]
    Name,
    /// The path does not name a file.
    #[error("the path of a socket, such as /run/aspia-relay/fd-store.sock, not a directory")]
    Directory,
    /// The path has characters that no log line could show.
    #[error("a path without control characters")]
    Control,
    /// It is longer than the address of a Unix socket can be.
    #[error(
        "at most {MAX_LEN} bytes, which is what the address of a Unix socket holds; this has {0}"
    )]
    Length(usize),
}

impl StoreAddress {
    /// Returns the address of a store for the relay that listens on `port`, if nothing else is configured.
    pub fn of_relay(port: u16) -> Self {
        Self::Abstract(format!("aspia-relay-{port}"))
    }

    /// Returns the path; `None` for an abstract name.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(path),
            Self::Abstract(_) => None,
        }
    }
}

impl FromStr for StoreAddress {
    type Err = StoreAddressError;

    fn from_str(text: &str) -> Result<Self, StoreAddressError> {
        if let Some(name) = text.strip_prefix('@') {
            let is_allowed = |c: char| c.is_ascii_alphanumeric() || NAME_SYMBOLS.contains(c);
            if name.is_empty() || !name.chars().all(is_allowed) {
                return Err(StoreAddressError::Name);
            }
            return check_length(name).map(|()| Self::Abstract(name.to_owned()));
        }
        // Not `Path::is_absolute`, which on Windows expects a drive: the file may be checked on another system.
        if !text.starts_with('/') {
            return Err(StoreAddressError::Form);
        }
        if text.contains(char::is_control) {
            return Err(StoreAddressError::Control);
        }
        if ["/", "/.", "/.."].iter().any(|end| text.ends_with(end)) {
            return Err(StoreAddressError::Directory);
        }
        check_length(text).map(|()| Self::Path(PathBuf::from(text)))
    }
}

fn check_length(text: &str) -> Result<(), StoreAddressError> {
    if text.len() > MAX_LEN { Err(StoreAddressError::Length(text.len())) } else { Ok(()) }
}

impl fmt::Display for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Abstract(name) => write!(f, "@{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_abstract_names_are_parsed_and_printed() {
        for text in ["/run/aspia-relay/fd-store.sock", "@aspia-relay-8070", "@a/b:c_d.e", "/ä"] {
            assert_eq!(text.parse::<StoreAddress>().unwrap().to_string(), text);
        }
        assert_eq!(StoreAddress::of_relay(8070), "@aspia-relay-8070".parse().unwrap());
        let longest = format!("@{}", "x".repeat(MAX_LEN));
        assert_eq!(longest.parse::<StoreAddress>().unwrap().to_string(), longest);
    }

    #[test]
    fn other_texts_are_refused_with_what_is_expected() {
        for (text, error) in [
            ("", StoreAddressError::Form),
            ("on", StoreAddressError::Form),
            ("run/store.sock", StoreAddressError::Form),
            ("127.0.0.1:1", StoreAddressError::Form),
            ("@", StoreAddressError::Name),
            ("@a b", StoreAddressError::Name),
            ("@a\0b", StoreAddressError::Name),
            ("@ä", StoreAddressError::Name),
            ("/", StoreAddressError::Directory),
            ("/run/", StoreAddressError::Directory),
            ("/run/..", StoreAddressError::Directory),
            ("/run/a\nb", StoreAddressError::Control),
        ] {
            assert_eq!(text.parse::<StoreAddress>(), Err(error), "{text}");
        }
        let long = format!("/{}", "x".repeat(MAX_LEN));
        let error = long.parse::<StoreAddress>().unwrap_err();
        assert!(
            error.to_string().contains("at most 107 bytes") && error.to_string().contains("108")
        );
    }
}
