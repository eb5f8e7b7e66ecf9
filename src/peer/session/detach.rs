//! Sessions that are detached, to continue elsewhere.

use std::collections::HashMap;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::forward::balance::Balances;
use crate::state::sessions::{SessionId, SessionRecord};
use crate::state::shared::SharedState;

/// A detached session: everything that is needed to continue it, even in another relay or process.
#[derive(Debug)]
pub struct DetachedSession {
    /// Who the peers are, and what the session has done.
    pub record: SessionRecord,
    /// The connections of the two peers, in the order in which they arrived.
    pub sockets: [std::net::TcpStream; 2],
    /// What was received from each peer and has not been sent to the other.
    pub in_flight: [Vec<u8>; 2],
    /// Its balances, if a store keeps sessions and the kernel reports them.
    pub balances: Option<Balances>,
    /// Whether the store may have an entry of it. The entry stays until a relay that has attached the session ends it.
    pub is_stored: bool,
    /// Whether everything was forwarded, and only the delivery by the kernel was waited for. Then nothing is in flight.
    pub is_lingering: bool,
    /// The context of the trace of this part of it, as in the header `traceparent`. `None` if traces are off.
    pub traceparent: Option<String>,
}

impl DetachedSession {
    /// Returns how many bytes are in flight in each direction.
    pub fn count_in_flight(&self) -> [usize; 2] {
        self.in_flight.each_ref().map(Vec::len)
    }
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
}
