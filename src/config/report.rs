//! The report on a configuration: effective values, warnings and problems.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::printable;

use super::provenance::{ProblemSource, Provenance};
use super::settings::SettingKey;
use super::source_files::{PipeContents, SourceDigest};

/// The maximum length of the part of a wrong value that is shown, in characters.
const MAX_SHOWN: usize = 80;

/// One problem of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConfigProblem {
    /// The key; empty if the problem is not about a single setting.
    pub key: String,
    /// The value, if there is one that may be shown.
    pub value: Option<String>,
    /// Where it is.
    pub source: ProblemSource,
    /// What is expected instead.
    pub expected: String,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, value, source, expected } = self;
        let what = match (key.as_str(), value) {
            ("", _) => source.to_string(),
            (key, None) => format!("{} ({source})", shorten(key)),
            (key, Some(value)) => {
                let shown = shorten(value);
                let more = if shown.len() < value.len() { "…" } else { "" };
                format!("{} = {shown:?}{more} ({source})", shorten(key))
            }
        };
        // Names and values come from a file or from the environment, which anybody may have written.
        f.write_str(&printable::escape_line(&format!("{what}: expected {expected}")))
    }
}

/// Shortens a name or value from outside for a message.
pub(super) fn shorten(text: &str) -> String {
    text.chars().take(MAX_SHOWN).collect()
}

/// The state of `relay.json`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FileState {
    /// It was read and parsed; its values may be valid or not.
    Read,
    /// It does not exist, and need not exist.
    #[default]
    Absent,
    /// It is missing though it must exist, or cannot be read or parsed: what it sets is not known.
    Unusable,
}

/// The effective value of one setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SettingLine {
    /// The key.
    pub key: SettingKey,
    /// The value as it was written, the default, or a replacement for a secret.
    pub value: String,
    /// Where it came from.
    pub source: Provenance,
}

/// The report on a configuration.
#[derive(Debug, Clone, Default)]
pub struct ConfigReport {
    /// The path of `relay.json`.
    pub path: PathBuf,
    /// The state of the file.
    pub file: FileState,
    /// The digest of the files that the settings were read from.
    pub digest: SourceDigest,
    /// What the pipes and devices among these files held.
    pub(super) pipe_contents: PipeContents,
    /// Every effective value, in the order of the table of settings.
    pub settings: Vec<SettingLine>,
    /// What works but deserves attention.
    pub warnings: Vec<String>,
    /// What is wrong.
    pub problems: Vec<ConfigProblem>,
}

impl ConfigReport {
    /// Adds the effective value of a setting.
    pub(super) fn add_setting(&mut self, key: SettingKey, value: &str, source: Provenance) {
        self.settings.push(SettingLine { key, value: value.to_owned(), source });
    }

    /// Replaces the shown value of a setting.
    pub(super) fn replace_value(&mut self, key: SettingKey, value: &str) {
        if let Some(line) = self.settings.iter_mut().find(|line| line.key == key) {
            value.clone_into(&mut line.value);
        }
    }

    /// Adds a problem with a setting.
    pub(super) fn add_problem(
        &mut self,
        key: SettingKey,
        value: Option<String>,
        source: impl Into<ProblemSource>,
        expected: String,
    ) {
        let (key, source) = (key.name().to_owned(), source.into());
        self.problems.push(ConfigProblem { key, value, source, expected });
    }

    /// Adds a warning.
    pub(super) fn add_warning(&mut self, warning: &str) {
        self.warnings.push(printable::escape_line(warning));
    }

    /// Says that there is no file, if it is absent.
    pub fn absent_file_note(&self) -> Option<String> {
        let path = printable::escape_line(&self.path.display().to_string());
        (self.file == FileState::Absent).then(|| {
            format!("there is no {path}: all settings come from the environment or are defaults")
        })
    }

    /// The effective values as a table for people. It is empty if the file is unusable: the values that it sets are not
    /// known, and defaults would be mistaken for them.
    pub fn table(&self) -> String {
        let width = |text: fn(&SettingLine) -> &str| {
            self.settings.iter().map(|line| text(line).chars().count()).max().unwrap_or(0)
        };
        let (keys, values) = (width(|line| line.key.name()), width(|line| &line.value).min(64));
        self.known_settings()
            .iter()
            .map(|line| {
                // A file must not be able to send control sequences to the terminal.
                let value = printable::escape_line(&line.value);
                let source = printable::escape_line(&line.source.to_string());
                let value = if value.is_empty() { "-" } else { &value };
                format!("{:keys$}  {value:values$}  {source}\n", line.key.name())
            })
            .collect()
    }

    /// The report as JSON for programs.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "valid": self.problems.is_empty(),
            "settings": self.known_settings(),
            "warnings": self.warnings,
            "problems": self.problems,
        })
    }

    /// The effective values, if they are known.
    fn known_settings(&self) -> &[SettingLine] {
        if self.file == FileState::Unusable { &[] } else { &self.settings }
    }
}
