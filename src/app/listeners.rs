//! The sockets that a relay listens on.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
#[cfg(target_os = "linux")]
use std::os::fd::OwnedFd;

use crate::admin::listener::HttpListener;
use crate::config::StartupConfig;
use crate::config::parse::ListenAddress;
use crate::handover::takeover::Takeover;
use crate::listen::acceptor::Acceptor;
use crate::listen::bind;
use crate::peer;

use super::error::StartError;

/// The name in the descriptor store of the socket for peers.
const PEERS: &str = "peers";

/// The name in the descriptor store of a socket for HTTP.
fn name(kind: HttpListener) -> &'static str {
    match kind {
        HttpListener::Admin => "admin",
        HttpListener::Metrics => "metrics",
    }
}

/// Sockets that are bound and listening already. The relay binds the others by its settings.
#[derive(Debug, Default)]
pub struct Listeners {
    /// For peers.
    pub peers: Option<TcpListener>,
    /// For administrators.
    pub admin: Option<TcpListener>,
    /// For scrapers of metrics.
    pub metrics: Option<TcpListener>,
}

impl Listeners {
    /// Fills in the sockets that were taken over from the previous relay, as far as they are those that the settings ask for.
    pub(super) fn or_taken(self, takeover: &mut Takeover, startup: &StartupConfig) -> Self {
        let Self { peers, admin, metrics } = self;
        let mut take = |name, setting: Option<(Option<IpAddr>, u16)>| {
            // Without such a setting, no address is right.
            let (interface, port) = setting.unwrap_or((None, 0));
            takeover.take_listener(name, interface, port)
        };
        let listen =
            |setting: Option<ListenAddress>| setting.map(|listen| (listen.interface, listen.port));
        let peer_setting = Some((startup.listen_interface, startup.listen_port));
        Self {
            peers: peers.or_else(|| take(PEERS, peer_setting)),
            admin: admin.or_else(|| take(name(HttpListener::Admin), listen(startup.admin_listen))),
            metrics: metrics
                .or_else(|| take(name(HttpListener::Metrics), listen(startup.metrics_listen))),
        }
    }
}

/// All sockets of a relay, bound.
pub(super) struct BoundListeners {
    peers: TcpListener,
    http: Vec<(HttpListener, TcpListener)>,
}

/// All sockets of a relay, registered with the runtime that accepts from them.
pub(super) struct RunningListeners {
    pub(super) peers: Acceptor,
    pub(super) http: Vec<(HttpListener, Acceptor)>,
}

impl BoundListeners {
    /// Takes the inherited sockets, and binds those that are missing and that the settings ask for.
    pub(super) fn bind(inherited: Listeners, startup: &StartupConfig) -> Result<Self, StartError> {
        let peers = match inherited.peers {
            Some(listener) => listener,
            None => bind::bind(peer::PURPOSE, startup.listen_interface, startup.listen_port)?,
        };
        peers.set_nonblocking(true).map_err(StartError::Listener)?;
        let mut http = Vec::new();
        for (kind, inherited, setting) in [
            (HttpListener::Admin, inherited.admin, startup.admin_listen),
            (HttpListener::Metrics, inherited.metrics, startup.metrics_listen),
        ] {
            let listener = match (inherited, setting) {
                (Some(listener), _) => listener,
                (None, Some(listen)) => bind::bind(kind.purpose(), listen.interface, listen.port)?,
                (None, None) => continue,
            };
            listener.set_nonblocking(true).map_err(StartError::Listener)?;
            http.push((kind, listener));
        }
        Ok(Self { peers, http })
    }

    /// Duplicates the socket for peers.
    pub(super) fn duplicate_peers(&self) -> io::Result<TcpListener> {
        self.peers.try_clone()
    }

    /// Duplicates all sockets, for the descriptor store, with the names under which the next relay takes them over.
    #[cfg(target_os = "linux")]
    pub(super) fn duplicate_all(&self) -> io::Result<Vec<(&'static str, OwnedFd)>> {
        let http = self.http.iter().map(|(kind, listener)| (name(*kind), listener));
        let all = std::iter::once((PEERS, &self.peers)).chain(http);
        all.map(|(name, listener)| Ok((name, listener.try_clone()?.into()))).collect()
    }

    /// The address of the socket for peers.
    pub(super) fn peer_address(&self) -> Result<SocketAddr, StartError> {
        self.peers.local_addr().map_err(StartError::Listener)
    }

    /// The addresses in words: of the socket for peers, and of the others with their callers.
    pub(super) fn describe(&self) -> (String, String) {
        let http = self.http.iter().map(|(kind, listener)| {
            format!(", HTTP for {} on {}", kind.purpose().callers, bind::describe(listener))
        });
        (bind::describe(&self.peers), http.collect())
    }

    /// Registers the sockets with the current runtime.
    pub(super) fn register(self) -> io::Result<RunningListeners> {
        let peers = Acceptor::new(self.peers)?;
        let http = self.http.into_iter();
        let http = http.map(|(kind, listener)| Ok((kind, Acceptor::new(listener)?)));
        Ok(RunningListeners { peers, http: http.collect::<io::Result<_>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::time::Duration;

    #[test]
    fn inherited_sockets_take_the_place_of_those_in_the_settings() {
        let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (peers, metrics) = (bind(), bind());
        let (peer_address, metrics_address) =
            (peers.local_addr().unwrap(), metrics.local_addr().unwrap());
        let inherited = Listeners { peers: Some(peers), admin: None, metrics: Some(metrics) };
        let startup = StartupConfig {
            listen_interface: None,
            listen_port: 8070,
            admin_listen: None,
            metrics_listen: None,
            fd_store: None,
            fd_store_timeout: Duration::ZERO,
            worker_threads: 1,
        };
        let bound = BoundListeners::bind(inherited, &startup).unwrap();
        assert_eq!(bound.peer_address().unwrap(), peer_address);
        let (_, http) = bound.describe();
        assert!(http.contains(&format!("on {metrics_address}")), "{http}");
        assert_eq!(bound.http.len(), 1);
    }
}
