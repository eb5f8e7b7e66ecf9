//! Keys, sessions and the running time of the process, kept consistent with each other.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::time::Instant;

use super::keys::{KeyId, KeyTable, KeyUse, OneTimeKey};
use super::pauses::PauseTracker;
use super::sessions::{
    IdentityLimit, PeerIdentity, Session, SessionId, SessionRecord, SessionTable,
};

/// What the lock of the state protects. Operations that concern one table only are called on that table.
#[derive(Debug)]
pub(super) struct StateTables {
    /// Converts the time, since keys age only while the process runs.
    pub(super) pauses: PauseTracker,
    pub(super) keys: KeyTable,
    pub(super) sessions: SessionTable,
}

impl StateTables {
    pub(super) fn new(capacity: usize, base: u32) -> Self {
        Self {
            pauses: PauseTracker::default(),
            keys: KeyTable::new(capacity, base),
            sessions: SessionTable::default(),
        }
    }

    pub(super) fn find_key(&self, id: KeyId, now: Instant) -> Option<Arc<OneTimeKey>> {
        self.keys.find(id, self.pauses.to_running_time(now))
    }

    pub(super) fn hand_out(&mut self, id: KeyId, now: Instant) -> KeyUse {
        self.keys.hand_out(id, self.pauses.to_running_time(now))
    }

    /// Uses up a key, which must be valid, and begins the session that takes its share of the capacity.
    ///
    /// # Errors
    /// The limit of the user or of the host that the session would exceed. The key is used up nevertheless, and its share of
    /// the capacity is free.
    pub(super) fn begin_session(
        &mut self,
        key: KeyId,
        identity: PeerIdentity,
        addresses: [SocketAddr; 2],
        now: Instant,
    ) -> Result<Arc<Session>, (IdentityLimit, PeerIdentity)> {
        if let Some(limit) = self.sessions.find_exceeded_limit(&identity) {
            self.keys.use_up(key);
            return Err((limit, identity));
        }
        let paired = self.keys.pair(key, self.pauses.to_running_time(now));
        debug_assert!(paired, "a key that was found can be paired");
        Ok(self.sessions.start(identity, addresses, now))
    }

    /// Continues a session that began elsewhere, even beyond the capacity.
    pub(super) fn adopt_session(&mut self, record: SessionRecord, now: Instant) -> Arc<Session> {
        self.keys.count_adopted_session();
        self.sessions.adopt(record, now)
    }

    /// Removes a session that has ended. Only the first call for a session counts.
    pub(super) fn end_session(&mut self, id: SessionId) {
        if self.sessions.end(id) {
            self.keys.free_session();
        }
    }

    /// Removes a session that continues elsewhere, unless it was asked to end. Returns whether it was removed.
    pub(super) fn remove_unless_stopped(&mut self, session: &Session) -> bool {
        let is_removed = !session.signal.is_asked_to_end();
        if is_removed {
            self.end_session(session.id);
        }
        is_removed
    }

    /// Removes expired keys and returns their numbers. Examines at most `limit` keys.
    pub(super) fn expire(&mut self, now: Instant, limit: usize) -> Vec<KeyId> {
        self.keys.expire(self.pauses.to_running_time(now), limit)
    }

    /// Returns when [`Self::expire`] should run next.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.keys.next_expiry().map(|running| self.pauses.to_clock_time(running))
    }

    /// Whether no session is active and no key is handed out, so that no peer is connected or expected.
    pub(super) fn is_empty(&self) -> bool {
        self.sessions.is_empty() && self.keys.counts().handed_out == 0
    }
}
