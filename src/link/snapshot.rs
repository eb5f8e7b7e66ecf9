//! A link as plain data, so that another process can continue it.

use tokio::time::Instant;

use crate::crypto::snapshot::CipherSnapshot;
use crate::wire::messages::Version;

use super::keepalive::KeepAliveSnapshot;

/// Everything about an authenticated link between two frames, except its socket.
///
/// Only one process may continue with it ([`CipherSnapshot`]), and only while nobody else reads from the socket or writes
/// to it.
#[derive(Debug)]
pub struct LinkSnapshot {
    /// The name of the dialect in use.
    pub dialect: String,
    /// The Router's version.
    pub router_version: Version,
    /// The state of what the relay sends.
    pub sealer: CipherSnapshot,
    /// The state of what the Router sends.
    pub opener: CipherSnapshot,
    /// Bytes that were received and not yet decoded: the beginning of a frame. What is sealed in them is still sealed.
    pub received: Vec<u8>,
    /// Bytes that are queued and not yet sent, sealed. They may begin in the middle of a frame.
    pub unsent: Vec<u8>,
    /// The relay's pings.
    pub keep_alive: KeepAliveSnapshot,
    /// When the link was authenticated.
    pub authenticated: Instant,
    /// Whether the Router has kept the link for so long that it counts as connected.
    pub is_confirmed: bool,
    /// The settings that the link was made with: `Config::link_fingerprint`.
    pub settings: [u8; 32],
}
