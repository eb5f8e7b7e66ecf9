//! Why a relay cannot start, or fails.

use std::io;

use crate::crypto::CryptoError;
use crate::listen::bind::BindError;
use crate::tls::TlsError;

/// Why the relay cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Listening on a port failed.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A listener that was handed over cannot be used.
    #[error("the listener that was handed over cannot be used: {0}")]
    Listener(io::Error),
    /// The metrics cannot be registered.
    #[error("the metrics cannot be registered: {0}; this is a bug, please report it")]
    Metrics(#[from] prometheus::Error),
    /// The certificate or key of the metrics listener is no longer valid.
    #[error("TLS of the metrics listener: {0}")]
    Tls(#[from] TlsError),
    /// The system cannot provide random bytes.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

/// Why a relay that has started fails.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A task of the relay ended unexpectedly.
    #[error("the relay failed: its {0} task ended; this is a bug, please report it with the log")]
    Task(&'static str),
    /// The system refused something that the relay cannot do without.
    #[error("the relay failed: cannot {action}: {error}")]
    System {
        /// What was to be done.
        action: &'static str,
        /// Why it was refused.
        error: io::Error,
    },
}

impl RunError {
    /// Creates the error of `action` from that of the system.
    pub(super) fn system(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::System { action, error }
    }
}
