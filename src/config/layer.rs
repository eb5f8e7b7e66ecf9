//! One source of settings as figment merges it.

use figment::value::{Dict, Map, Value};
use figment::{Metadata, Profile, Provider};

use super::provenance::Provenance;
use super::settings::{SETTINGS, SettingKey};

/// The settings of one source. Every value is a string: figment's own providers would take `0123` for a number.
pub(super) struct Layer {
    values: Dict,
    pub(super) provenance: Provenance,
}

impl Layer {
    pub(super) fn new(provenance: Provenance) -> Self {
        Self { values: Dict::new(), provenance }
    }

    /// The built-in defaults.
    pub(super) fn defaults() -> Self {
        let mut layer = Self::new(Provenance::Default);
        for setting in SETTINGS {
            if let Some(default) = setting.default {
                layer.set(setting.key, default.to_owned());
            }
        }
        layer
    }

    pub(super) fn set(&mut self, key: SettingKey, text: String) {
        self.values.insert(key.name().to_owned(), Value::from(text));
    }

    pub(super) fn has(&self, key: SettingKey) -> bool {
        self.values.contains_key(key.name())
    }

    /// One of the keys that this layer sets, if it sets any.
    pub(super) fn any_key(&self) -> Option<String> {
        self.values.keys().next().cloned()
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.provenance.to_string())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}
