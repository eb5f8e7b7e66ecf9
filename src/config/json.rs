//! Parses `relay.json`: one flat object whose values all become strings.

use std::fmt;
use std::path::Path;

use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value as JsonValue;

use super::file;
use super::layer::Layer;
use super::provenance::Provenance;
use super::report::{ConfigProblem, ConfigReport};
use super::settings::{self, Setting, SettingKey};

/// Parses the content of `relay.json` and notes what is wrong with it. `None` if it is not an object at all.
pub(super) fn parse(path: &Path, content: &[u8], report: &mut ConfigReport) -> Option<Layer> {
    let source = Provenance::File(path.to_owned());
    let mut problem = |key: String, value: Option<String>, expected: String| {
        let source = source.clone().into();
        report.problems.push(ConfigProblem { key, value, source, expected });
    };
    let members = match read_object(content) {
        Ok(members) => members,
        Err(error) => {
            problem(String::new(), None, format!("one JSON object of settings ({error})"));
            return None;
        }
    };
    let mut layer = Layer::new(source.clone());
    for (name, value) in members {
        // Keys that begin with an underscore are comments.
        if name.starts_with('_') {
            continue;
        }
        let Some(key) = SettingKey::find(&name) else {
            let expected = match settings::find_closest_key(&name) {
                Some(known) => format!("a known key; did you mean {known}?"),
                None => "a known key, or one that begins with _ for a comment".into(),
            };
            problem(name, None, expected);
            continue;
        };
        if layer.has(key) {
            problem(name, None, "each key once, but this one appears twice".into());
            continue;
        }
        match value_to_text(value, key.setting()) {
            Ok(text) => layer.set(key, text),
            Err((shown, expected)) => problem(name, shown, expected.into()),
        }
    }
    Some(layer)
}

/// Converts a value to text. The error holds the value, if it may be shown, and what is expected.
fn value_to_text(
    value: JsonValue,
    setting: &Setting,
) -> Result<String, (Option<String>, &'static str)> {
    match value {
        JsonValue::String(text) => Ok(text),
        JsonValue::Bool(_) | JsonValue::Number(_) => Ok(value.to_string()),
        other => setting.is_list.then(|| join_items(&other)).flatten().ok_or_else(|| {
            let shown = (!setting.is_secret).then(|| other.to_string());
            (shown, if setting.is_list { LIST } else { "a string, a number, true or false" })
        }),
    }
}

/// What a list must look like.
const LIST: &str = "an array of non-empty strings, or one string with commas";

/// Joins the items of a list that is written as a JSON array outside of JSON, as in a variable. `None` if the text is
/// not such a list.
pub(super) fn join_list(text: &str) -> Option<Result<String, String>> {
    let inside = text.strip_prefix('[')?.trim_start();
    match serde_json::from_str(text) {
        Ok(value) => Some(join_items(&value).ok_or_else(|| LIST.to_owned())),
        Err(error) if inside.starts_with('"') => Some(Err(format!("{LIST} ({error})"))),
        // An IPv6 address in brackets, for instance.
        Err(_) => None,
    }
}

/// Joins the items of a list with commas.
fn join_items(value: &JsonValue) -> Option<String> {
    let array = value.as_array()?;
    let items: Option<Vec<&str>> = array.iter().map(JsonValue::as_str).collect();
    let items = items?;
    (!items.contains(&"")).then(|| items.join(","))
}

/// Reads the members of an object in their order, including repeated ones: a map would silently keep the last.
fn read_object(content: &[u8]) -> serde_json::Result<Vec<(String, JsonValue)>> {
    struct ObjectVisitor;

    impl<'de> Visitor<'de> for ObjectVisitor {
        type Value = Vec<(String, JsonValue)>;

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

    let text = file::decode_text(content).map_err(serde_json::Error::custom)?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let members = reader.deserialize_map(ObjectVisitor)?;
    reader.end()?;
    Ok(members)
}
