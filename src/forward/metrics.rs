//! The metrics of how bytes are moved. The bytes themselves are counted by session.

use prometheus::{IntCounter, IntGauge, Registry};

use crate::metrics::{counter, gauge};

/// The metrics of forwarding.
#[derive(Debug, Clone)]
#[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "without pipes they stay 0"))]
pub struct ForwardMetrics {
    pub(super) pipes: IntGauge,
    pub(super) fallbacks: IntCounter,
}

impl ForwardMetrics {
    /// Registers them.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            pipes: gauge(
                registry,
                "aspia_relay_pipes",
                "Pipes that are open, through which the kernel moves bytes without copying them.",
            )?,
            fallbacks: counter(
                registry,
                "aspia_relay_pipe_fallbacks_total",
                "How often bytes were copied because there was no pipe to be had, or the kernel refused to use one.",
            )?,
        })
    }
}
