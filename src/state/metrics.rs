//! The metrics of keys and sessions.

use prometheus::{Histogram, IntCounter, IntGauge, Registry};

use crate::metrics::{Counters, counter, counters, gauge, histogram, labels};

use super::keys::StateCounts;
use super::sessions::End;

labels! {
    /// What becomes of keys.
    pub enum KeyEvent {
        /// Offered to the Router.
        Issued = "issued",
        /// Used up by a session.
        Paired = "paired",
        /// Used up by two peers who may not have a session (`MaxSessionsPerUser`, `MaxSessionsPerHost`).
        Refused = "refused",
        /// Handed out, but two peers did not connect in time.
        Expired = "expired",
        /// Still on offer when the link was lost.
        Dropped = "dropped",
    }
}

/// The metrics of keys and sessions. Events are counted when they happen; gauges and bytes are read from the state when
/// metrics are gathered, so that the code that moves bytes updates no metric.
#[derive(Debug, Clone)]
pub struct StateMetrics {
    pub(super) key_events: Counters<KeyEvent>,
    pub(super) ends: Counters<End>,
    pub(super) session_seconds: Histogram,
    pub(super) session_bytes: Histogram,
    offered: IntGauge,
    handed_out: IntGauge,
    active: IntGauge,
    limit: IntGauge,
    bytes: IntCounter,
}

impl StateMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// A name is already registered.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let keys = prometheus::IntGaugeVec::new(
            prometheus::Opts::new(
                "aspia_relay_keys",
                "One-time keys at the Router (offered) and given to peers by it (handed_out).",
            ),
            &["state"],
        )?;
        registry.register(Box::new(keys.clone()))?;
        Ok(Self {
            key_events: counters(
                registry,
                "aspia_relay_key_events_total",
                "Events in the life of one-time keys.",
                "event",
            )?,
            ends: counters(
                registry,
                "aspia_relay_sessions_total",
                "Sessions that have ended, by reason.",
                "end",
            )?,
            session_seconds: histogram(
                registry,
                "aspia_relay_session_duration_seconds",
                "How long sessions lasted.",
                // From a failed attempt to a working day.
                &[1.0, 10.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 14400.0, 28800.0, 86400.0],
            )?,
            session_bytes: histogram(
                registry,
                "aspia_relay_session_bytes",
                "Bytes that sessions moved, both directions.",
                // From 1 KiB to 128 GiB, each eight times the one before.
                &[
                    1024.0,
                    8192.0,
                    65536.0,
                    524_288.0,
                    4_194_304.0,
                    33_554_432.0,
                    268_435_456.0,
                    2_147_483_648.0,
                    17_179_869_184.0,
                    137_438_953_472.0,
                ],
            )?,
            offered: keys.with_label_values(&["offered"]),
            handed_out: keys.with_label_values(&["handed_out"]),
            active: gauge(registry, "aspia_relay_sessions_active", "Active sessions.")?,
            limit: gauge(registry, "aspia_relay_sessions_limit", "MaxPeerCount.")?,
            bytes: counter(
                registry,
                "aspia_relay_bytes_total",
                "Bytes delivered to peers, of active and ended sessions, each counted once.",
            )?,
        })
    }

    /// Sets the gauges and the byte count to what the state knows. `bytes` never decreases.
    pub(super) fn refresh(&self, counts: StateCounts, bytes: u64) {
        let set =
            |gauge: &IntGauge, value: usize| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        set(&self.offered, counts.offered);
        set(&self.handed_out, counts.handed_out);
        set(&self.active, counts.active);
        set(&self.limit, counts.capacity);
        self.bytes.inc_by(bytes.saturating_sub(self.bytes.get()));
    }
}
