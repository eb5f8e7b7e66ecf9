//! The settings in force: replaced by a reload, and reported by metrics.

use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use prometheus::{IntGauge, Registry};
use tokio::sync::watch;

use crate::config::report::ConfigReport;
use crate::config::settings::SettingKey;
use crate::config::{Config, LoadedConfig, SourceDigest};
use crate::metrics::gauge;

use super::reload::{ReloadFailure, ReloadOutcome};

/// How the configuration was read last, at the start or later.
#[derive(Debug, Clone)]
pub struct LastRead {
    /// The digest of the files.
    pub digest: SourceDigest,
    /// When the configuration in force was read.
    pub accepted_at: SystemTime,
    /// Why the configuration that was read last is not in force, and when that was found; `None` if it is in force.
    pub failure: Option<(SystemTime, ReloadFailure)>,
}

/// The settings of a running relay.
pub struct LiveSettings {
    config: watch::Sender<Arc<Config>>,
    report: Mutex<Arc<ConfigReport>>,
    waiting: Mutex<Vec<SettingKey>>,
    last_read: Mutex<LastRead>,
    reload_successful: IntGauge,
    reload_timestamp: IntGauge,
}

impl LiveSettings {
    /// The settings that `config` holds, as they were read at the start.
    pub(crate) fn new(
        config: watch::Sender<Arc<Config>>,
        report: ConfigReport,
        registry: &Registry,
    ) -> prometheus::Result<Self> {
        let last_read =
            LastRead { digest: report.digest, accepted_at: SystemTime::now(), failure: None };
        let settings = Self {
            config,
            last_read: Mutex::new(last_read),
            report: Mutex::new(Arc::new(report)),
            waiting: Mutex::default(),
            reload_successful: gauge(
                registry,
                "aspia_relay_config_last_reload_successful",
                "1 if the configuration that was read last, at the start or later, was accepted.",
            )?,
            reload_timestamp: gauge(
                registry,
                "aspia_relay_config_last_reload_success_timestamp_seconds",
                "When the configuration in force was read, in seconds since 1970.",
            )?,
        };
        settings.record_success(settings.report().digest);
        Ok(settings)
    }

    pub(super) fn config(&self) -> Arc<Config> {
        self.config.borrow().clone()
    }

    /// A receiver of new settings.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Config>> {
        self.config.subscribe()
    }

    /// The values of the configuration that was read last, with their sources; secrets are redacted.
    pub fn report(&self) -> Arc<ConfigReport> {
        self.report.lock().clone()
    }

    /// The keys of settings that were read but take effect only after a restart.
    pub fn waiting_for_restart(&self) -> Vec<&'static str> {
        self.waiting.lock().iter().map(|key| key.name()).collect()
    }

    /// Puts the new settings in force, except those that need a restart. `prepare` is called with them first.
    pub(super) fn apply(&self, new: &LoadedConfig, prepare: impl FnOnce(&Config)) -> ReloadOutcome {
        let old = self.config();
        let (applied, waiting) = old.apply_reload(&new.config);
        let changed = old.differences(&applied);
        prepare(&applied);
        self.config.send_replace(Arc::new(applied));
        *self.report.lock() = Arc::new(new.report.clone());
        self.waiting.lock().clone_from(&waiting);
        self.record_success(new.report.digest);
        ReloadOutcome { changed, waiting, warnings: new.report.warnings.clone() }
    }

    /// How the configuration was read last.
    pub fn last_read(&self) -> LastRead {
        self.last_read.lock().clone()
    }

    /// Records that a new configuration cannot be used, and is not applied. The digest is that of its files, if they were
    /// read. Returns whether the last one could not be used for the same reason.
    pub(crate) fn record_failed_reload(
        &self,
        digest: Option<SourceDigest>,
        failure: &ReloadFailure,
    ) -> bool {
        self.reload_successful.set(0);
        let mut last = self.last_read.lock();
        last.digest = digest.unwrap_or(last.digest);
        if last.failure.as_ref().is_some_and(|(_, before)| before == failure) {
            return true;
        }
        last.failure = Some((SystemTime::now(), failure.clone()));
        false
    }

    fn record_success(&self, digest: SourceDigest) {
        let accepted_at = SystemTime::now();
        *self.last_read.lock() = LastRead { digest, accepted_at, failure: None };
        let now = accepted_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.reload_successful.set(1);
        self.reload_timestamp.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    }
}
