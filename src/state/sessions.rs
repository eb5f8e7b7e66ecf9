//! The active sessions.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
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
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// The operator's address, as the Router saw it.
    pub client_address: String,
    /// The operator's name.
    pub client_user_name: String,
    /// The remote machine's address, as the Router saw it.
    pub host_address: String,
    /// The remote machine's number.
    pub host_id: u64,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity([redacted])")
    }
}

impl From<&wire::peer::Secret> for Identity {
    fn from(secret: &wire::peer::Secret) -> Self {
        Self {
            client_address: shorten(&secret.client_address),
            client_user_name: shorten(&secret.client_user_name),
            host_address: shorten(&secret.host_address),
            host_id: secret.host_id,
        }
    }
}

/// The beginning of a text, at most [`MAX_TEXT`] bytes, cut between characters.
fn shorten(text: &str) -> String {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// A session's byte count and the time of its last byte; written without a lock by the task that forwards.
#[derive(Debug)]
pub struct Traffic {
    started: Instant,
    bytes: AtomicU64,
    last_moved_ms: AtomicU64,
}

impl Traffic {
    fn new(now: Instant) -> Self {
        Self { started: now, bytes: AtomicU64::new(0), last_moved_ms: AtomicU64::new(0) }
    }

    /// `count` bytes reached a peer at `now`.
    pub fn record(&self, count: usize, now: Instant) {
        let elapsed = now.saturating_duration_since(self.started).as_millis();
        self.bytes.fetch_add(count as u64, Ordering::Relaxed);
        self.last_moved_ms.store(u64::try_from(elapsed).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Bytes of both directions.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// When bytes last moved; the start, if none did.
    pub fn last_moved(&self) -> Instant {
        self.started + Duration::from_millis(self.last_moved_ms.load(Ordering::Relaxed))
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

    /// Notes what is seen now. Gives what was seen before.
    pub fn update(&self, info: TcpInfo) -> Option<TcpInfo> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).replace(info)
    }
}

/// One session, shared by the task that forwards and by those who report.
#[derive(Debug)]
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
    /// The paths to the two peers.
    pub paths: [Path; 2],
}

#[derive(Debug)]
struct Entry {
    session: Arc<Session>,
    stop: Option<oneshot::Sender<End>>,
}

/// The table of active sessions. Every operation on one session costs O(1).
#[derive(Debug, Default)]
pub struct Sessions {
    last: u64,
    /// Bytes of the sessions that have ended.
    ended_bytes: u64,
    active: HashMap<SessionId, Entry>,
}

impl Sessions {
    /// Begins a session; the receiver hears of it when somebody wants it ended.
    pub fn start(
        &mut self,
        identity: Identity,
        addresses: [SocketAddr; 2],
        now: Instant,
    ) -> (Arc<Session>, oneshot::Receiver<End>) {
        self.last += 1;
        let id = SessionId(self.last);
        let traffic = Traffic::new(now);
        let session = Arc::new(Session {
            id,
            started: now,
            identity,
            addresses,
            traffic,
            paths: Default::default(),
        });
        let (stop, stopped) = oneshot::channel();
        self.active.insert(id, Entry { session: session.clone(), stop: Some(stop) });
        (session, stopped)
    }

    /// Asks the session's task to end it. `false` when there is no such session.
    pub fn stop(&mut self, id: SessionId, why: End) -> bool {
        let Some(entry) = self.active.get_mut(&id) else {
            return false;
        };
        if let Some(stop) = entry.stop.take() {
            // The task may be past listening: then it ends anyway.
            let _ = stop.send(why);
        }
        true
    }

    /// Removes a session that has ended. `false` when there is no such session.
    pub fn end(&mut self, id: SessionId) -> bool {
        let Some(entry) = self.active.remove(&id) else {
            return false;
        };
        self.ended_bytes += entry.session.traffic.bytes();
        true
    }

    /// Bytes of all sessions there ever were. Costs a look at each active one.
    pub fn bytes(&self) -> u64 {
        let active = self.active.values().map(|entry| entry.session.traffic.bytes());
        self.ended_bytes + active.sum::<u64>()
    }

    /// All active sessions, in no order.
    pub fn list(&self) -> Vec<Arc<Session>> {
        self.active.values().map(|entry| entry.session.clone()).collect()
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

    fn addresses() -> [SocketAddr; 2] {
        [([127, 0, 0, 1], 1).into(), ([127, 0, 0, 1], 2).into()]
    }

    #[test]
    fn numbers_count_up_from_one() {
        let mut sessions = Sessions::default();
        let now = Instant::now();
        for expected in 1..4 {
            let (session, _stop) = sessions.start(Identity::default(), addresses(), now);
            assert_eq!(session.id, SessionId(expected));
        }
        assert!(sessions.end(SessionId(2)));
        assert!(!sessions.end(SessionId(2)));
        let mut ids: Vec<_> = sessions.list().iter().map(|session| session.id.0).collect();
        ids.sort_unstable();
        assert_eq!(ids, [1, 3]);
    }

    #[test]
    fn only_the_first_reason_to_stop_counts() {
        let mut sessions = Sessions::default();
        let (session, mut stop) = sessions.start(Identity::default(), addresses(), Instant::now());
        assert!(sessions.stop(session.id, End::Disconnected));
        assert!(sessions.stop(session.id, End::Drain));
        assert_eq!(stop.try_recv(), Ok(End::Disconnected));
        assert!(!sessions.stop(SessionId(99), End::Drain));
    }

    #[test]
    fn traffic_adds_up_and_remembers_when() {
        let now = Instant::now();
        let traffic = Traffic::new(now);
        assert_eq!((traffic.bytes(), traffic.last_moved()), (0, now));
        traffic.record(5, now + Duration::from_secs(2));
        traffic.record(6, now + Duration::from_secs(3));
        assert_eq!((traffic.bytes(), traffic.last_moved()), (11, now + Duration::from_secs(3)));
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let secret =
            wire::peer::Secret { client_user_name: "й".repeat(200), ..Default::default() };
        let name = Identity::from(&secret).client_user_name;
        assert_eq!(name, "й".repeat(MAX_TEXT / 2));
        let odd =
            wire::peer::Secret { client_user_name: format!("a{}", "й".repeat(200)), ..secret };
        assert_eq!(Identity::from(&odd).client_user_name.len(), MAX_TEXT - 1);
    }
}
