//! The health of the paths to the peers of sessions: the kernel is asked about each every ten seconds.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::forward::Sockets;
use crate::state::sessions::{Session, SessionId};
use crate::tcp_info;

use super::metrics::PeerMetrics;

/// How often each session is looked at.
const PERIOD: Duration = Duration::from_secs(10);
/// Sessions looked at in one go: some tens of microseconds.
const SLICE: usize = 32;
/// Shortest pause between two goes. With more sessions than fit into a period, rounds take longer instead of more.
const MIN_PAUSE: Duration = Duration::from_millis(10);

#[derive(Debug)]
struct Watched {
    session: Arc<Session>,
    /// Whoever looks must not keep connections open.
    sockets: Weak<Sockets>,
}

/// The sessions whose paths are looked at. The tasks that forward are not woken for it.
#[derive(Debug)]
pub(super) struct Paths {
    watched: Mutex<BTreeMap<SessionId, Watched>>,
    metrics: PeerMetrics,
}

impl Paths {
    pub(super) fn new(metrics: PeerMetrics) -> Self {
        Self { watched: Mutex::default(), metrics }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SessionId, Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the paths of a session looked at.
    pub(super) fn watch(&self, session: &Arc<Session>, sockets: &Arc<Sockets>) {
        let watched = Watched { session: session.clone(), sockets: Arc::downgrade(sockets) };
        self.lock().insert(session.id, watched);
    }

    /// Looks at the paths of a session for the last time, if it still has any.
    pub(super) fn forget(&self, session: &Session, sockets: Option<&Sockets>) {
        self.lock().remove(&session.id);
        // What was sent again since the last look counts, too.
        if let Some(sockets) = sockets {
            self.look(session, sockets, false);
        }
    }

    /// Looks at the paths of a session now: whether the kernel delivers something to a peer that is slow shows in
    /// [`crate::state::sessions::Traffic::last_moved`].
    pub(super) fn look_now(&self, session: &Session, sockets: &Sockets) {
        self.look(session, sockets, false);
    }

    /// Looks at all sessions, round after round, for ever. In the order of their numbers: each comes after the same time,
    /// and a new one, whose number is the highest, in the round in which it began.
    pub(super) async fn keep_looking(&self) {
        loop {
            let began = Instant::now();
            let slices = self.lock().len().div_ceil(SLICE);
            let slices = u32::try_from(slices).unwrap_or(u32::MAX).max(1);
            let pause = (PERIOD / slices).max(MIN_PAUSE);
            let (mut last, mut done) = (Bound::Unbounded, 0);
            while let Some(end) = self.look_at_slice(last) {
                last = Bound::Excluded(end);
                // Those that came during the round are its last, and soon done.
                done = slices.min(done + 1);
                sleep_until((began + pause * done).max(Instant::now() + MIN_PAUSE)).await;
            }
            sleep_until(began + PERIOD).await;
        }
    }

    /// Looks at the next sessions after `last`. Gives the last of them; `None` where there are none.
    fn look_at_slice(&self, last: Bound<SessionId>) -> Option<SessionId> {
        let rest = (last, Bound::Unbounded);
        let slice: Vec<SessionId> =
            self.lock().range(rest).map(|(id, _)| *id).take(SLICE).collect();
        slice.iter().for_each(|id| self.look_at(*id));
        slice.last().copied()
    }

    fn look_at(&self, id: SessionId) {
        let found =
            self.lock().get(&id).map(|watched| (watched.session.clone(), watched.sockets.clone()));
        // Gone meanwhile, or just going.
        if let Some((session, sockets)) = found
            && let Some(sockets) = sockets.upgrade()
        {
            self.look(&session, &sockets, true);
        }
    }

    fn look(&self, session: &Session, sockets: &Sockets, is_sample: bool) {
        for (stream, path) in sockets.iter().zip(&session.paths) {
            let Some(info) = tcp_info::read(stream) else {
                continue;
            };
            let before = path.update(info);
            if before.is_some_and(|before| info.has_drained_since(&before)) {
                session.traffic.record_drained(Instant::now());
            }
            let resent = before.map_or(0, |before| before.retransmits);
            self.metrics.retransmits.inc_by(info.retransmits.saturating_sub(resent).into());
            if is_sample {
                self.metrics.rtt.observe(info.rtt().as_secs_f64());
            }
        }
    }
}
