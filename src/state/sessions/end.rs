//! Why a session ended.

use std::fmt;

use crate::metrics::{Label, labels};

labels! {
    /// Why a session ended.
    pub enum End {
        /// Both peers finished.
        Closed = "closed",
        /// A peer's connection was reset or timed out.
        Reset = "reset",
        /// No bytes moved for `PeerIdleTimeout`.
        Idle = "idle",
        /// The Router or an administrator asked for it.
        Disconnected = "disconnected",
        /// The session reached `MaxSessionDuration`.
        MaxDuration = "max_duration",
        /// The relay is stopping.
        Drain = "drain",
        /// The relay failed.
        Error = "error",
        /// A relay died while it held bytes of the session, or no relay took the session over from one that died.
        Crash = "crash",
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
