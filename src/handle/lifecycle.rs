//! How a stop proceeds: first a hand-over or a drain, then at once.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio_util::sync::CancellationToken;

/// What a stop signal does, depending on what was requested before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopStep {
    /// The relay hands everything over to the descriptor store, for the next relay.
    HandOver,
    /// Draining begins.
    Drain,
    /// The drain that an administrator requested continues; its `DrainTimeout` is already running.
    ContinueDrain,
    /// The relay stops at once, since an earlier signal has already requested a stop.
    AtOnce,
}

#[derive(Debug, Default)]
pub(super) struct Lifecycle {
    hand_over: CancellationToken,
    drain: CancellationToken,
    /// Whether a signal has requested a stop. A drain does not imply this: an administrator may have requested it.
    is_stop_signalled: AtomicBool,
    stop: CancellationToken,
}

impl Lifecycle {
    pub(super) fn drain(&self) {
        self.drain.cancel();
    }

    pub(super) fn stop(&self) {
        self.drain.cancel();
        self.stop.cancel();
    }

    /// Handles a stop request. `can_hand_over` is whether there is somebody to hand over to.
    pub(super) fn stop_by_signal(&self, can_hand_over: bool) -> StopStep {
        if self.is_stop_signalled.swap(true, Ordering::Relaxed) {
            self.stop();
            return StopStep::AtOnce;
        }
        if self.drain.is_cancelled() {
            return StopStep::ContinueDrain;
        }
        if can_hand_over {
            self.hand_over.cancel();
            return StopStep::HandOver;
        }
        self.drain();
        StopStep::Drain
    }

    pub(super) fn handing_over(&self) -> &CancellationToken {
        &self.hand_over
    }

    pub(super) fn draining(&self) -> &CancellationToken {
        &self.drain
    }

    pub(super) fn stopping(&self) -> &CancellationToken {
        &self.stop
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_signal_stops_at_once() {
        let lifecycle = Lifecycle::default();
        assert_eq!(lifecycle.stop_by_signal(false), StopStep::Drain);
        assert!(lifecycle.draining().is_cancelled() && !lifecycle.stopping().is_cancelled());
        assert_eq!(lifecycle.stop_by_signal(false), StopStep::AtOnce);
        assert!(lifecycle.stopping().is_cancelled());
    }

    #[test]
    fn signal_hands_over_if_that_is_possible() {
        let lifecycle = Lifecycle::default();
        assert_eq!(lifecycle.stop_by_signal(true), StopStep::HandOver);
        assert!(lifecycle.handing_over().is_cancelled() && !lifecycle.draining().is_cancelled());
        // A second signal means that the store is not waited for.
        assert_eq!(lifecycle.stop_by_signal(true), StopStep::AtOnce);
    }

    #[test]
    fn drain_is_not_cut_short_by_a_hand_over() {
        let lifecycle = Lifecycle::default();
        lifecycle.drain();
        assert_eq!(lifecycle.stop_by_signal(true), StopStep::ContinueDrain);
        assert!(!lifecycle.handing_over().is_cancelled());
    }

    #[test]
    fn first_signal_after_a_drain_continues_it() {
        let lifecycle = Lifecycle::default();
        lifecycle.drain();
        assert_eq!(lifecycle.stop_by_signal(false), StopStep::ContinueDrain);
        assert!(!lifecycle.stopping().is_cancelled());
        assert_eq!(lifecycle.stop_by_signal(false), StopStep::AtOnce);
    }
}
