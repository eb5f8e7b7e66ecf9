//! A session, with the relay's own signal.

#[path = "../../../../src/state/sessions/signal.rs"]
mod signal;

pub(crate) use cause::EndCause;
pub(crate) use signal::SessionSignal;

/// The number of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SessionId(pub(crate) u64);

/// A session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) signal: SessionSignal,
}

mod cause {
    /// Two of the causes.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum EndCause {
        Router,
        Drain,
    }
}

impl Session {
    pub(crate) fn stop(&self, why: EndCause) {
        self.signal.request_end(why);
    }

    pub(crate) fn stop_if_idle(&self, since: tokio::time::Instant) {
        self.signal.request_idle_check(since);
    }
}
