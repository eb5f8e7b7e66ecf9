//! Reads the environment variables of the log. An invalid value causes a warning, and the default is used.

use super::filter::{self, FilterProblem, LogFilter};
use super::format::LogFormat;
use super::handle::LogHandle;
use super::variable;

/// The environment, with a warning for each invalid value.
pub(super) struct LogEnvironment<'a> {
    variables: &'a [(String, String)],
    warnings: Vec<String>,
}

impl<'a> LogEnvironment<'a> {
    pub(super) fn new(variables: &'a [(String, String)]) -> Self {
        Self { variables, warnings: Vec::new() }
    }

    pub(super) fn into_warnings(self) -> Vec<String> {
        self.warnings
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        let found = self.variables.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.trim()).filter(|value| !value.is_empty())
    }

    /// Reads a switch: 0 is off, anything else is on.
    pub(super) fn read_flag(&mut self, name: &str, default: bool) -> bool {
        let Some(value) = self.get(name) else {
            return default;
        };
        if value.parse::<i128>().is_err() {
            self.warnings.push(format!(
                "{name} is {value:?}, which is not a number and counts as on; 0 is off"
            ));
        }
        value != "0"
    }

    /// Reads a number.
    pub(super) fn read_number(&mut self, name: &str, default: u64) -> u64 {
        match self.get(name).map(str::parse::<i128>) {
            None => default,
            // A value out of range is clamped, as in the original.
            Some(Ok(number)) => u64::try_from(number.max(0)).unwrap_or(u64::MAX),
            Some(Err(_)) => {
                self.warnings.push(format!("{name} is not a number; {default} is used"));
                default
            }
        }
    }

    /// Reads the format of the lines.
    pub(super) fn read_format(&mut self) -> LogFormat {
        match self.get(variable::FORMAT) {
            None | Some("text") => LogFormat::Text,
            Some("json") => LogFormat::Json,
            Some(other) => {
                let name = variable::FORMAT;
                self.warnings.push(format!("{name} is {other:?}, not text or json; text is used"));
                LogFormat::Text
            }
        }
    }

    /// Reads the valid parts of `RUST_LOG`; `None` if there are none.
    pub(super) fn read_filter(&mut self) -> Option<LogHandle> {
        let LogFilter { text, targets, problems, is_usable } = filter::parse(self.get("RUST_LOG")?);
        if !problems.is_empty() {
            let instead = if is_usable { text.as_str() } else { variable::LEVEL };
            let problems = FilterProblem::join(&problems);
            self.warnings.push(format!("RUST_LOG: {problems}; {instead} is used"));
        }
        is_usable.then(|| LogHandle::new(&text, targets))
    }
}
