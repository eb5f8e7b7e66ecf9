//! The report of the doctor: its steps in order, for people and as JSON.

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
pub(super) const FD_STORE: &str = "descriptor store";
pub(super) const OPEN_FILES: &str = "open files";
pub(super) const MEMORY: &str = "memory";
pub(super) const OFFER_BY_LOAD: &str = "OfferByLoad";
pub(super) const TRACE_COLLECTOR: &str = "trace collector";
pub(super) const PIPES: &str = "pipes";

/// The steps that need a valid configuration, in order.
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
    FD_STORE,
    OPEN_FILES,
    MEMORY,
    OFFER_BY_LOAD,
];

/// The names of all steps, in order. A step may occur more than once, but none is ever missing.
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
    FD_STORE,
    OPEN_FILES,
    MEMORY,
    OFFER_BY_LOAD,
    TRACE_COLLECTOR,
    PIPES,
];

/// The outcome of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StepOutcome {
    /// All is well.
    Ok,
    /// Something is wrong and must be fixed.
    Failed,
    /// Something may be wrong and deserves a look.
    Hint,
    /// Not examined, for the reason given.
    Skipped,
}

/// One step of the examination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DoctorStep {
    /// The name of the step, one of [`STEPS`].
    pub step: &'static str,
    /// The outcome of the step.
    pub outcome: StepOutcome,
    /// What was seen, and what to do about it.
    pub seen: String,
    /// Further lines; most steps have none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
}

impl DoctorStep {
    pub(super) fn new(step: &'static str, outcome: StepOutcome, seen: impl Into<String>) -> Self {
        Self { step, outcome, seen: seen.into(), details: Vec::new() }
    }

    pub(super) fn ok(step: &'static str, seen: impl Into<String>) -> Self {
        Self::new(step, StepOutcome::Ok, seen)
    }

    pub(super) fn failed(step: &'static str, seen: impl Into<String>) -> Self {
        Self::new(step, StepOutcome::Failed, seen)
    }

    pub(super) fn hint(step: &'static str, seen: impl Into<String>) -> Self {
        Self::new(step, StepOutcome::Hint, seen)
    }

    pub(super) fn skipped(step: &'static str, seen: impl Into<String>) -> Self {
        Self::new(step, StepOutcome::Skipped, seen)
    }
}

impl fmt::Display for DoctorStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.outcome {
            StepOutcome::Ok => '✓',
            StepOutcome::Failed => '✗',
            StepOutcome::Hint | StepOutcome::Skipped => '–',
        };
        write!(f, "{mark} {}: {}", self.step, printable::escape_line(&self.seen))?;
        for line in &self.details {
            write!(f, "\n    {}", printable::escape_line(line))?;
        }
        Ok(())
    }
}

/// The steps of a whole examination.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DoctorReport {
    /// The steps in the order in which they were taken.
    pub steps: Vec<DoctorStep>,
}

impl DoctorReport {
    /// The number of failed steps.
    pub fn failures(&self) -> usize {
        self.failed().len()
    }

    /// The names of the failed steps, in order.
    pub fn failed(&self) -> Vec<&'static str> {
        let failed = self.steps.iter().filter(|step| step.outcome == StepOutcome::Failed);
        failed.map(|step| step.step).collect()
    }

    /// The report as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({ "failures": self.failures(), "steps": self.steps })
    }
}
