//! The active sessions.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use atomic_waker::AtomicWaker;
use tokio::time::Instant;

use crate::metrics::{Label, labels};
use crate::tcp_info::TcpInfo;
use crate::wire;

/// Longest text kept of what the Router says about a peer, in bytes. It bounds the memory of a session and the
/// length of a statistics message; names and addresses are far shorter.
const MAX_TEXT: usize = 256;

/// The relay's number for a session; counts up from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

labels! {
    /// Why a session ended.
    pub enum End {
        /// Both peers finished.
        Closed = "closed",
        /// A peer's connection was reset or timed out.
        Reset = "reset",
        /// No bytes moved for `PeerIdleTimeout`.
        Idle = "idle",
        /// The Router or an administrator asked for it.
        Disconnected = "disconnected",
        /// `MaxSessionDuration` was over.
        MaxDuration = "max_duration",
        /// The relay stops.
        Drain = "drain",
        /// The relay failed.
        Error = "error",
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Who the peers are, in the words of the Router. For its statistics; in logs only when asked for.
///
/// One piece of memory for all texts: there are thousands of them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Identity {
    texts: Box<str>,
    /// Where the first two texts end.
    ends: [u16; 2],
    /// The remote machine's number.
    pub host_id: u64,
}

impl Identity {
    /// The operator's address and name, and the remote machine's address and number. Texts are kept up to 256 bytes.
    pub fn new(client_address: &str, user_name: &str, host_address: &str, host_id: u64) -> Self {
        let [client, user, host] = [client_address, user_name, host_address].map(shorten);
        let texts = [client, user, host].concat().into();
        let end = |end: usize| u16::try_from(end).unwrap_or(u16::MAX);
        Self { texts, ends: [end(client.len()), end(client.len() + user.len())], host_id }
    }

    fn text(&self, from: u16, to: Option<u16>) -> &str {
        let to = to.map_or(self.texts.len(), usize::from);
        self.texts.get(from.into()..to).unwrap_or_default()
    }

    /// The operator's address, as the Router saw it.
    pub fn client_address(&self) -> &str {
        self.text(0, Some(self.ends[0]))
    }

    /// The operator's name.
    pub fn client_user_name(&self) -> &str {
        self.text(self.ends[0], Some(self.ends[1]))
    }

    /// The remote machine's address, as the Router saw it.
    pub fn host_address(&self) -> &str {
        self.text(self.ends[1], None)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity([redacted])")
    }
}

impl From<&wire::peer::Secret> for Identity {
    fn from(secret: &wire::peer::Secret) -> Self {
        let wire::peer::Secret { client_address, client_user_name, host_address, .. } = secret;
        Self::new(client_address, client_user_name, host_address, secret.host_id)
    }
}

/// The beginning of a text, at most [`MAX_TEXT`] bytes, cut between characters.
fn shorten(text: &str) -> &str {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A session's byte count and the time of its last byte. Only the task that forwards writes these two, so that it needs
/// neither a lock nor an atomic addition.
#[derive(Debug)]
pub struct Traffic {
    started: Instant,
    bytes: AtomicU64,
    last_moved_ms: AtomicU64,
    /// When the kernel was last seen to have delivered what it could not send before.
    last_drained_ms: AtomicU64,
}

impl Traffic {
    /// That of a session that began at `started`, and what it has moved elsewhere so far.
    pub fn new(started: Instant, bytes: u64, last_moved: Instant) -> Self {
        let traffic = Self {
            started,
            bytes: AtomicU64::new(bytes),
            last_moved_ms: AtomicU64::new(0),
            last_drained_ms: AtomicU64::new(0),
        };
        traffic.record(0, last_moved);
        traffic
    }

    fn milliseconds(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.started).as_millis();
        u64::try_from(elapsed).unwrap_or(u64::MAX)
    }

    /// `count` bytes reached a peer at `now`. For the one task that forwards.
    pub fn record(&self, count: usize, now: Instant) {
        let bytes = self.bytes.load(Ordering::Relaxed) + count as u64;
        self.bytes.store(bytes, Ordering::Relaxed);
        self.last_moved_ms.store(self.milliseconds(now), Ordering::Relaxed);
    }

    /// A peer that reads slowly was seen at `now` to have taken what the kernel held for it. The kernel takes nothing more
    /// from the relay before a large part of its buffer is free, which may be minutes later.
    pub fn record_drained(&self, now: Instant) {
        self.last_drained_ms.fetch_max(self.milliseconds(now), Ordering::Relaxed);
    }

    /// Bytes of both directions.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// When bytes last moved, from one peer to the other or out of the kernel's hands; the start, if none did.
    pub fn last_moved(&self) -> Instant {
        let moved = self.last_moved_ms.load(Ordering::Relaxed);
        let drained = self.last_drained_ms.load(Ordering::Relaxed);
        self.started + Duration::from_millis(moved.max(drained))
    }
}

/// What was last seen of the path to a peer.
#[derive(Debug, Default)]
pub struct Path(Mutex<Option<TcpInfo>>);

impl Path {
    /// What was last seen; `None` where nobody looked yet, or the system cannot tell.
    pub fn get(&self) -> Option<TcpInfo> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what is seen now. Gives what was seen before. Of two that look at the same time, the later one counts, whichever
    /// comes first.
    pub fn update(&self, info: TcpInfo) -> Option<TcpInfo> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *seen {
            Some(before) if before.retransmits > info.retransmits => Some(before),
            _ => seen.replace(info),
        }
    }
}

/// How others reach the task of a session.
#[derive(Debug, Default)]
pub struct Bell {
    wanted: Mutex<Wanted>,
    rung: AtomicBool,
    task: AtomicWaker,
}

/// What others want of a session's task.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Wanted {
    /// It is to end.
    end: Option<End>,
    /// It is to end unless bytes have moved since this time, or could move now.
    idle_since: Option<Instant>,
}

impl Bell {
    /// Asks the session to end. Only the first reason counts.
    fn end(&self, why: End) {
        self.wanted().end.get_or_insert(why);
        self.ring();
    }

    /// Asks the session to end if nothing has moved since `since`. By the clock alone that is not certain: the process may have
    /// been stopped for a while, and bytes may wait.
    fn suspect_idle(&self, since: Instant) {
        self.wanted().idle_since = Some(since);
        self.ring();
    }

    /// Since when the session is suspected to be idle, once, if it is. For the one task of the session.
    pub fn take_suspicion(&self) -> Option<Instant> {
        self.wanted().idle_since.take()
    }

    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the session to look up from its work.
    pub fn ring(&self) {
        self.rung.store(true, Ordering::Release);
        self.task.wake();
    }

    /// Ready when somebody rang: why the session is to end, if it is. For the one task of the session; costs it no
    /// lock while nobody rings.
    pub fn poll_rung(&self, context: &Context<'_>) -> Poll<Option<End>> {
        self.task.register(context.waker());
        if !self.rung.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        // Lowered before the reason is looked at: who rings meanwhile is heard the next time.
        self.rung.swap(false, Ordering::AcqRel);
        Poll::Ready(self.wanted().end)
    }
}

/// What a session is beside its sockets and what is in flight between them: enough to go on with it elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number.
    pub id: SessionId,
    /// Time since it was paired.
    pub age: Duration,
    /// Time since bytes last moved.
    pub idle: Duration,
    /// Bytes that moved, both directions.
    pub bytes: u64,
    /// Who the peers are.
    pub identity: Identity,
    /// Where the peers connect from, the first to come first.
    pub addresses: [SocketAddr; 2],
}

/// One session, shared by the task that forwards and by those who report.
///
/// In this order in memory: what the task writes is more than a cache line away from both ends, so that it shares
/// none with another session, and no alignment wastes memory for it.
#[derive(Debug)]
#[repr(C)]
pub struct Session {
    /// Its number.
    pub id: SessionId,
    /// When it was paired.
    pub started: Instant,
    /// Who the peers are.
    pub identity: Identity,
    /// Where the peers connect from, the first to come first.
    pub addresses: [SocketAddr; 2],
    /// What moved.
    pub traffic: Traffic,
    /// Calls its task.
    pub bell: Bell,
    /// Nothing is left to forward: its time does not count any more.
    pub over: AtomicBool,
    /// The paths to the two peers.
    pub paths: [Path; 2],
}

impl Session {
    /// Asks it to end. Only the first reason counts.
    pub fn stop(&self, why: End) {
        self.bell.end(why);
    }

    /// Asks it to end as idle if nothing has moved since `since`, and nothing can.
    pub fn stop_if_idle(&self, since: Instant) {
        self.bell.suspect_idle(since);
    }

    /// Whether there is still something to forward.
    pub fn is_forwarding(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    /// What it is at `now`.
    pub fn record(&self, now: Instant) -> Record {
        Record {
            id: self.id,
            age: now.saturating_duration_since(self.started),
            idle: now.saturating_duration_since(self.traffic.last_moved()),
            bytes: self.traffic.bytes(),
            identity: self.identity.clone(),
            addresses: self.addresses,
        }
    }
}

/// The table of active sessions, in the order of their numbers, so that a part of them can be listed. An operation on one
/// session costs O(log n).
#[derive(Debug, Default)]
pub struct Sessions {
    last: u64,
    /// Bytes of the sessions that have ended.
    ended_bytes: u64,
    /// Bytes that sessions had moved elsewhere before they came here.
    brought_bytes: u64,
    active: BTreeMap<SessionId, Arc<Session>>,
    /// Why no session may go on any more, once that is so.
    closed: Option<End>,
}

impl Sessions {
    /// Begins a session.
    pub fn start(
        &mut self,
        identity: Identity,
        addresses: [SocketAddr; 2],
        now: Instant,
    ) -> Arc<Session> {
        let (age, idle) = (Duration::ZERO, Duration::ZERO);
        let id = SessionId(self.last + 1);
        self.adopt(Record { id, age, idle, bytes: 0, identity, addresses }, now)
    }

    /// Goes on with a session that began elsewhere. It keeps its number, unless that is taken.
    pub fn adopt(&mut self, record: Record, now: Instant) -> Arc<Session> {
        let Record { id, age, idle, bytes, identity, addresses } = record;
        let id = if self.active.contains_key(&id) { SessionId(self.last + 1) } else { id };
        self.last = self.last.max(id.0);
        self.brought_bytes += bytes;
        let before = |time| now.checked_sub(time).unwrap_or(now);
        let started = before(age);
        let session = Arc::new(Session {
            id,
            started,
            identity,
            addresses,
            traffic: Traffic::new(started, bytes, before(idle)),
            paths: Default::default(),
            bell: Bell::default(),
            over: AtomicBool::new(false),
        });
        if let Some(why) = self.closed {
            session.bell.end(why);
        }
        self.active.insert(id, session.clone());
        session
    }

    /// An active session.
    pub fn get(&self, id: SessionId) -> Option<Arc<Session>> {
        self.active.get(&id).cloned()
    }

    /// Asks the session's task to end it. `false` when there is no such session.
    pub fn stop(&self, id: SessionId, why: End) -> bool {
        self.active.get(&id).is_some_and(|session| {
            session.bell.end(why);
            true
        })
    }

    /// Asks all sessions to end, and those that begin from now on.
    pub fn close(&mut self, why: End) {
        self.closed = Some(why);
        self.active.values().for_each(|session| session.bell.end(why));
    }

    /// Removes a session that has ended. `false` when there is no such session.
    pub fn end(&mut self, id: SessionId) -> bool {
        let Some(session) = self.active.remove(&id) else {
            return false;
        };
        self.ended_bytes += session.traffic.bytes();
        true
    }

    /// Bytes that all sessions there ever were have moved here. Costs a look at each active one.
    pub fn bytes(&self) -> u64 {
        let active = self.active.values().map(|session| session.traffic.bytes());
        self.ended_bytes + active.sum::<u64>() - self.brought_bytes
    }

    /// All active sessions, in the order of their numbers.
    pub fn list(&self) -> Vec<Arc<Session>> {
        self.active.values().cloned().collect()
    }

    /// The first active sessions with numbers above `after`, at most `most` of them.
    pub fn list_after(&self, after: SessionId, most: usize) -> Vec<Arc<Session>> {
        let rest = self.active.range((Bound::Excluded(after), Bound::Unbounded));
        rest.take(most).map(|(_, session)| session.clone()).collect()
    }

    /// Number of active sessions.
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

    async fn rung(session: &Session) -> Option<End> {
        std::future::poll_fn(|context| session.bell.poll_rung(context)).await
    }

    fn addresses() -> [SocketAddr; 2] {
        [([127, 0, 0, 1], 1).into(), ([127, 0, 0, 1], 2).into()]
    }

    #[test]
    fn sessions_are_listed_in_pages() {
        let mut sessions = Sessions::default();
        for _ in 0..10 {
            sessions.start(Identity::default(), addresses(), Instant::now());
        }
        assert!(sessions.end(SessionId(4)));
        let page = |after, most| -> Vec<u64> {
            sessions.list_after(SessionId(after), most).iter().map(|session| session.id.0).collect()
        };
        assert_eq!(page(0, 3), [1, 2, 3]);
        assert_eq!(page(3, 3), [5, 6, 7]);
        assert_eq!(page(7, 9), [8, 9, 10]);
        assert_eq!(page(10, 9), [0; 0]);
    }

    #[test]
    fn numbers_count_up_from_one() {
        let mut sessions = Sessions::default();
        let now = Instant::now();
        for expected in 1..4 {
            let session = sessions.start(Identity::default(), addresses(), now);
            assert_eq!(session.id, SessionId(expected));
        }
        assert!(sessions.end(SessionId(2)));
        assert!(!sessions.end(SessionId(2)));
        let mut ids: Vec<_> = sessions.list().iter().map(|session| session.id.0).collect();
        ids.sort_unstable();
        assert_eq!(ids, [1, 3]);
    }

    #[tokio::test]
    async fn only_the_first_reason_to_stop_counts() {
        let mut sessions = Sessions::default();
        let session = sessions.start(Identity::default(), addresses(), Instant::now());
        session.bell.ring();
        assert_eq!(rung(&session).await, None);
        assert!(sessions.stop(session.id, End::Disconnected));
        assert!(sessions.stop(session.id, End::Drain));
        assert_eq!(rung(&session).await, Some(End::Disconnected));
        assert!(!sessions.stop(SessionId(99), End::Drain));
    }

    #[tokio::test]
    async fn once_closed_nobody_goes_on() {
        let mut sessions = Sessions::default();
        let before = sessions.start(Identity::default(), addresses(), Instant::now());
        sessions.close(End::Drain);
        let after = sessions.start(Identity::default(), addresses(), Instant::now());
        assert_eq!(rung(&before).await, Some(End::Drain));
        assert_eq!(rung(&after).await, Some(End::Drain));
    }

    #[test]
    fn a_session_goes_on_elsewhere_as_what_it_was() {
        let began = Instant::now();
        let mut here = Sessions::default();
        here.start(Identity::default(), addresses(), began);
        let session = here.start(Identity::new("", "u", "", 1), addresses(), began);
        session.traffic.record(7, began + Duration::from_secs(2));
        let now = began + Duration::from_secs(5);
        let record = session.record(now);
        assert_eq!((record.age, record.idle), (Duration::from_secs(5), Duration::from_secs(3)));
        let mut there = Sessions::default();
        let same = there.adopt(record.clone(), now);
        assert_eq!(same.record(now), record);
        // What moved before was counted where it moved.
        assert_eq!(there.bytes(), 0);
        same.traffic.record(1, now);
        assert_eq!(there.bytes(), 1);
        assert_eq!(there.start(Identity::default(), addresses(), now).id, SessionId(3));
        // A number that is taken is not given twice.
        assert_eq!(there.adopt(record, now).id, SessionId(4));
        assert!(there.end(same.id));
        assert_eq!(there.bytes(), 1);
    }

    #[test]
    fn traffic_adds_up_and_remembers_when() {
        let now = Instant::now();
        let traffic = Traffic::new(now, 0, now);
        assert_eq!((traffic.bytes(), traffic.last_moved()), (0, now));
        traffic.record(5, now + Duration::from_secs(2));
        traffic.record(6, now + Duration::from_secs(3));
        assert_eq!((traffic.bytes(), traffic.last_moved()), (11, now + Duration::from_secs(3)));
    }

    #[test]
    fn the_texts_of_an_identity_are_told_apart() {
        let identity = Identity::new("192.0.2.1", "й", "2001:db8::1", 7);
        assert_eq!(identity.client_address(), "192.0.2.1");
        assert_eq!(identity.client_user_name(), "й");
        assert_eq!(identity.host_address(), "2001:db8::1");
        let nobody = Identity::default();
        assert_eq!(nobody.client_address().len() + nobody.host_address().len(), 0);
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let secret =
            wire::peer::Secret { client_user_name: "й".repeat(200), ..Default::default() };
        let identity = Identity::from(&secret);
        assert_eq!(identity.client_user_name(), "й".repeat(MAX_TEXT / 2));
        let odd =
            wire::peer::Secret { client_user_name: format!("a{}", "й".repeat(200)), ..secret };
        assert_eq!(Identity::from(&odd).client_user_name().len(), MAX_TEXT - 1);
    }
}
