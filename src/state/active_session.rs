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
