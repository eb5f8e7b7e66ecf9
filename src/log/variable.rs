//! The environment variables of the log, in one list for the reader of the settings and for the check for misspelt names.

/// What is logged: 0 information, 1 errors, 2 fatal errors only.
pub(super) const LEVEL: &str = "ASPIA_LOG_LEVEL";
/// Whether to log to stdout.
pub(super) const TO_STDOUT: &str = "ASPIA_LOG_TO_STDOUT";
/// Whether to log to files.
pub(super) const TO_FILE: &str = "ASPIA_LOG_TO_FILE";
/// The largest size of one file, in bytes.
pub(super) const MAX_FILE_SIZE: &str = "ASPIA_MAX_LOG_FILE_SIZE";
/// How many days a file is kept.
pub(super) const MAX_FILE_AGE: &str = "ASPIA_MAX_LOG_FILE_AGE";
/// The largest size of all files together, in bytes.
pub(super) const MAX_TOTAL_SIZE: &str = "ASPIA_MAX_LOG_TOTAL_SIZE";
/// The format of a line.
pub(super) const FORMAT: &str = "ASPIA_LOG_FORMAT";

/// All variables that are specific to this program, so without `RUST_LOG`.
pub const VARIABLES: &[&str] =
    &[LEVEL, TO_STDOUT, TO_FILE, MAX_FILE_SIZE, MAX_FILE_AGE, MAX_TOTAL_SIZE, FORMAT];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documentation_names_these_variables_and_no_others() {
        let document = include_str!("../../docs/configuration.md");
        let (_, rest) = document.split_once("\n## Log variables\n").unwrap();
        let rows = rest.lines().skip_while(|line| !line.starts_with('|')).skip(2);
        let rows = rows.map_while(|line| line.strip_prefix("| `")?.split('`').next());
        let mut expected = VARIABLES.to_vec();
        expected.push("RUST_LOG");
        let (mut rows, mut expected) = (rows.collect::<Vec<_>>(), expected);
        rows.sort_unstable();
        expected.sort_unstable();
        assert_eq!(rows, expected);
    }
}
