//! Metrics of how bytes are moved. The bytes themselves are counted by session.

use prometheus::{IntCounter, IntGauge, Registry};

use crate::metrics::{counter, gauge};

/// The metrics of forwarding.
#[derive(Debug, Clone)]
#[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "always 0 without pipes"))]
pub struct ForwardMetrics {
    pub(super) pipes: IntGauge,
    pub(super) fallbacks: IntCounter,
}

impl ForwardMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// A name is already registered.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            pipes: gauge(
                registry,
                "aspia_relay_pipes",
                "Open pipes, through which the kernel moves bytes without copying them.",
            )?,
            fallbacks: counter(
                registry,
                "aspia_relay_pipe_fallbacks_total",
                "How often bytes were copied because no pipe was available, or the kernel refused to use one.",
            )?,
        })
    }
}
