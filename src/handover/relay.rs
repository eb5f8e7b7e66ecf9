//! The parts of a relay that the keeper looks at.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::Config;
use crate::fd_store::status::StoreLinkStatus;
use crate::handle::Handle;
use crate::peer::Peers;
use crate::peer::session::SessionManager;
use crate::state::shared::SharedState;

use super::metrics::HandoverMetrics;

/// A listening socket, with the name under which the next relay asks for it.
#[derive(Debug)]
pub struct KeptListener {
    /// What it is for.
    pub name: &'static str,
    /// The socket.
    pub socket: OwnedFd,
}

/// The parts of a relay that the keeper looks at.
pub struct KeptRelay {
    /// What is counted and logged.
    pub handle: Handle,
    /// The settings in force.
    pub config: watch::Receiver<Arc<Config>>,
    /// Keys and numbers.
    pub state: SharedState,
    /// The peers, who know which first messages were seen.
    pub peers: Peers,
    /// The sessions.
    pub sessions: SessionManager,
    /// The listening sockets.
    pub listeners: Vec<KeptListener>,
    /// When the first relay of this line started.
    pub started: Instant,
    /// Where the state of the connection to the store is shown.
    pub status: watch::Sender<StoreLinkStatus>,
    /// What is counted.
    pub metrics: HandoverMetrics,
}

impl fmt::Debug for KeptRelay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeptRelay({:?})", self.state)
    }
}
