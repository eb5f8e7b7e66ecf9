//! The answer to `GET /sessions`, which `--sessions` reads. Fields are only ever added; an added field must have a default.

use std::net::SocketAddr;
use std::num::NonZero;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::handle::Handle;
use crate::state::sessions::Session;
use crate::tcp_info::TcpInfo;

use super::status::rfc3339;

/// A page of the list of active sessions, in the order of their ids.
#[derive(Debug, Serialize, Deserialize)]
pub struct SessionList {
    /// All active sessions, whether or not they are on this page.
    pub total: usize,
    /// What to pass as `after` for the next page; `None` on the last one.
    pub next: Option<u64>,
    /// The sessions of this page.
    pub sessions: Vec<SessionView>,
}

/// One active session.
#[derive(Debug, Serialize, Deserialize)]
pub struct SessionView {
    /// The number of the session.
    pub id: u64,
    /// When it began, as RFC 3339 in UTC.
    pub started: Option<String>,
    /// Time since then, in seconds.
    pub duration_seconds: f64,
    /// Time since the last byte was forwarded, in seconds.
    pub idle_seconds: f64,
    /// Bytes forwarded, both directions together.
    pub bytes: u64,
    /// The Client.
    pub client: ClientView,
    /// The Host.
    pub host: HostView,
    /// The two connections, in the order in which they were accepted.
    pub peers: Vec<PeerView>,
}

/// The Client, as the Router describes it.
#[derive(Debug, Serialize, Deserialize)]
pub struct ClientView {
    /// The name of its user.
    pub user_name: String,
    /// Its address.
    pub address: String,
}

/// The Host, as the Router describes it.
#[derive(Debug, Serialize, Deserialize)]
pub struct HostView {
    /// Its number.
    pub id: u64,
    /// Its address.
    pub address: String,
}

/// A peer's connection.
#[derive(Debug, Serialize, Deserialize)]
pub struct PeerView {
    /// Where it comes from.
    pub address: SocketAddr,
    /// Bytes from this peer that reached the other.
    #[serde(default)]
    pub bytes_sent: u64,
    /// What the kernel knows of it, if that has been measured.
    pub tcp: Option<TcpView>,
}

/// What the kernel knows of a connection.
#[derive(Debug, Serialize, Deserialize)]
pub struct TcpView {
    /// Round-trip time, in seconds.
    pub rtt_seconds: f64,
    /// Segments that were sent again.
    pub retransmits: u32,
    /// The rate of delivery, in bytes per second.
    pub delivery_rate_bytes_per_second: Option<NonZero<u64>>,
    /// Bytes that are still to be sent.
    pub unsent_bytes: Option<u32>,
}

impl SessionList {
    /// Lists at most `limit` of the sessions whose id is above `after`.
    pub(super) fn of(handle: &Handle, after: u64, limit: usize) -> Self {
        let all = handle.state().sessions();
        let rest = &all[all.partition_point(|session| session.id.0 <= after)..];
        let shown = &rest[..rest.len().min(limit)];
        let next = shown.last().filter(|_| rest.len() > shown.len()).map(|session| session.id.0);
        let now = Instant::now();
        let sessions = shown.iter().map(|session| SessionView::of(handle, session, now)).collect();
        Self { total: all.len(), next, sessions }
    }
}

impl SessionView {
    fn of(handle: &Handle, session: &Session, now: Instant) -> Self {
        let since = |time| now.saturating_duration_since(time).as_secs_f64();
        let identity = &session.identity;
        Self {
            id: session.id.0,
            started: rfc3339(handle.started().wall_clock(session.started)),
            duration_seconds: since(session.started),
            idle_seconds: since(session.traffic.last_moved()),
            bytes: session.traffic.bytes(),
            client: ClientView {
                user_name: identity.client_user_name().to_owned(),
                address: identity.client_address().to_owned(),
            },
            host: HostView { id: identity.host_id, address: identity.host_address().to_owned() },
            peers: [0, 1].map(|number| PeerView::of(session, number)).into(),
        }
    }
}

impl PeerView {
    fn of(session: &Session, number: usize) -> Self {
        Self {
            address: session.addresses[number],
            bytes_sent: session.traffic.bytes_from_each()[number],
            tcp: session.paths[number].get().map(TcpView::of),
        }
    }
}

impl TcpView {
    fn of(info: TcpInfo) -> Self {
        Self {
            rtt_seconds: info.rtt().as_secs_f64(),
            retransmits: info.retransmits,
            delivery_rate_bytes_per_second: info.delivery_rate,
            unsent_bytes: info.unsent,
        }
    }
}
