//! Time in which the process did not run: stopped, starved or suspended. It counts neither for keys, whose peers may wait in
//! the accept queue until the process runs again, nor as idle time of sessions, whose bytes may wait in their sockets.

use std::time::Duration;

use tokio::time::Instant;

/// How often somebody looks at the clock while time matters.
pub const LOOK: Duration = Duration::from_secs(1);
/// Time between two looks that still counts as running. More than [`LOOK`], since timers of a busy process are late.
const LONGEST_GAP: Duration = Duration::from_secs(2);

/// How long a pause is remembered: the longest `PeerIdleTimeout`.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// Tells the time that ran from the time that passed. While nobody looks, no time runs, and nothing may depend on it then.
#[derive(Debug, Clone, Default)]
pub struct Pauses {
    last_look: Option<Instant>,
    lost: Duration,
    /// The latest ones, by their beginnings and ends. Each takes longer than [`LONGEST_GAP`], which bounds their number.
    latest: Vec<(Instant, Instant)>,
    unreported: Duration,
}

impl Pauses {
    /// Looks at the clock.
    pub fn look(&mut self, now: Instant) {
        let last = self.last_look.unwrap_or(now);
        let pause = now.saturating_duration_since(last).saturating_sub(LONGEST_GAP);
        if !pause.is_zero() {
            self.lost += pause;
            self.unreported += pause;
            self.latest.retain(|(_, end)| *end + REMEMBERED > now);
            self.latest.push((now - pause, now));
        }
        self.last_look = self.last_look.max(Some(now));
    }

    /// How much of the time from `since` until now was lost.
    pub fn lost_since(&self, since: Instant) -> Duration {
        let lost =
            |(begin, end): &(Instant, Instant)| end.saturating_duration_since(since.max(*begin));
        self.latest.iter().map(lost).sum()
    }

    /// The time that was lost since the last call.
    pub fn take_unreported(&mut self) -> Duration {
        std::mem::take(&mut self.unreported)
    }

    /// `now` on a clock that stands still while the process does not run.
    pub fn running(&self, now: Instant) -> Instant {
        now.checked_sub(self.lost).unwrap_or(now)
    }

    /// When a moment of that clock is, if the process runs until then.
    pub fn passing(&self, running: Instant) -> Instant {
        running + self.lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_time_in_which_somebody_looks_runs() {
        let start = Instant::now();
        let mut pauses = Pauses::default();
        let mut now = start;
        for _ in 0..30 {
            pauses.look(now);
            now += LOOK;
        }
        assert_eq!(pauses.running(now), now);
        // Stopped for a minute.
        now += Duration::from_secs(60);
        pauses.look(now);
        let ran = pauses.running(now) - start;
        assert!(ran <= 30 * LOOK + LONGEST_GAP, "{ran:?}");
        assert_eq!(pauses.passing(pauses.running(now)), now);
        // A look that comes late, or from before, changes nothing.
        pauses.look(start);
        assert_eq!(pauses.running(now) - start, ran);
        pauses.look(now + LOOK);
        assert_eq!(pauses.running(now + LOOK) - start, ran + LOOK);
    }

    #[test]
    fn every_pause_counts_for_those_who_lived_through_it() {
        let (begin, second) = (Instant::now(), Duration::from_secs(1));
        let mut pauses = Pauses::default();
        pauses.look(begin);
        assert_eq!(pauses.take_unreported(), Duration::ZERO);
        // An hour, then two seconds of running, then five seconds.
        for (looks_at, lost) in [(3600, 3598), (3602, 3598), (3607, 3601)] {
            pauses.look(begin + second * looks_at);
            assert_eq!(pauses.lost_since(begin), second * lost);
        }
        assert_eq!(pauses.take_unreported(), 3601 * second);
        assert_eq!(pauses.take_unreported(), Duration::ZERO);
        // One that came in the middle of the first, and between the two, and after both.
        assert_eq!(pauses.lost_since(begin + 3000 * second), 603 * second);
        assert_eq!(pauses.lost_since(begin + 3600 * second), 3 * second);
        assert_eq!(pauses.lost_since(begin + 3607 * second), Duration::ZERO);
    }
}
