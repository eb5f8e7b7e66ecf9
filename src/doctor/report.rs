//! What the doctor says: one step after the other, for people and for machines.

use std::fmt;

use serde::Serialize;

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
        write!(f, "{mark} {}: {}", self.step, printable(&self.seen))?;
        for line in &self.details {
            write!(f, "\n    {}", printable(line))?;
        }
        Ok(())
    }
}

/// Nothing that a file or a Router says reaches the terminal as a command to it.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
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
        self.steps.iter().filter(|step| step.outcome == Outcome::Failed).count()
    }

    /// For machines.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({ "failures": self.failures(), "steps": self.steps })
    }
}
