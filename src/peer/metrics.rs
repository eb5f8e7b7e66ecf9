//! The metrics of connections that are not, or not yet, part of a session.

use prometheus::{Histogram, IntCounter, IntGauge, Registry};

use crate::forward::failure::is_of_connection;
use crate::metrics::{Counters, counter, counters, gauge, histogram, labels};
use crate::state::Refusal;
use crate::state::pairing::PairingError;

use super::error::PeerError;
use super::first_message::FirstMessageError;

labels! {
    /// What became of a connection that was accepted.
    pub enum Connection {
        /// It became one of the two of a session.
        Paired = "paired",
        /// Its first message, or its partner, did not come in time.
        Timeout = "timeout",
        /// It named a key that is not good.
        UnknownKey = "unknown_key",
        /// Its first message is none, or was received before.
        BadMessage = "bad_message",
        /// Its secret is not that of the peer that waits with the same key.
        BadSecret = "bad_secret",
        /// Its address connected too often.
        RateLimited = "rate_limited",
        /// Its address is not let in.
        Denied = "denied",
        /// Too many others wait.
        PendingLimit = "pending_limit",
        /// It closed, or its connection failed.
        Closed = "closed",
        /// The relay or its system failed.
        Error = "error",
        /// The relay stops.
        Draining = "draining",
    }
}

impl From<&PeerError> for Connection {
    fn from(error: &PeerError) -> Self {
        match error {
            PeerError::FirstMessage(FirstMessageError::Io(error)) | PeerError::Io(error)
                if !is_of_connection(error) =>
            {
                Self::Error
            }
            PeerError::FirstMessage(FirstMessageError::Closed | FirstMessageError::Io(_))
            | PeerError::WentAway
            | PeerError::Io(_) => Self::Closed,
            PeerError::FirstMessage(_) => Self::BadMessage,
            PeerError::Silent | PeerError::Alone => Self::Timeout,
            PeerError::MadeRoom(_) => Self::PendingLimit,
            PeerError::Refused { refusal, .. } => match refusal {
                Refusal::UnknownKey => Self::UnknownKey,
                Refusal::Pairing(PairingError::OtherSecret) => Self::BadSecret,
                Refusal::Pairing(PairingError::Replay | PairingError::TooMany) => Self::BadMessage,
            },
        }
    }
}

/// The metrics of connections.
#[derive(Debug, Clone)]
pub struct PeerMetrics {
    pub(super) connections: Counters<Connection>,
    pub(super) pending: IntGauge,
    pub(super) handshake: Histogram,
    pub(super) pairing_wait: Histogram,
    pub(super) rtt: Histogram,
    pub(super) retransmits: IntCounter,
}

impl PeerMetrics {
    /// Registers them.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            connections: counters(
                registry,
                "aspia_relay_peer_connections_total",
                "Accepted connections, by what became of them; a session is two that were paired.",
                "outcome",
            )?,
            pending: gauge(
                registry,
                "aspia_relay_peers_pending",
                "Connections that are not paired yet.",
            )?,
            handshake: histogram(
                registry,
                "aspia_relay_handshake_seconds",
                "Time from accepting a connection until its first message is opened.",
                &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0],
            )?,
            pairing_wait: histogram(
                registry,
                "aspia_relay_pairing_wait_seconds",
                "Time from the first peer of a pair being ready until the second is.",
                &[0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0],
            )?,
            rtt: histogram(
                registry,
                "aspia_relay_peer_rtt_seconds",
                "Round-trip time to each peer of each session, seen every 10 s.",
                &[0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0],
            )?,
            retransmits: counter(
                registry,
                "aspia_relay_peer_retransmits_total",
                "TCP segments that had to be sent to peers of sessions again.",
            )?,
        })
    }

    /// Connections that are not paired yet.
    pub fn pending(&self) -> u64 {
        u64::try_from(self.pending.get()).unwrap_or(0)
    }

    /// How many connections had each outcome.
    pub fn connections(&self) -> &Counters<Connection> {
        &self.connections
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    use crate::metrics::Label;

    #[test]
    fn what_the_system_fails_at_is_not_counted_as_a_peer_that_closed() {
        let outcome = |error: &PeerError| Connection::from(error).name();
        let reset = || io::Error::from(io::ErrorKind::ConnectionReset);
        // As when the kernel registers no more sockets.
        let system = || io::Error::from(io::ErrorKind::OutOfMemory);
        assert_eq!(outcome(&PeerError::Io(reset())), "closed");
        assert_eq!(outcome(&PeerError::Io(system())), "error");
        let reading = |error| PeerError::FirstMessage(FirstMessageError::Io(error));
        assert_eq!(outcome(&reading(reset())), "closed");
        assert_eq!(outcome(&reading(system())), "error");
        assert_eq!(outcome(&FirstMessageError::Closed.into()), "closed");
    }
}
