//! The guard of an active session.

use std::sync::Arc;

use tokio::time::Instant;

use super::sessions::{EndCause, Session, SessionRecord};
use super::shared::SharedState;

/// An active session. Dropping it ends the session, whatever the reason.
#[derive(Debug)]
#[must_use = "a session ends when its guard is dropped"]
pub struct ActiveSession {
    state: SharedState,
    session: Arc<Session>,
    /// What ends the session when the guard is dropped; `None` if it continues elsewhere and does not count as ended.
    cause: Option<EndCause>,
}

impl ActiveSession {
    /// Creates the guard of a session that was just added to the table.
    pub(super) fn new(state: SharedState, session: Arc<Session>) -> Self {
        Self { state, session, cause: Some(EndCause::Error) }
    }

    /// Continues a session that began elsewhere. It takes a share of the capacity even if none is left.
    pub fn adopt(state: &SharedState, record: SessionRecord, now: Instant) -> Self {
        let session = state.lock().adopt_session(record, now);
        state.events().session_adopted.notify_one();
        Self::new(state.clone(), session)
    }

    /// Returns the session.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Ends the session for this cause. A guard that is dropped without one ends it with [`EndCause::Error`].
    pub fn finish(mut self, cause: EndCause) {
        self.cause = Some(cause);
    }

    /// Removes the session because it continues elsewhere, unless it was asked to end. Then it is returned: whoever asked was
    /// told that it would.
    ///
    /// # Errors
    /// The session was asked to end.
    pub fn try_hand_over(self) -> Result<SessionRecord, Self> {
        // With one lock for both, and no request is lost in between.
        let is_removed = self.state.lock().remove_unless_stopped(&self.session);
        if is_removed { Ok(self.hand_over()) } else { Err(self) }
    }

    /// Removes the session because it continues elsewhere: it does not count as ended.
    pub fn hand_over(mut self) -> SessionRecord {
        self.cause = None;
        self.session.record(Instant::now())
    }
}

impl Drop for ActiveSession {
    fn drop(&mut self) {
        self.state.lock().end_session(self.session.id);
        if let Some(cause) = self.cause {
            self.state.record_end(&self.session.record(Instant::now()), cause);
        }
        self.state.events().capacity_freed.notify_one();
        self.state.events().departed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use super::*;
    use crate::state::metrics::StateMetrics;
    use crate::state::sessions::{PeerIdentity, SessionId};

    #[tokio::test]
    async fn session_that_was_asked_to_end_does_not_continue_elsewhere() {
        let metrics = StateMetrics::new(&Registry::new()).unwrap();
        let state = SharedState::new(2, 0, metrics);
        let address = ([127, 0, 0, 1], 1).into();
        let record = SessionRecord {
            id: SessionId(5),
            age: Default::default(),
            idle: Default::default(),
            bytes: [0, 0],
            identity: PeerIdentity::default(),
            addresses: [address; 2],
        };
        let adopt = || ActiveSession::adopt(&state, record.clone(), Instant::now());
        let stopped = adopt();
        assert!(state.stop_session(stopped.session().id, EndCause::Router));
        let stopped = stopped.try_hand_over().unwrap_err();
        assert_eq!(state.counts().active, 1, "it is still here");
        stopped.finish(EndCause::Router);
        let moving = adopt();
        let id = moving.session().id;
        moving.try_hand_over().unwrap();
        assert!(!state.stop_session(id, EndCause::Router));
        assert_eq!(state.counts().active, 0);
    }
}
