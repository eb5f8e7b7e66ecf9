//! The handle through which tasks reach the state: one lock, held for a few look-ups, and who is told what.

use std::fmt;
use std::num::NonZero;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::yield_now;
use tokio::time::Instant;
use tracing::warn;

use crate::config::Config;
use crate::log::limit::LineLimit;

use super::keys::{Counts, KeyId, OneTimeKey, Order, Used, Withdrawn};
use super::metrics::{KeyEvent, StateMetrics};
use super::overdue::{Limits, Overdue, SPREAD};
use super::pairing::Ticket;
use super::pauses::{LOOK, Pauses};
use super::sessions::{End, Record, Session, SessionId};
use super::{Admission, ReadyPeer, Refusal, State};

/// Keys that expire under one hold of the lock.
const EXPIRY_BATCH: usize = 256;
/// Pause after each [`EXPIRY_BATCH`] of keys that are wiped on another thread: the heap has one lock for all.
const WIPING_PAUSE: Duration = Duration::from_millis(1);
/// Sessions that are listed under one hold of the lock.
const PAGE: usize = 512;
/// Sessions end at most this much later than their time: they are looked at together.
const LOOK_AT_SESSIONS: Duration = Duration::from_millis(250);
/// Lines about expired keys, in this time; the next one counts those that were left out.
const EXPIRY_LINES: (NonZero<u32>, Duration) =
    (NonZero::new(20).expect("it is not 0"), Duration::from_secs(10));

struct Inner<W> {
    state: Mutex<State<W>>,
    /// A place became free: the link may offer a key for it.
    room: Notify,
    /// A key was handed out: somebody has to look after its expiry.
    handed_out: Notify,
    /// A session came that is older than its time here.
    adopted: Notify,
    /// A session ended or a handed-out key is gone: a stop may be complete.
    left: Notify,
    metrics: StateMetrics,
}

/// A handle on the state, cheap to clone.
pub struct SharedState<W>(Arc<Inner<W>>);

impl<W> Clone for SharedState<W> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<W> fmt::Debug for SharedState<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedState({:?})", self.counts())
    }
}

/// A waiting peer; dropping it gives the place in the waiting room back.
#[derive(Debug)]
#[must_use = "a place that is dropped is given back at once"]
pub struct WaitingPlace<W> {
    state: SharedState<W>,
    ticket: Ticket,
}

impl<W> WaitingPlace<W> {
    /// The peer goes away. `false` when it is paired already: then its partner is about to call.
    pub fn leave(&self) -> bool {
        self.state.lock().leave(self.ticket)
    }
}

impl<W> Drop for WaitingPlace<W> {
    fn drop(&mut self) {
        self.leave();
    }
}

/// An active session; dropping it ends the session, whatever the reason.
#[derive(Debug)]
#[must_use = "a session that is dropped has ended"]
pub struct ActiveSession<W> {
    state: SharedState<W>,
    session: Arc<Session>,
    end: Ending,
}

/// How the guard of a session is dropped.
#[derive(Debug, Clone, Copy)]
enum Ending {
    /// The session is over.
    Over(End),
    /// It goes on elsewhere.
    Elsewhere,
}

impl<W> ActiveSession<W> {
    /// The session.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Ends the session and says why. One that is dropped without a reason has ended by an error.
    pub fn finish(mut self, end: End) {
        self.end = Ending::Over(end);
    }

    /// The session goes on elsewhere: here it leaves, and does not count as ended.
    pub fn leave(mut self) -> Record {
        self.end = Ending::Elsewhere;
        self.session.record(Instant::now())
    }
}

impl<W> Drop for ActiveSession<W> {
    fn drop(&mut self) {
        self.state.lock().session_ended(self.session.id);
        if let Ending::Over(end) = self.end {
            let metrics = &self.state.0.metrics;
            metrics.ends.count(end);
            metrics.session_seconds.observe(self.session.started.elapsed().as_secs_f64());
            #[expect(clippy::cast_precision_loss, reason = "a histogram needs no exact number")]
            metrics.session_bytes.observe(self.session.traffic.bytes() as f64);
        }
        self.state.0.room.notify_one();
        self.state.0.left.notify_one();
    }
}

/// What became of a peer, with guards that undo it.
#[derive(Debug)]
pub enum Admitted<W> {
    /// It is the first of its pair.
    Wait(WaitingPlace<W>),
    /// It is the second.
    Paired {
        /// The way to the first.
        first: W,
        /// The session.
        session: ActiveSession<W>,
    },
}

/// Drops keys on a thread that may be busy for a while: wiping 100 000 of them takes a tenth of a second and more.
fn drop_elsewhere(withdrawn: Withdrawn) {
    if withdrawn.len() > EXPIRY_BATCH
        && let Ok(runtime) = Handle::try_current()
    {
        runtime.spawn_blocking(move || {
            withdrawn.wipe(EXPIRY_BATCH, || std::thread::sleep(WIPING_PAUSE));
        });
    }
}

impl<W> SharedState<W> {
    /// Shares a new state, whose events count in `metrics`; see [`State::new`].
    pub fn new(capacity: usize, base: u32, metrics: StateMetrics) -> Self {
        Self(Arc::new(Inner {
            metrics,
            state: Mutex::new(State::new(capacity, base)),
            room: Notify::new(),
            handed_out: Notify::new(),
            adopted: Notify::new(),
            left: Notify::new(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State<W>> {
        // No operation on the state leaves it half done, so a panic elsewhere does not spoil it.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, after a look at the clock: keys do not grow old while the process does not run.
    fn lock_at(&self, now: Instant) -> MutexGuard<'_, State<W>> {
        let mut state = self.lock();
        state.look_at_clock(now);
        state
    }

    /// Where the places of the capacity are.
    pub fn counts(&self) -> Counts {
        self.lock().counts()
    }

    /// Brings the gauges and the byte count of the metrics up to date. Gives both.
    pub fn refresh_metrics(&self) -> (Counts, u64) {
        // Counted under the lock: a session that ends meanwhile would be missed or counted twice.
        let state = self.lock();
        let (counts, bytes) = (state.counts(), state.bytes());
        self.0.metrics.refresh(counts, bytes);
        (counts, bytes)
    }

    /// Changes the capacity; see [`super::keys::Keys::set_capacity`].
    pub fn set_capacity(&self, capacity: usize) {
        self.lock().set_capacity(capacity);
        self.0.room.notify_one();
    }

    /// A link to the Router is authenticated.
    pub fn link_up(&self) {
        let withdrawn = self.lock().link_up();
        drop_elsewhere(withdrawn);
    }

    /// The link is gone. Gives the number of keys that were on offer.
    pub fn link_lost(&self) -> usize {
        let withdrawn = self.lock().link_lost();
        let count = withdrawn.len();
        self.0.metrics.key_events.add(KeyEvent::Dropped, count);
        drop_elsewhere(withdrawn);
        count
    }

    /// Orders missing keys; see [`super::keys::Keys::order`].
    pub fn order(&self, batch: usize, on_offer: usize) -> Option<Order> {
        self.lock().order(batch, on_offer)
    }

    /// Offers ordered keys; see [`super::keys::Keys::offer`].
    pub fn offer(&self, order: &Order, keys: Vec<OneTimeKey>) -> bool {
        let offered = self.lock().offer(order, keys);
        if offered {
            self.0.metrics.key_events.add(KeyEvent::Issued, order.len());
        }
        offered
    }

    /// The Router gave a key to two peers.
    pub fn key_used(&self, id: KeyId, now: Instant) -> Used {
        let used = self.lock_at(now).key_used(id, now);
        self.0.handed_out.notify_one();
        used
    }

    /// The key that a peer names, as long as it is good.
    pub fn key(&self, id: KeyId, now: Instant) -> Option<Arc<OneTimeKey>> {
        self.lock_at(now).key(id, now)
    }

    /// A peer's first message opened; see [`State::peer_ready`].
    ///
    /// # Errors
    /// [`Refusal`]; the key stays as good as it was.
    pub fn peer_ready(
        &self,
        peer: ReadyPeer,
        way: W,
        now: Instant,
    ) -> Result<Admitted<W>, Refusal> {
        let admission = self.lock_at(now).peer_ready(peer, way, now)?;
        self.0.handed_out.notify_one();
        // A key that was on offer until now makes room for another, where their number is bounded.
        self.0.room.notify_one();
        Ok(match admission {
            Admission::Wait(ticket) => Admitted::Wait(WaitingPlace { state: self.clone(), ticket }),
            Admission::Paired { first, session } => {
                self.0.metrics.key_events.count(KeyEvent::Paired);
                Admitted::Paired { first, session: self.guard(session) }
            }
        })
    }

    fn guard(&self, session: Arc<Session>) -> ActiveSession<W> {
        ActiveSession { state: self.clone(), session, end: Ending::Over(End::Error) }
    }

    /// Goes on with a session that began elsewhere; see [`State::adopt_session`].
    pub fn adopt_session(&self, record: Record, now: Instant) -> ActiveSession<W> {
        let session = self.lock().adopt_session(record, now);
        self.0.adopted.notify_one();
        self.guard(session)
    }

    /// An active session.
    pub fn session(&self, id: SessionId) -> Option<Arc<Session>> {
        self.lock().session(id)
    }

    /// Asks for the end of a session. `false` when there is no such session.
    pub fn stop_session(&self, id: SessionId, why: End) -> bool {
        self.lock().stop_session(id, why)
    }

    /// Asks for the end of all sessions; see [`State::stop_all_sessions`].
    pub fn stop_all_sessions(&self, why: End) {
        self.lock().stop_all_sessions(why);
    }

    /// All active sessions, in the order of their numbers. Others can have the lock meanwhile, so one that ends or begins at
    /// this time may be there or not.
    pub fn sessions(&self) -> Vec<Arc<Session>> {
        let mut sessions: Vec<Arc<Session>> = Vec::new();
        loop {
            let after = sessions.last().map_or(SessionId(0), |last| last.id);
            let page = self.lock().sessions_after(after, PAGE);
            let is_last = page.len() < PAGE;
            sessions.extend(page);
            if is_last {
                return sessions;
            }
        }
    }

    /// Whether nobody is here and nobody is on the way.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Returns when a place may have become free; for the one task that holds the link.
    pub async fn room(&self) {
        self.0.room.notified().await;
    }

    /// Returns when nobody is here and nobody is on the way; for the one task that stops the relay.
    pub async fn emptied(&self) {
        while !self.is_empty() {
            self.0.left.notified().await;
        }
    }

    /// Asks sessions to end whose time is over by the settings in force, for ever; one task does this. Sessions have no
    /// timers of their own: each would cost memory, and its thread one more timer whenever it waits.
    pub async fn end_overdue(&self, mut config: watch::Receiver<Arc<Config>>) {
        let limits = |config: &Config| Limits {
            idle: config.peer_idle_timeout,
            longest: config.max_session_duration,
        };
        let mut overdue = Overdue::new(limits(&config.borrow_and_update()));
        let mut next = Instant::now();
        loop {
            let now = Instant::now();
            let pause = self.lock_at(now).take_unreported_pause();
            if next <= now {
                next = self.look_for_overdue(&mut overdue, now).await.max(now + LOOK_AT_SESSIONS);
            }
            if !pause.is_zero() {
                warn!(
                    seconds = pause.as_secs_f32().ceil(),
                    "the relay did not run for a while: it was stopped or suspended, or got no CPU; that time counts neither \
                     as idle time of sessions nor for keys"
                );
            }
            tokio::select! {
                // At least this often, so that a pause of the process is noticed.
                () = tokio::time::sleep_until(next.min(now + LOOK)) => {}
                Ok(()) = config.changed() => {
                    let limits = limits(&config.borrow_and_update());
                    self.apply_limits(&mut overdue, limits).await;
                    next = Instant::now();
                }
                () = self.0.adopted.notified() => next = Instant::now(),
            }
        }
    }

    /// Looks once at all sessions, some at a time. Gives when to look again.
    async fn look_for_overdue(&self, overdue: &mut Overdue, now: Instant) -> Instant {
        let mut next = overdue.begin(now);
        let mut after = SessionId(0);
        loop {
            let (page, pauses) = self.page_after(after);
            next = overdue.end(&page, &pauses, now).map_or(next, |at| at.min(next));
            match page.last() {
                Some(last) if page.len() == PAGE => after = last.id,
                _ => return next,
            }
            yield_now().await;
        }
    }

    /// Has sessions keep other limits from now on.
    async fn apply_limits(&self, overdue: &mut Overdue, limits: Limits) {
        let Some(earlier) = overdue.set_limits(limits) else { return };
        let (now, mut over, mut after) = (Instant::now(), Vec::new(), SessionId(0));
        loop {
            let (page, pauses) = self.page_after(after);
            over.extend(overdue.newly_over(earlier, &page, &pauses, now));
            match page.last() {
                Some(last) if page.len() == PAGE => after = last.id,
                _ => break,
            }
            yield_now().await;
        }
        overdue.spread(&over, now);
        warn_of_stricter(limits, over.len());
    }

    /// Some sessions, those with the lowest numbers above `after`; and what is known of pauses.
    fn page_after(&self, after: SessionId) -> (Vec<Arc<Session>>, Pauses) {
        let state = self.lock();
        (state.sessions_after(after, PAGE), state.pauses().clone())
    }

    /// Removes keys as their time runs out, for ever; one task does this.
    pub async fn expire_keys(&self) {
        let lines = LineLimit::new(EXPIRY_LINES.0, EXPIRY_LINES.1);
        // Whoever asks the Router for connections and does not come decides how many there are.
        let mut unsaid = 0;
        loop {
            let now = Instant::now();
            let next = self.lock_at(now).next_expiry();
            match next {
                // While keys grow old, the clock is looked at: otherwise a pause of the process could not be told.
                Some(at) => tokio::time::sleep_until(at.min(now + LOOK)).await,
                None => self.0.handed_out.notified().await,
            }
            let expired = self.expire(Instant::now()).await;
            if expired > 0 {
                self.0.metrics.key_events.add(KeyEvent::Expired, expired);
                unsaid += expired;
                if lines.allows() {
                    let expired = std::mem::take(&mut unsaid);
                    tracing::info!(expired, "keys expired: two peers did not come within 30 s");
                }
                self.0.room.notify_one();
                self.0.left.notify_one();
            }
        }
    }

    /// Removes the keys whose time is over at `now`, a few at a time: others need the lock, and the thread, too. Gives how
    /// many there were.
    async fn expire(&self, now: Instant) -> usize {
        let mut expired = 0;
        loop {
            let is_done = {
                let mut state = self.lock_at(now);
                expired += state.expire_some(now, EXPIRY_BATCH);
                state.next_expiry().is_none_or(|next| next > now)
            };
            if is_done {
                return expired;
            }
            yield_now().await;
        }
    }
}

/// Says what stricter limits do to sessions that are over them already.
fn warn_of_stricter(limits: Limits, over: usize) {
    if over > 0 {
        warn!(
            sessions = over,
            "the new limits (PeerIdleTimeout {} s, MaxSessionDuration {}) are stricter than these sessions keep: they end \
             within {} s, one after the other",
            limits.idle.as_secs(),
            limits.longest.map_or("none".to_owned(), |longest| format!("{} s", longest.as_secs())),
            SPREAD.as_secs()
        );
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::mpsc;

    use super::*;

    /// A state with a link and this many keys on offer.
    fn offering(count: usize) -> (SharedState<()>, Vec<KeyId>) {
        let metrics = StateMetrics::new(&prometheus::Registry::new()).unwrap();
        let state = SharedState::new(count, 0, metrics);
        state.link_up();
        let mut ids = Vec::new();
        while let Some(order) = state.order(1000, usize::MAX) {
            let keys = order.make().unwrap();
            ids.extend(keys.iter().map(|key| key.id));
            assert!(state.offer(&order, keys));
        }
        (state, ids)
    }

    #[test]
    fn the_keys_of_a_lost_link_are_wiped_where_nobody_waits_for_it() {
        let runtime =
            tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        runtime.block_on(async {
            let (state, ids) = offering(2 * EXPIRY_BATCH);
            let key = Arc::downgrade(&state.key(ids[0], Instant::now()).unwrap());
            // The thread for such work is busy.
            let (finish, busy) = mpsc::channel::<()>();
            let busy = tokio::task::spawn_blocking(move || busy.recv());
            assert_eq!(state.link_lost(), ids.len());
            assert_eq!(state.counts().offered, 0);
            assert!(state.key(ids[0], Instant::now()).is_none());
            assert_eq!(key.strong_count(), 1, "it was wiped here");
            drop(finish);
            let _ = busy.await.unwrap();
            tokio::task::spawn_blocking(|| {}).await.unwrap();
            assert_eq!(key.strong_count(), 0);
        });
    }

    #[tokio::test(start_paused = true)]
    async fn thousands_of_keys_that_expire_together_hold_nobody_up() {
        let (state, ids) = offering(20 * EXPIRY_BATCH);
        let expiry = state.clone();
        let expiring = tokio::spawn(async move { expiry.expire_keys().await });
        let now = Instant::now();
        for id in &ids {
            assert_eq!(state.key_used(*id, now), Used::HandedOut);
        }
        assert_eq!(state.counts().handed_out, ids.len());
        tokio::time::sleep(super::super::keys::KEY_LIFETIME - Duration::from_millis(1)).await;
        assert_eq!(state.counts().handed_out, ids.len());
        // Somebody else on this thread: it has a turn after each part.
        let mut seen = BTreeSet::new();
        tokio::time::sleep(Duration::from_millis(1)).await;
        while state.counts().handed_out > 0 {
            seen.insert(state.counts().handed_out);
            if seen.len() > ids.len() {
                break;
            }
            yield_now().await;
        }
        assert!(seen.len() >= 18, "{seen:?}");
        expiring.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn keys_live_on_while_the_process_is_stopped() {
        let (state, ids) = offering(1);
        let expiry = state.clone();
        let expiring = tokio::spawn(async move { expiry.expire_keys().await });
        state.key_used(ids[0], Instant::now());
        tokio::time::sleep(Duration::from_secs(3)).await;
        // The clock goes on, and nothing runs.
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert!(state.key(ids[0], Instant::now()).is_some());
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(state.counts().handed_out, 1);
        // And when it has run for 30 s, their time is over.
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(state.counts().handed_out, 0);
        expiring.abort();
    }

    #[test]
    fn all_sessions_are_listed_however_many_pages_that_takes() {
        let (state, _) = offering(1);
        let record = |number: usize| Record {
            id: SessionId(number as u64),
            age: Duration::ZERO,
            idle: Duration::ZERO,
            bytes: 0,
            identity: super::super::sessions::Identity::default(),
            addresses: [([127, 0, 0, 1], 1).into(); 2],
        };
        for count in [0, 1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE] {
            let sessions: Vec<_> =
                (1..=count).map(|n| state.adopt_session(record(n), Instant::now())).collect();
            let listed: Vec<_> = state.sessions().iter().map(|session| session.id.0).collect();
            assert_eq!(listed, (1..=count as u64).collect::<Vec<_>>());
            drop(sessions);
        }
    }
}
