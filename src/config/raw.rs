//! What the operator wrote: each setting as a text, with where it came from.

use std::collections::BTreeMap;

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider, Source};

use super::file;
use super::json::{self, JsonFile};
use super::report::{FileState, Problem, Report};
use super::settings::{SETTINGS, Setting};
use super::sources::Sources;
use super::variables::Variable;

/// One setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawValue {
    /// Its text.
    pub text: String,
    /// Where it came from, in words.
    pub source: String,
    /// Whether it is a secret, or the content of a file of its own. That may be the wrong file: what does not parse
    /// is not shown.
    pub confidential: bool,
}

/// All settings that somebody gave, and the defaults of the others.
#[derive(Debug, Clone, Default)]
pub struct RawSettings {
    values: BTreeMap<&'static str, RawValue>,
}

impl RawSettings {
    /// The text of a setting.
    pub fn get(&self, key: &str) -> Option<&RawValue> {
        self.values.get(key)
    }

    /// Merges defaults, file and environment, later wins; notes what cannot be read. Where `file_was_there`, a file
    /// that is missing now is an error.
    pub fn collect(sources: &Sources, file_was_there: bool, report: &mut Report) -> Self {
        let mut figment = Figment::from(Defaults);
        if let Some(content) = file::read(sources, file_was_there, report) {
            match JsonFile::parse(&sources.path, &content, report) {
                Some(values) => figment = figment.merge(values),
                None => report.file = FileState::Unusable,
            }
        }
        let mut confidential: Vec<_> =
            SETTINGS.iter().filter(|setting| setting.secret).map(|setting| setting.key).collect();
        for variable in Variable::all(sources, report) {
            if variable.from_file {
                confidential.push(variable.setting.key);
            }
            figment = figment.merge(variable);
        }
        let mut settings = Self::default();
        for setting in SETTINGS {
            let Ok(value) = figment.find_value(setting.key) else {
                continue;
            };
            let source = match figment.get_metadata(value.tag()) {
                Some(Metadata { name, source: Some(Source::File(path)), .. }) => {
                    format!("{name} {}", path.display())
                }
                Some(metadata) => metadata.name.to_string(),
                None => String::new(),
            };
            if let Some(text) = value.into_string() {
                let confidential = confidential.contains(&setting.key);
                settings.add(setting, RawValue { text, source, confidential }, report);
            }
        }
        settings
    }

    /// Takes a value as it is meant.
    fn add(&mut self, setting: &'static Setting, written: RawValue, report: &mut Report) {
        let mut value = written;
        let text = file::trimmed(&value.text);
        // What is blank and may not be is left as it is, to be refused: a token or a list must not vanish by a blank.
        if setting.original || !text.is_empty() {
            value.text = text.to_owned();
        }
        if setting.list {
            match json::list(&value.text) {
                Some(Ok(items)) => value.text = items,
                Some(Err(expected)) => {
                    report.problems.push(Problem {
                        key: setting.key.into(),
                        value: (!value.confidential).then_some(value.text),
                        source: value.source,
                        expected,
                    });
                    return;
                }
                None => {}
            }
        }
        if let Some(default) = setting.default.filter(|_| setting.original && value.text.is_empty())
        {
            report.warn(&format!(
                "{} is empty ({}): its default is taken",
                setting.key, value.source
            ));
            value.text = default.to_owned();
            value.source = DEFAULT.to_owned();
        }
        self.values.insert(setting.key, value);
    }
}

/// The source of a value that nobody gave.
pub(super) const DEFAULT: &str = "default";

/// The built-in defaults.
struct Defaults;

impl Provider for Defaults {
    fn metadata(&self) -> Metadata {
        Metadata::named(DEFAULT)
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let values = SETTINGS
            .iter()
            .filter_map(|setting| Some((setting.key.to_owned(), Value::from(setting.default?))))
            .collect();
        Ok(Profile::Default.collect(values))
    }
}
