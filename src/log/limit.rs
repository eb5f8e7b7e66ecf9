//! A rate limit for log lines that strangers can cause, so that they cannot drown other lines or fill a disk.

use std::num::NonZero;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Allows a number of lines in each period, and counts the others.
#[derive(Debug)]
pub struct LineLimit {
    lines: NonZero<u32>,
    period: Duration,
    counts: Mutex<LineCounts>,
}

#[derive(Debug, Default)]
struct LineCounts {
    /// When the current period began.
    since: Option<Instant>,
    allowed: u32,
    left_out: u64,
}

impl LineLimit {
    /// Creates a limit of `lines` in each `period`.
    pub fn new(lines: NonZero<u32>, period: Duration) -> Self {
        Self { lines, period, counts: Mutex::default() }
    }

    /// Returns whether one more line may be logged, and counts the line as allowed or as left out.
    pub fn allows(&self) -> bool {
        self.allows_from(Instant::now())
    }

    /// Does the same as [`allows`](Self::allows) at a time of another clock; then all calls must use that clock.
    pub(super) fn allows_at(&self, now: std::time::Instant) -> bool {
        self.allows_from(Instant::from_std(now))
    }

    fn allows_from(&self, now: Instant) -> bool {
        let mut counts = self.counts.lock();
        if counts.since.is_none_or(|since| now - since >= self.period) {
            counts.since = Some(now);
            counts.allowed = 0;
        }
        if counts.allowed < self.lines.get() {
            counts.allowed += 1;
            return true;
        }
        counts.left_out += 1;
        false
    }

    /// Takes the number of lines left out since the last call, if the period is over.
    pub fn take_overdue(&self) -> Option<NonZero<u64>> {
        let mut counts = self.counts.lock();
        let is_over = counts.since.is_some_and(|since| since.elapsed() >= self.period);
        if is_over { NonZero::new(std::mem::take(&mut counts.left_out)) } else { None }
    }

    /// Takes the number of lines left out since the last call.
    pub fn take_left_out(&self) -> u64 {
        std::mem::take(&mut self.counts.lock().left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    #[tokio::test(start_paused = true)]
    async fn each_period_allows_some_lines_and_the_others_are_counted() {
        let limit = LineLimit::new(NonZero::new(3).unwrap(), Duration::from_secs(10));
        let burst = || (0..10).filter(|_| limit.allows()).count();
        assert_eq!(burst(), 3);
        advance(Duration::from_secs(9)).await;
        assert_eq!(burst(), 0);
        advance(Duration::from_secs(1)).await;
        assert_eq!(burst(), 3);
        assert_eq!(limit.take_left_out(), 24);
        assert_eq!(limit.take_left_out(), 0);
        assert_eq!(burst(), 0);
        assert_eq!(limit.take_overdue(), None, "the period is not over");
        advance(Duration::from_secs(10)).await;
        assert_eq!(limit.take_overdue(), NonZero::new(10));
        assert_eq!(limit.take_overdue(), None);
    }
}
