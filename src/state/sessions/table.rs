//! The table of active sessions.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::time::Instant;

use super::cause::EndCause;
use super::id::SessionId;
use super::identity::PeerIdentity;
use super::identity_limits::{IdentityCounts, IdentityLimit, IdentityLimits};
use super::record::SessionRecord;
use super::session::Session;
use super::signal::SessionSignal;
use super::traffic::Traffic;

/// The active sessions, ordered by their numbers so that they can be listed page by page. An operation on one session costs
/// O(log n).
#[derive(Debug, Default)]
pub struct SessionTable {
    last: u64,
    /// Bytes of the sessions that have ended.
    ended_bytes: u128,
    /// Bytes that adopted sessions had moved elsewhere before.
    adopted_bytes: u128,
    active: BTreeMap<SessionId, Arc<Session>>,
    by_identity: IdentityCounts,
    /// Why sessions have to end; `None` until the table is closed.
    closed: Option<EndCause>,
}

impl SessionTable {
    /// Begins a session.
    pub fn start(
        &mut self,
        identity: PeerIdentity,
        addresses: [SocketAddr; 2],
        now: Instant,
    ) -> Arc<Session> {
        let (age, idle) = (Duration::ZERO, Duration::ZERO);
        let id = SessionId(self.last + 1);
        self.adopt(SessionRecord { id, age, idle, bytes: [0, 0], identity, addresses }, now)
    }

    /// Continues a session that began elsewhere. It keeps its number, unless that is taken.
    pub fn adopt(&mut self, record: SessionRecord, now: Instant) -> Arc<Session> {
        let SessionRecord { id, age, idle, bytes, identity, addresses } = record;
        let id = if self.active.contains_key(&id) { SessionId(self.last + 1) } else { id };
        self.last = self.last.max(id.0);
        self.adopted_bytes += bytes.iter().map(|bytes| u128::from(*bytes)).sum::<u128>();
        let before = |time| now.checked_sub(time).unwrap_or(now);
        let started = before(age);
        let session = Arc::new(Session {
            id,
            started,
            identity,
            addresses,
            traffic: Traffic::new(started, bytes, before(idle)),
            paths: Default::default(),
            signal: SessionSignal::default(),
            has_ended_forwarding: AtomicBool::new(false),
        });
        if let Some(why) = self.closed {
            session.stop(why);
        }
        self.by_identity.add(&session.identity);
        self.active.insert(id, session.clone());
        session
    }

    /// Changes how many sessions one user and one host may have. No session ends because of it.
    pub fn set_identity_limits(&mut self, limits: IdentityLimits) {
        let active = self.active.values().map(|session| &session.identity);
        self.by_identity.set_limits(limits, active);
    }

    /// Returns the limit that one more session of these peers would exceed, if any. [`Self::start`] does not ask.
    pub fn find_exceeded_limit(&self, identity: &PeerIdentity) -> Option<IdentityLimit> {
        self.by_identity.find_exceeded(identity)
    }

    /// Returns the highest number that a session has had.
    pub fn last_number(&self) -> u64 {
        self.last
    }

    /// Gives new sessions numbers above `last`, which were used elsewhere.
    pub fn skip_numbers(&mut self, last: u64) {
        self.last = self.last.max(last);
    }

    /// Returns the active session with this number.
    pub fn get(&self, id: SessionId) -> Option<Arc<Session>> {
        self.active.get(&id).cloned()
    }

    /// Asks a session to end. Returns `false` if there is no such session.
    pub fn stop(&self, id: SessionId, why: EndCause) -> bool {
        self.active.get(&id).is_some_and(|session| {
            session.stop(why);
            true
        })
    }

    /// Asks all sessions to end, and every session that begins from now on.
    pub fn close(&mut self, why: EndCause) {
        self.closed = Some(why);
        self.active.values().for_each(|session| session.stop(why));
    }

    /// Removes a session that has ended. Returns `false` if there is no such session.
    pub fn end(&mut self, id: SessionId) -> bool {
        let Some(session) = self.active.remove(&id) else {
            return false;
        };
        self.by_identity.remove(&session.identity);
        self.ended_bytes += u128::from(session.traffic.bytes());
        true
    }

    /// Returns how many bytes all sessions, active and ended, have moved here. Reads the counter of each active session.
    pub fn bytes(&self) -> u64 {
        let active = self.active.values().map(|session| u128::from(session.traffic.bytes()));
        let moved = (self.ended_bytes + active.sum::<u128>()).saturating_sub(self.adopted_bytes);
        u64::try_from(moved).unwrap_or(u64::MAX)
    }

    /// Returns the first `limit` active sessions with numbers above `after`.
    pub fn list_after(&self, after: SessionId, limit: usize) -> Vec<Arc<Session>> {
        let rest = self.active.range((Bound::Excluded(after), Bound::Unbounded));
        rest.take(limit).map(|(_, session)| session.clone()).collect()
    }

    /// Returns the number of active sessions.
    pub fn len(&self) -> usize {
        self.active.len()
    }

    /// Whether no session is active.
    pub fn is_empty(&self) -> bool {
        self.active.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::sessions::PeerOrder;

    async fn signal(session: &Session) -> Option<EndCause> {
        std::future::poll_fn(|context| session.signal.poll_signal(context)).await
    }

    fn addresses() -> [SocketAddr; 2] {
        [([127, 0, 0, 1], 1).into(), ([127, 0, 0, 1], 2).into()]
    }

    #[test]
    fn sessions_are_listed_page_by_page() {
        let mut sessions = SessionTable::default();
        for _ in 0..10 {
            sessions.start(PeerIdentity::default(), addresses(), Instant::now());
        }
        assert!(sessions.end(SessionId(4)));
        let page = |after, limit| -> Vec<u64> {
            let page = sessions.list_after(SessionId(after), limit);
            page.iter().map(|session| session.id.0).collect()
        };
        assert_eq!(page(0, 3), [1, 2, 3]);
        assert_eq!(page(3, 3), [5, 6, 7]);
        assert_eq!(page(7, 9), [8, 9, 10]);
        assert_eq!(page(10, 9), [0; 0]);
    }

    #[test]
    fn session_numbers_count_up_from_one() {
        let mut sessions = SessionTable::default();
        let now = Instant::now();
        for expected in 1..4 {
            let session = sessions.start(PeerIdentity::default(), addresses(), now);
            assert_eq!(session.id, SessionId(expected));
        }
        assert!(sessions.end(SessionId(2)));
        assert!(!sessions.end(SessionId(2)));
        let rest = sessions.list_after(SessionId(0), usize::MAX);
        let ids: Vec<_> = rest.iter().map(|session| session.id.0).collect();
        assert_eq!(ids, [1, 3]);
    }

    #[tokio::test]
    async fn only_the_first_reason_to_stop_counts() {
        let mut sessions = SessionTable::default();
        let session = sessions.start(PeerIdentity::default(), addresses(), Instant::now());
        session.signal.notify();
        assert_eq!(signal(&session).await, None);
        assert!(sessions.stop(session.id, EndCause::Router));
        assert!(sessions.stop(session.id, EndCause::Drain));
        assert_eq!(signal(&session).await, Some(EndCause::Router));
        assert!(!sessions.stop(SessionId(99), EndCause::Drain));
    }

    #[tokio::test]
    async fn closing_the_table_ends_current_and_later_sessions() {
        let mut sessions = SessionTable::default();
        let before = sessions.start(PeerIdentity::default(), addresses(), Instant::now());
        sessions.close(EndCause::Drain);
        let after = sessions.start(PeerIdentity::default(), addresses(), Instant::now());
        assert_eq!(signal(&before).await, Some(EndCause::Drain));
        assert_eq!(signal(&after).await, Some(EndCause::Drain));
    }

    #[test]
    fn adopted_session_counts_against_the_limit_of_its_user() {
        let identity = || PeerIdentity::new("", "u", "", 1);
        let now = Instant::now();
        let record = SessionTable::default().start(identity(), addresses(), now).record(now);
        let mut sessions = SessionTable::default();
        let one = std::num::NonZero::new(1);
        sessions.set_identity_limits(IdentityLimits { per_user: one, per_host: None });
        assert_eq!(sessions.find_exceeded_limit(&identity()), None);
        let adopted = sessions.adopt(record, now);
        assert_eq!(sessions.find_exceeded_limit(&identity()), one.map(IdentityLimit::User));
        assert!(sessions.end(adopted.id));
        assert!(!sessions.end(adopted.id));
        assert_eq!(sessions.find_exceeded_limit(&identity()), None);
    }

    #[test]
    fn adopted_session_keeps_its_number_age_and_bytes() {
        let began = Instant::now();
        let mut here = SessionTable::default();
        here.start(PeerIdentity::default(), addresses(), began);
        let session = here.start(PeerIdentity::new("", "u", "", 1), addresses(), began);
        session.traffic.record(PeerOrder::First, 7, began + Duration::from_secs(2));
        let now = began + Duration::from_secs(5);
        let record = session.record(now);
        assert_eq!((record.age, record.idle), (Duration::from_secs(5), Duration::from_secs(3)));
        let mut there = SessionTable::default();
        let adopted = there.adopt(record.clone(), now);
        assert_eq!(adopted.record(now), record);
        // What moved before was counted where it moved.
        assert_eq!(there.bytes(), 0);
        adopted.traffic.record(PeerOrder::Second, 1, now);
        assert_eq!(there.bytes(), 1);
        assert_eq!(there.start(PeerIdentity::default(), addresses(), now).id, SessionId(3));
        // A number that is taken is not used twice.
        assert_eq!(there.adopt(record, now).id, SessionId(4));
        assert!(there.end(adopted.id));
        assert_eq!(there.bytes(), 1);
    }
}
