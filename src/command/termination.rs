//! The termination message of a container: the file that `TERMINATION_MESSAGE_PATH` names, whose content Kubernetes
//! shows in the status of the pod.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use crate::config::sources::Sources;
use crate::exit::ExitResult;

/// The variable that names the file.
const VARIABLE: &str = "TERMINATION_MESSAGE_PATH";
/// How many bytes of the file Kubernetes shows; of a longer file it would show only the end.
const MAX_MESSAGE: usize = 4096;

/// Writes the error, if there is one, into the file, and returns the result unchanged. Use this only for what the
/// container itself runs: `kubectl exec` starts other commands in the same environment, whose failure is not the
/// container's.
pub(super) fn record(sources: &Sources, result: ExitResult) -> ExitResult {
    if let (Err(error), Some(path)) = (&result, sources.variable(VARIABLE)) {
        write_message(Path::new(path), &error.message);
    }
    result
}

fn write_message(path: &Path, message: &str) {
    let mut end = message.len().min(MAX_MESSAGE);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    // Kubernetes creates the file. If it is missing, nothing is lost: stderr has the same message.
    let file = OpenOptions::new().write(true).truncate(true).open(path);
    let _ = file.and_then(|mut file| file.write_all(&message.as_bytes()[..end]));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::ExitError;

    #[test]
    fn only_an_existing_file_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("termination-log");
        write_message(&path, "no Router");
        assert!(!path.exists());
        std::fs::write(&path, "an earlier and longer message").unwrap();
        let environment = vec![(VARIABLE.to_owned(), path.display().to_string())];
        let sources = Sources::new(None, environment);
        assert!(record(&sources, Ok(())).is_ok());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "an earlier and longer message");
        assert!(record(&sources, Err(ExitError::failure("no Router"))).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "no Router");
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let file = tempfile::NamedTempFile::new().unwrap();
        write_message(file.path(), &format!("{}é", "x".repeat(MAX_MESSAGE - 1)));
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "x".repeat(MAX_MESSAGE - 1));
    }
}
