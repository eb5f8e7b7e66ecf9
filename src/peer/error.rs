//! Why a connection is refused.

use std::io;
use std::time::Duration;

use crate::state::keys::{KEY_LIFETIME, KeyId};
use crate::state::rendezvous::Refusal;
use crate::state::sessions::OverLimit;
use crate::wire::peer::PROBE_KEY_ID;

use super::first_message::FirstMessageError;
use super::proxy_header::ProxyHeaderError;

/// The longest time from accepting a connection until its first message is complete.
pub const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest time from accepting a connection until it is paired: a peer waits for its partner no longer than a key lives.
pub const PAIRING_TIMEOUT: Duration = KEY_LIFETIME;

/// Explains the refusal of a probe, which no operator should take for an attack.
const PROBE_NOTE: &str = "; aspia_relay --probe names this one to see whether a relay answers";

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

/// Why a connection is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// `DenyPeers` contains the address.
    #[error("DenyPeers contains its address")]
    Denied,
    /// `AllowPeers` does not contain the address.
    #[error("AllowPeers does not contain its address")]
    NotAllowed,
    /// `PeerConnectRate` is exceeded.
    #[error("more than {0} connections a minute from its address (PeerConnectRate)")]
    TooOften(u32),
    /// `MaxPendingPeersPerAddress` is reached.
    #[error(
        "{0} connections from its address are pending (MaxPendingPeersPerAddress), and none of them can be evicted"
    )]
    AddressLimit(usize),
    /// `MaxPendingPeers` is reached.
    #[error("{0} connections are pending (MaxPendingPeers), and none of them can be evicted")]
    GlobalLimit(usize),
}

impl Rejected {
    /// Whether the limit is shared by all peers behind one address.
    pub(super) fn is_per_address(self) -> bool {
        matches!(self, Self::TooOften(_) | Self::AddressLimit(_))
    }
}

/// Why a connection did not become part of a session. The peer gets no answer, and the key stays valid.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The PROXY header is not acceptable.
    #[error(transparent)]
    ProxyHeader(#[from] ProxyHeaderError),
    /// A proxy checked whether the relay listens.
    #[error("a proxy closed without sending anything for a peer")]
    HealthCheck,
    /// The peer that a PROXY header names is not admitted.
    #[error(transparent)]
    Rejected(#[from] Rejected),
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
    #[error("key {}: {refusal}{}", key.0, if key.0 == PROBE_KEY_ID { PROBE_NOTE } else { "" })]
    Refused {
        /// The key that the peer named.
        key: KeyId,
        /// Why it is refused.
        refusal: Refusal,
    },
    /// Both peers have arrived, but their user or their host has too many sessions.
    #[error(transparent)]
    OverLimit(#[from] OverLimit),
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
        match self {
            Self::Evicted(Eviction::PerAddressLimit) => true,
            Self::Rejected(why) => why.is_per_address(),
            _ => false,
        }
    }
}
