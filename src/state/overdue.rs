//! Which sessions have to end: those that are idle for too long, or last too long.
//!
//! The clock alone ends none as idle. It gives rise to a suspicion, which the task of the session confirms: it looks whether
//! bytes wait, or whether the kernel has delivered any. And time in which the process did not run is not held against
//! anybody.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::sessions::{End, Session, SessionId, Sessions};

/// Where new limits are stricter, those that are over them already end one after the other within this time, so that their
/// peers do not come back all at once. Longer than at the end of a drain: nobody waits for it.
pub const SPREAD: Duration = Duration::from_secs(10);

/// A task that runs so much later than it wanted to was not merely behind others: the process was stopped or suspended, or
/// got no CPU.
const PAUSE: Duration = Duration::from_secs(2);

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
    /// From when to when the process did not run, the last time that it did not.
    pause: Option<(Instant, Instant)>,
    /// Sessions that may not end before this time, though they are over a limit.
    spared: HashMap<SessionId, Instant>,
}

impl Overdue {
    /// Decides by these limits.
    pub fn new(limits: Limits) -> Self {
        Self { limits, pause: None, spared: HashMap::new() }
    }

    /// The process runs at `now`, and wanted to run at `wanted`. Gives for how long it did not, where that is long.
    pub fn note_run(&mut self, wanted: Instant, now: Instant) -> Option<Duration> {
        let late = now.saturating_duration_since(wanted);
        if late < PAUSE {
            return None;
        }
        self.pause = Some((wanted, now));
        Some(late)
    }

    /// Decides by other limits from `now` on. Gives the number of sessions that are over them already and were not over the
    /// earlier ones: those end within [`SPREAD`], the oldest first.
    pub fn set_limits(&mut self, limits: Limits, sessions: &Sessions, now: Instant) -> usize {
        let earlier = std::mem::replace(&mut self.limits, limits);
        if limits == earlier {
            return 0;
        }
        let is_over = |limits, session: &Session| self.deadline(limits, session) <= now;
        let mut over: Vec<SessionId> = sessions
            .iter()
            .filter(|session| session.is_forwarding())
            .filter(|session| is_over(limits, session) && !is_over(earlier, session))
            .map(|session| session.id)
            .collect();
        over.sort_unstable();
        let count = u32::try_from(over.len()).unwrap_or(u32::MAX).max(1);
        self.spared = (0..).zip(&over).map(|(i, id)| (*id, now + SPREAD * i / count)).collect();
        over.len()
    }

    /// Asks the sessions to end that are overdue at `now`. Gives when to look again: before that, no session is overdue,
    /// not even one that begins after this. Costs a look at each session.
    pub fn end(&mut self, sessions: &Sessions, now: Instant) -> Instant {
        self.spared.retain(|_, until| *until > now);
        let Limits { idle, longest } = self.limits;
        let mut next = now + longest.map_or(idle, |longest| longest.min(idle));
        for session in sessions.iter().filter(|session| session.is_forwarding()) {
            if let Some(until) = self.spared.get(&session.id) {
                next = next.min(*until);
            } else if longest.is_some_and(|longest| session.started + longest <= now) {
                session.stop(End::MaxDuration);
            } else if self.idle_end(idle, session) <= now {
                session.stop_if_idle(session.traffic.last_moved());
                next = next.min(now + LOOK_AGAIN);
            } else {
                next = next.min(self.deadline(self.limits, session));
            }
        }
        next
    }

    /// When the session is over one of the limits.
    fn deadline(&self, Limits { idle, longest }: Limits, session: &Session) -> Instant {
        let idle_end = self.idle_end(idle, session);
        longest.map_or(idle_end, |longest| idle_end.min(session.started + longest))
    }

    /// When the session has been idle for too long. A pause of the process does not count.
    fn idle_end(&self, idle: Duration, session: &Session) -> Instant {
        let since = session.traffic.last_moved();
        match self.pause {
            Some((began, ended)) if since < began => since + idle + (ended - began),
            Some((_, ended)) if since < ended => ended + idle,
            _ => since + idle,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::sessions::Identity;
    use std::net::SocketAddr;
    use std::sync::Arc;
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

    fn limits(idle: Duration, longest: Option<Duration>) -> Limits {
        Limits { idle, longest }
    }

    #[test]
    fn overdue_sessions_are_asked_to_end_and_the_next_deadline_is_known() {
        let begin = Instant::now();
        let (mut sessions, mut overdue) = (Sessions::default(), Overdue::new(limits(MINUTE, None)));
        // One that begins in the next moment is overdue then.
        assert_eq!(overdue.end(&sessions, begin), begin + MINUTE);
        let quiet = start(&mut sessions, begin);
        let busy = start(&mut sessions, begin + SECOND);
        busy.traffic.record(1, begin + 30 * SECOND);
        assert_eq!(overdue.end(&sessions, begin + 59 * SECOND), begin + MINUTE);
        assert_eq!(asked(&quiet), (None, None));
        // It may turn out not to be idle.
        assert_eq!(overdue.end(&sessions, begin + MINUTE), begin + MINUTE + LOOK_AGAIN);
        assert_eq!(asked(&quiet), (None, Some(begin)));
        quiet.traffic.record_drained(begin + 59 * SECOND);
        assert_eq!(overdue.end(&sessions, begin + MINUTE), begin + 90 * SECOND);
        sessions.end(quiet.id);

        let mut overdue = Overdue::new(limits(MINUTE, Some(80 * SECOND)));
        assert_eq!(overdue.end(&sessions, begin + MINUTE), begin + 81 * SECOND);
        // One that was told to end is not waited for.
        assert_eq!(overdue.end(&sessions, begin + 81 * SECOND), begin + 141 * SECOND);
        assert_eq!(asked(&busy), (Some(End::MaxDuration), None));
        let lingering = start(&mut sessions, begin);
        lingering.over.store(true, Ordering::Relaxed);
        overdue.end(&sessions, begin + 200 * SECOND);
        assert_eq!(asked(&lingering), (None, None));
    }

    #[test]
    fn time_in_which_the_process_did_not_run_is_not_idle_time() {
        let begin = Instant::now();
        let (mut sessions, mut overdue) = (Sessions::default(), Overdue::new(limits(MINUTE, None)));
        let session = start(&mut sessions, begin);
        assert_eq!(overdue.note_run(begin + 10 * SECOND, begin + 11 * SECOND), None);
        let paused = overdue.note_run(begin + 30 * SECOND, begin + 300 * SECOND);
        assert_eq!(paused, Some(270 * SECOND));
        // Half a minute of idle time was left.
        assert_eq!(overdue.end(&sessions, begin + 300 * SECOND), begin + 330 * SECOND);
        assert_eq!(asked(&session), (None, None));
        overdue.end(&sessions, begin + 330 * SECOND);
        assert_eq!(asked(&session), (None, Some(begin)));
        // What moved after the pause counts as always.
        session.traffic.record(1, begin + 310 * SECOND);
        assert_eq!(overdue.end(&sessions, begin + 330 * SECOND), begin + 370 * SECOND);
        // One whose last byte is from within the pause, by the clock of a thread that went on.
        let other = start(&mut sessions, begin + 100 * SECOND);
        overdue.end(&sessions, begin + 359 * SECOND);
        assert_eq!(asked(&other), (None, None));
        overdue.end(&sessions, begin + 360 * SECOND);
        assert_eq!(asked(&other), (None, Some(begin + 100 * SECOND)));
    }

    #[test]
    fn stricter_limits_end_older_sessions_one_after_the_other() {
        let stricter = [limits(MINUTE, Some(90 * SECOND)), limits(SECOND, None)];
        for (stricter, causes) in stricter.into_iter().zip([true, false]) {
            let begin = Instant::now();
            let mut sessions = Sessions::default();
            let mut overdue = Overdue::new(limits(10 * MINUTE, None));
            let old: Vec<_> = (0..5).map(|_| start(&mut sessions, begin)).collect();
            let now = begin + 5 * MINUTE;
            old.iter().for_each(|session| session.traffic.record(1, now - 50 * SECOND));
            let young = start(&mut sessions, now);
            assert_eq!(overdue.set_limits(stricter, &sessions, now), 5);
            assert_eq!(overdue.set_limits(stricter, &sessions, now), 0, "nothing has changed");
            let mut ended = Vec::new();
            for step in 0_u32..40 {
                let now = now + SPREAD * step / 40;
                overdue.end(&sessions, now);
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
        let mut sessions = Sessions::default();
        let mut overdue = Overdue::new(limits(10 * MINUTE, None));
        let both = [start(&mut sessions, begin), start(&mut sessions, begin)];
        let now = begin + 5 * MINUTE;
        assert_eq!(overdue.set_limits(limits(MINUTE, None), &sessions, now), 2);
        assert_eq!(overdue.set_limits(limits(10 * MINUTE, None), &sessions, now), 0);
        overdue.end(&sessions, now + SPREAD);
        assert!(both.iter().all(|session| asked(session) == (None, None)));
    }
}
