//! One session, shared by its task and the tasks that report on it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::time::Instant;

use super::cause::EndCause;
use super::id::SessionId;
use super::identity::PeerIdentity;
use super::path::PeerPath;
use super::record::SessionRecord;
use super::signal::SessionSignal;
use super::traffic::Traffic;

/// One session, shared by the task that forwards its bytes and the tasks that report on it.
///
/// The order of the fields in memory is fixed: what the task writes is more than a cache line away from both ends, so that
/// it shares no cache line with another session, and no memory is spent on alignment.
#[derive(Debug)]
#[repr(C)]
pub struct Session {
    /// Its number.
    pub id: SessionId,
    /// When it was paired.
    pub started: Instant,
    /// Who the peers are.
    pub identity: PeerIdentity,
    /// Where the peers connect from, in the order in which they arrived.
    pub addresses: [SocketAddr; 2],
    /// How many bytes it has moved, and when.
    pub traffic: Traffic,
    /// Wakes its task.
    pub signal: SessionSignal,
    /// Whether nothing is left to forward, so that limits on its time no longer apply.
    pub has_ended_forwarding: AtomicBool,
    /// The paths to the two peers.
    pub paths: [PeerPath; 2],
}

impl Session {
    /// Asks the session to end. Only the first reason counts.
    pub fn stop(&self, why: EndCause) {
        self.signal.request_end(why);
    }

    /// Asks the session to end as idle if nothing has moved since `since` and nothing can move.
    pub fn stop_if_idle(&self, since: Instant) {
        self.signal.request_idle_check(since);
    }

    /// Whether there is still something to forward.
    pub fn is_forwarding(&self) -> bool {
        !self.has_ended_forwarding.load(Ordering::Relaxed)
    }

    /// Returns what another relay needs to continue the session, as of `now`.
    pub fn record(&self, now: Instant) -> SessionRecord {
        SessionRecord {
            id: self.id,
            age: now.saturating_duration_since(self.started),
            idle: now.saturating_duration_since(self.traffic.last_moved()),
            bytes: self.traffic.bytes_from_each(),
            identity: self.identity.clone(),
            addresses: self.addresses,
        }
    }
}
