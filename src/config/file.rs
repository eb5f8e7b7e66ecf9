//! Reads files with settings, and says what is expected in place of a `relay.json` that cannot be used.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::advice;
use super::provenance::Provenance;
use super::report::{ConfigProblem, ConfigReport, FileState};
use super::source_files::FileContent;
use super::sources::Sources;

/// U+FEFF in UTF-8, which some editors put at the start of a file.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Returns the content of the file of `sources`, and notes its state in the report. `None` if there is nothing to parse.
///
/// A missing file counts as one that sets nothing only if it is not named explicitly, was not read before (`was_read`),
/// and is not the target of a symbolic link. Otherwise its absence is a problem: its settings must not be considered
/// withdrawn.
pub(super) fn usable_content<'a>(
    content: &'a FileContent,
    sources: &Sources,
    was_read: bool,
    report: &mut ConfigReport,
) -> Option<&'a [u8]> {
    report.path.clone_from(&sources.path);
    report.file = FileState::Unusable;
    let expected = match content {
        Ok(content) => {
            report.file = FileState::Read;
            return Some(content.expose());
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            match why_required(sources, was_read) {
                Some(expected) => expected,
                None => {
                    report.file = FileState::Absent;
                    return None;
                }
            }
        }
        Err(error) => format!(
            "a file that can be read ({error}){}",
            advice::for_unreadable_file(error, &sources.path, sources)
        ),
    };
    report.problems.push(ConfigProblem {
        key: String::new(),
        value: None,
        source: Provenance::File(sources.path.clone()).into(),
        expected,
    });
    None
}

/// What is expected instead of a file that is missing; `None` if it need not exist.
fn why_required(sources: &Sources, was_read: bool) -> Option<String> {
    let path = &sources.path;
    if let Some((link, target)) = find_dangling_link(path) {
        let (link, target) = (link.display(), target.display());
        return Some(format!(
            "a file, but {link} is a link to {target}, which does not exist; correct the link, or remove it"
        ));
    }
    if was_read {
        let left = advice::for_converted_file(path).map(|left| format!(" ({left})"));
        return Some(format!(
            "the file that the relay read before, but it is gone; put it back, or restart the relay to run without it{}",
            left.unwrap_or_default()
        ));
    }
    sources.is_path_explicit.then(|| {
        format!(
            "an existing file, since --config or ASPIA_RELAY_CONFIG names it; {}",
            advice::for_missing_file(sources)
        )
    })
}

/// Decodes the content of a text file, without its byte order mark.
///
/// # Errors
/// Says why the content is not text.
pub(super) fn decode_text(content: &[u8]) -> Result<&str, String> {
    if content.starts_with(b"\xff\xfe") || content.starts_with(b"\xfe\xff") {
        return Err("not UTF-8 but UTF-16; save it as UTF-8".into());
    }
    let content = content.strip_prefix(BYTE_ORDER_MARK).unwrap_or(content);
    std::str::from_utf8(content).map_err(|error| format!("not UTF-8: {error}"))
}

/// The first dangling link on the way to a missing file, and its target.
fn find_dangling_link(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let existing = path.ancestors().find(|part| fs::symlink_metadata(part).is_ok())?;
    let target = fs::read_link(existing).ok()?;
    (!existing.exists()).then(|| (existing.to_owned(), target))
}

/// Removes the white space around a text, and the byte order mark that some editors put in front of it.
pub(super) fn trim_text(text: &str) -> &str {
    text.trim_matches(|letter: char| letter.is_whitespace() || letter == '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_order_marks_are_removed_and_utf_16_is_rejected() {
        assert_eq!(decode_text(b"\xef\xbb\xbfkey"), Ok("key"));
        for utf16 in [&b"\xff\xfek\0"[..], b"\xfe\xff\0k"] {
            assert!(decode_text(utf16).unwrap_err().contains("UTF-16"));
        }
        assert!(decode_text(b"\xc3").unwrap_err().contains("not UTF-8"));
    }
}
