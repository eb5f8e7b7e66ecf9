//! What other tasks ask of the task of a session.

use std::collections::HashMap;
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;

use crate::state::sessions::{EndCause, Session, SessionId};
use crate::state::shared::SharedState;
use crate::sync::Mutex;

use super::detach::DetachedSession;

/// What another task asks of the task of a session.
#[derive(Debug)]
pub(super) enum SessionRequest {
    /// The session should end, for this reason.
    End(EndCause),
    /// The session should be detached and sent.
    Detach(oneshot::Sender<DetachedSession>),
    /// Neither: it may be suspected of being idle, or the request is out of date.
    Other,
}

/// The requests to detach sessions, by session.
#[derive(Debug, Default)]
pub(super) struct DetachRequests(Mutex<HashMap<SessionId, oneshot::Sender<DetachedSession>>>);

impl DetachRequests {
    /// Asks a session to detach, wherever its bytes are. Before dropping the receiver, the caller must take out a session that
    /// was sent to it.
    pub(super) fn request(
        &self,
        id: SessionId,
        state: &SharedState,
    ) -> oneshot::Receiver<DetachedSession> {
        let (sender, receiver) = oneshot::channel();
        self.0.lock().insert(id, sender);
        // A session that is ending leaves the state before it takes its request, so no request is left behind.
        match state.session(id) {
            Some(session) => session.signal.notify(),
            None => drop(self.take(id)),
        }
        receiver
    }

    /// Takes the request to detach a session, if there is one. The task of the session calls this, even after the session has
    /// ended.
    pub(super) fn take(&self, id: SessionId) -> Option<oneshot::Sender<DetachedSession>> {
        self.0.lock().remove(&id)
    }
    /// Ready when another task has notified the session's task, with what it asks. Only the session's own task may call this.
    pub(super) fn poll_request(
        &self,
        context: &Context<'_>,
        session: &Session,
    ) -> Poll<SessionRequest> {
        let requested = ready!(session.signal.poll_signal(context));
        Poll::Ready(match (requested, self.take(session.id)) {
            (Some(cause), _) => SessionRequest::End(cause),
            (None, Some(to)) if !to.is_closed() => SessionRequest::Detach(to),
            // No task asked for the session, or the one that did no longer waits.
            (None, _) => SessionRequest::Other,
        })
    }
}
