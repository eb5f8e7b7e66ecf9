//! Reads settings one by one, and notes their values and problems in the report.

use std::path::Path;

use super::provenance::Provenance;
use super::raw::{RawSettings, RawValue};
use super::report::{ConfigReport, FileState};
use super::settings::{ReadSetting, SettingKey};

/// Reads from raw settings.
pub(super) struct Reader<'a> {
    pub(super) raw: &'a RawSettings,
    /// The path of `relay.json`.
    pub(super) path: &'a Path,
    /// What to do about a missing `relay.json`.
    pub(super) missing_file_advice: &'a str,
    pub(super) report: &'a mut ConfigReport,
}

impl ReadSetting for Reader<'_> {
    fn read<T>(&mut self, key: SettingKey, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let setting = key.setting();
        let value = self.raw.get(key);
        if let Some(what) = setting.required
            && value.is_none_or(|value| value.text.trim().is_empty())
        {
            self.report.add_setting(key, "", Provenance::NotSet);
            self.note_missing(key, what, value);
            return None;
        }
        let (text, source, is_confidential) = match value {
            Some(value) => (value.text.as_str(), value.source.clone(), value.is_confidential),
            None => ("", Provenance::Default, false),
        };
        if setting.is_derived && text.is_empty() {
            // The setting from which it is derived has a problem, which is reported for that setting.
            self.report.add_setting(key, "", source);
            return None;
        }
        match parse(text) {
            Ok(parsed) => {
                self.report.add_setting(key, setting.shown(text), source);
                Some(parsed)
            }
            Err(expected) => {
                let shown = (!is_confidential).then(|| text.to_owned());
                self.report.add_setting(
                    key,
                    shown.as_deref().unwrap_or("not shown"),
                    source.clone(),
                );
                self.report.add_problem(key, shown, source, expected);
                None
            }
        }
    }
}

impl Reader<'_> {
    /// Notes that a required setting is missing, unless the file that may set it is unusable or a problem with it is
    /// noted.
    fn note_missing(&mut self, key: SettingKey, what: &str, value: Option<&RawValue>) {
        let path = self.path.display();
        let (source, no_file) = match (value, self.report.file) {
            // The unusable file may set it.
            (None, FileState::Unusable) => return,
            (Some(value), _) => (value.source.clone(), String::new()),
            (None, FileState::Absent) => {
                let no_file = format!(" ({path} does not exist; {})", self.missing_file_advice);
                (Provenance::NotSet, no_file)
            }
            (None, FileState::Read) => (Provenance::File(self.path.to_owned()), String::new()),
        };
        // One problem with a key is enough.
        if self.report.problems.iter().any(|problem| key == *problem.key) {
            return;
        }
        let variable = key.variable();
        let expected =
            format!("{what}; required, in relay.json or as {variable} or {variable}_FILE{no_file}");
        self.report.add_problem(key, None, source, expected);
    }
}
