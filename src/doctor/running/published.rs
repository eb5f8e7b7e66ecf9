//! A relay that has published itself to commands on this machine.

use std::net::SocketAddr;

use crate::admin::client;
use crate::admin::status::{Instance, Readiness};
use crate::config::Config;
use crate::config::sources::Sources;
use crate::listen::port_holder::SocketOwner;

pub(super) struct PublishedRelay {
    /// Whether the user that the relay runs as is trusted.
    pub(super) owner: SocketOwner,
    pub(super) peers: SocketAddr,
    pub(super) admin: Option<SocketAddr>,
    /// What `/readyz` reports as missing.
    pub(super) missing: Vec<String>,
}

impl PublishedRelay {
    pub(super) async fn find(sources: &Sources, config: Option<&Config>) -> Option<Self> {
        let relay = client::LocalRelay::find(sources, config).await?;
        let (_, instance) = relay.ask("/instance").await.ok()?;
        let Instance { peers, admin, .. } = serde_json::from_slice(&instance).ok()?;
        let (_, ready) = relay.ask("/readyz").await.ok()?;
        Some(Self { owner: relay.owner(), peers, admin, missing: parse_missing(&ready)? })
    }
}

/// Parses what `/readyz` reports as missing; `None` if that is not the answer of a relay.
pub(super) fn parse_missing(body: &[u8]) -> Option<Vec<String>> {
    let readiness: Readiness = serde_json::from_slice(body).ok()?;
    Some(readiness.missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_answer_of_a_relay_is_accepted() {
        assert_eq!(parse_missing(br#"{"ready":true,"missing":[]}"#), Some(Vec::new()));
        for other in [&b"OK"[..], b"{}", br#"{"ready":true}"#, br#"{"missing":[]}"#] {
            assert_eq!(parse_missing(other), None);
        }
    }
}
