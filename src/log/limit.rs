//! A limit on lines that strangers cause: a log that they fill is of no use, and its disk is.

use std::num::NonZero;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Some lines in each period; the others are counted.
#[derive(Debug)]
pub struct LineLimit {
    lines: NonZero<u32>,
    period: Duration,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// When the present period began.
    since: Option<Instant>,
    written: u32,
    left_out: u64,
}

impl LineLimit {
    /// So many lines in each period.
    pub fn new(lines: NonZero<u32>, period: Duration) -> Self {
        Self { lines, period, inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one more line may be written; counts it as left out where not.
    pub fn allows(&self) -> bool {
        self.allows_from(Instant::now())
    }

    /// The same by another clock, for all calls.
    pub(super) fn allows_at(&self, now: std::time::Instant) -> bool {
        self.allows_from(Instant::from_std(now))
    }

    fn allows_from(&self, now: Instant) -> bool {
        let mut inner = self.lock();
        if inner.since.is_none_or(|since| now - since >= self.period) {
            inner.since = Some(now);
            inner.written = 0;
        }
        if inner.written < self.lines.get() {
            inner.written += 1;
            return true;
        }
        inner.left_out += 1;
        false
    }

    /// Lines left out in a period that is over, where nobody has said so yet.
    pub fn overdue(&self) -> Option<NonZero<u64>> {
        let mut inner = self.lock();
        let is_over = inner.since.is_some_and(|since| since.elapsed() >= self.period);
        if is_over { NonZero::new(std::mem::take(&mut inner.left_out)) } else { None }
    }

    /// Lines left out since the last call.
    pub fn take_left_out(&self) -> u64 {
        std::mem::take(&mut self.lock().left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    #[tokio::test(start_paused = true)]
    async fn so_many_lines_in_each_period_and_the_rest_is_counted() {
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
        assert_eq!(limit.overdue(), None, "the period goes on");
        advance(Duration::from_secs(10)).await;
        assert_eq!(limit.overdue(), NonZero::new(10));
        assert_eq!(limit.overdue(), None);
    }
}
