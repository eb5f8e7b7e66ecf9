//! The handle that gives tasks access to keys and sessions.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::keys::{KeyId, KeyOrder, KeyUse, OneTimeKey, StateCounts, WithdrawnKeys};
use super::metrics::{KeyEvent, StateMetrics};
use super::offer::OfferPlan;
use super::pauses::PauseTracker;
use super::sessions::{EndCause, EndedSession, IdentityLimits, Session, SessionId, SessionRecord};
use super::tables::StateTables;

/// The number of keys that are wiped between two pauses of [`WIPING_PAUSE`].
const WIPING_BATCH: usize = 256;
/// The pause after each [`WIPING_BATCH`] of keys, so that other threads get the lock of the heap.
const WIPING_PAUSE: Duration = Duration::from_millis(1);
/// The number of sessions that are listed before the lock is released.
const PAGE: usize = 512;

/// What tasks wait for. Each event has one waiting task.
#[derive(Debug, Default)]
pub(super) struct StateEvents {
    /// Capacity was freed: the link may offer a key for it.
    pub(super) capacity_freed: Notify,
    /// A key was handed out: its expiry has to be watched.
    pub(super) key_handed_out: Notify,
    /// A session was adopted, which may be overdue already.
    pub(super) session_adopted: Notify,
    /// A session ended or a handed-out key expired: a drain may be complete.
    pub(super) departed: Notify,
}

struct StateInner {
    tables: Mutex<StateTables>,
    events: StateEvents,
    metrics: StateMetrics,
    is_identity_logged: AtomicBool,
}

/// A handle to keys and sessions, cheap to clone. Peers that wait for a partner are behind [`super::rendezvous`].
#[derive(Clone)]
pub struct SharedState(Arc<StateInner>);

impl fmt::Debug for SharedState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedState({:?})", self.counts())
    }
}

impl SharedState {
    /// Creates a state for `capacity` sessions whose key numbers start at `base`. Events are counted in `metrics`.
    pub fn new(capacity: usize, base: u32, metrics: StateMetrics) -> Self {
        Self(Arc::new(StateInner {
            tables: Mutex::new(StateTables::new(capacity, base)),
            events: StateEvents::default(),
            metrics,
            is_identity_logged: AtomicBool::new(false),
        }))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, StateTables> {
        self.0.tables.lock()
    }

    /// Locks the state and observes the clock, so that keys do not age while the process does not run.
    pub(super) fn lock_at(&self, now: Instant) -> MutexGuard<'_, StateTables> {
        let mut tables = self.lock();
        tables.pauses.observe(now);
        tables
    }

    pub(super) fn events(&self) -> &StateEvents {
        &self.0.events
    }

    pub(super) fn metrics(&self) -> &StateMetrics {
        &self.0.metrics
    }

    /// Returns how the capacity is divided among keys and sessions.
    pub fn counts(&self) -> StateCounts {
        self.lock().keys.counts()
    }

    /// Updates the gauges and the byte count of the metrics, and returns both.
    pub fn refresh_metrics(&self) -> (StateCounts, u64) {
        // Under one lock: a session that ends meanwhile would be missed or counted twice.
        let tables = self.lock();
        let (counts, bytes) = (tables.keys.counts(), tables.sessions.bytes());
        self.0.metrics.refresh(counts, bytes);
        (counts, bytes)
    }

    /// Changes the capacity; see [`super::keys::KeyTable::set_capacity`].
    pub fn set_capacity(&self, capacity: usize) {
        self.lock().keys.set_capacity(capacity);
        self.0.events.capacity_freed.notify_one();
    }

    /// Changes how the keys on offer follow the load; see [`super::keys::KeyTable::set_offer_plan`].
    pub fn set_offer_plan(&self, plan: Option<OfferPlan>) {
        self.lock().keys.set_offer_plan(plan);
        self.0.events.capacity_freed.notify_one();
    }

    /// Changes how many sessions one user and one host may have. No session ends because of it. If a limit is new, this
    /// looks at every session once.
    pub fn set_identity_limits(&self, limits: IdentityLimits) {
        self.lock().sessions.set_identity_limits(limits);
    }

    /// Notes that a link to the Router is authenticated.
    pub fn link_up(&self) {
        let withdrawn = self.lock().keys.link_up();
        wipe(withdrawn);
    }

    /// Notes that the link is lost. Returns the number of keys that were on offer.
    pub fn link_lost(&self) -> usize {
        let withdrawn = self.lock().keys.link_lost();
        let count = withdrawn.len();
        self.0.metrics.key_events.add(KeyEvent::Dropped, count);
        wipe(withdrawn);
        count
    }

    /// Orders missing keys; see [`super::keys::KeyTable::order`].
    pub fn order(&self, batch: usize, max_on_offer: usize) -> Option<KeyOrder> {
        self.lock().keys.order(batch, max_on_offer)
    }

    /// Puts the keys of an order on offer; see [`super::keys::KeyTable::offer`].
    pub fn offer(&self, order: &KeyOrder, keys: Vec<OneTimeKey>) -> bool {
        let offered = self.lock().keys.offer(order, keys);
        if offered {
            self.0.metrics.key_events.add(KeyEvent::Issued, order.len());
        }
        offered
    }

    /// Notes that the Router gave a key to two peers.
    pub fn key_used(&self, id: KeyId, now: Instant) -> KeyUse {
        let used = self.lock_at(now).hand_out(id, now);
        self.0.events.key_handed_out.notify_one();
        used
    }

    /// Returns the key with this number, if it is valid.
    pub fn key(&self, id: KeyId, now: Instant) -> Option<Arc<OneTimeKey>> {
        self.lock_at(now).find_key(id, now)
    }

    /// Returns the active session with this number.
    pub fn session(&self, id: SessionId) -> Option<Arc<Session>> {
        self.lock().sessions.get(id)
    }

    /// Asks a session to end. Returns `false` if there is no such session.
    pub fn stop_session(&self, id: SessionId, why: EndCause) -> bool {
        self.lock().sessions.stop(id, why)
    }

    /// Asks all sessions to end, and every session that begins from now on.
    pub fn stop_all_sessions(&self, why: EndCause) {
        self.lock().sessions.close(why);
    }

    /// Counts a session that was ended because a relay died while it held some of its bytes. It was never active here.
    pub fn count_lost_session(&self) {
        self.metrics().ends.count(EndCause::Crash.reason());
    }

    /// Counts and logs the end of a session, once for each session.
    pub fn record_end(&self, record: &SessionRecord, cause: EndCause) {
        let metrics = self.metrics();
        metrics.ends.count(cause.reason());
        metrics.session_seconds.observe(record.age.as_secs_f64());
        #[expect(clippy::cast_precision_loss, reason = "a histogram needs no exact number")]
        metrics.session_bytes.observe(record.total_bytes() as f64);
        EndedSession { record, cause, is_identity_logged: self.is_identity_logged() }.log();
    }

    /// Whether the log may say who the peers of a session are (`LogPeerIdentity`).
    pub(super) fn is_identity_logged(&self) -> bool {
        self.0.is_identity_logged.load(Ordering::Relaxed)
    }

    /// Sets whether the log may say who the peers of a session are (`LogPeerIdentity`).
    pub fn set_identity_logged(&self, is_logged: bool) {
        self.0.is_identity_logged.store(is_logged, Ordering::Relaxed);
    }

    /// Returns all active sessions, in the order of their numbers. The lock is released between pages, so a session that begins
    /// or ends during the call may or may not be listed.
    pub fn sessions(&self) -> Vec<Arc<Session>> {
        let mut sessions: Vec<Arc<Session>> = Vec::new();
        let mut next = SessionCursor::start();
        while let Some(cursor) = next {
            let page;
            (page, _, next) = self.list(cursor);
            sessions.extend(page);
        }
        sessions
    }

    /// Returns one page of the active sessions, the pauses of the process, and the cursor of the next page, if there may be
    /// one.
    pub(super) fn list(
        &self,
        cursor: SessionCursor,
    ) -> (Vec<Arc<Session>>, PauseTracker, Option<SessionCursor>) {
        let (sessions, pauses) = {
            let tables = self.lock();
            (tables.sessions.list_after(cursor.after, PAGE), tables.pauses.clone())
        };
        let next = sessions
            .last()
            .filter(|_| sessions.len() == PAGE)
            .map(|last| SessionCursor { after: last.id });
        (sessions, pauses, next)
    }

    /// Whether no session is active and no key is handed out, so that no peer is connected or expected.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Returns when capacity may have been freed. Only the task that holds the link may wait for it.
    pub async fn capacity_freed(&self) {
        self.0.events.capacity_freed.notified().await;
    }

    /// Returns when no session is active and no key is handed out. Only the task that stops the relay may wait for it.
    pub async fn wait_until_empty(&self) {
        while !self.is_empty() {
            self.0.events.departed.notified().await;
        }
    }
}

/// Where a page of the active sessions begins. A page is listed while the lock is held once.
#[derive(Debug, Clone, Copy)]
pub(super) struct SessionCursor {
    after: SessionId,
}

impl SessionCursor {
    /// Returns the cursor of the first page.
    pub(super) fn start() -> Option<Self> {
        Some(Self { after: SessionId(0) })
    }
}

/// Wipes keys; if there are many, on a thread of the blocking pool, since 100 000 keys take a tenth of a second or more.
fn wipe(withdrawn: WithdrawnKeys) {
    if withdrawn.len() > WIPING_BATCH
        && let Ok(runtime) = Handle::try_current()
    {
        runtime.spawn_blocking(move || {
            withdrawn.wipe(WIPING_BATCH, || std::thread::sleep(WIPING_PAUSE));
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::state::active_session::ActiveSession;
    use crate::state::sessions::{PeerIdentity, SessionRecord};

    #[test]
    fn keys_of_a_lost_link_are_wiped_on_another_thread() {
        let runtime =
            tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        runtime.block_on(async {
            let metrics = StateMetrics::new(&prometheus::Registry::new()).unwrap();
            let state = SharedState::new(2 * WIPING_BATCH, 0, metrics);
            state.link_up();
            let order = state.order(usize::MAX, usize::MAX).unwrap();
            let keys = order.generate().unwrap();
            let id = keys[0].id;
            assert!(state.offer(&order, keys));
            let key = Arc::downgrade(&state.key(id, Instant::now()).unwrap());
            // The only thread of the blocking pool is busy.
            let (finish, busy) = mpsc::channel::<()>();
            let busy = tokio::task::spawn_blocking(move || busy.recv());
            assert_eq!(state.link_lost(), 2 * WIPING_BATCH);
            assert_eq!(state.counts().offered, 0);
            assert!(state.key(id, Instant::now()).is_none());
            assert_eq!(key.strong_count(), 1, "the key was wiped on this thread");
            drop(finish);
            let _ = busy.await.unwrap();
            tokio::task::spawn_blocking(|| {}).await.unwrap();
            assert_eq!(key.strong_count(), 0);
        });
    }

    #[test]
    fn all_sessions_are_listed_across_pages() {
        let metrics = StateMetrics::new(&prometheus::Registry::new()).unwrap();
        let state = SharedState::new(1, 0, metrics);
        let record = |number: usize| SessionRecord {
            id: SessionId(number as u64),
            age: Duration::ZERO,
            idle: Duration::ZERO,
            bytes: [0, 0],
            identity: PeerIdentity::default(),
            addresses: [([127, 0, 0, 1], 1).into(); 2],
        };
        for count in [0, 1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE] {
            let sessions: Vec<_> = (1..=count)
                .map(|n| ActiveSession::adopt(&state, record(n), Instant::now()))
                .collect();
            let listed: Vec<_> = state.sessions().iter().map(|session| session.id.0).collect();
            assert_eq!(listed, (1..=count as u64).collect::<Vec<_>>());
            drop(sessions);
        }
    }
}
