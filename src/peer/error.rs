//! Why a connection is refused.

use std::io;
use std::time::Duration;

use crate::state::Refusal;
use crate::state::keys::KeyId;

use super::first_message::FirstMessageError;

/// Time from accepting a connection until its first message is complete.
pub const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// Where there was no more room, so that a connection that had said nothing had to make some.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Crowded {
    /// Among the connections of its address.
    #[error("MaxPendingPeersPerAddress connections from its address wait")]
    FromThere,
    /// Among all connections.
    #[error("MaxPendingPeers connections wait")]
    InAll,
    /// Among the descriptors of this process.
    #[error("descriptors are short (ulimit -n)")]
    Descriptors,
}

/// Why a connection did not become part of a session. None of this is answered, and none costs a key anything.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The first message is not acceptable.
    #[error(transparent)]
    FirstMessage(#[from] FirstMessageError),
    /// The first message was not complete in time.
    #[error("no complete first message within {} s", FIRST_MESSAGE_TIMEOUT.as_secs())]
    Silent,
    /// It said nothing, and another one came where there was no more room.
    #[error("{0}, and this one kept silent for longest: it makes room")]
    MadeRoom(Crowded),
    /// The key or the secret is not acceptable.
    #[error("key {}: {refusal}", key.0)]
    Refused {
        /// The key that the peer named.
        key: KeyId,
        /// Why.
        refusal: Refusal,
    },
    /// Nobody came to be paired with.
    #[error("its partner did not come within 30 s")]
    Alone,
    /// The peer went away while it waited for its partner.
    #[error("it went away while it waited for its partner")]
    WentAway,
    /// A socket could not be used.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
}

impl PeerError {
    /// Whether it met the connection for what others behind the same address did.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self, Self::MadeRoom(Crowded::FromThere))
    }
}
