//! What the doctor says: one step after the other, for people and for machines.

use std::fmt;

use serde::Serialize;

use crate::printable;

pub(super) const CLOCK: &str = "clock";
pub(super) const CONFIGURATION: &str = "configuration";
pub(super) const SECRET_FILES: &str = "secret files";
pub(super) const ROUTER_NAME: &str = "Router's name";
pub(super) const ROUTER_PORT: &str = "Router's port";
pub(super) const DIALECT: &str = "Router's dialect";
pub(super) const ROUTER_KEY: &str = "Router's key";
pub(super) const RELAY_SESSIONS: &str = "relay sessions";
pub(super) const WHITE_LIST: &str = "white list";
pub(super) const PEER_ADDRESS: &str = "PeerAddress";
pub(super) const LISTEN_PORT: &str = "ListenPort";
pub(super) const PAIRING: &str = "pairing with itself";
pub(super) const RUNNING_RELAY: &str = "running relay";
pub(super) const ADMIN_LISTEN: &str = "AdminListen";
pub(super) const METRICS_LISTEN: &str = "MetricsListen";
pub(super) const METRICS_TLS: &str = "TLS of the metrics listener";
pub(super) const OPEN_FILES: &str = "open files";
pub(super) const MEMORY: &str = "memory";
pub(super) const TRACE_COLLECTOR: &str = "trace collector";
pub(super) const PIPES: &str = "pipes";

/// The steps that need a configuration without a mistake, in their order.
pub(super) const NEED_CONFIGURATION: &[&str] = &[
    ROUTER_NAME,
    ROUTER_PORT,
    DIALECT,
    ROUTER_KEY,
    RELAY_SESSIONS,
    WHITE_LIST,
    PEER_ADDRESS,
    LISTEN_PORT,
    PAIRING,
    RUNNING_RELAY,
    ADMIN_LISTEN,
    METRICS_LISTEN,
    METRICS_TLS,
    OPEN_FILES,
    MEMORY,
];

/// The names of all steps, in their order. A step may come more than once, but none is ever left out.
pub const STEPS: &[&str] = &[
    CLOCK,
    CONFIGURATION,
    SECRET_FILES,
    ROUTER_NAME,
    ROUTER_PORT,
    DIALECT,
    ROUTER_KEY,
    RELAY_SESSIONS,
    WHITE_LIST,
    PEER_ADDRESS,
    LISTEN_PORT,
    PAIRING,
    RUNNING_RELAY,
    ADMIN_LISTEN,
    METRICS_LISTEN,
    METRICS_TLS,
    OPEN_FILES,
    MEMORY,
    TRACE_COLLECTOR,
    PIPES,
];

/// How a step went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// Not as it should be: somebody has to do something.
    Failed,
    /// Perhaps not as it should be: worth a look.
    Hint,
    /// Not looked at, for the reason that is given.
    Skipped,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What was looked at.
    pub step: &'static str,
    /// How it went.
    pub outcome: Outcome,
    /// What was seen, and what to do about it.
    pub seen: String,
    /// More lines, where there are any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
}

impl Step {
    pub(super) fn new(step: &'static str, outcome: Outcome, seen: impl Into<String>) -> Self {
        Self { step, outcome, seen: seen.into(), details: Vec::new() }
    }

    pub(super) fn ok(step: &'static str, seen: impl Into<String>) -> Self {
        Self::new(step, Outcome::Ok, seen)
    }

    pub(super) fn failed(step: &'static str, seen: impl Into<String>) -> Self {
        Self::new(step, Outcome::Failed, seen)
    }

    pub(super) fn hint(step: &'static str, seen: impl Into<String>) -> Self {
        Self::new(step, Outcome::Hint, seen)
    }

    pub(super) fn skipped(step: &'static str, seen: impl Into<String>) -> Self {
        Self::new(step, Outcome::Skipped, seen)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.outcome {
            Outcome::Ok => '✓',
            Outcome::Failed => '✗',
            Outcome::Hint | Outcome::Skipped => '–',
        };
        write!(f, "{mark} {}: {}", self.step, printable::line(&self.seen))?;
        for line in &self.details {
            write!(f, "\n    {}", printable::line(line))?;
        }
        Ok(())
    }
}

/// All steps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// In the order in which they were taken.
    pub steps: Vec<Step>,
}

impl Report {
    /// Number of steps that failed.
    pub fn failures(&self) -> usize {
        self.failed().len()
    }

    /// The names of the steps that failed, in their order.
    pub fn failed(&self) -> Vec<&'static str> {
        let failed = self.steps.iter().filter(|step| step.outcome == Outcome::Failed);
        failed.map(|step| step.step).collect()
    }

    /// For machines.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({ "failures": self.failures(), "steps": self.steps })
    }
}
