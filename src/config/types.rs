//! The configuration that the relay runs with.

use std::net::IpAddr;
use std::num::NonZero;
use std::time::Duration;

use crate::crypto::PublicKey;
use crate::fd_store::address::StoreAddress;
use crate::tls::{PemSource, ServerFiles};

use super::admin_hosts::AdminHosts;
use super::networks::Networks;
use super::parse::{Bandwidth, HostName, ListenAddress, RouterProtocol, Token};

/// Everything that the relay runs with. Each field belongs to one row of the [table of settings](super::settings).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Settings that take effect only after a restart.
    pub startup: StartupConfig,
    /// The link to the Router.
    pub router: RouterConfig,
    /// `MaxPeerCount`: how many sessions may run at once.
    pub max_sessions: usize,
    /// `PeerIdleTimeout`.
    pub peer_idle_timeout: Duration,
    /// `MaxSessionDuration`; `None` means no limit.
    pub max_session_duration: Option<Duration>,
    /// `MaxPendingPeers`: connections that are not paired yet.
    pub max_pending_peers: usize,
    /// `MaxPendingPeersPerAddress`: the same for one address (one IPv4 address or one IPv6 /64).
    pub max_pending_peers_per_address: usize,
    /// `PeerConnectRate`: connections per minute and address, and the size of a burst; `None` means no limit.
    pub peer_connect_rate: Option<NonZero<u32>>,
    /// `MaxSessionsPerUser`: sessions at once of one user name; `None` means no limit.
    pub max_sessions_per_user: Option<NonZero<u32>>,
    /// `MaxSessionsPerHost`: sessions at once of one host number; `None` means no limit.
    pub max_sessions_per_host: Option<NonZero<u32>>,
    /// `AllowPeers`: the networks that peers may come from; an empty list allows all.
    pub allow_peers: Networks,
    /// `DenyPeers`: the networks that peers may not come from; takes precedence over `AllowPeers`.
    pub deny_peers: Networks,
    /// `ProxyProtocolFrom`: the networks whose connections to the peer port begin with a PROXY header.
    pub proxy_protocol_from: Networks,
    /// `SessionBandwidth`, for each session; `None` means no limit.
    pub session_bandwidth: Option<Bandwidth>,
    /// `TotalBandwidth`, for all sessions together; `None` means no limit.
    pub total_bandwidth: Option<Bandwidth>,
    /// `OfferByLoad`: whether the keys on offer follow what the machine can still carry.
    pub offer_by_load: bool,
    /// `StatisticsEnabled`.
    pub statistics_enabled: bool,
    /// `StatisticsInterval`.
    pub statistics_interval: Duration,
    /// `DrainTimeout`.
    pub drain_timeout: Duration,
    /// `AdminToken`.
    pub admin_token: Option<Token>,
    /// `AdminHosts`: the names of a proxy in front of the admin listener.
    pub admin_hosts: AdminHosts,
    /// `MetricsToken`.
    pub metrics_token: Option<Token>,
    /// `MetricsTlsCertificate`.
    pub metrics_tls_certificate: Option<PemSource>,
    /// `MetricsTlsPrivateKey`; set if and only if the certificate is.
    pub metrics_tls_private_key: Option<PemSource>,
    /// `MetricsTlsClientCa`.
    pub metrics_tls_client_ca: Option<PemSource>,
    /// `WatchConfig`: whether the files that settings come from are read again when they change.
    pub watch_config: bool,
    /// `TracePeerIdentity`.
    pub trace_peer_identity: bool,
    /// `LogPeerIdentity`.
    pub log_peer_identity: bool,
}

/// Settings that take effect only after a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartupConfig {
    /// `ListenInterface`; `None` means all addresses, IPv4 and IPv6.
    pub listen_interface: Option<IpAddr>,
    /// `ListenPort`, or else `PeerPort`.
    pub listen_port: u16,
    /// `AdminListen`; `None` means off.
    pub admin_listen: Option<ListenAddress>,
    /// `MetricsListen`; `None` means off.
    pub metrics_listen: Option<ListenAddress>,
    /// `FdStore`: the socket of the descriptor store; `None` means off.
    pub fd_store: Option<StoreAddress>,
    /// `FdStoreTimeout`: how long the descriptor store keeps connections without a relay.
    pub fd_store_timeout: Duration,
    /// `WorkerThreads`; 0 means as many as the CPU quota allows.
    pub worker_threads: usize,
}

/// Settings of the link to the Router, and what the Router is told; a change needs a new link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterConfig {
    /// `RouterAddress`.
    pub address: HostName,
    /// `RouterPort`, or else the usual port of `RouterProtocol`.
    pub port: u16,
    /// `RouterProtocol`.
    pub protocol: RouterProtocol,
    /// `RouterPublicKey`.
    pub public_key: PublicKey,
    /// `PeerAddress`: the address that peers dial.
    pub peer_address: HostName,
    /// `PeerPort`: the port that peers dial.
    pub peer_port: u16,
    /// `DisplayName` as a Router accepts it; never empty.
    pub display_name: String,
}

impl StartupConfig {
    /// The number of worker threads: `WorkerThreads`, or else the number of processors that this process may use
    /// according to its affinity and the quotas of its control groups (both versions).
    pub fn worker_count(&self) -> usize {
        match self.worker_threads {
            0 => std::thread::available_parallelism().map_or(1, NonZero::get),
            count => count,
        }
    }
}

impl Config {
    /// The files for TLS on the metrics listener; `None` means plain HTTP.
    pub fn metrics_tls(&self) -> Option<ServerFiles> {
        Some(ServerFiles {
            certificate: self.metrics_tls_certificate.clone()?,
            private_key: self.metrics_tls_private_key.clone()?,
            client_ca: self.metrics_tls_client_ca.clone(),
        })
    }

    /// How often statistics are sent to the Router; `None` means never.
    pub fn statistics_period(&self) -> Option<Duration> {
        self.statistics_enabled.then_some(self.statistics_interval)
    }
}
