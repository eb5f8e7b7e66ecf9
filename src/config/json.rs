//! `relay.json` as figment takes it: one flat object, every value a text.

use std::fmt;

use figment::value::{Dict, Map, Value};
use figment::{Metadata, Profile, Provider, Source};
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::file;
use super::report::{Problem, Report};
use super::settings;

/// The settings of one file, in figment's form.
pub(super) struct JsonFile {
    path: std::path::PathBuf,
    values: Dict,
}

impl JsonFile {
    /// Takes the file's content apart and notes what is wrong with it.
    /// `None` where it is no object at all.
    pub(super) fn parse(
        path: &std::path::Path,
        content: &[u8],
        report: &mut Report,
    ) -> Option<Self> {
        let source = format!("file {}", path.display());
        let mut values = Dict::new();
        let mut problem = |key: &str, value: Option<String>, expected: String| {
            report.problems.push(Problem {
                key: key.to_owned(),
                value,
                source: source.clone(),
                expected,
            });
        };
        match read_object(content) {
            Err(error) => {
                problem("", None, format!("one JSON object of settings ({error})"));
                return None;
            }
            Ok(members) => {
                for (key, value) in members {
                    // Keys that begin with an underscore are comments.
                    if key.starts_with('_') {
                        continue;
                    }
                    let Some(setting) = settings::find(&key) else {
                        let expected = match settings::closest(&key) {
                            Some(known) => format!("a known key; did you mean {known}?"),
                            None => "a known key, or one that begins with _ for a comment".into(),
                        };
                        problem(&key, None, expected);
                        continue;
                    };
                    if values.contains_key(&key) {
                        problem(&key, None, "each key once; this one stands here twice".into());
                        continue;
                    }
                    let text = match value {
                        serde_json::Value::String(text) => text,
                        serde_json::Value::Bool(_) | serde_json::Value::Number(_) => {
                            value.to_string()
                        }
                        other => match setting.list.then(|| items(&other)).flatten() {
                            Some(text) => text,
                            None => {
                                let expected = if setting.list {
                                    LIST
                                } else {
                                    "a string, a number, true or false"
                                };
                                let shown = (!setting.secret).then(|| other.to_string());
                                problem(&key, shown, expected.into());
                                continue;
                            }
                        },
                    };
                    values.insert(key, Value::from(text));
                }
            }
        }
        Some(Self { path: path.to_owned(), values })
    }
}

/// What is expected of a list.
const LIST: &str = "an array of strings that are not empty, or one string with commas";

/// The items of a list that is written as in JSON where there is no JSON around it, as in a variable: with commas
/// between. `None` where the text is no such list.
pub(super) fn list(text: &str) -> Option<Result<String, String>> {
    let inside = text.strip_prefix('[')?.trim_start();
    match serde_json::from_str(text) {
        Ok(value) => Some(items(&value).ok_or_else(|| LIST.to_owned())),
        Err(error) if inside.starts_with('"') => Some(Err(format!("{LIST} ({error})"))),
        // An IPv6 address in brackets, for instance.
        Err(_) => None,
    }
}

/// The items of a list, with commas between.
fn items(value: &serde_json::Value) -> Option<String> {
    let array = value.as_array()?;
    let items: Option<Vec<&str>> = array.iter().map(serde_json::Value::as_str).collect();
    // One that is empty is not the same as none.
    let items = items?;
    (!items.contains(&"")).then(|| items.join(","))
}

impl Provider for JsonFile {
    fn metadata(&self) -> Metadata {
        Metadata::from("file", Source::File(self.path.clone()))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

/// The members of an object in their order, repeated ones too: a map would keep the last without a word.
fn read_object(content: &[u8]) -> serde_json::Result<Vec<(String, serde_json::Value)>> {
    struct Members;

    impl<'de> Visitor<'de> for Members {
        type Value = Vec<(String, serde_json::Value)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut members = Vec::new();
            while let Some(member) = map.next_entry()? {
                members.push(member);
            }
            Ok(members)
        }
    }

    let text = file::text(content).map_err(serde_json::Error::custom)?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let members = reader.deserialize_map(Members)?;
    reader.end()?;
    Ok(members)
}
