//! Sessions that are taken apart, to go on elsewhere.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::state::sessions::{Record, SessionId};
use crate::state::shared::SharedState;

/// A session taken apart: all that is needed to go on with it, in another relay or process too.
#[derive(Debug)]
pub struct Parts {
    /// Who it is, and what it has done.
    pub record: Record,
    /// The connections of the two peers, the first to come first.
    pub sockets: [std::net::TcpStream; 2],
    /// What was received from each of them and has not been given to the other.
    pub in_flight: [Vec<u8>; 2],
}

/// Who waits for which session; a clone is the same ones.
#[derive(Debug, Clone, Default)]
pub(super) struct Departures(Arc<Mutex<HashMap<SessionId, oneshot::Sender<Parts>>>>);

impl Departures {
    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, oneshot::Sender<Parts>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks a session to come apart, wherever its bytes are. What comes is lost when nobody waits for it any more.
    pub(super) fn ask<W>(&self, id: SessionId, state: &SharedState<W>) -> oneshot::Receiver<Parts> {
        let (to, parts) = oneshot::channel();
        self.lock().insert(id, to);
        // One that ends now leaves the state first and then looks here: it is not missed.
        match state.session(id) {
            Some(session) => session.bell.ring(),
            None => drop(self.take(id)),
        }
        parts
    }

    /// Whom to give a session to; for its task, also when it has ended.
    pub(super) fn take(&self, id: SessionId) -> Option<oneshot::Sender<Parts>> {
        self.lock().remove(&id)
    }
}
