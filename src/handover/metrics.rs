//! The metrics of hand-overs.

use std::time::Duration;

use prometheus::{Histogram, IntCounter, IntGauge, Registry};

use crate::metrics::{Counters, counter, counters, gauge, histogram, labels};

labels! {
    /// How the previous relay ended.
    pub enum HandoverKind {
        /// It handed everything over.
        Planned = "planned",
        /// It died.
        Crash = "crash",
    }
}

/// The metrics of hand-overs. The relay that takes over counts them.
#[derive(Debug, Clone)]
pub struct HandoverMetrics {
    /// Exists only with a store.
    connected: Option<IntGauge>,
    handovers: Counters<HandoverKind>,
    adopted: IntCounter,
    seconds: Histogram,
}

impl HandoverMetrics {
    /// Registers the metrics. `has_store` tells whether there should be a descriptor store.
    ///
    /// # Errors
    /// A name is already registered.
    pub fn new(registry: &Registry, has_store: bool) -> prometheus::Result<Self> {
        let connected = || {
            gauge(
                registry,
                "aspia_relay_fd_store_connected",
                "1 while the relay is connected to its descriptor store.",
            )
        };
        Ok(Self {
            connected: has_store.then(connected).transpose()?,
            handovers: counters(
                registry,
                "aspia_relay_handovers_total",
                "How many times a relay has taken over from its predecessor.",
                "kind",
            )?,
            adopted: counter(
                registry,
                "aspia_relay_sessions_adopted_total",
                "Sessions that were taken over from the previous relay.",
            )?,
            seconds: histogram(
                registry,
                "aspia_relay_handover_seconds",
                "How long sessions stood still at planned hand-overs.",
                &[0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0],
            )?,
        })
    }

    /// Shows whether the relay is connected to the store.
    pub fn set_connected(&self, is_connected: bool) {
        if let Some(connected) = &self.connected {
            connected.set(is_connected.into());
        }
    }

    /// Counts that sessions were taken over. `duration` is how long they stood still, if that is known.
    pub fn count(&self, kind: HandoverKind, sessions: usize, duration: Option<Duration>) {
        self.handovers.count(kind);
        self.adopted.inc_by(sessions as u64);
        if let Some(duration) = duration {
            self.seconds.observe(duration.as_secs_f64());
        }
    }
}
