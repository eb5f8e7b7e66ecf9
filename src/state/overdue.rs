//! Decides which sessions are overdue: idle for too long, or older than allowed.
//!
//! The clock alone ends no session as idle. It only raises a suspicion, which the task of the session confirms by checking
//! whether bytes are waiting and whether the kernel has delivered any. Time in which the process did not run does not count.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::pauses::PauseTracker;
use super::sessions::{EndCause, Session, SessionId};

/// If new limits are stricter, the sessions that already exceed them end one after the other within this time, so that their
/// peers do not all reconnect at once. Longer than at the end of a drain, since nothing waits for these sessions to end.
pub const STAGGER_WINDOW: Duration = Duration::from_secs(10);

/// How soon a session that is suspected of being idle is checked again, if it is still there.
const RECHECK_DELAY: Duration = Duration::from_secs(1);

/// How long sessions may last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionLimits {
    /// The longest time without a byte moving.
    pub idle: Duration,
    /// The longest duration, if it is limited.
    pub longest: Option<Duration>,
}

/// Decides which sessions have to end.
#[derive(Debug)]
pub struct OverdueCheck {
    limits: SessionLimits,
    /// Sessions that must not end before this time, although they exceed a limit.
    deferred: HashMap<SessionId, Instant>,
}

impl OverdueCheck {
    /// Creates a check against these limits.
    pub fn new(limits: SessionLimits) -> Self {
        Self { limits, deferred: HashMap::new() }
    }

    /// Checks against other limits from now on. Returns the earlier ones if they differ.
    pub fn set_limits(&mut self, limits: SessionLimits) -> Option<SessionLimits> {
        let earlier = std::mem::replace(&mut self.limits, limits);
        (limits != earlier).then_some(earlier)
    }

    /// Lists those of these sessions that exceed the limits at `now` but not the `earlier` ones. Sessions whose end is already
    /// deferred are not among them.
    pub fn list_newly_over(
        &self,
        earlier: SessionLimits,
        sessions: &[Arc<Session>],
        pauses: &PauseTracker,
        now: Instant,
    ) -> Vec<SessionId> {
        let is_over = |limits, session: &Session| deadline(limits, session, pauses) <= now;
        sessions
            .iter()
            .filter(|session| session.is_forwarding() && !self.deferred.contains_key(&session.id))
            .filter(|session| is_over(self.limits, session) && !is_over(earlier, session))
            .map(|session| session.id)
            .collect()
    }

    /// Defers the ends of these sessions so that they are spread over [`STAGGER_WINDOW`] from `now`, in this order. Sessions
    /// that no longer exceed the limits then do not end.
    pub fn stagger(&mut self, over: &[SessionId], now: Instant) {
        let count = u32::try_from(over.len()).unwrap_or(u32::MAX).max(1);
        self.deferred
            .extend((0..).zip(over).map(|(i, id)| (*id, now + STAGGER_WINDOW * i / count)));
    }

    /// Begins to check all sessions at `now`. Returns when to check again for the sake of sessions that begin after this check:
    /// none of them is overdue before.
    pub fn begin(&mut self, now: Instant) -> Instant {
        self.deferred.retain(|_, until| *until > now);
        let SessionLimits { idle, longest } = self.limits;
        now + longest.map_or(idle, |longest| longest.min(idle))
    }

    /// Asks the overdue ones of these sessions to end, as of `now`. Returns when to check them again, if that is necessary.
    pub fn stop_overdue(
        &self,
        sessions: &[Arc<Session>],
        pauses: &PauseTracker,
        now: Instant,
    ) -> Option<Instant> {
        let SessionLimits { idle, longest } = self.limits;
        let check = |session: &Arc<Session>| {
            if let Some(until) = self.deferred.get(&session.id) {
                Some(*until)
            } else if longest.is_some_and(|longest| session.started + longest <= now) {
                session.stop(EndCause::MaxDuration);
                None
            } else if idle_end(idle, session, pauses) <= now {
                session.stop_if_idle(session.traffic.last_moved());
                Some(now + RECHECK_DELAY)
            } else {
                Some(deadline(self.limits, session, pauses))
            }
        };
        sessions.iter().filter(|session| session.is_forwarding()).filter_map(check).min()
    }
}

/// Returns when a session exceeds the first of the limits.
fn deadline(limits: SessionLimits, session: &Session, pauses: &PauseTracker) -> Instant {
    let SessionLimits { idle, longest } = limits;
    let idle_end = idle_end(idle, session, pauses);
    longest.map_or(idle_end, |longest| idle_end.min(session.started + longest))
}

/// Returns when a session has been idle for too long. Pauses of the process do not count.
fn idle_end(idle: Duration, session: &Session, pauses: &PauseTracker) -> Instant {
    let since = session.traffic.last_moved();
    since + idle + pauses.lost_since(since)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::sessions::{PeerIdentity, PeerOrder, SessionTable};
    use std::net::SocketAddr;
    use std::sync::atomic::Ordering;
    use std::task::{Context, Poll, Waker};

    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_secs(60);

    fn start(sessions: &mut SessionTable, at: Instant) -> Arc<Session> {
        let addresses: [SocketAddr; 2] = [([127, 0, 0, 1], 1).into(), ([127, 0, 0, 1], 2).into()];
        sessions.start(PeerIdentity::default(), addresses, at)
    }

    /// What a session is asked to do: why it has to end, and since when it is suspected to be idle.
    fn asked(session: &Session) -> (Option<EndCause>, Option<Instant>) {
        let context = Context::from_waker(Waker::noop());
        match session.signal.poll_signal(&context) {
            Poll::Ready(end) => (end, session.signal.take_idle_check()),
            Poll::Pending => (None, None),
        }
    }

    /// Checks all sessions.
    fn end(
        overdue: &mut OverdueCheck,
        sessions: &SessionTable,
        pauses: &PauseTracker,
        now: Instant,
    ) -> Instant {
        let next = overdue.begin(now);
        overdue
            .stop_overdue(&sessions.list_after(SessionId(0), usize::MAX), pauses, now)
            .map_or(next, |at| at.min(next))
    }

    /// Changes the limits. Returns how many sessions exceed the new limits but not the earlier ones.
    fn set_limits(
        overdue: &mut OverdueCheck,
        limits: SessionLimits,
        sessions: &SessionTable,
        pauses: &PauseTracker,
        now: Instant,
    ) -> usize {
        let Some(earlier) = overdue.set_limits(limits) else { return 0 };
        let over = overdue.list_newly_over(
            earlier,
            &sessions.list_after(SessionId(0), usize::MAX),
            pauses,
            now,
        );
        overdue.stagger(&over, now);
        over.len()
    }

    fn limits(idle: Duration, longest: Option<Duration>) -> SessionLimits {
        SessionLimits { idle, longest }
    }

    #[test]
    fn overdue_sessions_are_asked_to_end_and_the_next_check_is_scheduled() {
        let begin = Instant::now();
        let (mut sessions, mut overdue) =
            (SessionTable::default(), OverdueCheck::new(limits(MINUTE, None)));
        let pauses = PauseTracker::default();
        // That is when a session that begins right after this check is overdue.
        assert_eq!(end(&mut overdue, &sessions, &pauses, begin), begin + MINUTE);
        let quiet = start(&mut sessions, begin);
        let busy = start(&mut sessions, begin + SECOND);
        busy.traffic.record(PeerOrder::First, 1, begin + 30 * SECOND);
        assert_eq!(end(&mut overdue, &sessions, &pauses, begin + 59 * SECOND), begin + MINUTE);
        assert_eq!(asked(&quiet), (None, None));
        // It may turn out not to be idle.
        assert_eq!(
            end(&mut overdue, &sessions, &pauses, begin + MINUTE),
            begin + MINUTE + RECHECK_DELAY
        );
        assert_eq!(asked(&quiet), (None, Some(begin)));
        quiet.traffic.record_drained(begin + 59 * SECOND);
        assert_eq!(end(&mut overdue, &sessions, &pauses, begin + MINUTE), begin + 90 * SECOND);
        sessions.end(quiet.id);

        let mut overdue = OverdueCheck::new(limits(MINUTE, Some(80 * SECOND)));
        assert_eq!(end(&mut overdue, &sessions, &pauses, begin + MINUTE), begin + 81 * SECOND);
        // A session that was asked to end is not checked again.
        assert_eq!(
            end(&mut overdue, &sessions, &pauses, begin + 81 * SECOND),
            begin + 141 * SECOND
        );
        assert_eq!(asked(&busy), (Some(EndCause::MaxDuration), None));
        let lingering = start(&mut sessions, begin);
        lingering.has_ended_forwarding.store(true, Ordering::Relaxed);
        end(&mut overdue, &sessions, &pauses, begin + 200 * SECOND);
        assert_eq!(asked(&lingering), (None, None));
    }

    #[test]
    fn time_while_the_process_is_stopped_is_not_idle_time() {
        let begin = Instant::now();
        let (mut sessions, mut overdue) =
            (SessionTable::default(), OverdueCheck::new(limits(MINUTE, None)));
        let session = start(&mut sessions, begin);
        let mut pauses = PauseTracker::default();
        pauses.observe(begin + 30 * SECOND);
        // Stopped for 272 seconds, and soon after for 32; two seconds of each could have passed in a running process.
        pauses.observe(begin + 302 * SECOND);
        let next = end(&mut overdue, &sessions, &pauses, begin + 302 * SECOND);
        assert_eq!(next, begin + MINUTE + 270 * SECOND);
        pauses.observe(begin + 304 * SECOND);
        pauses.observe(begin + 336 * SECOND);
        let next = end(&mut overdue, &sessions, &pauses, begin + 336 * SECOND);
        assert_eq!(next, begin + MINUTE + 300 * SECOND);
        assert_eq!(asked(&session), (None, None));
        end(&mut overdue, &sessions, &pauses, begin + 360 * SECOND);
        assert_eq!(asked(&session), (None, Some(begin)));
        // Bytes that moved after the pauses count as usual.
        session.traffic.record(PeerOrder::First, 1, begin + 340 * SECOND);
        let next = end(&mut overdue, &sessions, &pauses, begin + 360 * SECOND);
        assert_eq!(next, begin + 400 * SECOND);
    }

    #[test]
    fn stricter_limits_end_older_sessions_one_after_the_other() {
        let stricter = [limits(MINUTE, Some(90 * SECOND)), limits(SECOND, None)];
        for (stricter, causes) in stricter.into_iter().zip([true, false]) {
            let begin = Instant::now();
            let (mut sessions, pauses) = (SessionTable::default(), PauseTracker::default());
            let mut overdue = OverdueCheck::new(limits(10 * MINUTE, None));
            let old: Vec<_> = (0..5).map(|_| start(&mut sessions, begin)).collect();
            let now = begin + 5 * MINUTE;
            old.iter()
                .for_each(|session| session.traffic.record(PeerOrder::First, 1, now - 50 * SECOND));
            let young = start(&mut sessions, now);
            assert_eq!(set_limits(&mut overdue, stricter, &sessions, &pauses, now), 5);
            assert_eq!(
                set_limits(&mut overdue, stricter, &sessions, &pauses, now),
                0,
                "nothing has changed"
            );
            let mut ended = Vec::new();
            for step in 0_u32..40 {
                let now = now + STAGGER_WINDOW * step / 40;
                end(&mut overdue, &sessions, &pauses, now);
                let is_asked = |session: &&Arc<Session>| match asked(session) {
                    (None, None) => false,
                    asked => {
                        assert_eq!(asked.0.is_some(), causes);
                        true
                    }
                };
                let asked: Vec<_> = old.iter().filter(is_asked).map(|session| session.id).collect();
                for id in asked {
                    sessions.end(id);
                    ended.push(step);
                }
            }
            assert_eq!(ended, [0, 8, 16, 24, 32]);
            if causes {
                assert_eq!(asked(&young), (None, None));
            }
        }
    }

    #[test]
    fn deferred_sessions_continue_when_the_limits_are_relaxed_again() {
        let begin = Instant::now();
        let (mut sessions, pauses) = (SessionTable::default(), PauseTracker::default());
        let mut overdue = OverdueCheck::new(limits(10 * MINUTE, None));
        let both = [start(&mut sessions, begin), start(&mut sessions, begin)];
        let now = begin + 5 * MINUTE;
        assert_eq!(set_limits(&mut overdue, limits(MINUTE, None), &sessions, &pauses, now), 2);
        assert_eq!(set_limits(&mut overdue, limits(10 * MINUTE, None), &sessions, &pauses, now), 0);
        end(&mut overdue, &sessions, &pauses, now + STAGGER_WINDOW);
        assert!(both.iter().all(|session| asked(session) == (None, None)));
    }

    #[test]
    fn second_reload_does_not_end_deferred_sessions_at_once() {
        let begin = Instant::now();
        let (mut sessions, pauses) = (SessionTable::default(), PauseTracker::default());
        let mut overdue = OverdueCheck::new(limits(10 * MINUTE, None));
        let old: Vec<_> = (0..5).map(|_| start(&mut sessions, begin)).collect();
        let first = begin + 5 * MINUTE;
        let second = first + 3 * SECOND;
        assert_eq!(
            set_limits(&mut overdue, limits(2 * MINUTE, None), &sessions, &pauses, first),
            5
        );
        // Even stricter limits, after one session has been asked to end.
        end(&mut overdue, &sessions, &pauses, first + SECOND);
        assert_eq!(set_limits(&mut overdue, limits(MINUTE, None), &sessions, &pauses, second), 0);
        end(&mut overdue, &sessions, &pauses, second);
        let is_asked = |session: &&Arc<Session>| asked(session) != (None, None);
        assert_eq!(old.iter().filter(is_asked).count(), 2);
        end(&mut overdue, &sessions, &pauses, first + STAGGER_WINDOW);
        assert_eq!(old.iter().filter(is_asked).count(), 5);
    }
}
