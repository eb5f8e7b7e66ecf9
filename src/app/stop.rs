//! How a relay stops, and the tokens that end its tasks.

use tokio_util::sync::{CancellationToken, DropGuard};

/// How a relay stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// All sessions had ended.
    Drained,
    /// Sessions were left at the end of `DrainTimeout`.
    TimedOut,
    /// Everything was handed over to the descriptor store.
    HandedOver,
    /// The relay was told to stop at once.
    AtOnce,
}

/// The tokens that end the tasks of a relay: the link first, and everything else once the sessions have ended; or, at a
/// hand-over, both with what they hold.
#[derive(Debug, Clone, Default)]
pub(super) struct StopTokens {
    pub(super) link: CancellationToken,
    pub(super) everything: CancellationToken,
    /// Ends the tasks of the link and of the peers with what they hold, so that another relay can continue with it.
    pub(super) suspend: CancellationToken,
}

impl StopTokens {
    /// Guards that cancel `link` and `everything` when they are dropped.
    pub(super) fn guards(&self) -> [DropGuard; 2] {
        [self.link.clone().drop_guard(), self.everything.clone().drop_guard()]
    }
}
