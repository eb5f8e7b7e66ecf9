//! The network path to a peer, as the kernel sees it.

use parking_lot::Mutex;

use crate::tcp_info::TcpInfo;

/// The latest sample of the path to a peer.
#[derive(Debug, Default)]
pub struct PeerPath(Mutex<Option<TcpInfo>>);

impl PeerPath {
    /// Returns the latest sample; `None` before the first one, or if the system cannot provide any.
    pub fn get(&self) -> Option<TcpInfo> {
        *self.0.lock()
    }

    /// Stores a sample and returns the previous one. When two threads sample at the same time, the later sample wins,
    /// whichever is stored first.
    pub fn update(&self, info: TcpInfo) -> Option<TcpInfo> {
        let mut latest = self.0.lock();
        match *latest {
            Some(before) if before.retransmits > info.retransmits => Some(before),
            _ => latest.replace(info),
        }
    }
}
