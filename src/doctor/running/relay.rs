//! The answers of a running relay.

use std::net::SocketAddr;

use crate::admin::status::Status;
use crate::listen::port_holder::PortHolder;

/// A relay that answered.
pub(crate) struct InspectedRelay {
    /// What `/readyz` reports as missing.
    pub(crate) missing: Vec<String>,
    /// The answer to `/status`, or why there is none.
    pub(crate) status: Result<Status, String>,
    /// The keys and values of `/config`.
    pub(crate) settings: Vec<(String, String)>,
    /// Where the relay listens for peers, as it has published.
    pub(crate) listens_on: Option<SocketAddr>,
    /// The processes that hold the port of its admin listener, as far as they are visible.
    pub(crate) holders: Vec<PortHolder>,
}

impl InspectedRelay {
    /// Where the relay listens for peers, as far as it says so.
    pub(crate) fn listens_on(&self) -> Option<SocketAddr> {
        let status = self.status.as_ref().ok();
        status.map(|status| status.peers.listen).or(self.listens_on)
    }

    /// Whether `/readyz` reports this part as missing.
    pub(super) fn is_missing(&self, part: &str) -> bool {
        self.missing.iter().any(|missing| missing == part)
    }
}
