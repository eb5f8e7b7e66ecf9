//! Reads the `OTEL_*` variables, with a warning for each invalid value.

use std::collections::HashMap;
use std::fmt::Display;
use std::str::FromStr;

use percent_encoding::percent_decode_str;

/// A number's default, minimum and maximum.
pub(super) type NumberRange<T> = (T, T, T);

/// The environment, and the warnings about it.
pub(super) struct OtelEnvironment<'a> {
    variables: HashMap<&'a str, &'a str>,
    pub(super) warnings: &'a mut Vec<String>,
}

impl<'a> OtelEnvironment<'a> {
    pub(super) fn new(environment: &'a [(String, String)], warnings: &'a mut Vec<String>) -> Self {
        Self {
            variables: environment.iter().map(|(n, v)| (n.as_str(), v.trim())).collect(),
            warnings,
        }
    }

    /// Reads a variable, unless it is empty.
    pub(super) fn get(&self, name: &str) -> Option<&'a str> {
        self.variables.get(name).copied().filter(|value| !value.is_empty())
    }

    /// Reads a variable of the exporter, with its name. The variable for traces takes precedence over the general one.
    pub(super) fn get_exporter(&self, name: &str) -> Option<(String, &'a str)> {
        ["OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_"].iter().find_map(|prefix| {
            let name = format!("{prefix}{name}");
            self.get(&name).map(|value| (name, value))
        })
    }

    /// Warns of an invalid value.
    pub(super) fn warn(&mut self, name: &str, value: &str, expected: &str) {
        self.warnings.push(format!("{name} = {value:?}: expected {expected}"));
    }

    /// Parses a number, and clamps it to a range.
    pub(super) fn parse_number<T>(
        &mut self,
        name: &str,
        value: Option<&str>,
        (default, min, max): NumberRange<T>,
    ) -> T
    where
        T: FromStr + Ord + Copy + Display,
    {
        let Some(value) = value else { return default };
        let parsed = value.parse::<T>();
        let used = parsed.as_ref().map_or(default, |number| (*number).clamp(min, max));
        if parsed.ok() != Some(used) {
            let expected = format!("a number from {min} to {max}; {used} is used");
            self.warn(name, value, &expected);
        }
        used
    }

    /// Parses a boolean; without a value it is false.
    pub(super) fn parse_boolean(&mut self, name: &str, value: Option<&str>) -> bool {
        match value {
            Some(value) if value.eq_ignore_ascii_case("true") => true,
            Some(value) if !value.eq_ignore_ascii_case("false") => {
                self.warn(name, value, "true or false; false is used");
                false
            }
            _ => false,
        }
    }

    /// Parses a list `name=value,name=value` with percent-encoded values.
    pub(super) fn parse_pairs(&mut self, variable: &str, text: &'a str) -> Vec<(&'a str, String)> {
        let mut pairs = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let decoded = part.split_once('=').and_then(|(name, value)| {
                let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
                Some((name.trim(), value.into_owned()))
            });
            match decoded {
                Some(pair) if !pair.0.is_empty() => pairs.push(pair),
                // The pair is not shown because it may be part of a token.
                _ => self.warnings.push(format!(
                    "{variable}: expected name=value, separated by commas, with percent-encoded values; one of \
                     them is ignored"
                )),
            }
        }
        pairs
    }
}
