//! Which sessions have to end: those that are idle for too long, or last too long.
//!
//! The clock alone ends none as idle. It gives rise to a suspicion, which the task of the session confirms: it looks whether
//! bytes wait, or whether the kernel has delivered any. And time in which the process did not run is not held against
//! anybody.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::pauses::Pauses;
use super::sessions::{End, Session, SessionId};

/// Where new limits are stricter, those that are over them already end one after the other within this time, so that their
/// peers do not come back all at once. Longer than at the end of a drain: nobody waits for it.
pub const SPREAD: Duration = Duration::from_secs(10);

/// How soon a session that is suspected to be idle is looked at again, if it is still there.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How long sessions may last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Without any byte.
    pub idle: Duration,
    /// In all.
    pub longest: Option<Duration>,
}

/// Decides which sessions have to end.
#[derive(Debug)]
pub struct Overdue {
    limits: Limits,
    /// Sessions that may not end before this time, though they are over a limit.
    spared: HashMap<SessionId, Instant>,
}

impl Overdue {
    /// Decides by these limits.
    pub fn new(limits: Limits) -> Self {
        Self { limits, spared: HashMap::new() }
    }

    /// Decides by other limits from now on. Gives the earlier ones, where these differ.
    pub fn set_limits(&mut self, limits: Limits) -> Option<Limits> {
        let earlier = std::mem::replace(&mut self.limits, limits);
        (limits != earlier).then_some(earlier)
    }

    /// Those of some sessions that are over the limits at `now` and were not over the `earlier` ones. Those that have to wait for
    /// their end already still do, and are not among them.
    pub fn newly_over(
        &self,
        earlier: Limits,
        sessions: &[Arc<Session>],
        pauses: &Pauses,
        now: Instant,
    ) -> Vec<SessionId> {
        let is_over = |limits, session: &Session| deadline(limits, session, pauses) <= now;
        sessions
            .iter()
            .filter(|session| session.is_forwarding() && !self.spared.contains_key(&session.id))
            .filter(|session| is_over(self.limits, session) && !is_over(earlier, session))
            .map(|session| session.id)
            .collect()
    }

    /// Has these sessions end within [`SPREAD`] from `now`, in this order, as long as they are over the limits.
    pub fn spread(&mut self, over: &[SessionId], now: Instant) {
        let count = u32::try_from(over.len()).unwrap_or(u32::MAX).max(1);
        self.spared.extend((0..).zip(over).map(|(i, id)| (*id, now + SPREAD * i / count)));
    }

    /// Begins to look at all sessions at `now`. Gives when to look again, as far as that does not depend on any of them:
    /// before that, not even one that begins after this is overdue.
    pub fn begin(&mut self, now: Instant) -> Instant {
        self.spared.retain(|_, until| *until > now);
        let Limits { idle, longest } = self.limits;
        now + longest.map_or(idle, |longest| longest.min(idle))
    }

    /// Asks those of some sessions to end that are overdue at `now`. Gives when to look at them again, where there is a need.
    pub fn end(&self, sessions: &[Arc<Session>], pauses: &Pauses, now: Instant) -> Option<Instant> {
        let Limits { idle, longest } = self.limits;
        let look_at = |session: &Arc<Session>| {
            if let Some(until) = self.spared.get(&session.id) {
                Some(*until)
            } else if longest.is_some_and(|longest| session.started + longest <= now) {
                session.stop(End::MaxDuration);
                None
            } else if idle_end(idle, session, pauses) <= now {
                session.stop_if_idle(session.traffic.last_moved());
                Some(now + LOOK_AGAIN)
            } else {
                Some(deadline(self.limits, session, pauses))
            }
        };
        sessions.iter().filter(|session| session.is_forwarding()).filter_map(look_at).min()
    }
}

/// When a session is over one of the limits.
fn deadline(Limits { idle, longest }: Limits, session: &Session, pauses: &Pauses) -> Instant {
    let idle_end = idle_end(idle, session, pauses);
    longest.map_or(idle_end, |longest| idle_end.min(session.started + longest))
}

/// When a session has been idle for too long. Pauses of the process do not count.
fn idle_end(idle: Duration, session: &Session, pauses: &Pauses) -> Instant {
    let since = session.traffic.last_moved();
    since + idle + pauses.lost_since(since)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::sessions::{Identity, Sessions};
    use std::net::SocketAddr;
    use std::sync::atomic::Ordering;
    use std::task::{Context, Poll, Waker};

    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_secs(60);

    fn start(sessions: &mut Sessions, at: Instant) -> Arc<Session> {
        let addresses: [SocketAddr; 2] = [([127, 0, 0, 1], 1).into(), ([127, 0, 0, 1], 2).into()];
        sessions.start(Identity::default(), addresses, at)
    }

    /// What a session is asked for: why it is to end, and since when it is suspected to be idle.
    fn asked(session: &Session) -> (Option<End>, Option<Instant>) {
        let context = Context::from_waker(Waker::noop());
        match session.bell.poll_rung(&context) {
            Poll::Ready(end) => (end, session.bell.take_suspicion()),
            Poll::Pending => (None, None),
        }
    }

    /// Looks at all sessions.
    fn end(overdue: &mut Overdue, sessions: &Sessions, pauses: &Pauses, now: Instant) -> Instant {
        let next = overdue.begin(now);
        overdue.end(&sessions.list(), pauses, now).map_or(next, |at| at.min(next))
    }

    /// Changes the limits. Gives how many sessions are over them by that.
    fn set_limits(
        overdue: &mut Overdue,
        limits: Limits,
        sessions: &Sessions,
        pauses: &Pauses,
        now: Instant,
    ) -> usize {
        let Some(earlier) = overdue.set_limits(limits) else { return 0 };
        let over = overdue.newly_over(earlier, &sessions.list(), pauses, now);
        overdue.spread(&over, now);
        over.len()
    }

    fn limits(idle: Duration, longest: Option<Duration>) -> Limits {
        Limits { idle, longest }
    }

    #[test]
    fn overdue_sessions_are_asked_to_end_and_the_next_deadline_is_known() {
        let begin = Instant::now();
        let (mut sessions, mut overdue) = (Sessions::default(), Overdue::new(limits(MINUTE, None)));
        let pauses = Pauses::default();
        // One that begins in the next moment is overdue then.
        assert_eq!(end(&mut overdue, &sessions, &pauses, begin), begin + MINUTE);
        let quiet = start(&mut sessions, begin);
        let busy = start(&mut sessions, begin + SECOND);
        busy.traffic.record(1, begin + 30 * SECOND);
        assert_eq!(end(&mut overdue, &sessions, &pauses, begin + 59 * SECOND), begin + MINUTE);
        assert_eq!(asked(&quiet), (None, None));
        // It may turn out not to be idle.
        assert_eq!(
            end(&mut overdue, &sessions, &pauses, begin + MINUTE),
            begin + MINUTE + LOOK_AGAIN
        );
        assert_eq!(asked(&quiet), (None, Some(begin)));
        quiet.traffic.record_drained(begin + 59 * SECOND);
        assert_eq!(end(&mut overdue, &sessions, &pauses, begin + MINUTE), begin + 90 * SECOND);
        sessions.end(quiet.id);

        let mut overdue = Overdue::new(limits(MINUTE, Some(80 * SECOND)));
        assert_eq!(end(&mut overdue, &sessions, &pauses, begin + MINUTE), begin + 81 * SECOND);
        // One that was told to end is not waited for.
        assert_eq!(
            end(&mut overdue, &sessions, &pauses, begin + 81 * SECOND),
            begin + 141 * SECOND
        );
        assert_eq!(asked(&busy), (Some(End::MaxDuration), None));
        let lingering = start(&mut sessions, begin);
        lingering.over.store(true, Ordering::Relaxed);
        end(&mut overdue, &sessions, &pauses, begin + 200 * SECOND);
        assert_eq!(asked(&lingering), (None, None));
    }

    #[test]
    fn time_in_which_the_process_did_not_run_is_not_idle_time() {
        let begin = Instant::now();
        let (mut sessions, mut overdue) = (Sessions::default(), Overdue::new(limits(MINUTE, None)));
        let session = start(&mut sessions, begin);
        let mut pauses = Pauses::default();
        pauses.look(begin + 30 * SECOND);
        // Stopped for 272 seconds, and soon once more, for 32; two of each could have passed in a process that runs.
        pauses.look(begin + 302 * SECOND);
        let next = end(&mut overdue, &sessions, &pauses, begin + 302 * SECOND);
        assert_eq!(next, begin + MINUTE + 270 * SECOND);
        pauses.look(begin + 304 * SECOND);
        pauses.look(begin + 336 * SECOND);
        let next = end(&mut overdue, &sessions, &pauses, begin + 336 * SECOND);
        assert_eq!(next, begin + MINUTE + 300 * SECOND);
        assert_eq!(asked(&session), (None, None));
        end(&mut overdue, &sessions, &pauses, begin + 360 * SECOND);
        assert_eq!(asked(&session), (None, Some(begin)));
        // What moved after the pauses counts as always.
        session.traffic.record(1, begin + 340 * SECOND);
        let next = end(&mut overdue, &sessions, &pauses, begin + 360 * SECOND);
        assert_eq!(next, begin + 400 * SECOND);
    }

    #[test]
    fn stricter_limits_end_older_sessions_one_after_the_other() {
        let stricter = [limits(MINUTE, Some(90 * SECOND)), limits(SECOND, None)];
        for (stricter, causes) in stricter.into_iter().zip([true, false]) {
            let begin = Instant::now();
            let (mut sessions, pauses) = (Sessions::default(), Pauses::default());
            let mut overdue = Overdue::new(limits(10 * MINUTE, None));
            let old: Vec<_> = (0..5).map(|_| start(&mut sessions, begin)).collect();
            let now = begin + 5 * MINUTE;
            old.iter().for_each(|session| session.traffic.record(1, now - 50 * SECOND));
            let young = start(&mut sessions, now);
            assert_eq!(set_limits(&mut overdue, stricter, &sessions, &pauses, now), 5);
            assert_eq!(
                set_limits(&mut overdue, stricter, &sessions, &pauses, now),
                0,
                "nothing has changed"
            );
            let mut ended = Vec::new();
            for step in 0_u32..40 {
                let now = now + SPREAD * step / 40;
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
    fn sessions_that_are_spared_go_on_when_the_limits_are_relaxed_again() {
        let begin = Instant::now();
        let (mut sessions, pauses) = (Sessions::default(), Pauses::default());
        let mut overdue = Overdue::new(limits(10 * MINUTE, None));
        let both = [start(&mut sessions, begin), start(&mut sessions, begin)];
        let now = begin + 5 * MINUTE;
        assert_eq!(set_limits(&mut overdue, limits(MINUTE, None), &sessions, &pauses, now), 2);
        assert_eq!(set_limits(&mut overdue, limits(10 * MINUTE, None), &sessions, &pauses, now), 0);
        end(&mut overdue, &sessions, &pauses, now + SPREAD);
        assert!(both.iter().all(|session| asked(session) == (None, None)));
    }

    #[test]
    fn a_second_reload_does_not_end_at_once_those_that_wait_for_their_end() {
        let begin = Instant::now();
        let (mut sessions, pauses) = (Sessions::default(), Pauses::default());
        let mut overdue = Overdue::new(limits(10 * MINUTE, None));
        let old: Vec<_> = (0..5).map(|_| start(&mut sessions, begin)).collect();
        let first = begin + 5 * MINUTE;
        let second = first + 3 * SECOND;
        assert_eq!(
            set_limits(&mut overdue, limits(2 * MINUTE, None), &sessions, &pauses, first),
            5
        );
        // Stricter still, when one has been asked to end.
        end(&mut overdue, &sessions, &pauses, first + SECOND);
        assert_eq!(set_limits(&mut overdue, limits(MINUTE, None), &sessions, &pauses, second), 0);
        end(&mut overdue, &sessions, &pauses, second);
        let is_asked = |session: &&Arc<Session>| asked(session) != (None, None);
        assert_eq!(old.iter().filter(is_asked).count(), 2);
        end(&mut overdue, &sessions, &pauses, first + SPREAD);
        assert_eq!(old.iter().filter(is_asked).count(), 5);
    }
}
