//! The responses that commands read (`/status`, `/readyz`, `/instance`) as types, so that the server and its readers
//! cannot disagree. Fields are only ever added; an added field must have a default, since a relay that was started
//! before an upgrade does not send it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::fd_store::status::StoreLinkStatus;
use crate::handle::{Handle, REVISION, ReloadFailure};
use crate::headroom::average::Headroom;
use crate::headroom::resources::{Resource, ResourceUse};
use crate::headroom::watch::LoadReading;
use crate::metrics::Label;
use crate::peer::metrics::PeerOutcome;
use crate::router::status::LinkStatus;

use super::history::{self, History, Recent};

/// The answer to `GET /status`. Times are RFC 3339 in UTC.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// `DisplayName`, under which the Router's console shows the relay.
    #[serde(default)]
    pub display_name: String,
    /// Version of the program.
    pub version: String,
    /// The commit that was built, or `unknown`.
    pub revision: String,
    /// When the relay started. A relay that took over from another one keeps the start of the first.
    pub started: Option<String>,
    /// Time since that start, in seconds.
    pub uptime_seconds: f64,
    /// Whether the relay is stopping.
    pub draining: bool,
    /// `DrainTimeout`, in seconds.
    pub drain_timeout_seconds: f64,
    /// As in [`Readiness`].
    pub ready: bool,
    /// As in [`Readiness`].
    pub missing: Vec<String>,
    /// The link to the Router.
    pub router: RouterStatus,
    /// Peers and how they reach the relay.
    pub peers: PeersStatus,
    /// One-time keys.
    pub keys: KeysStatus,
    /// Sessions.
    pub sessions: SessionsStatus,
    /// What the machine can still carry; `None` from a relay that does not say.
    #[serde(default)]
    pub headroom: Option<HeadroomStatus>,
    /// The descriptor store.
    #[serde(default)]
    pub fd_store: FdStoreStatus,
    /// Bytes forwarded since the start.
    pub bytes_total: u64,
    /// Connections of peers by outcome, since the start.
    pub connections: BTreeMap<String, u64>,
    /// The last minutes.
    pub recent: RecentStatus,
    /// The log filter in force.
    pub log_level: String,
    /// Keys of changed settings that take effect only after a restart.
    pub waiting_for_restart: Vec<String>,
    /// How the configuration was read last.
    #[serde(default)]
    pub config: ConfigStatus,
}

/// The link to the Router, in [`Status`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouterStatus {
    /// `RouterAddress` and `RouterPort`.
    pub address: String,
    /// Whether there is an authenticated link.
    pub connected: bool,
    /// Whether the Router has kept that link long enough to count as accepted.
    pub confirmed: bool,
    /// Since when the link has been in this state.
    pub since: Option<String>,
    /// The address that the link is connected to.
    pub peer_address: Option<String>,
    /// Version of the Router.
    pub version: Option<String>,
    /// Generation of the protocol that is spoken.
    pub dialect: Option<String>,
    /// Cipher of the link.
    pub cipher: Option<String>,
    /// Attempts that have failed in a row.
    pub failures: u64,
    /// The last attempt or link that failed.
    pub last_error: Option<LastError>,
}

/// What went wrong last, and when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LastError {
    /// When it happened.
    pub at: Option<String>,
    /// What happened.
    pub message: String,
}

/// Peers, in [`Status`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeersStatus {
    /// `PeerAddress` and `PeerPort`: what peers dial.
    pub dial: String,
    /// The address listened on.
    pub listen: SocketAddr,
    /// Connections that are not paired yet.
    pub pending: u64,
    /// `MaxPendingPeers`.
    pub pending_limit: usize,
}

/// One-time keys, in [`Status`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeysStatus {
    /// Keys that the Router may still hand out.
    pub offered: usize,
    /// Keys that the Router has given to two peers that have not both connected yet.
    pub handed_out: usize,
}

/// Sessions, in [`Status`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionsStatus {
    /// Sessions now.
    pub active: usize,
    /// `MaxPeerCount`.
    pub limit: usize,
}

/// What the machine can still carry, in [`Status`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeadroomStatus {
    /// What is left of the scarcest resource, from 0 (nothing) to 1 (all): `aspia_relay_headroom_ratio`.
    pub ratio: f64,
    /// The scarcest resource: `cpu`, `bandwidth`, `descriptors` or `memory`; `None` if nothing was measured yet.
    pub scarcest: Option<Resource>,
    /// `OfferByLoad`: whether the keys on offer follow it.
    pub offer_by_load: bool,
    /// Which share of each resource is in use, from 0 to 1, on average.
    pub used: ResourceUse,
}

/// The descriptor store, in [`Status`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FdStoreStatus {
    /// Whether `FdStore` is set.
    pub configured: bool,
    /// `FdStore`, unless it is off.
    pub address: Option<String>,
    /// Whether the relay is connected to the store, so that sessions outlive it.
    pub connected: bool,
    /// How many sessions the store keeps; `None` without a connection.
    pub sessions_kept: Option<usize>,
    /// Since when the connection has been in this state.
    pub since: Option<String>,
    /// The last failure.
    pub last_error: Option<LastError>,
}

/// How the configuration was read last, in [`Status`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// Whether the configuration that was read last, at the start or later, was accepted.
    pub last_reload_successful: bool,
    /// When the configuration in force was read.
    pub loaded: Option<String>,
    /// `WatchConfig`: whether the configuration is read again when its files change.
    pub watched: bool,
    /// Why the configuration that was read last was not accepted: all its problems.
    pub last_error: Option<LastError>,
}

impl Default for ConfigStatus {
    /// What is assumed of a relay that does not say.
    fn default() -> Self {
        Self { last_reload_successful: true, loaded: None, watched: false, last_error: None }
    }
}

/// The last minutes, in [`Status`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecentStatus {
    /// Length of an interval, in seconds.
    pub interval_seconds: f64,
    /// Bytes forwarded in each interval, the oldest first.
    pub bytes: Vec<u64>,
    /// Connections that were not paired, by outcome, over all these intervals.
    pub refusals: BTreeMap<String, u64>,
}

/// The answer to `GET /readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// Whether peers can be served.
    pub ready: bool,
    /// What is missing for readiness: `router-link`, `peer-listener`, `draining`.
    pub missing: Vec<String>,
}

/// The answer to `GET /instance`, for commands on this machine: where the relay listens by the settings in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Version of the program.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// The address on which it listens for peers.
    pub peers: SocketAddr,
    /// An address at which this machine reaches the admin listener; `None` if it is off.
    pub admin: Option<SocketAddr>,
    /// The same for the metrics listener.
    pub metrics: Option<SocketAddr>,
}

impl Status {
    /// The state of the relay now.
    pub(super) fn of(handle: &Handle, history: &History) -> Self {
        let (config, started) = (handle.config(), handle.started());
        let (counts, bytes_total) = handle.state().refresh_metrics();
        let carried = |name: &str, labels: &[(&str, &str)]| {
            handle.carried_metrics().map_or(0, |carried| carried.count(name, labels))
        };
        let Readiness { ready, missing } = Readiness::of(handle);
        Self {
            display_name: config.router.display_name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: REVISION.to_owned(),
            started: rfc3339(started.wall_clock(started.instant())),
            uptime_seconds: started.uptime().as_secs_f64(),
            draining: handle.is_draining(),
            drain_timeout_seconds: config.drain_timeout.as_secs_f64(),
            ready,
            missing,
            router: RouterStatus::of(
                handle.link(),
                config.router.address.with_port(config.router.port),
            ),
            peers: PeersStatus {
                dial: config.router.peer_address.with_port(config.router.peer_port),
                listen: handle.address(),
                pending: handle.peer_metrics().pending(),
                pending_limit: config.max_pending_peers,
            },
            keys: KeysStatus { offered: counts.offered, handed_out: counts.handed_out },
            sessions: SessionsStatus { active: counts.active, limit: counts.capacity },
            headroom: Some(HeadroomStatus::of(handle.load(), config.offer_by_load)),
            fd_store: FdStoreStatus::of(handle.store_link()),
            bytes_total: bytes_total + carried("aspia_relay_bytes_total", &[]),
            connections: count_by_name(handle.peer_metrics().connections().values().map(
                |(outcome, count)| {
                    let label = [("outcome", outcome.name())];
                    (outcome, count + carried("aspia_relay_peer_connections_total", &label))
                },
            )),
            recent: RecentStatus::of(history.recent(handle)),
            log_level: handle.log().filter(),
            waiting_for_restart: to_strings(handle.settings().waiting_for_restart()),
            config: ConfigStatus::of(handle),
        }
    }
}

impl RouterStatus {
    fn of(status: LinkStatus, address: String) -> Self {
        let confirmed = status.is_confirmed();
        let LinkStatus { link, since, failures, last_error, .. } = status;
        Self {
            address,
            connected: link.is_some(),
            confirmed,
            since: rfc3339(since),
            peer_address: link.as_ref().map(|link| link.address.to_string()),
            version: link.as_ref().map(|link| link.version.to_string()),
            dialect: link.as_ref().map(|link| link.dialect.to_string()),
            cipher: link.as_ref().map(|link| link.cipher.to_string()),
            failures,
            last_error: last_error.map(|(at, message)| LastError { at: rfc3339(at), message }),
        }
    }
}

impl HeadroomStatus {
    fn of(load: LoadReading, offer_by_load: bool) -> Self {
        let LoadReading { headroom: Headroom { ratio, scarcest }, used } = load;
        Self { ratio, scarcest, offer_by_load, used }
    }
}

impl ConfigStatus {
    fn of(handle: &Handle) -> Self {
        let last = handle.settings().last_read();
        let describe = |(at, failure): (SystemTime, ReloadFailure)| LastError {
            at: rfc3339(at),
            message: failure.description,
        };
        Self {
            last_reload_successful: last.failure.is_none(),
            loaded: rfc3339(last.accepted_at),
            watched: handle.config().watch_config,
            last_error: last.failure.map(describe),
        }
    }
}

impl FdStoreStatus {
    fn of(status: StoreLinkStatus) -> Self {
        let connected = status.is_connected();
        let StoreLinkStatus { address, since, kept_sessions, last_error } = status;
        Self {
            configured: address.is_some(),
            since: address.as_ref().and_then(|_| rfc3339(since)),
            address: address.map(|address| address.to_string()),
            connected,
            sessions_kept: kept_sessions,
            last_error: last_error.map(|(at, message)| LastError { at: rfc3339(at), message }),
        }
    }
}

impl RecentStatus {
    fn of(recent: Recent) -> Self {
        let refused =
            recent.connections.into_iter().filter(|(outcome, _)| *outcome != PeerOutcome::Paired);
        Self {
            interval_seconds: history::INTERVAL.as_secs_f64(),
            bytes: recent.bytes,
            refusals: count_by_name(refused),
        }
    }
}

impl Readiness {
    /// Whether peers can be served now.
    pub(super) fn of(handle: &Handle) -> Self {
        let missing = handle.missing();
        Self { ready: missing.is_empty(), missing: to_strings(missing) }
    }
}

impl Instance {
    /// The relay of `handle`.
    pub(super) fn of(handle: &Handle) -> Self {
        let startup = &handle.config().startup;
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            peers: handle.address(),
            admin: startup.admin_listen.map(|listen| listen.local()),
            metrics: startup.metrics_listen.map(|listen| listen.local()),
        }
    }
}

fn to_strings(names: Vec<&str>) -> Vec<String> {
    names.into_iter().map(str::to_owned).collect()
}

fn count_by_name(counts: impl Iterator<Item = (PeerOutcome, u64)>) -> BTreeMap<String, u64> {
    counts.map(|(outcome, count)| (outcome.name().to_owned(), count)).collect()
}

/// A time in UTC, to the second.
pub(super) fn rfc3339(time: SystemTime) -> Option<String> {
    let mut text = String::new();
    write!(text, "{}", humantime::format_rfc3339_seconds(time)).ok()?;
    Some(text)
}
