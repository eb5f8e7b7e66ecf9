//! Requests to read the configuration again, and what comes of them. Whoever asks, one task of the relay serves all
//! requests, one after the other.

use tokio::sync::{mpsc, oneshot};

use crate::config::report::ConfigProblem;
use crate::config::settings::{ReloadClass, SettingKey};

/// How many requests can be pending.
pub(crate) const MAX_PENDING_RELOADS: usize = 16;

/// What a reload did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReloadOutcome {
    /// Settings that changed and are in force, or will be with a new link.
    pub changed: Vec<SettingKey>,
    /// Settings that take effect only after a restart.
    pub waiting: Vec<SettingKey>,
    /// What works but deserves attention.
    pub warnings: Vec<String>,
}

impl ReloadOutcome {
    /// The changed settings that take effect with a new link to the Router.
    pub fn with_new_link(&self) -> Vec<SettingKey> {
        let needs_link = |key: &SettingKey| key.setting().reload == ReloadClass::NewLink;
        self.changed.iter().copied().filter(needs_link).collect()
    }
}

/// Why a reload changed nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReloadFailure {
    /// All problems in words, on several lines if there are several.
    pub description: String,
    /// What is wrong with the configuration; empty if it could not be read at all.
    pub problems: Vec<ConfigProblem>,
}

/// What came of a reload.
pub type ReloadResult = Result<ReloadOutcome, ReloadFailure>;

/// A request to read the configuration again.
#[derive(Debug)]
pub(crate) struct ReloadRequest {
    /// Who asks, for the log.
    pub(crate) origin: &'static str,
    reply: Option<oneshot::Sender<ReloadResult>>,
}

impl ReloadRequest {
    /// Tells whoever waits for it what came of the request.
    pub(crate) fn answer(self, result: &ReloadResult) {
        if let Some(reply) = self.reply {
            // Whoever waited may have gone away.
            let _ = reply.send(result.clone());
        }
    }
}

/// Sends requests to the task that serves them.
pub(crate) struct ReloadRequests(pub(crate) mpsc::Sender<ReloadRequest>);

impl ReloadRequests {
    pub(super) fn send(&self, origin: &'static str) {
        // If there is no room, requests are pending that will read what this one would.
        let _ = self.0.try_send(ReloadRequest { origin, reply: None });
    }

    /// `None` if the task has ended, or ends before it answers.
    pub(super) async fn send_and_wait(&self, origin: &'static str) -> Option<ReloadResult> {
        let (reply, result) = oneshot::channel();
        self.0.send(ReloadRequest { origin, reply: Some(reply) }).await.ok()?;
        result.await.ok()
    }
}
