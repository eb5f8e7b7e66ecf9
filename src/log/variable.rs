//! The environment variables of the log, in one list for those who read them and those who look for misspelt ones.

/// What is logged: 0 information, 1 errors, 2 fatal errors only.
pub(super) const LEVEL: &str = "ASPIA_LOG_LEVEL";
/// Whether stdout has it.
pub(super) const TO_STDOUT: &str = "ASPIA_LOG_TO_STDOUT";
/// Whether files have it.
pub(super) const TO_FILE: &str = "ASPIA_LOG_TO_FILE";
/// Most bytes of one file.
pub(super) const MAX_FILE_SIZE: &str = "ASPIA_MAX_LOG_FILE_SIZE";
/// Most days that a file is kept.
pub(super) const MAX_FILE_AGE: &str = "ASPIA_MAX_LOG_FILE_AGE";
/// Most bytes of all files together.
pub(super) const MAX_TOTAL_SIZE: &str = "ASPIA_MAX_LOG_TOTAL_SIZE";
/// The form of a line.
pub(super) const FORMAT: &str = "ASPIA_LOG_FORMAT";

/// All that begin as those of this program do, which `RUST_LOG` does not.
pub const VARIABLES: &[&str] =
    &[LEVEL, TO_STDOUT, TO_FILE, MAX_FILE_SIZE, MAX_FILE_AGE, MAX_TOTAL_SIZE, FORMAT];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_names_these_variables_and_no_others() {
        let readme = include_str!("../../README.md");
        let (_, rest) = readme.split_once("\n### Logs\n").unwrap();
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
