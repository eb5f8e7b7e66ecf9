//! What forwarding reports: the traffic of a session and the cause of its end.

#[path = "../../../../src/state/sessions/cause.rs"]
#[allow(dead_code, reason = "not all causes are those of forwarding")]
mod cause;
#[path = "../../../../src/state/sessions/traffic.rs"]
#[allow(dead_code, reason = "lists of sessions are not forwarded")]
mod traffic;

pub(crate) use cause::{EndCause, PeerOrder};
pub(crate) use traffic::Traffic;

#[allow(dead_code, reason = "as the cause")]
mod end {
    /// Why a session ended.
    #[derive(Debug, Clone, Copy)]
    pub enum End {
        Closed,
        Reset,
        Idle,
        Disconnected,
        MaxDuration,
        Drain,
        Error,
        Crash,
    }

    impl std::fmt::Display for End {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "{self:?}")
        }
    }
}
