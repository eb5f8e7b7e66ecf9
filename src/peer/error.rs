//! Why a connection is refused.

use std::io;
use std::time::Duration;

use crate::state::keys::{KEY_LIFETIME, KeyId};
use crate::state::rendezvous::Refusal;

use super::first_message::FirstMessageError;

/// The longest time from accepting a connection until its first message is complete.
pub const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest time from accepting a connection until it is paired: a peer waits for its partner no longer than a key lives.
pub const PAIRING_TIMEOUT: Duration = KEY_LIFETIME;

/// The limit because of which a silent connection is evicted in favour of a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Eviction {
    /// The limit on the connections of one address.
    #[error("MaxPendingPeersPerAddress connections from its address wait")]
    PerAddressLimit,
    /// The limit on all connections.
    #[error("MaxPendingPeers connections wait")]
    GlobalLimit,
    /// The limit on the descriptors of this process.
    #[error("descriptors are short (ulimit -n)")]
    Descriptors,
}

/// Why a connection did not become part of a session. The peer gets no answer, and the key stays valid.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The first message is not acceptable.
    #[error(transparent)]
    FirstMessage(#[from] FirstMessageError),
    /// The first message was not complete in time.
    #[error("no complete first message within {} s", FIRST_MESSAGE_TIMEOUT.as_secs())]
    Silent,
    /// The connection was silent, and a new one reached a limit.
    #[error("{0}, and this one has been silent the longest: it is evicted")]
    Evicted(Eviction),
    /// The key or the secret is not acceptable.
    #[error("key {}: {refusal}", key.0)]
    Refused {
        /// The key that the peer named.
        key: KeyId,
        /// Why it is refused.
        refusal: Refusal,
    },
    /// The partner of the peer did not connect in time.
    #[error("its partner did not connect within {} s", PAIRING_TIMEOUT.as_secs())]
    NoPartner,
    /// The peer went away while it waited for its partner.
    #[error("it went away while it waited for its partner")]
    WentAway,
    /// A socket could not be used.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
}

impl PeerError {
    /// Whether the limit is shared by all peers behind one address.
    pub(super) fn is_per_address(&self) -> bool {
        matches!(self, Self::Evicted(Eviction::PerAddressLimit))
    }
}
