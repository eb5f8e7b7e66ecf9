//! What the admin interface says of the relay, in JSON. Fields are only ever added.

use std::net::SocketAddr;
use std::time::SystemTime;

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

use crate::handle::{Handle, REVISION};
use crate::metrics::Label;
use crate::peer::metrics::Connection;
use crate::state::sessions::{Path, Session};
use crate::tcp_info::TcpInfo;

use super::history::{self, History};

/// `GET /status`.
pub(super) fn status(handle: &Handle, history: &History) -> Value {
    let config = handle.config();
    let link = handle.link();
    let (counts, bytes) = handle.state().refresh_metrics();
    let connections = handle.peer_metrics().connections();
    let pending = handle.peer_metrics().pending();
    let recent = history.recent(handle);
    let refused = |(outcome, _): &(Connection, u64)| *outcome != Connection::Paired;
    let missing = handle.missing();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "revision": REVISION,
        "started": rfc3339(handle.time_of(handle.started())),
        "uptime_seconds": handle.uptime().as_secs_f64(),
        "draining": handle.is_draining(),
        "drain_timeout_seconds": config.drain_timeout.as_secs_f64(),
        "ready": missing.is_empty(),
        "missing": missing,
        "router": {
            "address": config.router.address.with_port(config.router.port),
            "connected": link.link.is_some(),
            "confirmed": link.is_confirmed(),
            "since": rfc3339(link.since),
            "peer_address": link.link.as_ref().map(|link| link.address.to_string()),
            "version": link.link.as_ref().map(|link| link.version.to_string()),
            "dialect": link.link.as_ref().map(|link| link.dialect),
            "cipher": link.link.as_ref().map(|link| link.cipher.to_string()),
            "failures": link.failures,
            "last_error": link.last_error.as_ref().map(|(at, message)| json!({
                "at": rfc3339(*at),
                "message": message,
            })),
        },
        "peers": {
            "dial": config.router.peer_address.with_port(config.router.peer_port),
            "listen": handle.address().to_string(),
            "pending": pending,
            "pending_limit": config.max_pending_peers,
        },
        "keys": { "offered": counts.offered, "handed_out": counts.handed_out },
        "sessions": { "active": counts.active, "limit": counts.capacity },
        "bytes_total": bytes,
        "connections": by_name(connections.values()),
        "recent": {
            "interval_seconds": history::INTERVAL.as_secs_f64(),
            "bytes": recent.bytes,
            "refusals": by_name(recent.connections.into_iter().filter(refused)),
        },
        "log_level": handle.log().text(),
        "waiting_for_restart": handle.waiting_for_restart(),
    })
}

/// `GET /instance`, for commands on this machine: where the relay listens, by the settings in force. `admin` and `metrics`
/// are addresses by which this machine reaches them.
pub(super) fn instance(handle: &Handle) -> Value {
    let startup = handle.config().startup.clone();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "peers": handle.address().to_string(),
        "admin": startup.admin_listen.map(|listen| listen.local().to_string()),
        "metrics": startup.metrics_listen.map(|listen| listen.local().to_string()),
    })
}

/// `GET /sessions`: at most `limit` of those with a number above `after`.
pub(super) fn sessions(handle: &Handle, after: u64, limit: usize) -> Value {
    let all = handle.state().sessions();
    let rest = &all[all.partition_point(|session| session.id.0 <= after)..];
    let shown = &rest[..rest.len().min(limit)];
    let next = shown.last().filter(|_| rest.len() > shown.len()).map(|session| session.id.0);
    let now = Instant::now();
    json!({
        "total": all.len(),
        "next": next,
        "sessions": shown.iter().map(|one| session(handle, one, now)).collect::<Vec<_>>(),
    })
}

fn session(handle: &Handle, session: &Session, now: Instant) -> Value {
    let duration = now.saturating_duration_since(session.started);
    let idle = now.saturating_duration_since(session.traffic.last_moved());
    let tcp = |info: TcpInfo| {
        json!({
            "rtt_seconds": info.rtt().as_secs_f64(),
            "retransmits": info.retransmits,
            "delivery_rate_bytes_per_second": info.delivery_rate,
            "unsent_bytes": info.unsent,
        })
    };
    let peer = |(address, path): (&SocketAddr, &Path)| json!({ "address": address.to_string(), "tcp": path.get().map(tcp) });
    json!({
        "id": session.id.0,
        "started": rfc3339(handle.time_of(session.started)),
        "duration_seconds": duration.as_secs_f64(),
        "idle_seconds": idle.as_secs_f64(),
        "bytes": session.traffic.bytes(),
        "client": {
            "user_name": session.identity.client_user_name(),
            "address": session.identity.client_address(),
        },
        "host": { "id": session.identity.host_id, "address": session.identity.host_address() },
        "peers": session.addresses.iter().zip(&session.paths).map(peer).collect::<Vec<_>>(),
    })
}

fn by_name(counts: impl Iterator<Item = (Connection, u64)>) -> Map<String, Value> {
    counts.map(|(outcome, count)| (outcome.name().to_owned(), count.into())).collect()
}

/// A time in UTC, to the second.
fn rfc3339(time: SystemTime) -> Option<String> {
    OffsetDateTime::from(time).replace_nanosecond(0).ok()?.format(&Rfc3339).ok()
}
