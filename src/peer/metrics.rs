//! The metrics of connections that are not, or not yet, part of a session.

use prometheus::{Histogram, IntCounter, IntGauge, Registry};

use crate::forward::failure::is_connection_error;
use crate::metrics::{Counters, counter, counters, gauge, histogram, labels};
use crate::state::keys::KEY_LIFETIME;
use crate::state::pairing::PairingRefusal;
use crate::state::rendezvous::Refusal;
use crate::state::sessions::IdentityLimit;

use super::error::{PeerError, Rejected};
use super::first_message::FirstMessageError;
use super::proxy_header::ProxyHeaderError;

labels! {
    /// What became of an accepted connection.
    pub enum PeerOutcome {
        /// It became one of the two connections of a session.
        Paired = "paired",
        /// Its first message, or its partner, did not arrive in time.
        Timeout = "timeout",
        /// It named a key that is not valid.
        UnknownKey = "unknown_key",
        /// Its first message is malformed, or was received before.
        BadMessage = "bad_message",
        /// It comes from a proxy, and does not begin with a PROXY header.
        ProxyHeaderMissing = "proxy_header_missing",
        /// Its PROXY header cannot be read.
        ProxyHeaderMalformed = "proxy_header_malformed",
        /// Its PROXY header is too long.
        ProxyHeaderOversized = "proxy_header_oversized",
        /// Its PROXY header did not arrive in time.
        ProxyHeaderTimeout = "proxy_header_timeout",
        /// Its secret differs from that of the peer that waits with the same key.
        BadSecret = "bad_secret",
        /// Its user has as many sessions as it may have.
        UserLimit = "user_limit",
        /// Its host has as many sessions as it may have.
        HostLimit = "host_limit",
        /// Its address connected too often.
        RateLimited = "rate_limited",
        /// Its address is on a list that excludes it.
        Denied = "denied",
        /// Too many connections are pending.
        PendingLimit = "pending_limit",
        /// It closed, or its connection failed.
        Closed = "closed",
        /// The relay or its system failed.
        Error = "error",
        /// The relay is stopping.
        Draining = "draining",
    }
}

impl From<&PeerError> for PeerOutcome {
    fn from(error: &PeerError) -> Self {
        match error {
            PeerError::FirstMessage(FirstMessageError::Io(error))
            | PeerError::ProxyHeader(ProxyHeaderError::Io(error))
            | PeerError::Io(error)
                if !is_connection_error(error) =>
            {
                Self::Error
            }
            PeerError::FirstMessage(FirstMessageError::Closed | FirstMessageError::Io(_))
            | PeerError::ProxyHeader(ProxyHeaderError::Closed | ProxyHeaderError::Io(_))
            | PeerError::HealthCheck
            | PeerError::WentAway
            | PeerError::Io(_) => Self::Closed,
            PeerError::ProxyHeader(error) => match error {
                ProxyHeaderError::Missing => Self::ProxyHeaderMissing,
                ProxyHeaderError::Oversized { .. } => Self::ProxyHeaderOversized,
                ProxyHeaderError::Timeout => Self::ProxyHeaderTimeout,
                _ => Self::ProxyHeaderMalformed,
            },
            PeerError::Rejected(why) => (*why).into(),
            PeerError::FirstMessage(_) => Self::BadMessage,
            PeerError::Silent | PeerError::NoPartner => Self::Timeout,
            PeerError::Evicted(_) => Self::PendingLimit,
            PeerError::OverLimit(why) => match why.limit {
                IdentityLimit::User(_) => Self::UserLimit,
                IdentityLimit::Host(_) => Self::HostLimit,
            },
            PeerError::Refused { refusal, .. } => match refusal {
                Refusal::UnknownKey => Self::UnknownKey,
                Refusal::Pairing(PairingRefusal::OtherSecret) => Self::BadSecret,
                Refusal::Pairing(PairingRefusal::Replay | PairingRefusal::TooMany) => {
                    Self::BadMessage
                }
            },
        }
    }
}

impl From<Rejected> for PeerOutcome {
    fn from(rejected: Rejected) -> Self {
        match rejected {
            Rejected::Denied | Rejected::NotAllowed => Self::Denied,
            Rejected::TooOften(_) => Self::RateLimited,
            Rejected::AddressLimit(_) | Rejected::GlobalLimit(_) => Self::PendingLimit,
        }
    }
}

/// The metrics of connections.
#[derive(Debug, Clone)]
pub struct PeerMetrics {
    pub(super) connections: Counters<PeerOutcome>,
    pub(super) pending: IntGauge,
    pub(super) handshake: Histogram,
    pub(super) pairing_wait: Histogram,
    pub(super) rtt: Histogram,
    pub(super) retransmits: IntCounter,
}

impl PeerMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// A name is already registered.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            connections: counters(
                registry,
                "aspia_relay_peer_connections_total",
                "Accepted connections by outcome; each session counts two that were paired.",
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
                &[
                    0.001,
                    0.005,
                    0.01,
                    0.05,
                    0.1,
                    0.25,
                    0.5,
                    1.0,
                    2.5,
                    5.0,
                    10.0,
                    20.0,
                    KEY_LIFETIME.as_secs_f64(),
                ],
            )?,
            rtt: histogram(
                registry,
                "aspia_relay_peer_rtt_seconds",
                "Round-trip time to each peer of each session, sampled every 10 s.",
                &[0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0],
            )?,
            retransmits: counter(
                registry,
                "aspia_relay_peer_retransmits_total",
                "TCP segments that were retransmitted to peers of sessions.",
            )?,
        })
    }

    /// Returns the number of connections that are not paired yet.
    pub fn pending(&self) -> u64 {
        u64::try_from(self.pending.get()).unwrap_or(0)
    }

    /// Returns the number of connections with each outcome.
    pub fn connections(&self) -> &Counters<PeerOutcome> {
        &self.connections
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    use crate::metrics::Label;

    #[test]
    fn failure_of_the_system_is_not_counted_as_a_closed_peer() {
        let outcome = |error: &PeerError| PeerOutcome::from(error).name();
        let reset = || io::Error::from(io::ErrorKind::ConnectionReset);
        // For example, the kernel cannot register more sockets.
        let system = || io::Error::from(io::ErrorKind::OutOfMemory);
        assert_eq!(outcome(&PeerError::Io(reset())), "closed");
        assert_eq!(outcome(&PeerError::Io(system())), "error");
        let reading = |error| PeerError::FirstMessage(FirstMessageError::Io(error));
        assert_eq!(outcome(&reading(reset())), "closed");
        assert_eq!(outcome(&reading(system())), "error");
        assert_eq!(outcome(&FirstMessageError::Closed.into()), "closed");
    }
}
