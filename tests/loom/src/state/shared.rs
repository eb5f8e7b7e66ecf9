//! The state that tasks share: the session, as long as it is active.

use loom::sync::Arc;

use crate::sync::Mutex;

use super::sessions::{EndCause, Session, SessionId};

/// The state.
#[derive(Debug)]
pub(crate) struct SharedState(Mutex<Option<Arc<Session>>>);

impl SharedState {
    pub(crate) fn new(session: Arc<Session>) -> Self {
        let state = Self(Mutex::default());
        *state.0.lock() = Some(session);
        state
    }

    pub(crate) fn session(&self, id: SessionId) -> Option<Arc<Session>> {
        self.0.lock().as_ref().filter(|session| session.id == id).cloned()
    }

    /// Asks the session to end. Returns `false` if it is not here any more.
    pub(crate) fn stop_session(&self, why: EndCause) -> bool {
        self.0.lock().as_ref().map(|session| session.stop(why)).is_some()
    }

    /// Removes the session, which has ended.
    pub(crate) fn end_session(&self) {
        *self.0.lock() = None;
    }

    /// Removes the session, unless it was asked to end.
    pub(crate) fn hand_over(&self) -> bool {
        let mut session = self.0.lock();
        let is_asked = session.as_ref().is_none_or(|session| session.signal.is_asked_to_end());
        if !is_asked {
            *session = None;
        }
        !is_asked
    }
}
