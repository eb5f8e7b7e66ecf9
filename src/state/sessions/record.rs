//! The record with which a session continues in another relay or process.

use std::net::SocketAddr;
use std::time::Duration;

use super::id::SessionId;
use super::identity::PeerIdentity;

/// Everything about a session except its sockets and the bytes in flight between them: enough to continue it elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRecord {
    /// Its number.
    pub id: SessionId,
    /// Time since it was paired.
    pub age: Duration,
    /// Time since bytes last moved.
    pub idle: Duration,
    /// Bytes that moved from each peer to the other.
    pub bytes: [u64; 2],
    /// Who the peers are.
    pub identity: PeerIdentity,
    /// Where the peers connect from, in the order in which they arrived.
    pub addresses: [SocketAddr; 2],
}

impl SessionRecord {
    /// Returns how many bytes moved, in both directions together.
    pub fn total_bytes(&self) -> u64 {
        self.bytes.iter().sum()
    }
}
