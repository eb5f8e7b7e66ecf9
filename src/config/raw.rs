//! What the operator wrote: every setting as a text with its provenance.

use std::collections::BTreeMap;

use figment::Figment;
use figment::value::Tag;

use super::file;
use super::json;
use super::layer::Layer;
use super::provenance::Provenance;
use super::report::{ConfigReport, FileState};
use super::settings::{SETTINGS, Setting, SettingKey};
use super::source_files::SourceFiles;
use super::sources::Sources;
use super::variables;

/// The text of one setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RawValue {
    /// The text, without the white space around it.
    pub(super) text: String,
    /// Where it came from.
    pub(super) source: Provenance,
    /// Whether it is a secret, or the content of a secret file. That may be the wrong file, so a text that does not
    /// parse is not shown.
    pub(super) is_confidential: bool,
}

/// All settings that somebody set, and the defaults of the others.
#[derive(Debug, Clone, Default)]
pub(super) struct RawSettings {
    values: BTreeMap<&'static str, RawValue>,
}

impl RawSettings {
    /// The text of a setting, if it has one.
    pub(super) fn get(&self, key: SettingKey) -> Option<&RawValue> {
        self.values.get(key.name())
    }

    /// The value of a setting, if it is set and valid.
    pub(super) fn parsed<T>(
        &self,
        key: SettingKey,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.get(key).and_then(|value| parse(&value.text).ok())
    }

    /// Sets a default that follows from something else, which `from` names.
    pub(super) fn derive(&mut self, key: SettingKey, text: String, from: &str) {
        let source = Provenance::Derived(from.to_owned());
        self.values.insert(key.name(), RawValue { text, source, is_confidential: false });
    }

    /// Replaces the text of a value, and keeps its source.
    pub(super) fn rewrite(&mut self, key: SettingKey, text: String) {
        if let Some(value) = self.values.get_mut(key.name()) {
            value.text = text;
        }
    }

    /// Merges defaults, file and environment, of which later ones win, and notes what cannot be read. `in_force` is the
    /// report of an earlier read, if this is a reload: a file that was read for it and is missing now is a problem.
    pub(super) fn collect(
        sources: &Sources,
        in_force: Option<&ConfigReport>,
        report: &mut ConfigReport,
    ) -> Self {
        let files = SourceFiles::read(sources, in_force.map(|report| &report.pipe_contents));
        report.digest = files.digest(sources);
        report.pipe_contents = files.pipe_contents(sources);
        let file_was_read = in_force.is_some_and(|report| report.file == FileState::Read);
        let mut merged = Merged::default();
        merged.add(Layer::defaults());
        if let Some(content) = file::usable_content(&files.config, sources, file_was_read, report) {
            match json::parse(&sources.path, content, report) {
                Some(layer) => merged.add(layer),
                None => report.file = FileState::Unusable,
            }
        }
        for variable in variables::read(sources, &files, report) {
            merged.add(variable);
        }
        let mut settings = Self::default();
        for setting in SETTINGS {
            if let Some((text, source)) = merged.get(setting.key) {
                let is_content = matches!(source, Provenance::SecretFile { .. });
                let is_confidential = setting.is_secret || is_content;
                settings.add(setting, RawValue { text, source, is_confidential }, report);
            }
        }
        settings
    }

    /// Adds a value after normalising it.
    fn add(&mut self, setting: &'static Setting, written: RawValue, report: &mut ConfigReport) {
        let mut value = written;
        let text = file::trim_text(&value.text);
        // A blank value that is not allowed is kept so that it is rejected: a token or a list must not vanish because
        // of it.
        if setting.is_original || !text.is_empty() {
            value.text = text.to_owned();
        }
        if setting.is_list {
            match json::join_list(&value.text) {
                Some(Ok(items)) => value.text = items,
                Some(Err(expected)) => {
                    let shown = (!value.is_confidential).then_some(value.text);
                    report.add_problem(setting.key, shown, value.source, expected);
                    return;
                }
                None => {}
            }
        }
        if let Some(default) =
            setting.default.filter(|_| setting.is_original && value.text.is_empty())
        {
            report.add_warning(&format!(
                "{} is empty ({}): its default is used",
                setting.key, value.source
            ));
            value.text = default.to_owned();
            value.source = Provenance::Default;
        }
        self.values.insert(setting.key.name(), value);
    }
}

/// Layers that figment has merged, with the provenance of each: figment tags every value with its layer.
#[derive(Default)]
struct Merged {
    figment: Figment,
    provenances: Vec<(Tag, Provenance)>,
}

impl Merged {
    fn add(&mut self, layer: Layer) {
        let (key, provenance) = (layer.any_key(), layer.provenance.clone());
        self.figment = std::mem::take(&mut self.figment).merge(layer);
        // The newest layer wins, so this value carries its tag.
        if let Some(value) = key.and_then(|key| self.figment.find_value(&key).ok()) {
            self.provenances.push((value.tag(), provenance));
        }
    }

    fn get(&self, key: SettingKey) -> Option<(String, Provenance)> {
        let value = self.figment.find_value(key.name()).ok()?;
        let (_, provenance) = self.provenances.iter().find(|(tag, _)| *tag == value.tag())?;
        Some((value.into_string()?, provenance.clone()))
    }
}
