//! The metrics of the Router link.

use std::io;

use prometheus::{Histogram, IntGauge, Registry};

use crate::link::dialect::HandshakeError;
use crate::metrics::{Counters, counters, gauge, histogram, labels};

use super::error::LinkError;

labels! {
    /// How an attempt to link to the Router went.
    pub enum Connect {
        /// It was authenticated, and the Router did not close it at once.
        Ok = "ok",
        /// `RouterAddress` does not resolve.
        Resolve = "resolve",
        /// Nobody listens there, or it cannot be reached.
        Refused = "refused",
        /// No answer in time.
        Timeout = "timeout",
        /// The Router has another private key.
        KeyMismatch = "key_mismatch",
        /// What answers does not speak as it should.
        Protocol = "protocol",
        /// The Router does not take this relay.
        Denied = "denied",
    }
}

impl From<&LinkError> for Connect {
    fn from(error: &LinkError) -> Self {
        match error {
            LinkError::Resolve { .. } => Self::Resolve,
            LinkError::Connect(attempts) => {
                let timed_out =
                    |(_, error): &(_, io::Error)| error.kind() == io::ErrorKind::TimedOut;
                if attempts.iter().all(timed_out) { Self::Timeout } else { Self::Refused }
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
    pub(super) connects: Counters<Connect>,
    pub(super) ping: Histogram,
    connected: IntGauge,
}

impl RouterMetrics {
    /// Registers them.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            connects: counters(
                registry,
                "aspia_relay_router_connects_total",
                "Attempts to link to the Router; ok counts 5 s after authentication.",
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
                "1 while there is a link that the Router has kept for 5 s after authentication.",
            )?,
        })
    }

    /// There is a link until the result is dropped.
    pub(super) fn connected(&self) -> ConnectedGauge {
        self.connected.set(1);
        ConnectedGauge(self.connected.clone())
    }
}

/// A link that the Router keeps.
#[must_use = "when it is dropped, there is no link"]
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
    fn errors_count_under_the_names_that_dashboards_know() {
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
            (resolve, Connect::Resolve),
            (connect(&[io::ErrorKind::ConnectionRefused]), Connect::Refused),
            (connect(&[io::ErrorKind::TimedOut]), Connect::Timeout),
            (connect(&[io::ErrorKind::TimedOut, io::ErrorKind::HostUnreachable]), Connect::Refused),
            (LinkError::AuthenticationTimeout(Duration::from_secs(60)), Connect::Timeout),
            (
                LinkError::Handshake(HandshakeError::KeyMismatch { dialect: "3.0", remedy: "" }),
                Connect::KeyMismatch,
            ),
            (LinkError::NoDialect(Vec::new()), Connect::Protocol),
            (LinkError::Denied(Duration::from_millis(9)), Connect::Denied),
            (LinkError::ClosedEarly(None), Connect::Protocol),
        ] {
            assert_eq!(Connect::from(&error), outcome, "{error}");
        }
    }
}
