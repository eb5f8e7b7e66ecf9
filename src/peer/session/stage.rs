//! The stages of a session's task.

use std::fmt;
use std::pin::Pin;

use tokio::sync::oneshot;

use crate::forward::Forward;
use crate::state::active_session::ActiveSession;
use crate::state::sessions::EndCause;
use crate::trace::session::SessionTrace;

use super::detach::DetachedSession;

/// A session that is ready to run on a worker thread.
#[derive(Debug)]
pub(in crate::peer) struct RunnableSession {
    pub(in crate::peer) sockets: [std::net::TcpStream; 2],
    pub(in crate::peer) forward: Forward,
    pub(in crate::peer) active: ActiveSession,
    pub(in crate::peer) trace: SessionTrace,
}

/// The future that waits until the peers have received everything.
pub(super) type Linger = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a session's task is doing.
pub(super) enum SessionStage {
    /// The runtime of its thread has not registered its sockets yet.
    New { sockets: [std::net::TcpStream; 2], forward: Forward },
    /// Bytes move.
    Forwarding(Forward),
    /// Nothing is left to forward.
    Lingering { cause: EndCause, linger: Linger },
    /// It leaves its thread as soon as nothing else holds its sockets.
    Leaving { forward: Forward, to: SessionDestination },
    /// It is over.
    Over,
}

/// Where a session continues.
#[derive(Debug)]
pub(super) enum SessionDestination {
    /// On another thread.
    Worker(usize),
    /// Somewhere else, detached.
    Elsewhere(oneshot::Sender<DetachedSession>),
}

impl fmt::Debug for SessionStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::New { .. } => "New",
            Self::Forwarding(_) => "Forwarding",
            Self::Lingering { .. } => "Lingering",
            Self::Leaving { .. } => "Leaving",
            Self::Over => "Over",
        })
    }
}

/// What follows after a stage has been polled.
pub(super) enum Transition {
    /// The task is pending, or has nothing left to do.
    Pending,
    /// Another stage follows at once.
    To(SessionStage),
    /// The session ends.
    End(EndCause),
}
