//! The metrics of the Router link.

use std::io;

use prometheus::{Histogram, IntGauge, Registry};

use crate::link::dialect::HandshakeError;
use crate::metrics::{Counters, counters, gauge, histogram, labels};

use super::error::LinkError;
use super::status::CONFIRMATION_TIME;

labels! {
    /// The outcome of an attempt to connect to the Router.
    pub enum ConnectOutcome {
        /// The link was authenticated, and the Router did not close it at once.
        Ok = "ok",
        /// `RouterAddress` does not resolve.
        Resolve = "resolve",
        /// The connection was refused, or the host cannot be reached.
        Refused = "refused",
        /// There was no answer in time.
        Timeout = "timeout",
        /// The Router has another private key.
        KeyMismatch = "key_mismatch",
        /// The server violates the protocol, or has an unsupported version.
        Protocol = "protocol",
        /// The Router does not accept this relay.
        Denied = "denied",
    }
}

impl From<&LinkError> for ConnectOutcome {
    fn from(error: &LinkError) -> Self {
        match error {
            LinkError::Resolve { .. } => Self::Resolve,
            LinkError::Connect(attempts) => {
                let is_timeout =
                    |(_, error): &(_, io::Error)| error.kind() == io::ErrorKind::TimedOut;
                if attempts.iter().all(is_timeout) { Self::Timeout } else { Self::Refused }
            }
            LinkError::AuthenticationTimeout(_) => Self::Timeout,
            LinkError::Handshake(HandshakeError::KeyMismatch { .. }) => Self::KeyMismatch,
            LinkError::Handshake(HandshakeError::RelaysNotAllowed(_)) | LinkError::Denied(_) => {
                Self::Denied
            }
            LinkError::ClosedEarly(_)
            | LinkError::NoDialect(_)
            | LinkError::Handshake(_)
            | LinkError::NotARouter(_)
            | LinkError::Frame(_)
            | LinkError::Sealed(_)
            | LinkError::KeepAlive(_)
            | LinkError::Stalled
            | LinkError::Closed(_)
            | LinkError::Provider(_)
            | LinkError::Panicked(_) => Self::Protocol,
        }
    }
}

/// The metrics of the Router link.
#[derive(Debug, Clone)]
pub struct RouterMetrics {
    pub(super) connects: Counters<ConnectOutcome>,
    pub(super) ping: Histogram,
    connected: IntGauge,
}

impl RouterMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// If a name is already registered.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let confirmed = CONFIRMATION_TIME.as_secs();
        Ok(Self {
            connects: counters(
                registry,
                "aspia_relay_router_connects_total",
                &format!(
                    "Attempts to connect to the Router; ok counts {confirmed} s after authentication."
                ),
                "outcome",
            )?,
            ping: histogram(
                registry,
                "aspia_relay_router_ping_seconds",
                "Time from a ping to the Router's pong.",
                &[0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0],
            )?,
            connected: gauge(
                registry,
                "aspia_relay_router_connected",
                &format!(
                    "1 while there is a link that the Router has kept for {confirmed} s after authentication."
                ),
            )?,
        })
    }

    /// Sets the gauge until the result is dropped.
    pub(super) fn set_connected(&self) -> ConnectedGauge {
        self.connected.set(1);
        ConnectedGauge(self.connected.clone())
    }
}

/// Sets the gauge to 0 when it is dropped.
#[must_use = "the gauge is 0 once this is dropped"]
pub(super) struct ConnectedGauge(IntGauge);

impl Drop for ConnectedGauge {
    fn drop(&mut self) {
        self.0.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_counts_as_its_documented_outcome() {
        use std::time::Duration;

        let address = ([192, 0, 2, 1], 8060).into();
        let connect = |kinds: &[io::ErrorKind]| {
            LinkError::Connect(kinds.iter().map(|kind| (address, (*kind).into())).collect())
        };
        let resolve = LinkError::Resolve {
            host: "router.example".into(),
            error: io::Error::other("no"),
            last_good: Vec::new(),
        };
        for (error, outcome) in [
            (resolve, ConnectOutcome::Resolve),
            (connect(&[io::ErrorKind::ConnectionRefused]), ConnectOutcome::Refused),
            (connect(&[io::ErrorKind::TimedOut]), ConnectOutcome::Timeout),
            (
                connect(&[io::ErrorKind::TimedOut, io::ErrorKind::HostUnreachable]),
                ConnectOutcome::Refused,
            ),
            (LinkError::AuthenticationTimeout(Duration::from_secs(60)), ConnectOutcome::Timeout),
            (
                LinkError::Handshake(HandshakeError::KeyMismatch { dialect: "3.0", remedy: "" }),
                ConnectOutcome::KeyMismatch,
            ),
            (LinkError::NoDialect(Vec::new()), ConnectOutcome::Protocol),
            (LinkError::Denied(Duration::from_millis(9)), ConnectOutcome::Denied),
            (LinkError::ClosedEarly(None), ConnectOutcome::Protocol),
        ] {
            assert_eq!(ConnectOutcome::from(&error), outcome, "{error}");
        }
    }
}
