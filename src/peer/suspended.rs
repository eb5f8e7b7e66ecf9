//! Connections that are suspended before they are paired, to continue in a later run or in another process.

use std::net::SocketAddr;
use std::time::Duration;

use crate::secret::Secret;

/// A connection that was not paired yet when its relay was suspended: silent, in the middle of its first message, or waiting
/// for its partner.
#[derive(Debug)]
pub struct SuspendedPeer {
    /// Its socket, with everything that has not been read from it.
    pub socket: std::net::TcpStream,
    /// Where it connects from; as its PROXY header says, if it has one.
    pub address: SocketAddr,
    /// Whether it comes from a proxy, and its PROXY header is not complete yet. The address is then that of the proxy.
    pub awaits_proxy_header: bool,
    /// All bytes that were read from it, of its PROXY header if it awaits that, otherwise of its first message; never more.
    pub received: Secret<Vec<u8>>,
    /// Time since it was accepted.
    pub age: Duration,
}
