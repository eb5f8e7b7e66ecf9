//! The task that reads the configuration again and applies it, whoever asks: a signal, the service manager, an
//! administrator, or the watch on its files. Reloads run one after another. None ends a
//! session, except those that exceed a stricter time limit.

use tokio::sync::mpsc::Receiver;
use tracing::{error, info, warn};

use crate::config::report::ConfigReport;
use crate::config::settings::{self, ReloadClass, SettingKey};
use crate::config::sources::Sources;
use crate::config::{self, InvalidConfig, LoadedConfig, SourceDigest};
use crate::handle::reload::{MAX_PENDING_RELOADS, ReloadRequest};
use crate::handle::{Handle, ReloadFailure, ReloadOutcome, ReloadResult};
#[cfg(unix)]
use crate::systemd;

use super::config_watch;
use super::machine;

/// Who asks for a reload because a file has changed, for the log.
const WATCH: &str = "WatchConfig";

/// Reads the configuration again and applies it.
pub(super) struct ConfigReloader {
    handle: Handle,
    sources: Sources,
    requests: Receiver<ReloadRequest>,
}

/// A configuration that cannot be used.
struct Unusable {
    /// The digest of the files, if they were read.
    digest: Option<SourceDigest>,
    warnings: Vec<String>,
    failure: ReloadFailure,
}

impl From<Box<InvalidConfig>> for Unusable {
    fn from(invalid: Box<InvalidConfig>) -> Self {
        let description = invalid.describe();
        let ConfigReport { digest, warnings, problems, .. } = invalid.0;
        let failure = ReloadFailure { description, problems };
        Self { digest: Some(digest), warnings, failure }
    }
}

impl ConfigReloader {
    pub(super) fn new(handle: Handle, sources: Sources, requests: Receiver<ReloadRequest>) -> Self {
        Self { handle, sources, requests }
    }

    /// Serves requests, and reloads when files have changed, for ever.
    pub(super) async fn run(mut self) {
        let mut pending = Vec::new();
        loop {
            tokio::select! {
                biased;
                // A reload that begins now reads what each of these requests would.
                count = self.requests.recv_many(&mut pending, MAX_PENDING_RELOADS) => {
                    if count == 0 {
                        return;
                    }
                    let result = self.reload(&join_origins(&pending)).await;
                    for request in pending.drain(..) {
                        request.answer(&result);
                    }
                }
                () = config_watch::wait_for_change(&self.handle, &self.sources) => {
                    self.reload_changed_files().await;
                }
            }
        }
    }

    async fn reload(&self, origin: &str) -> ReloadResult {
        #[cfg(unix)]
        systemd::notify_reloading(&self.handle).await;
        let result = match self.read().await {
            Ok(loaded) => Ok(self.apply(&loaded, origin)),
            Err(unusable) => {
                self.record(&unusable);
                log_failure(&unusable, origin);
                Err(unusable.failure)
            }
        };
        #[cfg(unix)]
        systemd::notify_reloaded(&self.handle).await;
        result
    }

    /// Reloads without being asked, so the same failure is logged only once, and the service manager need not know.
    async fn reload_changed_files(&self) {
        match self.read().await {
            Ok(loaded) => {
                self.apply(&loaded, WATCH);
            }
            Err(unusable) => {
                if !self.record(&unusable) {
                    log_failure(&unusable, WATCH);
                }
            }
        }
    }

    /// Reads the configuration on a thread that may block.
    async fn read(&self) -> Result<LoadedConfig, Unusable> {
        let (sources, in_force) = (self.sources.clone(), self.handle.settings().report());
        let read = move || config::reload(&sources, &in_force);
        match tokio::task::spawn_blocking(read).await {
            Ok(loaded) => loaded.map_err(Unusable::from),
            Err(error) => {
                let description = format!("the configuration could not be read: {error}");
                let failure = ReloadFailure { description, problems: Vec::new() };
                Err(Unusable { digest: None, warnings: Vec::new(), failure })
            }
        }
    }

    fn apply(&self, loaded: &LoadedConfig, origin: &str) -> ReloadOutcome {
        // Before the new settings can admit more sessions.
        let of_machine = machine::prepare(&loaded.config);
        let mut outcome = self.handle.reload(loaded);
        outcome.warnings.extend(of_machine);
        for warning in &outcome.warnings {
            warn!("{warning}");
        }
        let changes = describe_changes(&outcome.changed);
        info!("{origin}: the configuration was read; changed: [{changes}]");
        if !outcome.waiting.is_empty() {
            let waiting = settings::join_names(&outcome.waiting);
            warn!("{origin}: a restart is needed for: {waiting}");
        }
        outcome
    }

    /// Returns whether the configuration could not be used before, for the same reason.
    fn record(&self, unusable: &Unusable) -> bool {
        self.handle.settings().record_failed_reload(unusable.digest, &unusable.failure)
    }
}

fn log_failure(unusable: &Unusable, origin: &str) {
    for warning in &unusable.warnings {
        warn!("{warning}");
    }
    error!("{origin}: nothing is changed, {}", unusable.failure.description);
}

/// Names everybody who asks, each once.
fn join_origins(requests: &[ReloadRequest]) -> String {
    let mut origins: Vec<_> = requests.iter().map(|request| request.origin).collect();
    origins.sort_unstable();
    origins.dedup();
    origins.join(", ")
}

/// Lists the settings that changed, with a note on those that take effect with a new link.
fn describe_changes(changed: &[SettingKey]) -> String {
    let with_link = |key: &SettingKey| match key.setting().reload {
        ReloadClass::NewLink => format!("{key} (with a new link)"),
        ReloadClass::Now | ReloadClass::Restart => key.to_string(),
    };
    changed.iter().map(with_link).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_need_a_new_link_say_so() {
        assert_eq!(describe_changes(&[]), "");
        let changed = describe_changes(&[SettingKey::MaxPeerCount, SettingKey::RouterPort]);
        assert_eq!(changed, "MaxPeerCount, RouterPort (with a new link)");
    }
}
