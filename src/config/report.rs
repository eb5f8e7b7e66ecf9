//! What is said about a configuration: `--check-config`, and the problems of a start.

use std::fmt;

use serde::Serialize;

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
        match (self.key.as_str(), &self.value) {
            ("", _) => write!(f, "{}: expected {}", self.source, self.expected),
            (key, None) => write!(f, "{key} ({}): expected {}", self.source, self.expected),
            (key, Some(value)) => {
                let shown: String = value.chars().take(MAX_SHOWN).collect();
                let more = if shown.len() < value.len() { "…" } else { "" };
                write!(f, "{key} = {shown:?}{more} ({}): expected {}", self.source, self.expected)
            }
        }
    }
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
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
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

    /// Says what holds for a setting, where that is not what was written; and because of what, where nothing was.
    pub(super) fn set_effective(&mut self, key: &'static str, value: &str, because: &str) {
        if let Some(line) = self.settings.iter_mut().find(|line| line.key == key) {
            if line.value.is_empty() || line.source == "default" {
                line.source = format!("default ({because})");
            }
            value.clone_into(&mut line.value);
        }
    }

    /// For people: a table of values.
    pub fn table(&self) -> String {
        let width = |text: fn(&Line) -> &str| {
            self.settings.iter().map(|line| text(line).chars().count()).max().unwrap_or(0)
        };
        let (keys, values) = (width(|line| line.key), width(|line| &line.value).min(64));
        self.sorted()
            .iter()
            .map(|line| {
                // Nothing that a file says reaches the terminal as a command to it.
                let value: String = line
                    .value
                    .chars()
                    .map(|c| if c.is_control() { '\u{fffd}' } else { c })
                    .collect();
                let value = if value.is_empty() { "-" } else { &value };
                format!("{:keys$}  {value:values$}  {}\n", line.key, line.source)
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
        let mut lines: Vec<_> = self.settings.iter().collect();
        lines.sort_by_key(place);
        lines
    }
}
