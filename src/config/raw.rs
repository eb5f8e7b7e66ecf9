//! What the operator wrote: each setting as a text, with where it came from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider, Source};

use super::json::JsonFile;
use super::report::{Problem, Report};
use super::settings::{self, SETTINGS};
use super::sources::{PATH_VARIABLE, Sources};

/// Longest file read as a setting's value, in bytes: more than any key, certificate or token.
const MAX_VALUE_FILE: u64 = 64 * 1024;
/// Longest `relay.json` read, in bytes.
const MAX_CONFIG_FILE: u64 = 1024 * 1024;

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

/// What became of `relay.json`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FileState {
    /// It was read, and is what it should be or not.
    Read,
    /// There is none, and none is needed.
    #[default]
    Absent,
    /// It cannot be read or taken apart: what is set in it is not known.
    Unusable,
}

/// All settings that somebody gave, and the defaults of the others.
#[derive(Debug, Clone, Default)]
pub struct RawSettings {
    values: BTreeMap<String, RawValue>,
    /// The file that was looked for.
    pub path: PathBuf,
    /// What became of it.
    pub file: FileState,
}

impl RawSettings {
    /// The text of a setting.
    pub fn get(&self, key: &str) -> Option<&RawValue> {
        self.values.get(key)
    }

    /// Merges defaults, file and environment, later wins; notes what cannot be read.
    pub fn collect(sources: &Sources, report: &mut Report) -> Self {
        let mut figment = Figment::from(Defaults);
        let problems = report.problems.len();
        let mut file = FileState::Absent;
        if let Some(content) = read_file(sources, report) {
            file = FileState::Read;
            match JsonFile::parse(&sources.path, &content, report) {
                Some(values) => figment = figment.merge(values),
                None => file = FileState::Unusable,
            }
        } else if report.problems.len() > problems {
            file = FileState::Unusable;
        }
        let mut confidential: Vec<_> =
            SETTINGS.iter().filter(|setting| setting.secret).map(|setting| setting.key).collect();
        for variable in Variable::all(&sources.environment, report) {
            if variable.from_file {
                confidential.push(variable.key);
            }
            figment = figment.merge(variable);
        }
        let mut values = BTreeMap::new();
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
                values.insert(setting.key.to_owned(), RawValue { text, source, confidential });
            }
        }
        Self { values, path: sources.path.clone(), file }
    }
}

/// How to let the relay read a file; what its user is, depends on how it was installed.
const TO_LET_READ: &str = if cfg!(windows) {
    r#"for the service: icacls FILE /grant "NT SERVICE\aspia-relay:R""#
} else {
    "let its user read it and get through the directories above it; for the service of a package: chgrp aspia-relay FILE \
     && chmod g+r FILE"
};

fn read_file(sources: &Sources, report: &mut Report) -> Option<Vec<u8>> {
    let expected = match read_at_most(&sources.path, MAX_CONFIG_FILE) {
        Ok(content) => return Some(content),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if !sources.path_is_explicit {
                return None;
            }
            "an existing file, since --config or ASPIA_RELAY_CONFIG names it".to_owned()
        }
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            format!("a file that the relay may read ({error}); {TO_LET_READ}")
        }
        Err(error) => format!("a file that can be read ({error})"),
    };
    report.problems.push(Problem {
        key: String::new(),
        value: None,
        source: format!("file {}", sources.path.display()),
        expected,
    });
    None
}

fn read_at_most(path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
    use std::io::Read;

    let mut content = Vec::new();
    std::fs::File::open(path)?.take(limit + 1).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        return Err(std::io::Error::other(format!("it is larger than {limit} bytes")));
    }
    Ok(content)
}

/// The built-in defaults.
struct Defaults;

impl Provider for Defaults {
    fn metadata(&self) -> Metadata {
        Metadata::named("default")
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let values = SETTINGS
            .iter()
            .filter_map(|setting| Some((setting.key.to_owned(), Value::from(setting.default?))))
            .collect();
        Ok(Profile::Default.collect(values))
    }
}

/// One setting from the environment, letter by letter: figment's own provider would take `0123` for a number.
struct Variable {
    key: &'static str,
    text: String,
    source: String,
    from_file: bool,
}

impl Variable {
    fn all(environment: &[(String, String)], report: &mut Report) -> Vec<Self> {
        let mut ours: BTreeMap<&str, &str> = environment
            .iter()
            .filter(|(name, value)| name.starts_with("ASPIA_RELAY_") && !value.is_empty())
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        ours.remove(PATH_VARIABLE);
        let mut variables = Vec::new();
        let mut ignored = Vec::new();
        for setting in SETTINGS {
            let plain = settings::variable(setting.key);
            let file = format!("{plain}_FILE");
            let problem = |value: Option<&str>, source: String, expected: String| Problem {
                key: setting.key.into(),
                value: value.map(ToOwned::to_owned),
                source,
                expected,
            };
            match (ours.remove(plain.as_str()), ours.remove(file.as_str())) {
                (Some(_), Some(_)) => report.problems.push(problem(
                    None,
                    format!("{plain} and {file}"),
                    "one of the two variables, not both".into(),
                )),
                // What Kubernetes sets for a Service called `aspia-relay-peer` is not meant for us.
                (Some(value), None) if is_service_link(setting.key, value) => ignored.push(plain),
                (Some(value), None) => variables.push(Self {
                    key: setting.key,
                    text: value.to_owned(),
                    source: format!("environment variable {plain}"),
                    from_file: false,
                }),
                (None, Some(path)) => match read_value_file(path) {
                    Ok(text) => variables.push(Self {
                        key: setting.key,
                        text,
                        source: format!("file {path} named by {file}"),
                        from_file: true,
                    }),
                    Err(expected) => report.problems.push(problem(
                        Some(path),
                        format!("environment variable {file}"),
                        expected,
                    )),
                },
                (None, None) => {}
            }
        }
        ignored.extend(ours.keys().map(|&name| name.to_owned()));
        if !ignored.is_empty() {
            report.warnings.push(format!(
                "ignored environment variables that give no setting: {}",
                ignored.join(", ")
            ));
        }
        variables
    }
}

fn is_service_link(key: &str, value: &str) -> bool {
    key.ends_with("Port") && (value.starts_with("tcp://") || value.starts_with("udp://"))
}

fn read_value_file(path: &str) -> Result<String, String> {
    let content = read_at_most(Path::new(path), MAX_VALUE_FILE)
        .map_err(|error| format!("the path of a file that can be read ({error})"))?;
    let text = String::from_utf8(content).map_err(|_| "a file of UTF-8 text".to_owned())?;
    match text.trim() {
        "" => Err("a file that is not empty".into()),
        text => Ok(text.to_owned()),
    }
}

impl Provider for Variable {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.source.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let values = Dict::from([(self.key.to_owned(), Value::from(self.text.clone()))]);
        Ok(Profile::Default.collect(values))
    }
}
