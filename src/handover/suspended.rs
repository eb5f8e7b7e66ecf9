//! What a relay held when it was suspended, to continue with it here or in the next relay.

use tokio::time::Instant;

use crate::peer::SuspendedPeer;
use crate::peer::session::DetachedSession;
use crate::router::suspend::SuspendedLink;

/// What a relay held when it was suspended, except for its keys, which stay in the state.
#[derive(Debug, Default)]
pub struct Suspended {
    /// When it was suspended.
    pub since: Option<Instant>,
    /// The sessions.
    pub sessions: Vec<DetachedSession>,
    /// The link to the Router, if it was authenticated.
    pub link: Option<SuspendedLink>,
    /// The connections that were not paired yet.
    pub peers: Vec<SuspendedPeer>,
}
