//! Samples the paths to the peers of sessions, by asking the kernel about each of them every ten seconds.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

use crate::forward::Sockets;
use crate::state::sessions::{Session, SessionId};
use crate::tcp_info;

use super::metrics::PeerMetrics;

/// How often each session is sampled.
const PERIOD: Duration = Duration::from_secs(10);
/// The number of sessions that are sampled without a pause, which takes a few tens of microseconds.
const BATCH: usize = 32;
/// The shortest pause between two batches. With more sessions than fit into a period, a round takes longer.
const MIN_PAUSE: Duration = Duration::from_millis(10);

#[derive(Debug)]
struct WatchedSession {
    session: Arc<Session>,
    /// Weak, so that sampling never keeps connections open.
    sockets: Weak<Sockets>,
}

/// Samples the paths of sessions, without waking the tasks of the sessions.
#[derive(Debug)]
pub(super) struct PathMonitor {
    watched: Mutex<BTreeMap<SessionId, WatchedSession>>,
    metrics: PeerMetrics,
}

impl PathMonitor {
    pub(super) fn new(metrics: PeerMetrics) -> Self {
        Self { watched: Mutex::default(), metrics }
    }

    /// Begins to sample the paths of a session.
    pub(super) fn watch(&self, session: &Arc<Session>, sockets: &Arc<Sockets>) {
        let watched = WatchedSession { session: session.clone(), sockets: Arc::downgrade(sockets) };
        self.watched.lock().insert(session.id, watched);
    }

    /// Takes the first sample of a session that continues here. What was retransmitted before was counted elsewhere.
    pub(super) fn adopt(&self, session: &Session, sockets: &[std::net::TcpStream; 2]) {
        for (stream, path) in sockets.iter().zip(&session.paths) {
            tcp_info::read(stream).map(|info| path.update(info));
        }
    }

    /// Stops sampling the paths of a session, after a last sample if it still has sockets.
    pub(super) fn forget(&self, session: &Session, sockets: Option<&Sockets>) {
        self.watched.lock().remove(&session.id);
        // Retransmissions since the last sample count, too.
        if let Some(sockets) = sockets {
            self.sample_paths(session, sockets, false);
        }
    }

    /// Samples the paths of a session now: [`crate::state::sessions::Traffic::last_moved`] then shows whether the kernel has
    /// delivered anything to a slow peer.
    pub(super) fn sample(&self, session: &Session, sockets: &Sockets) {
        self.sample_paths(session, sockets, false);
    }

    /// Samples all sessions, round after round. Never returns. Sessions are sampled in the order of their numbers, so that
    /// each is sampled at regular intervals, and a new session, whose number is the highest, is sampled in the round in which
    /// it began.
    pub(super) async fn run(&self) {
        loop {
            let began = Instant::now();
            let batches = self.watched.lock().len().div_ceil(BATCH);
            let batches = u32::try_from(batches).unwrap_or(u32::MAX).max(1);
            let pause = (PERIOD / batches).max(MIN_PAUSE);
            let (mut last, mut done) = (Bound::Unbounded, 0);
            while let Some(end) = self.sample_batch(last) {
                last = Bound::Excluded(end);
                // Sessions that began during the round come last, and take little time.
                done = batches.min(done + 1);
                sleep_until((began + pause * done).max(Instant::now() + MIN_PAUSE)).await;
            }
            sleep_until(began + PERIOD).await;
        }
    }

    /// Samples the next sessions after `last`. Returns the last of them, or `None` if there are none.
    fn sample_batch(&self, last: Bound<SessionId>) -> Option<SessionId> {
        let rest = (last, Bound::Unbounded);
        let batch: Vec<SessionId> =
            self.watched.lock().range(rest).map(|(id, _)| *id).take(BATCH).collect();
        batch.iter().for_each(|id| self.sample_by_id(*id));
        batch.last().copied()
    }

    fn sample_by_id(&self, id: SessionId) {
        let found = self
            .watched
            .lock()
            .get(&id)
            .map(|watched| (watched.session.clone(), watched.sockets.clone()));
        // It may have ended in the meantime, or be about to.
        if let Some((session, sockets)) = found
            && let Some(sockets) = sockets.upgrade()
        {
            self.sample_paths(&session, &sockets, true);
        }
    }

    fn sample_paths(&self, session: &Session, sockets: &Sockets, is_periodic: bool) {
        for (stream, path) in sockets.iter().zip(&session.paths) {
            let Some(info) = tcp_info::read(stream) else {
                continue;
            };
            let before = path.update(info);
            if before.is_some_and(|before| info.has_drained_since(&before)) {
                session.traffic.record_drained(Instant::now());
            }
            let counted = before.map_or(0, |before| before.retransmits);
            self.metrics.retransmits.inc_by(info.retransmits.saturating_sub(counted).into());
            if is_periodic {
                self.metrics.rtt.observe(info.rtt().as_secs_f64());
            }
        }
    }
}
