//! Time in which the process did not run, because it was stopped, starved of CPU, or suspended. It counts neither towards the
//! lifetime of keys, whose peers may be in the accept queue until the process runs again, nor as idle time of sessions, whose
//! bytes may be waiting in their sockets.

use std::time::Duration;

use tokio::time::Instant;

/// How often the clock has to be observed while time matters.
pub const OBSERVATION_INTERVAL: Duration = Duration::from_secs(1);
/// The longest time between two observations that counts as running. More than [`OBSERVATION_INTERVAL`], since the timers of a
/// busy process are late.
const LONGEST_GAP: Duration = Duration::from_secs(2);

/// How long a pause is remembered: the longest `PeerIdleTimeout`.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// Distinguishes the time that the process ran from the time that passed. While the clock is not observed, the running time
/// stands still, so nothing may depend on it.
#[derive(Debug, Clone, Default)]
pub struct PauseTracker {
    last_observed: Option<Instant>,
    lost: Duration,
    /// The latest pauses, by their beginnings and ends. Each is longer than [`LONGEST_GAP`], which bounds their number.
    latest: Vec<(Instant, Instant)>,
    unreported: Duration,
}

impl PauseTracker {
    /// Observes the clock.
    pub fn observe(&mut self, now: Instant) {
        let last = self.last_observed.unwrap_or(now);
        let pause = now.saturating_duration_since(last).saturating_sub(LONGEST_GAP);
        if !pause.is_zero() {
            self.lost += pause;
            self.unreported += pause;
            self.latest.retain(|(_, end)| *end + REMEMBERED > now);
            self.latest.push((now - pause, now));
        }
        self.last_observed = self.last_observed.max(Some(now));
    }

    /// Returns how much of the time since `since` was lost to pauses.
    pub fn lost_since(&self, since: Instant) -> Duration {
        let lost =
            |(begin, end): &(Instant, Instant)| end.saturating_duration_since(since.max(*begin));
        self.latest.iter().map(lost).sum()
    }

    /// Takes the time that was lost to pauses since the last call.
    pub fn take_unreported(&mut self) -> Duration {
        std::mem::take(&mut self.unreported)
    }

    /// Converts `now` to a clock that stands still while the process does not run.
    pub fn to_running_time(&self, now: Instant) -> Instant {
        now.checked_sub(self.lost).unwrap_or(now)
    }

    /// Returns when the clock of [`Self::to_running_time`] will show `running`, if the process runs until then.
    pub fn to_clock_time(&self, running: Instant) -> Instant {
        running + self.lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_time_stands_still_while_the_clock_is_not_observed() {
        let start = Instant::now();
        let mut pauses = PauseTracker::default();
        let mut now = start;
        for _ in 0..30 {
            pauses.observe(now);
            now += OBSERVATION_INTERVAL;
        }
        assert_eq!(pauses.to_running_time(now), now);
        // Stopped for a minute.
        now += Duration::from_secs(60);
        pauses.observe(now);
        let ran = pauses.to_running_time(now) - start;
        assert!(ran <= 30 * OBSERVATION_INTERVAL + LONGEST_GAP, "{ran:?}");
        assert_eq!(pauses.to_clock_time(pauses.to_running_time(now)), now);
        // An observation of an earlier time changes nothing.
        pauses.observe(start);
        assert_eq!(pauses.to_running_time(now) - start, ran);
        pauses.observe(now + OBSERVATION_INTERVAL);
        let later = pauses.to_running_time(now + OBSERVATION_INTERVAL);
        assert_eq!(later - start, ran + OBSERVATION_INTERVAL);
    }

    #[test]
    fn pause_counts_for_everything_that_existed_during_it() {
        let (begin, second) = (Instant::now(), Duration::from_secs(1));
        let mut pauses = PauseTracker::default();
        pauses.observe(begin);
        assert_eq!(pauses.take_unreported(), Duration::ZERO);
        // An hour, then two seconds of running, then five seconds.
        for (observed_at, lost) in [(3600, 3598), (3602, 3598), (3607, 3601)] {
            pauses.observe(begin + second * observed_at);
            assert_eq!(pauses.lost_since(begin), second * lost);
        }
        assert_eq!(pauses.take_unreported(), 3601 * second);
        assert_eq!(pauses.take_unreported(), Duration::ZERO);
        // Since the middle of the first pause, between the two, and after both.
        assert_eq!(pauses.lost_since(begin + 3000 * second), 603 * second);
        assert_eq!(pauses.lost_since(begin + 3600 * second), 3 * second);
        assert_eq!(pauses.lost_since(begin + 3607 * second), Duration::ZERO);
    }
}
