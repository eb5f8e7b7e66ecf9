//! What is said about a configuration: `--check-config`, and the problems of a start.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::printable;

use super::settings;

/// Longest part of a wrong value that is shown, in characters.
const MAX_SHOWN: usize = 80;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The key; empty where it is not about one.
    pub key: String,
    /// The value, where there is one.
    pub value: Option<String>,
    /// The file or variable.
    pub source: String,
    /// What is expected instead.
    pub expected: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, value, source, expected } = self;
        let what = match (key.as_str(), value) {
            ("", _) => source.clone(),
            (key, None) => format!("{} ({source})", beginning(key)),
            (key, Some(value)) => {
                let shown = beginning(value);
                let more = if shown.len() < value.len() { "…" } else { "" };
                format!("{} = {shown:?}{more} ({source})", beginning(key))
            }
        };
        // Names and values are those of a file or of the environment, which anybody may have written.
        f.write_str(&printable::line(&format!("{what}: expected {expected}")))
    }
}

/// As much of a foreign name or value as is shown.
pub(super) fn beginning(text: &str) -> String {
    text.chars().take(MAX_SHOWN).collect()
}

/// What became of `relay.json`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FileState {
    /// It was read, and is what it should be or not.
    Read,
    /// There is none, and none is needed.
    #[default]
    Absent,
    /// It should be there and is not, or it cannot be read or taken apart: what is set in it is not known.
    Unusable,
}

/// One effective value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// The key.
    pub key: &'static str,
    /// The value as it was written, or the default.
    pub value: String,
    /// Where it came from.
    pub source: String,
}

/// Everything that can be said about a configuration.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The file that was looked for.
    pub path: PathBuf,
    /// What became of it.
    pub file: FileState,
    /// Every effective value, in the order of the table of settings.
    pub settings: Vec<Line>,
    /// What works but is worth a look.
    pub warnings: Vec<String>,
    /// What does not work.
    pub problems: Vec<Problem>,
}

impl Report {
    pub(super) fn set(&mut self, key: &'static str, value: &str, source: &str) {
        self.settings.push(Line { key, value: value.to_owned(), source: source.to_owned() });
    }

    /// Adds a warning.
    pub(super) fn warn(&mut self, warning: &str) {
        self.warnings.push(printable::line(warning));
    }

    /// Says what holds for a setting, where that is not what was written; and because of what, where nothing was.
    pub(super) fn set_effective(&mut self, key: &'static str, value: &str, because: &str) {
        if let Some(line) = self.settings.iter_mut().find(|line| line.key == key) {
            if line.value.is_empty() || line.source == "default" {
                line.source = format!("default ({because})");
            }
            value.clone_into(&mut line.value);
        }
    }

    /// Says that there is no file, where that is so.
    pub fn no_file(&self) -> Option<String> {
        let path = printable::line(&self.path.display().to_string());
        (self.file == FileState::Absent).then(|| {
            format!("there is no {path}: all settings are from the environment, or defaults")
        })
    }

    /// For people: a table of values. It is empty where the file cannot be used: what stands in it is not known, and
    /// defaults would pass for it.
    pub fn table(&self) -> String {
        let width = |text: fn(&Line) -> &str| {
            self.settings.iter().map(|line| text(line).chars().count()).max().unwrap_or(0)
        };
        let (keys, values) = (width(|line| line.key), width(|line| &line.value).min(64));
        self.sorted()
            .iter()
            .map(|line| {
                // Nothing that a file says reaches the terminal as a command to it.
                let (value, source) = (printable::line(&line.value), printable::line(&line.source));
                let value = if value.is_empty() { "-" } else { &value };
                format!("{:keys$}  {value:values$}  {source}\n", line.key)
            })
            .collect()
    }

    /// For machines.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "valid": self.problems.is_empty(),
            "settings": self.sorted(),
            "warnings": self.warnings,
            "problems": self.problems,
        })
    }

    fn sorted(&self) -> Vec<&Line> {
        let place = |line: &&Line| settings::SETTINGS.iter().position(|s| s.key == line.key);
        if self.file == FileState::Unusable {
            return Vec::new();
        }
        let mut lines: Vec<_> = self.settings.iter().collect();
        lines.sort_by_key(place);
        lines
    }
}
