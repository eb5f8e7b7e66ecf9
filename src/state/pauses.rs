//! Time in which the process did not run: stopped, starved or suspended. It does not count for keys, whose peers may wait in
//! the accept queue until the process runs again.

use std::time::Duration;

use tokio::time::Instant;

/// How often somebody looks at the clock while time matters.
pub const LOOK: Duration = Duration::from_secs(1);
/// Time between two looks that still counts as running. More than [`LOOK`], since timers of a busy process are late.
const LONGEST_GAP: Duration = Duration::from_secs(2);

/// Tells the time that ran from the time that passed. While nobody looks, no time runs, and nothing may depend on it then.
#[derive(Debug, Default)]
pub struct Pauses {
    last_look: Option<Instant>,
    lost: Duration,
}

impl Pauses {
    /// Looks at the clock.
    pub fn look(&mut self, now: Instant) {
        let since =
            self.last_look.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        self.lost += since.saturating_sub(LONGEST_GAP);
        self.last_look = self.last_look.max(Some(now));
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
}
