//! Times in notes: nanoseconds of CLOCK_BOOTTIME, which all processes of a machine share, and which cannot be set.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

/// The two clocks, read together: that of the notes, and that of the tasks of this process.
#[derive(Debug, Clone, Copy)]
pub struct NoteClock {
    boot: Duration,
    instant: Instant,
}

impl NoteClock {
    /// Reads both clocks.
    pub fn now() -> Self {
        let boot = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(boot.tv_sec).unwrap_or_default();
        let nanoseconds = u32::try_from(boot.tv_nsec).unwrap_or_default();
        Self { boot: Duration::new(seconds, nanoseconds), instant: Instant::now() }
    }

    /// Returns what both clocks show together at another moment, for example in a test.
    pub fn at(boot: Duration, instant: Instant) -> Self {
        Self { boot, instant }
    }

    /// When both clocks were read, by the clock of the tasks.
    pub fn instant(self) -> Instant {
        self.instant
    }

    /// Converts a moment of this process to the time of a note, in nanoseconds.
    pub fn to_note(self, moment: Instant) -> u64 {
        let age = self.instant.saturating_duration_since(moment);
        let ahead = moment.saturating_duration_since(self.instant);
        let time = self.boot.saturating_sub(age) + ahead;
        u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Returns how long ago the time of a note was; zero if it is in the future, which it is not on the same machine.
    pub fn age(self, note: u64) -> Duration {
        self.boot.saturating_sub(Duration::from_nanos(note))
    }

    /// Returns how long it is until the time of a note; zero if it has passed.
    pub fn remaining(self, note: u64) -> Duration {
        Duration::from_nanos(note).saturating_sub(self.boot)
    }

    /// Converts the time of a note to the clock of the tasks. A time before the start of that clock becomes its earliest
    /// moment.
    pub fn to_instant(self, note: u64) -> Instant {
        let past = self.instant.checked_sub(self.age(note)).unwrap_or(self.instant);
        past + self.remaining(note)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_converted_there_and_back() {
        let clock = NoteClock::now();
        for seconds in [0, 1, 3] {
            let time = Duration::from_secs(seconds);
            let later = clock.instant() + time;
            assert_eq!(clock.to_instant(clock.to_note(later)), later);
            assert_eq!(clock.remaining(clock.to_note(later)), time);
            if let Some(earlier) = clock.instant().checked_sub(time) {
                assert_eq!(clock.to_instant(clock.to_note(earlier)), earlier);
                assert_eq!(clock.age(clock.to_note(earlier)), time);
            }
        }
    }

    #[test]
    fn two_readings_agree_about_a_moment() {
        let first = NoteClock::now();
        let note = first.to_note(first.instant());
        let second = NoteClock::now();
        let difference = second.to_instant(note).saturating_duration_since(first.instant());
        assert!(difference < Duration::from_secs(1), "{difference:?}");
    }
}
